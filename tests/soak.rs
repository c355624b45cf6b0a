//! Days in minutes: a hub and its peers on real sockets of loopback, time running [`FACTOR`] times as fast, so that there
//! are rekeys every two seconds; peers that come, go, move and fall silent, and strangers that flood the hub. All the while
//! every peer makes progress, and in the end there are as many descriptors and threads as in the beginning, and no more
//! memory.
//!
//! `make soak` lets it run for [`SECONDS`] = 1200 and says every half a minute how it goes.
//!
//! The only test of this file: the clock is that of the whole process.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{env, fs};

use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::device::events::{Event, Events};
use adit::device::{self, Device};
use adit::key::{PresharedKey, PrivateKey, PublicKey};
use adit::proto::cookie::CookieJar;
use adit::proto::messages::INITIATION_LEN;
use adit::proto::time;
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::udp::linux::LinuxUdp;

mod allocator;
#[path = "simulation/rng.rs"]
mod rng;

use rng::TestRng;

/// How many seconds of the devices pass in one of the machine: REKEY_AFTER_TIME is two seconds then, REKEY_TIMEOUT a
/// twelfth of one.
const FACTOR: u32 = 60;
/// How long it runs and with how many peers, when the environment does not say.
const SECONDS: (&str, u64) = ("ADIT_SOAK_SECONDS", 15);
const PEERS: (&str, u64) = ("ADIT_SOAK_PEERS", 8);
const SEED: (&str, u64) = ("ADIT_SOAK_SEED", 1);
/// Each peer that is not silent sends so often, and is answered.
const SEND_EVERY: Duration = Duration::from_millis(20);
/// Something befalls one of the peers so often.
const TROUBLE_EVERY: Duration = Duration::from_millis(300);
/// A peer that sends has an answer at least so often, whatever befell it: 15 s of its own time, and what a busy machine
/// adds.
const STALL_MAX: Duration = Duration::from_millis(15_000 / FACTOR as u64 + 4750);
/// Strangers' datagrams in each hundredth of a second.
const FLOOD: usize = 20;
/// Before this part of the time has passed, memory may still grow: tables and allocators find their size.
const WARM_UP_DIVISOR: u32 = 4;
/// How often it is looked at what the process has.
const SAMPLES: usize = 100;
/// What resident memory may grow by afterwards, however long it runs: threads that come and go leave the allocator a heap
/// each, up to a number of them.
const RESIDENT_GROWTH_MAX: f64 = 8e6;
/// What is allocated may differ by so much from one time to another: packets under way, half-open handshakes.
const LIVE_GROWTH_MAX: f64 = 50e3;
/// Nothing that ends takes longer.
const PATIENCE: Duration = Duration::from_secs(20);
const REPORT_EVERY: Duration = Duration::from_secs(30);

fn setting((name, default): (&str, u64)) -> u64 {
    env::var(name).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is no number: {value}")))
}

// --- The hub and its peers -----------------------------------------------------------------------

const HUB: Ipv4Addr = Ipv4Addr::new(10, 9, 255, 1);

fn inner(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 9, (number >> 8) as u8, number as u8)
}

fn key(number: usize) -> PrivateKey {
    // Not in the first byte, of which three bits do not count.
    let mut bytes = [0x5a; 32];
    bytes[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    PrivateKey::from_bytes(bytes)
}

struct End {
    device: Device,
    tun: MemoryTunHandle,
}

impl End {
    fn start(key: &PrivateKey) -> Self {
        let (tun, handle) = MemoryTun::new("soak", 1420);
        let device = Device::builder(tun, LinuxUdp).threads(1).spin(Duration::ZERO).start().unwrap();
        let end = Self { device, tun: handle };
        end.apply(Update { private_key: Some(Some(key.clone())), ..Update::default() });
        end.up();
        end
    }

    fn apply(&self, update: Update) {
        self.device.apply(update).unwrap();
    }

    fn peer(&self, peer: PeerUpdate) {
        self.apply(Update { peers: vec![peer], ..Update::default() });
    }

    /// Up, and bound to a port.
    fn up(&self) {
        self.tun.set_up(true);
        let start = Instant::now();
        while self.port() == 0 {
            assert!(start.elapsed() < PATIENCE, "it does not bind");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn port(&self) -> u16 {
        self.device.snapshot().listen_port
    }

    fn endpoint(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port()).into()
    }
}

fn known(public_key: PublicKey, address: Ipv4Addr, psk: &PresharedKey) -> PeerUpdate {
    let allowed_ip = AllowedIp { address: address.into(), prefix_len: 32 };
    PeerUpdate {
        preshared_key: Some(psk.clone()),
        allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
        ..PeerUpdate::new(public_key)
    }
}

fn preshared_key(generation: u64) -> PresharedKey {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&generation.to_le_bytes());
    PresharedKey::from_bytes(bytes)
}

/// An IPv4 packet that says nothing but a number.
fn packet(from: Ipv4Addr, to: Ipv4Addr, number: u64) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, 253, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(number.to_be_bytes());
    packet
}

fn source(packet: &[u8]) -> Ipv4Addr {
    Ipv4Addr::new(packet[12], packet[13], packet[14], packet[15])
}

fn number(packet: &[u8]) -> u64 {
    u64::from_be_bytes(packet[20..28].try_into().unwrap())
}

struct Spoke {
    end: End,
    key: PrivateKey,
    psk: PresharedKey,
    /// Until then it sends nothing.
    silent_until: Option<Instant>,
    /// When it last heard an answer, began to send, or something befell it; and what that was.
    progress: Instant,
    trouble: &'static str,
    sent: u64,
    answered: u64,
    /// Numbers that were answered lately, none of them twice.
    seen: VecDeque<u64>,
}

struct World {
    hub: End,
    hub_key: PrivateKey,
    hub_events: Events,
    spokes: Vec<Spoke>,
    dice: TestRng,
    keys_made: usize,
    /// And after what.
    longest_stall: (Duration, &'static str),
    sessions: u64,
    troubles: u64,
}

/// Befalls the peer of this number.
type Trouble = fn(&mut World, usize);

/// What can befall a peer.
const TROUBLES: [(&str, Trouble); 8] = [
    ("silence", World::fall_silent),
    ("another port", World::move_port),
    ("down and up", World::go_down_and_up),
    ("restart", World::restart),
    ("removed and added", World::remove_and_add),
    ("another preshared key", World::change_preshared_key),
    ("another key", World::change_spoke_key),
    ("another hub", World::change_hub),
];

impl World {
    fn new(peers: usize, seed: u64) -> Self {
        let hub_key = key(0);
        let hub = End::start(&hub_key);
        let hub_events = hub.device.events();
        let mut world = Self {
            hub,
            hub_key,
            hub_events,
            spokes: Vec::new(),
            dice: TestRng(seed),
            keys_made: 1,
            longest_stall: (Duration::ZERO, ""),
            sessions: 0,
            troubles: 0,
        };
        for number in 0..peers {
            let key = world.new_key();
            world.spokes.push(Spoke {
                end: End::start(&key),
                key,
                psk: preshared_key(0),
                silent_until: None,
                progress: Instant::now(),
                trouble: "beginning",
                sent: 0,
                answered: 0,
                seen: VecDeque::new(),
            });
            world.introduce(number);
        }
        world
    }

    fn new_key(&mut self) -> PrivateKey {
        self.keys_made += 1;
        key(self.keys_made)
    }

    /// Tells both of each other.
    fn introduce(&self, number: usize) {
        let spoke = &self.spokes[number];
        self.hub.peer(known(spoke.key.public_key(), inner(number), &spoke.psk));
        let hub = known(self.hub_key.public_key(), HUB, &spoke.psk);
        spoke.end.peer(PeerUpdate { endpoint: Some(self.hub.endpoint()), ..hub });
    }

    fn forget(&self, public_key: PublicKey, by: &End) {
        by.peer(PeerUpdate { remove: true, ..PeerUpdate::new(public_key) });
    }

    // --- Troubles ---

    /// For half a minute of its time to a quarter of an hour: keepalives end, keys expire, keys are wiped.
    fn fall_silent(&mut self, number: usize) {
        let millis = 500 + self.dice.below(14_500);
        self.spokes[number].silent_until = Some(Instant::now() + Duration::from_millis(millis));
    }

    fn move_port(&mut self, number: usize) {
        self.spokes[number].end.apply(Update { listen_port: Some(0), ..Update::default() });
    }

    fn go_down_and_up(&mut self, number: usize) {
        self.spokes[number].end.tun.set_up(false);
        let start = Instant::now();
        // Otherwise it would not notice.
        while self.spokes[number].end.device.snapshot().peers[0].endpoint.is_some()
            && start.elapsed() < Duration::from_millis(20)
        {
            thread::sleep(Duration::from_millis(1));
        }
        self.spokes[number].end.up();
    }

    fn restart(&mut self, number: usize) {
        self.spokes[number].end.device.close();
        self.spokes[number].end = End::start(&self.spokes[number].key);
        self.introduce(number);
    }

    fn remove_and_add(&mut self, number: usize) {
        self.forget(self.spokes[number].key.public_key(), &self.hub);
        self.introduce(number);
    }

    fn change_preshared_key(&mut self, number: usize) {
        self.spokes[number].psk = preshared_key(self.dice.below(1 << 32));
        self.introduce(number);
    }

    fn change_spoke_key(&mut self, number: usize) {
        let (old, new) = (self.spokes[number].key.public_key(), self.new_key());
        self.forget(old, &self.hub);
        self.spokes[number].end.apply(Update { private_key: Some(Some(new.clone())), ..Update::default() });
        self.spokes[number].key = new;
        self.introduce(number);
    }

    /// Its key and its port: that befalls all of them.
    fn change_hub(&mut self, _: usize) {
        let (old, new) = (self.hub_key.public_key(), self.new_key());
        self.hub.apply(Update { private_key: Some(Some(new.clone())), listen_port: Some(0), ..Update::default() });
        self.hub_key = new;
        for number in 0..self.spokes.len() {
            self.forget(old, &self.spokes[number].end);
            self.introduce(number);
            (self.spokes[number].progress, self.spokes[number].trouble) = (Instant::now(), "another hub");
        }
    }

    // --- Traffic ---

    fn step(&mut self) {
        let now = Instant::now();
        for (number, spoke) in self.spokes.iter_mut().enumerate() {
            if spoke.silent_until.is_some_and(|until| now < until) {
                continue;
            }
            if spoke.silent_until.take().is_some() {
                spoke.progress = now;
            }
            spoke.sent += 1;
            // A queue that is full drops, as any does.
            let _ = spoke.end.tun.send(&packet(inner(number), HUB, spoke.sent));
        }
        while let Some(question) = self.hub.tun.receive(Duration::ZERO) {
            let _ = self.hub.tun.send(&packet(HUB, source(&question), number(&question)));
        }
        for spoke in &mut self.spokes {
            while let Some(answer) = spoke.end.tun.receive(Duration::ZERO) {
                let number = number(&answer);
                assert!(!spoke.seen.contains(&number), "answer {number} came twice");
                spoke.seen.push_back(number);
                if spoke.seen.len() > 256 {
                    spoke.seen.pop_front();
                }
                spoke.answered += 1;
                self.longest_stall = self.longest_stall.max((spoke.progress.elapsed(), spoke.trouble));
                spoke.progress = Instant::now();
            }
        }
        for (number, spoke) in self.spokes.iter().enumerate() {
            let stall = if spoke.silent_until.is_some() { Duration::ZERO } else { spoke.progress.elapsed() };
            assert!(stall <= STALL_MAX, "peer {number} makes no progress after {}", spoke.trouble);
        }
        while let Some(event) = self.hub_events.try_recv() {
            self.sessions += u64::from(matches!(event, Event::SessionUp { .. }));
        }
    }

    fn make_trouble(&mut self) {
        let number = self.dice.below(self.spokes.len() as u64) as usize;
        // The hub's is everybody's: seldom.
        let kinds = if self.dice.below(10) == 0 { TROUBLES.len() } else { TROUBLES.len() - 1 };
        let kind = self.dice.below(kinds as u64) as usize;
        let (name, befall) = TROUBLES[kind];
        befall(self, number);
        (self.spokes[number].progress, self.spokes[number].trouble) = (Instant::now(), name);
        self.troubles += 1;
    }
}

// --- Strangers -----------------------------------------------------------------------------------

/// Garbage, handshakes with a wrong and with a right mac1, and data of no session, towards the hub.
struct Strangers {
    is_over: Arc<AtomicBool>,
    /// The hub's port, and a key whose mac1 is right.
    port: Arc<AtomicU64>,
    thread: Option<JoinHandle<u64>>,
}

impl Strangers {
    fn start(hub: PublicKey) -> Self {
        let (is_over, port) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(9)));
        let (end, at) = (Arc::clone(&is_over), Arc::clone(&port));
        let thread = thread::spawn(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let (mut dice, mut jar, mut sent) = (TestRng(7), CookieJar::new(), 0);
            while !end.load(Ordering::Relaxed) {
                for _ in 0..FLOOD {
                    let len = [INITIATION_LEN, INITIATION_LEN, 92, 64, 160, dice.below(1500) as usize];
                    let kind = dice.below(6) as usize;
                    let mut message: Vec<u8> = (0..len[kind]).map(|_| dice.below(256) as u8).collect();
                    if kind < 5 {
                        message[..4].copy_from_slice(&[[1, 1, 2, 3, 4][kind], 0, 0, 0]);
                    }
                    if kind == 0 {
                        jar.add_macs(&hub, &mut message, time::Instant::from_nanos(1));
                    }
                    let to = (Ipv4Addr::LOCALHOST, at.load(Ordering::Relaxed) as u16);
                    sent += u64::from(socket.send_to(&message, to).is_ok());
                }
                thread::sleep(Duration::from_millis(10));
            }
            sent
        });
        Self { is_over, port, thread: Some(thread) }
    }

    fn aim(&self, port: u16) {
        self.port.store(port.into(), Ordering::Relaxed);
    }

    fn end(mut self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

// --- What the process has ------------------------------------------------------------------------

#[derive(Debug, Clone, Copy, PartialEq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    resident: f64,
    /// Allocated and not freed.
    live: f64,
}

fn holdings() -> Holdings {
    let count = |folder: &str| fs::read_dir(folder).unwrap().count();
    let pages: f64 = fs::read_to_string("/proc/self/statm").unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    Holdings {
        descriptors: count("/proc/self/fd"),
        threads: count("/proc/self/task"),
        resident: 4096.0 * pages,
        live: allocator::live_bytes() as f64,
    }
}

/// By how much it grew from the first to the last sample, by the line that is nearest to all of them: seconds, bytes.
fn growth(samples: &[(f64, f64)]) -> f64 {
    let count = samples.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| samples.iter().map(of).sum::<f64>() / count;
    let (time, bytes) = (mean(|s| s.0), mean(|s| s.1));
    let covariance: f64 = samples.iter().map(|s| (s.0 - time) * (s.1 - bytes)).sum();
    let variance: f64 = samples.iter().map(|s| (s.0 - time).powi(2)).sum();
    covariance / variance * (samples.last().unwrap().0 - samples[0].0)
}

#[test]
fn every_peer_makes_progress_and_nothing_grows() {
    let duration = Duration::from_secs(setting(SECONDS));
    let (peers, seed) = (setting(PEERS) as usize, setting(SEED));
    println!("{peers} peers for {duration:?}, {:?} of theirs; {}={seed}", duration * FACTOR, SEED.0);
    device::accelerate(FACTOR);
    let mut world = World::new(peers, seed);
    let beginning = holdings();
    let strangers = Strangers::start(world.hub_key.public_key());

    // Filled without an allocation, which would count.
    let (mut resident, mut live) = (Vec::with_capacity(SAMPLES), Vec::with_capacity(SAMPLES));
    let start = Instant::now();
    let (mut trouble_at, mut sample_at, mut report_at) = (start + TROUBLE_EVERY, start, start + REPORT_EVERY);
    while start.elapsed() < duration {
        let step = Instant::now();
        strangers.aim(world.hub.port());
        world.step();
        if trouble_at <= step {
            world.make_trouble();
            trouble_at = step + TROUBLE_EVERY;
        }
        if sample_at <= step && start.elapsed() > duration / WARM_UP_DIVISOR {
            let (at, has) = (start.elapsed().as_secs_f64(), holdings());
            resident.push((at, has.resident));
            live.push((at, has.live));
            sample_at = step + duration / SAMPLES as u32;
        }
        if report_at <= step {
            report_at += REPORT_EVERY;
            println!("{}", report(&world, start.elapsed(), holdings()));
        }
        thread::sleep(SEND_EVERY.saturating_sub(step.elapsed()));
    }
    println!("{}", report(&world, start.elapsed(), holdings()));
    let (allocated, resident_more) = (growth(&live), growth(&resident));
    println!(
        "strangers sent {}; after the warm-up {:.1} kB more are allocated, and {:.0} kB more resident",
        strangers.end(),
        allocated / 1e3,
        resident_more / 1e3
    );
    assert!(allocated <= LIVE_GROWTH_MAX, "{allocated} bytes more are allocated: {live:?}");
    assert!(resident_more <= RESIDENT_GROWTH_MAX, "{resident_more} bytes more are resident: {resident:?}");

    let expected = (beginning.descriptors, beginning.threads);
    let (mut left, end) = (holdings(), Instant::now() + PATIENCE);
    while (left.descriptors, left.threads) != expected && Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
        left = holdings();
    }
    assert_eq!((left.descriptors, left.threads), expected, "descriptors and threads");
    let rekeys = world.sessions / world.spokes.len() as u64;
    assert!(rekeys as f64 >= duration.as_secs_f64() / 20.0, "only {rekeys} sessions for each peer");
}

fn report(world: &World, elapsed: Duration, has: Holdings) -> String {
    let (sent, answered) = world.spokes.iter().fold((0, 0), |sum, spoke| (sum.0 + spoke.sent, sum.1 + spoke.answered));
    format!(
        "{:.0} s, {:.1} h of theirs: {} sessions, {} troubles, {answered} of {sent} packets answered, longest stall {:.1} s \
         of theirs (after {}); {:.1} MB, {:.1} kB of it allocated, {} descriptors, {} threads",
        elapsed.as_secs_f64(),
        elapsed.as_secs_f64() * f64::from(FACTOR) / 3600.0,
        world.sessions,
        world.troubles,
        world.longest_stall.0.as_secs_f64() * f64::from(FACTOR),
        world.longest_stall.1,
        has.resident / 1e6,
        has.live / 1e3,
        has.descriptors,
        has.threads
    )
}
