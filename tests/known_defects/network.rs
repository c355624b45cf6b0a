//! Devices between edges in memory, a look at what leaves them, and somebody who sends them any datagram.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerSnapshot, PeerUpdate, Update};
use adit::key::PrivateKey;
use adit::packet::{Buffers, PacketRef};
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::udp::memory::MemoryNetwork;
use adit::udp::{Received, Sent, Transmit, Udp, UdpReceiver, UdpSender, UdpSocket};

use crate::testbed::{Hooked, Hooks};

/// More than anything here takes on a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
/// How long to look for what must not come.
pub(crate) const SILENCE: Duration = Duration::from_millis(100);
/// Initiations of one peer that come closer together are a flood, and whitened timestamps do not tell them apart.
pub(crate) const BETWEEN_INITIATIONS: Duration = Duration::from_millis(25);
pub(crate) const PORT: u16 = 51820;

/// What leaves a device.
#[derive(Default)]
pub(crate) struct Wire {
    pub(crate) left: Mutex<Vec<Vec<u8>>>,
    /// How often sockets were bound.
    pub(crate) binds: AtomicUsize,
}

impl Wire {
    /// Waits for the newest datagram of this type and, if given, length.
    pub(crate) fn expect(&self, kind: u8, len: Option<usize>) -> Vec<u8> {
        let mut found = None;
        let wanted = |bytes: &&Vec<u8>| bytes[0] == kind && len.is_none_or(|len| bytes.len() == len);
        eventually("a datagram", || {
            found = self.left.lock().unwrap().iter().rev().find(wanted).cloned();
            found.is_some()
        });
        found.unwrap()
    }
}

impl Hooks for Wire {
    fn udp_bind(&self) -> io::Result<()> {
        self.binds.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn udp_send(&self, inner: &mut dyn UdpSender, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        let datagrams = transmits.iter().flat_map(|transmit| transmit.data.chunks(transmit.segment.max(1)));
        self.left.lock().unwrap().extend(datagrams.map(<[u8]>::to_vec));
        inner.send(transmits, sent);
    }
}

pub(crate) fn key(number: u16) -> PrivateKey {
    let mut bytes = [0x5a; 32];
    bytes[8..10].copy_from_slice(&number.to_le_bytes());
    PrivateKey::from_bytes(bytes)
}

pub(crate) fn outer(number: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, number), PORT).into()
}

pub(crate) fn outer_v6(number: u8) -> SocketAddr {
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number.into()), PORT).into()
}

pub(crate) fn inner(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

pub(crate) fn allowed(address: impl Into<IpAddr>, prefix_len: u8) -> AllowedIpUpdate {
    AllowedIpUpdate { allowed_ip: AllowedIp { address: address.into(), prefix_len }, remove: false }
}

/// Number `other` as a peer, where it is and with its inner address.
pub(crate) fn peer(other: u8) -> PeerUpdate {
    PeerUpdate {
        endpoint: Some(outer(other)),
        allowed_ips: vec![allowed(inner(other), 32)],
        ..PeerUpdate::new(key(other.into()).public_key())
    }
}

/// A device, what its interface leads to, and what left it.
pub(crate) struct Host {
    pub(crate) device: Device,
    pub(crate) tun: MemoryTunHandle,
    pub(crate) wire: Arc<Wire>,
    number: u8,
}

impl Host {
    /// Number `number`: up, keyed, without peers.
    pub(crate) fn new(network: &MemoryNetwork, number: u8) -> Self {
        let wire = Arc::<Wire>::default();
        let (tun, handle) = MemoryTun::new("memory", 1420);
        let udp = Hooked(network.host(&[outer(number).ip(), outer_v6(number).ip()]), wire.clone());
        let device = Device::builder(tun, udp).threads(3).start().unwrap();
        let private_key = Some(Some(key(number.into())));
        device.apply(Update { private_key, listen_port: Some(PORT), ..Update::default() }).unwrap();
        handle.set_up(true);
        eventually("a bound socket", || device.figures().is_bound);
        Self { device, tun: handle, wire, number }
    }

    pub(crate) fn add(&self, peer: PeerUpdate) {
        self.device.apply(Update { peers: vec![peer], ..Update::default() }).unwrap();
    }

    /// Gives the interface a packet as soon as it takes it.
    pub(crate) fn send_packet(&self, packet: &[u8]) {
        eventually("room in the interface's queue", || self.tun.send(packet));
    }

    pub(crate) fn send(&self, to: u8, text: &str) {
        self.send_packet(&packet(inner(self.number), inner(to), text.as_bytes()));
    }

    /// The text of the next packet that comes out of the tunnel.
    pub(crate) fn receive(&self, patience: Duration) -> Option<String> {
        self.tun.receive(patience).map(|packet| String::from_utf8_lossy(&packet[20..]).into_owned())
    }

    /// The only peer.
    pub(crate) fn peer(&self) -> PeerSnapshot {
        self.device.snapshot().peers.into_iter().next().unwrap()
    }
}

/// Two hosts that know each other.
pub(crate) fn pair(network: &MemoryNetwork) -> (Host, Host) {
    let (one, two) = (Host::new(network, 1), Host::new(network, 2));
    one.add(peer(2));
    two.add(peer(1));
    (one, two)
}

/// Sends a text through the tunnel, and waits until it has arrived.
#[track_caller]
pub(crate) fn pass(from: &Host, to: &Host, text: &str) {
    from.send(to.number, text);
    assert_eq!(to.receive(PATIENCE).as_deref(), Some(text));
}

/// An IPv4 packet of a protocol that nobody has.
pub(crate) fn packet(source: Ipv4Addr, destination: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let len = (20 + payload.len()) as u16;
    let [high, low] = len.to_be_bytes();
    let mut packet = vec![0x45, 0, high, low, 0, 0, 0, 0, 64, 253, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(payload);
    packet
}

/// Somebody with a socket.
pub(crate) struct Somebody {
    receiver: Box<dyn UdpReceiver>,
    sender: Box<dyn UdpSender>,
    _socket: Arc<dyn UdpSocket>,
}

impl Somebody {
    pub(crate) fn at(network: &MemoryNetwork, address: SocketAddr) -> Self {
        let socket = network.host(&[address.ip()]).bind(address.port(), 0, 1).unwrap();
        let (receiver, sender) = (socket.receivers().unwrap().remove(0), socket.sender().unwrap());
        Self { receiver, sender, _socket: socket }
    }

    pub(crate) fn send(&mut self, to: SocketAddr, data: &[u8]) {
        let segment = data.len().max(1);
        self.sender
            .send(&[Transmit { to, source: None, tos: 0, segment, data, offload: false }], &mut [Sent::default()]);
    }

    /// What has come by now.
    pub(crate) fn heard(&mut self) -> Vec<Vec<u8>> {
        let mut buffers = Buffers::new(16);
        let mut received: Vec<Received> = Vec::with_capacity(16);
        self.receiver.receive(&mut buffers, &mut received).unwrap();
        let runs = received
            .iter()
            .map(|run| (buffers.get(PacketRef { buffer: run.buffer, start: 0, len: run.len }), run.segment as usize));
        runs.flat_map(|(bytes, segment)| bytes.chunks(segment.max(1)).map(<[u8]>::to_vec)).collect()
    }

    /// Waits for an answer.
    pub(crate) fn hear(&mut self) -> Vec<u8> {
        let mut heard = None;
        eventually("an answer", || {
            heard = self.heard().pop();
            heard.is_some()
        });
        heard.unwrap()
    }
}

/// Waits for what another thread is to bring about.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "{what}: waited in vain");
        std::thread::sleep(Duration::from_micros(500));
    }
}
