//! The whole device over edges that cost nothing, outbound and inbound, one flow and many peers:
//! `cargo bench --bench pipeline`. A throughput of inner bytes is what the device itself can do: lookups, splitting,
//! AEAD, replay window, timers, and what its threads lose to each other; no system call, and no coalescing, which is
//! the TUN's part. On 1, 2, 4 … threads, as many as there are processors.
//!
//! Outbound: the TUN gives super-packets of 45 TCP segments (62 KB), copied into the buffer as the system does it; the
//! socket throws trains away and counts. Inbound: the socket gives trains of 45 that were sealed beforehand, each only
//! once, or the replay window would refuse it; the TUN counts. The peers are played by the benchmark, which begins
//! their handshakes.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::key::{PresharedKey, PrivateKey};
use adit::packet::{Buffers, PacketRef};
use adit::proto::cookie::CookieJar;
use adit::proto::crypto::{DefaultAead, PacketAead};
use adit::proto::handshake::{DerivedKeys, Handshake, Identity};
use adit::proto::messages::{self, DATA_HEADER_LEN, DATA_OVERHEAD, Message};
use adit::proto::tai64n::Tai64n;
use adit::proto::time::UnixTime;
use adit::tun::offload::{SuperPacket, VNET_HEADER_LEN};
use adit::tun::{Readiness, ReceiveError, Tun, TunEvent, TunEvents, TunQueue, TunReceiver, TunSender, Wake};
use adit::udp::{Received, Sent, Transmit, Udp, UdpReceiver, UdpSender, UdpSocket};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

/// Segments of a super-packet, bytes of each, and how many of these are headers.
const SEGMENTS: usize = 45;
const PACKET: usize = 1420;
const HEADERS: usize = 52;
/// Bytes of a sealed packet.
const STRIDE: usize = PACKET + DATA_OVERHEAD;
/// Trains that are sealed beforehand, 134 MB, and then received at one go.
const SEALED: usize = 2048;
/// Trains before those that are timed, tens of milliseconds: a device that has slept begins with one thread, and takes
/// another one to help only when the backlog lasts.
const RAMP: usize = 768;
/// Trains that are timed at least: some tens of what a device takes in at once, or they could all come through with
/// the last of the ramp. Fewer are reckoned from these.
const TIMED_MIN: usize = 1024;
/// Where there are many.
const PEERS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(20);

// --- What the edges share --------------------------------------------------------------------

/// Counts packets that have come through, and looks at the clock at two of them.
struct Finish {
    arrived: AtomicU64,
    /// At this packet the clock is started ...
    first: Mark,
    /// ... and at this one stopped, and the benchmark woken.
    last: Mark,
    base: Instant,
    waiting: Thread,
}

/// A packet, and when it came through, in nanoseconds.
#[derive(Default)]
struct Mark {
    packet: AtomicU64,
    when: AtomicU64,
}

impl Mark {
    fn is_passed(&self, before: u64, after: u64, base: Instant) -> bool {
        let packet = self.packet.load(Ordering::Acquire);
        let passed = before < packet && packet <= after;
        if passed {
            self.when.store(base.elapsed().as_nanos() as u64, Ordering::Release);
        }
        passed
    }
}

impl Finish {
    fn new() -> Self {
        let (arrived, base, waiting) = (0.into(), Instant::now(), thread::current());
        Self { arrived, first: Mark::default(), last: Mark::default(), base, waiting }
    }

    fn arrive(&self, packets: usize) {
        let before = self.arrived.fetch_add(packets as u64, Ordering::AcqRel);
        let after = before + packets as u64;
        self.first.is_passed(before, after, self.base);
        if self.last.is_passed(before, after, self.base) {
            self.waiting.unpark();
        }
    }

    /// Runs `start`, waits until `ramp` trains and then `trains` more have come through, and says how long those took.
    fn time(&self, ramp: usize, trains: usize, start: impl FnOnce()) -> Duration {
        let arrived = self.arrived.load(Ordering::Acquire);
        let first = arrived + (ramp * SEGMENTS) as u64;
        let last = first + (trains * SEGMENTS) as u64;
        self.first.packet.store(first, Ordering::Release);
        self.last.when.store(0, Ordering::Release);
        self.last.packet.store(last, Ordering::Release);
        let begun = Instant::now();
        start();
        loop {
            match self.last.when.load(Ordering::Acquire) {
                0 => {
                    let missing = last - self.arrived.load(Ordering::Acquire).min(last);
                    assert!(begun.elapsed() < PATIENCE, "{missing} packets were lost");
                    thread::park_timeout(PATIENCE);
                }
                when => return Duration::from_nanos(when - self.first.when.load(Ordering::Acquire)),
            }
        }
    }
}

type Wakes = Mutex<Vec<Wake>>;

fn wake_all(wakes: &Wakes) {
    wakes.lock().unwrap().iter().for_each(|wake| wake());
}

/// Both edges.
struct Shared {
    /// Datagrams of data sent, or packets delivered.
    finish: Finish,
    /// Super-packets that the TUN has still to give.
    super_packets: AtomicUsize,
    /// One for each peer.
    templates: Vec<Template>,
    tun_wakes: Wakes,
    /// What the sockets give, each train to the receiver that its index belongs to.
    lanes: Mutex<Vec<Arc<Lane>>>,
    /// Handshake messages that the device sent.
    answers: Sender<Vec<u8>>,
}

// --- The TUN ---------------------------------------------------------------------------------

/// A super-packet from the device to a peer, and one back.
struct Template {
    vnet: [u8; VNET_HEADER_LEN],
    to_peer: Vec<u8>,
    from_peer: Vec<u8>,
}

fn peer_inner(peer: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 1, peer as u8)
}

impl Template {
    fn new(peer: usize) -> Self {
        let ours = Ipv4Addr::new(10, 0, 0, 1);
        let mut vnet = [1, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        vnet[4..6].copy_from_slice(&((PACKET - HEADERS) as u16).to_ne_bytes());
        vnet[6..8].copy_from_slice(&20_u16.to_ne_bytes());
        vnet[8..10].copy_from_slice(&16_u16.to_ne_bytes());
        let bytes = |from: Ipv4Addr, to: Ipv4Addr| {
            let len = HEADERS + SEGMENTS * (PACKET - HEADERS);
            let mut bytes = vec![0; len];
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            bytes[6] = 0x40;
            bytes[8..10].copy_from_slice(&[64, 6]);
            bytes[12..16].copy_from_slice(&from.octets());
            bytes[16..20].copy_from_slice(&to.octets());
            bytes[32..34].copy_from_slice(&[0x80, 0x10]);
            let words = bytes[12..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
            let mut pseudo = words.sum::<u32>() + 6 + (len as u32 - 20);
            pseudo = (pseudo & 0xffff) + (pseudo >> 16);
            bytes[36..38].copy_from_slice(&(((pseudo & 0xffff) + (pseudo >> 16)) as u16).to_be_bytes());
            bytes[HEADERS..].iter_mut().enumerate().for_each(|(index, byte)| *byte = (index * 7) as u8);
            bytes
        };
        Self { vnet, to_peer: bytes(ours, peer_inner(peer)), from_peer: bytes(peer_inner(peer), ours) }
    }
}

struct BenchTun(Arc<Shared>);

impl Tun for BenchTun {
    fn name(&self) -> String {
        "bench".into()
    }

    fn mtu(&self) -> usize {
        PACKET
    }

    fn queues(&mut self, count: usize) -> io::Result<Vec<TunQueue>> {
        let queue = |place| TunQueue {
            receiver: Box::new(Source { shared: self.0.clone(), next: place, step: count }),
            sender: Box::new(Sink(self.0.clone())),
        };
        Ok((0..count).map(queue).collect())
    }

    fn events(&mut self) -> io::Result<Box<dyn TunEvents>> {
        Ok(Box::new(UpOnce(Some(TunEvent::Up))))
    }
}

struct UpOnce(Option<TunEvent>);

impl TunEvents for UpOnce {
    fn readiness(&mut self, _: Wake) -> Readiness {
        Readiness::Wake
    }

    fn next(&mut self) -> io::Result<Option<TunEvent>> {
        Ok(self.0.take())
    }
}

/// The peers in turn; where there are several queues, each has those that a system's hash could give it.
struct Source {
    shared: Arc<Shared>,
    next: usize,
    step: usize,
}

impl TunReceiver for Source {
    fn readiness(&mut self, wake: Wake) -> Readiness {
        self.shared.tun_wakes.lock().unwrap().push(wake);
        Readiness::Wake
    }

    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        let Some(template) = self.shared.templates.get(self.next) else { return Ok(None) };
        let left = &self.shared.super_packets;
        if left.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_err() {
            return Ok(None);
        }
        self.next += self.step;
        if self.next >= self.shared.templates.len() {
            self.next %= self.step;
        }
        let bytes = &mut buffer[..template.to_peer.len()];
        bytes.copy_from_slice(&template.to_peer);
        Ok(Some(SuperPacket::parse(&template.vnet, bytes)?))
    }
}

struct Sink(Arc<Shared>);

impl TunSender for Sink {
    fn send(&mut self, _: &Buffers, packets: &[PacketRef]) -> usize {
        self.0.finish.arrive(packets.len());
        0
    }
}

// --- The sockets -----------------------------------------------------------------------------

/// What one receiver gives.
#[derive(Default)]
struct Lane {
    queue: Mutex<VecDeque<Arc<RwLock<Datagrams>>>>,
    wakes: Wakes,
}

/// A train or a single message.
struct Datagrams {
    bytes: Vec<u8>,
    segment: usize,
    from: SocketAddr,
}

impl Lane {
    fn give(&self, datagrams: impl IntoIterator<Item = Arc<RwLock<Datagrams>>>) {
        self.queue.lock().unwrap().extend(datagrams);
        wake_all(&self.wakes);
    }
}

struct BenchUdp(Arc<Shared>);

impl Udp for BenchUdp {
    fn bind(&self, port: u16, _: u32, receivers: usize) -> io::Result<Arc<dyn UdpSocket>> {
        *self.0.lanes.lock().unwrap() = (0..receivers).map(|_| Arc::default()).collect();
        Ok(Arc::new(BenchSocket { shared: self.0.clone(), port: port.max(1) }))
    }
}

struct BenchSocket {
    shared: Arc<Shared>,
    port: u16,
}

impl UdpSocket for BenchSocket {
    fn port(&self) -> u16 {
        self.port
    }

    fn set_fwmark(&self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn receivers(&self) -> io::Result<Vec<Box<dyn UdpReceiver>>> {
        let lanes = self.shared.lanes.lock().unwrap();
        Ok(lanes.iter().map(|lane| Box::new(LaneEnd(lane.clone())) as Box<dyn UdpReceiver>).collect())
    }

    fn sender(&self) -> io::Result<Box<dyn UdpSender>> {
        Ok(Box::new(Discard(self.shared.clone())))
    }
}

struct LaneEnd(Arc<Lane>);

impl UdpReceiver for LaneEnd {
    fn readiness(&mut self, wake: Wake) -> Vec<Readiness> {
        self.0.wakes.lock().unwrap().push(wake);
        vec![Readiness::Wake]
    }

    fn receive(&mut self, buffers: &mut Buffers, received: &mut Vec<Received>) -> io::Result<bool> {
        received.clear();
        let room = buffers.count().min(received.capacity());
        let mut queue = self.0.queue.lock().unwrap();
        for datagrams in (0..room).map_while(|_| queue.pop_front()) {
            let datagrams = datagrams.read().unwrap();
            let (buffer, len) = (received.len() as u32, datagrams.bytes.len());
            buffers.whole(buffer)[..len].copy_from_slice(&datagrams.bytes);
            let (segment, from) = (datagrams.segment as u32, datagrams.from);
            received.push(Received { buffer, len: len as u32, segment, from, source: None, ecn: 0 });
        }
        Ok(!queue.is_empty())
    }
}

struct Discard(Arc<Shared>);

impl UdpSender for Discard {
    fn send(&mut self, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        for (transmit, sent) in transmits.iter().zip(sent) {
            *sent = Sent { bytes: transmit.data.len(), ..Sent::default() };
            if let Ok(Message::Data(_)) = messages::parse(&transmit.data[..transmit.segment.min(transmit.data.len())]) {
                self.0.finish.arrive(transmit.data.len().div_ceil(transmit.segment));
            } else {
                // The benchmark may be gone already.
                let _ = self.0.answers.send(transmit.data.to_vec());
            }
        }
    }
}

// --- The peers -------------------------------------------------------------------------------

struct Peer {
    keys: DerivedKeys,
    counter: u64,
    lane: Arc<Lane>,
    /// A train as it is before it is sealed.
    plain: Vec<u8>,
}

impl Peer {
    /// Begins a session with the device.
    fn connect(number: usize, device: &PrivateKey, shared: &Shared, answers: &Receiver<Vec<u8>>) -> Self {
        let identity = Identity::new(peer_key(number));
        let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
        let mut handshake = Handshake::new(device.public_key(), PresharedKey::default());
        let stamp = Tai64n::from_unix(UnixTime(Duration::from_secs(1)));
        let index = number as u32 + 1;
        let mut message = handshake.create_initiation(&identity, index, stamp, &mut rng).unwrap();
        CookieJar::new().add_macs(&device.public_key(), &mut message, adit::proto::time::Instant::default());
        let first_lane = shared.lanes.lock().unwrap()[0].clone();
        first_lane.give([datagrams(message.to_vec(), message.len(), number)]);
        let keys = loop {
            let answer = answers.recv_timeout(PATIENCE).expect("a response");
            let Ok(Message::Response(view)) = messages::parse(&answer) else { continue };
            if view.receiver() == index {
                break handshake.consume_response(&identity, &view).unwrap();
            }
        };
        let lane = {
            let lanes = shared.lanes.lock().unwrap();
            lanes[keys.remote_index as usize % lanes.len()].clone()
        };
        let template = &shared.templates[number];
        let packet = SuperPacket::parse(&template.vnet, &template.from_peer).unwrap();
        let mut plain = vec![0; SEGMENTS * STRIDE];
        for (segment, to) in plain.chunks_mut(STRIDE).enumerate() {
            to[4..8].copy_from_slice(&keys.remote_index.to_le_bytes());
            packet.write_segment(segment, &mut to[DATA_HEADER_LEN..]);
        }
        Self { keys, counter: 0, lane, plain }
    }

    /// Fills `train` with the next packets.
    fn seal(&mut self, train: &mut [u8]) {
        train.copy_from_slice(&self.plain);
        for (position, packet) in train.chunks_mut(STRIDE).enumerate() {
            messages::write_data_header(packet, self.keys.remote_index, self.counter + position as u64);
        }
        DefaultAead::seal_train(&self.keys.sending, self.counter, train, STRIDE);
        self.counter += SEGMENTS as u64;
    }
}

fn peer_key(number: usize) -> PrivateKey {
    PrivateKey::from_bytes([number as u8 + 1; 32])
}

fn peer_outer(number: usize) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, number as u8 + 1), 51820).into()
}

fn datagrams(bytes: Vec<u8>, segment: usize, peer: usize) -> Arc<RwLock<Datagrams>> {
    Arc::new(RwLock::new(Datagrams { bytes, segment, from: peer_outer(peer) }))
}

// --- The device under test -------------------------------------------------------------------

/// A device with a session with each of its peers.
struct Bench {
    shared: Arc<Shared>,
    peers: Vec<Peer>,
    trains: Vec<Arc<RwLock<Datagrams>>>,
    _device: Device,
}

impl Bench {
    fn new(peers: usize, threads: usize) -> Self {
        let (answers, answered) = channel();
        let shared = Arc::new(Shared {
            finish: Finish::new(),
            super_packets: 0.into(),
            templates: (0..peers).map(Template::new).collect(),
            tun_wakes: Mutex::default(),
            lanes: Mutex::default(),
            answers,
        });
        let key = PrivateKey::from_bytes([0xdd; 32]);
        let device =
            Device::builder(BenchTun(shared.clone()), BenchUdp(shared.clone())).threads(threads).start().unwrap();
        let configured = (0..peers).map(|number| {
            let allowed_ip = AllowedIp { address: peer_inner(number).into(), prefix_len: 32 };
            PeerUpdate {
                endpoint: Some(peer_outer(number)),
                allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
                ..PeerUpdate::new(peer_key(number).public_key())
            }
        });
        let update = Update {
            private_key: Some(Some(key.clone())),
            listen_port: Some(51820),
            peers: configured.collect(),
            ..Update::default()
        };
        device.apply(update).unwrap();
        while shared.lanes.lock().unwrap().is_empty() || device.snapshot().listen_port == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let peers = (0..peers).map(|number| Peer::connect(number, &key, &shared, &answered)).collect();
        let trains = (0..SEALED).map(|_| datagrams(vec![0; SEGMENTS * STRIDE], STRIDE, 0)).collect();
        let mut bench = Self { shared, peers, trains, _device: device };
        // The first data on a session confirms it, so that the device sends on it.
        bench.receive(0, bench.peers.len());
        bench
    }

    /// How long it takes to send some super-packets.
    fn outbound(&self, super_packets: usize) -> Duration {
        self.shared.finish.time(RAMP, super_packets, || {
            self.shared.super_packets.store(RAMP + super_packets, Ordering::Release);
            wake_all(&self.shared.tun_wakes);
        })
    }

    /// How long it takes to receive some trains.
    fn inbound(&mut self, trains: usize) -> Duration {
        let rounds = trains.div_ceil(SEALED - RAMP);
        (0..rounds).map(|round| self.receive(RAMP, trains / rounds + usize::from(round < trains % rounds))).sum()
    }

    /// Seals trains, then has the device receive them.
    fn receive(&mut self, ramp: usize, trains: usize) -> Duration {
        let count = self.peers.len();
        let given = &self.trains[..ramp + trains];
        for (position, train) in given.iter().enumerate() {
            let mut train = train.write().unwrap();
            train.from = peer_outer(position % count);
            self.peers[position % count].seal(&mut train.bytes);
        }
        self.shared.finish.time(ramp, trains, || {
            for (number, peer) in self.peers.iter().enumerate() {
                peer.lane.give(given.iter().skip(number).step_by(count).cloned());
            }
        })
    }
}

fn pipeline(criterion: &mut Criterion) {
    for (name, peers) in [("one flow", 1), ("64 peers", PEERS)] {
        for direction in ["outbound", "inbound"] {
            let mut group = criterion.benchmark_group(format!("{direction}, {name}"));
            group.throughput(Throughput::Bytes((SEGMENTS * PACKET) as u64)).sampling_mode(SamplingMode::Flat);
            group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).sample_size(15);
            let cores = thread::available_parallelism().map_or(1, usize::from);
            for threads in [1, 2, 4, 8, 16].into_iter().filter(|&threads| threads <= cores) {
                let mut bench = Bench::new(peers, threads);
                group.bench_function(format!("{threads} threads"), |bencher| {
                    bencher.iter_custom(|iterations| {
                        let trains = (iterations as usize).max(TIMED_MIN);
                        let spent =
                            if direction == "outbound" { bench.outbound(trains) } else { bench.inbound(trains) };
                        spent.mul_f64(iterations as f64 / trains as f64)
                    });
                });
            }
        }
    }
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
