//! The one vocabulary of change: what may be asked of a device ([`Update`]) and what it tells of
//! itself ([`Snapshot`]). Configuration protocols, the program and embedders speak only this.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::key::{PresharedKey, PrivateKey, PublicKey};

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

/// What a device is and has done, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The device's key, if it has one.
    pub private_key: Option<PrivateKey>,
    /// The bound port; while the link is down, the requested one. 0 if neither.
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
    /// The device has been closed.
    Closed,
}

impl std::fmt::Display for ApplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ListenPort(_) => f.write_str("the listen port could not be bound"),
            Self::Fwmark(_) => f.write_str("the firewall mark could not be set"),
            Self::Closed => f.write_str("the device is closed"),
        }
    }
}

impl std::error::Error for ApplyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::ListenPort(error) | Self::Fwmark(error) => Some(error),
            Self::Closed => None,
        }
    }
}
