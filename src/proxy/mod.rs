//! The sidecar: proxies and forwards from one file.
//!
//! - [`config`]: what the file says.

pub mod config;
