//! The network that the services are tested with: loopback, with hosts that fail as they are told to.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use adit::proxy::config::{Host, Resolve, Service, Target};
use adit::proxy::services::{Counters, HostNetwork, Limits, Network, Services};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

/// Loopback, and 192.0.2.0/24 (RFC 5737) for hosts that cannot be reached, each in its own way.
#[derive(Clone, Default)]
pub(crate) struct Scripted {
    pub(crate) names: HashMap<&'static str, Vec<IpAddr>>,
    pub(crate) resolvers: Vec<SocketAddr>,
}

impl Network for Scripted {
    type Stream = TcpStream;
    type Listener = TcpListener;
    type Socket = UdpSocket;

    async fn connect(&self, address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
        let kind = match address.ip().to_string().as_str() {
            "192.0.2.1" => io::ErrorKind::ConnectionRefused,
            "192.0.2.2" => io::ErrorKind::HostUnreachable,
            "192.0.2.3" | "2001:db8::1" => io::ErrorKind::NetworkUnreachable,
            "192.0.2.4" => return std::future::pending().await,
            "192.0.2.5" => io::ErrorKind::PermissionDenied,
            _ => return HostNetwork.connect(address, timeout).await,
        };
        Err(kind.into())
    }

    fn listen(&self, address: SocketAddr) -> io::Result<TcpListener> {
        // Tests listen on loopback alone.
        let loopback: IpAddr = if address.is_ipv4() { [127, 0, 0, 1].into() } else { "::1".parse().unwrap() };
        HostNetwork.listen(SocketAddr::new(loopback, address.port()))
    }

    /// This network has no IPv6.
    fn bind(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        if address.is_ipv6() { Err(io::ErrorKind::AddrNotAvailable.into()) } else { HostNetwork.bind(address) }
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        if name == "silent.test" {
            return std::future::pending().await;
        }
        self.names.get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn resolvers(&self) -> Vec<SocketAddr> {
        self.resolvers.clone()
    }
}

impl Scripted {
    pub(crate) fn with_names(names: &[(&'static str, &[&str])]) -> Self {
        let names = names
            .iter()
            .map(|(name, addresses)| (*name, addresses.iter().map(|address| address.parse().unwrap()).collect()));
        Self { names: names.collect(), ..Self::default() }
    }
}

/// A service that runs until this is dropped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) counters: Arc<Counters>,
    pub(crate) task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn run_with(service: Service, network: Scripted, resolve: Resolve, limits: Limits) -> Running {
    let bound = Services::new(network, resolve, limits).bind(&service).unwrap();
    let (address, counters) = (bound.local_addrs()[0], bound.counters());
    let task = tokio::spawn(async move {
        let _ = bound.run().await;
    });
    Running { address, counters, task }
}

pub(crate) fn run(service: Service, network: Scripted) -> Running {
    let mut limits = Limits::default();
    // For hosts that say nothing.
    limits.connect_timeout = Duration::from_millis(300);
    run_with(service, network, Resolve::default(), limits)
}

pub(crate) fn any() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn target(address: SocketAddr) -> Target {
    Target { host: Host::Address(address.ip()), port: address.port() }
}

/// Waits until `condition` holds; fails after ten seconds.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came: {what}");
}

/// A target that answers each connection's bytes, once they have ended, by the same bytes and an end.
pub(crate) async fn echo_after_end() -> SocketAddr {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut all = Vec::new();
                if stream.read_to_end(&mut all).await.is_ok() {
                    let _ = stream.write_all(&all).await;
                }
            });
        }
    });
    address
}

/// A target that sends each datagram back.
pub(crate) async fn datagram_echo() -> SocketAddr {
    let socket = UdpSocket::bind(any()).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65536];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    });
    address
}
