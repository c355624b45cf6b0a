//! The handshake's timestamp: TAI64N, whitened. [WP 5.1]
//!
//! Twelve bytes, big-endian: seconds since 1970 TAI plus 2^62, then nanoseconds. Compared as bytes,
//! which is compared by time. The low 24 bits of the nanoseconds are zero, so that a timestamp tells an
//! eavesdropper who later learns the static key nothing about the host's clock below 17 ms.
//!
//! The seconds are Unix time plus ten, as the kernel has them; leap seconds since 1972 are not counted.
//! Implementations that count them are 27 s ahead, and a key that moves from one of them to here is
//! refused for so long.
//!
//! Invariant: [`Tai64n::after`] gives stamps that grow, whatever the wall clock does.

use crate::proto::time::UnixTime;

/// Bytes of a timestamp.
pub const TAI64N_LEN: usize = 12;
/// What Unix seconds lack of TAI64 seconds: 2^62, and the ten seconds of 1970.
const UNIX_EPOCH: u64 = 0x4000_0000_0000_000a;
/// The bits of the nanoseconds that are kept.
const NANOSECONDS_MASK: u32 = !0x00ff_ffff;
/// The smallest step between two whitened stamps of one second.
const STEP_NANOS: u32 = 0x0100_0000;
const NANOS_PER_SECOND: u32 = 1_000_000_000;

/// A timestamp; the default is before every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tai64n([u8; TAI64N_LEN]);

impl Tai64n {
    fn new(seconds: u64, nanos: u32) -> Self {
        let mut bytes = [0; TAI64N_LEN];
        bytes[..8].copy_from_slice(&seconds.to_be_bytes());
        bytes[8..].copy_from_slice(&nanos.to_be_bytes());
        Self(bytes)
    }

    /// The whitened stamp of a time of the wall clock.
    pub fn from_unix(time: UnixTime) -> Self {
        let seconds = UNIX_EPOCH.saturating_add(time.0.as_secs());
        Self::new(seconds, time.0.subsec_nanos() & NANOSECONDS_MASK)
    }

    /// A stamp as it came over the wire. Any twelve bytes are accepted: only their order counts.
    pub const fn from_bytes(bytes: [u8; TAI64N_LEN]) -> Self {
        Self(bytes)
    }

    /// The twelve bytes for the wire.
    pub const fn as_bytes(&self) -> &[u8; TAI64N_LEN] {
        &self.0
    }

    /// This stamp, or the next one after `last` if this is not greater: what a sender whose wall clock
    /// went back sends, because its peer accepts only greater stamps.
    #[must_use]
    pub fn after(self, last: Self) -> Self {
        if self > last { self } else { last.next() }
    }

    /// The smallest whitened stamp that is greater.
    fn next(self) -> Self {
        let (seconds, nanos) = self.0.split_at(8);
        let seconds = seconds.try_into().map_or(u64::MAX, u64::from_be_bytes);
        let nanos = nanos.try_into().map_or(u32::MAX, u32::from_be_bytes) & NANOSECONDS_MASK;
        match nanos.checked_add(STEP_NANOS) {
            Some(nanos @ ..NANOS_PER_SECOND) => Self::new(seconds, nanos),
            _ => Self::new(seconds.saturating_add(1), 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn stamp(seconds: u64, nanos: u32) -> Tai64n {
        Tai64n::from_unix(UnixTime(Duration::new(seconds, nanos)))
    }

    /// [WP 5.1] Offset +10, big-endian, low 24 bits of the nanoseconds zero.
    #[test]
    fn known_stamps() {
        let check = |seconds, nanos, expected: [u8; 12]| assert_eq!(stamp(seconds, nanos).as_bytes(), &expected);
        check(0, 0, [0x40, 0, 0, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0]);
        check(0, 0x00ff_ffff, [0x40, 0, 0, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0]);
        check(1, 0x0100_0000, [0x40, 0, 0, 0, 0, 0, 0, 0x0b, 1, 0, 0, 0]);
        check(0x5f5e_1000, 999_999_999, [0x40, 0, 0, 0, 0x5f, 0x5e, 0x10, 0x0a, 0x3b, 0, 0, 0]);
        assert!(Tai64n::default() < stamp(0, 0));
        assert!(stamp(u64::MAX, 0) > stamp(1 << 40, 0));
    }

    /// [WP 5.1] Stamps grow although the clock stands still or goes back.
    #[test]
    fn stamps_grow_when_the_clock_goes_back() {
        let mut last = stamp(1000, 990_000_000);
        for now in [stamp(1000, 990_000_000), stamp(1000, 0), stamp(0, 0), Tai64n::default()] {
            for _ in 0..200 {
                let next = now.after(last);
                assert!(next > last);
                assert_eq!(next.as_bytes()[9..], [0, 0, 0], "whitened");
                assert!(next.as_bytes()[8] <= 0x3b, "less than a second of nanoseconds");
                last = next;
            }
        }
        assert!(last < stamp(1020, 0), "the steps are small");
        assert_eq!(stamp(2000, 0).after(last), stamp(2000, 0), "and the clock is followed once it is ahead");
    }
}
