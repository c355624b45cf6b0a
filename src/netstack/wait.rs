//! Waiting, for threads and for tasks alike: whoever waits leaves a [`Waker`], a blocked thread one that unparks it.
//!
//! Everything in this folder that can wait is a poll function or a future; the blocking types run them with
//! [`block_on`], the asynchronous ones hand them to their runtime. There is no second implementation.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Instant;

/// Waiters that one event remembers. The longest waiting of more is woken for nothing and registers again: tasks that
/// were cancelled leave wakers behind, which must not add up.
const WAITERS_MAX: usize = 64;

/// Who waits for one event. The first has a place of its own, so that the common case allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Wakers {
    first: Option<Waker>,
    more: Vec<Waker>,
}

impl Wakers {
    /// Adds a waiter, once.
    pub(super) fn register(&mut self, waker: &Waker) {
        if self.first.iter().chain(&self.more).any(|known| known.will_wake(waker)) {
            return;
        }
        if self.first.is_none() {
            self.first = Some(waker.clone());
            return;
        }
        if self.more.len() == WAITERS_MAX {
            self.more.remove(0).wake();
        }
        self.more.push(waker.clone());
    }

    /// Takes all of them out, to be woken once no lock is held.
    pub(super) fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    /// Wakes all.
    pub(super) fn wake(self) {
        self.first.into_iter().chain(self.more).for_each(Waker::wake);
    }
}

/// Unparks a thread.
struct Parker {
    thread: Thread,
    /// Tells a wake-up from somebody else's `unpark`.
    woken: AtomicBool,
}

impl Wake for Parker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            self.thread.unpark();
        }
    }
}

thread_local! {
    static PARKER: RefCell<Option<(Arc<Parker>, Waker)>> = const { RefCell::new(None) };
}

fn parker() -> (Arc<Parker>, Waker) {
    PARKER.with_borrow_mut(|slot| {
        slot.get_or_insert_with(|| {
            let parker = Arc::new(Parker { thread: std::thread::current(), woken: AtomicBool::new(false) });
            (Arc::clone(&parker), Waker::from(parker))
        })
        .clone()
    })
}

/// Polls until there is a result, sleeping in between. `None` when `deadline` came first.
pub(super) fn block_on_poll<T>(
    deadline: Option<Instant>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    let (parker, waker) = parker();
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(result) = poll(&mut context) {
            return Some(result);
        }
        while !parker.woken.swap(false, Ordering::AcqRel) {
            match deadline {
                None => std::thread::park(),
                Some(deadline) => {
                    let rest = deadline.saturating_duration_since(Instant::now());
                    if rest.is_zero() {
                        return None;
                    }
                    std::thread::park_timeout(rest);
                }
            }
        }
    }
}

/// Runs a future on this thread.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut future = pin!(future);
    block_on_poll(None, |context| future.as_mut().poll(context)).expect("there is no deadline")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Count(std::sync::atomic::AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn wakers_are_registered_once_and_bounded() {
        let counts: Vec<_> = (0..WAITERS_MAX + 5).map(|_| Arc::new(Count(0.into()))).collect();
        let mut wakers = Wakers::default();
        for count in counts.iter().chain(&counts[..3]) {
            let waker = Waker::from(Arc::clone(count));
            wakers.register(&waker);
            wakers.register(&waker);
        }
        assert!(wakers.more.len() <= WAITERS_MAX);
        wakers.take().wake();
        assert!(counts.iter().all(|count| count.0.load(Ordering::Relaxed) >= 1), "none is forgotten");
        assert!(wakers.first.is_none());
    }

    #[test]
    fn a_blocked_thread_ends_at_its_deadline_or_when_woken() {
        let start = Instant::now();
        let deadline = start + Duration::from_millis(20);
        assert_eq!(block_on_poll(Some(deadline), |_| Poll::<()>::Pending), None);
        assert!(start.elapsed() >= Duration::from_millis(20));

        let mut polls = 0;
        let result = block_on(std::future::poll_fn(|context| {
            polls += 1;
            let waker = context.waker().clone();
            std::thread::spawn(move || waker.wake());
            if polls == 3 { Poll::Ready(7) } else { Poll::Pending }
        }));
        assert_eq!(result, 7);
    }
}
