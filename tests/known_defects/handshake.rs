//! Handshakes, cookies, and clocks.

use std::net::SocketAddr;
use std::time::Duration;

use adit::device::config::{PeerUpdate, Update};
use adit::key::{PresharedKey, PublicKey};
use adit::proto::cookie::{CookieChecker, CookieJar};
use adit::proto::messages::{COOKIE_REPLY_LEN, Message, RESPONSE_LEN, parse};
use adit::proto::peer::{Outcome, Peer, datagram_len};
use adit::proto::rejected::Rejected;
use adit::proto::time::{Instant, Now, UnixTime};
use adit::udp::memory::MemoryNetwork;
use getrandom::SysRng;
use rand_core::UnwrapErr;

use super::network::{
    BETWEEN_INITIATIONS, Host, Somebody, eventually, inner, key, outer, outer_v6, packet, pair, pass, peer,
};

const TEN_YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Both clocks at so long after an arbitrary beginning.
fn at(elapsed: Duration) -> Now {
    Now { instant: Instant::from_nanos(0) + elapsed, unix: UnixTime(secs(1_700_000_000) + elapsed) }
}

fn rng() -> UnwrapErr<SysRng> {
    UnwrapErr(SysRng)
}

/// A peer of `own` towards `other`, which knows where that is.
fn end(own: u16, other: u8) -> Peer {
    let mut peer = Peer::new(key(own), key(other.into()).public_key());
    peer.set_endpoint(outer(other));
    peer
}

/// What sending `text` puts on the wire at once.
fn send(end: &mut Peer, text: &[u8], now: Now) -> Vec<u8> {
    let mut out = vec![0; datagram_len(1420)];
    match end.encapsulate(&packet(inner(1), inner(2), text), &mut out, now, &mut rng()) {
        Ok(Outcome::Send(datagram)) => datagram.bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

/// What a datagram makes its receiver send.
fn answer(end: &mut Peer, from: SocketAddr, mut datagram: Vec<u8>, now: Now) -> Vec<u8> {
    let mut out = vec![0; datagram_len(1420)];
    match end.decapsulate(from, &mut datagram, &mut out, now, &mut rng()) {
        Ok(Outcome::Send(datagram)) => datagram.bytes.to_vec(),
        other => panic!("{other:?}"),
    }
}

fn is_delivered(end: &mut Peer, from: SocketAddr, mut datagram: Vec<u8>, now: Now) -> bool {
    let mut out = vec![0; datagram_len(1420)];
    matches!(end.decapsulate(from, &mut datagram, &mut out, now, &mut rng()), Ok(Outcome::Deliver(_)))
}

/// A handshake of 1 with 2, and the packet that it was for.
fn shake_hands(one: &mut Peer, two: &mut Peer, now: Now) {
    let initiation = send(one, b"first", now);
    let response = answer(two, outer(1), initiation, now);
    let data = answer(one, outer(2), response, now);
    assert!(is_delivered(two, outer(1), data, now));
}

/// Cookies are for load, not for whoever comes after a number of others.
#[test]
fn every_handshake_after_the_100th_gets_a_cookie() {
    const HANDSHAKES: u16 = 150;
    let network = MemoryNetwork::new();
    let (one, mut others) = (Host::new(&network, 1), Somebody::at(&network, outer(9)));
    let peers = (0..HANDSHAKES).map(|number| PeerUpdate::new(key(100 + number).public_key())).collect();
    one.device.apply(Update { peers, ..Update::default() }).unwrap();
    for number in 0..HANDSHAKES {
        others.send(outer(1), &send(&mut end(100 + number, 1), b"", at(secs(1))));
        assert_eq!(others.hear().len(), RESPONSE_LEN, "device, handshake {number}");
    }

    let mut two = end(2, 1);
    for number in 0..HANDSHAKES {
        let now = at(secs(6) * u32::from(number));
        let initiation = send(&mut end(1, 2), b"", now);
        assert_eq!(answer(&mut two, outer(1), initiation, now).len(), RESPONSE_LEN, "peer, handshake {number}");
    }
}

/// Whoever demands a cookie under load, for messages of both kinds and sources of both families, goes on.
#[test]
fn panic_on_the_cookie_path() {
    let network = MemoryNetwork::new();
    let (one, two) = pair(&network);
    one.add(peer(3));
    let initiation = send(&mut end(77, 1), b"", at(secs(1)));
    // A response to a handshake that there is; nobody answers it truly.
    let response = || {
        let mut response = vec![0; RESPONSE_LEN];
        response[0] = 2;
        response[8..12].copy_from_slice(&one.wire.expect(1, None)[4..8]);
        CookieJar::new().add_macs(&key(1).public_key(), &mut response, Instant::from_nanos(0));
        response
    };
    one.send(3, "to nobody");
    for (from, to) in [(outer(9), outer(1)), (outer_v6(9), outer_v6(1))] {
        let mut somebody = Somebody::at(&network, from);
        let make: [&dyn Fn() -> Vec<u8>; 2] = [&|| initiation.clone(), &response];
        for make in make {
            eventually("a cookie reply", || {
                let message = make();
                (0..1000).for_each(|_| somebody.send(to, &message));
                somebody.heard().iter().any(|reply| reply.len() == COOKIE_REPLY_LEN)
            });
            // Replies to this kind are not to be taken for those to the next.
            eventually("an idle device", || one.device.figures().handshakes_queued == 0);
            while !somebody.heard().is_empty() {}
        }
    }
    assert!(one.device.drops(Rejected::CookieRequired) > 0);
    pass(&two, &one, "under load");
    assert!(one.device.is_running());
}

/// A cookie reply proves nothing about where the peer is, even one that is right.
#[test]
fn roaming_on_cookie_replies() {
    let network = MemoryNetwork::new();
    let (one, mut somebody) = (Host::new(&network, 1), Somebody::at(&network, outer(9)));
    one.add(peer(2));
    one.send(2, "first");
    let initiation = one.wire.expect(1, None);
    let Ok(Message::Initiation(message)) = parse(&initiation) else { panic!("no initiation") };
    let now = Instant::from_nanos(0);
    let mut checker = CookieChecker::new(&key(2).public_key(), now, &mut rng());
    let reply = checker.create_reply(message.mac1(), message.sender(), outer(1), now, &mut rng());
    somebody.send(outer(1), &reply);
    somebody.send(outer(1), &reply);
    // The second is no longer expected once the first was taken.
    eventually("the cookie is taken", || one.device.drops(Rejected::UnexpectedCookie) == 1);
    assert_eq!(one.peer().endpoint, Some(outer(2)));
}

/// A response is welcome for as long as nothing newer was asked for: paths by satellite are slow.
#[test]
fn responses_dropped_after_250_ms() {
    for way in [300, 1000, 2400] {
        let way = Duration::from_millis(way);
        let (mut one, mut two) = (end(1, 2), end(2, 1));
        let initiation = send(&mut one, b"first", at(secs(1)));
        let response = answer(&mut two, outer(1), initiation, at(secs(1) + way));
        let data = answer(&mut one, outer(2), response, at(secs(1) + 2 * way));
        assert!(is_delivered(&mut two, outer(1), data, at(secs(1) + 3 * way)), "{way:?} each way");
    }
}

/// Neither clock may go back, and both do somewhere; nothing breaks, and it goes on when they are right again.
#[test]
fn panic_when_the_clock_goes_back() {
    let (mut one, mut two) = (end(1, 2), end(2, 1));
    shake_hands(&mut one, &mut two, at(secs(1000)));
    for instant in [0, 5, 999] {
        let now = Now { instant: Instant::from_nanos(0) + secs(instant), unix: UnixTime(secs(instant)) };
        for end in [&mut one, &mut two] {
            end.handle_timeout(now);
            let mut out = vec![0; datagram_len(1420)];
            while end.poll_transmit(&mut out, now, &mut rng()).is_some() {}
            end.has_session(now.instant);
        }
        let data = send(&mut one, b"earlier", now);
        assert!(is_delivered(&mut two, outer(1), data, now), "at {instant} s");
        // Somebody's initiations, as many as make a load.
        for _ in 0..40 {
            let mut out = vec![0; datagram_len(1420)];
            let _ = two.decapsulate(outer(9), &mut send(&mut end(9, 2), b"", now), &mut out, now, &mut rng());
        }
    }
    let data = send(&mut one, b"now", at(secs(1001)));
    assert!(is_delivered(&mut two, outer(1), data, at(secs(1001))));
}

/// The wall clock is set on by years, and later back: sessions do not notice, and handshakes are accepted all the time.
#[test]
fn an_ntp_jump_makes_a_key_unusable() {
    let (mut one, mut two) = (end(1, 2), end(2, 1));
    let jumps = [secs(0), TEN_YEARS, secs(0), TEN_YEARS * 2, secs(3600)];
    for (session, ahead) in (0..).zip(jumps) {
        let now = |elapsed| {
            let Now { instant, unix } = at(secs(200) * session + elapsed);
            Now { instant, unix: UnixTime(unix.0 + ahead) }
        };
        if session > 0 {
            // The clock has jumped within the session before.
            let before = at(secs(200) * session - secs(100)).instant;
            let now = Now { instant: before, ..now(secs(0)) };
            let data = send(&mut one, b"on the old session", now);
            assert!(is_delivered(&mut two, outer(1), data, now), "{ahead:?} ahead");
        }
        let initiation = send(&mut one, b"first", now(secs(1)));
        assert_eq!(initiation[0], 1, "the session before has ended");
        let response = answer(&mut two, outer(1), initiation, now(secs(1)));
        assert_eq!(response.len(), RESPONSE_LEN, "{ahead:?} ahead");
        let data = answer(&mut one, outer(2), response, now(secs(1)));
        assert!(is_delivered(&mut two, outer(1), data, now(secs(1))));
    }
}

/// A preshared key that is set while a session lives is part of the next handshake.
#[test]
fn psk_change_not_propagated() {
    let network = MemoryNetwork::new();
    let (one, two) = pair(&network);
    pass(&one, &two, "before");
    let set = |host: &Host, other: PublicKey, key: u8| {
        let preshared_key = Some(PresharedKey::from_bytes([key; 32]));
        host.add(PeerUpdate { preshared_key, ..PeerUpdate::new(other) });
    };
    let handshake = || {
        std::thread::sleep(BETWEEN_INITIATIONS);
        // Another endpoint and the old one again: the next initiation need not wait for REKEY_TIMEOUT.
        one.add(PeerUpdate { endpoint: Some(outer(3)), ..PeerUpdate::new(key(2).public_key()) });
        one.add(peer(2));
        one.device.start_handshake(&key(2).public_key());
    };
    set(&one, key(2).public_key(), 7);
    handshake();
    eventually("a refused response", || one.device.drops(Rejected::BadTag) > 0);
    let before = one.peer().last_handshake;
    set(&two, key(1).public_key(), 7);
    handshake();
    eventually("a new session", || one.peer().last_handshake != before);
    pass(&one, &two, "after");
    assert_eq!(two.receive(Duration::ZERO), None);
}

/// Handshakes that fail leave nothing: not those that nobody answers, and not those of strangers.
#[test]
fn failed_handshake_peers_leaked() {
    let network = MemoryNetwork::new();
    let (one, mut strangers) = (Host::new(&network, 1), Somebody::at(&network, outer(9)));
    let nothing_is_left = || {
        let figures = one.device.figures();
        (figures.receiver_indices, figures.staged_bytes, figures.peers) == (0, 0, 0)
    };
    for _ in 0..200 {
        one.add(peer(2));
        // One that is read while the peer is added may still be dropped.
        eventually("an initiation", || {
            one.send(2, "to nobody");
            one.device.figures().receiver_indices == 1
        });
        one.add(PeerUpdate { remove: true, ..PeerUpdate::new(key(2).public_key()) });
        eventually("nothing is left", nothing_is_left);
    }
    for number in 100..400 {
        strangers.send(outer(1), &send(&mut end(number, 1), b"", at(secs(1))));
    }
    eventually("strangers", || one.device.drops(Rejected::UnknownPeer) == 300);
    assert!(nothing_is_left());
}
