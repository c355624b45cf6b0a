//! The network inside the tunnel, as services know networks: the stack's connections and sockets by their trait.
//!
//! - A connection is given up after the time that the service allows, and keeps asking a peer that says nothing whether it
//!   is still there, as the host's do.
//! - No proxy leads to an address that is no host's: unspecified, multicast, broadcast, loopback. What the stack would say
//!   of them differs; here it is one thing, not permitted, before anything is sent.
//! - Names are resolved by the interface's DNS servers, which a reload may change.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::services::network::{Connection, DatagramSocket, KEEPALIVE_TIME, Listener, Network};
use crate::netstack::tokio::{Net, TcpListener, TcpStream, UdpSocket};

/// The network inside the tunnel. Clones are the same.
#[derive(Debug, Clone)]
pub struct Tunnel {
    net: Net,
    resolvers: Arc<ArcSwap<Vec<SocketAddr>>>,
}

impl Tunnel {
    /// The network of that stack, whose DNS servers are these.
    pub fn new(net: Net, resolvers: Vec<SocketAddr>) -> Self {
        Self { net, resolvers: Arc::new(ArcSwap::from_pointee(resolvers)) }
    }

    /// The stack.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// From now on these are the DNS servers, and the domains in which names without a dot are looked for.
    pub fn set_dns(&self, servers: Vec<SocketAddr>, search: Vec<String>) {
        self.net.blocking().set_dns(servers.clone(), search);
        self.resolvers.store(Arc::new(servers));
    }
}

/// Whether a proxy may lead there: to what may be the address of a host beyond the tunnel.
fn is_allowed(address: IpAddr) -> bool {
    let address = address.to_canonical();
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

fn check(address: SocketAddr) -> io::Result<()> {
    if is_allowed(address.ip()) && address.port() != 0 { Ok(()) } else { Err(io::ErrorKind::PermissionDenied.into()) }
}

impl Network for Tunnel {
    type Stream = Stream;
    type Listener = TcpListener;
    type Socket = UdpSocket;

    async fn connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<Stream> {
        check(address)?;
        let stream = tokio::time::timeout(timeout, self.net.connect_tcp(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Stream { stream, is_kept_alive: false, resets_on_drop: false })
    }

    fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        self.net.listen_tcp(address)
    }

    fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        self.net.bind_udp(address)
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        self.net.resolve(name).await
    }

    fn resolvers(&self) -> Vec<SocketAddr> {
        self.resolvers.load().to_vec()
    }
}

/// A TCP connection through the tunnel.
#[derive(Debug)]
pub struct Stream {
    stream: TcpStream,
    /// Set when something has come from the other end. The stack asks for the first time as soon as it is told to, by a byte
    /// before those that count; as the first segment after the handshake that would be taken for one that counts by an
    /// end that keeps nothing of the handshake (SYN cookies, RFC 4987 §3.6).
    is_kept_alive: bool,
    resets_on_drop: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.resets_on_drop {
            self.stream.reset();
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if !self.is_kept_alive && buffer.filled().len() > before {
            self.is_kept_alive = true;
            self.stream.set_keepalive(Some(KEEPALIVE_TIME))?;
        }
        result
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl Connection for Stream {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }

    fn reset_on_drop(&mut self) {
        self.resets_on_drop = true;
    }
}

impl Listener for TcpListener {
    type Stream = Stream;

    async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, from) = TcpListener::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok((Stream { stream, is_kept_alive: false, resets_on_drop: false }, from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}

impl DatagramSocket for UdpSocket {
    async fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        check(to)?;
        UdpSocket::send_to(self, datagram, to).await
    }

    async fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        UdpSocket::recv_from(self, buffer).await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        UdpSocket::local_addr(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_lead_to_hosts_alone() {
        for (address, allowed) in [
            ("10.0.0.1:1", true),
            ("[fd00::1]:1", true),
            ("10.0.0.1:0", false),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("127.0.0.1:1", false),
            ("[::1]:1", false),
            ("[::ffff:127.0.0.1]:1", false),
            ("224.0.0.1:1", false),
            ("[ff02::1]:1", false),
            ("255.255.255.255:1", false),
        ] {
            let expected = if allowed { Ok(()) } else { Err(io::ErrorKind::PermissionDenied) };
            assert_eq!(check(address.parse().unwrap()).map_err(|error| error.kind()), expected, "{address}");
        }
    }
}
