//! Why a client was not served: one name for each reason, which is also the counter, the log line, the SOCKS5 reply and
//! the HTTP status.
//!
//! | what happened to the connection | SOCKS5 | HTTP |
//! |---|---|---|
//! | the target refuses | 5 connection refused | 502 |
//! | no way to the host, or its name does not resolve | 4 host unreachable | 502 |
//! | no way to the network, or no address of that family | 3 network unreachable | 502 |
//! | silence until the time is up | 4 host unreachable | 504 |
//! | no destination for a proxy, such as loopback | 2 not allowed | 403 |
//! | as many clients as are served at once | 1 general failure | 503 |
//! | anything else | 1 general failure | 502 |
//!
//! Silence is 4 and not 6: 6 names an ICMP message (TTL expired) that nobody sent, and a client that asks why reads
//! what is the case: the host cannot be reached.

use std::fmt;
use std::io;

use hyper::StatusCode;

use super::socks5::message::Reply;

/// Why a client, a request or a datagram was not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Failure {
    // The client's: what it sent, or did not send.
    /// Not the protocol that is spoken here.
    Malformed,
    /// Credentials that are wrong, missing, or of a kind that is not taken.
    Unauthenticated,
    /// A command that is not offered, such as BIND.
    UnsupportedCommand,
    /// An address of a kind that is not known.
    UnsupportedAddress,
    /// A fragment of a SOCKS5 datagram.
    Fragment,
    /// A datagram to an association from somebody else than its client.
    ForeignSource,
    /// The handshake took too long.
    HandshakeTimeout,
    /// A destination that no proxy leads to.
    NotAllowed,

    // Ours: a bound was reached.
    /// The handshake was the oldest of as many as may be open at once.
    Evicted,
    /// As many clients are served as may be at once.
    Full,
    /// A datagram or query for which there was no room.
    QueueFull,

    // The target's.
    /// The name has no address, or nobody could be asked.
    NameNotResolved,
    /// The target refuses connections.
    Refused,
    /// The host cannot be reached.
    HostUnreachable,
    /// The network cannot be reached, or the interface has no address of that family.
    NetworkUnreachable,
    /// The target says nothing.
    TimedOut,
    /// The connection could not be made for another reason.
    ConnectFailed,
    /// The connection broke while it was used.
    Broken,
    /// The datagram could not be sent.
    SendFailed,

    // The system's.
    /// A connection could not be accepted.
    AcceptFailed,
}

impl Failure {
    /// Every reason, in the order of their counters.
    pub const ALL: [Self; 20] = [
        Self::Malformed,
        Self::Unauthenticated,
        Self::UnsupportedCommand,
        Self::UnsupportedAddress,
        Self::Fragment,
        Self::ForeignSource,
        Self::HandshakeTimeout,
        Self::NotAllowed,
        Self::Evicted,
        Self::Full,
        Self::QueueFull,
        Self::NameNotResolved,
        Self::Refused,
        Self::HostUnreachable,
        Self::NetworkUnreachable,
        Self::TimedOut,
        Self::ConnectFailed,
        Self::Broken,
        Self::SendFailed,
        Self::AcceptFailed,
    ];

    /// What a failed attempt to connect means.
    pub fn of_connect(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Self::Refused,
            io::ErrorKind::HostUnreachable => Self::HostUnreachable,
            // No address of the family is what std calls `AddrNotAvailable`.
            io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown | io::ErrorKind::AddrNotAvailable => {
                Self::NetworkUnreachable
            }
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::PermissionDenied => Self::NotAllowed,
            _ => Self::ConnectFailed,
        }
    }

    /// The reply code of SOCKS5.
    pub(super) fn reply(self) -> Reply {
        match self {
            Self::NotAllowed | Self::Unauthenticated => Reply::NotAllowed,
            Self::NetworkUnreachable => Reply::NetworkUnreachable,
            Self::HostUnreachable | Self::NameNotResolved | Self::TimedOut => Reply::HostUnreachable,
            Self::Refused => Reply::ConnectionRefused,
            Self::UnsupportedCommand => Reply::CommandNotSupported,
            Self::UnsupportedAddress => Reply::AddressTypeNotSupported,
            _ => Reply::GeneralFailure,
        }
    }

    /// The status of HTTP.
    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::PROXY_AUTHENTICATION_REQUIRED,
            Self::NotAllowed => StatusCode::FORBIDDEN,
            Self::Full => StatusCode::SERVICE_UNAVAILABLE,
            Self::TimedOut => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::BAD_GATEWAY,
        }
    }

    /// The position of this reason's counter in [`ALL`](Self::ALL).
    pub const fn index(self) -> usize {
        self as usize
    }

    /// A name for a label: lower case, words joined by `_`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Unauthenticated => "unauthenticated",
            Self::UnsupportedCommand => "unsupported_command",
            Self::UnsupportedAddress => "unsupported_address",
            Self::Fragment => "fragment",
            Self::ForeignSource => "foreign_source",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::NotAllowed => "not_allowed",
            Self::Evicted => "evicted",
            Self::Full => "full",
            Self::QueueFull => "queue_full",
            Self::NameNotResolved => "name_not_resolved",
            Self::Refused => "refused",
            Self::HostUnreachable => "host_unreachable",
            Self::NetworkUnreachable => "network_unreachable",
            Self::TimedOut => "timed_out",
            Self::ConnectFailed => "connect_failed",
            Self::Broken => "broken",
            Self::SendFailed => "send_failed",
            Self::AcceptFailed => "accept_failed",
        }
    }
}

/// For a person: what is the case.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "not a request of this protocol",
            Self::Unauthenticated => "username and password are required",
            Self::UnsupportedCommand => "the command is not supported",
            Self::UnsupportedAddress => "the kind of address is not supported",
            Self::Fragment => "fragments are not supported",
            Self::ForeignSource => "not from the client of the association",
            Self::HandshakeTimeout => "the handshake took too long",
            Self::NotAllowed => "the destination is not allowed",
            Self::Evicted => "too many handshakes are open",
            Self::Full => "too many clients",
            Self::QueueFull => "too much waits already",
            Self::NameNotResolved => "the name does not resolve",
            Self::Refused => "the target refuses the connection",
            Self::HostUnreachable => "the host is unreachable",
            Self::NetworkUnreachable => "the network is unreachable",
            Self::TimedOut => "the target does not answer",
            Self::ConnectFailed => "the connection failed",
            Self::Broken => "the connection broke",
            Self::SendFailed => "the datagram could not be sent",
            Self::AcceptFailed => "no connection could be accepted",
        })
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter_and_label() {
        for (index, failure) in Failure::ALL.into_iter().enumerate() {
            assert_eq!(failure.index(), index, "{failure:?}");
            assert!(Failure::ALL[..index].iter().all(|other| other.label() != failure.label()));
        }
    }

    /// [RFC 1928 §6]
    #[test]
    fn reasons_have_the_codes_that_clients_expect() {
        let check = |kind: io::ErrorKind, reply: u8, status: u16| {
            let failure = Failure::of_connect(&kind.into());
            assert_eq!((failure.reply() as u8, failure.status().as_u16()), (reply, status), "{kind:?}");
        };
        check(io::ErrorKind::ConnectionRefused, 5, 502);
        check(io::ErrorKind::HostUnreachable, 4, 502);
        check(io::ErrorKind::NetworkUnreachable, 3, 502);
        check(io::ErrorKind::AddrNotAvailable, 3, 502);
        check(io::ErrorKind::TimedOut, 4, 504);
        check(io::ErrorKind::PermissionDenied, 2, 403);
        check(io::ErrorKind::OutOfMemory, 1, 502);
        assert_eq!((Failure::NameNotResolved.reply() as u8, Failure::NameNotResolved.status().as_u16()), (4, 502));
        assert_eq!((Failure::Full.reply() as u8, Failure::Full.status().as_u16()), (1, 503));
    }
}
