//! adit: WireGuard in pure userspace.
//!
//! # Layers
//! Who may use whom (a test holds this table and fails on a wrong edge):
//!
//! | layer | may use |
//! |---|---|
//! | `key`, `ip`, `packet`, `sys` | nothing of ours |
//! | `proto` | `key` |
//! | `icmp` | `ip` |
//! | `tun`, `udp` | `packet`, `ip`, `sys` |
//! | `device` | `proto`, `tun`, `udp`, `packet`, `icmp`, `ip`, `key`, and of `sys`: clock, thread |
//! | `uapi` | `device::config`, `key`, `sys` |
//! | `netstack` | `tun`, `packet`, `ip` |
//! | `metrics` | `device`, `key`, `proto::rejected` |
//! | `proxy` | `netstack`, `metrics`, `device`, `udp`, `uapi`, `key` |
//! | `cli` | all |
//!
//! `--no-default-features` builds `proto` and `key` alone, as `no_std` + `alloc`.
#![cfg_attr(not(feature = "device"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(missing_docs)]
// `unsafe` lives in `sys` alone; each block there says what makes it sound.
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(feature = "graviola")]
extern crate std;

pub mod key;
pub mod proto;

#[cfg(feature = "device")]
pub mod device;
#[cfg(feature = "device")]
pub mod icmp;
#[cfg(feature = "device")]
pub mod ip;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "netstack")]
pub mod netstack;
#[cfg(feature = "device")]
pub mod packet;
#[cfg(feature = "proxy")]
pub mod proxy;
#[cfg(feature = "device")]
#[allow(unsafe_code)]
mod sys;
#[cfg(feature = "device")]
pub mod tun;
#[cfg(feature = "device")]
pub mod uapi;
#[cfg(feature = "device")]
pub mod udp;

#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod cli;
