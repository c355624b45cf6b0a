//! The SOCKS5 proxy: CONNECT and UDP ASSOCIATE into the tunnel (RFC 1928, passwords by RFC 1929).
//!
//! `message.rs` has what is said, `associate.rs` the datagrams. A client's way:
//!
//! ```text
//! methods → (password) → request → CONNECT → dial → reply → relay
//! └───────── half-open ─────────┘ └─ UDP ASSOCIATE → reply → datagrams
//! ```
//!
//! A client that is refused gets its reply: what it has sent ahead is read and thrown away for a moment, since closing
//! on unread bytes would reset the connection and take the reply with it.

mod associate;
pub(super) mod message;

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::Context;
use super::clients::{Clients, HalfOpen, Served};
use super::credentials::Credentials;
use super::dial::dial;
use super::failure::Failure;
use super::network::Network;
use super::relay::relay;
use crate::proxy::config::Socks5;
pub use associate::{ASSOCIATIONS_MAX, NAMES_MAX, RESOLVING_MAX};
use message::{Command, Method, Reply, Request, Unread};

/// To let a refused client read its reply.
const FAREWELL_TIME: Duration = Duration::from_secs(1);
/// What is read of it meanwhile, at most.
const FAREWELL_BYTES: usize = 64 * 1024;

/// What all clients of a listener share.
struct Server<N: Network> {
    context: Context<N>,
    clients: Clients,
    credentials: Option<Credentials>,
    associations: Arc<Semaphore>,
}

/// Serves clients for ever.
pub(super) async fn serve<N: Network>(listener: TcpListener, description: &Socks5, context: Context<N>) -> Infallible {
    let clients = context.clients();
    let server = Arc::new(Server {
        clients: clients.clone(),
        credentials: Credentials::new(description.username.as_deref(), description.password.as_ref()),
        associations: Arc::new(Semaphore::new(ASSOCIATIONS_MAX)),
        context,
    });
    clients
        .shake_hands(&listener, |stream, from, half_open| {
            let server = Arc::clone(&server);
            async move {
                if let Err(failure) = server.client(stream, from, half_open).await {
                    server.context.counters.failed(failure);
                    tracing::debug!(client = %from, %failure, "not served");
                }
            }
        })
        .await
}

impl<N: Network> Server<N> {
    async fn client(&self, mut stream: TcpStream, from: SocketAddr, half_open: HalfOpen) -> Result<(), Failure> {
        let Some((request, served)) = half_open.within(self.handshake(&mut stream)).await?? else { return Ok(()) };
        // On the heap, so that those who never come this far are small.
        let outcome = match request.command {
            Command::Connect => Box::pin(self.connect(&mut stream, &request)).await,
            Command::UdpAssociate => Box::pin(self.associate(&mut stream, &request, from)).await,
        };
        let outcome = match outcome {
            Ok(Some(target)) => {
                let relayed = relay(stream, target, None, &self.context.buffers, &self.context.counters);
                Box::pin(relayed).await.map_err(|error| {
                    tracing::debug!(client = %from, %error, "the connection broke");
                    Failure::Broken
                })
            }
            Ok(None) => Ok(()),
            Err(failure) => {
                refuse(&mut stream, failure).await;
                Err(failure)
            }
        };
        drop(served);
        outcome
    }

    /// What the client wants, once it may; `None` if it went away.
    async fn handshake(&self, stream: &mut TcpStream) -> Result<Option<(Request, Served)>, Failure> {
        let unread = match self.authenticate(stream).await {
            Ok(()) => match message::read_request(stream).await {
                Ok(request) => match self.clients.admit() {
                    Ok(served) => return Ok(Some((request, served))),
                    Err(full) => Unread::Refused(full),
                },
                Err(unread) => unread,
            },
            Err(Unread::Refused(failure)) => {
                // There is no request yet that could be replied to.
                farewell(stream).await;
                return Err(failure);
            }
            Err(gone) => gone,
        };
        match unread {
            Unread::Refused(failure) => {
                refuse(stream, failure).await;
                Err(failure)
            }
            Unread::Gone(error) => {
                tracing::trace!(%error, "gone in its handshake");
                Ok(None)
            }
        }
    }

    async fn authenticate(&self, stream: &mut TcpStream) -> Result<(), Unread> {
        let offered = message::read_methods(stream).await?;
        let method = match &self.credentials {
            Some(_) if offered.password => Method::Password,
            None if offered.none => Method::None,
            _ => Method::Unacceptable,
        };
        stream.write_all(&method.to_bytes()).await?;
        match (method, &self.credentials) {
            (Method::None, _) => Ok(()),
            (Method::Password, Some(credentials)) => {
                let given = message::read_password(stream).await?;
                let accepted = credentials.match_with(&given.username, &given.password);
                stream.write_all(&message::password_reply(accepted)).await?;
                if accepted { Ok(()) } else { Err(Unread::Refused(Failure::Unauthenticated)) }
            }
            _ => Err(Unread::Refused(Failure::Unauthenticated)),
        }
    }

    /// The connection to the target, with the client told of it; `None` if the client is gone.
    async fn connect(&self, stream: &mut TcpStream, request: &Request) -> Result<Option<N::Stream>, Failure> {
        let target = request.target()?;
        let context = &self.context;
        let connection = dial(&context.network, &target, context.strategy(), context.limits.connect_timeout).await?;
        let bound = super::network::Connection::local_addr(&connection).unwrap_or(UNKNOWN);
        let told = stream.write_all(&message::reply(Reply::Succeeded, bound)).await;
        Ok(told.is_ok().then_some(connection))
    }

    /// Serves an association until it ends.
    async fn associate(
        &self,
        stream: &mut TcpStream,
        request: &Request,
        from: SocketAddr,
    ) -> Result<Option<N::Stream>, Failure> {
        let _place = self.associations.try_acquire().map_err(|_| Failure::Full)?;
        let association = associate::Association::open(&self.context, stream, request, from)?;
        if stream.write_all(&message::reply(Reply::Succeeded, association.bound())).await.is_ok() {
            association.run(stream).await;
        }
        Ok(None)
    }
}

/// What stands for an address where there is none to tell.
const UNKNOWN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

async fn refuse(stream: &mut TcpStream, failure: Failure) {
    if stream.write_all(&message::reply(failure.reply(), UNKNOWN)).await.is_ok() {
        farewell(stream).await;
    }
}

/// Ends a connection so that what was written last arrives.
async fn farewell(stream: &mut TcpStream) {
    let read_rest = async {
        stream.shutdown().await?;
        let mut rest = vec![0; 1024];
        let mut total = 0;
        while total < FAREWELL_BYTES {
            match stream.read(&mut rest).await? {
                0 => break,
                bytes => total += bytes,
            }
        }
        Ok::<(), std::io::Error>(())
    };
    // Whatever comes of it, the connection is closed next.
    let _ = tokio::time::timeout(FAREWELL_TIME, read_rest).await;
}
