//! Deadlines: of flows (retransmissions, delayed acknowledgements, patience) and of tasks that wait for a time.
//!
//! One thread sleeps until the earliest. A flow has at most one entry, no later than when it has to be looked at; a deadline
//! that moves away, as the retransmission's does with each acknowledgement, moves nothing here: the flow is looked at in
//! vain once, and enters its new one.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::flow::Flow;

/// Whose deadline it is.
enum Owner {
    Flow(Weak<Flow>),
    Task(Waker),
}

#[derive(Default)]
struct State {
    /// By time, in microseconds, and number: a flow's is its address, a task's is odd and counts up.
    deadlines: BTreeMap<(u64, u64), Owner>,
    next_number: u64,
    is_closed: bool,
}

/// All deadlines of a stack.
pub(super) struct Timers {
    start: Instant,
    state: Mutex<State>,
    changed: Condvar,
}

/// The stack's clock begins here instead of at zero, which smoltcp takes for "now".
const CLOCK_START: Duration = Duration::from_secs(1);

impl Timers {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), state: Mutex::default(), changed: Condvar::new() }
    }

    /// The present, on the clock that flows know.
    pub(super) fn now(&self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros(self.micros(Instant::now()) as i64)
    }

    fn micros(&self, at: Instant) -> u64 {
        (at.saturating_duration_since(self.start) + CLOCK_START).as_micros() as u64
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a deadline; the thread is told if it is the earliest.
    fn insert(&self, state: &mut State, key: (u64, u64), owner: Owner) {
        let is_earliest = state.deadlines.first_key_value().is_none_or(|(first, _)| key < *first);
        state.deadlines.insert(key, owner);
        if is_earliest {
            self.changed.notify_one();
        }
    }

    /// Has the flow looked at no later than `at`.
    pub(super) fn schedule(&self, flow: &Arc<Flow>, at: smoltcp::time::Instant) {
        let at = at.total_micros() as u64;
        if at >= flow.alarm.load(Ordering::Relaxed) {
            return;
        }
        let number = Arc::as_ptr(flow) as u64;
        let mut state = self.lock();
        let before = flow.alarm.load(Ordering::Relaxed);
        if at >= before || state.is_closed {
            return;
        }
        state.deadlines.remove(&(before, number));
        flow.alarm.store(at, Ordering::Relaxed);
        self.insert(&mut state, (at, number), Owner::Flow(Arc::downgrade(flow)));
    }

    /// A flow is over.
    pub(super) fn forget(&self, flow: &Arc<Flow>) {
        let mut state = self.lock();
        state.deadlines.remove(&(flow.alarm.load(Ordering::Relaxed), Arc::as_ptr(flow) as u64));
        flow.clear_alarm();
    }

    /// Ends at `at`, or when the stack does.
    pub(super) fn sleep_until(self: &Arc<Self>, at: Instant) -> Sleep {
        Sleep { timers: Arc::clone(self), at, key: None }
    }

    /// The thread's work: passes to `ring` each flow whose deadline came. Returns once closed.
    pub(super) fn run(&self, mut ring: impl FnMut(Arc<Flow>)) {
        let mut state = self.lock();
        while !state.is_closed {
            let now = self.micros(Instant::now());
            let Some(first) = state.deadlines.first_entry() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let (at, _) = *first.key();
            if at > now {
                let rest = Duration::from_micros(at - now);
                state = self.changed.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let owner = first.remove();
            match owner {
                Owner::Flow(flow) => {
                    if let Some(flow) = flow.upgrade() {
                        flow.clear_alarm();
                        drop(state);
                        ring(flow);
                        state = self.lock();
                    }
                }
                Owner::Task(waker) => {
                    drop(state);
                    waker.wake();
                    state = self.lock();
                }
            }
        }
    }

    /// Ends the thread, and every sleep.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        let deadlines = std::mem::take(&mut state.deadlines);
        drop(state);
        self.changed.notify_all();
        for owner in deadlines.into_values() {
            if let Owner::Task(waker) = owner {
                waker.wake();
            }
        }
    }
}

/// A wait for a time.
pub(super) struct Sleep {
    timers: Arc<Timers>,
    at: Instant,
    /// Its entry.
    key: Option<(u64, u64)>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let timers = Arc::clone(&this.timers);
        let mut state = timers.lock();
        if let Some(key) = this.key.take() {
            state.deadlines.remove(&key);
        }
        if state.is_closed || Instant::now() >= this.at {
            return Poll::Ready(());
        }
        state.next_number += 2;
        // Rounded up, so that it is over when the waker is called.
        let key = (timers.micros(this.at) + 1, state.next_number | 1);
        timers.insert(&mut state, key, Owner::Task(context.waker().clone()));
        this.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.timers.lock().deadlines.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netstack::wait::block_on;

    #[test]
    fn sleeps_end_in_time_and_leave_nothing_behind() {
        let timers = Arc::new(Timers::new());
        let thread = std::thread::spawn({
            let timers = Arc::clone(&timers);
            move || timers.run(|_| ())
        });
        let start = Instant::now();
        for millis in [20, 5, 0] {
            let start = Instant::now();
            block_on(timers.sleep_until(start + Duration::from_millis(millis)));
            assert!(start.elapsed() >= Duration::from_millis(millis));
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        let mut never = Box::pin(timers.sleep_until(start + Duration::from_secs(1000)));
        assert!(never.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(timers.lock().deadlines.len(), 1);
        drop(never);
        assert_eq!(timers.lock().deadlines.len(), 0);

        let late = timers.sleep_until(start + Duration::from_secs(1000));
        let sleeper = std::thread::spawn(move || block_on(late));
        timers.close();
        sleeper.join().unwrap();
        thread.join().unwrap();
    }
}
