//! The five timers of a peer and the eight events that drive them, as the kernel has them; and one of our own.
//!
//! Timers are a table of deadlines, not objects that tick: an event writes a deadline or removes it,
//! and whoever sleeps for the peer asks [`Timers::next_deadline`]. A peer with no deadline costs no
//! wake-up at all. Everything here takes `&self` on atomics, because the data path reports its events
//! from any thread and never locks a peer's slow state.
//!
//! | event | effect |
//! |---|---|
//! | `data_sent` | arms `NewHandshake` (+15 s + jitter) unless pending |
//! | `data_received` | arms `SendKeepalive` (+10 s) unless pending; else notes that another one is needed |
//! | `any_authenticated_packet_sent` | removes `SendKeepalive` |
//! | `any_authenticated_packet_received` | removes `NewHandshake` |
//! | `any_authenticated_packet_traversal` | arms `PersistentKeepalive` anew, if it is on |
//! | `handshake_initiated` | arms `RetransmitHandshake` anew (+5 s + jitter) |
//! | `handshake_complete` | removes `RetransmitHandshake`; no attempts; the session's rekey on receive is unused |
//! | `session_derived` | arms `ZeroKeyMaterial` anew (+540 s) |
//!
//! Events that arm return the new deadline, so that the caller can tell the thread that sleeps for
//! the peer when, and only when, it would wake too late. A deadline that moved back or vanished is
//! not told: the sleeper wakes once, finds nothing expired and looks at the table again.
//!
//! Differs from the kernel: `SettleCrossing` decides between two sessions whose initiations crossed, of which the kernel keeps
//! none ([`Tunnel`](super::tunnel)). It is pending for a second at most, and only where the peer leaves it open.
//!
//! Differs from the kernel: a response that we send holds back our initiations for REKEY_TIMEOUT, and so
//! it puts off a pending retry for as long, and the jitter. The kernel's retry may fall due before that;
//! it is refused then, and not armed again. Where initiations crossed and both responses are lost, what
//! is staged on both sides would wait until another packet asks for a handshake.
//!
//! Invariants:
//! - an expiry is taken by compare-and-swap: it is acted on once, and not if it was moved meanwhile;
//! - several that expired are taken in the order of their deadlines, as a kernel timer wheel would;
//! - without an event nothing is armed for ever: idle becomes silent.
//!
//! [WP 6.1] [WP 6.2] [WP 6.3] [WP 6.4] [WP 6.5]

use core::time::Duration;

use rand_core::Rng;

use super::constants::{
    KEEPALIVE_TIMEOUT, MAX_TIMER_HANDSHAKES, NEW_HANDSHAKE_TIMEOUT, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX,
    ZERO_KEY_MATERIAL_AFTER,
};
use super::time::{Instant, Now, UnixTime};
use crate::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

/// The timers of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Timer {
    /// An initiation was sent and no response came yet.
    RetransmitHandshake,
    /// Data was received and nothing was sent since.
    SendKeepalive,
    /// Data was sent and nothing was received since.
    NewHandshake,
    /// A session was derived, or a handshake given up.
    ZeroKeyMaterial,
    /// The configured interval passed since the last packet in either direction.
    PersistentKeepalive,
    /// Initiations crossed, and data came on the session that lost alone.
    SettleCrossing,
}

impl Timer {
    /// All timers, in the order in which those with equal deadlines are taken.
    pub const ALL: [Self; 6] = [
        Self::RetransmitHandshake,
        Self::SendKeepalive,
        Self::NewHandshake,
        Self::ZeroKeyMaterial,
        Self::PersistentKeepalive,
        Self::SettleCrossing,
    ];
}

/// What an expired timer asks for. The timers' own state has been brought forward already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// No response: forget the source address and send the initiation again, as a retry.
    RetryHandshake,
    /// No response after all retries: drop the staged packets.
    GiveUpHandshake,
    /// Silence since data was received: send a keepalive.
    SendKeepalive,
    /// Nothing heard since data was sent: forget the source address and send an initiation.
    NewHandshake,
    /// Wipe the handshake and all keypairs, drop the staged packets.
    ZeroKeyMaterial,
    /// The interval passed: send a keepalive.
    PersistentKeepalive,
    /// Time to decide which of two sessions is sent on.
    SettleCrossing,
}

/// The deadline of a timer that is not pending, and the stamp of what never happened.
const NONE: u64 = 0;

/// One peer's timers, and the few flags that their events and expiries share.
#[derive(Debug)]
pub struct Timers {
    /// In nanoseconds of [`Instant`], by [`Timer`].
    deadlines: [AtomicU64; Timer::ALL.len()],
    /// When an initiation or response was last sent; it holds back initiations.
    last_sent_handshake: AtomicU64,
    /// Nanoseconds since 1970.
    last_handshake: AtomicU64,
    /// Retries of the present handshake.
    handshake_attempts: AtomicU32,
    /// Seconds; 0 is off.
    persistent_keepalive: AtomicU16,
    /// Data came while `SendKeepalive` was pending.
    need_another_keepalive: AtomicBool,
    /// This session's rekey on receive was used.
    sent_lastminute_handshake: AtomicBool,
}

impl Default for Timers {
    fn default() -> Self {
        Self::new()
    }
}

/// An instant as the table keeps it: never [`NONE`].
fn stamp(instant: Instant) -> u64 {
    instant.as_nanos().max(NONE + 1)
}

fn unstamp(nanos: u64) -> Option<Instant> {
    (nanos != NONE).then(|| Instant::from_nanos(nanos))
}

/// [WP 6.1] 0 … 333 ms, so that two peers who began together do not go on so.
fn jitter(rng: &mut impl Rng) -> Duration {
    Duration::from_nanos((u64::from(rng.next_u32()) * REKEY_TIMEOUT_JITTER_MAX.as_nanos() as u64) >> u32::BITS)
}

/// Getters.
impl Timers {
    /// Timers of which none is pending.
    pub fn new() -> Self {
        Self {
            deadlines: Timer::ALL.map(|_| AtomicU64::new(NONE)),
            last_sent_handshake: AtomicU64::new(NONE),
            last_handshake: AtomicU64::new(NONE),
            handshake_attempts: AtomicU32::new(0),
            persistent_keepalive: AtomicU16::new(0),
            need_another_keepalive: AtomicBool::new(false),
            sent_lastminute_handshake: AtomicBool::new(false),
        }
    }

    /// When `timer` expires, if it is pending.
    pub fn deadline(&self, timer: Timer) -> Option<Instant> {
        unstamp(self.deadlines[timer as usize].load(Relaxed))
    }

    /// When the first pending timer expires; `None` if none is pending.
    pub fn next_deadline(&self) -> Option<Instant> {
        Timer::ALL.into_iter().filter_map(|timer| self.deadline(timer)).min()
    }

    /// Retries of the present handshake.
    pub fn handshake_attempts(&self) -> u32 {
        self.handshake_attempts.load(Relaxed)
    }

    /// When the last handshake completed, by the wall clock.
    pub fn last_handshake(&self) -> Option<UnixTime> {
        let nanos = self.last_handshake.load(Relaxed);
        (nanos != NONE).then(|| UnixTime(Duration::from_nanos(nanos)))
    }

    /// The interval in seconds; 0 when off.
    pub fn persistent_keepalive(&self) -> u16 {
        self.persistent_keepalive.load(Relaxed)
    }

    fn arm(&self, timer: Timer, deadline: Instant) -> Option<Instant> {
        self.deadlines[timer as usize].store(stamp(deadline), Relaxed);
        Some(deadline)
    }

    /// Arms `timer` unless it is pending; then `None`.
    fn arm_once(&self, timer: Timer, deadline: impl FnOnce() -> Instant) -> Option<Instant> {
        let slot = &self.deadlines[timer as usize];
        if slot.load(Relaxed) != NONE {
            return None;
        }
        let deadline = deadline();
        slot.compare_exchange(NONE, stamp(deadline), Relaxed, Relaxed).ok().map(|_| deadline)
    }

    /// Removes `timer`. Reads first: it is mostly not pending, and the line is shared.
    fn remove(&self, timer: Timer) {
        let slot = &self.deadlines[timer as usize];
        if slot.load(Relaxed) != NONE {
            slot.store(NONE, Relaxed);
        }
    }
}

/// The eight events. Those that arm a timer return its deadline.
impl Timers {
    /// Data (not a keepalive) was sent.
    /// [WP 6.2] Nothing heard for KEEPALIVE_TIMEOUT + REKEY_TIMEOUT after it: a new handshake.
    pub fn data_sent(&self, now: Instant, rng: &mut impl Rng) -> Option<Instant> {
        self.arm_once(Timer::NewHandshake, || now + NEW_HANDSHAKE_TIMEOUT + jitter(rng))
    }

    /// Data (not a keepalive) was received.
    /// [WP 6.5] Counted from the reception; nothing sent for KEEPALIVE_TIMEOUT after it: a keepalive.
    pub fn data_received(&self, now: Instant) -> Option<Instant> {
        let armed = self.arm_once(Timer::SendKeepalive, || now + KEEPALIVE_TIMEOUT);
        if armed.is_none() && !self.need_another_keepalive.load(Relaxed) {
            self.need_another_keepalive.store(true, Relaxed);
        }
        armed
    }

    /// Anything authenticated was sent: data, a keepalive, an initiation, a response.
    pub fn any_authenticated_packet_sent(&self, _now: Instant) -> Option<Instant> {
        self.remove(Timer::SendKeepalive);
        None
    }

    /// Anything authenticated was received.
    pub fn any_authenticated_packet_received(&self, _now: Instant) -> Option<Instant> {
        self.remove(Timer::NewHandshake);
        None
    }

    /// Anything authenticated was sent or received.
    /// [WP 6.5] The persistent keepalive counts from the last packet in either direction.
    pub fn any_authenticated_packet_traversal(&self, now: Instant) -> Option<Instant> {
        match self.persistent_keepalive() {
            0 => None,
            seconds => self.arm(Timer::PersistentKeepalive, now + Duration::from_secs(u64::from(seconds))),
        }
    }

    /// An initiation was sent.
    /// [WP 6.4] No response within REKEY_TIMEOUT and jitter: it is sent again.
    pub fn handshake_initiated(&self, now: Instant, rng: &mut impl Rng) -> Option<Instant> {
        self.arm(Timer::RetransmitHandshake, now + REKEY_TIMEOUT + jitter(rng))
    }

    /// The response came (initiator), or the first data of the new session (responder).
    pub fn handshake_complete(&self, now: Now) -> Option<Instant> {
        self.remove(Timer::RetransmitHandshake);
        self.handshake_attempts.store(0, Relaxed);
        self.sent_lastminute_handshake.store(false, Relaxed);
        let since_1970 = u64::try_from(now.unix.0.as_nanos()).unwrap_or(u64::MAX);
        self.last_handshake.store(since_1970.max(NONE + 1), Relaxed);
        None
    }

    /// A keypair was derived, on either side.
    /// [WP 6.3] Three times REJECT_AFTER_TIME after the last one, all keys are wiped.
    pub fn session_derived(&self, now: Instant) -> Option<Instant> {
        self.arm(Timer::ZeroKeyMaterial, now + ZERO_KEY_MATERIAL_AFTER)
    }
}

/// Expiry, and the questions that are answered once.
impl Timers {
    /// Takes the earliest timer that has expired by `now`, or `None` if there is none (any more).
    ///
    /// The device's loop is: take until `None`, act on each, then sleep until
    /// [`next_deadline`](Self::next_deadline).
    pub fn take_expired(&self, now: Instant) -> Option<Expired> {
        loop {
            let (deadline, timer) = Timer::ALL
                .into_iter()
                .filter_map(|timer| self.deadline(timer).map(|deadline| (deadline, timer)))
                .filter(|&(deadline, _)| deadline <= now)
                .min_by_key(|&(deadline, _)| deadline)?;
            let slot = &self.deadlines[timer as usize];
            if slot.compare_exchange(deadline.as_nanos(), NONE, Relaxed, Relaxed).is_err() {
                // An event moved or removed it since: it has not expired.
                continue;
            }
            if let Some(expired) = self.expire(timer, now) {
                return Some(expired);
            }
        }
    }

    fn expire(&self, timer: Timer, now: Instant) -> Option<Expired> {
        match timer {
            Timer::RetransmitHandshake => Some(self.expire_retransmit(now)),
            Timer::SendKeepalive => {
                // [WP 6.5] Data that came meanwhile is answered by one more, or two idle peers that
                // both answer everything would never fall silent.
                if self.need_another_keepalive.swap(false, Relaxed) {
                    self.arm(Timer::SendKeepalive, now + KEEPALIVE_TIMEOUT);
                }
                Some(Expired::SendKeepalive)
            }
            Timer::NewHandshake => Some(Expired::NewHandshake),
            Timer::ZeroKeyMaterial => Some(Expired::ZeroKeyMaterial),
            Timer::PersistentKeepalive => (self.persistent_keepalive() != 0).then_some(Expired::PersistentKeepalive),
            Timer::SettleCrossing => Some(Expired::SettleCrossing),
        }
    }

    /// [WP 6.4] After REKEY_ATTEMPT_TIME no more: the 20th initiation was the last.
    fn expire_retransmit(&self, now: Instant) -> Expired {
        if self.handshake_attempts() > MAX_TIMER_HANDSHAKES {
            self.remove(Timer::SendKeepalive);
            // What is left of the handshake is wiped as a session would be, unless one still lives.
            self.arm_once(Timer::ZeroKeyMaterial, || now + ZERO_KEY_MATERIAL_AFTER);
            return Expired::GiveUpHandshake;
        }
        self.handshake_attempts.fetch_add(1, Relaxed);
        Expired::RetryHandshake
    }

    /// Whether an initiation may be sent now; any thread may ask before it wakes another for it.
    /// [WP 6.1] At most one in REKEY_TIMEOUT, for whatever reason. One that is no retry begins the
    /// count of attempts anew, even where it may not be sent yet: somebody still wants the session.
    pub fn may_initiate(&self, retry: bool, now: Instant) -> bool {
        if !retry && self.handshake_attempts() != 0 {
            self.handshake_attempts.store(0, Relaxed);
        }
        match unstamp(self.last_sent_handshake.load(Relaxed)) {
            None => true,
            Some(last) => last + REKEY_TIMEOUT <= now,
        }
    }

    /// Whether this session's one rekey on receive is still unused; it is used thereby. [WP 6.2]
    pub fn take_lastminute_handshake(&self) -> bool {
        !self.sent_lastminute_handshake.load(Relaxed) && !self.sent_lastminute_handshake.swap(true, Relaxed)
    }

    /// Sets the interval in seconds, 0 for off. Returns whether it was thereby switched on: then a
    /// keepalive is due at once.
    pub fn set_persistent_keepalive(&self, seconds: u16) -> bool {
        self.persistent_keepalive.swap(seconds, Relaxed) == 0 && seconds != 0
    }

    /// Removes all timers: the peer stops. Flags and stamps stay.
    pub fn stop(&self) {
        for timer in Timer::ALL {
            self.remove(timer);
        }
    }

    /// An initiation or response is about to be sent.
    pub(super) fn handshake_sent(&self, now: Instant) {
        self.last_sent_handshake.store(stamp(now), Relaxed);
    }

    /// A response is about to be sent, while an initiation of ours may wait for its own.
    /// [WP 6.4] Its retry, if one is pending, is put off until it may be sent: it would be held back
    /// otherwise, and nothing would try again.
    pub(super) fn response_sent(&self, now: Instant, rng: &mut impl Rng) {
        self.handshake_sent(now);
        if self.deadline(Timer::RetransmitHandshake).is_some() {
            self.handshake_initiated(now, rng);
        }
    }

    /// Two sessions whose initiations crossed: which one is sent on has to be decided then.
    pub(super) fn settle_crossing_at(&self, at: Instant) {
        self.arm(Timer::SettleCrossing, at);
    }

    /// It is decided.
    pub(super) fn crossing_settled(&self) {
        self.remove(Timer::SettleCrossing);
    }

    /// The next initiation need not wait for REKEY_TIMEOUT.
    pub(super) fn forget_handshake_sent(&self) {
        self.last_sent_handshake.store(NONE, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::constants::REKEY_ATTEMPT_TIME;
    use core::convert::Infallible;
    use rand_core::TryRng;

    /// Always the same word: the least or the greatest jitter.
    struct Fixed(u32);

    impl TryRng for Fixed {
        type Error = Infallible;
        fn try_next_u32(&mut self) -> Result<u32, Infallible> {
            Ok(self.0)
        }
        fn try_next_u64(&mut self) -> Result<u64, Infallible> {
            Ok(u64::from(self.0))
        }
        fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
            bytes.fill(self.0 as u8);
            Ok(())
        }
    }

    const T0: Instant = Instant::from_nanos(1_000_000_000);

    fn at(seconds: u64) -> Instant {
        T0 + Duration::from_secs(seconds)
    }

    /// [WP 6.1] The jitter is below 334 ms.
    #[test]
    fn jitter_is_bounded() {
        assert_eq!(jitter(&mut Fixed(0)), Duration::ZERO);
        let most = jitter(&mut Fixed(u32::MAX));
        assert!(most > Duration::from_millis(333) && most < REKEY_TIMEOUT_JITTER_MAX, "{most:?}");
        let timers = Timers::new();
        assert_eq!(timers.data_sent(at(0), &mut Fixed(u32::MAX)), Some(at(15) + most), "it delays");
        assert_eq!(timers.handshake_initiated(at(0), &mut Fixed(u32::MAX)), Some(at(5) + most));
    }

    /// An event at the very start of either clock has happened.
    #[test]
    fn time_zero_is_no_special_case() {
        let (timers, start) = (Timers::new(), Instant::default());
        timers.handshake_sent(start);
        assert!(!timers.may_initiate(false, start));
        timers.arm(Timer::SendKeepalive, start);
        assert_eq!(timers.take_expired(at(0)), Some(Expired::SendKeepalive));
        assert_eq!(timers.last_handshake(), None);
        timers.handshake_complete(Now::default());
        assert!(timers.last_handshake().is_some());
    }

    /// [WP 6.5] One keepalive 10 s after the first data, one more for data that came meanwhile.
    #[test]
    fn passive_keepalive_counts_from_reception() {
        let timers = Timers::new();
        assert_eq!(timers.data_received(at(0)), Some(at(10)));
        assert_eq!(timers.data_received(at(3)), None);
        assert_eq!(timers.take_expired(at(9)), None);
        assert_eq!(timers.take_expired(at(10)), Some(Expired::SendKeepalive));
        assert_eq!(timers.next_deadline(), Some(at(20)));
        assert_eq!(timers.take_expired(at(20)), Some(Expired::SendKeepalive));
        assert_eq!(timers.next_deadline(), None);
        timers.data_received(at(30));
        timers.any_authenticated_packet_sent(at(31));
        assert_eq!(timers.next_deadline(), None);
        timers.data_received(at(40));
        assert_eq!(timers.take_expired(at(50)), Some(Expired::SendKeepalive));
        assert_eq!(timers.next_deadline(), None, "one packet, one answer");
    }

    /// [WP 6.2] Armed by the first unanswered data, not moved by more of it, removed by an answer.
    #[test]
    fn new_handshake_counts_from_the_first_unanswered_data() {
        let timers = Timers::new();
        assert_eq!(timers.data_sent(at(0), &mut Fixed(0)), Some(at(15)));
        assert_eq!(timers.data_sent(at(7), &mut Fixed(0)), None);
        timers.any_authenticated_packet_received(at(8));
        assert_eq!(timers.next_deadline(), None);
        timers.data_sent(at(9), &mut Fixed(0));
        assert_eq!(timers.take_expired(at(24)), Some(Expired::NewHandshake));
        assert_eq!(timers.take_expired(at(24)), None);
    }

    /// [WP 6.4] 19 retries after the first initiation, then none.
    #[test]
    fn gives_up_after_twenty_initiations() {
        let timers = Timers::new();
        let (mut now, mut initiations) = (at(0), 1);
        timers.handshake_initiated(now, &mut Fixed(0));
        timers.data_received(now);
        loop {
            now = timers.deadline(Timer::RetransmitHandshake).unwrap();
            match timers.take_expired(now) {
                Some(Expired::RetryHandshake) => {
                    initiations += 1;
                    timers.handshake_initiated(now, &mut Fixed(0));
                }
                Some(Expired::GiveUpHandshake) => break,
                _ => {}
            }
        }
        assert_eq!((initiations, now), (20, at(100)));
        assert!(now.since(at(0)) > REKEY_ATTEMPT_TIME);
        assert_eq!(timers.next_deadline(), Some(now + ZERO_KEY_MATERIAL_AFTER));
    }

    /// A give-up leaves the deadline of a session that still lives.
    #[test]
    fn giving_up_does_not_move_zeroing() {
        let timers = Timers::new();
        timers.session_derived(at(0));
        timers.handshake_attempts.store(MAX_TIMER_HANDSHAKES + 1, Relaxed);
        timers.handshake_initiated(at(50), &mut Fixed(0));
        assert_eq!(timers.take_expired(at(60)), Some(Expired::GiveUpHandshake));
        assert_eq!(timers.next_deadline(), Some(at(540)));
        assert_eq!(timers.take_expired(at(540)), Some(Expired::ZeroKeyMaterial));
    }

    /// [WP 6.1] One initiation in 5 s; a reason that is no retry begins the count anew.
    #[test]
    fn initiations_are_held_back() {
        let timers = Timers::new();
        assert!(timers.may_initiate(false, at(0)));
        timers.handshake_sent(at(0));
        timers.handshake_attempts.store(7, Relaxed);
        assert!(!timers.may_initiate(true, at(4)));
        assert_eq!(timers.handshake_attempts(), 7);
        assert!(!timers.may_initiate(false, at(4)));
        assert_eq!(timers.handshake_attempts(), 0);
        assert!(timers.may_initiate(true, at(5)));
        timers.handshake_sent(at(5));
        timers.forget_handshake_sent();
        assert!(timers.may_initiate(false, at(5)));
    }

    #[test]
    fn lastminute_is_taken_once_a_session() {
        let timers = Timers::new();
        assert!(timers.take_lastminute_handshake());
        assert!(!timers.take_lastminute_handshake());
        timers.handshake_complete(Now::default());
        assert!(timers.take_lastminute_handshake());
    }

    /// [WP 6.5] Reset by any traversal; silent once it is off.
    #[test]
    fn persistent_keepalive() {
        let timers = Timers::new();
        assert_eq!(timers.any_authenticated_packet_traversal(at(0)), None);
        assert!(timers.set_persistent_keepalive(25));
        assert!(!timers.set_persistent_keepalive(25));
        assert_eq!(timers.any_authenticated_packet_traversal(at(0)), Some(at(25)));
        assert_eq!(timers.any_authenticated_packet_traversal(at(5)), Some(at(30)));
        assert_eq!(timers.take_expired(at(30)), Some(Expired::PersistentKeepalive));
        timers.any_authenticated_packet_traversal(at(30));
        assert!(!timers.set_persistent_keepalive(0));
        assert_eq!(timers.take_expired(at(60)), None);
        assert_eq!(timers.next_deadline(), None);
    }

    /// A late look takes what expired in the order of the deadlines.
    #[test]
    fn a_late_look_keeps_the_order() {
        let timers = Timers::new();
        timers.session_derived(at(0));
        timers.data_sent(at(0), &mut Fixed(0));
        timers.data_received(at(1));
        timers.handshake_initiated(at(2), &mut Fixed(0));
        let mut order = [None; 5];
        order.fill_with(|| timers.take_expired(at(10_000)));
        assert_eq!(
            order,
            [
                Some(Expired::RetryHandshake),
                Some(Expired::SendKeepalive),
                Some(Expired::NewHandshake),
                Some(Expired::ZeroKeyMaterial),
                None
            ]
        );
    }

    /// Nobody wakes up for what is decided.
    #[test]
    fn a_settled_crossing_is_forgotten() {
        let timers = Timers::new();
        timers.settle_crossing_at(at(1));
        assert_eq!(timers.next_deadline(), Some(at(1)));
        timers.crossing_settled();
        assert_eq!(timers.next_deadline(), None);
    }

    #[test]
    fn stop_removes_all() {
        let timers = Timers::new();
        timers.set_persistent_keepalive(1);
        timers.session_derived(at(0));
        timers.data_sent(at(0), &mut Fixed(0));
        timers.data_received(at(0));
        timers.handshake_initiated(at(0), &mut Fixed(0));
        timers.any_authenticated_packet_traversal(at(0));
        timers.stop();
        assert_eq!(timers.next_deadline(), None);
    }
}
