//! The two networks between which services carry bytes: the host's own, and the one inside the tunnel.
//!
//! A service knows both by one trait, so that a forward into the tunnel and one out of it are the same code with the
//! networks exchanged, and tests run over loopback alone. Errors are `io::Error` with the kinds that `std::net` gives
//! (refused, unreachable, timed out): [`Failure`](super::Failure) is made of them.
//!
//! Every future may be dropped at any point without losing what it did not return.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_rustls::server::TlsStream;

/// Connections that the system keeps for a listener which is busy; it may allow fewer (net.core.somaxconn).
const BACKLOG: i32 = 4096;
/// A peer that says nothing for this long is asked whether it is still there.
pub(crate) const KEEPALIVE_TIME: Duration = Duration::from_secs(120);
/// Then every so often, until the system gives up (Linux: after 9 times).
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Before a socket that said an error is asked for the next datagram.
const RECEIVE_PAUSE: Duration = Duration::from_millis(1);

/// A network in which connections can be made and taken.
pub trait Network: Clone + Send + Sync + 'static {
    /// A TCP connection.
    type Stream: Connection;
    /// Takes TCP connections.
    type Listener: Listener<Stream = Self::Stream>;
    /// A UDP socket.
    type Socket: DatagramSocket;

    /// Connects, or fails after `timeout` with `TimedOut`. `PermissionDenied` if no proxy shall lead there.
    fn connect(&self, address: SocketAddr, timeout: Duration) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// Listens for TCP connections; an unspecified address stands for all of its family.
    fn listen(&self, address: SocketAddr) -> io::Result<Self::Listener>;

    /// Opens a UDP socket; port 0 stands for any that is free.
    fn bind(&self, address: SocketAddr) -> io::Result<Self::Socket>;

    /// The addresses of a name, in the order of the resolver; not empty. `NotFound` if it has none.
    fn resolve(&self, name: &str) -> impl Future<Output = io::Result<Vec<IpAddr>>> + Send;

    /// The DNS servers of this network, the first one first.
    fn resolvers(&self) -> Vec<SocketAddr>;
}

/// A TCP connection of a [`Network`]. Shutting down its writing half sends what is left, then FIN.
pub trait Connection: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// This end's address.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// When the connection is dropped after this, the peer sees it reset instead of ended: what it has is not all.
    fn reset_on_drop(&mut self);
}

/// Takes the TCP connections of a [`Network`].
pub trait Listener: Send + Sync + 'static {
    /// What is taken.
    type Stream: Connection;

    /// The next connection and the address it comes from.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, SocketAddr)>> + Send;

    /// Where it listens.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// Whom a datagram comes from, as far as an answer has to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Client {
    /// The sender.
    pub address: SocketAddr,
    /// To which of this end's addresses it was sent, where the network tells: the answer comes from there.
    pub reached: Option<IpAddr>,
}

/// A UDP socket of a [`Network`].
pub trait DatagramSocket: Send + Sync + 'static {
    /// Sends one datagram.
    fn send_to(&self, datagram: &[u8], to: SocketAddr) -> impl Future<Output = io::Result<usize>> + Send;

    /// The next datagram: its length and where it comes from. What does not fit is cut off.
    fn recv_from(&self, buffer: &mut [u8]) -> impl Future<Output = io::Result<(usize, SocketAddr)>> + Send;

    /// Where it is bound.
    fn local_addr(&self) -> io::Result<SocketAddr>;

    /// The next datagram, for one who answers: its length, and whom to answer.
    fn recv_client(&self, buffer: &mut [u8]) -> impl Future<Output = io::Result<(usize, Client)>> + Send {
        async { self.recv_from(buffer).await.map(|(length, address)| (length, Client { address, reached: None })) }
    }

    /// Sends one datagram to a client.
    fn answer(&self, datagram: &[u8], client: Client) -> impl Future<Output = io::Result<usize>> + Send {
        self.send_to(datagram, client.address)
    }
}

/// The host's own network.
#[derive(Debug, Clone, Copy, Default)]
pub struct HostNetwork;

impl Network for HostNetwork {
    type Stream = TcpStream;
    type Listener = TcpListener;
    type Socket = UdpSocket;

    async fn connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let stream = tokio::time::timeout(timeout, TcpStream::connect(address)).await??;
        prepare(&stream);
        Ok(stream)
    }

    fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        TcpListener::from_std(listener(address)?)
    }

    fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        UdpSocket::from_std(bound(address, Type::DGRAM, |_| Ok(()))?.into())
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        // The system's resolver says "not known" by an error of no kind.
        let found = tokio::net::lookup_host((name, 0)).await;
        let found: Vec<IpAddr> = found
            .map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?
            .map(|address| address.ip())
            .collect();
        if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
    }

    /// None that is known: the host's names are resolved by its own system.
    fn resolvers(&self) -> Vec<SocketAddr> {
        Vec::new()
    }
}

/// A socket at `address`. All addresses of IPv6 are those of IPv4, too, and on a host without IPv6 those of IPv4 alone.
fn bound(address: SocketAddr, kind: Type, prepare: fn(&Socket) -> io::Result<()>) -> io::Result<Socket> {
    let bind = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), kind.nonblocking(), None)?;
        if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
            socket.set_only_v6(false)?;
        }
        prepare(&socket)?;
        socket.bind(&address.into())?;
        Ok::<_, io::Error>(socket)
    };
    match bind(address) {
        Err(error)
            if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
                && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)) =>
        {
            bind((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        bound => bound,
    }
}

/// Listens without blocking.
pub(crate) fn listener(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    // Connections of a run before this one, in TIME_WAIT, are no reason to fail.
    let socket = bound(address, Type::STREAM, |socket| socket.set_reuse_address(true))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The next datagram of a client. Errors are said of earlier answers to clients that are gone, and nothing is
/// lost with them; one that stays costs a call for each [`RECEIVE_PAUSE`].
pub(super) async fn receive<S: DatagramSocket>(socket: &S, buffer: &mut [u8]) -> (usize, Client) {
    loop {
        match socket.recv_client(buffer).await {
            Ok(received) => return received,
            Err(error) => {
                tracing::debug!(%error, "a datagram could not be received");
                tokio::time::sleep(RECEIVE_PAUSE).await;
            }
        }
    }
}

/// What each connection of the host is given. Without it the connection works, only worse.
fn prepare(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_TIME).with_interval(KEEPALIVE_INTERVAL);
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

impl Connection for TcpStream {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpStream::local_addr(self)
    }

    fn reset_on_drop(&mut self) {
        // If it cannot be, the peer sees an end: less than the truth, and all that can be told.
        let _ = self.set_zero_linger();
    }
}

/// A client of the host that speaks TLS. Its end without a word of TLS is an error, not an end: [RFC 8446 §6.1].
impl Connection for TlsStream<TcpStream> {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.get_ref().0.local_addr()
    }

    fn reset_on_drop(&mut self) {
        self.get_mut().0.reset_on_drop();
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = TcpListener::accept(self).await?;
        prepare(&stream);
        Ok((stream, from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}

impl DatagramSocket for UdpSocket {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        UdpSocket::send_to(self, datagram, to).await
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        UdpSocket::recv_from(self, buffer).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        UdpSocket::local_addr(self)
    }
}
