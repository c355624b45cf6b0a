//! The clocks of all devices of the process: the system's, or in soak tests faster ones.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::proto::time::{Instant, Now, UnixTime};
use crate::sys::clock;

/// How many seconds pass in one.
static FACTOR: AtomicU32 = AtomicU32::new(1);

/// Lets time pass `factor` times as fast for every device of the process, so that a test sees a day's rekeys in minutes.
/// Call it once, before the first device starts: what time passed already counts as well.
#[doc(hidden)]
pub fn accelerate(factor: u32) {
    FACTOR.store(factor.max(1), Ordering::Relaxed);
}

fn factor() -> u32 {
    FACTOR.load(Ordering::Relaxed)
}

/// The clock that never goes back and counts through suspend.
pub(super) fn now() -> Instant {
    Instant::from_nanos(clock::boottime_nanos() * u64::from(factor()))
}

/// Both clocks.
pub(super) fn now_both() -> Now {
    let ahead = Duration::from_nanos(clock::boottime_nanos() * u64::from(factor() - 1));
    Now { instant: now(), unix: UnixTime(clock::unix_time() + ahead) }
}

/// How long a thread has to sleep until `duration` has passed.
pub(super) fn to_sleep(duration: Duration) -> Duration {
    duration / factor()
}
