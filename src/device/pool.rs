//! Batches that the workers share: made once, lent out, given back.
//!
//! Their number bounds the memory of the data path and how far a worker can run ahead of the one that finishes the
//! head of a queue. Whoever finds none does something else, or waits for a worker that holds one; none of those ever
//! waits for anything in turn.

use std::sync::Mutex;
use std::thread;

use super::lock;

/// Batches that nobody uses now. The one that was given back last is lent first: it is still in the cache.
pub(crate) struct Pool<T>(Mutex<Vec<Box<T>>>);

impl<T> Pool<T> {
    /// `count` batches, each as `make` makes it.
    pub(crate) fn new(count: usize, mut make: impl FnMut() -> T) -> Self {
        Self(Mutex::new((0..count).map(|_| Box::new(make())).collect()))
    }

    /// One of them, if there is one.
    pub(crate) fn take(&self) -> Option<Box<T>> {
        lock(&self.0).pop()
    }

    /// One of them, as soon as there is one.
    pub(crate) fn wait(&self) -> Box<T> {
        loop {
            match self.take() {
                Some(batch) => return batch,
                None => thread::yield_now(),
            }
        }
    }

    /// Gives one back.
    pub(crate) fn give_back(&self, batch: Box<T>) {
        lock(&self.0).push(batch);
    }
}
