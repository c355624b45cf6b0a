//! What a sidecar offers: one description for each section of its file that is a service.
//!
//! Descriptions are values: two that are equal are the same service, so that a reload keeps what has not changed.
//! A password is wiped when dropped, compared in constant time and never printed.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use super::certificate::Certificate;

/// A password. `Debug` shows nothing of it.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes the password as it is to be given, white space and all.
    pub fn new(password: String) -> Self {
        Self(Zeroizing::new(password))
    }

    /// The password, for a server that must compare by itself. Prefer [`matches`](Self::matches).
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `given` is the password. Takes a time that tells its length and nothing else.
    pub fn matches(&self, given: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(given).into()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.matches(other.0.as_bytes())
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(hidden)")
    }
}

/// The host of a [`Target`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name to be resolved each time it is needed. Not empty, no white space, no colon.
    Name(String),
}

/// As it is written: an IPv6 address without brackets.
impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Where a forward leads to: `host:port`, an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// A name or an address.
    pub host: Host,
    /// Never 0.
    pub port: u16,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]:{}", self.port),
            host => write!(f, "{host}:{}", self.port),
        }
    }
}

/// `[Socks5]`: a SOCKS5 proxy into the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socks5 {
    /// Where it listens on the host.
    pub bind: SocketAddr,
    /// Who may use it. With neither this nor a password, everybody; with one of the two, the other is empty.
    pub username: Option<String>,
    /// See `username`.
    pub password: Option<Secret>,
}

/// `[http]`: an HTTP proxy into the tunnel, CONNECT and plain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Http {
    /// Where it listens on the host.
    pub bind: SocketAddr,
    /// Who may use it. With neither this nor a password, everybody; with one of the two, the other is empty.
    pub username: Option<String>,
    /// See `username`.
    pub password: Option<Secret>,
    /// With one, clients speak TLS with the proxy, and nothing else.
    pub certificate: Option<Certificate>,
}

/// `[TCPClientTunnel]`: a port of the host leads to a target inside the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpClientTunnel {
    /// Where it listens on the host.
    pub bind: SocketAddr,
    /// Inside the tunnel.
    pub target: Target,
}

/// `[TCPServerTunnel]`: a port inside the tunnel leads to a target of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TcpServerTunnel {
    /// The port on each of the interface's addresses. Never 0.
    pub listen_port: u16,
    /// Outside the tunnel, as the host resolves and reaches it.
    pub target: Target,
}

/// `[UDPProxyTunnel]`: a UDP port of the host leads to a target inside the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpProxyTunnel {
    /// Where it listens on the host.
    pub bind: SocketAddr,
    /// Inside the tunnel.
    pub target: Target,
    /// After this long without a datagram in either direction a client is forgotten; zero: only to make room.
    pub inactivity_timeout: Duration,
}

/// `[UDPServerTunnel]`: a UDP port inside the tunnel leads to a target of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpServerTunnel {
    /// The port on each of the interface's addresses. Never 0.
    pub listen_port: u16,
    /// Outside the tunnel, as the host resolves and reaches it.
    pub target: Target,
    /// After this long without a datagram in either direction a client is forgotten; zero: only to make room.
    pub inactivity_timeout: Duration,
}

/// `[STDIOTunnel]`: standard input and output lead to a target inside the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StdioTunnel {
    /// Inside the tunnel.
    pub target: Target,
}

/// Which addresses of a name count.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum ResolveStrategy {
    /// Both families, as far as the interface has an address of the family; IPv6 first where both are there.
    #[default]
    Auto,
    /// IPv4 alone.
    Ipv4,
    /// IPv6 alone.
    Ipv6,
}

/// `[Resolve]`: how names inside the tunnel are resolved, for all services.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Resolve {
    /// Which addresses of a name count.
    pub strategy: ResolveStrategy,
}

/// One section that is a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Service {
    /// `[Socks5]`
    Socks5(Socks5),
    /// `[http]`
    Http(Http),
    /// `[TCPClientTunnel]`
    TcpClientTunnel(TcpClientTunnel),
    /// `[TCPServerTunnel]`
    TcpServerTunnel(TcpServerTunnel),
    /// `[UDPProxyTunnel]`
    UdpProxyTunnel(UdpProxyTunnel),
    /// `[UDPServerTunnel]`
    UdpServerTunnel(UdpServerTunnel),
    /// `[STDIOTunnel]`
    StdioTunnel(StdioTunnel),
    /// `[Dns]`
    Dns(Dns),
}

/// `[Dns]`: a DNS server on the host, over UDP and TCP, that hands queries to the interface's DNS servers through the
/// tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Where it listens on the host.
    pub bind: SocketAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_compared_and_never_shown() {
        let secret = Secret::new("hush".into());
        assert!(secret.matches(b"hush") && !secret.matches(b"hus") && !secret.matches(b"HUSH") && !secret.matches(b""));
        assert_eq!(secret, secret.clone());
        assert_eq!(format!("{secret:?}"), "Secret(hidden)");
    }

    #[test]
    fn targets_are_shown_as_they_are_written() {
        let check = |host: Host, expected: &str| assert_eq!(Target { host, port: 80 }.to_string(), expected);
        check(Host::Name("example.org".into()), "example.org:80");
        check(Host::Address("192.0.2.1".parse().unwrap()), "192.0.2.1:80");
        check(Host::Address("2001:db8::1".parse().unwrap()), "[2001:db8::1]:80");
    }
}
