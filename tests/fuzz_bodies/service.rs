//! A proxy of the sidecar over loopback, into a network that is not there: every host answers.
//!
//! A panic of a client's task ends nothing, so it is noted by a hook, and told after the exchange.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Once};
use std::task::{Context, Poll};
use std::time::Duration;

use adit::proxy::config::{Resolve, Service};
use adit::proxy::services::network::{Connection, DatagramSocket, Listener};
use adit::proxy::services::{Counters, Limits, Network, Services};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a host says to the first bytes that it gets; to a tunnel it is just bytes.
pub(crate) const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

thread_local! {
    static HAS_PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// A network where every connection is taken.
#[derive(Clone)]
struct Everybody;

/// A connection in it.
struct Stream(DuplexStream);

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, to)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

impl Connection for Stream {
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((Ipv4Addr::new(10, 0, 0, 1), 40_000).into())
    }

    fn reset_on_drop(&mut self) {}
}

/// Nobody connects, and nothing comes.
struct Nobody;

impl Listener for Nobody {
    type Stream = Stream;

    async fn accept(&self) -> io::Result<(Stream, SocketAddr)> {
        pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl DatagramSocket for Nobody {
    async fn send_to(&self, datagram: &[u8], _: SocketAddr) -> io::Result<usize> {
        Ok(datagram.len())
    }

    async fn recv_from(&self, _: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        pending().await
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok((Ipv4Addr::new(10, 0, 0, 1), 40_000).into())
    }
}

impl Network for Everybody {
    type Stream = Stream;
    type Listener = Nobody;
    type Socket = Nobody;

    /// The other end answers once to the first that it hears, reads on to the end, and ends.
    async fn connect(&self, _: SocketAddr, _: Duration) -> io::Result<Stream> {
        let (near, mut far) = duplex(16 << 10);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            let mut is_first = true;
            while far.read(&mut buffer).await.is_ok_and(|len| len > 0) {
                if is_first && far.write_all(ANSWER).await.is_err() {
                    break;
                }
                is_first = false;
            }
        });
        Ok(Stream(near))
    }

    fn listen(&self, _: SocketAddr) -> io::Result<Nobody> {
        Ok(Nobody)
    }

    fn bind(&self, _: SocketAddr) -> io::Result<Nobody> {
        Ok(Nobody)
    }

    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        if name.len().is_multiple_of(7) { Err(io::ErrorKind::NotFound.into()) } else { Ok(vec![[10, 0, 0, 9].into()]) }
    }

    fn resolvers(&self) -> Vec<SocketAddr> {
        Vec::new()
    }
}

/// A service that runs while its runtime does.
pub(crate) struct Proxy {
    runtime: Runtime,
    address: SocketAddr,
    counters: Arc<Counters>,
}

impl Proxy {
    pub(crate) fn start(service: &Service) -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                HAS_PANICKED.set(true);
                before(panic);
            }));
        });
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
        let services = Services::new(Everybody, Resolve::default(), Limits::default());
        let bound = runtime.block_on(async { services.bind(service) }).expect("a port of loopback");
        let (address, counters) = (bound.local_addrs()[0], bound.counters());
        runtime.spawn(async {
            let ended: Result<Infallible, _> = Err(bound.run().await);
            ended
        });
        Self { runtime, address, counters }
    }

    /// What comes back of `pieces`, each written by itself, and an end. The client is forgotten then.
    pub(crate) fn exchange(&self, pieces: &[&[u8]]) -> Vec<u8> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.expect("the service listens");
            // The next one may need the port.
            stream.set_zero_linger().expect("a socket");
            let (mut read, mut write) = stream.split();
            let writing = async {
                for piece in pieces {
                    if write.write_all(piece).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                let _ = write.shutdown().await;
            };
            let mut answer = Vec::new();
            let reading = async {
                // A reset is an end, too.
                let _ = read.read_to_end(&mut answer).await;
            };
            tokio::join!(writing, reading);
            answer
        };
        let answer = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await });
        let answer = answer.expect("who has said everything is answered, or sent away");
        assert!(!HAS_PANICKED.get(), "a client's task panicked");
        self.settle();
        answer
    }

    /// Waits until the clients that there were are gone.
    fn settle(&self) {
        let gone = async {
            while { (self.counters.figures().half_open, self.counters.figures().served) } != (0, 0) {
                tokio::task::yield_now().await;
            }
        };
        let gone = self.runtime.block_on(async { tokio::time::timeout(PATIENCE, gone).await });
        gone.expect("a client that has gone is forgotten");
    }
}
