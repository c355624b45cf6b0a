//! The system's allocator, with counters before it: for a test that is alone in its file, since they are of the process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// Allocations so far of all threads but those that asked not to be counted.
static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Bytes that are allocated and not freed.
static LIVE_BYTES: AtomicI64 = AtomicI64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(true) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Counting;

// SAFETY: every call goes to the system's allocator as it came; the counting allocates nothing, since the thread's
// flag is a constant until it is set and has no destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.get() {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        LIVE_BYTES.fetch_add(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system allocator's condition.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as i64, Ordering::Relaxed);
        // SAFETY: the pointer came from the system's allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Of this thread nothing is counted from now on.
#[allow(dead_code, reason = "not every test has a thread to leave out")]
pub(crate) fn leave_this_thread_out() {
    COUNTED.set(false);
}

/// How many allocations there were.
#[allow(dead_code, reason = "not every test counts them")]
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// How much is allocated, whatever the system's allocator keeps beside it.
#[allow(dead_code, reason = "not every test asks")]
pub(crate) fn live_bytes() -> i64 {
    LIVE_BYTES.load(Ordering::Relaxed)
}
