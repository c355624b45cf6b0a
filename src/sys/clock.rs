//! The two clocks that the rest of adit is given: one that counts through suspend and never goes
//! back, and the wall clock.
//!
//! `proto` reads neither; whoever drives it reads once for each train and passes the values in.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nanoseconds on `CLOCK_BOOTTIME`: monotonic, and time spent suspended counts, so that a key's age
/// does not stop with the lid of a laptop.
pub(crate) fn boottime_nanos() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec of this frame that the call may write; nothing keeps its address.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    assert_eq!(result, 0, "CLOCK_BOOTTIME exists on every Linux since 2.6.39");
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Time since 1970-01-01 00:00 UTC by the wall clock; zero on a clock that is set before it.
pub(crate) fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boottime_goes_on_and_never_back() {
        let mut last = boottime_nanos();
        let first = last;
        for _ in 0..1000 {
            let now = boottime_nanos();
            assert!(now >= last);
            last = now;
        }
        std::thread::sleep(Duration::from_millis(2));
        assert!(boottime_nanos() - first >= 2_000_000);
    }

    #[test]
    fn the_wall_clock_is_in_this_century() {
        assert!(unix_time() > Duration::from_secs(946_684_800));
    }
}
