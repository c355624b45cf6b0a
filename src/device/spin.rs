//! Whether to wait for the next packet with open eyes.
//!
//! Waking a thread that sleeps takes longer than everything else that happens to a packet: tens of microseconds on a
//! virtual machine. So a worker that has run out of work looks again for a short window before it sleeps. That pays
//! only if something comes within the window, and it is paid in processor time:
//!
//! - looking in vain is paid from an allowance, which grows by [`ALLOWANCE`] of the time that passes: however sparse
//!   the traffic, no more than that of one processor is wasted;
//! - after [`MISSES_MAX`] windows in a row in which nothing came, it is given up for [`PAUSE`];
//! - a worker that sleeps does not wake up for it: without traffic it costs nothing.

use std::time::Duration;

use crate::proto::time::Instant;

/// How long a worker looks before it sleeps, if nothing else is said: about what a round trip on a virtual machine takes
/// when nobody sleeps, and half of it again.
pub(super) const WINDOW: Duration = Duration::from_micros(100);

/// The longest window that can be asked for; beyond it a sleep costs less than the waiting.
pub const WINDOW_MAX: Duration = Duration::from_millis(1);

/// What may be wasted: one part in this many of one processor's time.
const ALLOWANCE: u32 = 4;

/// Windows that the allowance can hold: how much may be wasted at once after a quiet time.
const SAVED_MAX: u32 = 8;

/// Windows in a row without a packet after which it is given up ...
const MISSES_MAX: u32 = 32;

/// ... for this long.
const PAUSE: Duration = Duration::from_millis(50);

/// One worker's habit of looking before it sleeps.
#[derive(Debug)]
pub(super) struct Spin {
    /// How long it looks; zero for never.
    window: Duration,
    /// What may still be wasted.
    allowance: Duration,
    /// Until when the allowance has been credited.
    credited: Instant,
    /// Windows in a row without a packet.
    misses: u32,
    paused_until: Instant,
}

impl Spin {
    /// Looks for `window` at a time, [`WINDOW_MAX`] at most; zero turns it off.
    pub(super) fn new(window: Duration) -> Self {
        let (never, none) = (Instant::default(), Duration::ZERO);
        Self { window: window.min(WINDOW_MAX), allowance: none, credited: never, misses: 0, paused_until: never }
    }

    /// Until when to look; `None` to sleep at once.
    pub(super) fn until(&mut self, now: Instant) -> Option<Instant> {
        let earned = now.since(self.credited) / ALLOWANCE;
        self.credited = now;
        self.allowance = (self.allowance + earned).min(self.window * SAVED_MAX);
        let worth = !self.window.is_zero() && now >= self.paused_until && self.allowance >= self.window;
        worth.then(|| now + self.window)
    }

    /// Something came while it looked.
    pub(super) fn hit(&mut self) {
        self.misses = 0;
    }

    /// It looked from `start` until `now`, and nothing came.
    pub(super) fn missed(&mut self, start: Instant, now: Instant) {
        self.allowance = self.allowance.saturating_sub(now.since(start));
        self.misses += 1;
        if self.misses >= MISSES_MAX {
            self.misses = 0;
            self.paused_until = now + PAUSE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Packets at equal distances for a second; returns what was wasted, and how many were met with open eyes.
    fn traffic(spin: &mut Spin, gap: Duration) -> (Duration, u32) {
        let mut now = Instant::default() + SECOND;
        let end = now + SECOND;
        let (mut wasted, mut met) = (Duration::ZERO, 0);
        while now < end {
            let next = now + gap;
            match spin.until(now) {
                Some(until) if next <= until => {
                    spin.hit();
                    met += 1;
                }
                Some(until) => {
                    spin.missed(now, until);
                    wasted += until.since(now);
                }
                None => {}
            }
            now = next;
        }
        (wasted, met)
    }

    #[test]
    fn what_comes_soon_is_met() {
        let (wasted, met) = traffic(&mut Spin::new(WINDOW), Duration::from_micros(50));
        assert_eq!((wasted, met), (Duration::ZERO, 20_000));
    }

    #[test]
    fn sparse_traffic_wastes_no_more_than_the_allowance() {
        for gap in [101, 110, 150, 200, 240, 300, 400, 500, 1000, 10_000] {
            let (wasted, met) = traffic(&mut Spin::new(WINDOW), Duration::from_micros(gap));
            assert!(wasted <= SECOND / ALLOWANCE, "{gap} µs: {wasted:?}");
            assert_eq!(met, 0);
        }
        // At such a rate it never pays, and is given up.
        assert!(traffic(&mut Spin::new(WINDOW), Duration::from_micros(200)).0 < SECOND / 15);
    }

    #[test]
    fn zero_turns_it_off() {
        assert_eq!(traffic(&mut Spin::new(Duration::ZERO), Duration::from_micros(1)), (Duration::ZERO, 0));
    }
}
