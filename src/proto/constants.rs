//! Every number of the protocol, and adit's own limits on it, each with its reason.
//! [WP 6.1] is the whitepaper's table of constants.

use core::time::Duration;

// --- Whitepaper §6.1 -------------------------------------------------------------------------

/// [WP 6.1] A keypair that has sent more messages than this starts a new handshake.
pub const REKEY_AFTER_MESSAGES: u64 = 1 << 60;
/// [WP 6.1] A keypair never sends or accepts a counter from here on: 2^64 − 2^13 − 1.
pub const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);
/// [WP 6.1] The initiator of a keypair of this age starts a new handshake when it sends.
pub const REKEY_AFTER_TIME: Duration = Duration::from_secs(120);
/// [WP 6.1] A keypair of this age neither sends nor receives.
pub const REJECT_AFTER_TIME: Duration = Duration::from_secs(180);
/// [WP 6.1] How long an unanswered initiation is tried again.
pub const REKEY_ATTEMPT_TIME: Duration = Duration::from_secs(90);
/// [WP 6.1] Between two initiations to one peer, at least; before jitter.
pub const REKEY_TIMEOUT: Duration = Duration::from_secs(5);
/// [WP 6.1] Silence after received data, until a keepalive answers it.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

// --- Derived, as the kernel derives them -----------------------------------------------------

/// [WP 6.1] The jitter added to [`REKEY_TIMEOUT`] and to the new-handshake timer is below this.
pub const REKEY_TIMEOUT_JITTER_MAX: Duration = Duration::from_millis(334);
/// Retries after which a handshake is given up: the retry *count* may reach this, not exceed it.
pub const MAX_TIMER_HANDSHAKES: u32 = (REKEY_ATTEMPT_TIME.as_secs() / REKEY_TIMEOUT.as_secs()) as u32;
/// [WP 6.2] Data sent and nothing heard for this long (and jitter): a new handshake.
pub const NEW_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(KEEPALIVE_TIMEOUT.as_secs() + REKEY_TIMEOUT.as_secs());
/// [WP 6.2] On receiving, the initiator renews a keypair older than this, once per session.
pub const REKEY_ON_RECEIVE_AFTER: Duration =
    Duration::from_secs(REJECT_AFTER_TIME.as_secs() - KEEPALIVE_TIMEOUT.as_secs() - REKEY_TIMEOUT.as_secs());
/// [WP 6.3] All key material is wiped this long after the last session began.
pub const ZERO_KEY_MATERIAL_AFTER: Duration = Duration::from_secs(3 * REJECT_AFTER_TIME.as_secs());

/// When initiations crossed, data on the session that lost is taken for a leftover for this long; the
/// peer has heard of the other one a round trip after. Beyond it, the peer knows of no other.
pub const CROSSING_SETTLES_WITHIN: Duration = Duration::from_secs(1);

// --- Cookies [WP 5.3, 5.4.7] -----------------------------------------------------------------

/// [WP 5.4.7] The secret behind cookies is renewed at this age.
pub const COOKIE_SECRET_MAX_AGE: Duration = Duration::from_secs(120);
/// A client stops using a received cookie this long before the server's secret may have changed.
pub const COOKIE_SECRET_LATENCY: Duration = Duration::from_secs(5);
/// How long a received cookie is used.
pub const COOKIE_VALID_FOR: Duration =
    Duration::from_secs(COOKIE_SECRET_MAX_AGE.as_secs() - COOKIE_SECRET_LATENCY.as_secs());

// --- Handshake floods ------------------------------------------------------------------------

/// Initiations accepted from one peer: one in this time.
pub const INITIATIONS_MIN_INTERVAL: Duration = Duration::from_millis(20);
/// Handshake messages under load, per source prefix and second.
pub const RATE_PACKETS_PER_SECOND: u64 = 20;
/// Handshake messages under load that one source prefix may send at once.
pub const RATE_PACKETS_BURST: u64 = 5;
/// Entries of the rate limiter unused for this long are collected.
pub const RATE_ENTRY_MAX_AGE: Duration = Duration::from_secs(1);
/// Sources that the rate limiter remembers at once; beyond it a new source is refused.
/// 65,536 entries of 32 bytes are 2 MiB; a legitimate peer that is refused comes again in 5 s.
pub const RATE_ENTRIES_MAX: usize = 65_536;
/// Handshake messages that wait for the control thread; beyond it they are dropped and counted.
pub const HANDSHAKE_QUEUE_MAX: usize = 4096;
/// At this many waiting handshake messages the device is under load.
pub const UNDER_LOAD_AT: usize = HANDSHAKE_QUEUE_MAX / 8;
/// The device stays under load for this long after the queue was last that full.
pub const UNDER_LOAD_FOR: Duration = Duration::from_secs(1);

// --- Data ------------------------------------------------------------------------------------

/// [RFC 6479] Bits of the replay bitmap.
pub const REPLAY_BITS: usize = 8192;
/// [RFC 6479] Counters behind the newest that are still accepted: one word of 64 is being reused.
pub const REPLAY_WINDOW: u64 = (REPLAY_BITS - 64) as u64;
/// [WP 5.4.6] Payloads are padded to a multiple of this.
pub const PADDING_MULTIPLE: usize = 16;
/// Packets that wait for a session, per peer; beyond it the oldest is dropped.
pub const STAGED_PACKETS_MAX: usize = 128;

const _: () = assert!(REJECT_AFTER_MESSAGES == u64::MAX - 8192);
const _: () = assert!(REKEY_AFTER_MESSAGES < REJECT_AFTER_MESSAGES);
const _: () = assert!(REPLAY_WINDOW < u64::MAX - REJECT_AFTER_MESSAGES);
const _: () = assert!(REKEY_AFTER_TIME.as_secs() < REKEY_ON_RECEIVE_AFTER.as_secs());
const _: () = assert!(REKEY_ON_RECEIVE_AFTER.as_secs() < REJECT_AFTER_TIME.as_secs());
const _: () = assert!(CROSSING_SETTLES_WITHIN.as_secs() < REKEY_TIMEOUT.as_secs());
const _: () = assert!(REPLAY_BITS.is_power_of_two());
const _: () = assert!(0 < UNDER_LOAD_AT && UNDER_LOAD_AT < HANDSHAKE_QUEUE_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    /// [WP 6.1] The table of the paper, and what follows from it, as numbers.
    #[test]
    fn the_numbers_are_those_of_the_paper() {
        assert_eq!(
            (REKEY_AFTER_MESSAGES, REJECT_AFTER_MESSAGES),
            (1_152_921_504_606_846_976, 18_446_744_073_709_543_423)
        );
        let check = |time: Duration, seconds| assert_eq!(time, Duration::from_secs(seconds));
        check(REKEY_AFTER_TIME, 120);
        check(REJECT_AFTER_TIME, 180);
        check(REKEY_ATTEMPT_TIME, 90);
        check(REKEY_TIMEOUT, 5);
        check(KEEPALIVE_TIMEOUT, 10);
        check(NEW_HANDSHAKE_TIMEOUT, 15);
        check(REKEY_ON_RECEIVE_AFTER, 165);
        check(ZERO_KEY_MATERIAL_AFTER, 540);
        check(COOKIE_VALID_FOR, 115);
        assert_eq!((MAX_TIMER_HANDSHAKES, REPLAY_WINDOW), (18, 8128));
    }
}
