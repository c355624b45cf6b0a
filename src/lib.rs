//! adit: WireGuard in pure userspace.
//!
//! # Three doors
//!
//! | door | for whom | threads, I/O |
//! |---|---|---|
//! | [`proto`] | programs with their own event loop | none, and no clock: bytes, the time and randomness come in as arguments |
//! | `device` | programs that want a running WireGuard | its own threads; interface and sockets are traits, with Linux's and in-memory ones here |
//! | `netstack` | programs and containers without a TUN or a privilege | a device whose interface leads to a TCP/IP stack in the process |
//!
//! Whole programs for each are in `examples/`; what each guarantees is in `docs/embedding.md`. The library sets no signal
//! handler, reads no environment, writes no log of its own (it emits events of the crate `tracing`), has no global state, and
//! needs no async runtime.
//!
//! ## Two peers on one thread
//! [`proto::peer::Peer`] is one peer in one object; the network is two vectors here.
//!
//! ```
//! use adit::key::PrivateKey;
//! use adit::proto::peer::{Outcome, Peer, datagram_len};
//! use adit::proto::time::Now;
//!
//! let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
//! let (ours, theirs) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng));
//! let mut left = Peer::new(ours.clone(), theirs.public_key());
//! let mut right = Peer::new(theirs, ours.public_key());
//! let (left_address, right_address) = ("192.0.2.1:51820".parse()?, "192.0.2.2:51820".parse()?);
//! left.set_endpoint(right_address);
//!
//! // An IPv4 packet of a header alone, from 10.0.0.1 to 10.0.0.2.
//! let packet = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
//! let (mut out, mut answer) = ([0; datagram_len(1420)], [0; datagram_len(1420)]);
//! let now = Now::default();
//!
//! // The packet waits for a session: what leaves is the initiation. Then its response, and then the packet.
//! let Outcome::Send(initiation) = left.encapsulate(&packet, &mut out, now, &mut rng)? else { panic!("an initiation") };
//! let mut initiation = initiation.bytes.to_vec();
//! let Outcome::Send(response) = right.decapsulate(left_address, &mut initiation, &mut answer, now, &mut rng)? else {
//!     panic!("a response")
//! };
//! let mut response = response.bytes.to_vec();
//! let Outcome::Send(data) = left.decapsulate(right_address, &mut response, &mut out, now, &mut rng)? else {
//!     panic!("the packet, sealed")
//! };
//! let mut data = data.bytes.to_vec();
//! let Outcome::Deliver(arrived) = right.decapsulate(left_address, &mut data, &mut answer, now, &mut rng)? else {
//!     panic!("the packet")
//! };
//! assert_eq!(arrived.bytes, packet);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `Rejected`, which these calls fail with, says which rule was broken; it is the counter's and the log's name, too.
//!
//! ## Two devices in one process
//! Edges in memory: no TUN, no socket, no root, and all of the pipeline.
//!
//! ```
//! use std::net::{Ipv4Addr, SocketAddr};
//! use std::time::Duration;
//! use adit::device::{Device, config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update}};
//! use adit::key::PrivateKey;
//! use adit::tun::memory::MemoryTun;
//! use adit::udp::memory::MemoryNetwork;
//!
//! let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
//! let keys = [PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng)];
//! let outer = |number: usize| SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1 + number as u8), 51820));
//! let inner = |number: usize| Ipv4Addr::new(10, 0, 0, 1 + number as u8);
//! let network = MemoryNetwork::new();
//! let mut running = Vec::new();
//! for (this, other) in [(0, 1), (1, 0)] {
//!     let (tun, system) = MemoryTun::new("memory", 1420);
//!     let device = Device::builder(tun, network.host(&[outer(this).ip()])).start()?;
//!     let allowed_ip = AllowedIp { address: inner(other).into(), prefix_len: 32 };
//!     device.apply(Update {
//!         private_key: Some(Some(keys[this].clone())),
//!         listen_port: Some(outer(this).port()),
//!         peers: vec![PeerUpdate {
//!             endpoint: Some(outer(other)),
//!             allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
//!             ..PeerUpdate::new(keys[other].public_key())
//!         }],
//!         ..Update::default()
//!     })?;
//!     system.set_up(true);
//!     running.push((device, system));
//! }
//! let packet = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 253, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
//! // The link of the second one may come up a moment later: then the first initiation is lost, and comes again in 5 s.
//! assert!(running[0].1.send(&packet));
//! assert_eq!(*running[1].1.receive(Duration::from_secs(20)).expect("through the tunnel"), packet);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Layers
//! Who may use whom (a test holds this table and fails on a wrong edge):
//!
//! | layer | may use |
//! |---|---|
//! | `key`, `ip`, `packet`, `sys` | nothing of ours |
//! | `sync` | `sys` |
//! | `proto` | `key`, `ip`, `sync` |
//! | `icmp` | `ip` |
//! | `tun`, `udp` | `packet`, `ip`, `sys` |
//! | `device` | `proto`, `tun`, `udp`, `packet`, `icmp`, `ip`, `key`, `sync`, and of `sys`: clock, poll, thread |
//! | `uapi` | `device::config`, `key`, `sys` |
//! | `netstack` | `tun`, `packet`, `icmp`, `ip` |
//! | `metrics` | `device`, `key`, `proto::rejected` |
//! | `proxy` | `netstack`, `metrics`, `device`, `udp`, `uapi`, `key` |
//! | `cli` | all |
//!
//! `--no-default-features` builds `proto`, `key` and `ip` alone, as `no_std` + `alloc`.
#![cfg_attr(not(feature = "device"), no_std)]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![warn(missing_docs)]
// `unsafe` lives in `sys` alone; each block there says what makes it sound.
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(feature = "graviola")]
extern crate std;

// Without the pipeline nobody here asks for checksums.
#[cfg_attr(not(feature = "device"), allow(dead_code))]
pub mod ip;
pub mod key;
pub mod proto;
mod sync;

#[cfg(feature = "device")]
pub mod device;
#[cfg(feature = "device")]
pub mod icmp;
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

#[cfg(feature = "device")]
pub use device::Device;

#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod cli;

/// The programs in the document are compiled, and run where they can.
#[cfg(all(doctest, feature = "netstack"))]
#[doc = include_str!("../docs/embedding.md")]
mod embedding {}
