//! Defects that implementations of WireGuard have shipped, one test each: its name is the defect's.
//!
//! `docs/security.md` lists all of them. One that another test proves already has no test here.
#![cfg(feature = "device")]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod configuration;
mod data;
mod handshake;
mod lifecycle;
mod network;

#[path = "../testbed/mod.rs"]
mod testbed;

#[path = "../uapi_support/mod.rs"]
mod uapi_support;
