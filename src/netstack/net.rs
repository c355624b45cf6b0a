//! The door: a stack is made in one piece and used from its two ends.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::config::{Config, Stats};
use super::echo::Echo;
use super::flow::SYN_TIMEOUT;
use super::interface::NetstackTun;
use super::resolve;
use super::stack::{Names, Stack};
use super::tcp::{Connection, Listening, TcpListener, TcpStream};
use super::timers::Timers;
use super::udp::{Bound, UdpSocket};
use super::wait::block_on;

/// A TCP/IP stack in this process, whose network is a tunnel.
#[derive(Debug, Clone, Copy)]
pub struct Netstack;

impl Netstack {
    /// A stack: the end that a device takes for its interface, and the end that connections are made from. Any number of
    /// stacks may be in one process.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when a value of `config` is out of its range, and what the system says
    /// when it has no thread to give.
    pub fn pair(config: Config) -> io::Result<(NetstackTun, Net)> {
        let stack = Stack::new(config)?;
        Ok((NetstackTun::new(Arc::clone(&stack))?, Net { stack }))
    }
}

/// Where connections are made from. Clones are the same stack.
///
/// Dropping it ends nothing: connections and sockets live on by themselves, and the stack answers echo requests, until
/// the device ends. What is done after that fails with [`io::ErrorKind::NetworkDown`].
#[derive(Clone)]
pub struct Net {
    stack: Arc<Stack>,
}

/// What `future` gives, or [`io::ErrorKind::TimedOut`] at `deadline`.
pub(super) async fn until<T>(
    timers: &Arc<Timers>,
    deadline: Instant,
    future: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    let mut sleep = pin!(timers.sleep_until(deadline));
    let mut future = pin!(future);
    poll_fn(|context| {
        if let Poll::Ready(result) = future.as_mut().poll(context) {
            return Poll::Ready(result);
        }
        sleep.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    })
    .await
}

impl Net {
    /// Connects to `to`, waiting for it no longer than `timeout`.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] when nobody listens there; [`io::ErrorKind::TimedOut`];
    /// [`io::ErrorKind::HostUnreachable`] or [`io::ErrorKind::NetworkUnreachable`] when an ICMP error says so (the
    /// device's own does, when no peer is routed to); [`io::ErrorKind::NetworkUnreachable`] also when the stack has no
    /// address of that family; [`io::ErrorKind::QuotaExceeded`] when there are
    /// [`Config::connections_max`] connections already; [`io::ErrorKind::InvalidInput`] when `to` names no host and
    /// port.
    pub fn connect_tcp(&self, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        block_on(self.connect(to, timeout)).map(TcpStream::new)
    }

    /// Listens for connections. With port 0 it takes any; an unspecified address stands for every one of its family.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`]; [`io::ErrorKind::AddrNotAvailable`] when the address is none of the stack's.
    pub fn listen_tcp(&self, at: SocketAddr) -> io::Result<TcpListener> {
        Listening::new(&self.stack, at).map(TcpListener::new)
    }

    /// Makes a socket for datagrams. With port 0 it takes any; an unspecified address stands for every one of its family.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`]; [`io::ErrorKind::AddrNotAvailable`] when the address is none of the stack's.
    pub fn bind_udp(&self, at: SocketAddr) -> io::Result<UdpSocket> {
        Bound::new(&self.stack, at).map(UdpSocket::new)
    }

    /// The addresses of a host, by asking the stack's DNS servers through the tunnel, of those families that the stack has
    /// addresses of; IPv6 first. An address in text stands for itself, and nobody is asked.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] when there is no such host, or it has no such address;
    /// [`io::ErrorKind::TimedOut`] when no server answered; [`io::ErrorKind::InvalidInput`] when it is no name;
    /// [`io::ErrorKind::Unsupported`] when the stack has no servers.
    pub fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        block_on(resolve::resolve(&self.stack, host))
    }

    /// Sends an echo request to `to` and returns how long the answer took, waiting for it no longer than `timeout`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`]; [`io::ErrorKind::HostUnreachable`] or [`io::ErrorKind::NetworkUnreachable`] as
    /// in [`Net::connect_tcp`].
    pub fn ping(&self, to: IpAddr, timeout: Duration) -> io::Result<Duration> {
        block_on(self.echo(to, timeout))
    }

    /// Changes the stack's addresses. Connections from addresses that it loses end with
    /// [`io::ErrorKind::ConnectionAborted`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when one is no address of a host, or its prefix too long, or it is of IPv6 and the MTU
    /// is too small for that; nothing is changed then.
    pub fn set_addresses(&self, addresses: Vec<(IpAddr, u8)>) -> io::Result<()> {
        self.stack.set_addresses(addresses)
    }

    /// Changes the DNS servers and the domains that are searched, for what is resolved from now on.
    pub fn set_dns(&self, servers: Vec<SocketAddr>, search: Vec<String>) {
        self.stack.names.store(Arc::new(Names { servers, search }));
    }

    /// Who is asked for the addresses of names, in this order.
    pub fn dns_servers(&self) -> Vec<SocketAddr> {
        self.stack.names.load().servers.clone()
    }

    /// What the stack has done, and what it has now.
    pub fn stats(&self) -> Stats {
        self.stack.stats()
    }

    /// What the asynchronous door is made of.
    #[cfg(feature = "tokio")]
    pub(super) fn stack(&self) -> &Arc<Stack> {
        &self.stack
    }

    pub(super) async fn connect(&self, to: SocketAddr, timeout: Duration) -> io::Result<Connection> {
        let deadline = Instant::now() + timeout.min(SYN_TIMEOUT);
        let connection = Connection::connect(&self.stack, to)?;
        until(&self.stack.timers, deadline, poll_fn(|context| connection.poll_connected(context))).await?;
        Ok(connection)
    }

    pub(super) async fn echo(&self, to: IpAddr, timeout: Duration) -> io::Result<Duration> {
        let echo = Echo::send(&self.stack, to)?;
        let deadline = Instant::now() + timeout;
        until(&self.stack.timers, deadline, poll_fn(|context| echo.poll_answer(context))).await
    }
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net").field("stats", &self.stats()).finish_non_exhaustive()
    }
}
