//! `[Dns]`: the tunnel's DNS servers, on the host.
//!
//! Queries and answers pass as they are. Over UDP each query has a socket of its own inside the tunnel: so its id need
//! not be changed to keep two clients apart, and whoever would forge an answer has to guess a port as well. The servers
//! are asked in order, each for [`ATTEMPT_TIME`]; when none answers, the client is told SERVFAIL, so that it need not
//! wait for its own time to run out. Over TCP a client is connected to the first server that accepts, once it has
//! begun to say something.
//!
//! [`QUERIES_MAX`] UDP queries are in flight at once; one more is dropped (`QueueFull`), and its client asks again.

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Context;
use super::clients::{Clients, HalfOpen, report};
use super::dial::dial;
use super::failure::Failure;
use super::network::{DatagramSocket, Network, receive};
use super::relay::{BUFFER_BYTES, relay};
use crate::proxy::config::{Host, Target};

/// UDP queries in flight: each has a socket inside the tunnel and a buffer for the answer.
pub const QUERIES_MAX: usize = 256;
/// Before the next server is asked.
const ATTEMPT_TIME: Duration = Duration::from_secs(2);
/// Servers that are asked: a client waits for five seconds or so.
const SERVERS_ASKED: usize = 3;
/// A TCP client that says nothing for so long has asked all that it wanted (RFC 7766 §6.2.3).
const TCP_IDLE: Duration = Duration::from_secs(30);
/// Id, flags and four counts.
const HEADER_BYTES: usize = 12;
/// Of the first byte of the flags: this is an answer.
const FLAG_ANSWER: u8 = 0x80;
/// Of the second: recursion is available, and the code SERVFAIL.
const FLAGS_SERVFAIL: u8 = 0x82;
/// Of the second: what SERVFAIL replaces, and what only the query may say.
const FLAGS_CODE: u8 = 0x0f;

/// Serves clients for ever.
pub(super) async fn serve<N: Network>(listener: TcpListener, socket: UdpSocket, context: Context<N>) -> Infallible {
    let clients = context.clients();
    let context = Arc::new(context);
    let connections = clients.shake_hands(&listener, |stream, from, half_open| {
        let (clients, context) = (clients.clone(), Arc::clone(&context));
        async move {
            if let Err(failure) = connection(stream, half_open, &clients, &context).await {
                context.counters.failed(failure);
                tracing::debug!(client = %from, %failure, "not served");
            }
        }
    });
    tokio::select! {
        never = connections => never,
        never = queries(Arc::new(socket), &context) => never,
    }
}

/// Serves queries over UDP for ever.
async fn queries<N: Network>(socket: Arc<UdpSocket>, context: &Arc<Context<N>>) -> Infallible {
    let places = Arc::new(Semaphore::new(QUERIES_MAX));
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let (length, client) = tokio::select! {
            received = receive(&*socket, &mut buffer) => received,
            Some(ended) = tasks.join_next() => {
                report(ended);
                continue;
            }
        };
        let query = &buffer[..length];
        if length < HEADER_BYTES || query[2] & FLAG_ANSWER != 0 {
            context.counters.failed(Failure::Malformed);
            continue;
        }
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            context.counters.failed(Failure::QueueFull);
            continue;
        };
        context.counters.accepted();
        let (socket, context, query) = (Arc::clone(&socket), Arc::clone(context), query.to_vec());
        tasks.spawn(async move {
            let answer = match ask(&query, &context).await {
                Ok(answer) => {
                    context.counters.received_datagram(answer.len());
                    answer
                }
                Err(failure) => {
                    context.counters.failed(failure);
                    tracing::debug!(client = %client.address, %failure, "a query was not answered");
                    servfail(query)
                }
            };
            if socket.answer(&answer, client).await.is_err() {
                context.counters.failed(Failure::SendFailed);
            }
            drop(place);
        });
    }
}

/// The answer of the first server that gives one.
async fn ask<N: Network>(query: &[u8], context: &Context<N>) -> Result<Vec<u8>, Failure> {
    let mut outcome = Err(Failure::NameNotResolved);
    for server in context.network.resolvers().into_iter().take(SERVERS_ASKED) {
        outcome = timeout(ATTEMPT_TIME, ask_one(query, server, context)).await.unwrap_or(Err(Failure::TimedOut));
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

async fn ask_one<N: Network>(query: &[u8], server: SocketAddr, context: &Context<N>) -> Result<Vec<u8>, Failure> {
    let any = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let failed = |error: std::io::Error| Failure::of_connect(&error);
    let socket = context.network.bind(any).map_err(failed)?;
    socket.send_to(query, server).await.map_err(failed)?;
    context.counters.sent_datagram(query.len());
    let mut answer = vec![0; BUFFER_BYTES];
    loop {
        let (length, from) = socket.recv_from(&mut answer).await.map_err(failed)?;
        let is_answer = length >= HEADER_BYTES && answer[..2] == query[..2] && answer[2] & FLAG_ANSWER != 0;
        if from == server && is_answer {
            answer.truncate(length);
            return Ok(answer);
        }
        context.counters.failed(Failure::ForeignSource);
    }
}

/// The answer to a query that nobody answered: itself, with the flags of a failure.
fn servfail(mut query: Vec<u8>) -> Vec<u8> {
    query[2] |= FLAG_ANSWER;
    query[3] = query[3] & !FLAGS_CODE | FLAGS_SERVFAIL;
    query
}

/// Serves a client over TCP.
async fn connection<N: Network>(
    stream: TcpStream,
    half_open: HalfOpen,
    clients: &Clients,
    context: &Context<N>,
) -> Result<(), Failure> {
    // An end counts as something said, and is passed on as such.
    let Ok(()) = half_open.within(stream.readable()).await? else { return Ok(()) };
    let served = clients.admit()?;
    let mut outcome = Err(Failure::NameNotResolved);
    for server in context.network.resolvers().into_iter().take(SERVERS_ASKED) {
        let target = Target { host: Host::Address(server.ip()), port: server.port() };
        outcome = dial(&context.network, &target, context.strategy(), ATTEMPT_TIME).await;
        if outcome.is_ok() {
            break;
        }
    }
    let relayed = relay(stream, outcome?, Some(TCP_IDLE), &context.buffers, &context.counters).await;
    drop(served);
    match relayed {
        Err(error) if error.kind() != std::io::ErrorKind::TimedOut => Err(Failure::Broken),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_answers_its_query() {
        let query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x00\x00\x01\x00\x01".to_vec();
        let answer = servfail(query.clone());
        assert_eq!(answer[..2], query[..2]);
        assert_eq!(answer[2..4], [0x81, 0x82]);
        assert_eq!(answer[4..], query[4..]);
    }
}
