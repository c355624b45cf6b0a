//! The sidecar's services, each spoken to by clients over loopback: what they answer, what they refuse, what they bound.
#![cfg(feature = "proxy")]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod forwards;
mod http;
mod network;
mod pressure;
mod socks5;
