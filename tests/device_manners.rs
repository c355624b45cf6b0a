//! What a device shows on its outer and inner side, over edges in memory: how datagrams are marked, padded and staged,
//! who is answered, and what is refused. No privileges, no system network.
#![cfg(feature = "device")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::ip::Header;
use adit::key::PrivateKey;
use adit::packet::Buffers;
use adit::proto::constants::STAGED_PACKETS_MAX;
use adit::proto::cookie::CookieJar;
use adit::proto::messages::INITIATION_LEN;
use adit::proto::rejected::Rejected;
use adit::tun::Wake;
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::udp::memory::MemoryNetwork;
use adit::udp::{Received, Sent, Transmit, Udp, UdpReceiver, UdpSender};

#[path = "testbed/edges.rs"]
mod edges;

use edges::{Hooked, Hooks};

/// Long enough for a loaded machine, and shorter than any retry, which would hide a loss.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long to look for what must not come.
const SILENCE: Duration = Duration::from_millis(200);
const MTU: usize = 1420;
const PORT: u16 = 51820;
/// The first byte of transport data.
const DATA: u8 = 4;

/// A datagram that left, as it was handed to the edge.
#[derive(Debug, Clone)]
struct Left {
    to: SocketAddr,
    tos: u8,
    bytes: Vec<u8>,
}

/// What a test sees and changes of one device's outer side.
#[derive(Default)]
struct Wire {
    left: Mutex<Vec<Left>>,
    /// Nothing is received while this is set.
    held: AtomicBool,
    /// What leaves is noted and lost while this is set.
    swallowed: AtomicBool,
    /// ECN bits that everything received is marked with, if not 0.
    mark: AtomicU8,
    wakes: Mutex<Vec<Wake>>,
}

impl Wire {
    fn left(&self) -> Vec<Left> {
        self.left.lock().unwrap().clone()
    }

    fn release(&self) {
        self.held.store(false, Ordering::SeqCst);
        let wakes: Vec<Wake> = self.wakes.lock().unwrap().clone();
        wakes.iter().for_each(|wake| wake());
    }

    /// Waits for a datagram that left and satisfies `wanted`.
    fn expect(&self, what: &str, wanted: impl Fn(&Left) -> bool) -> Left {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(left) = self.left().into_iter().find(&wanted) {
                return left;
            }
            assert!(Instant::now() < end, "no {what} among {:?}", self.left());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Hooks for Wire {
    fn udp_wake(&self, wake: &Wake) {
        self.wakes.lock().unwrap().push(wake.clone());
    }

    fn udp_receive(
        &self,
        inner: &mut dyn UdpReceiver,
        _wake: Option<&Wake>,
        buffers: &mut Buffers,
        received: &mut Vec<Received>,
    ) -> io::Result<bool> {
        if self.held.load(Ordering::SeqCst) {
            received.clear();
            return Ok(false);
        }
        let more = inner.receive(buffers, received)?;
        let mark = self.mark.load(Ordering::SeqCst);
        received.iter_mut().filter(|_| mark != 0).for_each(|received| received.ecn = mark);
        Ok(more)
    }

    fn udp_send(&self, inner: &mut dyn UdpSender, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        let mut left = self.left.lock().unwrap();
        for transmit in transmits {
            let datagrams = transmit.data.chunks(transmit.segment.max(1));
            left.extend(datagrams.map(|bytes| Left { to: transmit.to, tos: transmit.tos, bytes: bytes.into() }));
        }
        drop(left);
        if self.swallowed.load(Ordering::SeqCst) {
            let taken = transmits.iter().map(|transmit| Sent { bytes: transmit.data.len(), ..Sent::default() });
            sent.iter_mut().zip(taken).for_each(|(sent, taken)| *sent = taken);
        } else {
            inner.send(transmits, sent);
        }
    }
}

/// One end of a tunnel.
struct End {
    device: Device,
    tun: MemoryTunHandle,
    wire: Arc<Wire>,
}

fn outer(number: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, number), PORT).into()
}

fn inner(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

/// A device with the number `own`, up, that has number `other` as its peer.
fn end(network: &MemoryNetwork, own: u8, other: u8) -> End {
    let wire = Arc::<Wire>::default();
    let (tun, handle) = MemoryTun::new("memory", MTU);
    let udp = Hooked(network.host(&[outer(own).ip()]), wire.clone());
    let device = Device::builder(tun, udp).start().unwrap();
    let mut peer = PeerUpdate::new(key(other).public_key());
    peer.endpoint = Some(outer(other));
    let allowed_ip = AllowedIp { address: inner(other).into(), prefix_len: 32 };
    peer.allowed_ips = vec![AllowedIpUpdate { allowed_ip, remove: false }];
    let private_key = Some(Some(key(own)));
    device.apply(Update { private_key, listen_port: Some(PORT), peers: vec![peer], ..Update::default() }).unwrap();
    handle.set_up(true);
    End { device, tun: handle, wire }
}

fn pair() -> (MemoryNetwork, End, End) {
    let network = MemoryNetwork::new();
    let (left, right) = (end(&network, 1, 2), end(&network, 2, 1));
    (network, left, right)
}

/// An IPv4 packet with this identification and TOS byte, `len` bytes in all.
fn packet(from: u8, to: u8, id: u16, tos: u8, len: usize) -> Vec<u8> {
    let mut packet = vec![0xa5; len];
    packet[..20].fill(0);
    (packet[0], packet[1]) = (0x45, tos);
    packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    packet[4..6].copy_from_slice(&id.to_be_bytes());
    (packet[8], packet[9]) = (64, 253);
    packet[12..16].copy_from_slice(&inner(from).octets());
    packet[16..20].copy_from_slice(&inner(to).octets());
    let checksum = !ones_sum(&packet[..20]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet
}

fn ones_sum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Waits for what another thread is to bring about.
fn until(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: waited in vain");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until the links are up: before that, what is sent is lost.
fn come_up(ends: [&End; 2]) {
    until("sockets", || ends.iter().all(|end| !end.wire.wakes.lock().unwrap().is_empty()));
}

/// Sends one packet through and waits for it: there is a session afterwards.
fn shake_hands(from: &End, to: &End) {
    come_up([from, to]);
    let first = packet(1, 2, 0, 0, 60);
    assert!(from.tun.send(&first));
    assert_eq!(to.tun.receive(PATIENCE).as_deref(), Some(&first[..]));
}

/// Somebody who is no peer, with a port of his own.
struct Stranger {
    to: SocketAddr,
    sender: Box<dyn UdpSender>,
}

impl Stranger {
    /// The host `number`, which sends to the device with the number `to`.
    fn new(network: &MemoryNetwork, number: u8, to: u8) -> Self {
        let socket = network.host(&[outer(number).ip()]).bind(PORT, 0, 1).unwrap();
        Self { to: outer(to), sender: socket.sender().unwrap() }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.send_train(bytes, bytes.len());
    }

    fn send_train(&mut self, data: &[u8], segment: usize) {
        let transmit = Transmit { to: self.to, source: None, tos: 0, segment, data, offload: false };
        self.sender.send(&[transmit], &mut [Sent::default()]);
    }
}

/// Gives a message to the device with this number a right mac1: its public key is all that it takes.
fn forge_mac1(to: u8, message: &mut [u8]) {
    CookieJar::new().add_macs(&key(to).public_key(), message, adit::proto::time::Instant::default());
}

/// [KERNEL-DSCP] Handshake messages leave with AF41, data without.
#[test]
fn handshake_messages_leave_with_af41_and_data_with_none() {
    let (_network, left, right) = pair();
    shake_hands(&left, &right);
    let tos = |end: &End, kind: u8| end.wire.expect("message of this type", |left| left.bytes[0] == kind).tos;
    assert_eq!(tos(&left, 1), 0x88, "initiation");
    assert_eq!(tos(&right, 2), 0x88, "response");
    assert_eq!(tos(&left, DATA), 0, "data");
}

/// [KERNEL-ECN] The inner ECN bits, and nothing else of the inner TOS, are the outer ones.
#[test]
fn s_43_inner_ecn_is_copied_out() {
    let (_network, left, right) = pair();
    shake_hands(&left, &right);
    for (id, tos) in [0xb8, 0xb9, 0xba, 0xbb].into_iter().enumerate() {
        // Lengths of their own, by which the datagrams are told apart.
        let packet = packet(1, 2, id as u16, tos, 200 + 16 * id);
        assert!(left.tun.send(&packet));
        assert_eq!(right.tun.receive(PATIENCE).as_deref(), Some(&packet[..]));
        let datagram_len = packet.len().next_multiple_of(16) + 32;
        let datagram = left.wire.expect("datagram", |left| left.bytes[0] == DATA && left.bytes.len() == datagram_len);
        assert_eq!(datagram.tos, tos & 3);
    }
}

/// [KERNEL-ECN] An outer CE marks an ECN-capable inner packet, its checksum made right; another is left as it is.
#[test]
fn s_43_outer_congestion_comes_in() {
    let (_network, left, right) = pair();
    shake_hands(&left, &right);
    right.wire.mark.store(3, Ordering::SeqCst);
    for (ecn, expected) in [(0, 0), (1, 3), (2, 3), (3, 3)] {
        assert!(left.tun.send(&packet(1, 2, 7, ecn, 100)));
        let delivered = right.tun.receive(PATIENCE).expect("the packet is delivered");
        assert_eq!(Header::parse(&delivered).unwrap().ecn, expected, "inner {ecn}");
        assert_eq!(ones_sum(&delivered[..20]), 0xffff);
    }
}

/// [KERNEL-PADDING] [WP 5.4.6] Padded to 16, never beyond the MTU; a keepalive has 32 bytes.
#[test]
fn s_42_data_is_padded_within_the_mtu() {
    let (_network, left, right) = pair();
    shake_hands(&left, &right);
    for (len, padded) in [(61, 64), (64, 64), (65, 80), (1408, 1408), (1409, MTU), (MTU, MTU)] {
        left.wire.left.lock().unwrap().clear();
        assert!(left.tun.send(&packet(1, 2, 0, 0, len)));
        assert_eq!(right.tun.receive(PATIENCE).map(|packet| packet.len()), Some(len));
        let datagram = left.wire.expect("datagram", |left| left.bytes[0] == DATA);
        assert_eq!(datagram.bytes.len(), padded + 32, "inner length {len}");
    }
}

/// [KERNEL-STAGED] Without a session the newest packets wait, and leave in order when there is one.
#[test]
fn s_35_the_newest_packets_wait_for_the_session_in_order() {
    let (_network, left, right) = pair();
    come_up([&left, &right]);
    right.wire.held.store(true, Ordering::SeqCst);
    let count = STAGED_PACKETS_MAX as u16 + 72;
    for id in 0..count {
        assert!(left.tun.send(&packet(1, 2, id, 0, 100)));
    }
    // All are staged when the oldest have been counted as dropped.
    until("dropping the oldest", || left.device.drops(Rejected::StagedDropped) == 72);
    right.wire.release();
    for id in 72..count {
        let delivered = right.tun.receive(PATIENCE).unwrap_or_else(|| panic!("packet {id} is missing"));
        assert_eq!(delivered[..], packet(1, 2, id, 0, 100)[..], "packet {id}");
    }
    assert_eq!(right.tun.receive(SILENCE), None);
    assert_eq!(left.device.drops(Rejected::StagedDropped), 72);
}

/// A peer that does not answer holds one index, however often a handshake is asked for, and none once it is removed.
#[test]
fn s_24_an_unanswered_peer_holds_one_index() {
    let (_network, left, right) = pair();
    come_up([&left, &right]);
    right.wire.held.store(true, Ordering::SeqCst);
    let indices = || left.device.figures().receiver_indices;
    for _ in 0..20 {
        left.device.start_handshake(&key(2).public_key());
        left.wire.expect("initiation", |left| left.bytes[0] == 1);
        // One is taken, and given back, also for an initiation that comes too soon.
        until("one index", || indices() == 1);
        std::thread::sleep(Duration::from_millis(5));
    }
    let removed = PeerUpdate { remove: true, ..PeerUpdate::new(key(2).public_key()) };
    left.device.apply(Update { peers: vec![removed], ..Update::default() }).unwrap();
    until("no index", || indices() == 0);
}

/// [WP 2.1] A peer is where its newest authenticated packet came from, even if the inner packet is then refused; what
/// was changed or heard before moves nothing.
#[test]
fn s_23_the_endpoint_follows_the_newest_authenticated_packet() {
    let (network, left, right) = pair();
    shake_hands(&left, &right);
    let mut places =
        [8, 9].map(|number| network.host(&[outer(number).ip()]).bind(PORT, 0, 1).unwrap().sender().unwrap());
    let mut send = |place: usize, bytes: &[u8]| {
        let transmit =
            Transmit { to: outer(2), source: None, tos: 0, segment: bytes.len(), data: bytes, offload: false };
        places[place].send(&[transmit], &mut [Sent::default()]);
    };
    let sealed = |packet: Vec<u8>| {
        let datagram_len = packet.len() + 32;
        assert!(left.tun.send(&packet));
        left.wire.expect("datagram", |left| left.bytes.len() == datagram_len).bytes
    };
    let endpoint = || right.device.snapshot().peers[0].endpoint;
    let drops = |reason, count| until("a drop", || right.device.drops(reason) == count);

    left.wire.swallowed.store(true, Ordering::SeqCst);
    let datagram = sealed(packet(1, 2, 0, 0, 304));
    let mut changed = datagram.clone();
    changed[40] ^= 1;
    send(0, &changed);
    drops(Rejected::BadTag, 1);
    assert_eq!(endpoint(), Some(outer(1)));

    send(1, &datagram);
    assert_eq!(right.tun.receive(PATIENCE).map(|packet| packet.len()), Some(304));
    assert_eq!(endpoint(), Some(outer(9)));

    send(0, &datagram);
    drops(Rejected::ReplayedCounter, 1);
    assert_eq!(endpoint(), Some(outer(9)));

    // The inner source is not the peer's.
    send(0, &sealed(packet(7, 2, 0, 0, 320)));
    drops(Rejected::ForbiddenSource, 1);
    assert_eq!(endpoint(), Some(outer(8)));
}

/// [KERNEL-LOOP] What comes in by the device's own interface has been through the tunnel: it is as if it had not come.
#[test]
fn what_comes_in_by_the_own_interface_is_dropped() {
    // Of the interface that every host of a network in memory has.
    const IFINDEX: u32 = 1;
    let (_network, left, right) = pair();
    right.tun.set_index(IFINDEX);
    come_up([&left, &right]);
    assert!(left.tun.send(&packet(1, 2, 1, 0, 100)));
    until("dropping the initiation", || right.device.drops(Rejected::RoutingLoop) == 1);
    assert_eq!(right.device.snapshot().peers[0].rx_bytes, 0);
    // The next initiation comes after REKEY_TIMEOUT; the other end's own finds its way at once.
    right.tun.set_index(IFINDEX + 1);
    let back = packet(2, 1, 2, 0, 100);
    assert!(right.tun.send(&back));
    assert_eq!(left.tun.receive(PATIENCE).as_deref(), Some(&back[..]));
    assert_eq!(right.device.drops(Rejected::RoutingLoop), 1);
}

/// [WP 2] Whose an inner source is, the table of the whole device says, not the sending peer's own ranges.
#[test]
fn s_40_a_peer_must_not_speak_for_an_address_of_another() {
    let (_network, left, right) = pair();
    let owner = |number: u8, address: Ipv4Addr, prefix_len: u8| {
        let mut peer = PeerUpdate::new(key(number).public_key());
        let allowed_ip = AllowedIp { address: address.into(), prefix_len };
        peer.allowed_ips = vec![AllowedIpUpdate { allowed_ip, remove: false }];
        peer
    };
    let peers = vec![owner(1, inner(0), 24), owner(3, inner(3), 32)];
    right.device.apply(Update { peers, ..Update::default() }).unwrap();
    shake_hands(&left, &right);
    assert!(left.tun.send(&packet(3, 2, 1, 0, 100)));
    let own = packet(4, 2, 2, 0, 100);
    assert!(left.tun.send(&own));
    assert_eq!(right.tun.receive(PATIENCE).as_deref(), Some(&own[..]));
    assert_eq!(right.device.drops(Rejected::ForbiddenSource), 1);
}

/// [WP 5.1] Whoever does not know our public key gets no byte, whatever he sends: every size that a datagram can have,
/// each as one of the four messages, as none of them, or as any bytes. Each is dropped by its name.
#[test]
fn s_01_strangers_get_no_answer() {
    const SIZE_MAX: usize = 65_507;
    let (network, left, right) = pair();
    shake_hands(&left, &right);
    let mut stranger = Stranger::new(&network, 9, 2);
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    let mut roll = move || {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) as usize
    };
    let noise: Vec<u8> = (0..SIZE_MAX + 256).map(|_| roll() as u8).collect();
    let of_any_kind = (1..=SIZE_MAX).map(|len| (len, roll() % 8));
    let small_of_every_kind = (1..200).flat_map(|len| (0..8).map(move |kind| (len, kind)));
    let [mut malformed, mut without_mac1, mut of_nobody] = [0; 3];
    for (sent, (len, kind)) in small_of_every_kind.chain(of_any_kind).enumerate() {
        let mut bytes = noise[len % 251..][..len].to_vec();
        if kind < 7 {
            bytes.iter_mut().zip([kind as u8, 0, 0, 0]).for_each(|(byte, value)| *byte = value);
        }
        match (bytes.first_chunk::<4>(), len) {
            (Some([1, 0, 0, 0]), 148) | (Some([2, 0, 0, 0]), 92) => without_mac1 += 1,
            (Some([3, 0, 0, 0]), 64) | (Some([4, 0, 0, 0]), 32..) => of_nobody += 1,
            _ => malformed += 1,
        }
        stranger.send(&bytes);
        // Few enough on their way that none finds a queue full.
        let dropped = || right.device.figures().drops.iter().sum::<u64>();
        if sent % 16 == 0 {
            until("the drops", || dropped() > sent as u64);
        }
    }
    // A true packet behind them all: everything before it was looked at.
    let last = packet(1, 2, 1, 0, 80);
    assert!(left.tun.send(&last));
    assert_eq!(right.tun.receive(PATIENCE).as_deref(), Some(&last[..]));
    assert_eq!(right.tun.receive(SILENCE), None);
    let to_stranger: Vec<Left> = right.wire.left().into_iter().filter(|left| left.to == outer(9)).collect();
    assert!(to_stranger.is_empty(), "{to_stranger:?}");
    let drops = [Rejected::MalformedMessage, Rejected::BadMac1, Rejected::UnknownIndex];
    assert_eq!(drops.map(|reason| right.device.drops(reason)), [malformed, without_mac1, of_nobody]);
}

/// A flood without a right mac1 costs no DH, and nothing of it waits before true handshakes. With the ephemeral key that
/// it has, a DH would fail, and that would be counted.
#[test]
fn s_03_no_dh_under_a_bad_mac1_flood() {
    const FLOOD: u64 = 10_000;
    let (network, left, right) = pair();
    shake_hands(&left, &right);
    let mut stranger = Stranger::new(&network, 9, 2);
    let mut initiation = [0; INITIATION_LEN];
    initiation[0] = 1;
    for sent in 0..FLOOD {
        initiation[120..128].copy_from_slice(&sent.to_le_bytes());
        stranger.send(&initiation);
        assert_eq!(right.device.figures().handshakes_queued, 0);
        if sent % 1000 == 0 {
            until("the drops", || right.device.drops(Rejected::BadMac1) == sent + 1);
        }
    }
    until("the drops", || right.device.drops(Rejected::BadMac1) == FLOOD);
    assert_eq!(right.device.drops(Rejected::LowOrderPoint), 0);
    forge_mac1(2, &mut initiation);
    stranger.send(&initiation);
    until("the DH", || right.device.drops(Rejected::LowOrderPoint) == 1);
}

/// A response counts for the index that it names and once, and not at all when its peer was removed meanwhile: it is
/// dropped by its name, and nothing is sent.
#[test]
fn s_08_a_response_is_of_one_initiation() {
    let asked = || {
        let (network, left, right) = pair();
        come_up([&left, &right]);
        right.wire.swallowed.store(true, Ordering::SeqCst);
        assert!(left.tun.send(&packet(1, 2, 0, 0, 60)));
        let response = right.wire.expect("response", |left| left.bytes[0] == 2).bytes;
        let stranger = Stranger::new(&network, 9, 1);
        (left, right, response, stranger)
    };
    let drops = |end: &End, reason, count| until("a drop", || end.device.drops(reason) == count);
    let sessions = |end: &End| end.device.figures().sessions;

    let (left, _right, response, mut stranger) = asked();
    for byte in 8..12 {
        let mut wrong = response.clone();
        wrong[byte] ^= 1;
        forge_mac1(1, &mut wrong);
        stranger.send(&wrong);
        drops(&left, Rejected::UnknownIndex, u64::from(byte as u8 - 7));
    }
    assert_eq!(sessions(&left), 0);
    stranger.send(&response);
    until("the session", || sessions(&left) == 1);
    let (before, index_count) = (left.wire.left().len(), left.device.figures().receiver_indices);
    stranger.send(&response);
    drops(&left, Rejected::NoHandshake, 1);
    assert_eq!((sessions(&left), left.device.figures().receiver_indices), (1, index_count));
    // What waited leaves on the session, and no other handshake begins.
    let handshakes = left.wire.left().into_iter().skip(before).filter(|left| left.bytes[0] != DATA).count();
    assert_eq!(handshakes, 0);

    let (left, _right, response, mut stranger) = asked();
    let removed = PeerUpdate { remove: true, ..PeerUpdate::new(key(2).public_key()) };
    left.device.apply(Update { peers: vec![removed], ..Update::default() }).unwrap();
    let before = left.wire.left().len();
    stranger.send(&response);
    drops(&left, Rejected::UnknownIndex, 1);
    std::thread::sleep(SILENCE);
    assert_eq!((left.wire.left().len(), left.device.figures().receiver_indices), (before, 0));
}

/// Datagrams that come joined are told apart: a shorter one at the end, garbage there, and one of the largest size
/// harm nothing around them.
#[test]
fn s_45_joined_datagrams_with_odd_ends() {
    let (network, left, right) = pair();
    shake_hands(&left, &right);
    let mut stranger = Stranger::new(&network, 9, 2);
    left.wire.swallowed.store(true, Ordering::SeqCst);
    let sealed = |len: usize| {
        left.wire.left.lock().unwrap().clear();
        assert!(left.tun.send(&packet(1, 2, 0, 0, len)));
        left.wire.expect("datagram", |left| left.bytes.len() == len + 32).bytes
    };
    let delivered = |lens: &[usize]| {
        for &len in lens {
            assert_eq!(right.tun.receive(PATIENCE).map(|packet| packet.len()), Some(len));
        }
    };
    let drops = |reason, count| until("a drop", || right.device.drops(reason) == count);
    let first = sealed(304);
    stranger.send_train(&[&first[..], &sealed(304), &sealed(64)].concat(), 336);
    delivered(&[304, 304, 64]);
    stranger.send_train(&[&sealed(304)[..], &sealed(304), &[4, 0, 0, 0, 0, 0, 0]].concat(), 336);
    delivered(&[304, 304]);
    drops(Rejected::MalformedMessage, 1);
    // Room for a header, and none for a tag.
    stranger.send_train(&[&sealed(304)[..], &first[..31]].concat(), 336);
    delivered(&[304]);
    drops(Rejected::MalformedMessage, 2);
    let mut oversized = vec![0; 65_507];
    oversized[..16].copy_from_slice(&first[..16]);
    stranger.send(&oversized);
    drops(Rejected::BadTag, 1);
    stranger.send(&sealed(96));
    delivered(&[96]);
}

/// [KERNEL-ICMP] Whom no peer has is unreachable, and the local sender is told in its name.
#[test]
fn a_destination_without_a_peer_is_unreachable() {
    let (_network, left, right) = pair();
    shake_hands(&left, &right);
    let lost = packet(1, 77, 3, 0, 100);
    assert!(left.tun.send(&lost));
    let error = left.tun.receive(PATIENCE).expect("an ICMP error");
    let header = Header::parse(&error).unwrap();
    assert_eq!((header.source, header.destination), (IpAddr::from(inner(77)), IpAddr::from(inner(1))));
    assert_eq!((error[9], error[20]), (1, 3), "ICMP, destination unreachable");
    assert_eq!(error[28..48], lost[..20], "the header of the packet that it is about");
    assert_eq!(left.device.drops(Rejected::NoRoute), 1);
}
