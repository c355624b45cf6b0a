//! The sidecar: proxies and forwards from one file.
//!
//! - [`config`]: what the file says.
//! - [`reload`]: what has changed between two of them.
//! - [`endpoints`]: endpoints that are names, and when to resolve them.
//! - [`health`]: whether the peers that it is there for can be reached.
//! - [`services`]: proxies and forwards.
//! - [`tunnel`]: the network inside the tunnel, as services know networks.
//! - [`run`]: all of it together, from its start to its end.
//! - `names`, `pings`: endpoints resolved again, addresses asked whether they are there.
//! - `figures`: the metrics of services and stack.

pub mod config;
pub mod endpoints;
mod figures;
pub mod health;
mod names;
pub(crate) mod pings;
pub mod reload;
pub mod run;
pub mod services;
pub mod tunnel;
