//! What happens to a device's peers, told as it happens.
//!
//! Whoever wants to know takes an [`Events`] from [`super::Device::events`]; each is a queue of its own, from then on.
//! A queue holds [`EVENTS_QUEUED_MAX`] events; beyond that the oldest are lost, and [`Event::Lost`] says how many. So
//! nobody who does not read costs memory, and the threads of the device never wait for a reader.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::key::PublicKey;
use crate::sync::lock;

/// Events that wait for a reader: each peer's session, on a device of several hundred peers that all come up at once.
pub const EVENTS_QUEUED_MAX: usize = 1024;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A handshake completed: packets can be sent to the peer. Comes every two minutes or so while traffic flows,
    /// as sessions are renewed.
    SessionUp {
        /// Whose session.
        peer: PublicKey,
    },
    /// The last session's keys were wiped: the next packet needs a handshake. Comes 540 s after the last handshake,
    /// and when the link goes down.
    SessionDown {
        /// Whose session.
        peer: PublicKey,
    },
    /// Handshakes were tried for 90 s and a few more, and none was answered; what waited for a session is dropped. The next packet
    /// to the peer starts over. [WP 6.4]
    HandshakeFailed {
        /// Who did not answer.
        peer: PublicKey,
    },
    /// An authentic message of the peer came from another address or port than it was known at: it is answered there
    /// from now on. [WP 2.1]
    EndpointMoved {
        /// Who moved.
        peer: PublicKey,
        /// Where it is now.
        endpoint: SocketAddr,
    },
    /// So many events were lost, because they were not read in time.
    Lost(u64),
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    lost: u64,
    closed: bool,
    waker: Option<Waker>,
}

impl State {
    fn pop(&mut self) -> Option<Event> {
        match std::mem::take(&mut self.lost) {
            0 => self.events.pop_front(),
            lost => Some(Event::Lost(lost)),
        }
    }
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

impl Queue {
    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        change(&mut state);
        let waker = state.waker.take();
        drop(state);
        self.changed.notify_one();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Events of a device, in the order in which they happened, from the call of [`super::Device::events`] on. It ends
/// when the device has.
pub struct Events {
    queue: Arc<Queue>,
}

impl Events {
    /// The next event; `None` when there is none now.
    pub fn try_recv(&self) -> Option<Event> {
        lock(&self.queue.state).pop()
    }

    /// Waits for the next event, as long as said. `None` when there was none, or when the device has ended and all
    /// were read.
    pub fn recv_timeout(&self, timeout: Duration) -> Option<Event> {
        let until = Instant::now().checked_add(timeout);
        let mut state = lock(&self.queue.state);
        loop {
            if let Some(event) = state.pop() {
                return Some(event);
            }
            let left = until.map_or(timeout, |until| until.saturating_duration_since(Instant::now()));
            if state.closed || left.is_zero() {
                return None;
            }
            let waited = self.queue.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }

    /// The next event, for a task: wakes it when there is one. `Ready(None)` when the device has ended and all were
    /// read. One task at a time may wait: the last one that asked is woken.
    pub fn poll_recv(&self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut state = lock(&self.queue.state);
        match state.pop() {
            Some(event) => Poll::Ready(Some(event)),
            None if state.closed => Poll::Ready(None),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

/// Waits for each event until the device ends.
impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let mut state = lock(&self.queue.state);
        loop {
            if let Some(event) = state.pop() {
                return Some(event);
            }
            if state.closed {
                return None;
            }
            state = self.queue.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

/// Where the device's threads tell what happens.
#[derive(Default)]
pub(crate) struct Announcer {
    /// There may be somebody who listens.
    listened_to: AtomicBool,
    listeners: Mutex<Listeners>,
}

#[derive(Default)]
struct Listeners {
    queues: Vec<Weak<Queue>>,
    closed: bool,
}

impl Announcer {
    /// A new queue.
    pub(crate) fn listen(&self) -> Events {
        let queue = Arc::new(Queue::default());
        let mut listeners = lock(&self.listeners);
        listeners.queues.retain(|queue| queue.strong_count() != 0);
        if listeners.closed {
            lock(&queue.state).closed = true;
        } else {
            listeners.queues.push(Arc::downgrade(&queue));
            self.listened_to.store(true, Ordering::Relaxed);
        }
        Events { queue }
    }

    /// Tells everybody who listens.
    pub(crate) fn announce(&self, event: impl Fn() -> Event) {
        if !self.listened_to.load(Ordering::Relaxed) {
            return;
        }
        for queue in lock(&self.listeners).queues.iter().filter_map(Weak::upgrade) {
            queue.change(|state| {
                if state.events.len() >= EVENTS_QUEUED_MAX {
                    state.events.pop_front();
                    state.lost += 1;
                }
                state.events.push_back(event());
            });
        }
    }

    /// There will be no more.
    pub(crate) fn close(&self) {
        let mut listeners = lock(&self.listeners);
        listeners.closed = true;
        for queue in listeners.queues.drain(..).filter_map(|queue| queue.upgrade()) {
            queue.change(|state| state.closed = true);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    fn up(number: usize) -> Event {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        Event::SessionUp { peer: PublicKey::from_bytes(key) }
    }

    #[test]
    fn each_listener_hears_everything_from_its_beginning_on() {
        let announcer = Announcer::default();
        announcer.announce(|| up(0));
        let first = announcer.listen();
        announcer.announce(|| up(1));
        let second = announcer.listen();
        announcer.announce(|| up(2));
        assert_eq!(first.try_recv(), Some(up(1)));
        assert_eq!(first.try_recv(), Some(up(2)));
        assert_eq!(first.try_recv(), None);
        announcer.close();
        assert_eq!(second.collect::<Vec<_>>(), [up(2)]);
        assert_eq!(announcer.listen().recv_timeout(Duration::from_secs(3600)), None);
    }

    #[test]
    fn the_oldest_are_lost_and_counted() {
        let announcer = Announcer::default();
        let events = announcer.listen();
        (0..EVENTS_QUEUED_MAX + 3).for_each(|number| announcer.announce(|| up(number)));
        assert_eq!(events.try_recv(), Some(Event::Lost(3)));
        assert_eq!(events.try_recv(), Some(up(3)));
        assert_eq!(std::iter::from_fn(|| events.try_recv()).count(), EVENTS_QUEUED_MAX - 1);
    }

    #[test]
    fn a_listener_that_is_gone_is_forgotten() {
        let announcer = Announcer::default();
        for _ in 0..10 {
            drop(announcer.listen());
        }
        let _last = announcer.listen();
        assert_eq!(lock(&announcer.listeners).queues.len(), 1);
    }

    #[test]
    fn waiting_ends_with_an_event_with_the_time_and_with_the_device() {
        let announcer = Arc::new(Announcer::default());
        let mut events = announcer.listen();
        assert_eq!(events.recv_timeout(Duration::from_millis(1)), None);
        let teller = announcer.clone();
        let thread = std::thread::spawn(move || {
            teller.announce(|| up(1));
            teller.close();
        });
        assert_eq!(events.next(), Some(up(1)));
        assert_eq!(events.next(), None);
        thread.join().expect("it ends");
    }

    #[test]
    fn a_task_is_woken() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(count.clone());
        let announcer = Announcer::default();
        let events = announcer.listen();
        let mut context = Context::from_waker(&waker);
        assert_eq!(events.poll_recv(&mut context), Poll::Pending);
        announcer.announce(|| up(1));
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(events.poll_recv(&mut context), Poll::Ready(Some(up(1))));
        assert_eq!(events.poll_recv(&mut context), Poll::Pending);
        announcer.close();
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert_eq!(events.poll_recv(&mut context), Poll::Ready(None));
    }
}
