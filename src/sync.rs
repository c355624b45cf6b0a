//! What threads share memory by, under one name.
//!
//! Files whose concurrent part is checked by a model take it from here, and nothing else of the kind: `tests/loom`
//! compiles these same files with types of these names that try out every order of events, within bounds.

pub(crate) use core::sync::atomic;

#[cfg(feature = "device")]
pub(crate) use crate::sys::poll::Waker;
#[cfg(feature = "device")]
pub(crate) use arc_swap::{ArcSwap, ArcSwapOption};
#[cfg(feature = "device")]
pub(crate) use crossbeam_queue::SegQueue;
#[cfg(feature = "device")]
pub(crate) use std::sync::{Mutex, MutexGuard, RwLock};
#[cfg(feature = "device")]
pub(crate) use std::thread::yield_now;

#[cfg(feature = "device")]
use std::sync::TryLockError;

/// Locks; a panic elsewhere has closed the device already, its data may still be looked at.
#[cfg(feature = "device")]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Locks if nobody else has.
#[cfg(feature = "device")]
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
