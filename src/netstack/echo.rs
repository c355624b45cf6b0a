//! ICMP: echo requests are answered and sent, and errors are told to whoever caused them.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::config::count;
use super::flow::FlowKey;
use super::headers::{self, ICMP_HEADER_LEN};
use super::stack::{Stack, random};
use super::wait::Wakers;
use crate::ip::{self, Header};

/// Echo requests that wait for their answers; more are refused.
const ECHOES_MAX: usize = 4096;

/// Bytes in an echo request that is sent: what `ping` sends.
const ECHO_PAYLOAD_LEN: usize = 56;

/// Types of echo messages: request and reply (RFC 792; RFC 4443 §4).
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);

/// Type of ICMP destination unreachable (RFC 792), and of ICMPv6's (RFC 4443 §3.1).
const UNREACHABLE_V4: u8 = 3;
const UNREACHABLE_V6: u8 = 1;

/// Code of ICMP unreachable that says a packet was too long (RFC 1191 §4), and the ICMPv6 type (RFC 4443 §3.2).
const FRAGMENTATION_NEEDED_V4: u8 = 4;
const PACKET_TOO_BIG_V6: u8 = 2;

/// What an ICMP error says of a packet.
#[derive(Debug, Clone, Copy)]
enum News {
    /// It cannot get there.
    Unreachable(io::ErrorKind),
    /// It is longer than this.
    TooBig(usize),
}

/// What an echo request is known by: whom it asks, its identifier and sequence number.
type EchoKey = (IpAddr, [u8; 4]);

/// Echo requests that were sent.
#[derive(Default)]
pub(super) struct Echoes(Mutex<HashMap<EchoKey, Waiting>>);

#[derive(Default)]
struct Waiting {
    answer: Option<Result<Instant, io::ErrorKind>>,
    waiter: Wakers,
}

impl Echoes {
    fn lock(&self) -> MutexGuard<'_, HashMap<EchoKey, Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, key: EchoKey, answer: Result<Instant, io::ErrorKind>) {
        let mut waiting = self.lock();
        let Some(echo) = waiting.get_mut(&key) else { return };
        echo.answer.get_or_insert(answer);
        let waiter = echo.waiter.take();
        drop(waiting);
        waiter.wake();
    }
}

/// One request that was sent; forgotten when dropped.
pub(super) struct Echo {
    stack: Arc<Stack>,
    key: EchoKey,
    sent: Instant,
}

impl Echo {
    /// Sends an echo request.
    pub(super) fn send(stack: &Arc<Stack>, to: IpAddr) -> io::Result<Self> {
        stack.check_up()?;
        let source = stack.source_for(to)?;
        let id = (random()? as u32).to_be_bytes();
        let key = (to, id);
        {
            let mut waiting = stack.echoes.lock();
            if waiting.len() >= ECHOES_MAX || waiting.contains_key(&key) {
                return Err(io::Error::new(io::ErrorKind::QuotaExceeded, "too many echo requests wait for answers"));
            }
            waiting.insert(key, Waiting::default());
        }
        let echo = Self { stack: Arc::clone(stack), key, sent: Instant::now() };
        let (protocol, (request, _)) = if to.is_ipv4() { (ip::ICMP, ECHO_V4) } else { (ip::ICMPV6, ECHO_V6) };
        let mut packet = headers::begin(source, to, protocol, ICMP_HEADER_LEN + ECHO_PAYLOAD_LEN);
        let offset = packet.len();
        packet.extend([request, 0, 0, 0, id[0], id[1], id[2], id[3]]);
        packet.extend([0; ECHO_PAYLOAD_LEN]);
        headers::complete(&mut packet, offset, protocol);
        stack.send_packet(flow_of(stack, source, to), packet);
        Ok(echo)
    }

    /// Waits for the answer, and tells how long it took.
    pub(super) fn poll_answer(&self, context: &mut Context<'_>) -> Poll<io::Result<Duration>> {
        let mut waiting = self.stack.echoes.lock();
        let echo = waiting.entry(self.key).or_default();
        match echo.answer {
            Some(answer) => Poll::Ready(answer.map(|at| at - self.sent).map_err(io::Error::from)),
            None => {
                echo.waiter.register(context.waker());
                Poll::Pending
            }
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stack.echoes.lock().remove(&self.key);
    }
}

fn flow_of(stack: &Stack, source: IpAddr, destination: IpAddr) -> u64 {
    stack.flow_of(SocketAddr::new(source, 0), SocketAddr::new(destination, 0))
}

/// Takes an ICMP message that arrived, whose checksum was verified.
pub(super) fn receive(stack: &Stack, header: &Header, message: &[u8]) {
    let Some(first) = message.first_chunk::<ICMP_HEADER_LEN>() else { return };
    let is_ipv4 = header.source.is_ipv4();
    let ((request, reply), unreachable, protocol) =
        if is_ipv4 { (ECHO_V4, UNREACHABLE_V4, ip::ICMP) } else { (ECHO_V6, UNREACHABLE_V6, ip::ICMPV6) };
    let id = [first[4], first[5], first[6], first[7]];
    if first[0] == request {
        let (own, peer) = (header.destination, header.source);
        let mut answer = headers::begin(own, peer, protocol, message.len());
        let offset = answer.len();
        answer.extend([reply, 0, 0, 0]);
        answer.extend(&message[4..]);
        headers::complete(&mut answer, offset, protocol);
        stack.send_packet(flow_of(stack, own, peer), answer);
    } else if first[0] == reply {
        stack.echoes.answer((header.source, id), Ok(Instant::now()));
    } else if first[0] == unreachable {
        let news = if is_ipv4 && first[1] == FRAGMENTATION_NEEDED_V4 {
            News::TooBig(usize::from(u16::from_be_bytes([first[6], first[7]])))
        } else {
            News::Unreachable(unreachable_kind(is_ipv4, first[1]))
        };
        tell(stack, news, header.destination, &message[ICMP_HEADER_LEN..]);
    } else if !is_ipv4 && first[0] == PACKET_TOO_BIG_V6 {
        let mtu = u32::from_be_bytes(id) as usize;
        tell(stack, News::TooBig(mtu), header.destination, &message[ICMP_HEADER_LEN..]);
    } else {
        count(&stack.counters.inbound_dropped);
    }
}

/// What std makes of the errno that Linux makes of this code.
fn unreachable_kind(is_ipv4: bool, code: u8) -> io::ErrorKind {
    match (is_ipv4, code) {
        // Network unreachable, unknown, or prohibited; no route.
        (true, 0 | 6 | 9) | (false, 0) => io::ErrorKind::NetworkUnreachable,
        // Protocol, or port.
        (true, 2 | 3) | (false, 4) => io::ErrorKind::ConnectionRefused,
        _ => io::ErrorKind::HostUnreachable,
    }
}

/// Tells whoever sent the packet that begins with `quoted`, from `own`, what became of it. Anybody can send such news, so
/// that for TCP it has to quote a sequence number that is under way (RFC 5927 §4), and for UDP one whom the socket sends to;
/// and an established connection outlives them (RFC 5461 §2.2).
fn tell(stack: &Stack, news: News, own: IpAddr, quoted: &[u8]) {
    let Some(transport) = ip::transport(quoted).filter(|transport| !transport.later_fragment) else { return };
    let Some(header) = quoted_header(quoted) else { return };
    let Some(first) = quoted[transport.offset..].first_chunk::<ICMP_HEADER_LEN>() else { return };
    let (source, destination) = header;
    if source != own {
        return;
    }
    let port = |at: usize| u16::from_be_bytes([first[at], first[at + 1]]);
    match transport.protocol {
        ip::TCP => {
            let key = FlowKey { local: (source, port(0)).into(), remote: (destination, port(2)).into() };
            let sequence = u32::from_be_bytes([first[4], first[5], first[6], first[7]]);
            let Some(flow) = stack.flow(&key).filter(|flow| flow.is_under_way(sequence)) else { return };
            let now = stack.timers.now();
            let settled = match news {
                News::Unreachable(reason) => flow.fail_connecting(reason, now),
                News::TooBig(claimed) => {
                    stack.learn_mtu(destination, claimed);
                    flow.shrink(stack.mtu_to(destination), now)
                }
            };
            settled.into_iter().for_each(|settled| stack.follow(&flow, settled));
        }
        ip::UDP => {
            let remote = SocketAddr::new(destination, port(2));
            let socket = stack.udp_socket(SocketAddr::new(source, port(0)));
            match (socket.filter(|socket| socket.sends_to(remote)), news) {
                (Some(socket), News::Unreachable(reason)) => socket.tell(remote, reason),
                (Some(_), News::TooBig(claimed)) => _ = stack.learn_mtu(destination, claimed),
                (None, _) => {}
            }
        }
        ip::ICMP | ip::ICMPV6 if first[0] == ECHO_V4.0 || first[0] == ECHO_V6.0 => {
            if let News::Unreachable(reason) = news {
                stack.echoes.answer((destination, [first[4], first[5], first[6], first[7]]), Err(reason));
            }
        }
        _ => {}
    }
}

/// Source and destination of a packet of which only the beginning is there.
fn quoted_header(quoted: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match quoted.first()? >> 4 {
        4 => {
            let header: &[u8; ip::IPV4_HEADER_LEN] = quoted.first_chunk()?;
            let address = |at: usize| IpAddr::from([header[at], header[at + 1], header[at + 2], header[at + 3]]);
            Some((address(12), address(16)))
        }
        6 => {
            let header: &[u8; ip::IPV6_HEADER_LEN] = quoted.first_chunk()?;
            let address = |at: usize| header[at..].first_chunk::<16>().map(|octets| IpAddr::from(*octets));
            Some((address(8)?, address(24)?))
        }
        _ => None,
    }
}
