//! The stack for tokio: the same names, with asynchronous methods.
//!
//! All futures may be dropped at any time: a connection that was being made is given up, a datagram or connection
//! that nobody received waits for the next. They need no particular runtime and no timer of it; the traits that streams
//! implement are tokio's.

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::config::Stats;
use super::flow::SYN_TIMEOUT;
use super::resolve;
use super::tcp::{Connection, Listening};
use super::udp::Bound;

/// Where connections are made from: [`super::Net`] for tokio.
#[derive(Debug, Clone)]
pub struct Net(super::Net);

impl From<super::Net> for Net {
    fn from(net: super::Net) -> Self {
        Self(net)
    }
}

impl Net {
    /// Connects to `to`. It takes two minutes at most; use `tokio::time::timeout` for less.
    ///
    /// # Errors
    /// As [`super::Net::connect_tcp`].
    pub async fn connect_tcp(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.0.connect(to, SYN_TIMEOUT).await.map(TcpStream)
    }

    /// Listens for connections.
    ///
    /// # Errors
    /// As [`super::Net::listen_tcp`].
    pub fn listen_tcp(&self, at: SocketAddr) -> io::Result<TcpListener> {
        self.0.listen_tcp(at).map(Into::into)
    }

    /// Makes a socket for datagrams.
    ///
    /// # Errors
    /// As [`super::Net::bind_udp`].
    pub fn bind_udp(&self, at: SocketAddr) -> io::Result<UdpSocket> {
        self.0.bind_udp(at).map(Into::into)
    }

    /// The addresses of a host.
    ///
    /// # Errors
    /// As [`super::Net::resolve`].
    pub async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        resolve::resolve(self.0.stack(), host).await
    }

    /// Sends an echo request and returns how long the answer took.
    ///
    /// # Errors
    /// As [`super::Net::ping`].
    pub async fn ping(&self, to: IpAddr, timeout: Duration) -> io::Result<Duration> {
        self.0.echo(to, timeout).await
    }

    /// What the stack has done, and what it has now.
    pub fn stats(&self) -> Stats {
        self.0.stats()
    }

    /// Who is asked for the addresses of names.
    pub fn dns_servers(&self) -> Vec<SocketAddr> {
        self.0.dns_servers()
    }

    /// The same stack for threads.
    pub fn blocking(&self) -> &super::Net {
        &self.0
    }
}

/// A TCP connection through the tunnel: [`super::TcpStream`] for tokio.
///
/// `shutdown` ends what is sent, and the peer may go on sending.
#[derive(Debug)]
pub struct TcpStream(Connection);

impl TcpStream {
    /// The other end.
    ///
    /// # Errors
    /// None.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.peer())
    }

    /// This end.
    ///
    /// # Errors
    /// None.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local())
    }

    /// As [`super::TcpStream::set_nodelay`].
    ///
    /// # Errors
    /// None.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.0.set_nodelay(nodelay);
        Ok(())
    }

    /// As [`super::TcpStream::set_keepalive`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for no time at all.
    pub fn set_keepalive(&self, interval: Option<Duration>) -> io::Result<()> {
        self.0.set_keepalive(interval)
    }

    /// As [`super::TcpStream::abort`].
    pub fn abort(&self) {
        self.0.abort();
    }

    /// As [`super::TcpStream::reset_on_drop`].
    pub fn reset_on_drop(&self) {
        self.0.reset_on_drop();
    }
}

impl TryFrom<super::TcpStream> for TcpStream {
    type Error = io::Error;

    /// Fails with [`io::ErrorKind::ResourceBusy`] while there are clones of the stream.
    fn try_from(stream: super::TcpStream) -> io::Result<Self> {
        stream.into_connection().map(Self).ok_or(io::ErrorKind::ResourceBusy.into())
    }
}

impl AsyncRead for TcpStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let len = ready!(self.0.poll_read(context, buffer.initialize_unfilled()))?;
        buffer.advance(len);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TcpStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write(context, bytes)
    }

    /// Does nothing, as nothing is held back.
    fn poll_flush(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.shutdown(Shutdown::Write))
    }
}

/// Accepts TCP connections through the tunnel: [`super::TcpListener`] for tokio.
#[derive(Debug)]
pub struct TcpListener(Listening);

impl From<super::TcpListener> for TcpListener {
    fn from(listener: super::TcpListener) -> Self {
        Self(listener.into_listening())
    }
}

impl TcpListener {
    /// Waits for a connection, and returns it with the address of its other end.
    ///
    /// # Errors
    /// As [`super::TcpListener::accept`].
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let connection = poll_fn(|context| self.0.poll_accept(context)).await?;
        let peer = connection.peer();
        Ok((TcpStream(connection), peer))
    }

    /// Where it listens.
    ///
    /// # Errors
    /// None.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local())
    }
}

/// A UDP socket through the tunnel: [`super::UdpSocket`] for tokio.
#[derive(Debug)]
pub struct UdpSocket(Bound);

impl From<super::UdpSocket> for UdpSocket {
    fn from(socket: super::UdpSocket) -> Self {
        Self(socket.into_bound())
    }
}

impl UdpSocket {
    /// Sends a datagram and returns its length in bytes. Never waits, as [`super::UdpSocket::send_to`].
    ///
    /// # Errors
    /// As [`super::UdpSocket::send_to`].
    pub async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.0.send_to(datagram, to)
    }

    /// As [`super::UdpSocket::connect`].
    ///
    /// # Errors
    /// As [`super::UdpSocket::connect`].
    pub fn connect(&self, to: SocketAddr) -> io::Result<()> {
        self.0.connect(to)
    }

    /// Sends a datagram to whom it is connected to.
    ///
    /// # Errors
    /// As [`super::UdpSocket::send`].
    pub async fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        self.0.send_to(datagram, self.0.peer()?)
    }

    /// Waits for a datagram, and returns its length in bytes and its sender. What does not fit `buffer` is cut off.
    ///
    /// # Errors
    /// [`io::ErrorKind::NetworkDown`] when the device has ended; on a connected socket also what an ICMP error says of its
    /// peer, as [`super::UdpSocket::recv_from`].
    pub async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.recv_from_to(buffer).await.map(|(len, from, _)| (len, from))
    }

    /// [`UdpSocket::recv_from`], which also returns to which of the stack's addresses the datagram was sent: an answer comes
    /// from there ([`UdpSocket::send_from`]), or it is not taken for one.
    ///
    /// # Errors
    /// As [`UdpSocket::recv_from`].
    pub async fn recv_from_to(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, IpAddr)> {
        poll_fn(|context| self.0.poll_recv(context, buffer)).await
    }

    /// [`UdpSocket::send_to`], from `own`, one of the stack's addresses.
    ///
    /// # Errors
    /// As [`super::UdpSocket::send_from`].
    pub async fn send_from(&self, own: IpAddr, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.0.send_from(own, datagram, to)
    }

    /// Where it is bound.
    ///
    /// # Errors
    /// None.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.0.local())
    }
}
