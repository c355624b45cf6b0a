//! Packets of one inner flow leave and arrive in order, whatever the number of worker threads, the load, and the
//! handshakes in between: each of them at most once and unaltered. Over edges in memory nothing may even be lost.

mod testbed;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::key::{PrivateKey, PublicKey};
use adit::packet::Buffers;
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::udp::memory::MemoryNetwork;
use adit::udp::{Sent, Transmit, Udp as _, UdpReceiver, UdpSender};
use testbed::{
    Heard, Ledger, NUMBERED_LEN_MIN, Namespace, Node, Pair, PairOptions, ScriptedPeer, TcpCounters, TcpLoad,
    udp_socket, write_numbered,
};

/// Worker threads that the daemons run with, one after the other.
const THREADS: [usize; 3] = [1, 2, 4];
/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long real traffic runs for each number of threads.
const RUN: Duration = Duration::from_millis(800);
/// Flows in each direction.
const FLOWS: u32 = 4;
/// Packets of one flow that follow each other.
const IN_A_ROW: u64 = 3;
const PORT: u16 = 51820;
const MTU: usize = 1420;
/// IPv4 and UDP headers.
const HEADERS_LEN: usize = 28;

// --- In memory -------------------------------------------------------------------------------

/// Packets of one sender to one receiver that may be on their way at once: less than what waits for a session, so that
/// every first handshake finds some staged, and less than any queue's bound, so that nothing may be lost.
const WINDOW: u64 = 100;
const SPOKES: std::ops::RangeInclusive<u8> = 2..=4;
/// Packets from the hub to each spoke, and back: as many of each flow.
const PACKETS: u64 = 12_000;
const _: () = assert!(PACKETS.is_multiple_of(FLOWS as u64 * IN_A_ROW));

fn private_key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

fn public_key(number: u8) -> PublicKey {
    private_key(number).public_key()
}

fn outer(number: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, number).into()
}

fn inner(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

/// A device in memory, and the other end of its TUN.
struct Host {
    device: Device,
    tun: MemoryTunHandle,
}

/// Host `number` with so many worker threads, which knows the hosts `peers` and where they are.
fn host(network: &MemoryNetwork, threads: usize, number: u8, peers: impl IntoIterator<Item = u8>) -> Host {
    let (tun, handle) = MemoryTun::new("memory", MTU);
    let device = Device::builder(tun, network.host(&[outer(number)])).threads(threads).start().expect("threads start");
    let peers = peers.into_iter().map(|peer| PeerUpdate {
        endpoint: Some(SocketAddr::new(outer(peer), PORT)),
        allowed_ips: vec![AllowedIpUpdate {
            allowed_ip: AllowedIp { address: inner(peer).into(), prefix_len: 32 },
            remove: false,
        }],
        ..PeerUpdate::new(public_key(peer))
    });
    let update = Update {
        private_key: Some(Some(private_key(number))),
        listen_port: Some(PORT),
        peers: peers.collect(),
        ..Update::default()
    };
    device.apply(update).expect("a configuration is accepted");
    handle.set_up(true);
    testbed::wait_until("the port is bound", PATIENCE, || network.host(&[outer(number)]).bind(PORT, 0, 1).is_err());
    Host { device, tun: handle }
}

/// A length for packet `number`: all from the shortest to the MTU, short ones more often, some alike in a row.
fn varied_len(number: u64) -> usize {
    let dice = (number / 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    let span = if dice.is_multiple_of(4) { MTU - HEADERS_LEN - NUMBERED_LEN_MIN } else { 200 };
    NUMBERED_LEN_MIN + (dice >> 2) as usize % (span + 1)
}

/// A numbered IPv4 packet of a flow; UDP's checksum is zero, as IPv4 allows.
fn packet(from: u8, to: u8, flow: u32, number: u64) -> Vec<u8> {
    let len = HEADERS_LEN + varied_len(number);
    let mut packet = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(inner(from).octets());
    packet.extend(inner(to).octets());
    packet.extend([0x30, flow as u8, 0x30, 0x39, ((len - 20) >> 8) as u8, (len - 20) as u8, 0, 0]);
    packet.resize(len, 0);
    write_numbered(&mut packet[HEADERS_LEN..], flow, number);
    packet
}

/// The flow's number over all senders and receivers.
fn flow_of(from: u8, to: u8, flow: u32) -> u32 {
    u32::from(from) << 16 | u32::from(to) << 8 | flow
}

/// How many packets one host has had of another: what lets the sender go on.
#[derive(Default)]
struct Arrived(AtomicU64);

impl Arrived {
    /// Waits until fewer than a window of the `sent` packets are on their way.
    fn wait_for_room(&self, sent: u64) {
        let start = Instant::now();
        while sent - self.0.load(Ordering::Acquire) >= WINDOW {
            assert!(start.elapsed() < PATIENCE, "{} of {sent} have arrived", self.0.load(Ordering::Acquire));
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

/// The flow of the packet that is sent as number `sent` of all, and its number in it: some of one flow follow each other,
/// so that neighbours which change places are noticed, then comes the next flow.
fn turn(sent: u64) -> (u32, u64) {
    let (turn, place) = (sent / IN_A_ROW, sent % IN_A_ROW);
    ((turn % u64::from(FLOWS)) as u32, turn / u64::from(FLOWS) * IN_A_ROW + place)
}

/// Sends packets of all flows through a TUN, a window at a time, while `go_on` says so. Gives how many.
fn send_through(tun: &MemoryTunHandle, from: u8, to: u8, arrived: &Arrived, go_on: impl Fn(u64) -> bool) -> u64 {
    let mut sent = 0;
    while go_on(sent) {
        let (flow, number) = turn(sent);
        arrived.wait_for_room(sent);
        assert!(tun.send(&packet(from, to, flow_of(from, to, flow), number)), "the TUN takes a packet");
        sent += 1;
    }
    sent
}

/// Takes packets out of a TUN until `total` says that it was all. The sender is read off the inner source address.
fn receive_from(tun: &MemoryTunHandle, arrived: &[(u8, &Arrived)], total: impl Fn() -> Option<u64>) -> Ledger {
    let mut ledger = Ledger::default();
    let mut last = Instant::now();
    while total().is_none_or(|total| ledger.total() < total) {
        assert!(last.elapsed() < PATIENCE, "{} packets, and then nothing", ledger.total());
        let Some(packet) = tun.receive(Duration::from_millis(10)) else { continue };
        last = Instant::now();
        ledger.enter(&packet[HEADERS_LEN..]);
        let (_, arrived) = arrived.iter().find(|(from, _)| *from == packet[15]).expect("a host sent it");
        arrived.0.fetch_add(1, Ordering::Release);
    }
    ledger
}

/// A hub and three spokes, four flows in each direction between them, all at once, from before the first handshake on:
/// each packet arrives once, in its flow's order.
#[test]
fn flows_of_several_peers_stay_whole() {
    THREADS.into_iter().for_each(check_flows);
}

fn check_flows(threads: usize) {
    let network = MemoryNetwork::new();
    let hub = host(&network, threads, 1, SPOKES);
    let spokes: Vec<(u8, Host)> = SPOKES.map(|number| (number, host(&network, threads, number, [1]))).collect();
    let to_spokes: Vec<Arrived> = spokes.iter().map(|_| Arrived::default()).collect();
    let to_hub: Vec<Arrived> = spokes.iter().map(|_| Arrived::default()).collect();
    let per_flow = PACKETS / u64::from(FLOWS);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let hub_tun = &hub.tun;
        for ((number, spoke), (to_spoke, to_hub)) in spokes.iter().zip(to_spokes.iter().zip(&to_hub)) {
            scope.spawn(move || send_through(&spoke.tun, *number, 1, to_hub, |sent| sent < PACKETS));
            scope.spawn(move || send_through(hub_tun, 1, *number, to_spoke, |sent| sent < PACKETS));
            scope.spawn(move || {
                let ledger = receive_from(&spoke.tun, &[(1, to_spoke)], || Some(PACKETS));
                (0..FLOWS).for_each(|flow| assert_eq!(ledger.arrived(flow_of(1, *number, flow)), per_flow));
            });
        }
        scope.spawn(|| {
            let arrived: Vec<_> = SPOKES.zip(&to_hub).collect();
            let ledger = receive_from(hub_tun, &arrived, || Some(PACKETS * to_hub.len() as u64));
            SPOKES.for_each(|from| {
                (0..FLOWS).for_each(|flow| assert_eq!(ledger.arrived(flow_of(from, 1, flow)), per_flow));
            });
        });
    });
    println!("{threads} threads: {} packets in {:.1?}", 2 * PACKETS * spokes.len() as u64, start.elapsed());
    assert!(hub.device.snapshot().peers.iter().all(|peer| peer.last_handshake.is_some()));
    let more = hub.tun.receive(Duration::from_millis(20));
    assert!(more.is_none(), "one more than was sent");
}

/// A peer that rekeys as often as it may, under full load in both directions: every packet arrives once and in order,
/// also those that waited for the first session and those that were on their way from one session to the next.
#[test]
fn rekeys_under_load_lose_and_reorder_nothing() {
    THREADS.into_iter().for_each(check_rekeys);
}

fn check_rekeys(threads: usize) {
    const REKEYS: usize = 20;
    /// A little more than what a responder asks for between two initiations of one peer.
    const BETWEEN_REKEYS: Duration = Duration::from_millis(25);
    /// An initiation that is not answered within this is sent again.
    const ANSWER_LIMIT: Duration = Duration::from_secs(1);
    /// Packets sent before the device is heard again.
    const BURST: u64 = 32;
    let network = MemoryNetwork::new();
    let host = host(&network, threads, 1, [2]);
    let mut wire = Wire::new(&network);
    let mut peer = ScriptedPeer::new(private_key(2), public_key(1));
    let (to_peer, to_device) = (Arrived::default(), Arrived::default());
    let ended = AtomicBool::new(false);
    let (from_peer, from_device) = (AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX));
    let known = |total: &AtomicU64| Some(total.load(Ordering::Acquire)).filter(|total| *total != u64::MAX);
    let start = Instant::now();
    let mut ledger = Ledger::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sent = send_through(&host.tun, 1, 2, &to_peer, |_| !ended.load(Ordering::Acquire));
            from_device.store(sent, Ordering::Release);
        });
        let receiving = scope.spawn(|| receive_from(&host.tun, &[(2, &to_device)], || known(&from_peer)));

        let (mut sent, mut asked, mut waiting) = (0, None::<Instant>, false);
        // What was sent on the sessions before the newest. Only the last of these is received on once there is another, and the
        // newest only if something has come on it.
        let mut sent_before = 0;
        let mut last = Instant::now();
        while known(&from_device).is_none_or(|total| ledger.total() < total) {
            assert!(last.elapsed() < PATIENCE, "{} packets, and then nothing", ledger.total());
            let mut idle = true;
            for datagram in wire.receive() {
                idle = false;
                match peer.hear(&datagram) {
                    Heard::Data(packet) if !packet.is_empty() => {
                        let len = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                        ledger.enter(&packet[HEADERS_LEN..len]);
                        to_peer.0.fetch_add(1, Ordering::Release);
                        last = Instant::now();
                    }
                    Heard::Session => (waiting, sent_before) = (false, sent),
                    // A keepalive, and the initiations with which the device began.
                    Heard::Data(_) | Heard::Cookie | Heard::Other => {}
                }
            }
            let is_due = asked.is_none_or(|asked| {
                asked.elapsed() >= BETWEEN_REKEYS && to_device.0.load(Ordering::Acquire) > sent_before
            });
            let is_late = asked.is_some_and(|asked| asked.elapsed() >= ANSWER_LIMIT);
            // At first not before there is something that waits.
            let has_begun = host.device.snapshot().peers[0].tx_bytes != 0;
            if peer.session_count() < REKEYS && (if waiting { is_late } else { is_due }) && has_begun {
                (asked, waiting) = (Some(Instant::now()), true);
                wire.send(&peer.initiation());
            }
            if peer.session_count() == REKEYS {
                // It was enough: each side says how much it has sent, and receives what is left.
                ended.store(true, Ordering::Release);
                from_peer.store(sent, Ordering::Release);
            } else if peer.session_count() > 0 {
                let room = WINDOW - (sent - to_device.0.load(Ordering::Acquire));
                for _ in 0..room.min(BURST) {
                    let (flow, number) = turn(sent);
                    wire.send(&peer.seal(&packet(2, 1, flow_of(2, 1, flow), number)));
                    sent += 1;
                    idle = false;
                }
            }
            if idle {
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        let received = receiving.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert_eq!(received.total(), sent, "from the peer to the device");
    });
    let from_device = from_device.into_inner();
    assert_eq!(ledger.total(), from_device, "from the device to the peer");
    println!(
        "{threads} threads: {REKEYS} sessions, {from_device} packets out and {} in, {:.1?}",
        from_peer.into_inner(),
        start.elapsed()
    );
}

/// With more to do in either direction than it can, a device goes on with both: what comes in, in trains, does not keep
/// waiting what goes out, nor the reverse.
#[test]
fn neither_direction_starves_the_other() {
    THREADS.into_iter().for_each(check_directions);
}

fn check_directions(threads: usize) {
    const MESSAGES: u64 = 60_000;
    /// Fewer than the queue of a socket in memory has room for.
    const WAITING_MAX: u64 = 10_000;
    /// Messages in one piece, as a system that joins them hands them over.
    const TRAIN: usize = 50;
    /// Packets of one direction that may pass for each of the other: some multiple of what the budgets of a turn give, as a
    /// busy machine does not always let the test fill both queues.
    const RATIO_MAX: u64 = 16;
    let network = MemoryNetwork::new();
    let host = host(&network, threads, 1, [2]);
    let mut wire = Wire::new(&network);
    let mut peer = ScriptedPeer::new(private_key(2), public_key(1));
    wire.send(&peer.initiation());
    testbed::wait_until("there is a session", PATIENCE, || {
        wire.receive().iter().any(|message| peer.hear(message) == Heard::Session)
    });
    let inner_packet = |from, to| {
        let mut packet = packet(from, to, 0, 0);
        packet.truncate(HEADERS_LEN);
        packet[2..4].copy_from_slice(&(HEADERS_LEN as u16).to_be_bytes());
        packet[24..26].copy_from_slice(&8_u16.to_be_bytes());
        packet
    };
    let inbound = inner_packet(2, 1);
    let message_len = peer.seal(&inbound).len();
    let messages: Vec<u8> = (0..MESSAGES).flat_map(|_| peer.seal(&inbound)).collect();
    let ended = AtomicBool::new(false);
    // Bytes received, bytes sent; all messages have one length in either direction.
    let counts = || {
        let peer = &host.device.snapshot().peers[0];
        (peer.rx_bytes / message_len as u64, peer.tx_bytes / message_len as u64)
    };
    let mut sent = 0;
    let (mut first, mut last) = (None, (0, 0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let outbound = inner_packet(1, 2);
            while !ended.load(Ordering::Acquire) {
                if !host.tun.send(&outbound) {
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(|| {
            while !ended.load(Ordering::Acquire) || host.tun.receive(Duration::ZERO).is_some() {
                host.tun.receive(Duration::from_millis(1));
            }
        });
        let start = Instant::now();
        for train in messages.chunks(TRAIN * message_len) {
            while sent - counts().0.min(sent) > WAITING_MAX {
                assert!(start.elapsed() < PATIENCE, "{:?} of {sent} received", counts());
                std::thread::yield_now();
            }
            wire.send_train(train, message_len);
            sent += TRAIN as u64;
            last = counts();
            // From when both queues are full.
            if sent > 2 * WAITING_MAX {
                first.get_or_insert(last);
            }
        }
        ended.store(true, Ordering::Release);
    });
    let first = first.expect("there are more messages than wait");
    let (received, transmitted) = (last.0 - first.0, last.1 - first.1);
    println!("{threads} threads: {received} messages in, {transmitted} out meanwhile");
    assert!(received > MESSAGES / 4, "too few to tell");
    assert!(transmitted * RATIO_MAX >= received, "{received} messages in, only {transmitted} out");
    assert!(received * RATIO_MAX >= transmitted, "{transmitted} messages out, only {received} in");
}

/// The scripted peer's way to a network in memory.
struct Wire {
    sender: Box<dyn UdpSender>,
    receiver: Box<dyn UdpReceiver>,
    buffers: Buffers,
}

impl Wire {
    /// That of host 2.
    fn new(network: &MemoryNetwork) -> Self {
        let socket = network.host(&[outer(2)]).bind(PORT, 0, 1).expect("the port is free");
        let receiver = socket.receivers().expect("it has one").remove(0);
        Self { sender: socket.sender().expect("it has any number"), receiver, buffers: Buffers::new(16) }
    }

    fn send(&mut self, message: &[u8]) {
        self.send_train(message, message.len());
    }

    /// Sends several messages of one length.
    fn send_train(&mut self, train: &[u8], segment: usize) {
        let to = SocketAddr::new(outer(1), PORT);
        let transmit = Transmit { to, source: None, tos: 0, segment, data: train, offload: true };
        self.sender.send(&[transmit], &mut [Sent::default()]);
    }

    /// What has come.
    fn receive(&mut self) -> Vec<Vec<u8>> {
        let mut received = Vec::with_capacity(self.buffers.count());
        self.receiver.receive(&mut self.buffers, &mut received).expect("memory does not fail");
        let all = self.buffers.all();
        let trains = received.iter().map(|it| (&all[it.buffer as usize][..it.len as usize], it.segment as usize));
        trains.flat_map(|(train, segment)| train.chunks(segment).map(<[u8]>::to_vec)).collect()
    }
}

// --- Through real interfaces -----------------------------------------------------------------

/// A pair whose outer link itself keeps the order: a thread that changes its processor in the middle of a burst would
/// otherwise leave packets in two backlogs, which the kernel empties in any order.
fn pair(threads: usize) -> Pair {
    let pair = Pair::with(PairOptions { threads: Some(threads), wiretap: false, ..PairOptions::default() });
    for node in [&pair.left, &pair.right] {
        node.ns.shell("echo 1 > /sys/class/net/outer/queues/rx-0/rps_cpus");
    }
    pair.ping_both_ways();
    pair
}

/// What TCP found out about a path in a while of saturation: both ends' counters, and the sender's estimate of how far
/// packets are displaced (`ss`), 3 where it has seen nothing.
fn tcp_verdict(from: &Namespace, to: &Namespace, address: IpAddr) -> (TcpCounters, u64, f64) {
    let before = [from, to].map(TcpCounters::of);
    let start = Instant::now();
    let load = TcpLoad::start(from, to, address);
    std::thread::sleep(RUN);
    let rate = load.received() as f64 * 8.0 / start.elapsed().as_secs_f64();
    let sockets = from.run("ss -tinH");
    drop(load);
    let [sender, receiver] = [from, to].map(TcpCounters::of);
    let (sender, receiver) = (sender.since(before[0]), receiver.since(before[1]));
    let estimates = sockets.split_whitespace().filter_map(|word| word.strip_prefix("reordering:"));
    let reordering = estimates.map(|number| number.parse().expect("ss prints a number")).max().unwrap_or(3);
    let both = TcpCounters {
        retransmitted: sender.retransmitted,
        out_of_order: receiver.out_of_order,
        reorderings: sender.reorderings + receiver.reorderings,
    };
    (both, reordering, rate)
}

/// One saturating TCP flow sees no more reordering than on the bare link.
#[test]
fn tcp_finds_no_reordering() {
    privileged!("ping", "tcpdump", "ss");
    let mut bare_link = None;
    for threads in THREADS {
        let pair = pair(threads);
        let outer = pair.right_endpoint().ip();
        let (bare, bare_reordering, _) = *bare_link.get_or_insert_with(|| {
            let found = tcp_verdict(&pair.left.ns, &pair.right.ns, outer);
            println!("bare link: {:.0} Mbit/s, {:?}", found.2 / 1e6, found.0);
            found
        });
        for (from, to) in [(&pair.left, &pair.right), (&pair.right, &pair.left)] {
            let (found, reordering, rate) = tcp_verdict(&from.ns, &to.ns, to.inner_v4.into());
            println!("{threads} threads: {:.0} Mbit/s, {found:?}, reordering {reordering}", rate / 1e6);
            assert!(found.reorderings <= bare.reorderings, "{threads} threads: {found:?}, bare {bare:?}");
            assert!(reordering <= bare_reordering, "{threads} threads: {reordering}, bare {bare_reordering}");
            // What is missing lets what follows it wait: only without loss does waiting mean reordering.
            if found.retransmitted == 0 {
                assert!(found.out_of_order <= bare.out_of_order, "{threads} threads: {found:?}, bare {bare:?}");
            }
        }
    }
}

/// Sends numbered datagrams of several flows as fast as it can, until the time is over. Gives how many.
fn flood(from: &Node, to: &Node, ports: &[u16]) -> u64 {
    let any = IpAddr::from([0; 4]);
    let senders = ports.iter().map(|port| {
        let sender = udp_socket(&from.ns, any);
        sender.connect((to.inner_v4, *port)).expect("there is a route");
        sender
    });
    let senders: Vec<_> = senders.collect();
    let (start, mut payload, mut sent) = (Instant::now(), Vec::new(), 0);
    while start.elapsed() < RUN {
        let (flow, number) = turn(sent);
        payload.resize(varied_len(number), 0);
        write_numbered(&mut payload, flow, number);
        // What the interface does not take is lost.
        let _ = senders[flow as usize].send(&payload);
        sent += 1;
    }
    sent
}

/// Several flows of all sizes in both directions, more than the tunnel can carry: what arrives of a flow is in order, none
/// twice, none altered.
#[test]
fn saturating_datagrams_stay_in_order() {
    privileged!("ping", "tcpdump");
    for threads in THREADS {
        let pair = pair(threads);
        let ended = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            let mut sending = Vec::new();
            let mut receiving = Vec::new();
            for (from, to) in [(&pair.left, &pair.right), (&pair.right, &pair.left)] {
                let sockets: Vec<_> = (0..FLOWS).map(|_| udp_socket(&to.ns, to.inner_v4.into())).collect();
                let port = |it: &std::net::UdpSocket| it.local_addr().expect("it is bound").port();
                let ports: Vec<u16> = sockets.iter().map(port).collect();
                sending.push(scope.spawn(move || flood(from, to, &ports)));
                for socket in sockets {
                    let ended = Arc::clone(&ended);
                    receiving.push(scope.spawn(move || {
                        let (mut ledger, mut buffer) = (Ledger::default(), [0; 2048]);
                        loop {
                            match socket.recv(&mut buffer) {
                                Ok(len) => ledger.enter(&buffer[..len]),
                                Err(_) if ended.load(Ordering::Acquire) => return ledger.total(),
                                Err(_) => {}
                            }
                        }
                    }));
                }
            }
            let sent: Vec<u64> = sending.into_iter().map(|it| it.join().expect("sending does not panic")).collect();
            ended.store(true, Ordering::Release);
            let join = |it: std::thread::ScopedJoinHandle<'_, u64>| {
                it.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            let arrived: Vec<u64> = receiving.into_iter().map(join).collect();
            println!("{threads} threads: {sent:?} sent each way, {arrived:?} arrived of each flow");
            assert!(arrived.iter().all(|count| *count > 100), "hardly anything arrives: {arrived:?}");
        });
    }
}
