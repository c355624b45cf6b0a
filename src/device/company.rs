//! Whether a worker that awaits an answer has its processor for itself.
//!
//! Linux puts a thread that a packet wakes onto the processor of who sent the packet, as that is about to sleep. A worker that
//! looks is not: two of them, the ends of a tunnel or of two, then share a processor while another one has nothing to do,
//! each in the other's way and far from the programs that the packets are for, until the system balances its processors some 60 ms later.
//!
//! Who lets others go first is back at once where nobody else wants the processor. So where a worker that awaits an answer from
//! elsewhere is away for longer again and again, it shares its processor, and moves to another one: at most once in [`PAUSE`],
//! and in twice as long each time that it does not help.

use std::time::Duration;

use super::pauses::Pauses;
use crate::proto::time::Instant;

/// It was away for this many times as long as takes who finds nobody: others were there, if only for a look.
const LONG: u32 = 4;

/// Less than any system call takes, should the clock be a coarse one.
const QUICKEST_MIN: Duration = Duration::from_nanos(50);

/// What it takes who finds nobody on a slow machine: who has had company from the start does not know better.
const QUICKEST_MAX: Duration = Duration::from_nanos(600);

/// An absence that was not long makes up for as many that were ...
const PROMPT_WEIGHT: u32 = 2;

/// ... and this many that nothing makes up for are too many: a few round trips'.
const UNPAID_MAX: u32 = 16;

/// The system needs longer to part two who share a processor.
const PAUSE: Duration = Duration::from_millis(10);

/// As where no processor is free.
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Who else is on one worker's processor.
#[derive(Debug)]
pub(super) struct Company {
    /// The shortest absence ever, or what that is thought to be.
    quickest: Duration,
    /// Long ones that nothing has made up for.
    unpaid: u32,
    /// After each move.
    pauses: Pauses,
}

impl Company {
    pub(super) fn new() -> Self {
        Self { quickest: QUICKEST_MAX, unpaid: 0, pauses: Pauses::new(PAUSE..=PAUSE_MAX) }
    }

    /// The worker awaits an answer, and let others go first, from `left` to `back`. Whether it had better move.
    pub(super) fn came_back(&mut self, left: Instant, back: Instant) -> bool {
        let away = back.since(left).max(QUICKEST_MIN);
        self.quickest = self.quickest.min(away);
        if away < self.quickest * LONG {
            self.unpaid = self.unpaid.saturating_sub(PROMPT_WEIGHT);
            return false;
        }
        self.unpaid = (self.unpaid + 1).min(UNPAID_MAX);
        if self.unpaid < UNPAID_MAX || !self.pauses.is_over(back) {
            return false;
        }
        self.unpaid = 0;
        self.pauses.begin(back, back);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: Duration = Duration::from_nanos(500);
    const SECOND: Duration = Duration::from_secs(1);
    const LOOK: Duration = Duration::from_micros(5);

    /// Lets others go first every 5 µs for `time`, who keep the processor for as long as `away` tells of each time, in turn.
    /// Returns how often it moved.
    fn look(company: &mut Company, now: &mut Instant, time: Duration, away: &[Duration]) -> u32 {
        let (end, mut moves, mut turns) = (*now + time, 0, away.iter().cycle());
        while *now < end {
            let left = *now + LOOK;
            *now = left + *turns.next().expect("there are some");
            moves += u32::from(company.came_back(left, *now));
        }
        moves
    }

    fn start() -> (Company, Instant) {
        let (mut company, mut now) = (Company::new(), Instant::default() + SECOND);
        assert_eq!(look(&mut company, &mut now, SECOND / 100, &[ALONE]), 0);
        (company, now)
    }

    #[test]
    fn who_shares_a_processor_moves_at_once_and_then_more_and_more_seldom() {
        let (mut company, mut now) = start();
        let shared = [ALONE * LONG];
        assert_eq!(look(&mut company, &mut now, (LOOK + shared[0]) * (UNPAID_MAX - 1), &shared), 0);
        assert_eq!(look(&mut company, &mut now, LOOK, &shared), 1);
        // 10, 20, ... ms later: seven times in 1.27 s.
        assert_eq!(look(&mut company, &mut now, SECOND * 127 / 100 + SECOND / 100, &shared), 7);
        assert_eq!(look(&mut company, &mut now, SECOND * 10, &shared), 5);
        // It had a processor for itself for some time.
        assert_eq!(look(&mut company, &mut now, SECOND * 5, &[ALONE]), 0);
        assert_eq!(look(&mut company, &mut now, PAUSE / 2, &shared), 1);
        assert_eq!(company.pauses.last(), PAUSE);
    }

    #[test]
    fn who_has_company_now_and_then_stays() {
        let (mut company, mut now) = start();
        assert_eq!(look(&mut company, &mut now, SECOND, &[ALONE * 3]), 0);
        assert_eq!(look(&mut company, &mut now, SECOND, &[ALONE, ALONE * 20, ALONE * 20]), 0);
        assert_ne!(look(&mut company, &mut now, SECOND, &[ALONE, ALONE * 20, ALONE * 20, ALONE * 20]), 0);
    }

    #[test]
    fn a_coarse_clock_moves_nobody_who_is_alone() {
        let (mut company, mut now) = (Company::new(), Instant::default() + SECOND);
        assert_eq!(look(&mut company, &mut now, SECOND, &[Duration::ZERO]), 0);
    }
}
