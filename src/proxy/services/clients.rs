//! Who is let in: the bounds on a listener's clients, and the loop that accepts them.
//!
//! A client of a protocol with a handshake is *half-open* until it has said, and may say, what it wants. Half-open
//! clients are cheap (a descriptor and a small task, no buffer) and there are [`HALF_OPEN_MAX`] of them at most: one
//! more ends the oldest. So a flood of clients that connect and say nothing displaces itself, while one that speaks at
//! once is through before its turn comes. An evicted one needs a moment to go, so twice as many can be there for that
//! moment, and then no more is accepted. Nobody stays half-open for longer than [`HANDSHAKE_TIMEOUT`].
//!
//! Beyond the handshake a client is *served*, and [`CLIENTS_MAX`] are at once. One more is refused in words (SOCKS5: 1,
//! HTTP: 503). A forward has no handshake and no words: it does not accept what it cannot serve, and clients wait in
//! the system's queue.
//!
//! When the system has no descriptor left, the oldest half-open client gives up its own, and the loop pauses instead
//! of spinning.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::counters::Counters;
use super::failure::Failure;
use super::network::Listener;

/// Clients that one listener serves at once: four times what the stack under it is asked to carry, in a quarter of
/// the descriptors that systems commonly allow.
pub const CLIENTS_MAX: usize = 4096;
/// Clients in their handshake at once: at 2 KiB each no more memory than a few busy connections have.
pub const HALF_OPEN_MAX: usize = 1024;
/// For a handshake, from accepting to knowing what is wanted: a few round trips over a bad link.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// After an error that the next `accept` would meet again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Between two warnings that no connection can be accepted: whoever holds all descriptors need not fill the log as well.
const ACCEPT_TOLD_EVERY: Duration = Duration::from_secs(60);

/// The bounds of one service. [`Limits::default`] has the named constants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// See [`CLIENTS_MAX`].
    pub clients: usize,
    /// See [`HALF_OPEN_MAX`].
    pub half_open: usize,
    /// See [`HANDSHAKE_TIMEOUT`].
    pub handshake_timeout: Duration,
    /// See [`CONNECT_TIMEOUT`](super::dial::CONNECT_TIMEOUT).
    pub connect_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: CLIENTS_MAX,
            half_open: HALF_OPEN_MAX,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            connect_timeout: super::dial::CONNECT_TIMEOUT,
        }
    }
}

/// The clients of one listener.
#[derive(Clone)]
pub(super) struct Clients {
    counters: Arc<Counters>,
    limits: Limits,
    half_open: Arc<Mutex<HalfOpenTable>>,
    served: Arc<Semaphore>,
}

#[derive(Default)]
struct HalfOpenTable {
    next: u64,
    /// The oldest first. Who loses its sender is evicted.
    entries: BTreeMap<u64, oneshot::Sender<()>>,
    /// When it was told last that no connection can be accepted.
    told: Option<Instant>,
}

/// A client in its handshake.
pub(super) struct HalfOpen {
    clients: Clients,
    number: u64,
    evicted: oneshot::Receiver<()>,
}

/// A client that is served; dropping it makes room.
pub(super) struct Served {
    counters: Arc<Counters>,
    _permit: OwnedSemaphorePermit,
}

impl Clients {
    pub(super) fn new(limits: Limits, counters: Arc<Counters>) -> Self {
        let served = Arc::new(Semaphore::new(limits.clients));
        Self { counters, limits, half_open: Arc::default(), served }
    }

    fn table(&self) -> MutexGuard<'_, HalfOpenTable> {
        // Nothing is left half-done by a panic: each critical section changes one entry.
        self.half_open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a client into its handshake, at the cost of the oldest one there if it is full.
    fn open(&self) -> HalfOpen {
        let (sender, evicted) = oneshot::channel();
        let mut table = self.table();
        while table.entries.len() >= self.limits.half_open.max(1) {
            table.entries.pop_first();
        }
        let number = table.next;
        table.next += 1;
        table.entries.insert(number, sender);
        drop(table);
        self.counters.half_open.fetch_add(1, Relaxed);
        HalfOpen { clients: self.clone(), number, evicted }
    }

    /// Serves one more client, or says that there are enough.
    pub(super) fn admit(&self) -> Result<Served, Failure> {
        let permit = Arc::clone(&self.served).try_acquire_owned().map_err(|_| Failure::Full)?;
        Ok(Served::new(&self.counters, permit))
    }

    /// Whether those who were evicted are gone already, but for as many as there may be half-open clients.
    fn has_settled(&self) -> bool {
        self.counters.half_open.load(Relaxed) < 2 * self.limits.half_open.max(1) as u64
    }

    /// Ends the oldest handshake for want of descriptors. Whether that is to be told.
    fn give_one_up(&self) -> bool {
        let mut table = self.table();
        table.entries.pop_first();
        let is_due = table.told.is_none_or(|at| at.elapsed() >= ACCEPT_TOLD_EVERY);
        if is_due {
            table.told = Some(Instant::now());
        }
        is_due
    }

    /// The next connection, whatever errors come before it.
    async fn next<L: Listener>(&self, listener: &L) -> (L::Stream, SocketAddr) {
        loop {
            match listener.accept().await {
                Ok(accepted) => {
                    self.counters.accepted();
                    return accepted;
                }
                Err(error) if is_of_one_connection(&error) => {
                    tracing::debug!(%error, "a connection was gone before it could be accepted");
                }
                Err(error) => {
                    self.counters.failed(Failure::AcceptFailed);
                    if self.give_one_up() {
                        tracing::warn!(%error, "no connection can be accepted, trying on");
                    }
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Accepts for ever, and lets each client begin a handshake. Ends with all of its clients when dropped.
    pub(super) async fn shake_hands<L, F>(
        &self,
        listener: &L,
        serve: impl Fn(L::Stream, SocketAddr, HalfOpen) -> F,
    ) -> Infallible
    where
        L: Listener,
        F: Future<Output = ()> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        // One future for as long as it takes, so that a client's end does not cut short the pause after an error.
        let mut next = pin!(self.next(listener));
        loop {
            tokio::select! {
                (stream, from) = &mut next, if self.has_settled() => {
                    next.set(self.next(listener));
                    tasks.spawn(serve(stream, from, self.open()));
                }
                Some(ended) = tasks.join_next() => report(ended),
            }
        }
    }

    /// Accepts for ever, but no more clients than can be served. Ends with all of its clients when dropped.
    pub(super) async fn queue<L, F>(
        &self,
        listener: &L,
        serve: impl Fn(L::Stream, SocketAddr, Served) -> F,
    ) -> Infallible
    where
        L: Listener,
        F: Future<Output = ()> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        let next = async || {
            let permit = Arc::clone(&self.served).acquire_owned().await.expect("the semaphore is never closed");
            let (stream, from) = self.next(listener).await;
            (stream, from, Served::new(&self.counters, permit))
        };
        let mut coming = pin!(next());
        loop {
            tokio::select! {
                (stream, from, served) = &mut coming => {
                    coming.set(next());
                    tasks.spawn(serve(stream, from, served));
                }
                Some(ended) = tasks.join_next() => report(ended),
            }
        }
    }
}

/// A panic of one client's task is a mistake of ours that has ended this client and nobody else.
pub(super) fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "the task of a client panicked");
    }
}

impl HalfOpen {
    /// Waits for `handshake`, but neither for longer than a handshake may take, nor once others need the place.
    pub(super) async fn within<T>(mut self, handshake: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            done = handshake => Ok(done),
            _ = &mut self.evicted => Err(Failure::Evicted),
            () = tokio::time::sleep(self.clients.limits.handshake_timeout) => Err(Failure::HandshakeTimeout),
        }
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        self.clients.table().entries.remove(&self.number);
        self.clients.counters.half_open.fetch_sub(1, Relaxed);
    }
}

impl Served {
    fn new(counters: &Arc<Counters>, permit: OwnedSemaphorePermit) -> Self {
        counters.served.fetch_add(1, Relaxed);
        Self { counters: Arc::clone(counters), _permit: permit }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.counters.served.fetch_sub(1, Relaxed);
    }
}

/// Whether an error of `accept` concerns the connection that was to be accepted, and says nothing about the next.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::proxy::services::network::{HostNetwork, Network};

    fn clients(clients: usize, half_open: usize) -> Clients {
        let limits = Limits { clients, half_open, ..Limits::default() };
        Clients::new(limits, Arc::default())
    }

    #[tokio::test]
    async fn the_oldest_handshake_makes_room() {
        let clients = clients(1, 2);
        let [first, second, third] = [clients.open(), clients.open(), clients.open()];
        assert_eq!(first.within(std::future::pending::<()>()).await, Err(Failure::Evicted));
        assert_eq!(clients.counters.figures().half_open, 2);
        drop(second);
        assert_eq!(third.within(async { 7 }).await, Ok(7));
        assert_eq!(clients.counters.figures().half_open, 0);
        assert!(clients.table().entries.is_empty());
    }

    #[tokio::test]
    async fn a_handshake_has_an_end() {
        let handshake_timeout = Duration::from_millis(30);
        let clients = Clients::new(Limits { handshake_timeout, ..Limits::default() }, Arc::default());
        let begun = std::time::Instant::now();
        assert_eq!(clients.open().within(std::future::pending::<()>()).await, Err(Failure::HandshakeTimeout));
        assert!(begun.elapsed() >= handshake_timeout);
    }

    #[test]
    fn who_is_served_has_a_place() {
        let clients = clients(1, 2);
        let served = clients.admit();
        assert!(served.is_ok());
        assert_eq!(clients.admit().err(), Some(Failure::Full));
        assert_eq!(clients.counters.figures().served, 1);
        drop(served);
        assert!(clients.admit().is_ok());
    }

    /// A listener that has run out of descriptors, twice, and then is well again.
    struct Exhausted {
        listener: tokio::net::TcpListener,
        calls: AtomicUsize,
    }

    impl Listener for Exhausted {
        type Stream = tokio::net::TcpStream;

        async fn accept(&self) -> io::Result<(Self::Stream, SocketAddr)> {
            match self.calls.fetch_add(1, Relaxed) {
                0 => Err(io::ErrorKind::ConnectionAborted.into()),
                1 | 2 => Err(io::Error::from_raw_os_error(libc::EMFILE)),
                _ => Listener::accept(&self.listener).await,
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            self.listener.local_addr()
        }
    }

    /// Those who are evicted and do not go are waited for.
    #[tokio::test]
    async fn no_more_are_accepted_than_twice_the_half_open() {
        let clients = clients(1, 2);
        let listener = HostNetwork.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let _clients: Vec<_> = (0..9).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let serving = clients.shake_hands(&listener, |_stream, _from, half_open| async {
            let _half_open = half_open;
            std::future::pending().await
        });
        let _ = tokio::time::timeout(ACCEPT_PAUSE, async {
            tokio::join!(serving, async {
                tokio::time::sleep(ACCEPT_PAUSE / 2).await;
                assert_eq!(clients.counters.figures().half_open, 4);
            })
        })
        .await;
    }

    /// A listener that has a few connections, and then no descriptor any more.
    struct Exhausting {
        listener: tokio::net::TcpListener,
        connections: usize,
        calls: AtomicUsize,
    }

    impl Listener for Exhausting {
        type Stream = tokio::net::TcpStream;

        async fn accept(&self) -> io::Result<(Self::Stream, SocketAddr)> {
            if self.calls.fetch_add(1, Relaxed) < self.connections {
                return Listener::accept(&self.listener).await;
            }
            Err(io::Error::from_raw_os_error(libc::EMFILE))
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            self.listener.local_addr()
        }
    }

    /// Those who are given up do not make it try again before its time, which would give up the next one.
    #[tokio::test]
    async fn without_descriptors_it_gives_up_one_at_a_time() {
        let clients = clients(1, 50);
        let listener = HostNetwork.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = 20;
        let listener = Exhausting { listener, connections, calls: AtomicUsize::new(0) };
        let _clients: Vec<_> = (0..connections).map(|_| std::net::TcpStream::connect(address).unwrap()).collect();
        let serving = clients.shake_hands(&listener, |_stream, _from, half_open| async {
            let _ = half_open.within(std::future::pending::<()>()).await;
        });
        let _ = tokio::time::timeout(3 * ACCEPT_PAUSE, serving).await;
        let tries = listener.calls.load(Relaxed) - connections;
        assert!((1..=4).contains(&tries), "{tries}");
        assert!(clients.table().told.is_some() && !clients.give_one_up(), "told once");
    }

    #[tokio::test]
    async fn without_descriptors_it_waits_and_gives_up_the_oldest_handshake() {
        let clients = clients(1, 2);
        let listener = HostNetwork.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let listener = Exhausted { listener, calls: AtomicUsize::new(0) };
        let waiting = clients.open();
        let begun = std::time::Instant::now();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let _accepted = clients.next(&listener).await;
        assert!(begun.elapsed() >= 2 * ACCEPT_PAUSE);
        assert_eq!(listener.calls.load(Relaxed), 4);
        assert_eq!(clients.counters.figures().failures(Failure::AcceptFailed), 2);
        assert_eq!(waiting.within(std::future::pending::<()>()).await, Err(Failure::Evicted));
    }
}
