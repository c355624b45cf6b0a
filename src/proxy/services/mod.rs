//! What the sidecar serves: proxies and forwards between the host's network and the one inside the tunnel.
//!
//! - `socks5`, `http`: proxies whose clients say where they want to go;
//! - `forward`, `datagrams`, `stdio`: forwards to one target, of TCP, UDP, and standard input and output;
//! - `dns`: the tunnel's DNS servers, on the host;
//! - [`network`]: the two networks, by one trait;
//! - `clients`: who is let in, and how many; [`dial`]: names and connections; `relay`: bytes;
//! - `failure`, `counters`: why not, and how often; `credentials`.
//!
//! # How to use it
//! **Make [`Services`] of the network inside, bind each description, run what was bound, drop it to end it.**
//!
//! ```no_run
//! # use adit::proxy::{config::Service, services::{HostNetwork, Limits, Services}};
//! # async fn example(descriptions: Vec<Service>) -> std::io::Result<()> {
//! let services = Services::new(HostNetwork, Default::default(), Limits::default());
//! for description in &descriptions {
//!     let bound = services.bind(description)?; // 1. errors of the port are known here
//!     let counters = bound.counters(); // 2. for metrics
//!     tokio::spawn(bound.run()); // 3. until the task is aborted, its listener and clients with it
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Bounds, for each service: [`CLIENTS_MAX`], [`HALF_OPEN_MAX`] and what their neighbours say. Names are resolved in the
//! network that the target is in. No log line and no `Debug` shows a password.

mod clients;
mod counters;
mod credentials;
mod datagrams;
pub mod dial;
mod dns;
mod failure;
mod forward;
mod http;
pub mod network;
mod relay;
mod socks5;
mod stdio;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::config::{Resolve, ResolveStrategy, Service};
use datagrams::Forward;
use network::{DatagramSocket, Listener};

pub use clients::{CLIENTS_MAX, HALF_OPEN_MAX, HANDSHAKE_TIMEOUT, Limits};
pub use counters::{Counters, Figures};
pub use datagrams::{MAPPINGS_MAX, WAITING_MAX};
pub use dns::QUERIES_MAX;
pub use failure::Failure;
pub use http::HEAD_BYTES_MAX;
pub use network::{HostNetwork, Network};
pub use relay::BUFFER_BYTES;
pub use socks5::{ASSOCIATIONS_MAX, NAMES_MAX, RESOLVING_MAX};

/// Bytes of the datagrams that wait in one service, for the tunnel or for a name, over all of its clients: each may have many
/// wait, and none of them is much.
pub const WAITING_BYTES_MAX: usize = 16 << 20;

/// Which addresses of a name count; clones change together.
type Strategy = Arc<RwLock<ResolveStrategy>>;

/// What all services of one tunnel share.
#[derive(Debug, Clone)]
pub struct Services<N> {
    network: N,
    strategy: Strategy,
    limits: Limits,
    buffers: relay::Buffers,
}

/// What one service has at hand: the network that its targets are in, and its own counters.
#[derive(Clone)]
struct Context<N> {
    network: N,
    strategy: Strategy,
    limits: Limits,
    buffers: relay::Buffers,
    counters: Arc<Counters>,
    /// What is left of [`WAITING_BYTES_MAX`].
    room: Arc<Semaphore>,
}

impl<N> Context<N> {
    /// Room for a datagram of so many bytes to wait in, until it is dropped; `QueueFull` if there is none.
    fn room(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Failure> {
        let bytes = u32::try_from(bytes).map_err(|_| Failure::QueueFull)?;
        Arc::clone(&self.room).try_acquire_many_owned(bytes).map_err(|_| Failure::QueueFull)
    }

    fn strategy(&self) -> ResolveStrategy {
        *self.strategy.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn clients(&self) -> clients::Clients {
        clients::Clients::new(self.limits, Arc::clone(&self.counters))
    }
}

/// A service that listens, and serves nobody before it runs.
#[must_use = "nobody is served before it runs"]
pub struct Bound {
    addresses: Vec<SocketAddr>,
    counters: Arc<Counters>,
    running: Pin<Box<dyn Future<Output = Result<(), Failure>> + Send>>,
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Bound {
    /// Where it listens. Empty for standard input.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What it has done, also while it runs.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Serves until it is dropped: then its listener is closed, and its clients with it. Only `[STDIOTunnel]` ends by
    /// itself, when both directions have, or with the reason why not.
    pub async fn run(self) -> Result<(), Failure> {
        self.running.await
    }
}

impl<N: Network> Services<N> {
    /// Services into `network`, the one inside the tunnel.
    pub fn new(network: N, resolve: Resolve, limits: Limits) -> Self {
        let strategy = Arc::new(RwLock::new(resolve.strategy));
        Self { network, strategy, limits, buffers: relay::Buffers::default() }
    }

    /// From now on names inside the tunnel are resolved so, by the services that run, too.
    pub fn set_resolve(&self, resolve: Resolve) {
        *self.strategy.write().unwrap_or_else(PoisonError::into_inner) = resolve.strategy;
    }

    fn context<Other>(&self, network: Other, strategy: Strategy) -> Context<Other> {
        let (counters, room) = (Arc::default(), Arc::new(Semaphore::new(WAITING_BYTES_MAX)));
        Context { network, strategy, limits: self.limits, buffers: self.buffers.clone(), counters, room }
    }

    /// Takes the ports that `service` needs. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// What the system, or the stack inside the tunnel, says of the port: in use, not permitted, no such address.
    pub fn bind(&self, service: &Service) -> io::Result<Bound> {
        let inside = self.context(self.network.clone(), Arc::clone(&self.strategy));
        let counters = Arc::clone(&inside.counters);
        match service.clone() {
            Service::Socks5(socks5) => {
                let listener = HostNetwork.listen(socks5.bind)?;
                let addresses = vec![Listener::local_addr(&listener)?];
                Ok(Bound::new(addresses, counters, async move { socks5::serve(listener, &socks5, inside).await }))
            }
            Service::Http(http) => {
                let listener = HostNetwork.listen(http.bind)?;
                let addresses = vec![Listener::local_addr(&listener)?];
                Ok(Bound::new(addresses, counters, async move { http::serve(listener, &http, inside).await }))
            }
            Service::TcpClientTunnel(tunnel) => {
                let listener = HostNetwork.listen(tunnel.bind)?;
                let addresses = vec![Listener::local_addr(&listener)?];
                let running = async move { forward::serve(vec![listener], tunnel.target, inside).await };
                Ok(Bound::new(addresses, counters, running))
            }
            Service::TcpServerTunnel(tunnel) => {
                let outside = self.context(HostNetwork, Strategy::default());
                let counters = Arc::clone(&outside.counters);
                let listeners = of_both_families(tunnel.listen_port, |address| self.network.listen(address))?;
                let addresses = listeners.iter().map(Listener::local_addr).collect::<io::Result<_>>()?;
                let running = async move { forward::serve(listeners, tunnel.target, outside).await };
                Ok(Bound::new(addresses, counters, running))
            }
            Service::UdpProxyTunnel(tunnel) => {
                let socket = HostNetwork.bind(tunnel.bind)?;
                let addresses = vec![socket.local_addr()?];
                let forward = Forward { target: tunnel.target, idle: tunnel.inactivity_timeout };
                let running = async move { datagrams::serve(vec![socket], forward, inside).await };
                Ok(Bound::new(addresses, counters, running))
            }
            Service::UdpServerTunnel(tunnel) => {
                let outside = self.context(HostNetwork, Strategy::default());
                let counters = Arc::clone(&outside.counters);
                let sockets = of_both_families(tunnel.listen_port, |address| self.network.bind(address))?;
                let addresses = sockets.iter().map(DatagramSocket::local_addr).collect::<io::Result<_>>()?;
                let forward = Forward { target: tunnel.target, idle: tunnel.inactivity_timeout };
                let running = async move { datagrams::serve(sockets, forward, outside).await };
                Ok(Bound::new(addresses, counters, running))
            }
            Service::StdioTunnel(tunnel) => {
                let running =
                    async move { stdio::carry(tokio::io::stdin(), tokio::io::stdout(), &tunnel, inside).await };
                Ok(Bound { addresses: Vec::new(), counters, running: Box::pin(running) })
            }
            Service::Dns(dns) => {
                let listener = HostNetwork.listen(dns.bind)?;
                let address = Listener::local_addr(&listener)?;
                // The same port for both, also where the system chose it.
                let socket = HostNetwork.bind(address)?;
                Ok(Bound::new(vec![address], counters, async move { dns::serve(listener, socket, inside).await }))
            }
        }
    }
}

impl Bound {
    /// Of a service that never ends.
    fn new(
        addresses: Vec<SocketAddr>,
        counters: Arc<Counters>,
        running: impl Future<Output = std::convert::Infallible> + Send + 'static,
    ) -> Self {
        Self { addresses, counters, running: Box::pin(async move { match running.await {} }) }
    }
}

/// A port of both families; one is enough, since an interface may have addresses of one only.
fn of_both_families<T>(port: u16, take: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<Vec<T>> {
    let first = take((Ipv4Addr::UNSPECIFIED, port).into());
    let second = take((Ipv6Addr::UNSPECIFIED, port).into());
    match (first, second) {
        (Err(error), Err(_)) => Err(error),
        (first, second) => Ok(first.into_iter().chain(second).collect()),
    }
}
