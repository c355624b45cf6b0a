//! Time as the protocol sees it: values that only a caller can make.
//!
//! `proto` reads no clock. Outside, [`Instant`] comes from `CLOCK_BOOTTIME`, which counts through
//! suspend, so that a key's age does too; [`UnixTime`] comes from the wall clock and is used for the
//! handshake timestamp and for display only.

use core::ops::{Add, Sub};
use core::time::Duration;

/// A point on a clock that never goes back, in nanoseconds since an arbitrary start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// An instant from nanoseconds since the clock's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_nanos() as u64))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(duration.as_nanos() as u64))
    }
}

/// Time since 1970-01-01 00:00 UTC by the wall clock, leap seconds not counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UnixTime(pub Duration);

/// Both clocks, read together: what the slow path needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Now {
    /// The clock that never goes back.
    pub instant: Instant,
    /// The wall clock.
    pub unix: UnixTime,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing wraps: neither before the clock's start nor beyond its end.
    #[test]
    fn time_stays_on_the_clock() {
        let (second, start) = (Duration::from_secs(1), Instant::default());
        let (early, late) = (Instant::from_nanos(7), Instant::from_nanos(1_000_000_007));
        assert_eq!((early + second, late - second), (late, early));
        assert_eq!((late.since(early), early.since(late)), (second, Duration::ZERO));
        assert_eq!((early - second, Instant::from_nanos(u64::MAX) + second), (start, Instant::from_nanos(u64::MAX)));
        assert_eq!(late.as_nanos(), 1_000_000_007);
    }
}
