//! The one vocabulary of change: what may be asked of a device ([`Update`]) and what it tells of
//! itself ([`Snapshot`]). Configuration protocols, the program and embedders speak only this, to
//! whatever can be configured ([`Configure`]).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// What takes an [`Update`] and tells a [`Snapshot`]: a device, or a test's stand-in for one.
pub trait Configure: Send + Sync {
    /// Makes the change. Applying what already holds changes nothing and loses no packet.
    ///
    /// Callers may come from several threads; it is for the implementation to put them in a row.
    fn apply(&self, update: Update) -> Result<(), ApplyError>;

    /// The state at one moment. Must not wait for an `apply` that is under way on another thread
    /// for longer than it takes to copy the state.
    fn snapshot(&self) -> Snapshot;
}

/// A change of a device; what is `None` or empty stays as it is.
///
/// Applied as a whole, in the order of the fields, peers in the order of the list. Applying what
/// already holds changes nothing and loses no packet.
#[derive(Debug, Default)]
pub struct Update {
    /// The device's key; `Some(None)` removes it.
    pub private_key: Option<Option<PrivateKey>>,
    /// The UDP port for both address families; 0 lets the system choose.
    pub listen_port: Option<u16>,
    /// The mark (`SO_MARK`) of outgoing datagrams; 0 for none.
    pub fwmark: Option<u32>,
    /// Peers that the list does not name are removed.
    pub replace_peers: bool,
    /// Changes of single peers. One key may occur more than once; later ones build on earlier ones.
    pub peers: Vec<PeerUpdate>,
}

/// A change of one peer; what is `None` or empty stays as it is.
#[derive(Debug)]
pub struct PeerUpdate {
    /// Which peer. The device's own public key is silently passed over.
    pub public_key: PublicKey,
    /// Removes the peer; nothing else of this change then counts.
    pub remove: bool,
    /// Does nothing if there is no such peer yet.
    pub update_only: bool,
    /// All zeros removes it.
    pub preshared_key: Option<PresharedKey>,
    /// Where the peer is reached, until it is heard from elsewhere.
    pub endpoint: Option<SocketAddr>,
    /// Interval in seconds; 0 turns it off.
    pub persistent_keepalive: Option<u16>,
    /// The peer's allowed IPs become exactly those that the list adds.
    pub replace_allowed_ips: bool,
    /// Changes of its allowed IPs, in order.
    pub allowed_ips: Vec<AllowedIpUpdate>,
}

impl PeerUpdate {
    /// A change of `public_key` that changes nothing yet (but creates the peer).
    pub fn new(public_key: PublicKey) -> Self {
        Self {
            public_key,
            remove: false,
            update_only: false,
            preshared_key: None,
            endpoint: None,
            persistent_keepalive: None,
            replace_allowed_ips: false,
            allowed_ips: Vec::new(),
        }
    }
}

/// Gives a prefix to the peer (taking it from any other), or removes it if the peer owns exactly it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllowedIpUpdate {
    /// The prefix.
    pub allowed_ip: AllowedIp,
    /// Removes it instead.
    pub remove: bool,
}

/// A range of inner addresses, as `address/length`. Host bits are masked when it takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AllowedIp {
    /// The network's address.
    pub address: IpAddr,
    /// Leading bits that count: at most 32 for IPv4, 128 for IPv6.
    pub prefix_len: u8,
}

impl AllowedIp {
    /// `address/prefix_len` with the host bits masked; `None` if the address has not that many bits.
    pub fn new(address: IpAddr, prefix_len: u8) -> Option<Self> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix_len <= bits).then(|| Self { address, prefix_len }.masked())
    }

    /// The same range, written with its lowest address.
    pub fn masked(self) -> Self {
        let prefix_len = u32::from(self.prefix_len);
        let address = match self.address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix_len)).unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix_len)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        };
        Self { address, ..self }
    }
}

/// `address/length`, as `wg(8)` writes it.
impl fmt::Display for AllowedIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix_len)
    }
}

/// What a device is and has done, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The device's key, if it has one.
    pub private_key: Option<PrivateKey>,
    /// The bound port; while the link is down, the requested one. 0 if neither, and while the link is up but
    /// the port could not be bound.
    pub listen_port: u16,
    /// The mark of outgoing datagrams; 0 for none.
    pub fwmark: u32,
    /// In the order in which they were added.
    pub peers: Vec<PeerSnapshot>,
}

/// What one peer is and has done, at one moment.
#[derive(Debug, Clone)]
pub struct PeerSnapshot {
    /// Its name.
    pub public_key: PublicKey,
    /// All zeros if there is none.
    pub preshared_key: PresharedKey,
    /// Where it is reached now, if that is known.
    pub endpoint: Option<SocketAddr>,
    /// Since 1970, of the last completed handshake; `None` before the first.
    pub last_handshake: Option<Duration>,
    /// Bytes received in valid messages, as they were on the wire above UDP.
    pub rx_bytes: u64,
    /// Bytes sent, as they were on the wire above UDP.
    pub tx_bytes: u64,
    /// Interval in seconds; 0 when off.
    pub persistent_keepalive: u16,
    /// In the order in which they were added, host bits masked.
    pub allowed_ips: Vec<AllowedIp>,
}

/// Why an [`Update`] was not applied, or not wholly.
#[derive(Debug)]
#[non_exhaustive]
pub enum ApplyError {
    /// The new port could not be bound; the old one stays in use.
    ListenPort(std::io::Error),
    /// The mark could not be set on the sockets.
    Fwmark(std::io::Error),
    /// More peers or allowed IPs than the device's named bounds permit; nothing was applied.
    TooLarge,
    /// The device has been closed.
    Closed,
    /// Something else that the system refused.
    Other(std::io::Error),
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ListenPort(_) => f.write_str("the listen port could not be bound"),
            Self::Fwmark(_) => f.write_str("the firewall mark could not be set"),
            Self::TooLarge => f.write_str("more peers or allowed IPs than the device can hold"),
            Self::Closed => f.write_str("the device is closed"),
            Self::Other(_) => f.write_str("the device could not be changed"),
        }
    }
}

impl std::error::Error for ApplyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::ListenPort(error) | Self::Fwmark(error) | Self::Other(error) => Some(error),
            Self::TooLarge | Self::Closed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_masked() {
        let check = |address: &str, prefix_len, expected: Option<&str>| {
            let allowed_ip = AllowedIp::new(address.parse().unwrap(), prefix_len);
            assert_eq!(allowed_ip.map(|it| it.to_string()).as_deref(), expected, "{address}/{prefix_len}");
        };
        check("10.1.2.3", 8, Some("10.0.0.0/8"));
        check("10.1.2.3", 31, Some("10.1.2.2/31"));
        check("10.1.2.3", 32, Some("10.1.2.3/32"));
        check("10.1.2.3", 0, Some("0.0.0.0/0"));
        check("10.1.2.3", 33, None);
        check("fd00::1", 64, Some("fd00::/64"));
        check("ffff:ffff::1", 1, Some("8000::/1"));
        check("::1", 128, Some("::1/128"));
        check("::1", 0, Some("::/0"));
        check("::1", 129, None);
    }
}
