//! The rule of readiness in all its cases, with the time passed in: no test waits.

use super::*;

const WALL: Duration = Duration::from_secs(1_700_000_000);

/// A device with one peer, seen through [`Readiness`] as time goes by.
struct Bench {
    readiness: Readiness,
    peer: PeerSnapshot,
    start: Instant,
    /// Since the start.
    now: Duration,
    /// When handshakes were asked for, in seconds since the start.
    asked: Vec<u64>,
    /// How far the wall clock is off.
    wall_ahead: Duration,
}

fn key(n: u8) -> PublicKey {
    PublicKey::from_bytes([n; 32])
}

fn required(pings: Option<Pings>) -> Required {
    Required { public_key: key(1), pings }
}

impl Bench {
    fn new(keepalive: u16, pings: Option<Pings>) -> Self {
        let peer = PeerSnapshot {
            public_key: key(1),
            preshared_key: Default::default(),
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            persistent_keepalive: keepalive,
            allowed_ips: Vec::new(),
        };
        let readiness = Readiness::new([required(pings)]);
        let mut bench = Self {
            readiness,
            peer,
            start: Instant::now(),
            now: Duration::ZERO,
            asked: Vec::new(),
            wall_ahead: Duration::ZERO,
        };
        bench.look();
        bench
    }

    fn instant(&self) -> Instant {
        self.start + self.now
    }

    fn look(&mut self) {
        let unix_now = WALL + self.wall_ahead + self.now;
        let asked = self.readiness.look(std::slice::from_ref(&self.peer), unix_now, self.instant());
        self.asked.extend(asked.iter().map(|_| self.now.as_secs()));
    }

    /// Lets time go by in steps of a tenth of a second, looking when it is time to; `each` is called before each step
    /// and may change the peer.
    fn pass(&mut self, seconds: u64, mut each: impl FnMut(&mut Self)) {
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            let due = self.readiness.next_look(self.instant()).map_or(end, |at| at.duration_since(self.start));
            // A look that is due never comes early, and `next_look` counts from the last one.
            let due = due.max(self.now);
            while self.now < due.min(end) {
                each(self);
                self.now += Duration::from_millis(100);
            }
            if self.now < end {
                self.look();
            }
        }
    }

    fn idle(&mut self, seconds: u64) {
        self.pass(seconds, |_| {});
    }

    fn handshake(&mut self) {
        self.peer.last_handshake = Some(WALL + self.wall_ahead + self.now);
        self.peer.rx_bytes += 92;
    }

    fn reasons(&self) -> Vec<Reason> {
        self.readiness.reasons(self.instant())
    }

    fn is_ready(&self) -> bool {
        self.reasons().is_empty()
    }

    /// How many seconds from now on it stays ready, looked at all the time, but not more than `limit`.
    fn ready_for(&mut self, limit: u64) -> u64 {
        let start = self.now;
        while self.is_ready() && self.now - start < Duration::from_secs(limit) {
            self.idle(1);
        }
        (self.now - start).as_secs()
    }
}

/// A peer that answers handshakes as long as `answers` says so.
fn answering(bench: &mut Bench) {
    if bench.asked.last() == Some(&bench.now.as_secs()) && bench.peer.last_handshake != Some(WALL + bench.now) {
        bench.handshake();
    }
}

#[test]
fn nothing_required_is_ready() {
    let readiness = Readiness::default();
    assert!(readiness.reasons(Instant::now()).is_empty());
    assert_eq!(readiness.next_look(Instant::now()), None);
}

#[test]
fn a_new_peer_is_asked_until_it_answers() {
    let mut bench = Bench::new(0, None);
    assert_eq!(bench.reasons(), [Reason::NoHandshake(key(1))]);
    bench.idle(40);
    assert_eq!(bench.asked, [0, 15, 30]);
    bench.handshake();
    bench.look();
    assert!(bench.is_ready());
}

#[test]
fn without_a_keepalive_a_lost_peer_is_noticed_after_the_handshake_has_aged() {
    let mut bench = Bench::new(0, None);
    bench.handshake();
    bench.look();
    let ready = bench.ready_for(1000);
    assert!((195..=196).contains(&ready), "{ready}");
    assert!(matches!(bench.reasons()[..], [Reason::NoAnswer(_, age)] if age >= FRESH + ANSWER));
    assert_eq!(bench.asked[..2], [0, 180]);
    // And it recovers by itself.
    bench.idle(100);
    assert!(!bench.is_ready());
    bench.handshake();
    bench.idle(16);
    assert!(bench.is_ready());
}

#[test]
fn an_idle_peer_that_answers_stays_ready() {
    for keepalive in [0, 25] {
        let mut bench = Bench::new(keepalive, None);
        bench.handshake();
        bench.look();
        for _ in 0..600 {
            bench.pass(1, answering);
            assert!(bench.is_ready(), "keepalive {keepalive}, {:?}", bench.now);
        }
        let expected = if keepalive == 0 { 3..=5 } else { 40..=80 };
        assert!(expected.contains(&bench.asked.len()), "keepalive {keepalive}: {:?}", bench.asked);
    }
}

#[test]
fn a_busy_peer_with_a_keepalive_is_never_asked() {
    let mut bench = Bench::new(25, None);
    bench.handshake();
    bench.look();
    bench.asked.clear();
    bench.pass(170, |bench| bench.peer.rx_bytes += 32);
    assert!(bench.is_ready());
    assert_eq!(bench.asked, [0_u64; 0]);
}

/// Whatever the moment of its disappearance is, between two looks.
#[test]
fn with_a_keepalive_a_lost_peer_is_noticed_within_twenty_seconds() {
    for tenths in 0..100 {
        let mut bench = Bench::new(25, None);
        bench.handshake();
        bench.look();
        let mut last_heard = Duration::ZERO;
        bench.pass(20, |bench| {
            if bench.now < Duration::from_millis(5000 + 100 * tenths) {
                bench.peer.rx_bytes += 32;
                last_heard = bench.now;
            }
        });
        while bench.is_ready() {
            bench.idle(1);
            assert!(bench.now - last_heard < NOTICED_WITHIN, "vanished at {last_heard:?}, asked {:?}", bench.asked);
        }
        bench.handshake();
        bench.idle(5);
        assert!(bench.is_ready(), "it came back");
    }
}

#[test]
fn bytes_without_a_handshake_are_not_enough() {
    let mut bench = Bench::new(25, None);
    bench.handshake();
    bench.look();
    // Initiations that arrive while our responses do not.
    bench.pass(200, |bench| bench.peer.rx_bytes += 148);
    assert!(matches!(bench.reasons()[..], [Reason::NoAnswer(..)]));
}

#[test]
fn a_wall_clock_that_is_set_loses_nothing() {
    for ahead in [Duration::ZERO, Duration::from_secs(86_400)] {
        let mut bench = Bench::new(0, None);
        bench.wall_ahead = Duration::from_secs(3600);
        bench.handshake();
        bench.look();
        bench.wall_ahead = ahead;
        bench.look();
        // Set back, the handshake is as old as it is; set forward, another one is asked for and may come.
        assert!(bench.is_ready());
        assert_eq!(bench.asked.len(), if ahead.is_zero() { 1 } else { 2 });
        bench.idle(14);
        assert!(bench.is_ready());
        if !ahead.is_zero() {
            bench.handshake();
        }
        bench.idle(160);
        assert!(bench.is_ready());
        bench.idle(45);
        assert!(!bench.is_ready());
    }
}

#[test]
fn a_handshake_of_before_the_first_look_counts_by_the_wall_clock() {
    let mut bench = Bench::new(0, None);
    bench.peer.last_handshake = Some(WALL - Duration::from_secs(100));
    bench.readiness = Readiness::new([required(None)]);
    bench.look();
    assert!(bench.is_ready());
    assert!((95..=96).contains(&bench.ready_for(1000)));
}

#[test]
fn a_peer_that_is_removed_and_made_anew() {
    let mut bench = Bench::new(0, None);
    bench.handshake();
    bench.look();
    assert!(bench.is_ready());
    bench.readiness.look(&[], WALL, bench.instant());
    assert_eq!(bench.reasons(), [Reason::NotConfigured(key(1))]);
    (bench.peer.last_handshake, bench.peer.rx_bytes) = (None, 0);
    bench.look();
    assert_eq!(bench.reasons(), [Reason::NoHandshake(key(1))]);
}

#[test]
fn what_is_required_may_change() {
    let mut bench = Bench::new(0, None);
    bench.handshake();
    bench.look();
    bench.readiness.require([required(None), Required { public_key: key(2), pings: None }]);
    bench.look();
    assert_eq!(bench.reasons(), [Reason::NotConfigured(key(2))]);
    bench.readiness.require([]);
    assert!(bench.is_ready());
}

#[test]
fn patience_with_pings() {
    let check = |interval, patience| {
        let pings = Pings { addresses: Vec::new(), interval: Duration::from_secs(interval) };
        assert_eq!(pings.patience(), Duration::from_secs(patience), "{interval}");
    };
    check(1, 4);
    check(5, 12);
    check(8, 18);
    check(10, 18);
    check(16, 18);
    check(60, 62);
}

#[test]
fn pings_decide_alone() {
    let addresses = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
    let pings = Pings { addresses: addresses.to_vec(), interval: Duration::from_secs(5) };
    let mut bench = Bench::new(25, Some(pings));
    bench.handshake();
    bench.look();
    assert_eq!(bench.reasons(), addresses.map(|address| Reason::NoPong(address, None)));
    for address in addresses.into_iter().chain([[10, 0, 0, 3].into()]) {
        bench.readiness.pinged(address, bench.instant());
    }
    assert!(bench.is_ready());
    assert_eq!(bench.readiness.answered.len(), 2, "what nobody asked for is not kept");
    bench.now += Duration::from_secs(10);
    bench.readiness.pinged(addresses[0], bench.instant());
    assert!(bench.is_ready());
    bench.now += Duration::from_secs(3);
    assert_eq!(bench.reasons(), [Reason::NoPong(addresses[1], Some(Duration::from_secs(13)))]);
    assert_eq!(bench.asked, [0_u64; 0], "pings start handshakes by themselves");
}

#[test]
fn reasons_are_lines() {
    let key = key(1);
    let check = |reason: Reason, expected: &str| assert_eq!(reason.to_string(), expected);
    check(Reason::NoHandshake(key), &format!("peer {key}: no handshake has completed yet"));
    check(
        Reason::NoAnswer(key, Duration::from_millis(200_500)),
        &format!("peer {key}: does not answer; its last handshake was 200 s ago"),
    );
    check(Reason::NoPong([10, 0, 0, 1].into(), None), "address 10.0.0.1: has never answered a ping");
}
