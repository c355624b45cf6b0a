//! The way to wake a thread, and the thread's way to sleep without missing it.
//!
//! - Telling a thread that was told already, and did not look yet, costs no system call.
//! - What was done before [`Signal::wake`] is seen by whoever has called [`Signal::acknowledge`] since, or it wakes up.
//! - Of a thread that goes to sleep and one that leaves it work, one at least sees the other.

use crate::sync::Waker;
use crate::sync::atomic::{AtomicBool, Ordering, fence};

/// The way to wake a thread.
pub(crate) struct Signal {
    waker: Waker,
    signalled: AtomicBool,
    asleep: AtomicBool,
}

impl Signal {
    pub(crate) fn new(waker: Waker) -> Self {
        Self { waker, signalled: AtomicBool::new(false), asleep: AtomicBool::new(false) }
    }

    /// Wakes the thread, unless it has been told already and did not look yet.
    pub(crate) fn wake(&self) {
        if !self.signalled.swap(true, Ordering::AcqRel)
            && let Err(error) = self.waker.wake()
        {
            tracing::error!("cannot wake a thread: {error}");
        }
    }

    /// The thread is about to look: from now on it must be woken again.
    pub(crate) fn acknowledge(&self) {
        // A swap, not a store: it sees what was done by whoever found the thread told already, and so did not wake it.
        self.signalled.swap(false, Ordering::AcqRel);
    }

    /// Whether there is something to look at.
    pub(crate) fn is_signalled(&self) -> bool {
        self.signalled.load(Ordering::Acquire)
    }

    /// The thread is going to sleep; false if it has something to do first: it was signalled, or `has_work` says so.
    /// Whoever leaves it work later finds it [asleep](Self::is_asleep).
    pub(crate) fn may_sleep(&self, has_work: impl FnOnce() -> bool) -> bool {
        self.asleep.store(true, Ordering::Relaxed);
        // Pairs with the fence in `is_asleep`.
        fence(Ordering::SeqCst);
        !self.is_signalled() && !has_work()
    }

    /// The thread has woken up.
    pub(crate) fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Whether it sleeps and nobody has woken it yet. To be asked after the work was left, and otherwise a hint.
    pub(crate) fn is_asleep(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && !self.is_signalled()
    }
}
