//! The edge towards the system: real TUN interfaces, in network namespaces that each test makes for itself.
//!
//! Needs root, `ip`, `unshare` and `nsenter`; prints `SKIPPED:` and returns without.
#![cfg(feature = "device")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use adit::packet::{BUFFER_LEN, Buffers, PacketRef};
use adit::tun::linux::{LinuxTun, OpenError};
use adit::tun::{ReceiveError, Tun, TunEvent, TunEvents, TunReceiver, TunSender};

/// How long anything may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `test` on a thread with a network namespace of its own, if that can be had.
fn in_namespace(name: &str, test: fn()) {
    if !std::path::Path::new("/dev/net/tun").exists() {
        return println!("SKIPPED: {name}: there is no /dev/net/tun");
    }
    let run = move || {
        // SAFETY: takes its argument by value, and concerns this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return false;
        }
        test();
        true
    };
    match thread::Builder::new().name(name.to_owned()).spawn(run).unwrap().join() {
        Ok(true) => {}
        Ok(false) => println!("SKIPPED: {name}: needs root to make a network namespace"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn sh(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

/// A network namespace kept alive by a process.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let child =
            Command::new("unshare").args(["-n", "sh", "-c", "echo; exec sleep 60"]).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self(child)
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    /// Runs `inside` on a thread in this namespace.
    fn run<T: Send + 'static>(&self, inside: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.id())).unwrap();
        thread::spawn(move || {
            // SAFETY: the descriptor is open; the call concerns this thread only.
            assert_eq!(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
            inside()
        })
    }

    fn sh(&self, command: &str) {
        sh(&format!("nsenter -t {} -n sh -ec '{command}'", self.id()));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The next event but for changes of routes, which come with everything.
fn next(events: &mut dyn TunEvents) -> TunEvent {
    let start = Instant::now();
    loop {
        match events.next().unwrap() {
            Some(TunEvent::Routes) => {}
            Some(event) => return event,
            None => thread::sleep(Duration::from_millis(5)),
        }
        assert!(start.elapsed() < PATIENCE, "no event");
    }
}

/// The index that an interface has here.
fn index_of(name: &std::ffi::CStr) -> u32 {
    // SAFETY: the pointer is to a C string that outlives the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) }
}

/// A change of routes, and then nothing for a while.
fn routes_change(events: &mut dyn TunEvents) {
    assert_eq!(events.next().unwrap(), Some(TunEvent::Routes));
    thread::sleep(Duration::from_millis(300));
    while let Some(event) = events.next().unwrap() {
        assert_eq!(event, TunEvent::Routes);
    }
}

fn receive(receiver: &mut dyn TunReceiver) -> Result<Option<Vec<u8>>, ReceiveError> {
    let mut buffer = vec![0; 65_535];
    Ok(receiver.receive(&mut buffer)?.map(|packet| packet.bytes().to_vec()))
}

fn is_gone(receiver: &mut dyn TunReceiver) {
    let start = Instant::now();
    while !matches!(receive(receiver), Err(ReceiveError::Gone(_))) {
        assert!(start.elapsed() < PATIENCE, "still there");
    }
}

#[test]
fn follows_the_interface() {
    in_namespace("follows_the_interface", || {
        follow(1);
        follow(3);
    });
}

fn follow(queues: usize) {
    let mut tun = LinuxTun::create("wg%d", queues).unwrap();
    assert_eq!((tun.name().as_str(), tun.mtu()), ("wg0", 1420));
    let mut queues = tun.queues(queues).unwrap();
    let mut events = tun.events().unwrap();
    assert_eq!(next(&mut *events), TunEvent::Index(index_of(c"wg0")));
    assert_eq!(next(&mut *events), TunEvent::Mtu(1420));
    assert_eq!(next(&mut *events), TunEvent::Down);
    assert_eq!(events.next().unwrap(), None);
    assert!(receive(&mut *queues[0].receiver).unwrap().is_none());

    sh("ip link set wg0 up");
    assert_eq!(next(&mut *events), TunEvent::Up);
    sh("ip link set wg0 mtu 1280");
    assert_eq!(next(&mut *events), TunEvent::Mtu(1280));
    sh("ip link set wg0 down; ip link set wg0 up");
    assert_eq!(next(&mut *events), TunEvent::Down);
    assert_eq!(next(&mut *events), TunEvent::Up);
    while events.next().unwrap().is_some() {}

    sh("ip addr add 10.0.0.1/24 dev wg0; ip addr add fd00::1/64 dev wg0 nodad");
    routes_change(&mut *events);
    sh("ip route add 10.1.0.0/16 dev wg0");
    routes_change(&mut *events);

    sh("ip link set wg0 down; ip link set wg0 name other");
    assert_eq!(next(&mut *events), TunEvent::Down);
    assert_eq!(tun.name(), "other");
    sh("ip link set other mtu 1300");
    assert_eq!(next(&mut *events), TunEvent::Mtu(1300));

    sh("ip link del other");
    assert_eq!(next(&mut *events), TunEvent::Deleted);
    assert_eq!(events.next().unwrap(), None);
    for queue in &mut queues {
        is_gone(&mut *queue.receiver);
    }
    assert_eq!(LinuxTun::create("other", 1).unwrap().name(), "other");
}

#[test]
fn f_08_follows_it_from_namespace_to_namespace() {
    in_namespace("f_08_follows_it_from_namespace_to_namespace", || {
        let (one, two) = (Namespace::new(), Namespace::new());
        // Indices differ from namespace to namespace, and are taken.
        one.sh("ip link add va type veth peer name vb; ip link add vc type veth peer name vd");
        let mut tun = LinuxTun::create("wg0", 2).unwrap();
        let mut queue = tun.queues(2).unwrap().remove(1);
        let mut events = tun.events().unwrap();
        assert_eq!(next(&mut *events), TunEvent::Index(index_of(c"wg0")));
        assert_eq!(next(&mut *events), TunEvent::Mtu(1420));
        assert_eq!(next(&mut *events), TunEvent::Down);
        sh("ip link set wg0 up");
        assert_eq!(next(&mut *events), TunEvent::Up);

        for (space, last) in [(&one, 1), (&two, 2)] {
            let from = if last == 1 { "" } else { &format!("nsenter -t {} -n ", one.id()) };
            sh(&format!("{from} ip link set wg0 netns {}", space.id()));
            assert_eq!(next(&mut *events), TunEvent::Down, "moved to {last}");
            if last == 1 {
                assert_eq!(next(&mut *events), TunEvent::Index(0), "not where it was");
            }
            space.sh(&format!("ip addr add 10.0.0.{last}/24 dev wg0; ip link set wg0 mtu 13{last}0 up"));
            assert_eq!(next(&mut *events), TunEvent::Mtu(1300 + last * 10));
            assert_eq!(next(&mut *events), TunEvent::Up);
            space.sh("ip link set wg0 down; ip link set wg0 name wg9; ip link set wg9 up; ip link set wg9 down");
            for event in [TunEvent::Down, TunEvent::Up, TunEvent::Down] {
                assert_eq!(next(&mut *events), event);
            }
            assert_eq!(tun.name(), "wg9");
            space.sh("ip link set wg9 name wg0; ip link set wg0 up");
            assert_eq!(next(&mut *events), TunEvent::Up);
        }

        // SAFETY: only returns a number.
        let thread = unsafe { libc::gettid() };
        let home = format!("/proc/{}/task/{thread}/ns/net", std::process::id());
        two.sh(&format!("ip link set wg0 netns {home}"));
        assert_eq!(next(&mut *events), TunEvent::Down);
        assert_eq!(next(&mut *events), TunEvent::Index(index_of(c"wg0")));
        sh("ip link set wg0 up");
        assert_eq!(next(&mut *events), TunEvent::Up);

        sh(&format!("ip link set wg0 netns {}", one.id()));
        assert_eq!(next(&mut *events), TunEvent::Down);
        assert_eq!(next(&mut *events), TunEvent::Index(0));
        one.sh("ip link del wg0");
        assert_eq!(next(&mut *events), TunEvent::Deleted);
        is_gone(&mut *queue.receiver);
    });
}

#[test]
fn f_08_ends_with_its_namespace() {
    in_namespace("f_08_ends_with_its_namespace", || {
        let one = Namespace::new();
        let mut tun = LinuxTun::create("wg0", 1).unwrap();
        let mut queue = tun.queues(1).unwrap().remove(0);
        let mut events = tun.events().unwrap();
        sh(&format!("ip link set wg0 netns {}", one.id()));
        one.sh("ip link set wg0 up");
        while next(&mut *events) != TunEvent::Up {}
        drop(one);
        is_gone(&mut *queue.receiver);
        // Nobody tells of a dying namespace: the queue is how it is noticed.
    });
}

#[test]
fn a_descriptor_is_handed_over() {
    in_namespace("a_descriptor_is_handed_over", || {
        let one = Namespace::new();
        let first = LinuxTun::create("wg0", 1).unwrap();
        let fd = first.fd().try_clone_to_owned().unwrap();
        drop(first);
        sh(&format!("ip link set wg0 netns {}", one.id()));
        one.sh("ip link set wg0 mtu 1333 up");
        let mut tun = LinuxTun::from_fd(fd).unwrap();
        assert_eq!((tun.name().as_str(), tun.mtu()), ("wg0", 1333));
        let mut events = tun.events().unwrap();
        assert_eq!(next(&mut *events), TunEvent::Mtu(1333));
        assert_eq!(next(&mut *events), TunEvent::Up);
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(LinuxTun::from_fd(null.into()), Err(OpenError::NotTun(_))));
    });
}

#[test]
fn refusals_have_names() {
    in_namespace("refusals_have_names", || {
        let _first = LinuxTun::create("wg0", 1).unwrap();
        sh("ip link add veth0 type veth peer name veth1");
        for name in ["wg0", "veth0", "lo"] {
            assert!(matches!(LinuxTun::create(name, 1), Err(OpenError::NameTaken(_))), "{name}");
        }
        assert!(matches!(LinuxTun::create("sixteen-bytes-ab", 1), Err(OpenError::InvalidName(_))));
        // SAFETY: takes its arguments by value; the system call itself concerns this thread only.
        unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        let error = LinuxTun::create("wg1", 1).unwrap_err();
        assert!(matches!(error, OpenError::NotPermitted(_)), "{error:?}");
        assert!(!error.to_string().contains('\n'));
    });
}

/// Takes what is there out of each queue: sequence numbers by port, and whether each port kept to one queue.
fn drain(queues: &mut [adit::tun::TunQueue]) -> Vec<Vec<u16>> {
    let mut ports = vec![Vec::new(); queues.len()];
    for (queue, ports) in queues.iter_mut().zip(&mut ports) {
        while let Some(packet) = receive(&mut *queue.receiver).unwrap() {
            // UDP over IPv4, to 10.9.0.2.
            if packet[0] == 0x45 && packet[9] == 17 && packet[16..20] == [10, 9, 0, 2] {
                ports.push(u16::from_be_bytes([packet[22], packet[23]]));
            }
        }
    }
    ports
}

#[test]
fn a_flow_comes_out_of_one_of_several_queues() {
    in_namespace("a_flow_comes_out_of_one_of_several_queues", || {
        const QUEUES: usize = 3;
        const FLOWS: u16 = 60;
        let mut tun = LinuxTun::create("wg%d", QUEUES).unwrap();
        assert_eq!((tun.name().as_str(), tun.mtu()), ("wg0", 1420));
        let mut events = tun.events().unwrap();
        assert_eq!(next(&mut *events), TunEvent::Index(index_of(c"wg0")));
        let mut queues = tun.queues(QUEUES).unwrap();
        assert_eq!(queues.len(), QUEUES);
        assert!(tun.queues(QUEUES).is_err());
        sh("ip addr add 10.9.0.1/24 dev wg0; ip link set wg0 up");

        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        for _ in 0..4 {
            for port in 0..FLOWS {
                socket.send_to(&[1; 100], ("10.9.0.2", 7000 + port)).unwrap();
            }
        }
        let ports = drain(&mut queues);
        for port in 7000..7000 + FLOWS {
            let counts: Vec<usize> =
                ports.iter().map(|ports| ports.iter().filter(|other| **other == port).count()).collect();
            assert_eq!(counts.iter().filter(|count| **count != 0).collect::<Vec<_>>(), [&4], "port {port}: {counts:?}");
        }
        assert!(ports.iter().all(|ports| !ports.is_empty()), "a queue without flows");

        // What is written through any of them arrives, merged or not.
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let port = socket.local_addr().unwrap().port();
        let mut buffers = Buffers::new(1);
        for (number, queue) in queues.iter_mut().enumerate() {
            let mut places = Vec::new();
            for index in 0..20u32 {
                let packet = datagram_to(port, number as u8, index as u8);
                let start = index * 200;
                buffers.whole(0)[start as usize..][..packet.len()].copy_from_slice(&packet);
                places.push(PacketRef { buffer: 0, start, len: packet.len() as u32 });
            }
            assert_eq!(queue.sender.send(&buffers, &places), 0);
            let mut got = [0; 2000];
            for index in 0..20 {
                let (len, _) = socket.recv_from(&mut got).unwrap();
                assert_eq!((len, got[0], got[1]), (100, number as u8, index));
            }
        }
        // The flow's answers follow: its outbound packets now leave by the queue that it came in through.
        for _ in 0..5 {
            socket.send_to(&[1; 100], "10.9.0.2:9").unwrap();
        }
        let ports = drain(&mut queues);
        assert_eq!(ports.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 5]);

        sh("ip link del wg0");
        while next(&mut *events) != TunEvent::Deleted {}
        for queue in &mut queues {
            is_gone(&mut *queue.receiver);
        }
    });
}

/// A UDP datagram from 10.9.0.2:9 to 10.9.0.1 with 100 bytes, of which two are given.
fn datagram_to(port: u16, first: u8, second: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 128, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1];
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0, 9]);
    packet.extend(port.to_be_bytes());
    packet.extend([0, 108, 0, 0, first, second]);
    packet.resize(128, 0);
    packet
}

/// F-01: what is written to a link that is down, or to an interface that is gone, is lost and counted; merged or not.
#[test]
fn packets_for_a_link_that_is_down_are_counted() {
    in_namespace("packets_for_a_link_that_is_down_are_counted", || {
        let mut tun = LinuxTun::create("wg0", 1).unwrap();
        let mut queue = tun.queues(1).unwrap().remove(0);
        sh("ip addr add 10.9.0.1/24 dev wg0");
        let mut buffers = Buffers::new(1);
        let mut places = Vec::new();
        for (index, len) in [128, 128, 1028, 1028, 1028].into_iter().enumerate() {
            let mut packet = datagram_to(9, 0, index as u8);
            packet.truncate(28);
            packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            packet[10..12].fill(0);
            let sum: u32 = packet[..20].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
            packet[10..12].copy_from_slice(&(!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes());
            packet[24..26].copy_from_slice(&(len as u16 - 20).to_be_bytes());
            let start = index * 2000;
            buffers.whole(0)[start..start + 28].copy_from_slice(&packet);
            places.push(PacketRef { buffer: 0, start: start as u32, len: len as u32 });
        }
        for _ in 0..20 {
            assert_eq!(queue.sender.send(&buffers, &places), places.len(), "down");
            sh("ip link set wg0 up");
            assert_eq!(queue.sender.send(&buffers, &places), 0, "up");
            sh("ip link set wg0 down");
        }
        sh("ip link del wg0");
        assert_eq!(queue.sender.send(&buffers, &places), places.len(), "gone");
    });
}

/// An interface with several queues is nobody else's, although the kernel would let others attach to it.
#[test]
fn several_queues_are_not_shared_with_strangers() {
    in_namespace("several_queues_are_not_shared_with_strangers", || {
        let several = LinuxTun::create("wg0", 2).unwrap();
        for queues in [1, 2] {
            assert!(matches!(LinuxTun::create("wg0", queues), Err(OpenError::NameTaken(_))), "{queues}");
        }
        let one = LinuxTun::create("wg1", 1).unwrap();
        sh("ip link add veth0 type veth peer name veth1");
        for name in ["wg1", "veth0", "lo"] {
            assert!(matches!(LinuxTun::create(name, 2), Err(OpenError::NameTaken(_))), "{name}");
        }
        drop((several, one));
        assert_eq!((index_of(c"wg0"), index_of(c"wg1")), (0, 0), "gone with their last descriptors");
        // A persistent one has the queues that it was made for.
        sh("ip tuntap add dev wg2 mode tun vnet_hdr");
        let mut persistent = LinuxTun::create("wg2", 2).unwrap();
        assert_eq!(persistent.queues(2).unwrap().len(), 1);
        assert_eq!(LinuxTun::create("wg3", 1).unwrap().queues(4).unwrap().len(), 1);
    });
}

#[test]
fn queues_are_attached_to_a_descriptor_that_was_handed_over() {
    in_namespace("queues_are_attached_to_a_descriptor_that_was_handed_over", || {
        let handed_over = || {
            let first = LinuxTun::create("wg0", 2).unwrap();
            first.fd().try_clone_to_owned().unwrap()
        };
        let mut tun = LinuxTun::from_fd(handed_over()).unwrap();
        sh("ip link set wg0 name wg7");
        let queues = tun.queues(4).unwrap();
        assert_eq!(queues.len(), 4);
        drop(tun);
        assert_ne!(index_of(c"wg7"), 0, "queues keep it");
        drop(queues);
        assert_eq!(index_of(c"wg7"), 0);

        // Elsewhere it cannot be attached to, and no other must be made in its stead; nor taken for it.
        let space = Namespace::new();
        for stranger in [false, true] {
            let mut tun = LinuxTun::from_fd(handed_over()).unwrap();
            sh(&format!("ip link set wg0 netns {}", space.id()));
            let stranger = stranger.then(|| LinuxTun::create("wg0", 2).unwrap());
            assert_eq!(tun.queues(4).unwrap().len(), 1);
            drop(stranger);
            assert_eq!(index_of(c"wg0"), 0);
        }
        drop(space);

        let mut tun = LinuxTun::from_fd(handed_over()).unwrap();
        // SAFETY: takes its arguments by value; the system call itself concerns this thread only.
        unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        let mut queues = tun.queues(4).unwrap();
        assert_eq!(queues.len(), 1, "without the privilege");
        assert!(receive(&mut *queues[0].receiver).unwrap().is_none());
    });
}

/// Two interfaces, one of them in another namespace, and a wire between them that splits and coalesces.
struct Wire {
    far: Namespace,
    stop: Arc<AtomicBool>,
    /// Reads that were more than one packet, and packets that were refused, both ways.
    split: Arc<AtomicUsize>,
    refused: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    fn new() -> Self {
        let far = Namespace::new();
        let (mut a, mut b) = (LinuxTun::create("wg0", 1).unwrap(), LinuxTun::create("wg1", 1).unwrap());
        sh(&format!("ip link set wg1 netns {}", far.id()));
        sh(
            "ip link set lo up; ip addr add 10.9.0.1/24 dev wg0; ip addr add fd09::1/64 dev wg0 nodad; ip link set wg0 up",
        );
        far.sh("ip addr add 10.9.0.2/24 dev wg1; ip addr add fd09::2/64 dev wg1 nodad; ip link set wg1 up");
        let (stop, split, refused) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (a_in, b_in) = (a.queues(1).unwrap().remove(0).receiver, b.queues(1).unwrap().remove(0).receiver);
        let a_out =
            LinuxTun::from_fd(a.fd().try_clone_to_owned().unwrap()).unwrap().queues(1).unwrap().remove(0).sender;
        let b_out =
            LinuxTun::from_fd(b.fd().try_clone_to_owned().unwrap()).unwrap().queues(1).unwrap().remove(0).sender;
        let relay = |mut from: Box<dyn TunReceiver>, mut to: Box<dyn TunSender>| {
            let (stop, split, refused) = (Arc::clone(&stop), Arc::clone(&split), Arc::clone(&refused));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if !relay(&mut *from, &mut *to, &split, &refused) {
                        thread::sleep(Duration::from_micros(50));
                    }
                }
            })
        };
        let threads = vec![relay(a_in, b_out), relay(b_in, a_out)];
        Self { far, stop, split, refused, threads }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Carries over what there is, as the device would with nothing in between; false when there was nothing.
fn relay(from: &mut dyn TunReceiver, to: &mut dyn TunSender, split: &AtomicUsize, refused: &AtomicUsize) -> bool {
    const BATCH: usize = 8;
    let mut buffers = Buffers::new(BATCH);
    let mut packets = Vec::new();
    let mut read = vec![0; BUFFER_LEN];
    for buffer in 0..BATCH as u32 {
        let Some(packet) = from.receive(&mut read).unwrap() else { break };
        if packet.count() > 1 {
            split.fetch_add(1, Ordering::Relaxed);
        }
        let mut start = 0;
        for index in 0..packet.count() {
            // Headers take more room once they are repeated: what is left over is lost, as on any wire.
            if start + packet.segment_len(index) > BUFFER_LEN {
                break;
            }
            let len = packet.write_segment(index, &mut buffers.whole(buffer)[start..]);
            packets.push(PacketRef { buffer, start: start as u32, len: len as u32 });
            start += len;
        }
    }
    refused.fetch_add(to.send(&buffers, &packets), Ordering::Relaxed);
    !packets.is_empty()
}

#[test]
fn streams_survive_splitting_and_coalescing() {
    in_namespace("streams_survive_splitting_and_coalescing", || {
        const LEN: usize = 20 << 20;
        let wire = Wire::new();
        let bytes: Arc<Vec<u8>> =
            Arc::new((0..LEN as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect());
        for to in ["10.9.0.2:7000", "[fd09::2]:7000"] {
            let expected = Arc::clone(&bytes);
            let listening = wire.far.run(move || TcpListener::bind(to).unwrap()).join().unwrap();
            let server = thread::spawn(move || {
                let mut received = Vec::new();
                let (mut stream, _) = listening.accept().unwrap();
                stream.read_to_end(&mut received).unwrap();
                assert!(received == *expected, "{to}: the stream changed");
                stream.write_all(&expected).unwrap();
            });
            let mut client = TcpStream::connect(to).unwrap();
            client.write_all(&bytes).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            let mut back = Vec::new();
            client.read_to_end(&mut back).unwrap();
            server.join().unwrap();
            assert!(back == *bytes, "{to}: the stream changed on its way back");
        }
        println!(
            "{} super-packets, {} packets refused",
            wire.split.load(Ordering::Relaxed),
            wire.refused.load(Ordering::Relaxed)
        );
        assert!(wire.split.load(Ordering::Relaxed) > 100, "segmentation offload is off");
    });
}

#[test]
fn datagrams_survive_coalescing() {
    in_namespace("datagrams_survive_coalescing", || {
        let wire = Wire::new();
        for (near, to) in [("10.9.0.1:0", "10.9.0.2:7001"), ("[fd09::1]:0", "[fd09::2]:7001")] {
            let server = wire.far.run(move || UdpSocket::bind(to).unwrap()).join().unwrap();
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            let client = UdpSocket::bind(near).unwrap();
            client.connect(to).unwrap();
            for round in 0u8..50 {
                // Few enough for the receiving socket's buffer.
                for number in 0u8..40 {
                    let len = if number % 10 == 9 { 700 } else { 1300 };
                    client.send(&vec![round ^ number; len]).unwrap();
                }
                let mut buffer = [0; 2000];
                for number in 0u8..40 {
                    let len = server.recv(&mut buffer).unwrap();
                    assert!(buffer[..len].iter().all(|&byte| byte == round ^ number), "order or bytes changed");
                    assert_eq!(len, if number % 10 == 9 { 700 } else { 1300 });
                }
            }
        }
        assert_eq!(wire.refused.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn datagrams_sent_in_one_piece_are_split() {
    in_namespace("datagrams_sent_in_one_piece_are_split", || {
        let wire = Wire::new();
        for (near, to) in [("10.9.0.1:0", "10.9.0.2:7002"), ("[fd09::1]:0", "[fd09::2]:7002")] {
            let server = wire.far.run(move || UdpSocket::bind(to).unwrap()).join().unwrap();
            server.set_read_timeout(Some(PATIENCE)).unwrap();
            let client = UdpSocket::bind(near).unwrap();
            client.connect(to).unwrap();
            let size: libc::c_int = 1000;
            // SAFETY: the pointer is to an `int` of the given length.
            let result = unsafe {
                libc::setsockopt(client.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, (&raw const size).cast(), 4)
            };
            assert_eq!(result, 0);
            let bytes: Vec<u8> = (0..30_500u32).map(|i| i as u8).collect();
            client.send(&bytes).unwrap();
            let mut received = Vec::new();
            let mut buffer = [0; 2000];
            while received.len() < bytes.len() {
                let len = server.recv(&mut buffer).unwrap();
                assert_eq!(len, 1000.min(bytes.len() - received.len()));
                received.extend_from_slice(&buffer[..len]);
            }
            assert!(received == bytes);
        }
        println!("{} super-packets", wire.split.load(Ordering::Relaxed));
    });
}

/// [KERNEL-ICMP]: `connect` fails at once, whether the interface has addresses or not, and under strict reverse path
/// filtering.
#[test]
fn an_unreachable_message_reaches_the_application() {
    in_namespace("an_unreachable_message_reaches_the_application", || {
        let mut tun = LinuxTun::create("wg0", 1).unwrap();
        let mut queue = tun.queues(1).unwrap().remove(0);
        // 10.5 and fd05 are another interface's addresses, 10.7 and fd07 this one's.
        sh("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter; ip addr add 10.7.0.1/24 dev wg0; \
            ip addr add fd07::1/64 dev wg0 nodad; ip link set lo up; ip addr add 10.5.0.1/32 dev lo; ip addr add fd05::1/128 dev lo; \
            echo 1 > /proc/sys/net/ipv6/conf/wg0/addr_gen_mode; ip link set wg0 up; \
            ip route add 10.6.0.0/16 dev wg0 src 10.5.0.1; ip route add fd06::/64 dev wg0 src fd05::1");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let answers = thread::spawn(move || {
            let mut buffers = Buffers::new(1);
            let mut read = vec![0; BUFFER_LEN];
            while !stopped.load(Ordering::Relaxed) {
                let Some(packet) = queue.receiver.receive(&mut read).unwrap() else {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                };
                let Some(error) = adit::icmp::unreachable(packet.bytes()) else { continue };
                buffers.whole(0)[..error.len()].copy_from_slice(&error);
                let place = PacketRef { buffer: 0, start: 0, len: error.len() as u32 };
                assert_eq!(queue.sender.send(&buffers, &[place]), 0);
            }
        });
        for to in ["10.6.0.1:80", "[fd06::1]:80", "10.7.0.77:80", "[fd07::77]:80"] {
            let start = Instant::now();
            let error = TcpStream::connect_timeout(&to.parse().unwrap(), PATIENCE).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH), "{to}: {error}");
            println!("{to}: {error} after {:?}", start.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
        answers.join().unwrap();
    });
}
