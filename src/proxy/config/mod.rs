//! What a sidecar's file says.
//!
//! - [`services`]: what is to be offered on either side of the tunnel.

pub mod services;

pub use services::{
    Dns, Host, Http, Resolve, ResolveStrategy, Secret, Service, Socks5, StdioTunnel, Target, TcpClientTunnel,
    TcpServerTunnel, UdpProxyTunnel,
};
