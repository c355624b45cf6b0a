//! The network inside the tunnel, as services know networks: the stack's connections and sockets by their trait.
//!
//! - A connection is given up after the time that the service allows, and keeps asking a peer that says nothing whether it
//!   is still there, as the host's do.
//! - No proxy leads to an address that is no host's: unspecified, multicast, broadcast, loopback. What the stack would say
//!   of them differs; here it is one thing, not permitted, before anything is sent.
//! - Names are resolved by the interface's DNS servers, which a reload may change.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::services::network::{Client, Connection, DatagramSocket, KEEPALIVE_TIME, Listener, Network};
use crate::netstack::tokio::{Net, TcpListener, TcpStream, UdpSocket};

/// The network inside the tunnel. Clones are the same.
#[derive(Debug, Clone)]
pub struct Tunnel {
    net: Net,
}

impl Tunnel {
    /// The network of that stack.
    pub fn new(net: Net) -> Self {
        Self { net }
    }

    /// The stack.
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// From now on these are the DNS servers, and the domains in which names without a dot are looked for.
    pub fn set_dns(&self, servers: Vec<SocketAddr>, search: Vec<String>) {
        self.net.blocking().set_dns(servers, search);
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

/// What each connection is given.
fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_keepalive(Some(KEEPALIVE_TIME))
}

impl Network for Tunnel {
    type Stream = TcpStream;
    type Listener = TcpListener;
    type Socket = UdpSocket;

    async fn connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        check(address)?;
        let stream = tokio::time::timeout(timeout, self.net.connect_tcp(address)).await??;
        prepare(&stream)?;
        Ok(stream)
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
        self.net.dns_servers()
    }
}

impl Connection for TcpStream {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpStream::local_addr(self)
    }

    fn reset_on_drop(&mut self) {
        TcpStream::reset_on_drop(self);
    }
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let (stream, from) = TcpListener::accept(self).await?;
        prepare(&stream)?;
        Ok((stream, from))
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

    async fn recv_client(&self, buffer: &mut [u8]) -> io::Result<(usize, Client)> {
        let (length, address, reached) = self.recv_from_to(buffer).await?;
        Ok((length, Client { address, reached: Some(reached) }))
    }

    async fn answer(&self, datagram: &[u8], client: Client) -> io::Result<usize> {
        check(client.address)?;
        match client.reached {
            Some(own) => self.send_from(own, datagram, client.address).await,
            None => UdpSocket::send_to(self, datagram, client.address).await,
        }
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
