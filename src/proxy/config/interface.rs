//! What a sidecar is besides its services: the interface, its peers, and how it is watched.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::remark::Remark;
use super::services::{Resolve, Service, Target};
use crate::device::config::AllowedIp;
use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// All that a file says, with what the environment changes in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// `[Interface]`
    pub interface: Interface,
    /// Each `[Peer]`, no key twice, at least one.
    pub peers: Vec<Peer>,
    /// Each section that is a service, in the order of the file.
    pub services: Vec<Service>,
    /// `[Resolve]`
    pub resolve: Resolve,
    /// `[Metrics]`: where `/livez`, `/readyz` and `/metrics` are served on the host.
    pub metrics: Option<SocketAddr>,
    /// `[Uapi]`: the path of the socket that `wg(8)` speaks to; its name ends in `.sock`.
    pub uapi: Option<PathBuf>,
    /// `[Log]`
    pub log: Log,
    /// Every file that was read, to be watched for changes.
    pub files: Vec<PathBuf>,
    /// What was accepted but has no effect, or perhaps not the one that is meant.
    pub warnings: Vec<Remark>,
}

/// `[Interface]`: this side of the tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interface {
    /// Who this side is.
    pub private_key: PrivateKey,
    /// Addresses inside the tunnel with the lengths of their prefixes; at least one.
    pub addresses: Vec<(IpAddr, u8)>,
    /// DNS servers, reached through the tunnel.
    pub dns: Vec<IpAddr>,
    /// Domains in which names without a dot are looked for.
    pub search: Vec<String>,
    /// Bytes of the largest inner packet.
    pub mtu: usize,
    /// The UDP port outside the tunnel; 0 lets the system choose.
    pub listen_port: u16,
    /// The mark of outgoing datagrams; 0 for none. Setting one needs a capability.
    pub fwmark: u32,
    /// Addresses inside the tunnel that are to answer a ping for the sidecar to be ready.
    pub check_alive: Vec<IpAddr>,
    /// How often they are asked.
    pub check_alive_interval: Duration,
}

/// `[Peer]`: another side.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Peer {
    /// Who it is.
    pub public_key: PublicKey,
    /// What both know beforehand.
    pub preshared_key: Option<PresharedKey>,
    /// What may come from it and goes to it.
    pub allowed_ips: Vec<AllowedIp>,
    /// Where it is reached outside the tunnel, if it does not come by itself. A name is resolved by the host.
    pub endpoint: Option<Target>,
    /// Seconds; 0 for off.
    pub persistent_keepalive: u16,
    /// Without a session with it the sidecar is not ready. If the file does not say, so is each peer with an endpoint.
    pub required: bool,
}

/// `[Log]`: what is logged, and how.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Log {
    /// The form of a line.
    pub format: LogFormat,
    /// How much; what the program's environment says if the file does not.
    pub level: Option<LogLevel>,
}

/// The form of a log line.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// How much is logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing.
    Silent,
    /// Errors and warnings.
    Error,
    /// Everything.
    Verbose,
}
