//! What is configured changes under traffic: peers go and come, allowed IPs move, keys change.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::key::{PrivateKey, PublicKey};
use adit::proto::rejected::Rejected;
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::tun::offload::SuperPacket;
use adit::tun::{ReceiveError, TunReceiver};
use adit::udp::Udp as _;
use adit::udp::memory::MemoryNetwork;

use crate::testbed::{GROWTH_MAX, Hooked, Hooks, InUse, SetOnDrop, holds_within, status_field};

/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 51_820;
/// Removals, moves and other changes under traffic.
const CHANGES: u32 = 10_000;
/// Changes of the private key, each of which asks all peers for a handshake.
const KEY_CHANGES: u32 = 100;

struct Host {
    device: Device,
    tun: MemoryTunHandle,
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

fn public(number: u8) -> PublicKey {
    key(number).public_key()
}

fn outer(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn inner(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

fn allowed(number: u8) -> AllowedIpUpdate {
    AllowedIpUpdate { allowed_ip: AllowedIp { address: inner(number).into(), prefix_len: 32 }, remove: false }
}

fn peer(number: u8) -> PeerUpdate {
    PeerUpdate {
        endpoint: Some(SocketAddr::new(outer(number), PORT)),
        allowed_ips: vec![allowed(number)],
        ..PeerUpdate::new(public(number))
    }
}

fn host(network: &MemoryNetwork, number: u8, peers: &[u8]) -> Host {
    let (tun, handle) = MemoryTun::new("memory", 1420);
    let device = Device::builder(tun, network.host(&[outer(number)])).threads(2).start().expect("threads start");
    let update = Update {
        private_key: Some(Some(key(number))),
        listen_port: Some(PORT),
        peers: peers.iter().copied().map(peer).collect(),
        ..Update::default()
    };
    device.apply(update).expect("a configuration is accepted");
    handle.set_up(true);
    // What is sent to it before that is lost, and what a handshake begins with is not sent again for 5 s.
    let is_bound = || network.host(&[outer(number)]).bind(PORT, 0, 1).is_err();
    assert!(holds_within(PATIENCE, is_bound), "the port is bound");
    Host { device, tun: handle }
}

impl Host {
    fn change(&self, peer: PeerUpdate) {
        self.device.apply(Update { peers: vec![peer], ..Update::default() }).expect("a change is accepted");
    }
}

/// An IPv4 packet with a UDP header.
fn packet(from: u8, to: u8) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 100, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(inner(from).octets());
    packet.extend(inner(to).octets());
    packet.extend([0x30, 0x39, 0x30, 0x39, 0, 80, 0, 0]);
    packet.resize(100, 0x5a);
    packet
}

/// Packets pass both ways between a host and host 1, at the latest within `PATIENCE`.
#[track_caller]
fn check_passes(hosts: &[Host], number: u8) {
    for (from, to) in [(1, number), (number, 1)] {
        let (sender, receiver) = (&hosts[usize::from(from) - 1].tun, &hosts[usize::from(to) - 1].tun);
        let start = Instant::now();
        let is_from = |packet: &[u8]| packet[15] == from && packet[19] == to;
        while receiver.receive(Duration::ZERO).is_some() {}
        loop {
            sender.send(&packet(from, to));
            if receiver.receive(Duration::from_millis(50)).is_some_and(|packet| is_from(&packet)) {
                break;
            }
            assert!(start.elapsed() < PATIENCE, "nothing passes from {from} to {to}");
        }
    }
}

/// Three hosts, of which the first knows the others; traffic in all directions while `change` is done to the first, time
/// after time. What comes out of the others' tunnels is counted and has to be for them.
fn under_traffic(changes: u32, moves: bool, mut change: impl FnMut(&Host, u32)) -> Vec<Host> {
    let network = MemoryNetwork::new();
    let hosts = vec![host(&network, 1, &[2, 3]), host(&network, 2, &[1]), host(&network, 3, &[1])];
    check_passes(&hosts, 2);
    check_passes(&hosts, 3);
    let resident = || {
        let field = status_field(std::process::id(), "VmRSS").unwrap();
        1024 * field.trim_end_matches(" kB").trim().parse::<u64>().unwrap()
    };
    let (before, in_use) = (resident(), InUse::of(std::process::id()));
    let (ended, delivered) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                for (from, to) in [(1, 2), (2, 1), (1, 3), (3, 1)] {
                    hosts[from - 1].tun.send(&packet(from as u8, to as u8));
                }
                for (number, host) in (1..).zip(&hosts) {
                    while let Some(packet) = host.tun.receive(Duration::ZERO) {
                        let is_at_home = packet[19] == number || (moves && packet[19] == 2 && number == 3);
                        assert!(is_at_home, "a packet for {} came out of the tunnel of {number}", packet[19]);
                        delivered.fetch_add(1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(Duration::from_micros(50));
            }
        });
        let (start, _over) = (Instant::now(), SetOnDrop(&ended));
        (0..changes).for_each(|round| change(&hosts[0], round));
        println!("{changes} changes in {:?}, {} packets meanwhile", start.elapsed(), delivered.load(Ordering::Relaxed));
    });
    assert!(delivered.load(Ordering::Relaxed) > 0, "there was traffic");
    let grown = resident().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "{grown} bytes more than before");
    assert_eq!(InUse::of(std::process::id()).descriptors, in_use.descriptors, "descriptors");
    hosts
}

/// What other tests of the process have in use would count.
fn alone(test: &str) -> bool {
    crate::process::alone(&format!("changes::{test}"))
}

#[test]
fn f_13_peers_are_removed_and_added_under_traffic() {
    if !alone("f_13_peers_are_removed_and_added_under_traffic") {
        return;
    }
    let hosts = under_traffic(CHANGES, false, |host, round| {
        host.change(PeerUpdate { remove: true, ..PeerUpdate::new(public(2)) });
        // Some are there for long enough to shake hands.
        if round.is_multiple_of(100) {
            std::thread::sleep(Duration::from_millis(2));
        }
        host.change(peer(2));
        if round.is_multiple_of(100) {
            std::thread::sleep(Duration::from_millis(2));
        }
    });
    check_passes(&hosts, 2);
    check_passes(&hosts, 3);
    // Three keypairs of each of two peers, and a handshake under way.
    let indices = hosts[0].device.figures().receiver_indices;
    assert!(indices <= 2 * (3 + 1), "{indices} indices");
}

/// The same prefix belongs now to this peer, now to that one: it is never both's, and never nobody's for long.
#[test]
fn f_13_allowed_ips_move_under_traffic() {
    if !alone("f_13_allowed_ips_move_under_traffic") {
        return;
    }
    let hosts = under_traffic(CHANGES, true, |host, round| {
        let owner = if round.is_multiple_of(2) { 3 } else { 2 };
        host.change(PeerUpdate { allowed_ips: vec![allowed(2)], ..PeerUpdate::new(public(owner)) });
        let snapshot = host.device.snapshot();
        let prefix = allowed(2).allowed_ip;
        let owners: Vec<_> = snapshot
            .peers
            .iter()
            .filter(|peer| peer.allowed_ips.contains(&prefix))
            .map(|peer| peer.public_key)
            .collect();
        assert_eq!(owners, [public(owner)], "round {round}");
    });
    check_passes(&hosts, 2);
    check_passes(&hosts, 3);
}

#[test]
fn f_13_the_private_key_changes_under_traffic() {
    if !alone("f_13_the_private_key_changes_under_traffic") {
        return;
    }
    let hosts = under_traffic(KEY_CHANGES, false, |host, round| {
        // In the end its own again, which the others know.
        let number = if round + 1 == KEY_CHANGES { 1 } else { 100 + (round % 100) as u8 };
        let update = Update { private_key: Some(Some(key(number))), ..Update::default() };
        host.device.apply(update).expect("a key is accepted");
        std::thread::sleep(Duration::from_millis(1));
    });
    check_passes(&hosts, 2);
    check_passes(&hosts, 3);
}

/// Something that happens while a worker reads from the interface.
#[derive(Default)]
struct Meanwhile {
    happens: Mutex<VecDeque<Event>>,
    packets: AtomicUsize,
}

/// What happens at which reading: the one that gives so many packets in all, or the next one.
type Event = (usize, At, Box<dyn FnOnce() + Send>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    ThePacket,
    TheNextReading,
}

impl Hooks for Meanwhile {
    fn tun_receive<'a>(
        &self,
        inner: &mut dyn TunReceiver,
        buffer: &'a mut [u8],
    ) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        let packet = inner.receive(buffer)?;
        let before = self.packets.load(Ordering::SeqCst);
        let now = before + usize::from(packet.is_some());
        self.packets.store(now, Ordering::SeqCst);
        let is_due = |(packets, at, _): &mut Event| match at {
            At::ThePacket => now > before && now == *packets,
            At::TheNextReading => before == *packets,
        };
        let due = self.happens.lock().unwrap().pop_front_if(is_due);
        due.into_iter().for_each(|(_, _, happens)| happens());
        Ok(packet)
    }
}

/// Which address each packet is for was decided by what held before `apply`: it goes where it belongs now, or is counted.
#[test]
fn f_13_no_packet_is_lost_by_an_exchange_of_peers_while_it_is_read() {
    for (has_session, at) in
        [(false, At::ThePacket), (false, At::TheNextReading), (true, At::ThePacket), (true, At::TheNextReading)]
    {
        for successor in [true, false] {
            let what = format!("session {has_session}, at {at:?}, successor {successor}");
            let network = MemoryNetwork::new();
            let hosts = [host(&network, 2, &[1]), host(&network, 3, &[1])];
            let hooks = Arc::new(Meanwhile::default());
            let (tun, handle) = MemoryTun::new("memory", 1420);
            let handle = Arc::new(handle);
            let udp = network.host(&[outer(1)]);
            let device = Device::builder(Hooked(tun, hooks.clone()), udp).threads(1).start().expect("threads start");
            let device = Arc::new(device);
            let update = Update { private_key: Some(Some(key(1))), peers: vec![peer(2)], ..Update::default() };
            device.apply(Update { listen_port: Some(PORT), ..update }).expect("a configuration is accepted");
            handle.set_up(true);
            if has_session {
                handle.send(&packet(1, 2));
                assert!(hosts[0].tun.receive(PATIENCE).is_some(), "{what}: a session");
            }
            // The other host takes over the address of host 2, which is no peer any more.
            let (one, mut takes_over) = (device.clone(), peer(3));
            takes_over.allowed_ips = vec![allowed(2)];
            let exchange = move || {
                let peers = if successor { vec![takes_over] } else { vec![] };
                one.apply(Update { replace_peers: true, peers, ..Update::default() }).expect("a change is accepted");
            };
            let before = hooks.packets.load(Ordering::SeqCst);
            let mut happens = hooks.happens.lock().unwrap();
            // A packet that comes alone does not wait for the next reading: one that follows it does.
            let leads = usize::from(at == At::TheNextReading);
            if leads == 1 {
                let follow = handle.clone();
                happens.push_back((before + 1, At::ThePacket, Box::new(move || assert!(follow.send(&packet(1, 2))))));
            }
            happens.push_back((before + 1 + leads, at, Box::new(exchange)));
            drop(happens);
            handle.send(&packet(1, 2));
            if has_session && leads == 1 {
                assert!(hosts[0].tun.receive(PATIENCE).is_some(), "{what}: the first one has gone");
            }
            let (no_route, dropped) = (Rejected::NoRoute, Rejected::StagedDropped);
            let drops = || [no_route, dropped].map(|reason| device.figures().drops(reason)).iter().sum::<u64>();
            // Without a session both wait for one.
            let waiting = if has_session { 1 } else { 1 + leads as u64 };
            // What waited for one in the peer that went, if that was there when it came, goes with it.
            if successor && (has_session || at == At::ThePacket) {
                assert!(hosts[1].tun.receive(PATIENCE).is_some(), "{what}: {} dropped", drops());
            } else {
                assert!(holds_within(PATIENCE, || drops() == waiting), "{what}: {} dropped", drops());
            }
            assert!(hooks.happens.lock().unwrap().is_empty(), "{what}: the exchange came in between");
        }
    }
}
