//! Why a message or packet was dropped: one variant for each rule, which is also the counter's name
//! and the log line.

use core::fmt;

/// The rule that a dropped message or packet broke, grouped by whose fault it is. Carries no text
/// and nothing of the packet, so that it may be counted and logged freely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum Rejected {
    // Malformed: not a message at all.
    /// Neither of the four types, reserved bytes not zero, or a length that the type does not have.
    MalformedMessage,
    /// The decrypted payload is no IPv4 or IPv6 packet, or shorter than its header says.
    MalformedInner,
    /// The packet read from the TUN is no IPv4 or IPv6 packet, or its offload header is inconsistent.
    MalformedOutbound,

    // Unknown: nobody it could belong to.
    /// The receiver index belongs to no handshake or keypair of ours.
    UnknownIndex,
    /// The initiator's static key is no configured peer's.
    UnknownPeer,

    // Unauthentic: a cryptographic check failed.
    /// mac1 is wrong: the sender does not know our public key.
    BadMac1,
    /// An AEAD tag, of a handshake field or a data packet, is wrong.
    BadTag,
    /// A Diffie-Hellman result is all zero: a low-order point.
    LowOrderPoint,

    // Stale: was right once, or comes at the wrong time.
    /// The handshake timestamp is not greater than the last one of this peer.
    ReplayedTimestamp,
    /// The counter was seen already, or lies behind the window.
    ReplayedCounter,
    /// No handshake of ours waits for this message.
    NoHandshake,
    /// The keypair is older than REJECT_AFTER_TIME or was retired.
    ExpiredKeypair,
    /// The counter is at or beyond REJECT_AFTER_MESSAGES.
    MessageLimit,
    /// A cookie reply although no mac1 of ours was sent.
    UnexpectedCookie,

    // Unwelcome: well-formed and perhaps honest, but refused.
    /// Under load: answered with a cookie instead.
    CookieRequired,
    /// Under load: this source sent too many handshake messages.
    RateLimited,
    /// Initiations of one peer within 20 ms.
    InitiationFlood,
    /// We started a handshake with this peer less than REKEY_TIMEOUT ago.
    HandshakeTooSoon,
    /// The device has no private key.
    NoPrivateKey,
    /// The datagram came in by the device's own TUN: it has been through the tunnel already.
    RoutingLoop,
    /// The inner source address routes to another peer, or to none.
    ForbiddenSource,
    /// No peer's allowed IPs hold the destination.
    NoRoute,
    /// The peer's endpoint is not known.
    NoEndpoint,
    /// A bounded queue was full.
    QueueFull,
    /// A packet staged for a session was displaced or never got one.
    StagedDropped,
    /// The operating system refused the datagram.
    SendFailed,
    /// The TUN refused the packet.
    DeliverFailed,
}

impl Rejected {
    /// How many variants there are: the length of an array of counters.
    pub const COUNT: usize = Self::DeliverFailed as usize + 1;

    /// Every variant, in the order of their counters.
    pub const ALL: [Self; Self::COUNT] = [
        Self::MalformedMessage,
        Self::MalformedInner,
        Self::MalformedOutbound,
        Self::UnknownIndex,
        Self::UnknownPeer,
        Self::BadMac1,
        Self::BadTag,
        Self::LowOrderPoint,
        Self::ReplayedTimestamp,
        Self::ReplayedCounter,
        Self::NoHandshake,
        Self::ExpiredKeypair,
        Self::MessageLimit,
        Self::UnexpectedCookie,
        Self::CookieRequired,
        Self::RateLimited,
        Self::InitiationFlood,
        Self::HandshakeTooSoon,
        Self::NoPrivateKey,
        Self::RoutingLoop,
        Self::ForbiddenSource,
        Self::NoRoute,
        Self::NoEndpoint,
        Self::QueueFull,
        Self::StagedDropped,
        Self::SendFailed,
        Self::DeliverFailed,
    ];

    /// The position of this variant's counter.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its name in lower case with underscores, as in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MalformedMessage => "malformed_message",
            Self::MalformedInner => "malformed_inner",
            Self::MalformedOutbound => "malformed_outbound",
            Self::UnknownIndex => "unknown_index",
            Self::UnknownPeer => "unknown_peer",
            Self::BadMac1 => "bad_mac1",
            Self::BadTag => "bad_tag",
            Self::LowOrderPoint => "low_order_point",
            Self::ReplayedTimestamp => "replayed_timestamp",
            Self::ReplayedCounter => "replayed_counter",
            Self::NoHandshake => "no_handshake",
            Self::ExpiredKeypair => "expired_keypair",
            Self::MessageLimit => "message_limit",
            Self::UnexpectedCookie => "unexpected_cookie",
            Self::CookieRequired => "cookie_required",
            Self::RateLimited => "rate_limited",
            Self::InitiationFlood => "initiation_flood",
            Self::HandshakeTooSoon => "handshake_too_soon",
            Self::NoPrivateKey => "no_private_key",
            Self::RoutingLoop => "routing_loop",
            Self::ForbiddenSource => "forbidden_source",
            Self::NoRoute => "no_route",
            Self::NoEndpoint => "no_endpoint",
            Self::QueueFull => "queue_full",
            Self::StagedDropped => "staged_dropped",
            Self::SendFailed => "send_failed",
            Self::DeliverFailed => "deliver_failed",
        }
    }

    /// Whose fault it is, or when it was: the group that the variant stands in.
    pub fn fault(self) -> &'static str {
        match self {
            _ if self <= Self::MalformedOutbound => "malformed",
            _ if self <= Self::UnknownPeer => "unknown",
            _ if self <= Self::LowOrderPoint => "unauthentic",
            _ if self <= Self::UnexpectedCookie => "stale",
            _ => "unwelcome",
        }
    }
}

/// The variant's name: what counters and log lines say.
impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl core::error::Error for Rejected {}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::String;

    use super::*;

    #[test]
    fn names_and_positions_are_the_variants() {
        for (index, reason) in Rejected::ALL.into_iter().enumerate() {
            assert_eq!(reason.index(), index);
            let joined: String = reason.name().split('_').collect();
            assert_eq!(joined, format!("{reason:?}").to_lowercase());
        }
    }

    #[test]
    fn faults_are_the_groups() {
        let check = |reason: Rejected, fault| assert_eq!(reason.fault(), fault, "{reason:?}");
        // The first and the last of each.
        check(Rejected::MalformedMessage, "malformed");
        check(Rejected::MalformedOutbound, "malformed");
        check(Rejected::UnknownIndex, "unknown");
        check(Rejected::UnknownPeer, "unknown");
        check(Rejected::BadMac1, "unauthentic");
        check(Rejected::LowOrderPoint, "unauthentic");
        check(Rejected::ReplayedTimestamp, "stale");
        check(Rejected::UnexpectedCookie, "stale");
        check(Rejected::CookieRequired, "unwelcome");
        check(Rejected::DeliverFailed, "unwelcome");
    }
}
