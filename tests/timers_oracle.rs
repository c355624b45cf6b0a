//! The timers against the kernel's, literally: five timer objects with add, modify and delete, and the
//! eight events and five expiries written out over them, each by the facts alone.
//!
//! Both are driven by the same random sequences of events and looks, late ones too, and must agree
//! after every step: on each deadline, on what fires and in which order, and on the retry count.
//! A third thing is watched beside them: somebody who sleeps by what the events return, as the
//! device's control thread does, never sleeps past a deadline.
//!
//! `ADIT_TEST_SEED` repeats a run; `ADIT_TEST_SEQUENCES` sets how many sequences are tried.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use adit::proto::time::{Instant, Now, UnixTime};
use adit::proto::timers::{Expired, Timer, Timers};
use rand_core::Rng;

#[path = "simulation/rng.rs"]
mod rng;

use rng::TestRng;

const SEQUENCES_DEFAULT: u64 = 50_000;
const EVENTS_PER_SEQUENCE: u64 = 120;

const SECOND: u64 = 1_000_000_000;

/// A kernel timer: pending or not, and when it expires. In nanoseconds.
#[derive(Default, Clone, Copy)]
struct KernelTimer {
    pending: bool,
    expires: u64,
}

impl KernelTimer {
    fn mod_timer(&mut self, expires: u64) {
        *self = Self { pending: true, expires };
    }

    fn del_timer(&mut self) {
        self.pending = false;
    }
}

/// A kernel peer, as far as its timers go.
#[derive(Default)]
struct KernelPeer {
    retransmit_handshake: KernelTimer,
    send_keepalive: KernelTimer,
    new_handshake: KernelTimer,
    zero_key_material: KernelTimer,
    persistent_keepalive: KernelTimer,
    /// The kernel has none: it is never pending.
    settle_crossing: KernelTimer,
    handshake_attempts: u32,
    persistent_keepalive_interval: u64,
    need_another_keepalive: bool,
    sent_lastminute_handshake: bool,
}

fn jitter(rng: &mut TestRng) -> u64 {
    (u64::from(rng.next_u32()) * 334_000_000) >> 32
}

/// The eight events.
impl KernelPeer {
    fn data_sent(&mut self, now: u64, rng: &mut TestRng) {
        if !self.new_handshake.pending {
            self.new_handshake.mod_timer(now + (10 + 5) * SECOND + jitter(rng));
        }
    }

    fn data_received(&mut self, now: u64) {
        if self.send_keepalive.pending {
            self.need_another_keepalive = true;
        } else {
            self.send_keepalive.mod_timer(now + 10 * SECOND);
        }
    }

    fn any_authenticated_packet_sent(&mut self) {
        self.send_keepalive.del_timer();
    }

    fn any_authenticated_packet_received(&mut self) {
        self.new_handshake.del_timer();
    }

    fn any_authenticated_packet_traversal(&mut self, now: u64) {
        if self.persistent_keepalive_interval != 0 {
            self.persistent_keepalive.mod_timer(now + self.persistent_keepalive_interval * SECOND);
        }
    }

    fn handshake_initiated(&mut self, now: u64, rng: &mut TestRng) {
        self.retransmit_handshake.mod_timer(now + 5 * SECOND + jitter(rng));
    }

    fn handshake_complete(&mut self) {
        self.retransmit_handshake.del_timer();
        self.handshake_attempts = 0;
        self.sent_lastminute_handshake = false;
    }

    fn session_derived(&mut self, now: u64) {
        self.zero_key_material.mod_timer(now + 3 * 180 * SECOND);
    }
}

/// The five expiries.
impl KernelPeer {
    fn timer(&mut self, timer: Timer) -> &mut KernelTimer {
        match timer {
            Timer::RetransmitHandshake => &mut self.retransmit_handshake,
            Timer::SendKeepalive => &mut self.send_keepalive,
            Timer::NewHandshake => &mut self.new_handshake,
            Timer::ZeroKeyMaterial => &mut self.zero_key_material,
            Timer::PersistentKeepalive => &mut self.persistent_keepalive,
            Timer::SettleCrossing => &mut self.settle_crossing,
        }
    }

    fn deadline(&mut self, timer: Timer) -> Option<Instant> {
        let KernelTimer { pending, expires } = *self.timer(timer);
        pending.then(|| Instant::from_nanos(expires))
    }

    /// Lets the earliest timer that is over run its function; those of a stopped interval do nothing.
    fn run_one(&mut self, now: u64) -> Option<Expired> {
        loop {
            let over = |timer: &Timer, peer: &mut Self| peer.deadline(*timer).filter(|at| at.as_nanos() <= now);
            let first = Timer::ALL.into_iter().filter_map(|timer| Some((over(&timer, self)?, timer)));
            let (_, timer) = first.min_by_key(|&(at, _)| at)?;
            self.timer(timer).del_timer();
            match timer {
                Timer::RetransmitHandshake if self.handshake_attempts > 18 => {
                    self.send_keepalive.del_timer();
                    if !self.zero_key_material.pending {
                        self.zero_key_material.mod_timer(now + 3 * 180 * SECOND);
                    }
                    return Some(Expired::GiveUpHandshake);
                }
                Timer::RetransmitHandshake => {
                    self.handshake_attempts += 1;
                    return Some(Expired::RetryHandshake);
                }
                Timer::SendKeepalive => {
                    if self.need_another_keepalive {
                        self.need_another_keepalive = false;
                        self.send_keepalive.mod_timer(now + 10 * SECOND);
                    }
                    return Some(Expired::SendKeepalive);
                }
                Timer::NewHandshake => return Some(Expired::NewHandshake),
                Timer::ZeroKeyMaterial => return Some(Expired::ZeroKeyMaterial),
                Timer::PersistentKeepalive if self.persistent_keepalive_interval != 0 => {
                    return Some(Expired::PersistentKeepalive);
                }
                Timer::PersistentKeepalive | Timer::SettleCrossing => {}
            }
        }
    }
}

/// Both, and the one who sleeps.
struct Pair {
    ours: Timers,
    kernel: KernelPeer,
    now: u64,
    /// Until when somebody sleeps who looked when he last woke, and was told of what was armed since.
    sleeps_until: Option<Instant>,
    our_rng: TestRng,
    kernel_rng: TestRng,
    fired: u64,
}

impl Pair {
    fn new(rng: &mut TestRng) -> Self {
        let jitter = TestRng(rng.next_u64());
        Self {
            ours: Timers::new(),
            kernel: KernelPeer::default(),
            now: SECOND + rng.next_u64() % SECOND,
            sleeps_until: None,
            our_rng: jitter.clone(),
            kernel_rng: jitter,
            fired: 0,
        }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.now)
    }

    fn told(&mut self, armed: Option<Instant>) {
        self.sleeps_until = [self.sleeps_until, armed].into_iter().flatten().min();
    }

    /// One of the eight events, or of the few other things that happen to timers.
    fn event(&mut self, choice: u64) {
        let (now, instant) = (self.now, self.now());
        let armed = match choice {
            0..=3 => {
                self.kernel.data_sent(now, &mut self.kernel_rng);
                self.ours.data_sent(instant, &mut self.our_rng)
            }
            4..=7 => {
                self.kernel.data_received(now);
                self.ours.data_received(instant)
            }
            8 => {
                self.kernel.any_authenticated_packet_sent();
                self.ours.any_authenticated_packet_sent(instant)
            }
            9 => {
                self.kernel.any_authenticated_packet_received();
                self.ours.any_authenticated_packet_received(instant)
            }
            10 => {
                self.kernel.any_authenticated_packet_traversal(now);
                self.ours.any_authenticated_packet_traversal(instant)
            }
            11 => {
                self.kernel.handshake_initiated(now, &mut self.kernel_rng);
                self.ours.handshake_initiated(instant, &mut self.our_rng)
            }
            12 => {
                self.kernel.handshake_complete();
                let unix = UnixTime(Duration::from_nanos(now));
                let armed = self.ours.handshake_complete(Now { instant, unix });
                assert_eq!(self.ours.last_handshake(), Some(unix));
                armed
            }
            13 => {
                self.kernel.session_derived(now);
                self.ours.session_derived(instant)
            }
            14 => {
                // Somebody wants a session: the retries begin anew.
                self.kernel.handshake_attempts = 0;
                self.ours.may_initiate(false, instant);
                None
            }
            15 => {
                let unused = !std::mem::replace(&mut self.kernel.sent_lastminute_handshake, true);
                assert_eq!(self.ours.take_lastminute_handshake(), unused);
                None
            }
            _ => {
                let seconds = [0, 1, 25, u16::MAX][(choice % 4) as usize];
                let was = std::mem::replace(&mut self.kernel.persistent_keepalive_interval, u64::from(seconds));
                assert_eq!(self.ours.set_persistent_keepalive(seconds), was == 0 && seconds != 0);
                None
            }
        };
        self.told(armed);
    }

    /// Looks at the timers at `to`, acting on what fires as a device would.
    fn look(&mut self, to: u64, answers: bool) {
        self.now = to;
        loop {
            let expected = self.kernel.run_one(self.now);
            assert_eq!(self.ours.take_expired(self.now()), expected);
            self.fired += u64::from(expected.is_some());
            match expected {
                None => break,
                Some(Expired::RetryHandshake | Expired::NewHandshake) => {
                    self.event(11);
                    if answers {
                        self.event(12);
                    }
                }
                Some(Expired::SendKeepalive | Expired::PersistentKeepalive) if answers => {
                    self.event(10);
                    self.event(8);
                }
                Some(_) => {}
            }
        }
        self.sleeps_until = self.ours.next_deadline();
    }

    fn check(&mut self) {
        for timer in Timer::ALL {
            assert_eq!(self.ours.deadline(timer), self.kernel.deadline(timer), "{timer:?}");
        }
        let first = Timer::ALL.into_iter().filter_map(|timer| self.kernel.deadline(timer)).min();
        assert_eq!(self.ours.next_deadline(), first);
        assert_eq!(self.ours.handshake_attempts(), self.kernel.handshake_attempts);
        if let Some(first) = first {
            let sleeps_until = self.sleeps_until.expect("somebody who sleeps for ever would miss it");
            assert!(sleeps_until <= first, "would wake at {sleeps_until:?}, too late for {first:?}");
        }
    }
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// [WP 6.1] [WP 6.2] [WP 6.3] [WP 6.4] [WP 6.5] The same instants as the kernel's own timers.
#[test]
fn timers_agree_with_the_kernels() {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64);
    let seed = number("ADIT_TEST_SEED").unwrap_or_else(clock);
    println!("ADIT_TEST_SEED={seed}");
    let mut rng = TestRng(seed);
    let mut fired = 0;
    for _ in 0..number("ADIT_TEST_SEQUENCES").unwrap_or(SEQUENCES_DEFAULT) {
        let mut pair = Pair::new(&mut rng);
        // Some peers never answer, so that retries run out; some devices look late.
        let (answers, late) = (!rng.next_u32().is_multiple_of(3), rng.next_u32().is_multiple_of(4));
        for _ in 0..EVENTS_PER_SEQUENCE {
            match rng.next_u32() % 4 {
                0 => {
                    // Exactly when it is due, as somebody does who sleeps by the deadlines.
                    let due = pair.ours.next_deadline().map_or(pair.now, |due| due.as_nanos().max(pair.now));
                    pair.look(due, answers);
                }
                1 => {
                    let to = pair.now + rng.next_u64() % (7 * SECOND);
                    let due = pair.ours.next_deadline().map_or(to, |due| due.as_nanos().max(pair.now));
                    pair.look(if late { to } else { to.min(due) }, answers);
                }
                2 if late => {
                    let to = pair.now + rng.next_u64() % (700 * SECOND);
                    pair.look(to, answers);
                }
                _ => pair.event(rng.next_u64() % 20),
            }
            pair.check();
        }
        fired += pair.fired;
    }
    println!("{fired} expiries");
    assert!(fired > 0);
}

/// [WP 6.4] The whole of a handshake that nobody answers, against the kernel's count and instants.
#[test]
fn an_unanswered_handshake_agrees_with_the_kernels() {
    let mut pair = Pair::new(&mut TestRng(7));
    let start = pair.now;
    pair.event(11);
    let mut initiations = 1;
    while let Some(due) = pair.ours.next_deadline() {
        pair.look(due.as_nanos(), false);
        pair.check();
        if pair.kernel.retransmit_handshake.pending {
            initiations += 1;
        } else if initiations == 20 {
            initiations += 100;
            let seconds = (pair.now - start) / SECOND;
            assert!((100..107).contains(&seconds), "gave up after {seconds} s");
        }
    }
    assert_eq!(initiations, 120, "20 initiations, and then the end");
}
