//! Two tunnels, message by message: what each verb changes, and that every index is released once.

use super::*;
use crate::key::PrivateKey;
use crate::proto::constants::{REJECT_AFTER_TIME, REKEY_TIMEOUT_JITTER_MAX, ZERO_KEY_MATERIAL_AFTER};
use crate::proto::messages::{self, Message};
use crate::proto::test_rng::TestRng;
use crate::proto::time::UnixTime;
use crate::proto::timers::Timer;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

fn at(millis: u64) -> Now {
    let passed = Duration::from_millis(millis);
    let (start, epoch) = (Instant::from_nanos(1_000_000_000), UnixTime(Duration::from_secs(1_700_000_000)));
    Now { instant: start + passed, unix: UnixTime(epoch.0 + passed) }
}

/// One side: its tunnel, and the indices that it has given out and not got back.
struct Side {
    identity: Identity,
    tunnel: Tunnel,
    indices: BTreeSet<u32>,
    next_index: u32,
    rng: TestRng,
}

/// A pair whose first side has the greater public key.
fn pair() -> (Side, Side) {
    let mut rng = TestRng(1);
    let mut keys = [PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng)];
    keys.sort_by_key(|key| core::cmp::Reverse(key.public_key()));
    let [a, b] = keys;
    let (a_public, b_public) = (a.public_key(), b.public_key());
    let side = |private, remote, seed: u32| Side {
        identity: Identity::new(private),
        tunnel: Tunnel::new(remote, PresharedKey::default()),
        indices: BTreeSet::new(),
        next_index: seed * 1000,
        rng: TestRng(u64::from(seed)),
    };
    (side(a, b_public, 1), side(b, a_public, 2))
}

impl Side {
    fn index(&mut self) -> u32 {
        self.next_index += 1;
        self.indices.insert(self.next_index);
        self.next_index
    }

    fn initiate(&mut self, retry: bool, now: Now) -> Result<[u8; INITIATION_LEN], Rejected> {
        let index = self.index();
        let message = self.tunnel.create_initiation(&self.identity, index, retry, now, &mut self.rng);
        if message.is_err() {
            self.indices.remove(&index);
        }
        message
    }

    fn consume_initiation(&mut self, message: &[u8], now: Now) -> Result<Authenticated, Rejected> {
        let Ok(Message::Initiation(message)) = messages::parse(message) else { panic!("no initiation") };
        let opened = self.identity.open_initiation(&message)?;
        self.tunnel.consume_initiation(&self.identity, opened, now.instant)
    }

    fn answer(&mut self, message: &[u8], now: Now) -> Result<[u8; RESPONSE_LEN], Rejected> {
        self.consume_initiation(message, now)?;
        let index = self.index();
        let (message, keypair) = self.tunnel.create_response(&self.identity, index, now, &mut self.rng)?;
        assert_eq!(keypair.local_index(), index);
        Ok(message)
    }

    fn consume_response(&mut self, message: &[u8], now: Now) -> Result<Arc<Keypair>, Rejected> {
        let Ok(Message::Response(message)) = messages::parse(message) else { panic!("no response") };
        self.tunnel.consume_response(&self.identity, &message, now).map(|(_, keypair)| keypair)
    }

    /// Drains the events. Each release is of an index that was given out and is not yet back.
    fn events(&mut self) -> Vec<TunnelEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.tunnel.poll_event() {
            match event {
                TunnelEvent::ReleaseIndex(index) => assert!(self.indices.remove(&index), "{index} released twice"),
                other => events.push(other),
            }
        }
        events
    }

    fn current(&self) -> &Arc<Keypair> {
        self.tunnel.current().expect("a session")
    }

    /// The other side's keypair of the same session.
    fn confirmed_by(&mut self, other: &Side, now: Now) -> bool {
        self.tunnel.confirm(other.current().remote_index(), now)
    }
}

fn handshake(a: &mut Side, b: &mut Side, now: Now) {
    let initiation = a.initiate(false, now).unwrap();
    let response = b.answer(&initiation, now).unwrap();
    a.consume_response(&response, now).unwrap();
    assert!(b.confirmed_by(a, now));
}

fn same_session(a: &Side, b: &Side) -> bool {
    a.current().local_index() == b.current().remote_index() && b.current().local_index() == a.current().remote_index()
}

#[test]
fn an_idle_configured_peer_is_small() {
    let (tunnel, timers) = (size_of::<Tunnel>(), size_of::<Timers>() + 2 * size_of::<usize>());
    assert!(tunnel + timers <= 600, "{tunnel} + {timers}");
    let (a, _) = pair();
    assert_eq!(a.tunnel.poll_timeout(), None, "and silent");
}

/// [WP 5.4] One handshake, what it tells its owner, and the timers that it leaves.
#[test]
fn one_handshake() {
    let (mut a, mut b) = pair();
    let initiation = a.initiate(false, at(0)).unwrap();
    assert!(a.tunnel.timers().deadline(Timer::RetransmitHandshake).is_some());
    let response = b.answer(&initiation, at(10)).unwrap();
    assert_eq!((b.tunnel.current().is_none(), b.events()), (true, Vec::new()), "not before it is confirmed");
    let keypair = a.consume_response(&response, at(20)).unwrap();
    assert!(keypair.is_initiator() && Arc::ptr_eq(&keypair, a.current()));
    assert_eq!(a.events(), [TunnelEvent::CurrentChanged, TunnelEvent::SendKeepalive]);
    assert!(!b.tunnel.confirm(4711, at(30)));
    assert!(b.confirmed_by(&a, at(30)));
    assert!(!b.confirmed_by(&a, at(31)), "once");
    assert_eq!(b.events(), [TunnelEvent::CurrentChanged, TunnelEvent::SendStaged]);
    assert!(same_session(&a, &b));
    assert_eq!(a.tunnel.timers().last_handshake(), Some(at(20).unix));
    assert_eq!(b.tunnel.timers().last_handshake(), Some(at(30).unix));
    assert_eq!(a.tunnel.poll_timeout(), Some(at(20).instant + ZERO_KEY_MATERIAL_AFTER));
    assert_eq!(b.tunnel.poll_timeout(), Some(at(10).instant + ZERO_KEY_MATERIAL_AFTER));
    assert_eq!((a.indices.len(), b.indices.len()), (1, 1), "the handshake's index is the keypair's");
}

/// [WP 5.1] What was consumed once is refused ever after, and changes nothing.
#[test]
fn s_04_s_08_replayed_messages_are_refused() {
    let (mut a, mut b) = pair();
    let initiation = a.initiate(false, at(0)).unwrap();
    let response = b.answer(&initiation, at(10)).unwrap();
    assert_eq!(b.consume_initiation(&initiation, at(100)), Err(Rejected::ReplayedTimestamp));
    a.consume_response(&response, at(20)).unwrap();
    assert_eq!(a.consume_response(&response, at(30)).map(|_| ()), Err(Rejected::NoHandshake));
    assert!(b.confirmed_by(&a, at(40)));
    assert!(same_session(&a, &b));
}

/// [WP 6.1] At most one initiation in 5 s, whoever asks; sending a response counts too.
#[test]
fn initiations_are_held_back() {
    let (mut a, mut b) = pair();
    let initiation = a.initiate(false, at(0)).unwrap();
    assert_eq!(a.initiate(false, at(4_999)), Err(Rejected::HandshakeTooSoon));
    assert!(a.initiate(true, at(5_000)).is_ok());
    a.events();
    assert_eq!(a.indices.len(), 1, "the first one's index was released");
    b.answer(&initiation, at(5_100)).unwrap();
    assert_eq!(b.initiate(false, at(10_000)), Err(Rejected::HandshakeTooSoon));
    b.tunnel.allow_initiation_now();
    assert!(b.initiate(false, at(10_000)).is_ok());
}

/// [WP 6.4] 20 initiations, about 100 s, then silence; staged packets are dropped.
#[test]
fn gives_up() {
    let (mut a, _) = pair();
    let mut sent = 1;
    a.initiate(false, at(0)).unwrap();
    let gave_up = loop {
        let now = a.tunnel.poll_timeout().unwrap();
        a.tunnel.handle_timeout(now);
        match a.events()[..] {
            [TunnelEvent::ClearSource, TunnelEvent::SendInitiation { retry: true }] => {
                let now = Now { instant: now, ..at(sent * 5000) };
                a.initiate(true, now).unwrap();
                a.events();
                sent += 1;
            }
            [TunnelEvent::PurgeStaged, TunnelEvent::HandshakeFailed] => break now.since(at(0).instant),
            ref other => panic!("{other:?}"),
        }
    };
    assert_eq!(sent, 20);
    assert!((100..107).contains(&gave_up.as_secs()), "{gave_up:?}");
    let zero = a.tunnel.poll_timeout().unwrap();
    assert_eq!(zero.since(at(0).instant), gave_up + ZERO_KEY_MATERIAL_AFTER);
    a.tunnel.handle_timeout(zero);
    assert_eq!(a.events(), [TunnelEvent::PurgeStaged]);
    assert_eq!((a.indices.len(), a.tunnel.poll_timeout()), (0, None));
}

/// S-12 [WP 6.3] At 540 s all keys are gone, and every index is back.
#[test]
fn s_12_zeroing() {
    let (mut a, mut b) = pair();
    handshake(&mut a, &mut b, at(0));
    handshake(&mut a, &mut b, at(6_000));
    let keypair = Arc::downgrade(a.current());
    a.events();
    b.events();
    assert_eq!((a.indices.len(), b.indices.len()), (2, 1 + 1));
    for side in [&mut a, &mut b] {
        let zero = side.tunnel.poll_timeout().unwrap();
        assert_eq!(zero, at(6_000).instant + ZERO_KEY_MATERIAL_AFTER);
        side.tunnel.handle_timeout(zero);
        assert_eq!(side.events(), [TunnelEvent::CurrentChanged, TunnelEvent::PurgeStaged]);
        assert_eq!((side.indices.len(), side.tunnel.poll_timeout()), (0, None));
        assert!(side.tunnel.current().is_none());
    }
    assert!(keypair.upgrade().is_none(), "nobody holds the keys");
}

#[test]
fn clear_stops_everything() {
    let (mut a, mut b) = pair();
    handshake(&mut a, &mut b, at(0));
    a.events();
    a.initiate(false, at(6_000)).unwrap();
    a.tunnel.clear();
    assert_eq!(a.events(), [TunnelEvent::CurrentChanged, TunnelEvent::PurgeStaged]);
    assert_eq!((a.indices.len(), a.tunnel.poll_timeout()), (0, None));
    assert!(a.initiate(false, at(6_001)).is_ok(), "and may begin anew at once");
}

/// The next handshake uses a new preshared key; the live session goes on.
#[test]
fn preshared_key_change() {
    let (mut a, mut b) = pair();
    handshake(&mut a, &mut b, at(0));
    let key = || PresharedKey::from_bytes([7; 32]);
    a.tunnel.set_preshared_key(key());
    assert!(a.current().may_send(at(1).instant) && same_session(&a, &b));
    let initiation = a.initiate(false, at(6_000)).unwrap();
    let response = b.answer(&initiation, at(6_000)).unwrap();
    assert_eq!(a.consume_response(&response, at(6_000)).map(|_| ()), Err(Rejected::BadTag));
    b.tunnel.set_preshared_key(key());
    let initiation = a.initiate(false, at(12_000)).unwrap();
    let response = b.answer(&initiation, at(12_000)).unwrap();
    b.tunnel.set_preshared_key(key());
    a.consume_response(&response, at(12_000)).unwrap();
    assert!(b.confirmed_by(&a, at(12_000)));
}

/// A new private key: sending ends, receiving goes on, and the next handshake may begin at once.
#[test]
fn private_key_change() {
    let (mut a, mut b) = pair();
    handshake(&mut a, &mut b, at(0));
    a.events();
    a.initiate(false, at(5_000)).unwrap();
    let private = PrivateKey::generate(&mut a.rng);
    b.tunnel = Tunnel::new(private.public_key(), PresharedKey::default());
    a.identity = Identity::new(private);
    a.tunnel.identity_changed();
    assert_eq!(a.events(), []);
    assert_eq!(a.indices.len(), 1, "the handshake's index was released");
    assert!(!a.current().may_send(at(5_001).instant) && a.current().may_receive(at(5_001).instant).is_ok());
    handshake(&mut a, &mut b, at(5_001));
    assert!(same_session(&a, &b));
}

/// A peer whose public key is a low-order point never causes a datagram.
#[test]
fn s_10_low_order_peer() {
    let (mut a, _) = pair();
    a.tunnel = Tunnel::new(PublicKey::from_bytes([0; 32]), PresharedKey::default());
    assert_eq!(a.initiate(false, at(0)), Err(Rejected::LowOrderPoint));
    assert_eq!((a.events(), a.tunnel.poll_timeout()), (Vec::new(), None));
}

/// [WP 6.2] The responder's unconfirmed keypair dies as others do.
#[test]
fn an_unconfirmed_keypair_expires() {
    let (mut a, mut b) = pair();
    let initiation = a.initiate(false, at(0)).unwrap();
    b.answer(&initiation, at(0)).unwrap();
    let next = b.tunnel.keypairs().next().unwrap();
    assert!(next.may_receive(at(0).instant + REJECT_AFTER_TIME).is_err());
}

/// However the messages of crossed initiations arrive, or one is lost, both settle on one
/// session with one initiator, and no index is left over.
#[test]
fn s_14_crossed_initiations() {
    /// What reaches its side, in order: `Response` for the response to it, `Data` for data on the
    /// sender's current keypair.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        ResponseToA,
        ResponseToB,
        DataToA,
        DataToB,
    }
    use Step::*;
    let orders: &[&[Step]] = &[
        &[ResponseToA, ResponseToB, DataToA, DataToB],
        &[ResponseToA, ResponseToB, DataToB, DataToA],
        &[ResponseToB, ResponseToA, DataToA, DataToB],
        &[ResponseToB, ResponseToA, DataToB, DataToA],
        &[ResponseToB, DataToA, ResponseToA, DataToB],
        &[ResponseToA, DataToB, ResponseToB, DataToA],
        // One response is lost.
        &[ResponseToA, DataToB, DataToA],
        &[ResponseToB, DataToA, DataToB],
    ];
    for rekey in [false, true] {
        for order in orders {
            let (mut a, mut b) = pair();
            let mut start = 0;
            if rekey {
                handshake(&mut a, &mut b, at(0));
                start = 120_000;
            }
            let (from_a, from_b) = (a.initiate(false, at(start)).unwrap(), b.initiate(false, at(start)).unwrap());
            let old = rekey.then(|| (a.current().clone(), b.current().clone()));
            let to_b = a.answer(&from_b, at(start + 50)).unwrap();
            let to_a = b.answer(&from_a, at(start + 50)).unwrap();
            for step in *order {
                match step {
                    ResponseToA => drop(a.consume_response(&to_a, at(start + 100))),
                    ResponseToB => drop(b.consume_response(&to_b, at(start + 100))),
                    DataToA => drop(a.confirmed_by(&b, at(start + 150))),
                    DataToB => drop(b.confirmed_by(&a, at(start + 150))),
                }
                // What was sent on the old session before is under way until then.
                if let (ResponseToA | ResponseToB, Some((a_old, b_old))) = (step, &old) {
                    let now = at(start + 150).instant;
                    assert!(a_old.may_receive(now).is_ok() && b_old.may_receive(now).is_ok(), "{order:?}");
                }
            }
            assert!(same_session(&a, &b), "{order:?}");
            assert_ne!(a.current().is_initiator(), b.current().is_initiator(), "{order:?}");
            if let [ResponseToA, ResponseToB, ..] | [ResponseToB, ResponseToA, ..] = order {
                assert!(a.current().is_initiator(), "{order:?}: both were answered, and the greater key is preferred");
            }
            for side in [&mut a, &mut b] {
                side.events();
                assert_eq!(side.tunnel.timers().deadline(Timer::RetransmitHandshake), None, "{order:?}");
                side.tunnel.clear();
                side.events();
                assert!(side.indices.is_empty(), "{order:?}: {:?}", side.indices);
            }
        }
    }
}

/// [WP 6.4] Both responses to crossed initiations are lost. Neither side's retry falls due before
/// it may be sent, and one of them settles it.
#[test]
fn s_14_crossed_initiations_are_retried() {
    let (mut a, mut b) = pair();
    let (from_a, from_b) = (a.initiate(false, at(0)).unwrap(), b.initiate(false, at(0)).unwrap());
    a.answer(&from_b, at(400)).unwrap();
    b.answer(&from_a, at(400)).unwrap();
    for side in [&mut a, &mut b] {
        let due = side.tunnel.poll_timeout().expect("a retry");
        assert!(due >= at(5_400).instant && due < at(5_400).instant + REKEY_TIMEOUT_JITTER_MAX, "{due:?}");
        side.tunnel.handle_timeout(at(5_734).instant);
        let events = [TunnelEvent::ClearSource, TunnelEvent::SendInitiation { retry: true }];
        assert_eq!(side.events(), events);
    }
    let retry = a.initiate(true, at(5_734)).expect("not held back");
    let response = b.answer(&retry, at(5_750)).unwrap();
    a.consume_response(&response, at(5_770)).unwrap();
    assert!(b.confirmed_by(&a, at(5_790)));
    assert!(same_session(&a, &b));
}

/// A response with nothing of ours under way arms no retry.
#[test]
fn a_response_is_not_retried() {
    let (mut a, mut b) = pair();
    let initiation = a.initiate(false, at(0)).unwrap();
    b.answer(&initiation, at(50)).unwrap();
    assert_eq!(b.tunnel.timers().deadline(Timer::RetransmitHandshake), None);
}

/// The response to ours overtakes the peer's initiation, so that only the peer knows of the
/// crossing when ours is answered.
#[test]
fn s_14_an_overtaken_crossed_initiation() {
    for swap in [false, true] {
        let (mut a, mut b) = pair();
        if swap {
            core::mem::swap(&mut a, &mut b);
        }
        let (from_a, from_b) = (a.initiate(false, at(0)).unwrap(), b.initiate(false, at(0)).unwrap());
        let to_a = b.answer(&from_a, at(50)).unwrap();
        a.consume_response(&to_a, at(100)).unwrap();
        let to_b = a.answer(&from_b, at(110)).unwrap();
        b.consume_response(&to_b, at(150)).unwrap();
        // Each side's first data on what it sent on until then.
        let (from_a, from_b) = (a.current().remote_index(), b.current().remote_index());
        b.tunnel.confirm(from_a, at(160));
        a.tunnel.confirm(from_b, at(160));
        assert!(same_session(&a, &b), "swapped: {swap}");
        assert_ne!(a.current().is_initiator(), b.current().is_initiator());
    }
}

/// A response that comes after the peer has settled for its own handshake is refused.
#[test]
fn s_08_a_late_crossed_response_is_refused() {
    let (mut a, mut b) = pair();
    let (from_a, from_b) = (a.initiate(false, at(0)).unwrap(), b.initiate(false, at(0)).unwrap());
    let to_b = a.answer(&from_b, at(50)).unwrap();
    let to_a = b.answer(&from_a, at(50)).unwrap();
    assert_eq!(a.consume_response(&to_a, at(5_000)).map(|_| ()), Err(Rejected::NoHandshake));
    b.consume_response(&to_b, at(100)).unwrap();
    assert!(a.confirmed_by(&b, at(150)));
    assert_eq!(a.consume_response(&to_a, at(160)).map(|_| ()), Err(Rejected::NoHandshake));
    a.events();
    assert_eq!(a.indices.len(), 1, "the forgotten initiation's index was released");
}

/// A session that we responded to and that was never confirmed is only received on after one that we began, however
/// many of the peer's own initiations were answered before.
#[test]
fn an_unconfirmed_session_gives_way() {
    let (mut a, mut b) = pair();
    let initiation = a.initiate(false, at(0)).unwrap();
    b.answer(&initiation, at(0)).unwrap();
    let unconfirmed = b.tunnel.keypairs().next().unwrap().clone();
    let initiation = b.initiate(false, at(5_000)).unwrap();
    let response = a.answer(&initiation, at(5_000)).unwrap();
    b.consume_response(&response, at(5_050)).unwrap();
    assert!(b.tunnel.keypairs().next().is_none());
    assert!(b.tunnel.keypairs().previous().is_some_and(|previous| Arc::ptr_eq(previous, &unconfirmed)));
}

/// Nobody but us has settled for anything: the answer to an initiation that nothing crossed is taken until it is sent anew.
#[test]
fn a_late_response_is_taken() {
    let (mut a, mut b) = pair();
    let initiation = a.initiate(false, at(0)).unwrap();
    let response = b.answer(&initiation, at(5_100)).unwrap();
    assert!(a.consume_response(&response, at(5_200)).is_ok());
}

/// An initiation that has gone unanswered for REKEY_TIMEOUT gives way to the peer's.
#[test]
fn an_old_initiation_gives_way() {
    let (mut a, mut b) = pair();
    a.initiate(false, at(0)).unwrap();
    let initiation = b.initiate(false, at(5_000)).unwrap();
    let response = a.answer(&initiation, at(5_000)).unwrap();
    a.events();
    assert_eq!(a.indices.len(), 1);
    b.consume_response(&response, at(5_050)).unwrap();
    assert!(a.confirmed_by(&b, at(5_100)));
}

/// Our initiation was put aside for an answer that never came to be, as no index was free for it: its own comes back.
#[test]
fn what_was_put_aside_gives_back_its_index() {
    let put_aside = || {
        let (mut a, mut b) = pair();
        a.initiate(false, at(0)).unwrap();
        let theirs = b.initiate(false, at(0)).unwrap();
        a.consume_initiation(&theirs, at(10)).unwrap();
        a
    };
    let mut cleared = put_aside();
    cleared.tunnel.clear();
    cleared.events();
    assert!(cleared.indices.is_empty());
    let mut begun_again = put_aside();
    begun_again.initiate(false, at(5_010)).unwrap();
    begun_again.events();
    assert_eq!(begun_again.indices, BTreeSet::from([begun_again.next_index]));
}
