//! Pauses from what does not pay at the moment: each longer than the one before, while it goes on not to.

use std::ops::RangeInclusive;
use std::time::Duration;

use crate::proto::time::Instant;

/// The pauses from one thing.
#[derive(Debug)]
pub(super) struct Pauses {
    /// The shortest pause and the longest: each is twice as long as the one before, if that ended no longer ago than the
    /// longest takes.
    lengths: RangeInclusive<Duration>,
    /// How long the last one was.
    last: Duration,
    until: Instant,
}

impl Pauses {
    pub(super) fn new(lengths: RangeInclusive<Duration>) -> Self {
        Self { lengths, last: Duration::ZERO, until: Instant::default() }
    }

    /// Whether it may be tried again at `now`.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// What was tried at `began` did not pay: the next pause, from `now` on.
    pub(super) fn begin(&mut self, began: Instant, now: Instant) {
        let soon = began.since(self.until) < *self.lengths.end();
        let next = if soon { self.last * 2 } else { Duration::ZERO };
        self.last = next.clamp(*self.lengths.start(), *self.lengths.end());
        self.until = now + self.last;
    }

    /// How long the last one was.
    #[cfg(test)]
    pub(super) fn last(&self) -> Duration {
        self.last
    }

    /// When it is over.
    #[cfg(test)]
    pub(super) fn until(&self) -> Instant {
        self.until
    }
}
