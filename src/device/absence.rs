//! Letting others go first, as long as they give the processor back.
//!
//! Who runs without rest keeps others from the processor until its time is up, some milliseconds. Among them may be the
//! very program that a packet is for, or the other end of the tunnel. So a worker lets them go first at moments of its
//! choice. Those who wait for packets take what there is and wait again. Who is busy with something else keeps the
//! processor until *its* time is up, and Linux books that on who gave way: a worker that goes on giving way gets a
//! fraction of its share. So it looks at how long it was away each time, and stops for a while where that is long too often.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::pauses::Pauses;
use crate::proto::time::Instant;

/// What makes up for absences makes up for one part in this many of a long one.
const LONG_WEIGHT: u32 = 8;

/// As many long ones that nothing makes up for are too many: a machine that stops now and then has fewer.
const UNPAID_MAX: u32 = 8 * LONG_WEIGHT;

/// One worker's absences from its processor.
#[derive(Debug)]
pub(super) struct Absences {
    /// An absence is long from here on.
    long: Duration,
    pauses: Pauses,
    /// Long ones that nothing has made up for yet, each of [`LONG_WEIGHT`].
    unpaid: u32,
}

impl Absences {
    pub(super) fn new(long: Duration, pauses: RangeInclusive<Duration>) -> Self {
        Self { long, pauses: Pauses::new(pauses), unpaid: 0 }
    }

    /// Whether others may go first at `now`.
    pub(super) fn allowed(&self, now: Instant) -> bool {
        self.pauses.is_over(now)
    }

    /// Others went first, from `left` to `back`. Returns whether that was long.
    pub(super) fn came_back(&mut self, left: Instant, back: Instant) -> bool {
        let long = back.since(left) >= self.long;
        if long {
            self.unpaid += LONG_WEIGHT;
        }
        if self.unpaid >= UNPAID_MAX {
            self.unpaid = 0;
            self.pauses.begin(left, back);
        }
        long
    }

    /// To let others go first was worth it.
    pub(super) fn made_up(&mut self) {
        self.unpaid = self.unpaid.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(1);
    const PAUSES: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(2);
    const SECOND: Duration = Duration::from_secs(1);

    /// Works for `time`, and lets others go first every 200 µs, who keep the processor for as long as `away` tells of each
    /// time, in turn. Returns for how long it was away.
    fn work(absences: &mut Absences, now: &mut Instant, time: Duration, away: &[Duration]) -> Duration {
        let (end, mut all, mut turns) = (*now + time, Duration::ZERO, away.iter().cycle());
        while *now < end {
            *now = *now + Duration::from_micros(200);
            if absences.allowed(*now) {
                let away = *turns.next().expect("there are some");
                let back = *now + away;
                if !absences.came_back(*now, back) {
                    absences.made_up();
                }
                (*now, all) = (back, all + away);
            }
        }
        all
    }

    fn start() -> (Absences, Instant) {
        (Absences::new(LONG, PAUSES), Instant::default() + SECOND)
    }

    #[test]
    fn who_is_busy_gets_little_of_the_time() {
        let (mut absences, mut now) = start();
        let away = work(&mut absences, &mut now, SECOND * 10, &[LONG * 4]);
        assert!(away < SECOND / 2, "{away:?}");
        // It is tried again.
        let away = work(&mut absences, &mut now, SECOND * 10, &[LONG * 4]);
        assert!(!away.is_zero() && away < SECOND / 5, "{away:?}");
    }

    #[test]
    fn others_go_first_as_long_as_they_give_it_back() {
        let short = LONG - Duration::from_micros(1);
        let mostly: Vec<_> = [LONG * 4].into_iter().chain([short; LONG_WEIGHT as usize]).collect();
        for away in [&[short][..], &mostly] {
            let (mut absences, mut now) = start();
            work(&mut absences, &mut now, SECOND * 10, away);
            assert_eq!(absences.pauses.last(), Duration::ZERO, "{away:?}");
        }
        let often: Vec<_> = [LONG].into_iter().chain([short; LONG_WEIGHT as usize / 2]).collect();
        let (mut absences, mut now) = start();
        work(&mut absences, &mut now, SECOND * 10, &often);
        assert_eq!(absences.pauses.last(), *PAUSES.end());
    }

    #[test]
    fn a_pause_is_short_again_after_a_good_time() {
        let (mut absences, mut now) = start();
        work(&mut absences, &mut now, SECOND * 10, &[LONG * 4]);
        assert_eq!(absences.pauses.last(), *PAUSES.end());
        now = absences.pauses.until();
        work(&mut absences, &mut now, SECOND * 3, &[Duration::ZERO]);
        work(&mut absences, &mut now, LONG * 4 * (UNPAID_MAX / LONG_WEIGHT), &[LONG * 4]);
        assert_eq!(absences.pauses.last(), *PAUSES.start());
    }

    /// A machine that stops now and then is none whose processors are wanted by others.
    #[test]
    fn a_few_long_ones_say_nothing() {
        let (mut absences, mut now) = start();
        work(&mut absences, &mut now, LONG * 7, &[LONG]);
        assert!(absences.unpaid > 0 && absences.pauses.last().is_zero());
    }
}
