//! UDP ASSOCIATE: a client's datagrams into the tunnel and back. RFC 1928 §7.
//!
//! - An association lives as long as the TCP connection that asked for it, and no longer than [`ASSOCIATION_IDLE`]
//!   without a datagram.
//! - It serves one client: the address that the TCP connection comes from, with the port that the request named, or
//!   else that of its first datagram. Datagrams from anybody else are dropped (`ForeignSource`).
//! - One socket for each family inside the tunnel, opened when first needed; whoever is sent to, and whoever else in
//!   the tunnel learns the port, can answer, as with any UDP socket: the header of a datagram names its sender.
//! - Fragments are dropped (`Fragment`): to reassemble is optional in the RFC, and a way to fill memory.
//! - A name is resolved through the tunnel without holding up other datagrams. [`RESOLVING_MAX`] datagrams wait for
//!   their name; one more is dropped (`QueueFull`), as is one for which all associations together leave no room
//!   ([`WAITING_BYTES_MAX`](crate::proxy::services::WAITING_BYTES_MAX)). [`NAMES_MAX`] answers are kept for [`NAME_AGE_MAX`].
//!
//! Memory: a buffer of 64 KiB for each family that is used, and what waits.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::message::{self, DATAGRAM_HEADER_MAX, Request};
use crate::proxy::config::{Host, Target};
use crate::proxy::services::Context;
use crate::proxy::services::dial::resolve;
use crate::proxy::services::failure::Failure;
use crate::proxy::services::network::{DatagramSocket, HostNetwork, Network};
use crate::proxy::services::relay::BUFFER_BYTES;

/// Associations of one listener: each has up to 128 KiB of buffers.
pub const ASSOCIATIONS_MAX: usize = 512;
/// As long as a NAT should keep a mapping (RFC 4787 §4.3).
const ASSOCIATION_IDLE: Duration = Duration::from_secs(300);
/// Datagrams of one association that wait for a name.
pub const RESOLVING_MAX: usize = 16;
/// Names whose addresses one association remembers; the oldest makes room.
pub const NAMES_MAX: usize = 16;
/// For how long: names move, and a resolver is not far.
const NAME_AGE_MAX: Duration = Duration::from_secs(30);

/// One socket inside the tunnel, and room for what comes to it, behind room for the header.
struct Inside<N: Network> {
    socket: N::Socket,
    buffer: Box<[u8]>,
}

/// A name that was resolved.
struct Known {
    target: Target,
    address: SocketAddr,
    since: Instant,
}

/// A datagram whose name is resolved by now.
struct Resolved {
    target: Target,
    payload: Vec<u8>,
    _room: OwnedSemaphorePermit,
    addresses: Result<Vec<SocketAddr>, Failure>,
}

/// Datagrams for one client.
pub(super) struct Association<'a, N: Network> {
    context: &'a Context<N>,
    outside: UdpSocket,
    bound: SocketAddr,
    /// Whom to serve; the port is not known before the first datagram, unless the request named it.
    client: IpAddr,
    port: Option<u16>,
    ipv4: Option<Inside<N>>,
    ipv6: Option<Inside<N>>,
    known: Vec<Known>,
    resolving: JoinSet<Resolved>,
    last: Instant,
}

impl<'a, N: Network> Association<'a, N> {
    /// Opens the port that the client sends to, at the address where it found the proxy.
    pub(super) fn open(
        context: &'a Context<N>,
        stream: &TcpStream,
        request: &Request,
        from: SocketAddr,
    ) -> Result<Self, Failure> {
        let open = || -> io::Result<_> {
            let here = stream.local_addr()?.ip().to_canonical();
            let outside = HostNetwork.bind(SocketAddr::new(here, 0))?;
            let bound = outside.local_addr()?;
            Ok((outside, bound))
        };
        let (outside, bound) = open().map_err(|error| {
            tracing::debug!(client = %from, %error, "no port for an association");
            Failure::ConnectFailed
        })?;
        let client = from.ip().to_canonical();
        // A client that does not know its own address, or sees another one than we do, names nothing of use.
        let names_itself = match &request.host {
            Some(Host::Address(address)) => address.is_unspecified() || address.to_canonical() == client,
            _ => false,
        };
        Ok(Self {
            context,
            outside,
            bound,
            client,
            port: (names_itself && request.port != 0).then_some(request.port),
            ipv4: None,
            ipv6: None,
            known: Vec::new(),
            resolving: JoinSet::new(),
            last: Instant::now(),
        })
    }

    /// Where the client shall send its datagrams.
    pub(super) fn bound(&self) -> SocketAddr {
        self.bound
    }

    /// Serves the client until it closes `stream` or falls silent.
    pub(super) async fn run(mut self, stream: &mut TcpStream) {
        let mut ignored = [0; 64];
        loop {
            tokio::select! {
                readable = self.outside.readable() => {
                    if readable.is_err() {
                        return;
                    }
                    self.take_datagram().await;
                }
                received = receive(&mut self.ipv4) => {
                    let Ok((length, from)) = received else { return };
                    self.hand_back(length, from).await;
                }
                received = receive(&mut self.ipv6) => {
                    let Ok((length, from)) = received else { return };
                    self.hand_back(length, from).await;
                }
                Some(Ok(resolved)) = self.resolving.join_next() => self.resolved(resolved).await,
                read = stream.read(&mut ignored) => {
                    if matches!(read, Ok(0) | Err(_)) {
                        return;
                    }
                }
                () = sleep_until(self.last + ASSOCIATION_IDLE) => return,
            }
        }
    }

    /// One datagram of the client's, if there is one.
    async fn take_datagram(&mut self) {
        let mut buffer = self.context.buffers.take();
        if let Ok((length, from)) = self.outside.try_recv_from(&mut buffer)
            && let Err(failure) = self.forward(&buffer[..length], from).await
        {
            self.context.counters.failed(failure);
            tracing::debug!(client = %self.client, %from, %failure, "a datagram was dropped");
        }
        self.context.buffers.give(buffer);
    }

    async fn forward(&mut self, datagram: &[u8], from: SocketAddr) -> Result<(), Failure> {
        if from.ip().to_canonical() != self.client || self.port.is_some_and(|port| port != from.port()) {
            return Err(Failure::ForeignSource);
        }
        let (target, payload) = message::parse_datagram(datagram)?;
        self.port = Some(from.port());
        self.last = Instant::now();
        match target.host {
            Host::Address(address) => self.send(payload, SocketAddr::new(address, target.port)).await,
            Host::Name(_) => {
                let known = self.known.iter().find(|known| known.target == target);
                if let Some(known) = known.filter(|known| known.since.elapsed() < NAME_AGE_MAX) {
                    let address = known.address;
                    return self.send(payload, address).await;
                }
                if self.resolving.len() >= RESOLVING_MAX {
                    return Err(Failure::QueueFull);
                }
                let (network, strategy) = (self.context.network.clone(), self.context.strategy());
                let timeout = self.context.limits.connect_timeout;
                let room = self.context.room(payload.len())?;
                let payload = payload.to_vec();
                self.resolving.spawn(async move {
                    let found = tokio::time::timeout(timeout, resolve(&network, &target, strategy)).await;
                    Resolved { target, payload, _room: room, addresses: found.unwrap_or(Err(Failure::NameNotResolved)) }
                });
                Ok(())
            }
        }
    }

    /// Sends what waited for its name: to the first address of a family that the tunnel has.
    async fn resolved(&mut self, resolved: Resolved) {
        let Resolved { target, payload, addresses, _room } = resolved;
        let sent = match addresses {
            Ok(addresses) => {
                let mut outcome = Err(Failure::NameNotResolved);
                for address in addresses {
                    outcome = self.send(&payload, address).await;
                    if outcome.is_ok() {
                        self.known.retain(|known| known.target != target);
                        if self.known.len() >= NAMES_MAX {
                            self.known.remove(0);
                        }
                        self.known.push(Known { target, address, since: Instant::now() });
                        break;
                    }
                }
                outcome
            }
            Err(failure) => Err(failure),
        };
        if let Err(failure) = sent {
            self.context.counters.failed(failure);
        }
    }

    async fn send(&mut self, payload: &[u8], to: SocketAddr) -> Result<(), Failure> {
        let (inside, any): (_, IpAddr) = match to {
            SocketAddr::V4(_) => (&mut self.ipv4, Ipv4Addr::UNSPECIFIED.into()),
            SocketAddr::V6(_) => (&mut self.ipv6, Ipv6Addr::UNSPECIFIED.into()),
        };
        let failed = |error: io::Error| match Failure::of_connect(&error) {
            Failure::ConnectFailed => Failure::SendFailed,
            failure => failure,
        };
        let inside = match inside {
            Some(inside) => inside,
            None => {
                let socket = self.context.network.bind(SocketAddr::new(any, 0)).map_err(failed)?;
                let buffer = vec![0; DATAGRAM_HEADER_MAX + BUFFER_BYTES].into_boxed_slice();
                inside.insert(Inside { socket, buffer })
            }
        };
        inside.socket.send_to(payload, to).await.map_err(failed)?;
        self.context.counters.sent_datagram(payload.len());
        Ok(())
    }

    /// Hands to the client the `length` bytes that came from `from` and lie in the buffer of its family.
    async fn hand_back(&mut self, length: usize, from: SocketAddr) {
        self.last = Instant::now();
        let inside = if from.is_ipv4() { &mut self.ipv4 } else { &mut self.ipv6 };
        // Before the client's first datagram there is no socket inside.
        let (Some(inside), Some(port)) = (inside, self.port) else { return };
        let header = message::datagram_header(from);
        let start = DATAGRAM_HEADER_MAX - header.len();
        inside.buffer[start..DATAGRAM_HEADER_MAX].copy_from_slice(&header);
        let datagram = &inside.buffer[start..DATAGRAM_HEADER_MAX + length];
        match self.outside.send_to(datagram, SocketAddr::new(self.client, port)).await {
            Ok(_) => self.context.counters.received_datagram(length),
            Err(_) => self.context.counters.failed(Failure::SendFailed),
        }
    }
}

/// The next datagram from inside; never, if there is no socket of that family.
async fn receive<N: Network>(inside: &mut Option<Inside<N>>) -> io::Result<(usize, SocketAddr)> {
    match inside {
        Some(inside) => inside.socket.recv_from(&mut inside.buffer[DATAGRAM_HEADER_MAX..]).await,
        None => std::future::pending().await,
    }
}
