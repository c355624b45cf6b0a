//! One peer in one object: against itself in virtual time, and against boringtun in both roles.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use adit::key::{PresharedKey, PrivateKey};
use adit::proto::constants::{REKEY_AFTER_TIME, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, STAGED_PACKETS_MAX};
use adit::proto::messages::{self, COOKIE_REPLY_LEN, DATA_OVERHEAD, INITIATION_LEN, Message, RESPONSE_LEN};
use adit::proto::peer::{Outcome, Peer, datagram_len};
use adit::proto::rejected::Rejected;
use adit::proto::time::{Instant, Now, UnixTime};
use boringtun::noise::{Tunn, TunnResult};

#[path = "simulation/rng.rs"]
mod rng;

use rng::TestRng;

const MTU: usize = 1420;
const PACKET_LEN: usize = 100;

fn at(since_start: Duration) -> Now {
    let start = Instant::from_nanos(1_000_000_000);
    Now { instant: start + since_start, unix: UnixTime(Duration::from_secs(1_700_000_000) + since_start) }
}

fn private_key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

fn address(number: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, number), 51820).into()
}

fn inner(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, number)
}

fn packet(from: u8, to: u8, mark: u8) -> Vec<u8> {
    let mut packet = vec![mark; PACKET_LEN];
    packet[..12].copy_from_slice(&[0x45, 0, 0, PACKET_LEN as u8, 0, 0, 0, 0, 64, 253, 0, 0]);
    packet[12..16].copy_from_slice(&inner(from).octets());
    packet[16..20].copy_from_slice(&inner(to).octets());
    packet
}

/// A peer on its own address, and what it has sent and delivered.
struct End {
    number: u8,
    peer: Peer,
    sent: Vec<(SocketAddr, Vec<u8>)>,
    delivered: Vec<Vec<u8>>,
    rng: TestRng,
}

impl End {
    fn new(number: u8, other: u8) -> Self {
        let peer = Peer::new(private_key(number), private_key(other).public_key());
        Self { number, peer, sent: Vec::new(), delivered: Vec::new(), rng: TestRng(number.into()) }
    }

    fn drain(&mut self, now: Now) {
        let mut out = vec![0; datagram_len(MTU)];
        while let Some(datagram) = self.peer.poll_transmit(&mut out, now, &mut self.rng) {
            self.sent.push((datagram.to, datagram.bytes.to_vec()));
        }
    }

    fn encapsulate(&mut self, packet: &[u8], now: Now) -> Result<(), Rejected> {
        let mut out = vec![0; datagram_len(MTU)];
        let outcome = self.peer.encapsulate(packet, &mut out, now, &mut self.rng)?;
        if let Outcome::Send(datagram) = outcome {
            self.sent.push((datagram.to, datagram.bytes.to_vec()));
        }
        self.drain(now);
        Ok(())
    }

    fn decapsulate(&mut self, from: SocketAddr, datagram: &[u8], now: Now) -> Result<(), Rejected> {
        let mut out = vec![0; datagram_len(MTU)];
        let mut datagram = datagram.to_vec();
        match self.peer.decapsulate(from, &mut datagram, &mut out, now, &mut self.rng)? {
            Outcome::Send(datagram) => self.sent.push((datagram.to, datagram.bytes.to_vec())),
            Outcome::Deliver(packet) => {
                assert_eq!(packet.destination, IpAddr::V4(inner(self.number)));
                self.delivered.push(packet.bytes.to_vec());
            }
            Outcome::Done => {}
        }
        self.drain(now);
        Ok(())
    }

    fn handle_timeout(&mut self, now: Now) {
        self.peer.handle_timeout(now);
        self.drain(now);
    }
}

/// Carries datagrams both ways until nobody sends any more.
fn settle(ends: &mut [End; 2], now: Now) {
    loop {
        let mut moved = false;
        for sender in 0..2 {
            let from = address(ends[sender].number);
            for (_, datagram) in std::mem::take(&mut ends[sender].sent) {
                moved = true;
                ends[1 - sender].decapsulate(from, &datagram, now).expect("what a peer sends is welcome");
            }
        }
        if !moved {
            return;
        }
    }
}

/// Two ends, of which the first knows where the second is.
fn ends() -> [End; 2] {
    let mut ends = [End::new(1, 2), End::new(2, 1)];
    ends[0].peer.set_endpoint(address(2));
    ends
}

/// Handles each timer at its time until `end`; what is sent arrives, or is lost.
fn run_until(ends: &mut [End; 2], end: Duration, arrives: bool) -> Vec<usize> {
    let mut lost = Vec::new();
    loop {
        let next = ends.iter().filter_map(|end| end.peer.poll_timeout()).min();
        let Some(next) = next.filter(|next| *next <= at(end).instant) else { return lost };
        let now = at(next.since(at(Duration::ZERO).instant));
        ends.iter_mut().for_each(|end| end.handle_timeout(now));
        if arrives {
            settle(ends, now);
        } else {
            lost.extend(ends.iter_mut().flat_map(|end| end.sent.drain(..)).map(|(_, datagram)| datagram.len()));
        }
    }
}

#[test]
fn a_packet_begins_a_session_and_follows_it() {
    let mut ends = ends();
    let now = at(Duration::ZERO);
    assert_eq!(ends[1].encapsulate(&packet(2, 1, 9), now), Err(Rejected::NoEndpoint));
    assert_eq!(ends[0].encapsulate(&[1, 2, 3], now), Err(Rejected::MalformedOutbound));
    for mark in 0..5 {
        ends[0].encapsulate(&packet(1, 2, mark), now).unwrap();
    }
    assert_eq!(ends[0].sent.len(), 1, "one initiation, whatever waits for it");
    assert_eq!(ends[0].peer.staged(), 5);
    settle(&mut ends, now);
    assert_eq!(ends[1].delivered, (0..5).map(|mark| packet(1, 2, mark)).collect::<Vec<_>>(), "all, and in order");
    assert_eq!(ends[1].peer.endpoint(), Some(address(1)), "heard from there");
    assert!(ends[1].peer.last_handshake().is_some());

    ends[1].encapsulate(&packet(2, 1, 7), now).unwrap();
    let (to, datagram) = ends[1].sent[0].clone();
    assert_eq!((to, datagram.len()), (address(1), PACKET_LEN.next_multiple_of(16) + DATA_OVERHEAD));
    settle(&mut ends, now);
    assert_eq!(ends[0].delivered, [packet(2, 1, 7)]);
    assert_eq!(ends[0].peer.rx_bytes(), ends[1].peer.tx_bytes());
    assert_eq!(ends[1].peer.rx_bytes(), ends[0].peer.tx_bytes());

    // What came once does not come again, and what was changed on the way changes nothing.
    assert_eq!(ends[0].decapsulate(address(9), &datagram, now), Err(Rejected::ReplayedCounter));
    let mut forged = datagram.clone();
    forged[20] ^= 1;
    assert_eq!(ends[0].decapsulate(address(9), &forged, now), Err(Rejected::BadTag));
    assert_eq!(ends[0].peer.endpoint(), Some(address(2)));
    let stranger = [&4_u32.to_le_bytes()[..], &[0; 40]].concat();
    assert_eq!(ends[0].decapsulate(address(9), &stranger, now), Err(Rejected::UnknownIndex));
    assert_eq!(ends[0].decapsulate(address(9), b"hello", now), Err(Rejected::MalformedMessage));

    // The true one from elsewhere moves the endpoint.
    ends[1].encapsulate(&packet(2, 1, 8), now).unwrap();
    let (_, datagram) = ends[1].sent.pop().unwrap();
    ends[0].decapsulate(address(9), &datagram, now).unwrap();
    assert_eq!(ends[0].peer.endpoint(), Some(address(9)));
}

/// Padding is zeros, and nothing of what was in the caller's buffer before. [WP 5.4.6]
#[test]
fn padding_shows_nothing() {
    let (mut rng, now) = (TestRng(3), at(Duration::ZERO));
    let mut left = Peer::new(private_key(1), private_key(2).public_key());
    let mut right = Peer::new(private_key(2), private_key(1).public_key());
    left.set_endpoint(address(2));
    let (mut out, mut answer) = ([0xaa; 256], [0xaa; 256]);
    fn sent(outcome: Result<Outcome<'_>, Rejected>) -> Vec<u8> {
        match outcome {
            Ok(Outcome::Send(datagram)) => datagram.bytes.to_vec(),
            other => panic!("{other:?}"),
        }
    }
    let packet = [&packet(1, 2, 7)[..3], &[21], &packet(1, 2, 7)[4..20], &[7]].concat();
    let mut initiation = sent(left.encapsulate(&packet, &mut out, now, &mut rng));
    let mut response = sent(right.decapsulate(address(1), &mut initiation, &mut answer, now, &mut rng));
    out.fill(0xaa);
    let mut data = sent(left.decapsulate(address(2), &mut response, &mut out, now, &mut rng));
    let delivered = right.decapsulate(address(1), &mut data, &mut answer, now, &mut rng);
    assert!(matches!(delivered, Ok(Outcome::Deliver(_))));
    assert_eq!(data[16..16 + 32], [&packet[..], &[0; 11]].concat(), "opened where it lies");
}

#[test]
fn what_waits_is_bounded_and_given_up() {
    let mut ends = ends();
    for mark in 0..=u8::try_from(STAGED_PACKETS_MAX).unwrap() {
        ends[0].encapsulate(&packet(1, 2, mark), at(Duration::ZERO)).unwrap();
    }
    assert_eq!((ends[0].peer.staged(), ends[0].peer.staged_dropped()), (STAGED_PACKETS_MAX, 1));
    ends[0].sent.clear();
    let lost = run_until(&mut ends, REKEY_ATTEMPT_TIME + 4 * REKEY_TIMEOUT, false);
    assert_eq!(lost, [INITIATION_LEN; 19], "20 initiations in all");
    assert_eq!((ends[0].peer.staged(), ends[0].peer.staged_dropped()), (0, STAGED_PACKETS_MAX as u64 + 1));
    let lost = run_until(&mut ends, Duration::from_secs(3600), false);
    assert_eq!((lost, ends[0].peer.poll_timeout()), (vec![], None), "given up, and silent");
}

#[test]
fn sessions_are_renewed_and_idle_becomes_silent() {
    let mut ends = ends();
    let mut session = Duration::ZERO;
    ends[0].encapsulate(&packet(1, 2, 0), at(session)).unwrap();
    settle(&mut ends, at(session));
    // A packet each second for an hour: all arrive, whichever session they are on.
    let mut renewed = 0;
    for second in 1..=3600 {
        let now = Duration::from_secs(second);
        run_until(&mut ends, now, true);
        let before = ends[0].peer.last_handshake();
        ends[0].encapsulate(&packet(1, 2, 1), at(now)).unwrap();
        settle(&mut ends, at(now));
        if ends[0].peer.last_handshake() != before {
            assert!(now - session >= REKEY_AFTER_TIME, "renewed after {:?}", now - session);
            (session, renewed) = (now, renewed + 1);
        }
        assert_eq!(ends[1].delivered.len() as u64, second + 1, "at {now:?}");
    }
    assert!((28..=30).contains(&renewed), "{renewed} renewals in an hour");
    run_until(&mut ends, Duration::from_secs(3600 * 3), true);
    assert_eq!(ends.map(|end| end.peer.poll_timeout()), [None, None]);
}

#[test]
fn a_persistent_keepalive_begins_and_keeps_a_session() {
    let mut ends = ends();
    ends[0].peer.set_persistent_keepalive(25);
    ends[0].drain(at(Duration::ZERO));
    assert_eq!(ends[0].sent.len(), 1, "an initiation, without any packet");
    settle(&mut ends, at(Duration::ZERO));
    run_until(&mut ends, Duration::from_secs(600), true);
    let Now { instant, unix } = at(Duration::from_secs(600));
    assert!(ends[1].peer.has_session(instant));
    assert!(unix.0 - ends[1].peer.last_handshake().unwrap().0 < Duration::from_secs(180));
    assert!(ends[0].delivered.is_empty() && ends[1].delivered.is_empty());

    ends[0].peer.clear();
    assert!(!ends[0].peer.has_session(instant));
    assert_eq!(ends[0].peer.poll_timeout(), None);
}

/// [WP 5.3] Many initiations in one second: the next ones are asked for their address first.
#[test]
fn s_30_a_flood_is_answered_with_cookies() {
    let [_, mut right] = ends();
    let mut answers = Vec::new();
    for number in 0..40 {
        let now = at(Duration::from_millis(number));
        answers.push(right.decapsulate(address(66), &strangers_initiation(1000 + number, now), now));
    }
    assert_eq!(answers[..20], [Err(Rejected::UnknownPeer); 20]);
    assert_eq!(answers[20..], [Ok(()); 20]);
    assert!(right.sent.drain(..).all(|(to, reply)| to == address(66) && reply.len() == COOKIE_REPLY_LEN));

    // The peer takes its cookie, and comes again when its timer says so.
    let mut left = End::new(1, 2);
    left.peer.set_endpoint(address(2));
    let now = Duration::from_millis(100);
    left.encapsulate(&packet(1, 2, 0), at(now)).unwrap();
    let mut ends = [left, right];
    settle(&mut ends, at(now));
    assert!(!ends[0].peer.has_session(at(now).instant));
    // The flood goes on, so that the load stays.
    let again = ends[0].peer.poll_timeout().unwrap().since(at(Duration::ZERO).instant);
    for number in 0..40 {
        let _ = ends[1].decapsulate(address(66), &strangers_initiation(2000 + number, at(again)), at(again));
    }
    ends[1].sent.clear();
    run_until(&mut ends, again, true);
    assert!(ends[0].peer.has_session(at(again).instant));
    assert_eq!(ends[1].delivered.len(), 1);
}

/// An initiation of one who knows our key, but whose own is no peer's.
fn strangers_initiation(number: u64, now: Now) -> Vec<u8> {
    let mut stranger = End::new(100, 2);
    stranger.rng = TestRng(number);
    stranger.peer.set_endpoint(address(2));
    stranger.encapsulate(&packet(1, 2, 0), now).unwrap();
    stranger.sent.pop().unwrap().1
}

/// [WP 5.3] Twenty in a second are looked at; one more, and for a second cookies are demanded.
#[test]
fn load_lasts_a_second() {
    let [_, mut right] = ends();
    let mut numbers = 3000..;
    let mut check = |millis, count, asked_for_a_cookie| {
        let now = at(Duration::from_millis(millis));
        for number in numbers.by_ref().take(count) {
            let answer = right.decapsulate(address(66), &strangers_initiation(number, now), now);
            assert_eq!(answer, if asked_for_a_cookie { Ok(()) } else { Err(Rejected::UnknownPeer) }, "at {millis} ms");
        }
    };
    check(0, 20, false);
    check(1000, 20, false);
    check(1999, 1, true);
    check(2998, 1, true);
    check(2999, 1, false);
}

#[test]
fn datagrams_are_as_long_as_said() {
    for (packet_len, len) in [(0, 148), (112, 148), (113, 160), (128, 160), (1420, 1456), (1424, 1456)] {
        assert_eq!(datagram_len(packet_len), len, "for {packet_len} bytes");
    }
}

/// [WP 5.4.6] Padding makes no packet longer than the MTU.
#[test]
fn padding_ends_at_the_mtu() {
    let (mut ends, now) = (ends(), at(Duration::ZERO));
    assert_eq!(ends[0].peer.public_key(), private_key(2).public_key());
    for (mtu, len) in [(0, 112), (PACKET_LEN, PACKET_LEN), (PACKET_LEN + 1, PACKET_LEN + 1), (1420, 112)] {
        ends[0].peer.set_mtu(mtu);
        ends[0].encapsulate(&packet(1, 2, 0), now).unwrap();
        if mtu == 0 {
            settle(&mut ends, now);
            ends[0].encapsulate(&packet(1, 2, 0), now).unwrap();
        }
        assert_eq!(ends[0].sent.pop().unwrap().1.len(), len + DATA_OVERHEAD, "at MTU {mtu}");
    }
}

/// [WP 6.4] Who has a packet to send while a handshake goes unanswered wants it still: the attempts count anew.
#[test]
fn packets_prolong_the_attempts() {
    let mut ends = ends();
    let mut initiations = 0;
    for second in [0, 80, 160] {
        run_until(&mut ends, Duration::from_secs(second), false).iter().for_each(|_| initiations += 1);
        ends[0].encapsulate(&packet(1, 2, 0), at(Duration::from_secs(second))).unwrap();
        initiations += ends[0].sent.drain(..).count();
    }
    initiations += run_until(&mut ends, Duration::from_secs(160 + 90), false).len();
    assert!((45..=50).contains(&initiations), "{initiations} in 250 s, one in 5 s and up to a third");
}

/// [WP 6.2] Data that nobody answers begins a handshake after 15 s; a keepalive, which wants no answer, does not.
#[test]
fn unanswered_data_begins_a_handshake() {
    for (data, expected) in [(true, vec![INITIATION_LEN; 1]), (false, vec![])] {
        let mut ends = ends();
        let now = at(Duration::ZERO);
        ends[0].encapsulate(&packet(1, 2, 0), now).unwrap();
        settle(&mut ends, now);
        run_until(&mut ends, Duration::from_secs(30), true);
        let now = at(Duration::from_secs(30));
        if data {
            ends[0].encapsulate(&packet(1, 2, 0), now).unwrap();
        } else {
            ends[0].peer.set_persistent_keepalive(3600);
            ends[0].drain(now);
        }
        assert_eq!(ends[0].sent.drain(..).count(), 1);
        assert_eq!(run_until(&mut ends, Duration::from_secs(44), false), [0; 0]);
        assert_eq!(run_until(&mut ends, Duration::from_secs(49), false), expected, "data: {data}");
    }
}

/// [WP 6.2] Who began the session and only receives renews it in its last quarter of a minute, and no sooner.
#[test]
fn receiving_renews_near_the_end() {
    let mut ends = ends();
    ends[0].encapsulate(&packet(1, 2, 0), at(Duration::ZERO)).unwrap();
    settle(&mut ends, at(Duration::ZERO));
    let begun = ends[0].peer.last_handshake();
    for (second, renewed) in [(10, false), (60, false), (164, false), (165, true)] {
        let now = Duration::from_secs(second);
        run_until(&mut ends, now, true);
        ends[1].encapsulate(&packet(2, 1, 0), at(now)).unwrap();
        settle(&mut ends, at(now));
        assert_eq!(ends[0].peer.last_handshake() != begun, renewed, "at {second} s");
    }
}

/// An index is owned from the message that names it first until nothing answers to it, also where both began at once.
#[test]
fn indices_are_owned_while_they_name_something() {
    fn index(datagram: &[u8]) -> u32 {
        match messages::parse(datagram) {
            Ok(Message::Initiation(message)) => message.sender(),
            Ok(Message::Response(message)) => message.sender(),
            other => panic!("{other:?}"),
        }
    }
    let mut unanswered = End::new(1, 2);
    unanswered.peer.set_endpoint(address(2));
    unanswered.encapsulate(&packet(1, 2, 0), at(Duration::ZERO)).unwrap();
    let due = unanswered.peer.poll_timeout().unwrap().since(at(Duration::ZERO).instant);
    unanswered.handle_timeout(at(due));
    let [first, second] = [0, 1].map(|position: usize| index(&unanswered.sent[position].1));
    assert!(!unanswered.peer.owns_index(first) && unanswered.peer.owns_index(second), "the second took its place");

    let (mut ends, now) = (ends(), at(Duration::ZERO));
    ends[1].peer.set_endpoint(address(1));
    ends[0].encapsulate(&packet(1, 2, 0), now).unwrap();
    ends[1].encapsulate(&packet(2, 1, 0), now).unwrap();
    let [from_left, from_right] = [0, 1].map(|end: usize| ends[end].sent[0].1.clone());
    assert!(ends[0].peer.owns_index(index(&from_left)) && !ends[0].peer.owns_index(index(&from_right)));
    ends[1].sent.clear();
    ends[1].decapsulate(address(1), &from_left, now).unwrap();
    let response = ends[1].sent[0].1.clone();
    assert!(ends[1].peer.owns_index(index(&from_right)), "which still waits for its response");
    assert!(ends[1].peer.owns_index(index(&response)));

    ends[0].sent.clear();
    settle(&mut ends, now);
    assert_eq!((ends[0].delivered.len(), ends[1].delivered.len()), (1, 1));
    assert!(ends[0].peer.owns_index(index(&from_left)), "which names the session");
    ends.iter_mut().for_each(|end| end.peer.clear());
    assert!(!ends[0].peer.owns_index(index(&from_left)));
    assert!(!ends[1].peer.owns_index(index(&from_right)) && !ends[1].peer.owns_index(index(&response)));
}

#[test]
fn keys_can_change() {
    let mut ends = ends();
    let now = at(Duration::ZERO);
    for end in &mut ends {
        end.peer.set_preshared_key(PresharedKey::from_bytes([7; 32]));
    }
    ends[0].encapsulate(&packet(1, 2, 1), now).unwrap();
    settle(&mut ends, now);
    assert_eq!(ends[1].delivered.len(), 1);
    // A peer of another key begins anew at once.
    let now = at(Duration::from_secs(1));
    ends[0].peer.set_private_key(private_key(3));
    ends[1].peer = Peer::new(private_key(2), private_key(3).public_key());
    ends[1].peer.set_preshared_key(PresharedKey::from_bytes([7; 32]));
    ends[0].encapsulate(&packet(1, 2, 2), now).unwrap();
    settle(&mut ends, now);
    assert_eq!(ends[1].delivered.len(), 2);
}

// --- boringtun -------------------------------------------------------------------------------

fn boringtun(number: u8, other: u8, psk: Option<[u8; 32]>) -> Tunn {
    let private = boringtun::x25519::StaticSecret::from([number; 32]);
    let public = boringtun::x25519::PublicKey::from(*private_key(other).public_key().as_bytes());
    Tunn::new(private, public, psk, None, 5, None)
}

/// What boringtun sends and delivers of one datagram, and of those that it asks to be called again for.
fn theirs(tunn: &mut Tunn, datagram: &[u8]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let (mut sent, mut delivered) = (Vec::new(), Vec::new());
    let mut out = [0; 2048];
    let mut input = datagram;
    loop {
        match tunn.decapsulate(Some(address(2).ip()), input, &mut out) {
            TunnResult::WriteToNetwork(message) => sent.push(message.to_vec()),
            TunnResult::WriteToTunnelV4(packet, _) => {
                delivered.push(packet.to_vec());
                return (sent, delivered);
            }
            TunnResult::Done => return (sent, delivered),
            other => panic!("{other:?}"),
        }
        input = &[];
    }
}

/// Now, as boringtun reads it: it compares timestamps with its own clock.
fn wall_clock() -> Now {
    let unix = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap();
    Now { unix: UnixTime(unix), ..at(Duration::ZERO) }
}

#[track_caller]
fn check_boringtun(psk: Option<[u8; 32]>, we_initiate: bool) {
    let mut ours = End::new(1, 2);
    let mut tunn = boringtun(2, 1, psk);
    ours.peer.set_preshared_key(PresharedKey::from_bytes(psk.unwrap_or_default()));
    ours.peer.set_endpoint(address(2));
    let now = wall_clock();
    let mut out = [0; 2048];
    let mut delivered = Vec::new();
    let mut exchange = |ours: &mut End, tunn: &mut Tunn| {
        while !ours.sent.is_empty() {
            for (_, datagram) in std::mem::take(&mut ours.sent) {
                let (answers, packets) = theirs(tunn, &datagram);
                delivered.extend(packets);
                for answer in answers {
                    ours.decapsulate(address(2), &answer, now).unwrap();
                }
            }
        }
    };
    if we_initiate {
        ours.encapsulate(&packet(1, 2, 1), now).unwrap();
        exchange(&mut ours, &mut tunn);
    } else {
        let TunnResult::WriteToNetwork(initiation) = tunn.encapsulate(&packet(2, 1, 1), &mut out) else {
            panic!("an initiation")
        };
        assert_eq!(initiation.len(), INITIATION_LEN);
        ours.decapsulate(address(2), initiation, now).unwrap();
        assert_eq!(ours.sent[0].1.len(), RESPONSE_LEN);
        exchange(&mut ours, &mut tunn);
        assert_eq!(ours.delivered, [packet(2, 1, 1)], "what waited there");
        ours.encapsulate(&packet(1, 2, 1), now).unwrap();
        exchange(&mut ours, &mut tunn);
    }
    ours.delivered.clear();
    let TunnResult::WriteToNetwork(data) = tunn.encapsulate(&packet(2, 1, 3), &mut out) else { panic!("data") };
    assert!(matches!(messages::parse(data), Ok(Message::Data(_))));
    ours.decapsulate(address(2), data, now).unwrap();
    assert_eq!(ours.delivered, [packet(2, 1, 3)]);
    assert_eq!(delivered, [packet(1, 2, 1)]);
}

#[test]
fn with_boringtun() {
    check_boringtun(None, true);
    check_boringtun(None, false);
    check_boringtun(Some([9; 32]), true);
    check_boringtun(Some([9; 32]), false);
}
