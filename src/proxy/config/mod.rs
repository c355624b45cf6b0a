//! What a sidecar's file says.
//!
//! | file | what |
//! |---|---|
//! | [`interface`] | `Config`: all that the file says; the interface and its peers |
//! | [`services`] | what is offered on either side of the tunnel |
//! | [`certificate`] | what a listener that speaks TLS shows of itself |
//! | `reading` | a file, the files that it names, and the environment, to a `Config` |
//! | [`remark`] | mistakes and warnings, with their places |
//! | `ini` | lines to sections and entries |
//! | `schema` | which sections and keys there are |
//! | `fields` | known sections and keys, overrides in place |
//! | `values` | the text of one value to what it means |
//! | `environment` | variables that a file refers to, or that override it |

pub mod certificate;
mod environment;
mod fields;
mod ini;
pub mod interface;
mod reading;
pub mod remark;
mod schema;
pub mod services;
mod values;

pub use certificate::{Certificate, CertificateError};
pub use environment::Environment;
pub use interface::{Config, Interface, Log, LogFormat, LogLevel, Peer};
pub use reading::{CREDENTIAL_BYTES_MAX, FILE_BYTES_MAX, MTU_DEFAULT, ReadFile, SERVICES_MAX, read_file};
pub use remark::{ConfigError, Place, Remark};
pub use services::{
    Dns, Host, Http, Resolve, ResolveStrategy, Secret, Service, Socks5, StdioTunnel, Target, TcpClientTunnel,
    TcpServerTunnel, UdpProxyTunnel, UdpServerTunnel,
};
