//! Whether a worker that is woken goes before who woke it.
//!
//! Who wakes a worker has mostly just sent a packet, and is about to wait for an answer. Where the worker goes first, as the
//! system usually has it, the other one is left half done on the same processor, and for whatever the worker wakes next the
//! system takes another processor, which has to be brought out of its sleep first: tens of microseconds on a virtual machine,
//! several times on a packet's way. So workers that have a lane run under SCHED_BATCH [sched(7)]: they wait until who woke
//! them waits, too, and the packet's whole way stays on one processor.
//!
//! The price is paid where processors are busy: who never waits keeps its processor for some milliseconds. So a worker
//! finds out whether it must wait for one. Now and then, after work and never at rest, it sleeps for [`PROBE`] only; if it
//! wakes up [`LATE`] after that, [`LATE_MAX`] times in a row, it runs under SCHED_OTHER again, for [`BACKOFF`] at first.
//!
//! A thread for which somebody chose another policy than SCHED_OTHER keeps it, and so does one that may not change it.

use std::io;
use std::time::Duration;

use crate::proto::time::Instant;
use crate::sys::thread::Policy;

/// How long a worker sleeps to see whether it wakes up in time: longer than it takes until the next packet of who is
/// waiting for it, so that it is cut short where it would be in the way.
const PROBE: Duration = Duration::from_millis(1);

/// So often while there is work ...
const PROBE_EVERY: Duration = Duration::from_millis(100);

/// ... and as long after one that a packet has ended early, which says nothing.
const PROBE_AGAIN: Duration = Duration::from_millis(10);

/// Later than a timer is anyway, and earlier than who is busy gives up its processor.
const LATE: Duration = Duration::from_micros(500);

/// As often in a row: a host that takes a processor away now and then does it once.
const LATE_MAX: u32 = 2;

/// For how long it goes first again; twice as long each time ...
const BACKOFF: Duration = Duration::from_millis(500);

/// ... up to this.
const BACKOFF_MAX: Duration = Duration::from_secs(4);

/// One worker's scheduling policy.
pub(super) struct Precedence {
    set: fn(Policy) -> io::Result<()>,
    /// `None` where it is left as it is.
    policy: Option<Policy>,
    next_probe: Instant,
    /// When it should wake up.
    due: Option<Instant>,
    /// How often in a row it did so late.
    late: u32,
    backoff: Duration,
}

impl Precedence {
    /// Of a thread that runs under `policy`; `set` changes the calling thread's.
    pub(super) fn new(policy: Option<Policy>, set: fn(Policy) -> io::Result<()>) -> Self {
        let policy = policy.filter(|&policy| policy == Policy::Other);
        let mut this = Self { set, policy, next_probe: Instant::default(), due: None, late: 0, backoff: BACKOFF };
        this.change(Policy::Batch);
        this
    }

    /// The worker goes to sleep after work; returns for how long at most.
    pub(super) fn sleeps(&mut self, now: Instant) -> Option<Duration> {
        if self.policy.is_none() || now < self.next_probe {
            return None;
        }
        if self.policy == Some(Policy::Other) {
            self.change(Policy::Batch);
        }
        self.next_probe = now + PROBE_AGAIN;
        self.due = Some(now + PROBE);
        Some(PROBE)
    }

    /// It has woken up.
    pub(super) fn woke(&mut self, now: Instant) {
        let Some(due) = self.due.take().filter(|&due| now >= due) else { return };
        if now.since(due) < LATE {
            self.late = 0;
            self.backoff = BACKOFF;
            self.next_probe = now + PROBE_EVERY;
            return;
        }
        self.late += 1;
        self.next_probe = now;
        if self.late >= LATE_MAX {
            self.late = 0;
            self.change(Policy::Other);
            self.next_probe = now + self.backoff;
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn change(&mut self, policy: Policy) {
        if self.policy.is_none() {
            return;
        }
        self.policy = match (self.set)(policy) {
            Ok(()) => Some(policy),
            Err(error) => {
                tracing::debug!("A worker keeps its scheduling policy: {error}");
                None
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn precedence() -> Precedence {
        Precedence::new(Some(Policy::Other), |_| Ok(()))
    }

    /// Works and sleeps at equal distances for a time, each time woken `late` after it should be. Returns how often
    /// it slept with a limit, and for how long it went first.
    fn sleep(precedence: &mut Precedence, now: &mut Instant, time: Duration, late: Duration) -> (u32, Duration) {
        let (end, gap) = (*now + time, PROBE * 5);
        let (mut limited, mut first) = (0, Duration::ZERO);
        while *now < end {
            let slept = precedence.sleeps(*now);
            limited += u32::from(slept.is_some());
            *now = *now + slept.unwrap_or(gap) + late;
            precedence.woke(*now);
            if precedence.policy == Some(Policy::Other) {
                first += gap;
            }
        }
        (limited, first)
    }

    #[test]
    fn who_woke_a_worker_goes_first_where_there_is_a_processor() {
        let (mut precedence, mut now) = (precedence(), Instant::default() + SECOND);
        assert_eq!(precedence.policy, Some(Policy::Batch));
        let (limited, first) = sleep(&mut precedence, &mut now, SECOND, LATE / 2);
        assert_eq!((precedence.policy, first), (Some(Policy::Batch), Duration::ZERO));
        assert!((5..=10).contains(&limited), "{limited}");
    }

    #[test]
    fn a_worker_that_must_wait_for_a_processor_goes_first_again() {
        let (mut precedence, mut now) = (precedence(), Instant::default() + SECOND);
        let (_, first) = sleep(&mut precedence, &mut now, SECOND * 60, LATE * 8);
        assert!(first > SECOND * 30, "{first:?}");
        // It is tried again, but not without end where it is in vain.
        let (limited, _) = sleep(&mut precedence, &mut now, SECOND * 60, LATE * 8);
        assert!((20..=2 * LATE_MAX * 15).contains(&limited), "{limited}");
        // The others are gone.
        sleep(&mut precedence, &mut now, BACKOFF_MAX * 2, Duration::ZERO);
        assert_eq!((precedence.policy, precedence.backoff), (Some(Policy::Batch), BACKOFF));
    }

    #[test]
    fn one_that_is_late_once_changes_nothing() {
        let (mut precedence, mut now) = (precedence(), Instant::default() + SECOND);
        for _ in 0..10 {
            for late in [LATE * 100, Duration::ZERO] {
                now = now + PROBE_EVERY;
                let slept = precedence.sleeps(now).expect("it is time");
                now = now + slept + late;
                precedence.woke(now);
                assert_eq!(precedence.policy, Some(Policy::Batch));
            }
        }
    }

    /// Packets that come sooner than that end each such sleep, and say nothing of how long a processor is waited for.
    #[test]
    fn a_sleep_that_ends_early_says_nothing_and_is_rare() {
        let (mut precedence, mut now) = (precedence(), Instant::default() + SECOND);
        let mut limited = 0;
        for _ in 0..10_000 {
            limited += u32::from(precedence.sleeps(now).is_some());
            now = now + PROBE / 10;
            precedence.woke(now);
        }
        assert_eq!(precedence.policy, Some(Policy::Batch));
        assert!((50..=100).contains(&limited), "{limited}");
    }

    #[test]
    fn another_policy_is_left_alone_and_so_is_one_that_cannot_be_changed() {
        let refused = |_| Err(io::ErrorKind::PermissionDenied.into());
        let kept = [None, Some(Policy::Batch)].map(|policy| Precedence::new(policy, |_| panic!("it was changed")));
        for mut precedence in kept.into_iter().chain([Precedence::new(Some(Policy::Other), refused)]) {
            assert_eq!(precedence.sleeps(Instant::default() + SECOND), None);
            precedence.woke(Instant::default() + SECOND * 2);
            assert_eq!(precedence.policy, None);
        }
    }
}
