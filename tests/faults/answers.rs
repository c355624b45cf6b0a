//! Whatever the system may answer, by a seed, around whole devices: what a TUN and a socket of Linux make of each errno
//! is the matter of `src/tun/linux/faults.rs` and `src/udp/linux/faults.rs`; here all that an edge may tell a device
//! befalls one, over edges in memory.
//!
//! - What was not hit arrives: unaltered, in order, once.
//! - However often it fails, the loop goes on, and hears and speaks again as soon as the faults are over.
//! - A fault that lasts costs next to no processor time.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::device::{CloseReason, Device};
use adit::key::PrivateKey;
use adit::packet::{Buffers, PacketRef};
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::tun::offload::SuperPacket;
use adit::tun::{ReceiveError, TunReceiver, TunSender, Wake};
use adit::udp::memory::MemoryNetwork;
use adit::udp::{Received, Sent, Transmit, Udp, UdpReceiver, UdpSender};
use rand_core::{Rng as _, SeedableRng as _};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::testbed::{Hooked, Hooks, NUMBERED_LEN_MIN, read_numbered, wait_until, write_numbered};

/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 51_820;
const MTU: usize = 1420;
/// IPv4 and UDP headers.
const HEADERS_LEN: usize = 28;
/// Packets under way at once: fewer than any queue's bound.
const WINDOW: u64 = 64;
/// Packets in each direction, for each seed.
const PACKETS: u64 = 4000;
const SEEDS: std::ops::Range<u64> = 0..4;

/// A socket that failed says after this that it is ready, and fails again.
const READY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What a call on a socket may fail with.
const ERRNOS: [i32; 14] = [
    libc::ENOBUFS,
    libc::EPERM,
    libc::ECONNREFUSED,
    libc::ENETUNREACH,
    libc::EHOSTUNREACH,
    libc::ENETDOWN,
    libc::EINTR,
    libc::EAGAIN,
    libc::EMSGSIZE,
    libc::EIO,
    libc::ENOMEM,
    libc::EINVAL,
    libc::EACCES,
    libc::EBADF,
];

/// How often each call fails, in thousandths, and what was lost by it so far.
struct Faults {
    odds: AtomicU64,
    dice: Mutex<Xoshiro256PlusPlus>,
    calls: AtomicU64,
    hits: AtomicU64,
}

impl Faults {
    fn new(seed: u64) -> Arc<Self> {
        let dice = Mutex::new(Xoshiro256PlusPlus::seed_from_u64(seed));
        Arc::new(Self { odds: AtomicU64::new(0), dice, calls: AtomicU64::new(0), hits: AtomicU64::new(0) })
    }

    fn set(&self, thousandths: u64) {
        self.odds.store(thousandths, Ordering::SeqCst);
    }

    /// The answer to one call.
    fn judge(&self) -> io::Result<()> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mut dice = self.dice.lock().unwrap();
        let (chance, which) = (dice.next_u64() % 1000, dice.next_u64() as usize % ERRNOS.len());
        if chance >= self.odds.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.hits.fetch_add(1, Ordering::Relaxed);
        Err(io::Error::from_raw_os_error(ERRNOS[which]))
    }
}

impl Hooks for Faults {
    /// The packet that is hit has been read, and is none.
    fn tun_receive<'a>(
        &self,
        inner: &mut dyn TunReceiver,
        buffer: &'a mut [u8],
    ) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        let packet = inner.receive(buffer)?;
        match packet {
            Some(_) if self.judge().is_err() => Err(ReceiveError::Malformed),
            packet => Ok(packet),
        }
    }

    fn tun_send(&self, inner: &mut dyn TunSender, buffers: &Buffers, packets: &[PacketRef]) -> usize {
        packets.iter().map(|packet| if self.judge().is_ok() { inner.send(buffers, &[*packet]) } else { 1 }).sum()
    }

    fn udp_bind(&self) -> io::Result<()> {
        self.judge()
    }

    fn udp_set_fwmark(&self) -> io::Result<()> {
        self.judge()
    }

    /// A socket that failed is as ready as before, and says so again, as the kernel's do.
    fn udp_receive(
        &self,
        inner: &mut dyn UdpReceiver,
        wake: Option<&Wake>,
        buffers: &mut Buffers,
        received: &mut Vec<Received>,
    ) -> io::Result<bool> {
        received.clear();
        if let Err(error) = self.judge() {
            let wake = wake.expect("readiness comes first").clone();
            std::thread::spawn(move || {
                std::thread::sleep(READY_AGAIN_AFTER);
                wake();
            });
            return Err(error);
        }
        inner.receive(buffers, received)
    }

    fn udp_send(&self, inner: &mut dyn UdpSender, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        for (transmit, sent) in transmits.iter().zip(sent) {
            let mut send_one = |transmit: Transmit<'_>| {
                let mut one = [Sent::default()];
                inner.send(&[transmit], &mut one);
                one[0]
            };
            *sent = match self.judge().map_err(|error| error.raw_os_error()) {
                Ok(()) => send_one(*transmit),
                // Trains are refused and go singly, a source is given up: neither loses anything.
                Err(Some(libc::EMSGSIZE | libc::EIO)) => Sent { offload_refused: true, ..send_one(*transmit) },
                Err(Some(libc::EINVAL)) => {
                    Sent { source_lost: true, ..send_one(Transmit { source: None, ..*transmit }) }
                }
                Err(_) => Sent { refused: transmit.data.len().div_ceil(transmit.segment), ..Sent::default() },
            };
        }
    }
}

/// A device with faulty edges, and the other end of its TUN.
struct Host {
    device: Device,
    tun: MemoryTunHandle,
}

fn inner(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

fn outer(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn host(network: &MemoryNetwork, number: u8, faults: &Arc<Faults>) -> Host {
    let (tun, handle) = MemoryTun::new("memory", MTU);
    let udp = Hooked(network.host(&[outer(number)]), Arc::clone(faults));
    let device = Device::builder(Hooked(tun, Arc::clone(faults)), udp)
        .threads(2)
        .spin(Duration::ZERO)
        .start()
        .expect("threads start");
    let key = |number: u8| PrivateKey::from_bytes([number; 32]);
    let other = 3 - number;
    let allowed_ip = AllowedIp { address: inner(other).into(), prefix_len: 32 };
    let peer = PeerUpdate {
        endpoint: Some(SocketAddr::new(outer(other), PORT)),
        allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
        ..PeerUpdate::new(key(other).public_key())
    };
    let update = Update {
        private_key: Some(Some(key(number))),
        listen_port: Some(PORT),
        peers: vec![peer],
        ..Update::default()
    };
    device.apply(update).expect("a configuration is accepted");
    handle.set_up(true);
    Host { device, tun: handle }
}

fn packet(from: u8, to: u8, number: u64) -> Vec<u8> {
    let len = HEADERS_LEN + NUMBERED_LEN_MIN + (number * 131 % 1300) as usize;
    let mut packet = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(inner(from).octets());
    packet.extend(inner(to).octets());
    packet.extend([0x30, 0x39, 0x30, 0x39, ((len - 20) >> 8) as u8, (len - 20) as u8, 0, 0]);
    packet.resize(len, 0);
    write_numbered(&mut packet[HEADERS_LEN..], u32::from(from), number);
    packet
}

/// Sends numbered packets one way and gives the numbers of those that arrived. Fails the test if one arrives twice, after
/// a later one, or altered.
fn send_numbered(from: (&Host, u8), to: (&Host, u8), numbers: std::ops::Range<u64>) -> BTreeSet<u64> {
    let (mut arrived, mut expected) = (BTreeSet::new(), Vec::new());
    let mut take = |patience: Duration| {
        let Some(packet) = to.0.tun.receive(patience) else { return false };
        let (_, number) = read_numbered(&packet[HEADERS_LEN..], &mut expected);
        assert!(arrived.last().is_none_or(|last| *last < number), "number {number} twice or out of order");
        arrived.insert(number)
    };
    for number in numbers {
        from.0.tun.send(&packet(from.1, to.1, number));
        if number % WINDOW == 0 {
            while take(Duration::from_millis(2)) {}
        }
    }
    while take(Duration::from_millis(300)) {}
    arrived
}

/// A packet gets through both ways as soon as nothing fails any more.
#[track_caller]
fn check_heals(one: &Host, two: &Host, numbers: &mut u64) {
    for (from, to) in [((one, 1), (two, 2)), ((two, 2), (one, 1))] {
        let start = Instant::now();
        loop {
            *numbers += 1;
            from.0.tun.send(&packet(from.1, to.1, *numbers));
            if to.0.tun.receive(Duration::from_millis(100)).is_some() {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{} is mute, or {} deaf", from.1, to.1);
        }
        while to.0.tun.receive(Duration::from_millis(50)).is_some() {}
    }
}

/// Processor time of this process so far.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("/proc is there");
    let after_name = stat.rsplit(')').next().expect("split gives at least one part");
    Duration::from_millis(
        10 * after_name.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap()).sum::<u64>(),
    )
}

/// A tenth of all calls fails, then nearly all, then all, then none.
#[test]
fn f_02_whatever_the_edges_answer_what_was_not_hit_arrives() {
    for seed in SEEDS {
        println!("seed {seed}");
        let (faults, network) = (Faults::new(seed), MemoryNetwork::new());
        let (one, two) = (host(&network, 1, &faults), host(&network, 2, &faults));
        let mut numbers = 1_000_000;
        check_heals(&one, &two, &mut numbers);
        faults.set(100);
        for (from, to) in [((&one, 1), (&two, 2)), ((&two, 2), (&one, 1))] {
            let hits = faults.hits.load(Ordering::Relaxed);
            let arrived = send_numbered(from, to, 0..PACKETS);
            let hits = faults.hits.load(Ordering::Relaxed) - hits;
            // A refused transmit may be a train of up to 64 packets, so no exact count: but most of them are single.
            println!("{} of {PACKETS} arrived, {hits} calls failed", arrived.len());
            assert!(hits > 100, "{hits}");
            assert!(arrived.len() as u64 > PACKETS / 2, "{} of {PACKETS} arrived", arrived.len());
        }
        faults.set(900);
        send_numbered((&one, 1), (&two, 2), 0..500);
        faults.set(1000);
        send_numbered((&two, 2), (&one, 1), 0..500);
        faults.set(0);
        check_heals(&one, &two, &mut numbers);
        // Nothing at all is lost once nothing fails.
        assert_eq!(send_numbered((&one, 1), (&two, 2), 0..500).len(), 500);
        assert!(one.device.is_running() && two.device.is_running());
    }
}

/// All calls of one end fail for as long as it lasts, with little to do, and what the other end sends waits for it: nobody
/// spins on that. Then a link-up, whose bind fails at first, brings all of it back.
#[test]
fn f_02_a_fault_that_lasts_costs_no_processor_time() {
    // Other tests of this process would count.
    if !crate::process::alone("answers::f_02_a_fault_that_lasts_costs_no_processor_time") {
        return;
    }
    let (faults, network) = (Faults::new(1), MemoryNetwork::new());
    let (one, two) = (host(&network, 1, &faults), host(&network, 2, &Faults::new(2)));
    let mut numbers = 1_000_000;
    check_heals(&one, &two, &mut numbers);
    faults.set(1000);
    let (before, calls, start) = (cpu_time(), faults.calls.load(Ordering::Relaxed), Instant::now());
    while start.elapsed() < Duration::from_secs(1) {
        numbers += 1;
        one.tun.send(&packet(1, 2, numbers));
        two.tun.send(&packet(2, 1, numbers));
        std::thread::sleep(Duration::from_millis(10));
    }
    let (used, calls) = (cpu_time() - before, faults.calls.load(Ordering::Relaxed) - calls);
    println!("{used:?} on the processor, {calls} calls");
    assert!(calls > 50, "they were asked: {calls} times");
    // 200 packets: each is tried a few times, and looked for a moment after. Who spins makes a hundred thousand calls.
    assert!(calls < 5000, "{calls} calls");
    assert!(used < start.elapsed().mul_f64(0.3), "two devices: {used:?} of {:?}, {calls} calls", start.elapsed());

    one.tun.set_up(false);
    wait_until("the port is free", PATIENCE, || network.host(&[outer(1)]).bind(PORT, 0, 1).is_ok());
    let calls = faults.calls.load(Ordering::Relaxed);
    one.tun.set_up(true);
    wait_until("a bind has failed", PATIENCE, || faults.calls.load(Ordering::Relaxed) > calls);
    faults.set(0);
    // It is tried again a second later.
    check_heals(&one, &two, &mut numbers);
    assert!(one.device.is_running() && two.device.is_running());
}

/// A worker that is busy with a reading, which tells in the end that the interface is gone.
struct Busy {
    is_reading: AtomicBool,
    end: Mutex<mpsc::Receiver<()>>,
}

impl Hooks for Busy {
    fn tun_receive<'a>(
        &self,
        inner: &mut dyn TunReceiver,
        buffer: &'a mut [u8],
    ) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        let Some(packet) = inner.receive(buffer)? else { return Ok(None) };
        let _ = packet;
        self.is_reading.store(true, Ordering::SeqCst);
        self.end.lock().unwrap().recv().expect("the test ends it");
        Err(ReceiveError::Gone(io::Error::from_raw_os_error(libc::EBADFD)))
    }
}

/// The link goes down, for which the control thread waits until the worker has given back its socket, and the worker ends:
/// then nobody waits for it any longer. At the least one of a few times, on a machine that may be busy.
#[test]
fn f_07_nobody_waits_for_a_worker_that_has_ended() {
    let took = (0..5).map(|_| {
        let (end, receiver) = mpsc::channel();
        let hooks = Arc::new(Busy { is_reading: AtomicBool::new(false), end: Mutex::new(receiver) });
        let (tun, handle) = MemoryTun::new("memory", MTU);
        let udp = MemoryNetwork::new().host(&[outer(1)]);
        let mut device = Device::builder(Hooked(tun, hooks.clone()), udp).threads(1).start().expect("threads start");
        handle.set_up(true);
        wait_until("it is bound", PATIENCE, || device.figures().is_bound);
        handle.send(&packet(1, 2, 0));
        wait_until("it reads", PATIENCE, || hooks.is_reading.load(Ordering::SeqCst));
        handle.set_up(false);
        wait_until("the sockets are to be given back", PATIENCE, || !device.figures().is_bound);
        end.send(()).unwrap();
        let start = Instant::now();
        assert_eq!(device.wait(), CloseReason::TunDeleted);
        device.close();
        start.elapsed()
    });
    let took: Vec<_> = took.collect();
    println!("{took:?}");
    assert!(took.iter().min() < Some(&Duration::from_millis(500)), "{took:?}");
}
