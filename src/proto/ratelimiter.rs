//! Token buckets of handshake messages, one per source: an IPv4 address or an IPv6 /64. [WP 5.3]
//!
//! A bucket holds time. It fills as the clock goes, up to five messages' worth, and a message takes
//! a twentieth of a second from it.
//!
//! Asked only under load and only for sources that have proven their address with a mac2, so a table
//! full of made-up sources is not within an attacker's power; its bound holds all the same.
//!
//! Invariants:
//! - at most [`RATE_ENTRIES_MAX`] sources are remembered; a new one beyond them is refused;
//! - nothing happens between two calls: who was silent for [`RATE_ENTRY_MAX_AGE`] is forgotten by a
//!   later call, at most one of which in each such time looks at the whole table.

use alloc::collections::BTreeMap;
use core::net::IpAddr;

use crate::proto::constants::{RATE_ENTRIES_MAX, RATE_ENTRY_MAX_AGE, RATE_PACKETS_BURST, RATE_PACKETS_PER_SECOND};
use crate::proto::time::Instant;

/// What a message costs, in nanoseconds of filling.
const MESSAGE_COST: u64 = 1_000_000_000 / RATE_PACKETS_PER_SECOND;
/// What a bucket holds at most.
const BUCKET_FULL: u64 = MESSAGE_COST * RATE_PACKETS_BURST;
/// Shift that leaves the /64 prefix of an IPv6 address.
const IPV6_HOST_BITS: u32 = 64;

const _: () = assert!(BUCKET_FULL <= RATE_ENTRY_MAX_AGE.as_nanos() as u64, "a forgotten bucket would be full again");

/// What one bucket is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    V4(u32),
    V6Prefix(u64),
}

impl From<IpAddr> for Source {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6Prefix((ip.to_bits() >> IPV6_HOST_BITS) as u64),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Nanoseconds in the bucket at `asked`.
    tokens: u64,
    /// When the source was last asked for.
    asked: Instant,
}

/// The buckets of all sources.
#[derive(Debug, Default)]
pub struct RateLimiter {
    buckets: BTreeMap<Source, Bucket>,
    /// When the table was last looked through.
    collected: Instant,
}

impl RateLimiter {
    /// An empty table.
    pub const fn new() -> Self {
        Self { buckets: BTreeMap::new(), collected: Instant::from_nanos(0) }
    }

    /// Whether a handshake message from `ip` may be looked at; if so, it is paid for.
    pub fn allow(&mut self, ip: IpAddr, now: Instant) -> bool {
        self.collect(now);
        let source = Source::from(ip);
        let is_full = self.buckets.len() >= RATE_ENTRIES_MAX;
        let bucket = match self.buckets.get_mut(&source) {
            Some(bucket) => bucket,
            None if is_full => return false,
            None => self.buckets.entry(source).or_insert(Bucket { tokens: BUCKET_FULL, asked: now }),
        };
        let filled = now.since(bucket.asked).as_nanos().min(u128::from(BUCKET_FULL)) as u64;
        bucket.tokens = (bucket.tokens + filled).min(BUCKET_FULL);
        bucket.asked = now;
        match bucket.tokens.checked_sub(MESSAGE_COST) {
            Some(rest) => {
                bucket.tokens = rest;
                true
            }
            None => false,
        }
    }

    /// Forgets the sources that were silent for a second, once a second.
    fn collect(&mut self, now: Instant) {
        if now.since(self.collected) >= RATE_ENTRY_MAX_AGE {
            self.buckets.retain(|_, bucket| now.since(bucket.asked) < RATE_ENTRY_MAX_AGE);
            self.collected = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{Ipv4Addr, Ipv6Addr};
    use core::time::Duration;

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(1_000_000_000_000) + Duration::from_millis(millis)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    /// [WP 5.3] A burst of five, then one in 50 ms.
    #[test]
    fn s_31_burst_then_rate() {
        let mut limiter = RateLimiter::new();
        let source = ip("192.0.2.1");
        let mut check = |millis, expected| assert_eq!(limiter.allow(source, at(millis)), expected, "at {millis} ms");
        (0..5).for_each(|_| check(0, true));
        check(0, false);
        check(49, false);
        check(50, true);
        check(51, false);
        check(150, true);
        check(150, true);
        check(150, false);
        check(900, true);
        (0..4).for_each(|_| check(900, true));
        check(900, false);
    }

    /// 20 in a second and no more, whatever is asked.
    #[test]
    fn s_31_a_flood_gets_twenty_a_second() {
        let mut limiter = RateLimiter::new();
        let allowed = (0..10_000).filter(|milli| limiter.allow(ip("192.0.2.1"), at(*milli))).count();
        assert!((200..=205).contains(&allowed), "{allowed} in ten seconds");
    }

    /// [WP 5.3] Sources are IPv4 addresses and IPv6 /64s; a mapped IPv4 address is that address.
    #[test]
    fn s_31_sources_do_not_share_buckets() {
        let check = |one: &str, other: &str, shared: bool| {
            let mut limiter = RateLimiter::new();
            (0..5).for_each(|_| assert!(limiter.allow(ip(one), at(0))));
            assert_eq!(limiter.allow(ip(other), at(0)), !shared, "{one} and {other}");
        };
        check("192.0.2.1", "192.0.2.1", true);
        check("192.0.2.1", "192.0.2.2", false);
        check("192.0.2.1", "::ffff:192.0.2.1", true);
        check("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true);
        check("2001:db8::1", "2001:db8:0:1::1", false);
        check("0.0.0.1", "::1:0:0:0:0", false);
    }

    /// [WP 5.3] The table is bounded, and the silent are forgotten after a second.
    #[test]
    fn s_33_table_is_bounded_and_collected() {
        let mut limiter = RateLimiter::new();
        let v4 = |n: usize| IpAddr::V4(Ipv4Addr::from_bits(n as u32));
        let v6 = |n: usize| IpAddr::V6(Ipv6Addr::from_bits((n as u128) << 64 | 0x2000 << 112));
        (0..RATE_ENTRIES_MAX / 2).for_each(|n| assert!(limiter.allow(v4(n), at(0)) && limiter.allow(v6(n), at(0))));
        assert_eq!(limiter.buckets.len(), RATE_ENTRIES_MAX);
        assert!(!limiter.allow(ip("203.0.113.1"), at(500)), "a new source beyond the bound");
        assert!(limiter.allow(v4(0), at(500)), "a known source");
        assert!(limiter.allow(ip("203.0.113.1"), at(1000)));
        assert_eq!(limiter.buckets.len(), 2, "all but the known one that was asked for at 500 ms");
    }

    /// A clock that stands still fills nothing, and one that starts at zero is no special case.
    #[test]
    fn time_at_the_edges() {
        let mut limiter = RateLimiter::new();
        let zero = Instant::from_nanos(0);
        assert_eq!((0..10).filter(|_| limiter.allow(ip("192.0.2.1"), zero)).count(), 5);
        let last = Instant::from_nanos(u64::MAX);
        assert!(limiter.allow(ip("192.0.2.1"), last));
    }
}
