//! Connections through a tunnel from inside a process: no TUN, no privilege.
//!
//! [`Netstack::pair`] makes a TCP/IP stack with two ends: a [`Tun`](crate::tun::Tun) that a
//! [`Device`](crate::device::Device) takes for its interface, and a [`Net`] that connects, listens, binds, resolves and
//! pings. Two of them in one process:
//!
//! ```
//! use std::io::{Read, Write};
//! use std::net::{IpAddr, Ipv4Addr, SocketAddr};
//! use std::time::Duration;
//!
//! use adit::device::Device;
//! use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
//! use adit::key::PrivateKey;
//! use adit::netstack::{Config, Net, Netstack};
//! use adit::udp::memory::MemoryNetwork;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let inner = |host| IpAddr::from([10, 0, 0, host]);
//! let outer = |host| SocketAddr::from(([192, 0, 2, host], 51820));
//! let key = |host| PrivateKey::from_bytes([host; 32]);
//! let network = MemoryNetwork::new();
//! let start = |host, peer| -> Result<(Device, Net), Box<dyn std::error::Error>> {
//!     let (tun, net) = Netstack::pair(Config::new(vec![(inner(host), 24)]))?;
//!     let device = Device::builder(tun, network.host(&[outer(host).ip()])).start()?;
//!     let allowed_ip = AllowedIp { address: inner(peer), prefix_len: 32 };
//!     device.apply(Update {
//!         private_key: Some(Some(key(host))),
//!         listen_port: Some(51820),
//!         peers: vec![PeerUpdate {
//!             endpoint: Some(outer(peer)),
//!             allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
//!             ..PeerUpdate::new(key(peer).public_key())
//!         }],
//!         ..Update::default()
//!     })?;
//!     Ok((device, net))
//! };
//! let (_one, client) = start(1, 2)?;
//! let (_two, server) = start(2, 1)?;
//!
//! let listener = server.listen_tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7)))?;
//! let mut stream = client.connect_tcp(SocketAddr::new(inner(2), 7), Duration::from_secs(10))?;
//! stream.write_all(b"through the tunnel")?;
//! drop(stream);
//! let mut text = String::new();
//! listener.accept()?.0.read_to_string(&mut text)?;
//! assert_eq!(text, "through the tunnel");
//! # Ok(())
//! # }
//! ```
//!
//! What the stack cannot do: reach its own addresses (they are not in the tunnel), and take multicast or broadcast.
//!
//! | file | what |
//! |---|---|
//! | `net` | the door: [`Netstack::pair`], [`Net`] |
//! | `config` | what a stack is made from; what it counts |
//! | `tcp`, `udp` | connections and sockets after the manner of `std::net` |
//! | [`tokio`] | the same for tokio |
//! | `resolve` | names |
//! | `echo` | ICMP: echo, and errors |
//! | `path_mtu` | how long packets may be on their way |
//! | `fragments` | datagrams that are longer than that |
//! | `stack` | who has which address and port |
//! | `flow` | one TCP connection |
//! | `edge` | what its smoltcp interface takes for a network device |
//! | `listener`, `time_wait` | connections before they have a user, and after |
//! | `interface` | the stack as the device sees it |
//! | `inbound` | packets from the device: whose are they? |
//! | `lanes` | what waits to be taken by the device |
//! | `timers` | deadlines, and the one thread |
//! | `wait` | waiting, for threads and tasks alike |
//! | `headers` | IP headers and checksums |

mod config;
mod echo;
mod edge;
mod flow;
mod fragments;
mod headers;
mod inbound;
mod interface;
mod lanes;
mod listener;
mod net;
mod path_mtu;
mod resolve;
mod stack;
mod tcp;
mod time_wait;
mod timers;
#[cfg(feature = "tokio")]
pub mod tokio;
mod udp;
mod wait;

pub use config::{Config, MTU_FEWEST, MTU_FEWEST_IPV6, MTU_MOST, Stats};
pub use interface::NetstackTun;
pub use net::{Net, Netstack};
pub use tcp::{TcpListener, TcpStream};
pub use udp::UdpSocket;
