//! In-order release of what several threads finish in any order.
//!
//! Whoever takes work from a queue draws a ticket with it, under the queue's lock, so that tickets are in the order of
//! the queue. Whoever finishes work whose turn it is releases it, and others put theirs at its ticket's place; whoever finds the
//! head there releases it and all that follows without a gap. There is no thread for it, and nobody waits: work that is finished early is left for the
//! one who finishes what is before it.
//!
//! # Why nothing is left behind
//! A thread that puts an item and finds the exit locked leaves. The holder of the exit, whatever it wanted there, looks at the head's place once
//! more after it has unlocked. Both use that place's lock, so one of them comes first: if the item was put first, the
//! holder sees it; if the holder looked first, its unlocking happened before the item was put, and the exit was free
//! or somebody else's, to whom the same applies.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, lock, try_lock};

/// A place in the order: the first is 0, the next one more.
pub(crate) type Ticket = u64;

/// What is finished and waits for what is before it, and the exit that all of it leaves by.
pub(crate) struct Ordered<T, E> {
    /// A ticket's place is at its remainder.
    places: Box<[Mutex<Option<T>>]>,
    /// The ticket that is next to be released.
    head: AtomicU64,
    exit: Mutex<E>,
}

impl<T, E> Ordered<T, E> {
    /// Room for `places` tickets at least that are not released yet; there must never be more.
    pub(crate) fn new(places: usize, exit: E) -> Self {
        let places = (0..places.next_power_of_two()).map(|_| Mutex::new(None)).collect();
        Self { places, head: AtomicU64::new(0), exit: Mutex::new(exit) }
    }

    /// Releases what `ticket` was drawn for and what follows it, if it is its turn and no other thread is at the exit; puts it
    /// in its place if not. Every ticket must come here once, or nothing after it is ever released.
    pub(crate) fn finish(&self, ticket: Ticket, item: T, mut release: impl FnMut(&mut E, T)) {
        // While its ticket is the head nobody else moves that.
        let exit = if self.head.load(Ordering::Acquire) == ticket { try_lock(&self.exit) } else { None };
        if let Some(mut exit) = exit {
            release(&mut exit, item);
            self.head.store(ticket + 1, Ordering::Release);
        } else {
            let before = lock(self.place(ticket)).replace(item);
            debug_assert!(before.is_none(), "there are more tickets than places");
        }
        self.release_next(release);
    }

    /// Uses the exit out of turn, between two items.
    pub(crate) fn with_exit<R>(&self, using: impl FnOnce(&mut E) -> R, release: impl FnMut(&mut E, T)) -> R {
        let result = using(&mut lock(&self.exit));
        self.release_next(release);
        result
    }

    fn release_next(&self, mut release: impl FnMut(&mut E, T)) {
        while lock(self.place(self.head.load(Ordering::Acquire))).is_some() {
            let Some(mut exit) = try_lock(&self.exit) else { return };
            let mut head = self.head.load(Ordering::Acquire);
            while let Some(item) = { lock(self.place(head)).take() } {
                release(&mut exit, item);
                head += 1;
                self.head.store(head, Ordering::Release);
            }
        }
    }

    fn place(&self, ticket: Ticket) -> &Mutex<Option<T>> {
        // There is a power of two of them.
        &self.places[ticket as usize & (self.places.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;

    #[test]
    fn what_is_early_waits_for_the_head() {
        let ordered = Ordered::new(4, Vec::new());
        let finish = |ticket| ordered.finish(ticket, ticket, Vec::push);
        for (ticket, released) in [(2, 0), (1, 0), (0, 3), (4, 3), (3, 5), (5, 6)] {
            finish(ticket);
            assert_eq!(*lock(&ordered.exit), (0..released).collect::<Vec<_>>());
        }
    }

    /// Many threads, every interleaving that chance gives: all is released, once, in order.
    #[test]
    fn nothing_is_left_behind() {
        const THREADS: usize = 4;
        const ITEMS: u64 = 20_000;
        let ordered = Ordered::new(THREADS, Vec::new());
        let tickets = Mutex::new(0..ITEMS);
        let start = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    start.wait();
                    loop {
                        // A place is free only once the ticket that had it is released.
                        let ticket = {
                            let mut tickets = lock(&tickets);
                            let released = ordered.head.load(Ordering::Acquire);
                            if tickets.start >= released + THREADS as u64 {
                                continue;
                            }
                            tickets.next()
                        };
                        let Some(ticket) = ticket else { return };
                        if ticket % 3 == 0 {
                            std::thread::yield_now();
                        }
                        if ticket % 7 == 0 {
                            ordered.with_exit(|released| released.reserve(1), Vec::push);
                        }
                        ordered.finish(ticket, ticket, Vec::push);
                    }
                });
            }
        });
        assert!(lock(&ordered.exit).iter().copied().eq(0..ITEMS));
    }
}
