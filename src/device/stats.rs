//! What was dropped, and why: one counter for each [`Rejected`].

use std::sync::atomic::{AtomicU64, Ordering};

use crate::proto::rejected::Rejected;

/// Counters of drops, one for each rule, shared by all threads.
#[derive(Debug)]
pub(crate) struct Drops([AtomicU64; Rejected::COUNT]);

impl Default for Drops {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; Rejected::COUNT])
    }
}

impl Drops {
    /// Counts `n` drops by one rule; none cost nothing.
    pub(crate) fn count(&self, reason: Rejected, n: u64) {
        if n != 0 {
            self.0[reason.index()].fetch_add(n, Ordering::Relaxed);
        }
    }

    /// How many were dropped by this rule since the start.
    pub(crate) fn get(&self, reason: Rejected) -> u64 {
        self.0[reason.index()].load(Ordering::Relaxed)
    }
}
