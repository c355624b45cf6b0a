//! How long a thread has been at work without rest, and whether it had its processor for itself.
//!
//! A thread that never waits for anything uses as much processor time as passes. What is missing went to others on the
//! same processor: so there is none to spare.

use std::time::Duration;

use crate::proto::time::Instant;

/// A stretch of work that is judged: many times what it takes to wake a helper.
pub(super) const STRETCH: Duration = Duration::from_millis(10);

/// Work that ends before this is not looked at, as that takes a system call.
const SHORT: Duration = Duration::from_millis(1);

/// What a busy thread has of its processor when it has it for itself, in percent. With company it is half, or less; an
/// interrupt or a neighbour of a virtual machine takes little.
const ALONE_AT: u64 = 90;

/// One thread's stretches of work.
#[derive(Debug, Default)]
pub(super) struct Stretches {
    started: Option<Instant>,
    /// When the one to be judged began, and the nanoseconds of processor time that the thread had used by then.
    judged: Option<(Instant, u64)>,
}

impl Stretches {
    /// The thread rests.
    pub(super) fn end(&mut self) {
        *self = Self::default();
    }

    /// The thread is at work at `now`; `used` tells the nanoseconds of processor time that it has used. After each
    /// [`STRETCH`], says whether it was alone on its processor.
    pub(super) fn at_work(&mut self, now: Instant, used: impl FnOnce() -> u64) -> Option<bool> {
        let started = *self.started.get_or_insert(now);
        let Some((since, used_then)) = self.judged else {
            if now.since(started) >= SHORT {
                self.judged = Some((now, used()));
            }
            return None;
        };
        let passed = now.since(since);
        if passed < STRETCH {
            return None;
        }
        let used = used();
        self.judged = Some((now, used));
        Some((used - used_then) * 100 >= passed.as_nanos() as u64 * ALONE_AT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Works for `millis`, of which it has `percent`; returns all judgements.
    fn work(stretches: &mut Stretches, start: Instant, millis: u64, percent: u64) -> Vec<bool> {
        let judged = (0..millis * 10).filter_map(|tenth| {
            let passed = Duration::from_micros(tenth * 100);
            let used = move || passed.as_nanos() as u64 * percent / 100;
            stretches.at_work(start + passed, used)
        });
        judged.collect()
    }

    #[test]
    fn company_is_noticed() {
        let start = Instant::default() + Duration::from_secs(1);
        let mut stretches = Stretches::default();
        for (percent, alone) in [(100, true), (91, true), (89, false), (50, false)] {
            stretches.end();
            assert_eq!(work(&mut stretches, start, 40, percent), [alone; 3], "{percent} %");
        }
    }

    #[test]
    fn rests_part_stretches() {
        let mut stretches = Stretches::default();
        for start in 1..20 {
            let start = Instant::default() + Duration::from_secs(start);
            assert_eq!(work(&mut stretches, start, 9, 100), []);
            stretches.end();
        }
        let never = || unreachable!("a short stretch is not worth a system call");
        assert_eq!(stretches.at_work(Instant::default(), never), None);
    }
}
