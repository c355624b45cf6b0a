//! The sidecar: proxies and forwards from one file.
//!
//! - [`config`]: what the file says.
//! - [`reload`]: what has changed between two of them.
//! - [`endpoints`]: endpoints that are names, and when to resolve them.
//! - [`health`]: whether the peers that it is there for can be reached.
//! - [`services`]: proxies and forwards.

pub mod config;
pub mod endpoints;
pub mod health;
pub mod reload;
pub mod services;
