//! The addresses of a host by its name: DNS (RFC 1035) through the tunnel.
//!
//! Each question goes by a socket with a port of its own and has an identifier that nobody can foresee (RFC 5452), and
//! only an answer from whom it was asked, to just that question, is believed. It is repeated, then the next server is
//! asked; an answer that was too long for a datagram is asked for again by TCP (RFC 7766).

use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

use super::net::until;
use super::stack::{Stack, random};
use super::tcp::Connection;
use super::udp::Bound;

/// How long one server has for one answer before it is asked again, or the next one is: half of what is usual, since one
/// datagram in a tunnel is seldom lost and the user waits.
const TIMEOUT: Duration = Duration::from_millis(2500);

/// How often each server is asked.
const ATTEMPTS: usize = 2;

/// Bytes of an answer that are taken in a datagram: what goes through every path unfragmented (DNS flag day 2020).
const DATAGRAM_MAX: u16 = 1232;

/// Aliases that are followed within one answer.
const ALIASES_MAX: usize = 16;

/// Addresses that are taken from one answer.
const ADDRESSES_MAX: usize = 64;

/// The addresses of `host`: see [`super::Net::resolve`].
pub(super) async fn resolve(stack: &Arc<Stack>, host: &str) -> io::Result<Vec<IpAddr>> {
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = literal.parse::<IpAddr>() {
        return Ok(vec![address]);
    }
    stack.check_up()?;
    let names = stack.names.load_full();
    if names.servers.is_empty() {
        let text = format!("nobody to ask for {host}: no DNS server is set");
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let mut last = not_found(host);
    for name in candidates(host, &names.search)? {
        match resolve_name(stack, &names.servers, &name, host).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => last = error,
            result => return result,
        }
    }
    Err(last)
}

fn not_found(host: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("there is no host {host}, or it has no address"))
}

/// The names to ask for, in order: one without a dot is first looked for in each domain.
fn candidates(host: &str, search: &[String]) -> io::Result<Vec<Name>> {
    let is_rooted = host.ends_with('.');
    let parse = |text: &str| {
        let name = Name::from_ascii(text).ok().filter(|name| name.num_labels() > 0);
        let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{host:?} is no name")))?;
        let mut name = name.to_lowercase();
        name.set_fqdn(true);
        Ok::<_, io::Error>(name)
    };
    let mut names = Vec::new();
    if !is_rooted && !host.contains('.') {
        // A domain that does not fit is passed over: the name may be right without it.
        names.extend(search.iter().filter_map(|domain| parse(&format!("{host}.{domain}")).ok()));
    }
    names.push(parse(host)?);
    Ok(names)
}

/// Both kinds of addresses of one name.
async fn resolve_name(stack: &Arc<Stack>, servers: &[SocketAddr], name: &Name, host: &str) -> io::Result<Vec<IpAddr>> {
    let has = |address: IpAddr| stack.source_for(address).is_ok();
    let kinds =
        [(RecordType::AAAA, has(Ipv6Addr::UNSPECIFIED.into())), (RecordType::A, has(Ipv4Addr::UNSPECIFIED.into()))];
    let [v6, v4] = kinds.map(|(kind, wanted)| wanted.then(|| ask(stack, servers, name, kind)));
    let (v6, v4) = both(v6, v4).await;
    let results = [v6, v4].into_iter().flatten();
    let (mut addresses, mut error) = (Vec::new(), None);
    for result in results {
        match result {
            Ok(found) => addresses.extend(found),
            Err(failure) => error = Some(failure),
        }
    }
    match error {
        // One kind is enough; that the other one was not to be had is no reason to have none.
        Some(error) if addresses.is_empty() => Err(error),
        _ if addresses.is_empty() => Err(not_found(host)),
        _ => Ok(addresses),
    }
}

/// Runs two futures at the same time.
async fn both<T>(a: Option<impl Future<Output = T>>, b: Option<impl Future<Output = T>>) -> (Option<T>, Option<T>) {
    async fn maybe<T>(future: Option<impl Future<Output = T>>) -> Option<T> {
        match future {
            Some(future) => Some(future.await),
            None => None,
        }
    }
    let (mut a, mut b) = (pin!(maybe(a)), pin!(maybe(b)));
    let (mut from_a, mut from_b) = (None, None);
    poll_fn(|context| {
        if from_a.is_none()
            && let Poll::Ready(result) = a.as_mut().poll(context)
        {
            from_a = Some(result);
        }
        if from_b.is_none()
            && let Poll::Ready(result) = b.as_mut().poll(context)
        {
            from_b = Some(result);
        }
        if from_a.is_some() && from_b.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    (from_a.flatten(), from_b.flatten())
}

/// Asks the servers in turn until one knows, or says that there is none.
async fn ask(stack: &Arc<Stack>, servers: &[SocketAddr], name: &Name, kind: RecordType) -> io::Result<Vec<IpAddr>> {
    let mut last = io::Error::from(io::ErrorKind::TimedOut);
    for _ in 0..ATTEMPTS {
        for server in servers {
            let deadline = Instant::now() + TIMEOUT;
            match until(&stack.timers, deadline, exchange(stack, *server, name, kind)).await {
                Ok(response) => match response.metadata.response_code {
                    ResponseCode::NoError => return Ok(addresses(&response, name, kind)),
                    ResponseCode::NXDomain => return Err(not_found(&name.to_string())),
                    code => last = io::Error::other(format!("{server} does not resolve {name}: {code}")),
                },
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// One question to one server, and its answer.
async fn exchange(stack: &Arc<Stack>, server: SocketAddr, name: &Name, kind: RecordType) -> io::Result<Message> {
    let query = Query::query(name.clone(), kind);
    let mut question = Message::new(random()? as u16, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(DATAGRAM_MAX);
    question.set_edns(edns);
    let bytes = question.to_vec().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;

    let socket = Bound::new(stack, SocketAddr::new(stack.source_for(server.ip())?, 0))?;
    // So that an ICMP error ends the wait for a server that is not there.
    socket.connect(server)?;
    socket.send_to(&bytes, server)?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (len, from, _) = poll_fn(|context| socket.poll_recv(context, &mut buffer)).await?;
        // Whatever else comes to this port is somebody's guess.
        if from != super::stack::plain(server) {
            continue;
        }
        let Some(response) = response_to(&question, &buffer[..len]) else { continue };
        if response.metadata.truncation {
            return exchange_tcp(stack, server, &question, &bytes).await;
        }
        return Ok(response);
    }
}

/// The same by TCP, where each message has its length before it.
async fn exchange_tcp(stack: &Arc<Stack>, server: SocketAddr, question: &Message, bytes: &[u8]) -> io::Result<Message> {
    let connection = Connection::connect(stack, server)?;
    poll_fn(|context| connection.poll_connected(context)).await?;
    let mut request = (bytes.len() as u16).to_be_bytes().to_vec();
    request.extend(bytes);
    let mut rest = &request[..];
    while !rest.is_empty() {
        let written = poll_fn(|context| connection.poll_write(context, rest)).await?;
        rest = &rest[written..];
    }
    let mut len = [0; 2];
    read_exact(&connection, &mut len).await?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
    read_exact(&connection, &mut answer).await?;
    response_to(question, &answer).ok_or_else(|| io::Error::other(format!("{server} answers another question")))
}

async fn read_exact(connection: &Connection, mut buffer: &mut [u8]) -> io::Result<()> {
    while !buffer.is_empty() {
        let len = poll_fn(|context| connection.poll_read(context, buffer)).await?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[len..];
    }
    Ok(())
}

/// The message, if it is one and answers this question.
fn response_to(question: &Message, bytes: &[u8]) -> Option<Message> {
    let response = Message::from_vec(bytes).ok()?;
    let is_answer = response.metadata.id == question.metadata.id
        && response.metadata.message_type == MessageType::Response
        && response.metadata.op_code == OpCode::Query
        && response.queries == question.queries;
    is_answer.then_some(response)
}

/// The addresses that an answer has for `name`, through its aliases.
fn addresses(response: &Message, name: &Name, kind: RecordType) -> Vec<IpAddr> {
    let mut name = name.clone();
    for _ in 0..ALIASES_MAX {
        let of_name = || response.answers.iter().filter(|record| record.name == name);
        let found: Vec<IpAddr> = of_name()
            .filter_map(|record| match &record.data {
                RData::A(address) if kind == RecordType::A => Some(IpAddr::V4(address.0)),
                RData::AAAA(address) if kind == RecordType::AAAA => Some(IpAddr::V6(address.0)),
                _ => None,
            })
            .take(ADDRESSES_MAX)
            .collect();
        if !found.is_empty() {
            return found;
        }
        let alias = of_name().find_map(|record| match &record.data {
            RData::CNAME(alias) => Some(alias.0.clone()),
            _ => None,
        });
        match alias {
            Some(alias) => name = alias,
            None => break,
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_to_ask_for() {
        let search = ["corp.example".to_owned(), "Example.".to_owned(), "not a name\u{7f}..".to_owned()];
        let check = |host: &str, expected: &[&str]| {
            let names = candidates(host, &search).map(|names| names.iter().map(Name::to_string).collect::<Vec<_>>());
            assert_eq!(names.unwrap_or_default(), expected, "{host}");
        };
        check("www", &["www.corp.example.", "www.example.", "www."]);
        check("www.", &["www."]);
        check("WWW.example.org", &["www.example.org."]);
        check("", &[]);
        check(".", &[]);
        check("a..b", &[]);
        check(&"a".repeat(64), &[]);
    }
}
