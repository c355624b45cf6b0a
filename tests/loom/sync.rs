//! `crate::sync` of the library's files, here: loom's types where it has them, and what the pointers, queues and wakers of
//! other crates promise, in terms of loom's.

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex as Unmodelled, PoisonError, TryLockError};

pub(crate) use loom::sync::RwLock;
pub(crate) use loom::sync::atomic;
pub(crate) use loom::thread::yield_now;

use atomic::{AtomicUsize, Ordering};
use loom::sync::Condvar;

/// A lock. To loom an unlocking is no step that others could come before, so a thread that only tries would always find
/// the lock free after the last thing that its holder did with it; here it is one.
#[derive(Default)]
pub(crate) struct Mutex<T> {
    inner: loom::sync::Mutex<T>,
    unlocked: AtomicUsize,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { inner: loom::sync::Mutex::new(value), unlocked: AtomicUsize::new(0) }
    }
}

pub(crate) struct MutexGuard<'a, T> {
    inner: loom::sync::MutexGuard<'a, T>,
    unlocked: &'a AtomicUsize,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

impl<T> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        self.unlocked.fetch_add(1, Ordering::Relaxed);
    }
}

/// As the library's.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    MutexGuard { inner: mutex.inner.lock().unwrap_or_else(PoisonError::into_inner), unlocked: &mutex.unlocked }
}

/// As the library's.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    mutex.unlocked.load(Ordering::Relaxed);
    let inner = match mutex.inner.try_lock() {
        Ok(guard) => guard,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        Err(TryLockError::WouldBlock) => return None,
    };
    Some(MutexGuard { inner, unlocked: &mutex.unlocked })
}

/// A pointer that is stored with Release and loaded with Acquire, which is what arc-swap promises: a load may see an older
/// one. All that were ever stored are kept, so when the last holder lets go is not modelled.
pub(crate) struct ArcSwapAny<T> {
    /// Nothing that loom has to know of: its runs are one thread.
    stored: Unmodelled<Vec<T>>,
    current: AtomicUsize,
    /// Written by all: of each atomic loom remembers one access, so where a thread loads and then stores it would not try
    /// what happens if another one's load comes between.
    accessed: AtomicUsize,
}

pub(crate) type ArcSwap<T> = ArcSwapAny<Arc<T>>;
pub(crate) type ArcSwapOption<T> = ArcSwapAny<Option<Arc<T>>>;

/// What a load gives.
pub(crate) struct Guard<'a, T>(T, PhantomData<&'a ()>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> ArcSwapAny<T> {
    pub(crate) fn new(first: T) -> Self {
        Self { stored: Unmodelled::new(vec![first]), current: AtomicUsize::new(0), accessed: AtomicUsize::new(0) }
    }

    pub(crate) fn load_full(&self) -> T {
        self.accessed.fetch_add(1, Ordering::Relaxed);
        let current = self.current.load(Ordering::Acquire);
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)[current].clone()
    }

    pub(crate) fn load(&self) -> Guard<'_, T> {
        Guard(self.load_full(), PhantomData)
    }

    pub(crate) fn store(&self, value: T) {
        let number = {
            let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
            stored.push(value);
            stored.len() - 1
        };
        self.accessed.fetch_add(1, Ordering::Relaxed);
        // A swap, as arc-swap's.
        self.current.swap(number, Ordering::AcqRel);
    }
}

impl<T> ArcSwap<T> {
    pub(crate) fn from_pointee(value: T) -> Self {
        Self::new(Arc::new(value))
    }
}

impl<T> ArcSwapOption<T> {
    pub(crate) fn empty() -> Self {
        Self::new(None)
    }
}

/// A queue behind a lock: more than crossbeam's promises, where who pops sees what was done before the push, and no more.
pub(crate) struct SegQueue<T>(Mutex<VecDeque<T>>);

impl<T> SegQueue<T> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    pub(crate) fn push(&self, item: T) {
        lock(&self.0).push_back(item);
    }

    pub(crate) fn pop(&self) -> Option<T> {
        lock(&self.0).pop_front()
    }
}

/// An eventfd in an epoll set: whoever [sleeps](Self::sleep) returns once for all that came before.
#[derive(Clone)]
pub(crate) struct Waker(Arc<(loom::sync::Mutex<bool>, Condvar)>);

impl Waker {
    pub(crate) fn new() -> Self {
        Self(Arc::new((loom::sync::Mutex::new(false), Condvar::new())))
    }

    pub(crate) fn wake(&self) -> io::Result<()> {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_one();
        Ok(())
    }

    /// Waits without end: if nobody wakes it any more, loom finds a deadlock.
    pub(crate) fn sleep(&self) {
        let mut woken = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        while !*woken {
            woken = self.0.1.wait(woken).unwrap_or_else(PoisonError::into_inner);
        }
        *woken = false;
    }
}
