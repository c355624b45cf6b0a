//! The wall clock as people read it, for log lines: year to second, in the system's time zone.

#![cfg(feature = "daemon")]

use std::fmt;
use std::mem::MaybeUninit;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment in local time; prints as `2026/11/21 10:59:09`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalTime {
    year: i64,
    month: i32,
    day: i32,
    hour: i32,
    minute: i32,
    second: i32,
}

impl LocalTime {
    /// `time` in the system's time zone; `None` for a moment that the system cannot express.
    pub(crate) fn new(time: SystemTime) -> Option<Self> {
        let seconds = libc::time_t::try_from(time.duration_since(UNIX_EPOCH).ok()?.as_secs()).ok()?;
        let mut fields = MaybeUninit::<libc::tm>::uninit();
        // SAFETY: `seconds` is a live time_t and `fields` has room for a tm; both pointers are only
        // used during the call. localtime_r reads the variable TZ, and this program never changes
        // its environment.
        let result = unsafe { libc::localtime_r(&seconds, fields.as_mut_ptr()) };
        if result.is_null() {
            return None;
        }
        // SAFETY: a result that is not null says that localtime_r filled all fields in.
        let fields = unsafe { fields.assume_init() };
        Some(Self {
            year: i64::from(fields.tm_year) + 1900,
            month: fields.tm_mon + 1,
            day: fields.tm_mday,
            hour: fields.tm_hour,
            minute: fields.tm_min,
            second: fields.tm_sec,
        })
    }
}

impl fmt::Display for LocalTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}/{month:02}/{day:02} {hour:02}:{minute:02}:{second:02}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn prints_like_the_reference() {
        // Noon of 2001-09-09 in UTC is the same day in every zone but those beyond ±12 h.
        let text = LocalTime::new(UNIX_EPOCH + Duration::from_secs(1_000_036_800)).unwrap().to_string();
        assert!(text.starts_with("2001/09/09 ") || text.starts_with("2001/09/10 "), "{text}");
        assert_eq!(text.len(), "2026/11/21 10:59:09".len());
    }

    #[test]
    fn a_moment_before_1970_is_none() {
        assert_eq!(LocalTime::new(UNIX_EPOCH - Duration::from_secs(1)), None);
    }
}
