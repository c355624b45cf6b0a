//! The device as a program that links the library has it: edges of its own made of public items alone, two devices in
//! one process, and nothing left behind when they are gone.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use adit::device::config::{
    AllowedIp, AllowedIpUpdate, ApplyError, Configure, PeerSnapshot, PeerUpdate, Snapshot, Update,
};
use adit::device::{Builder, CloseReason, Device};
use adit::key::PrivateKey;
use adit::packet::{Buffers, PacketRef};
use adit::proto::rejected::Rejected;
use adit::tun::offload::SuperPacket;
use adit::tun::{Readiness, ReceiveError, Tun, TunEvent, TunEvents, TunQueue, TunReceiver, TunSender, Wake};
use adit::udp::memory::MemoryNetwork;

const PATIENCE: Duration = Duration::from_secs(10);
const PORT: u16 = 51820;

// --- An interface of somebody else's ---------------------------------------------------------

/// Packets to the device, and who is to be told of them.
#[derive(Default)]
struct Outbound {
    packets: VecDeque<Vec<u8>>,
    wake: Option<Wake>,
}

/// A [`Tun`] that is up from the beginning and has nothing of adit's own ones in it.
struct OwnTun {
    outbound: Arc<Mutex<Outbound>>,
    inbound: Sender<Vec<u8>>,
}

/// Its other side.
struct OwnHost {
    outbound: Arc<Mutex<Outbound>>,
    inbound: Receiver<Vec<u8>>,
}

fn own_tun() -> (OwnTun, OwnHost) {
    let outbound = Arc::<Mutex<Outbound>>::default();
    let (sender, receiver) = channel();
    (OwnTun { outbound: outbound.clone(), inbound: sender }, OwnHost { outbound, inbound: receiver })
}

impl OwnHost {
    fn send(&self, packet: &[u8]) {
        let mut outbound = self.outbound.lock().unwrap_or_else(PoisonError::into_inner);
        outbound.packets.push_back(packet.to_vec());
        let wake = outbound.wake.clone();
        drop(outbound);
        if let Some(wake) = wake {
            wake();
        }
    }
}

impl Tun for OwnTun {
    fn name(&self) -> String {
        "own".into()
    }

    fn mtu(&self) -> usize {
        1280
    }

    fn queues(&mut self, _count: usize) -> io::Result<Vec<TunQueue>> {
        let receiver = Box::new(OwnReceiver(self.outbound.clone()));
        Ok(vec![TunQueue { receiver, sender: Box::new(OwnSender(self.inbound.clone())) }])
    }

    fn events(&mut self) -> io::Result<Box<dyn TunEvents>> {
        Ok(Box::new(AlwaysUp(Some(TunEvent::Up))))
    }
}

struct OwnReceiver(Arc<Mutex<Outbound>>);

impl TunReceiver for OwnReceiver {
    fn readiness(&mut self, wake: Wake) -> Readiness {
        let mut outbound = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !outbound.packets.is_empty() {
            wake();
        }
        outbound.wake = Some(wake);
        Readiness::Wake
    }

    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        let mut outbound = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(packet) = outbound.packets.pop_front() else { return Ok(None) };
        let bytes = &mut buffer[..packet.len()];
        bytes.copy_from_slice(&packet);
        Ok(Some(SuperPacket::plain(bytes)?))
    }
}

struct OwnSender(Sender<Vec<u8>>);

impl TunSender for OwnSender {
    fn send(&mut self, buffers: &Buffers, packets: &[PacketRef]) -> usize {
        packets.iter().filter(|place| self.0.send(buffers.get(**place).to_vec()).is_err()).count()
    }
}

struct AlwaysUp(Option<TunEvent>);

impl TunEvents for AlwaysUp {
    fn readiness(&mut self, _wake: Wake) -> Readiness {
        Readiness::Wake
    }

    fn next(&mut self) -> io::Result<Option<TunEvent>> {
        Ok(self.0.take())
    }
}

// --- Two devices -----------------------------------------------------------------------------

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

fn outer(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn inner(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

fn start(network: &MemoryNetwork, number: u8, other: u8) -> (Device, OwnHost) {
    let (tun, host) = own_tun();
    let device = Device::builder(tun, network.host(&[outer(number)])).threads(2).start().expect("threads start");
    let allowed_ip = AllowedIp { address: inner(other).into(), prefix_len: 32 };
    let update = Update {
        private_key: Some(Some(key(number))),
        listen_port: Some(PORT),
        peers: vec![PeerUpdate {
            endpoint: Some(SocketAddr::new(outer(other), PORT)),
            allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
            ..PeerUpdate::new(key(other).public_key())
        }],
        ..Update::default()
    };
    device.apply(update).expect("an update is accepted");
    (device, host)
}

fn packet(from: u8, to: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0];
    packet.extend(inner(from).octets());
    packet.extend(inner(to).octets());
    packet
}

#[test]
fn an_interface_can_be_made_of_public_items() {
    let network = MemoryNetwork::new();
    let ((one, host_one), (two, host_two)) = (start(&network, 1, 2), start(&network, 2, 1));
    for _ in 0..3 {
        host_one.send(&packet(1, 2));
        assert_eq!(host_two.inbound.recv_timeout(PATIENCE).expect("through the tunnel"), packet(1, 2));
        host_two.send(&packet(2, 1));
        assert_eq!(host_one.inbound.recv_timeout(PATIENCE).expect("and back"), packet(2, 1));
    }
    // They have nothing in common: one ends, the other goes on.
    drop(one);
    assert_eq!(two.snapshot().peers.len(), 1);
    assert_eq!(two.name(), "own");
}

// --- What is left ----------------------------------------------------------------------------

/// Threads of this process by name, and what its descriptors are.
fn threads_and_descriptors() -> (Vec<String>, BTreeSet<String>) {
    let list = |folder: &str| fs::read_dir(folder).expect("this is Linux").map(|entry| entry.expect("an entry").path());
    let name = |path: std::path::PathBuf| fs::read_to_string(path.join("comm")).unwrap_or_default();
    let ours = list("/proc/self/task").map(name).filter(|name| name.starts_with("adit-"));
    // The descriptor that lists is among the listed; it is gone when it is looked at.
    let kinds = list("/proc/self/fd").filter_map(|path| Some((path.clone(), fs::read_link(&path).ok()?)));
    let eventful = kinds.filter(|(_, to)| to.to_string_lossy().contains("event"));
    (ours.collect(), eventful.map(|(path, _)| path.to_string_lossy().into_owned()).collect())
}

/// In a process of its own: the other tests have threads, too.
#[test]
fn a_dropped_device_leaves_nothing() {
    const ALONE: &str = "ADIT_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        let test = std::env::current_exe().expect("this test is a program");
        let arguments = ["--exact", "a_dropped_device_leaves_nothing", "--nocapture", "--test-threads=1"];
        let output = std::process::Command::new(test).args(arguments).env(ALONE, "1").output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        return;
    }
    let before = threads_and_descriptors();
    // Of this thread: the test runner's own one has signals blocked while it starts this one.
    let signals = || {
        let status = fs::read_to_string("/proc/thread-self/status").expect("this is Linux");
        let of_signals = ["SigBlk", "SigIgn", "SigCgt"];
        let lines = status.lines().filter(|line| of_signals.iter().any(|field| line.starts_with(field)));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let signals_before = signals();
    for _ in 0..3 {
        let network = MemoryNetwork::new();
        let ((one, host_one), (two, host_two)) = (start(&network, 1, 2), start(&network, 2, 1));
        host_one.send(&packet(1, 2));
        host_two.inbound.recv_timeout(PATIENCE).expect("through the tunnel");
        // A thread names itself when it first runs.
        let until = Instant::now() + PATIENCE;
        while threads_and_descriptors().0.len() < 2 * 3 {
            assert!(Instant::now() < until, "{:?}", threads_and_descriptors());
            std::thread::yield_now();
        }
        assert_eq!(signals(), signals_before, "no signal is caught, ignored or blocked");
        let begun = Instant::now();
        drop((one, two));
        // No timer of the devices is as short as this, nor is a busy machine as slow.
        assert!(begun.elapsed() < Duration::from_secs(4), "at once");
        // What the device had of the edges is gone with it.
        assert_eq!(Arc::strong_count(&host_one.outbound), 1);
        assert!(matches!(host_two.inbound.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)));
        // The kernel lets the one who joins a thread go on before it takes the thread off its list.
        let until = Instant::now() + PATIENCE;
        while threads_and_descriptors() != before {
            assert!(Instant::now() < until, "{:?}, not {before:?}", threads_and_descriptors());
            std::thread::yield_now();
        }
    }
}

// --- What the compiler finds out by itself ---------------------------------------------------

/// What a program may give to other threads, and share with them. Losing one of these breaks its users.
#[test]
fn what_is_send_and_sync() {
    const fn send_and_sync<T: Send + Sync>() {}
    const fn send<T: Send>() {}
    send_and_sync::<Device>();
    send_and_sync::<Update>();
    send_and_sync::<Snapshot>();
    send_and_sync::<PeerUpdate>();
    send_and_sync::<PeerSnapshot>();
    send_and_sync::<ApplyError>();
    send_and_sync::<CloseReason>();
    send_and_sync::<Rejected>();
    send_and_sync::<PrivateKey>();
    send_and_sync::<Arc<dyn Configure>>();
    send_and_sync::<adit::uapi::Server>();
    send_and_sync::<adit::udp::memory::MemoryNetwork>();
    send_and_sync::<adit::tun::memory::MemoryTunHandle>();
    send_and_sync::<adit::proto::peer::Peer>();
    send_and_sync::<adit::proto::tunnel::Tunnel>();
    send_and_sync::<adit::proto::keypair::Keypair>();
    send_and_sync::<adit::proto::timers::Timers>();
    send_and_sync::<adit::proto::allowed_ips::AllowedIps>();
    send::<Builder>();
    send::<adit::tun::linux::LinuxTun>();
}

// --- What the documents show -----------------------------------------------------------------

/// Each door has its program, and the document names it.
#[test]
fn the_document_names_every_program() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/embedding.md")).expect("a document");
    for program in ["proto_loop", "device", "own_transport", "memory_tunnel", "netstack_http_get"] {
        assert!(root.join(format!("examples/{program}.rs")).exists(), "{program}");
        assert!(text.contains(&format!("(../examples/{program}.rs)")), "docs/embedding.md names {program}");
    }
}
