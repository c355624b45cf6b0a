//! Batches that the workers share: made once, lent out, given back.
//!
//! Their number bounds the memory of the data path and how far a worker can run ahead of the one that finishes the
//! head of a queue. Whoever finds none does something else, or waits for a worker that holds one; none of those ever
//! waits for anything in turn.
//!
//! A batch has a home: the worker whose processor has its memory in the cache. Whoever releases it gives it back there,
//! and each worker takes its own first, the last one before the others.

use std::ops::{Deref, DerefMut};

use crate::sync::{Mutex, lock, yield_now};

/// Batches that nobody uses now, by their home.
pub(crate) struct Pool<T>(Box<[Mutex<Vec<Lent<T>>>]>);

/// A batch in somebody's hands.
pub(crate) struct Lent<T> {
    home: usize,
    batch: Box<T>,
}

impl<T> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.batch
    }
}

impl<T> DerefMut for Lent<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.batch
    }
}

impl<T> Pool<T> {
    /// `count` batches for each of `workers`, each as `make` makes it.
    pub(crate) fn new(workers: usize, count: usize, make: impl Fn() -> T) -> Self {
        let lent = |home| Lent { home, batch: Box::new(make()) };
        Self((0..workers).map(|home| Mutex::new((0..count).map(|_| lent(home)).collect())).collect())
    }

    /// One of them for `worker`, if there is one.
    pub(crate) fn take(&self, worker: usize) -> Option<Lent<T>> {
        let own = lock(&self.0[worker]).pop();
        own.or_else(|| self.0.iter().find_map(|others| lock(others).pop()))
    }

    /// One of them for `worker`, as soon as there is one.
    pub(crate) fn wait(&self, worker: usize) -> Lent<T> {
        loop {
            match self.take(worker) {
                Some(batch) => return batch,
                None => yield_now(),
            }
        }
    }

    /// Gives one back.
    pub(crate) fn give_back(&self, batch: Lent<T>) {
        lock(&self.0[batch.home]).push(batch);
    }
}
