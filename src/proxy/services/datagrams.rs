//! UDP forwards: a port in one network leads to one target in the other.
//!
//! Both directions are this file: `[UDPProxyTunnel]` has its port on the host and its target inside the tunnel,
//! `[UDPServerTunnel]` the other way round. Each client, by its address and port and the address that it sends to, has a
//! *mapping*: a socket of its own in the target's network, so that what comes back finds its way. Only the target's
//! answers count. A mapping is forgotten after the time of its description without
//! a datagram in either direction, and the one that was idle for longest when [`MAPPINGS_MAX`] are reached; an idle
//! service has no timer.
//!
//! The target's name is resolved once for each mapping; meanwhile, and whenever the target's network is slower than the client,
//! [`WAITING_MAX`] datagrams wait in the mapping, and one more is dropped (`QueueFull`), as is one for which all mappings
//! together leave no room ([`WAITING_BYTES_MAX`](super::WAITING_BYTES_MAX)).

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::Context;
use super::clients::report;
use super::dial::resolve;
use super::failure::Failure;
use super::network::{Client, DatagramSocket, Network, receive};
use super::relay::BUFFER_BYTES;
use crate::proxy::config::Target;

/// Clients of one forward: each has a socket in the target's network and a buffer of 64 KiB.
pub const MAPPINGS_MAX: usize = 1024;
/// Datagrams of one client that wait for the target's network.
pub const WAITING_MAX: usize = 64;
/// A mapping that could not be made is not made again for each datagram: so long its client's are dropped.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A datagram, and the room that it takes.
type Waiting = (Box<[u8]>, OwnedSemaphorePermit);

struct Mapping {
    waiting: mpsc::Sender<Waiting>,
    last: Arc<Stamp>,
    task: AbortHandle,
}

/// When a mapping was last used.
struct Stamp {
    epoch: Instant,
    millis: AtomicU64,
}

impl Stamp {
    fn new() -> Self {
        Self { epoch: Instant::now(), millis: AtomicU64::new(0) }
    }

    fn touch(&self) {
        self.millis.store(u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    fn last(&self) -> Instant {
        self.epoch + Duration::from_millis(self.millis.load(Relaxed))
    }
}

/// Where the datagrams of a port go, and when a client is forgotten (zero: only to make room).
pub(super) struct Forward {
    pub(super) target: Target,
    pub(super) idle: Duration,
}

/// Serves the clients of all these ports for ever.
pub(super) async fn serve<S: DatagramSocket, N: Network>(
    sockets: Vec<S>,
    forward: Forward,
    context: Context<N>,
) -> Infallible {
    let forward = Arc::new(forward);
    let mut ports = JoinSet::new();
    for socket in sockets {
        ports.spawn(serve_port(socket, Arc::clone(&forward), context.clone()));
    }
    loop {
        match ports.join_next().await {
            Some(ended) => report(ended.map(|never| match never {})),
            None => std::future::pending().await,
        }
    }
}

async fn serve_port<S: DatagramSocket, N: Network>(
    socket: S,
    forward: Arc<Forward>,
    context: Context<N>,
) -> Infallible {
    let socket = Arc::new(socket);
    let mut mappings: HashMap<Client, Mapping> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (length, client) = tokio::select! {
            received = receive(&*socket, &mut buffer) => received,
            Some(_) = tasks.join_next() => {
                // By its task and not by its client, who may have a new mapping by now.
                mappings.retain(|_, mapping| !mapping.task.is_finished());
                continue;
            }
        };
        let mapping = match mappings.get(&client) {
            Some(mapping) if !mapping.task.is_finished() => mapping,
            _ => {
                if mappings.len() >= context.limits.clients.min(MAPPINGS_MAX) {
                    evict(&mut mappings);
                    context.counters.failed(Failure::Evicted);
                }
                context.counters.accepted();
                let (waiting, queue) = mpsc::channel(WAITING_MAX);
                let last = Arc::new(Stamp::new());
                let map = Map {
                    context: context.clone(),
                    forward: Arc::clone(&forward),
                    client,
                    port: Arc::clone(&socket),
                    last: Arc::clone(&last),
                };
                let task = tasks.spawn(map.run(queue));
                mappings.entry(client).insert_entry(Mapping { waiting, last, task }).into_mut()
            }
        };
        mapping.last.touch();
        let waits = context
            .room(length)
            .and_then(|room| mapping.waiting.try_send((buffer[..length].into(), room)).map_err(|_| Failure::QueueFull));
        if let Err(failure) = waits {
            context.counters.failed(failure);
        }
    }
}

/// Forgets the client that was idle for longest.
fn evict(mappings: &mut HashMap<Client, Mapping>) {
    let oldest = mappings.iter().min_by_key(|(_, mapping)| mapping.last.last()).map(|(client, _)| *client);
    if let Some(mapping) = oldest.and_then(|client| mappings.remove(&client)) {
        mapping.task.abort();
    }
}

/// The task of one mapping.
struct Map<S: DatagramSocket, N: Network> {
    context: Context<N>,
    forward: Arc<Forward>,
    client: Client,
    /// Where the client sends to.
    port: Arc<S>,
    last: Arc<Stamp>,
}

impl<S: DatagramSocket, N: Network> Map<S, N> {
    /// Carries datagrams until the mapping is idle.
    async fn run(self, mut queue: mpsc::Receiver<Waiting>) {
        let counters = &self.context.counters;
        let (socket, target) = match self.open().await {
            Ok(open) => open,
            Err(failure) => {
                counters.failed(failure);
                tracing::debug!(client = %self.client.address, target = %self.forward.target, %failure, "not served");
                tokio::time::sleep(RETRY_AFTER).await;
                return;
            }
        };
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            tokio::select! {
                datagram = queue.recv() => {
                    // The mapping was given up.
                    let Some((datagram, _room)) = datagram else { return };
                    match socket.send_to(&datagram, target).await {
                        Ok(_) => counters.sent_datagram(datagram.len()),
                        Err(error) => {
                            tracing::debug!(client = %self.client.address, %target, %error, "a datagram was not sent");
                            counters.failed(Failure::SendFailed);
                        }
                    }
                }
                received = socket.recv_from(&mut buffer) => match received {
                    Ok((length, from)) if from == target => {
                        self.last.touch();
                        match self.port.answer(&buffer[..length], self.client).await {
                            Ok(_) => counters.received_datagram(length),
                            Err(_) => counters.failed(Failure::SendFailed),
                        }
                    }
                    Ok(_) => counters.failed(Failure::ForeignSource),
                    // The network is gone, or says that the target is: a new mapping begins afresh.
                    Err(_) => return,
                },
                () = self.idle() => return,
            }
        }
    }

    async fn open(&self) -> Result<(N::Socket, SocketAddr), Failure> {
        let context = &self.context;
        let addresses = tokio::time::timeout(
            context.limits.connect_timeout,
            resolve(&context.network, &self.forward.target, context.strategy()),
        );
        let addresses = addresses.await.unwrap_or(Err(Failure::NameNotResolved))?;
        let mut outcome = Err(Failure::NameNotResolved);
        for address in addresses {
            let any = match address {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            match context.network.bind(any) {
                Ok(socket) => return Ok((socket, address)),
                Err(error) => outcome = Err(Failure::of_connect(&error)),
            }
        }
        outcome
    }

    /// Returns once nothing came from either side for the time that is given.
    async fn idle(&self) {
        if self.forward.idle.is_zero() {
            return std::future::pending().await;
        }
        loop {
            let end = self.last.last() + self.forward.idle;
            if end <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}
