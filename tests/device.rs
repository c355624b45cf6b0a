//! A device between edges in memory: no root, no system, all of the pipeline and its threads.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use adit::device::config::{AllowedIp, AllowedIpUpdate, ApplyError, PeerUpdate, Update};
use adit::device::events::{Event, Events};
use adit::device::{CloseReason, Device};
use adit::key::{PresharedKey, PrivateKey, PublicKey};
use adit::proto::rejected::Rejected;
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::tun::{Readiness, ReceiveError, Tun, TunEvents, TunQueue, TunReceiver, TunSender, Wake};
use adit::udp::memory::MemoryNetwork;

const PATIENCE: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(100);
const PORT: u16 = 51820;
/// Initiations of one peer that come closer together are a flood, and whitened timestamps do not tell them apart.
const BETWEEN_INITIATIONS: Duration = Duration::from_millis(25);

/// A device, what its TUN leads to, and who it is.
struct Host {
    device: Device,
    tun: MemoryTunHandle,
    number: u8,
}

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

fn allowed(address: Ipv4Addr, prefix_len: u8) -> AllowedIpUpdate {
    AllowedIpUpdate { allowed_ip: AllowedIp { address: address.into(), prefix_len }, remove: false }
}

/// Host `number`: up, keyed, without peers.
fn host(network: &MemoryNetwork, number: u8) -> Host {
    let (tun, handle) = MemoryTun::new("memory", 1420);
    let device = Device::builder(tun, network.host(&[outer(number)])).start().expect("threads start");
    handle.set_up(true);
    // Any port, so that it tells when the link is up; then the one that the others know.
    eventually(|| device.snapshot().listen_port != 0);
    let update = Update { private_key: Some(Some(private_key(number))), listen_port: Some(PORT), ..Update::default() };
    device.apply(update).expect("a key and a port are accepted");
    Host { device, tun: handle, number }
}

impl Host {
    fn peer(&self, number: u8) -> PeerUpdate {
        PeerUpdate {
            endpoint: Some(SocketAddr::new(outer(number), PORT)),
            allowed_ips: vec![allowed(inner(number), 32)],
            ..PeerUpdate::new(public_key(number))
        }
    }

    fn add(&self, peer: PeerUpdate) {
        self.device.apply(Update { peers: vec![peer], ..Update::default() }).expect("a peer is accepted");
    }

    fn send(&self, to: u8, text: &str) {
        assert!(self.tun.send(&packet(inner(self.number), inner(to), text)), "the TUN takes a packet");
    }

    /// The text of the next packet that comes out of the tunnel.
    fn receive(&self, patience: Duration) -> Option<String> {
        self.tun.receive(patience).map(|packet| String::from_utf8_lossy(&packet[28..]).into_owned())
    }

    fn tx_bytes(&self, peer: usize) -> u64 {
        self.device.snapshot().peers[peer].tx_bytes
    }
}

/// Two hosts that know each other.
fn pair() -> (Host, Host) {
    let network = MemoryNetwork::new();
    let (one, two) = (host(&network, 1), host(&network, 2));
    one.add(one.peer(2));
    two.add(two.peer(1));
    (one, two)
}

/// Waits for `wanted`, past others.
fn hear(events: &Events, wanted: &Event) {
    while events.recv_timeout(PATIENCE).unwrap_or_else(|| panic!("{wanted:?} did not come")) != *wanted {}
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "it did not come about in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// An IPv4 packet with a UDP header and `text`; the checksums are zero, which UDP over IPv4 allows.
fn packet(source: Ipv4Addr, destination: Ipv4Addr, text: &str) -> Vec<u8> {
    let len = 28 + text.len();
    let mut packet = vec![0x45, 0, (len >> 8) as u8, len as u8, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend([0x30, 0x39, 0x30, 0x39, ((len - 20) >> 8) as u8, (len - 20) as u8, 0, 0]);
    packet.extend(text.as_bytes());
    packet
}

/// The first packet waits for the handshake that it starts; nothing is lost. [KERNEL-STAGED]
#[test]
fn packets_that_wait_for_the_handshake_arrive_in_order() {
    let (one, two) = pair();
    for i in 0..100 {
        one.send(2, &format!("packet {i}"));
    }
    for i in 0..100 {
        assert_eq!(two.receive(PATIENCE), Some(format!("packet {i}")));
    }
    two.send(1, "answer");
    assert_eq!(one.receive(PATIENCE).as_deref(), Some("answer"));
    // The first packet on a session confirms the handshake, which is written down a moment later.
    eventually(|| two.device.snapshot().peers[0].last_handshake.is_some());
    assert_eq!(two.device.snapshot().peers[0].endpoint, Some(SocketAddr::new(outer(1), PORT)));
}

/// [KERNEL-STAGED] 128 wait, the oldest goes first.
#[test]
fn of_more_than_128_waiting_packets_the_oldest_are_dropped() {
    let network = MemoryNetwork::new();
    let one = host(&network, 1);
    one.add(one.peer(2));
    for i in 0..140 {
        one.send(2, &format!("packet {i}"));
    }
    eventually(|| one.device.drops(Rejected::StagedDropped) == 12);
    let two = host(&network, 2);
    two.add(two.peer(1));
    // The initiator tries again after five seconds; a changed endpoint lets it try at once.
    let moved = SocketAddr::new(outer(3), PORT);
    one.add(PeerUpdate { endpoint: Some(moved), ..PeerUpdate::new(public_key(2)) });
    one.add(one.peer(2));
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("packet 12"));
    for i in 13..140 {
        assert_eq!(two.receive(PATIENCE), Some(format!("packet {i}")));
    }
}

/// The device-wide table decides whose a source address is, also inside another peer's range. [WP 2]
#[test]
fn a_peer_cannot_speak_for_another_peers_address() {
    let network = MemoryNetwork::new();
    let (one, two, three) = (host(&network, 1), host(&network, 2), host(&network, 3));
    let wide = PeerUpdate { allowed_ips: vec![allowed(inner(0), 24)], ..one.peer(2) };
    one.add(wide);
    one.add(one.peer(3));
    two.add(two.peer(1));
    three.add(three.peer(1));
    two.send(1, "mine");
    assert_eq!(one.receive(PATIENCE).as_deref(), Some("mine"));
    two.tun.send(&packet(inner(77), inner(1), "mine too"));
    assert_eq!(one.receive(PATIENCE).as_deref(), Some("mine too"));
    two.tun.send(&packet(inner(3), inner(1), "not mine"));
    eventually(|| one.device.drops(Rejected::ForbiddenSource) == 1);
    three.send(1, "three's");
    assert_eq!(one.receive(PATIENCE).as_deref(), Some("three's"));
}

/// [UAPI] Applying what already holds, in whatever form `wg` sends it, touches no session.
#[test]
fn an_identical_configuration_keeps_sessions_and_sockets() {
    let (one, two) = pair();
    one.send(2, "before");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("before"));
    let handshake = one.device.snapshot().peers[0].last_handshake;
    let complete = |host: &Host, peer: u8| Update {
        private_key: Some(Some(private_key(host.number))),
        listen_port: Some(PORT),
        fwmark: Some(0),
        replace_peers: true,
        peers: vec![PeerUpdate { replace_allowed_ips: true, ..host.peer(peer) }],
    };
    for i in 0..50 {
        one.device.apply(complete(&one, 2)).unwrap();
        two.device.apply(complete(&two, 1)).unwrap();
        one.send(2, &format!("packet {i}"));
        assert_eq!(two.receive(PATIENCE), Some(format!("packet {i}")));
    }
    assert_eq!(one.device.snapshot().peers[0].last_handshake, handshake);
}

/// A peer that a replacing list names keeps its session, and loses what the list leaves out.
#[test]
fn replacing_peers_is_a_difference() {
    let (one, two) = pair();
    let psk = PresharedKey::from_bytes([7; 32]);
    // First the one who answers: the keepalive starts the handshake at once.
    two.add(PeerUpdate { preshared_key: Some(psk.clone()), ..PeerUpdate::new(public_key(1)) });
    one.add(PeerUpdate { persistent_keepalive: Some(25), preshared_key: Some(psk), ..PeerUpdate::new(public_key(2)) });
    one.add(one.peer(4));
    one.send(2, "before");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("before"));
    let bare = PeerUpdate { allowed_ips: vec![allowed(inner(2), 32)], ..PeerUpdate::new(public_key(2)) };
    let only_updated = PeerUpdate { update_only: true, ..PeerUpdate::new(public_key(4)) };
    let update = Update { replace_peers: true, peers: vec![only_updated, bare], ..Update::default() };
    one.device.apply(update).unwrap();
    let snapshot = one.device.snapshot();
    assert_eq!(snapshot.peers.len(), 1, "what a replacing list only updates is not there any more");
    assert_eq!(snapshot.peers[0].persistent_keepalive, 0);
    assert_eq!(snapshot.peers[0].preshared_key, PresharedKey::default());
    assert!(snapshot.peers[0].endpoint.is_some(), "where a peer is stays known");
    one.send(2, "after");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("after"));
}

/// Sending ends on the old keys at once, receiving does not, and the next packet goes at once too.
#[test]
fn a_new_private_key_starts_a_new_handshake_at_once() {
    let (one, two) = pair();
    one.send(2, "before");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("before"));
    two.add(PeerUpdate {
        allowed_ips: vec![allowed(inner(1), 32)],
        endpoint: Some(SocketAddr::new(outer(1), PORT)),
        ..PeerUpdate::new(public_key(9))
    });
    let start = Instant::now();
    one.device.apply(Update { private_key: Some(Some(private_key(9))), ..Update::default() }).unwrap();
    one.send(2, "after");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("after"));
    assert!(start.elapsed() < Duration::from_secs(4), "it did not wait for REKEY_TIMEOUT");
}

/// [UAPI] The peer that is oneself goes, and is not added.
#[test]
fn the_own_public_key_is_no_peer() {
    let (one, _two) = pair();
    one.add(PeerUpdate::new(public_key(1)));
    assert_eq!(one.device.snapshot().peers.len(), 1);
    one.device.apply(Update { private_key: Some(Some(private_key(2))), ..Update::default() }).unwrap();
    assert_eq!(one.device.snapshot().peers.len(), 0);
}

#[test]
fn a_removed_peer_is_neither_sent_to_nor_heard() {
    let (one, two) = pair();
    one.send(2, "before");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("before"));
    one.add(PeerUpdate { remove: true, ..PeerUpdate::new(public_key(2)) });
    assert!(one.device.snapshot().peers.is_empty());
    two.send(1, "lost");
    eventually(|| one.device.drops(Rejected::UnknownIndex) == 1);
    one.send(2, "nowhere");
    eventually(|| one.device.drops(Rejected::NoRoute) == 1);
    std::thread::sleep(BETWEEN_INITIATIONS);
    one.add(one.peer(2));
    one.send(2, "again");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("again"));
}

/// The port is held only while the link is up, and the same again afterwards.
#[test]
fn the_link_goes_down_and_up() {
    let network = MemoryNetwork::new();
    let (one, two) = (host(&network, 1), host(&network, 2));
    one.add(one.peer(2));
    two.add(two.peer(1));
    one.send(2, "before");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("before"));
    for i in 0..20 {
        one.tun.set_up(false);
        let blocker = || adit::udp::Udp::bind(&network.host(&[outer(1)]), PORT, 0, 1).is_ok();
        eventually(blocker);
        assert_eq!(one.device.snapshot().listen_port, PORT, "down, the port is the one asked for");
        one.tun.set_up(true);
        eventually(|| !blocker());
        std::thread::sleep(BETWEEN_INITIATIONS);
        one.send(2, &format!("packet {i}"));
        assert_eq!(two.receive(PATIENCE), Some(format!("packet {i}")));
    }
}

/// [KERNEL-DOWN] Down, a device forgets its sessions; up again, it is silent until it has something to say, which makes a
/// new one. What the other end sends on the old one until then is for nobody.
#[test]
fn a_link_that_goes_down_forgets_its_sessions() {
    let (one, two) = pair();
    one.send(2, "before");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("before"));
    two.send(1, "answer");
    assert_eq!(one.receive(PATIENCE).as_deref(), Some("answer"));
    one.tun.set_up(false);
    eventually(|| one.device.figures().receiver_indices == 0 && !one.device.figures().is_bound);
    let sent = one.tx_bytes(0);
    one.tun.set_up(true);
    eventually(|| one.device.figures().is_bound);
    two.send(1, "lost");
    eventually(|| one.device.drops(Rejected::UnknownIndex) == 1);
    assert_eq!((one.receive(SHORT), one.tx_bytes(0)), (None, sent), "silent");
    std::thread::sleep(BETWEEN_INITIATIONS);
    one.send(2, "after");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("after"));
    two.send(1, "heard");
    assert_eq!(one.receive(PATIENCE).as_deref(), Some("heard"));
}

/// [UAPI] A port that somebody has is refused, and the old one goes on working.
#[test]
fn f_06_a_port_in_use_changes_nothing() {
    let network = MemoryNetwork::new();
    let (one, two) = (host(&network, 1), host(&network, 2));
    one.add(one.peer(2));
    two.add(two.peer(1));
    let _blocker = adit::udp::Udp::bind(&network.host(&[outer(1)]), 4000, 0, 1).unwrap();
    let update = Update {
        private_key: Some(Some(private_key(9))),
        listen_port: Some(4000),
        peers: vec![one.peer(5)],
        ..Update::default()
    };
    assert!(matches!(one.device.apply(update), Err(ApplyError::ListenPort(_))));
    let snapshot = one.device.snapshot();
    assert_eq!((snapshot.listen_port, snapshot.peers.len()), (PORT, 1));
    assert_eq!(snapshot.private_key, Some(private_key(1)));
    one.send(2, "still here");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("still here"));
}

/// Sockets that change as fast as they can leave nobody with old ones: each port is free again at once, and the first
/// packet after a change leaves from the new one.
#[test]
fn ports_changed_in_quick_succession_leave_nobody_deaf() {
    let (one, two) = pair();
    one.send(2, "before");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("before"));
    for round in 0..100 {
        for port in [4000 + round, 5000].into_iter().cycle().take(50) {
            one.device.apply(Update { listen_port: Some(port), ..Update::default() }).unwrap();
        }
        one.send(2, &format!("packet {round}"));
        assert_eq!(two.receive(PATIENCE), Some(format!("packet {round}")));
        two.send(1, &format!("answer {round}"));
        assert_eq!(one.receive(PATIENCE), Some(format!("answer {round}")));
    }
}

/// A port that is taken when the link comes up is tried again until it is free.
#[test]
fn a_port_taken_at_link_up_is_tried_again() {
    let network = MemoryNetwork::new();
    let (one, two) = (host(&network, 1), host(&network, 2));
    one.add(one.peer(2));
    two.add(two.peer(1));
    one.tun.set_up(false);
    let mut blocker = None;
    eventually(|| {
        blocker = adit::udp::Udp::bind(&network.host(&[outer(1)]), PORT, 0, 1).ok();
        blocker.is_some()
    });
    one.tun.set_up(true);
    eventually(|| one.device.snapshot().listen_port == 0);
    one.send(2, "waiting");
    assert_eq!(two.receive(SHORT), None);
    drop(blocker);
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("waiting"));
}

/// [KERNEL-ICMP] The local sender is told, at once.
#[test]
fn the_local_sender_is_told_that_nobody_is_there() {
    let network = MemoryNetwork::new();
    let one = host(&network, 1);
    one.add(PeerUpdate { allowed_ips: vec![allowed(inner(2), 32)], ..PeerUpdate::new(public_key(2)) });
    for (destination, reason) in [(2, Rejected::NoEndpoint), (200, Rejected::NoRoute)] {
        one.send(destination, "anybody?");
        let error = one.tun.receive(PATIENCE).expect("an ICMP error comes back");
        assert_eq!(error[9], 1, "ICMP");
        assert_eq!(error[16..20], inner(1).octets());
        assert_eq!(error[20..22], [3, 1], "host unreachable");
        assert_eq!(one.device.drops(reason), 1);
    }
}

/// Garbage of every length is dropped by name, and answered with nothing.
#[test]
fn garbage_is_dropped_in_silence() {
    let network = MemoryNetwork::new();
    let (one, two) = (host(&network, 1), host(&network, 2));
    one.add(one.peer(2));
    two.add(two.peer(1));
    let stranger = adit::udp::Udp::bind(&network.host(&[outer(66)]), 1, 0, 1).unwrap();
    let mut sender = stranger.sender().unwrap();
    let mut sent = [adit::udp::Sent::default()];
    for len in (0..2000).chain([65_507]) {
        for kind in 0..6 {
            let mut data = vec![0; len];
            if let Some(first) = data.first_mut() {
                *first = kind;
            }
            let transmit = adit::udp::Transmit {
                to: SocketAddr::new(outer(1), PORT),
                source: None,
                tos: 0,
                segment: len.max(1),
                data: &data,
                offload: false,
            };
            sender.send(&[transmit], &mut sent);
        }
    }
    one.send(2, "unharmed");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("unharmed"));
    assert!(one.device.drops(Rejected::MalformedMessage) > 1000);
    assert!(one.device.drops(Rejected::BadMac1) >= 2);
    let mut buffers = adit::packet::Buffers::new(4);
    let mut received = Vec::with_capacity(4);
    stranger.receivers().unwrap()[0].receive(&mut buffers, &mut received).unwrap();
    assert!(received.is_empty(), "nothing is ever sent in answer");
}

/// Keepalives are 32 bytes and go out when they are switched on.
#[test]
fn a_persistent_keepalive_is_sent_when_it_is_switched_on() {
    let (one, two) = pair();
    one.add(PeerUpdate { persistent_keepalive: Some(25), ..PeerUpdate::new(public_key(2)) });
    // An initiation, and the keepalive that confirms the session.
    eventually(|| one.tx_bytes(0) == 148 + 32);
    eventually(|| two.device.snapshot().peers[0].rx_bytes == 148 + 32);
    assert_eq!(two.tx_bytes(0), 92);
    assert_eq!(two.receive(SHORT), None);
}

/// A keepalive that was switched on before anybody knew where to send it goes out when the endpoint is set.
#[test]
fn a_persistent_keepalive_waits_for_the_endpoint() {
    let network = MemoryNetwork::new();
    let (one, two) = (host(&network, 1), host(&network, 2));
    two.add(two.peer(1));
    one.add(PeerUpdate { persistent_keepalive: Some(25), ..PeerUpdate::new(public_key(2)) });
    assert_eq!(one.tx_bytes(0), 0);
    one.add(one.peer(2));
    eventually(|| one.tx_bytes(0) == 148 + 32);
}

/// Many packets both ways at once: none lost, none out of order, counters as on the wire.
#[test]
fn a_stream_in_both_directions_stays_whole() {
    const PACKETS: usize = 20_000;
    const WINDOW: usize = 64;
    let (one, two) = pair();
    one.send(2, "start");
    assert_eq!(two.receive(PATIENCE).as_deref(), Some("start"));
    let run = |from: &Host, to: &Host| {
        for start in (0..PACKETS).step_by(WINDOW) {
            let numbers = start..(start + WINDOW).min(PACKETS);
            numbers.clone().for_each(|i| from.send(to.number, &i.to_string()));
            numbers.for_each(|i| assert_eq!(to.receive(PATIENCE), Some(i.to_string())));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| run(&one, &two));
        scope.spawn(|| run(&two, &one));
    });
}

#[test]
fn events_tell_of_sessions_and_of_peers_that_move() {
    let (mut one, two) = pair();
    let (of_one, of_two) = (one.device.events(), two.device.events());
    one.send(2, "first");
    assert!(two.receive(PATIENCE).is_some());
    hear(&of_one, &Event::SessionUp { peer: public_key(2) });
    hear(&of_two, &Event::SessionUp { peer: public_key(1) });

    let port = PORT + 1;
    two.device.apply(Update { listen_port: Some(port), ..Update::default() }).expect("the port is free");
    two.send(1, "from elsewhere");
    hear(&of_one, &Event::EndpointMoved { peer: public_key(2), endpoint: SocketAddr::new(outer(2), port) });
    assert_eq!(of_two.try_recv(), None, "nobody else moved");

    one.tun.set_up(false);
    hear(&of_one, &Event::SessionDown { peer: public_key(2) });
    one.device.close();
    assert_eq!(of_one.collect::<Vec<_>>(), []);
}

#[test]
fn closing_is_told_once_with_its_reason() {
    let network = MemoryNetwork::new();
    let (tun, handle) = MemoryTun::new("memory", 1420);
    let (told, reasons) = channel();
    let device = Device::builder(tun, network.host(&[outer(1)]))
        .on_close(move |reason| told.send(reason.clone()).unwrap())
        .start()
        .unwrap();
    drop(handle);
    assert_eq!(device.wait(), CloseReason::TunDeleted);
    assert_eq!(reasons.recv_timeout(PATIENCE), Ok(CloseReason::TunDeleted));
    assert!(matches!(device.apply(Update::default()), Err(ApplyError::Closed)));
    drop(device);
    assert!(reasons.recv_timeout(SHORT).is_err(), "it is told only once");
}

/// A TUN whose reading panics, as a defect in a stage would.
struct Defective(MemoryTun);

struct DefectiveReceiver;
struct NoSender;

impl Tun for Defective {
    fn name(&self) -> String {
        self.0.name()
    }

    fn mtu(&self) -> usize {
        self.0.mtu()
    }

    fn queues(&mut self, _count: usize) -> std::io::Result<Vec<TunQueue>> {
        Ok(vec![TunQueue { receiver: Box::new(DefectiveReceiver), sender: Box::new(NoSender) }])
    }

    fn events(&mut self) -> std::io::Result<Box<dyn TunEvents>> {
        self.0.events()
    }
}

impl TunReceiver for DefectiveReceiver {
    fn readiness(&mut self, _wake: Wake) -> Readiness {
        Readiness::Wake
    }

    fn receive<'a>(
        &mut self,
        _buffer: &'a mut [u8],
    ) -> Result<Option<adit::tun::offload::SuperPacket<'a>>, ReceiveError> {
        panic!("a defect")
    }
}

impl TunSender for NoSender {
    fn send(&mut self, _buffers: &adit::packet::Buffers, _packets: &[adit::packet::PacketRef]) -> usize {
        0
    }
}

/// Never half alive: a panic in one thread ends the device, and says so.
#[test]
fn a_panic_in_a_worker_fails_closed() {
    let network = MemoryNetwork::new();
    let (tun, handle) = MemoryTun::new("memory", 1420);
    let device = Device::builder(Defective(tun), network.host(&[outer(1)])).start().unwrap();
    handle.set_up(true);
    assert_eq!(device.wait(), CloseReason::Failed("internal error: a defect".into()));
    assert!(matches!(device.apply(Update::default()), Err(ApplyError::Closed)));
    drop(device);
    assert!(adit::udp::Udp::bind(&network.host(&[outer(1)]), PORT, 0, 1).is_ok(), "the port is free again");
}
