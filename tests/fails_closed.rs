//! A panic at any edge ends the whole device, which says so: nothing of it goes on, and nothing more leaves it.
//!
//! The fault is the edge's: a TUN or a socket in memory that panics when it is told to, under each thread of the device.
#![cfg(feature = "device")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::device::{CloseReason, Device};
use adit::key::PrivateKey;
use adit::packet::{Buffers, PacketRef};
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::tun::offload::SuperPacket;
use adit::tun::{ReceiveError, TunEvent, TunEvents, TunReceiver, TunSender, Wake};
use adit::udp::memory::MemoryNetwork;
use adit::udp::{Received, Sent, Transmit, UdpReceiver, UdpSender};

#[path = "testbed/edges.rs"]
mod edges;

use edges::{Hooked, Hooks};

/// Anything that a device does at once, on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long to look for what must not come.
const SILENCE: Duration = Duration::from_millis(300);
const PORT: u16 = 51820;
const MTU: usize = 1420;
/// What the injected panic says.
const TEXT: &str = "injected by the test";

/// Where the panic comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Place {
    Nowhere,
    TunReceive,
    TunSend,
    TunEvents,
    UdpReceive,
    UdpSend,
    UdpBind,
}

/// Where the next panic comes, if at all, and how many have come.
#[derive(Default)]
struct Fault {
    place: AtomicU8,
    panics: AtomicUsize,
}

impl Fault {
    fn arm(&self, place: Place) {
        self.place.store(place as u8, Ordering::SeqCst);
    }

    fn at(&self, place: Place) {
        if self.place.load(Ordering::SeqCst) == place as u8 {
            self.panics.fetch_add(1, Ordering::SeqCst);
            panic!("{TEXT}");
        }
    }
}

impl Hooks for Fault {
    fn tun_receive<'a>(
        &self,
        inner: &mut dyn TunReceiver,
        buffer: &'a mut [u8],
    ) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        self.at(Place::TunReceive);
        inner.receive(buffer)
    }

    fn tun_send(&self, inner: &mut dyn TunSender, buffers: &Buffers, packets: &[PacketRef]) -> usize {
        self.at(Place::TunSend);
        inner.send(buffers, packets)
    }

    fn tun_event(&self, inner: &mut dyn TunEvents) -> io::Result<Option<TunEvent>> {
        self.at(Place::TunEvents);
        inner.next()
    }

    fn udp_bind(&self) -> io::Result<()> {
        self.at(Place::UdpBind);
        Ok(())
    }

    fn udp_receive(
        &self,
        inner: &mut dyn UdpReceiver,
        _wake: Option<&Wake>,
        buffers: &mut Buffers,
        received: &mut Vec<Received>,
    ) -> io::Result<bool> {
        self.at(Place::UdpReceive);
        inner.receive(buffers, received)
    }

    fn udp_send(&self, inner: &mut dyn UdpSender, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        self.at(Place::UdpSend);
        inner.send(transmits, sent);
    }
}

fn outer(host: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, host), PORT).into()
}

fn key(host: u8) -> PrivateKey {
    PrivateKey::from_bytes([host; 32])
}

fn configure(device: &Device, host: u8, peer: u8) {
    let allowed_ip = AllowedIp { address: Ipv4Addr::new(10, 0, 0, peer).into(), prefix_len: 32 };
    let peer = PeerUpdate {
        endpoint: Some(outer(peer)),
        allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
        ..PeerUpdate::new(key(peer).public_key())
    };
    let update =
        Update { private_key: Some(Some(key(host))), listen_port: Some(PORT), peers: vec![peer], ..Update::default() };
    device.apply(update).unwrap();
}

fn packet(from: u8, to: u8) -> Vec<u8> {
    let mut packet = vec![0; 60];
    (packet[0], packet[3], packet[8], packet[9]) = (0x45, 60, 64, 253);
    packet[12..16].copy_from_slice(&[10, 0, 0, from]);
    packet[16..20].copy_from_slice(&[10, 0, 0, to]);
    packet
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A device whose edges can fail, and a sound one as its peer, with a session between them.
struct Scene {
    fault: Arc<Fault>,
    device: Device,
    tun: MemoryTunHandle,
    reasons: mpsc::Receiver<CloseReason>,
    peer: Device,
    peer_tun: MemoryTunHandle,
}

impl Scene {
    fn new(threads: usize) -> Self {
        let network = MemoryNetwork::new();
        let fault = Arc::new(Fault::default());
        let (memory, tun) = MemoryTun::new("faulty", MTU);
        let udp = Hooked(network.host(&[outer(1).ip()]), Arc::clone(&fault));
        let (tell, reasons) = mpsc::channel();
        let device = Device::builder(Hooked(memory, Arc::clone(&fault)), udp)
            .threads(threads)
            .on_close(move |reason| tell.send(reason.clone()).unwrap())
            .start()
            .unwrap();
        let (memory, peer_tun) = MemoryTun::new("sound", MTU);
        let peer = Device::builder(memory, network.host(&[outer(2).ip()])).start().unwrap();
        configure(&device, 1, 2);
        configure(&peer, 2, 1);
        let scene = Self { fault, device, tun, reasons, peer, peer_tun };
        scene.tun.set_up(true);
        scene.peer_tun.set_up(true);
        until("the links are up", || scene.device.figures().is_bound && scene.peer.figures().is_bound);
        scene.tun.send(&packet(1, 2));
        assert!(scene.peer_tun.receive(PATIENCE).is_some(), "there is a session");
        scene.peer_tun.send(&packet(2, 1));
        assert!(scene.tun.receive(PATIENCE).is_some(), "in both directions");
        scene
    }

    /// Brings all of the device's threads to work, each at all of its edges.
    fn stir(&self) {
        self.tun.send(&packet(1, 2));
        self.peer_tun.send(&packet(2, 1));
        self.tun.set_mtu(MTU - 1);
        self.tun.change_routes();
    }
}

fn check(place: Place, threads: usize) {
    let what = format!("{place:?} with {threads} threads");
    let Scene { fault, mut device, tun, reasons, peer, peer_tun } = {
        let scene = Scene::new(threads);
        let mut events = scene.device.events();
        scene.fault.arm(place);
        match place {
            Place::UdpBind => {
                // Another port is bound by whoever asks for it; what panics there is the caller, and the device's own thread
                // when the link comes up.
                scene.tun.set_up(false);
                until("the port is closed", || !scene.device.figures().is_bound || !scene.device.is_running());
                scene.tun.set_up(true);
            }
            _ => scene.stir(),
        }
        let reason = scene.reasons.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}: nobody is told"));
        assert_eq!(reason, CloseReason::Failed(format!("internal error: {TEXT}")), "{what}");
        assert_eq!(scene.device.wait(), reason, "{what}: who waits hears the same");
        assert!(!scene.device.is_running(), "{what}: it says that it has ended");
        assert!(events.by_ref().count() < 100, "{what}: the events have an end");
        scene
    };
    // Whatever comes now, from either side: nothing leaves, nothing arrives, nobody panics once more.
    fault.arm(Place::Nowhere);
    while peer_tun.receive(Duration::from_millis(1)).is_some() {}
    while tun.receive(Duration::from_millis(1)).is_some() {}
    for _ in 0..10 {
        tun.send(&packet(1, 2));
        peer_tun.send(&packet(2, 1));
    }
    peer.start_handshake(&key(1).public_key());
    assert_eq!(peer_tun.receive(SILENCE), None, "{what}: a packet left");
    assert_eq!(tun.receive(SILENCE), None, "{what}: a packet arrived");
    assert!(fault.panics.load(Ordering::SeqCst) >= 1);
    // The other threads have ended, too: those that are joined, and whatever they held.
    device.close();
    drop(device);
    assert_eq!(Arc::strong_count(&fault), 1, "{what}: an edge is still held");
    assert_eq!(reasons.try_recv(), Err(mpsc::TryRecvError::Disconnected), "{what}: told once");
}

/// [F-21] Each edge, under the one worker that does all, and under several that share the work.
#[test]
fn f_21_a_panic_at_any_edge_ends_the_whole_device() {
    for place in
        [Place::TunReceive, Place::TunSend, Place::TunEvents, Place::UdpReceive, Place::UdpSend, Place::UdpBind]
    {
        for threads in [1, 4] {
            check(place, threads);
        }
    }
}
