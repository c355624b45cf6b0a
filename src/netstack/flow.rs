//! One TCP connection: a smoltcp socket with an interface of its own.
//!
//! smoltcp looks through all sockets of an interface for each packet, so that each connection has an interface for
//! itself and is found by a hash of its addresses and ports. It is driven from three sides, each under the
//! flow's lock for as long as it takes: packets that arrived ([`Flow::ingest`]), the device that asks for packets to send
//! ([`Flow::emit`]), and its user ([`Flow::poll_read`] and the like). Each of them ends with a look at what the flow needs
//! next, [`Settled`], which the stack carries out.
//!
//! Nothing waits in a queue on its way out: what is to be sent lies in the socket's buffer until the device
//! has room, and is written then, up to 64 KiB with one header, straight into the device's buffer. So any number of
//! packets that arrived together are acknowledged once. Over IPv4 smoltcp makes such long packets itself; over IPv6 the
//! segments that it makes one by one are joined here, each written behind the one before without being moved.
//!
//! A connection that a peer asks for begins with small buffers, and gets its own once the peer confirms it: the request is
//! given to a new socket once more, which answers it alike, since all that is random in a socket comes from its seed. So a flood
//! of requests finds little memory to take.
//!
//! smoltcp's keepalive repeats the last acknowledged sequence number with a byte of garbage, at once when it is switched on. A
//! server that answered with a SYN cookie, and had no room yet for what confirms it, knows nothing of the connection: it would
//! take that byte for the first one of the stream. So keepalives begin when the peer was silent for their interval, and
//! only towards one that has shown that it knows the connection.
//!
//! smoltcp repeats one segment for three duplicate acknowledgements and then waits for its timer. When several of a window
//! are lost each acknowledgement of a part of it says that the next one is missing, too (RFC 6582 §3.2): it is told so by
//! three more of the same.
//!
//! When its timer expires smoltcp goes back to what is not acknowledged, and its acknowledgements go back with it: to the peer
//! they are old segments, and what they say is lost. With a loss in both directions at once neither end would ever hear
//! the other, so they are put where they belong here.
//!
//! Three duplicate acknowledgements of everything but the FIN make smoltcp forget its timer, and repeat nothing since there is no
//! data: the connection would never end. It is not shown them, and repeats the FIN by its timer.
//!
//! smoltcp ends a connection that was quiet for its `timeout` even when nothing was asked of the peer, so the patience
//! with a silent peer is measured here.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{CongestionControl, RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::edge::{Edge, Emitted};
use super::headers::{self, TCP_ACK, TCP_FIN, TCP_PSH, TCP_RST, TCP_SYN};
use super::listener::Listener;
use super::wait::Wakers;
use crate::ip;

/// smoltcp's clock runs so much faster than others. Its shortest retransmission timeout is 1 s and cannot be changed; by
/// our clock it is 200 ms, as Linux'. Whatever is a duration for smoltcp has to be multiplied by this.
const HURRY: u32 = 5;

/// How long an acknowledgement waits for data that could carry it: smoltcp's own.
const ACK_DELAY: Duration = Duration::from_millis(10);

/// How long a handshake may take when its caller set no limit: Linux' for `tcp_syn_retries` = 6.
pub(super) const SYN_TIMEOUT: Duration = Duration::from_secs(127);

/// How long a peer that asked for a connection has to confirm it: Linux' for `tcp_synack_retries` = 5.
const SYN_ACK_TIMEOUT: Duration = Duration::from_secs(63);

/// How long a peer may be silent while it has something to acknowledge: Linux' for `tcp_retries2` = 15, 924 s, rounded.
const USER_TIMEOUT: Duration = Duration::from_secs(900);

/// The same for a connection that its user has let go of: Linux' `tcp_fin_timeout`.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(60);

/// Keepalives that may stay unanswered.
const KEEPALIVE_PROBES: u32 = 5;

/// When to look again at a flow that says it has something to send, and gives nothing: no case is known, and one must
/// not keep a processor busy.
const NOTHING_GIVEN_DELAY: Duration = Duration::from_millis(1);

/// Of a send buffer, which part has to be free before a waiting writer is woken: Linux' third.
const WRITE_WAKE_DIVISOR: usize = 3;

/// Duplicate acknowledgements that mean a loss (RFC 5681 §3.2).
const DUPLICATES: u8 = 3;

/// Bytes in each buffer of a connection that the peer has not confirmed; they are never used.
const HALF_OPEN_BUFFER: usize = 512;

/// Bytes of a TCP window without scaling (RFC 7323 §2.2).
const WINDOW_MAX: usize = 65_535;

/// No deadline.
const NEVER: u64 = u64::MAX;

/// Addresses and ports of both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// A connection.
pub(super) struct Flow {
    pub(super) key: FlowKey,
    /// Which lane its packets leave by.
    pub(super) hash: u64,
    /// It waits in its lane to be asked for packets.
    pub(super) is_queued: AtomicBool,
    /// When it is to be looked at, in microseconds of the stack's clock; written under the timers' lock.
    pub(super) alarm: AtomicU64,
    inner: Mutex<Inner>,
}

/// How far it is.
enum Stage {
    /// We asked for it.
    Connecting,
    /// The peer asked for it.
    Accepting(HalfOpen),
    /// It was established.
    Open,
    /// It is over, whatever the reason.
    Ended,
}

/// What a connection is made of that the peer has not confirmed.
struct HalfOpen {
    listener: Arc<Listener>,
    parameters: Parameters,
    /// The packet that asked for it.
    request: Box<[u8]>,
    /// The sequence number that confirms it.
    confirmation: Option<u32>,
}

impl HalfOpen {
    /// Makes the answer of a socket with small buffers that of one with its full ones.
    fn complete_answer(&mut self, packet: &mut [u8]) {
        let offset = headers::ip_header_len_of(packet);
        let Some(segment) = packet.get_mut(offset..).filter(|segment| segment.len() >= headers::TCP_HEADER_LEN) else {
            return;
        };
        if segment[13] & TCP_SYN == 0 {
            return;
        }
        let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        self.confirmation = Some(sequence.wrapping_add(1));
        let window = self.parameters.buffer.min(WINDOW_MAX) as u16;
        segment[14..16].copy_from_slice(&window.to_be_bytes());
        let bits = usize::BITS - self.parameters.buffer.leading_zeros();
        if let Some(scale) = headers::window_scale_mut(segment) {
            *scale = bits.saturating_sub(u16::BITS) as u8;
        }
    }
}

struct Inner {
    interface: Interface,
    sockets: SocketSet<'static>,
    socket: SocketHandle,
    mtu: usize,
    stage: Stage,
    /// Somebody has it in hand.
    has_user: bool,
    /// Nothing more is to be read.
    is_read_shut: bool,
    keepalive: Option<Duration>,
    /// smoltcp has been told of it.
    is_keepalive_on: bool,
    /// The peer has sent something but the answer to our request.
    is_peer_there: bool,
    /// When something came from the peer, or since when keepalives are wanted.
    heard_at: Instant,
    /// Why it ended, if not in order.
    failure: Option<io::ErrorKind>,
    /// When the patience with a silent peer ends.
    give_up: Option<Instant>,
    /// A packet that was made and did not fit the one before it.
    held: Option<Box<[u8]>>,
    /// Sequence numbers that were sent and are not acknowledged: the first, and the one after the last.
    under_way: Option<(u32, u32)>,
    /// Acknowledgements of nothing new, since the last one of something.
    duplicates: u8,
    /// What was under way when a loss was noticed ends here.
    recovery: Option<u32>,
    /// The last packet that was sent in TIME-WAIT: what answers a repeated FIN.
    last_ack: Option<Box<[u8]>>,
    readers: Wakers,
    writers: Wakers,
}

/// What a flow needs next.
#[must_use]
pub(super) struct Settled {
    pub(super) due: Due,
    /// It was established: whoever listens gets it.
    pub(super) accepted: Option<Arc<Listener>>,
    woken: [Wakers; 2],
}

impl Settled {
    /// Wakes those who wait for what has happened.
    pub(super) fn wake(&mut self) {
        self.woken.iter_mut().for_each(|wakers| wakers.take().wake());
    }
}

/// When a flow is to be asked for packets.
#[derive(Debug)]
pub(super) enum Due {
    Now,
    At(Instant),
    Never,
    /// It is over.
    Ended,
    /// It is in TIME-WAIT, nobody has it in hand, and this answers what may still come.
    TimeWait(Box<[u8]>),
}

/// What a flow is made with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameters {
    pub(super) mtu: usize,
    /// Bytes, in each direction.
    pub(super) buffer: usize,
    /// What sequence numbers are drawn from.
    pub(super) seed: u64,
}

/// The time as smoltcp is told it.
fn hurried(now: Instant) -> Instant {
    Instant::from_micros(now.total_micros() * i64::from(HURRY))
}

/// When smoltcp's time will be this: not before.
fn unhurried(at: Instant) -> Instant {
    Instant::from_micros(at.total_micros().saturating_add(i64::from(HURRY) - 1) / i64::from(HURRY))
}

/// The interface of one flow.
fn interface(key: &FlowKey, mtu: usize, seed: u64, now: Instant) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    let mut replies = Vec::new();
    let mut interface = Interface::new(config, &mut Edge::new(mtu, None, &mut [], &mut replies), hurried(now));
    let prefix_len = if key.local.is_ipv4() { 32 } else { 128 };
    interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(key.local.ip().into(), prefix_len)).expect("there is room for one");
    });
    interface
}

/// A socket with an interface of its own.
fn parts(key: &FlowKey, parameters: &Parameters, now: Instant) -> (Interface, SocketSet<'static>, SocketHandle) {
    let interface = interface(key, parameters.mtu, parameters.seed, now);
    let buffer = || SocketBuffer::new(vec![0; parameters.buffer]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_congestion_control(CongestionControl::Reno);
    socket.set_ack_delay(Some((ACK_DELAY * HURRY).into()));
    let mut sockets = SocketSet::new(Vec::with_capacity(1));
    let socket = sockets.add(socket);
    (interface, sockets, socket)
}

impl Inner {
    fn new(key: &FlowKey, parameters: &Parameters, stage: Stage, now: Instant) -> Self {
        let (interface, sockets, socket) = parts(key, parameters, now);
        Self {
            interface,
            sockets,
            socket,
            mtu: parameters.mtu,
            stage,
            has_user: false,
            is_read_shut: false,
            keepalive: None,
            is_keepalive_on: false,
            is_peer_there: false,
            heard_at: now,
            failure: None,
            give_up: None,
            held: None,
            under_way: None,
            duplicates: 0,
            recovery: None,
            last_ack: None,
            readers: Wakers::default(),
            writers: Wakers::default(),
        }
    }

    /// A packet for a connection that the peer has still to confirm: its request is remembered, and with what confirms it, it
    /// gets its buffers.
    fn confirm(&mut self, key: &FlowKey, packet: &[u8], flags: u8, now: Instant) {
        let Stage::Accepting(half_open) = &mut self.stage else { return };
        if half_open.request.is_empty() {
            half_open.request = packet.into();
            return;
        }
        let is_confirmation = flags & (TCP_SYN | TCP_RST | TCP_ACK) == TCP_ACK
            && headers::acknowledgement(packet) == half_open.confirmation
            && self.sockets.get::<Socket<'_>>(self.socket).recv_capacity() < half_open.parameters.buffer;
        if !is_confirmation {
            return;
        }
        let parameters = half_open.parameters;
        let (interface, sockets, socket) = parts(key, &parameters, now);
        (self.interface, self.sockets, self.socket) = (interface, sockets, socket);
        self.socket().listen(key.local).expect("a new socket can listen at an address that is specified");
        let Stage::Accepting(half_open) = &self.stage else { return };
        let (mut answer, mut replies) = (vec![0; parameters.mtu], Vec::new());
        let mut edge = Edge::new(parameters.mtu, Some(&half_open.request), &mut [], &mut replies);
        self.interface.poll_ingress_single(hurried(now), &mut edge, &mut self.sockets);
        let mut edge = Edge::new(parameters.mtu, None, &mut answer, &mut replies);
        self.interface.poll_egress(hurried(now), &mut edge, &mut self.sockets);
    }

    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.socket)
    }

    /// How long the peer may be silent now; `None` when nothing is asked of it.
    fn patience(&mut self) -> Option<Duration> {
        let (has_user, keepalive) = (self.has_user, self.keepalive.filter(|_| self.is_peer_there));
        let socket = self.socket();
        match socket.state() {
            State::SynSent => Some(SYN_TIMEOUT),
            State::Listen | State::SynReceived => Some(SYN_ACK_TIMEOUT),
            State::Closed | State::TimeWait => None,
            _ if !has_user => Some(ORPHAN_TIMEOUT),
            State::FinWait1 | State::Closing | State::LastAck => Some(USER_TIMEOUT),
            _ if socket.send_queue() > 0 => Some(USER_TIMEOUT),
            _ => keepalive.map(|interval| interval * (KEEPALIVE_PROBES + 1)),
        }
    }

    /// Ends the connection at once.
    fn fail(&mut self, failure: io::ErrorKind) {
        self.failure.get_or_insert(failure);
        self.socket().abort();
    }

    /// When keepalives begin.
    fn first_keepalive(&self) -> Option<Instant> {
        let interval = self.keepalive.filter(|_| self.is_peer_there && !self.is_keepalive_on)?;
        Some(self.heard_at + interval.into())
    }

    /// Looks at what has come of the last step.
    fn settle(&mut self, now: Instant, heard: bool) -> Settled {
        if heard {
            self.heard_at = now;
        }
        if self.first_keepalive().is_some_and(|at| at <= now) {
            self.is_keepalive_on = true;
            let keepalive = self.keepalive.map(|interval| (interval * HURRY).into());
            self.socket().set_keep_alive(keepalive);
        }
        let is_read_shut = self.is_read_shut;
        let socket = self.socket();
        if is_read_shut {
            while socket.recv(|bytes| (bytes.len(), bytes.len())).is_ok_and(|dropped| dropped > 0) {}
        }
        let state = socket.state();
        let mut settled = Settled { due: Due::Never, accepted: None, woken: Default::default() };
        match &self.stage {
            Stage::Connecting if state == State::Closed => self.stage = Stage::Ended,
            Stage::Connecting if state != State::SynSent && state != State::SynReceived => self.stage = Stage::Open,
            // A reset of a half-open connection makes smoltcp listen again.
            Stage::Accepting(_) if state == State::Closed || state == State::Listen => {
                self.stage = Stage::Ended;
            }
            Stage::Accepting(half_open) if state != State::SynReceived => {
                settled.accepted = Some(Arc::clone(&half_open.listener));
                self.stage = Stage::Open;
                // The listener, until it is accepted.
                self.has_user = true;
            }
            Stage::Open if state == State::Closed => self.stage = Stage::Ended,
            _ => {}
        }
        let has_ended = matches!(self.stage, Stage::Ended);

        let socket = self.socket();
        let can_read = socket.can_recv() || !socket.may_recv();
        let room = socket.send_capacity() - socket.send_queue();
        let can_write = !socket.may_send() || room >= socket.send_capacity() / WRITE_WAKE_DIVISOR;
        let is_connecting = matches!(self.stage, Stage::Connecting);
        if has_ended || can_read && !is_connecting {
            settled.woken[0] = self.readers.take();
        }
        if has_ended || can_write && !is_connecting {
            settled.woken[1] = self.writers.take();
        }

        self.give_up = match self.patience() {
            None => None,
            Some(patience) if heard => Some(now + patience.into()),
            Some(patience) => Some(self.give_up.map_or(now + patience.into(), |end| end.min(now + patience.into()))),
        };
        settled.due = self.due(now, has_ended);
        settled
    }

    /// Writes the next packet to `buffer`.
    fn next_packet(&mut self, buffer: &mut [u8], now: Instant) -> Option<Emitted> {
        if let Some(packet) = self.held.take() {
            buffer[..packet.len()].copy_from_slice(&packet);
            return Some(Emitted { len: packet.len(), segment: None });
        }
        let mut replies = Vec::new();
        let mut edge = Edge::new(self.mtu, None, buffer, &mut replies);
        self.interface.poll_egress(hurried(now), &mut edge, &mut self.sockets);
        let emitted = edge.emitted;
        if let Some(emitted) = &emitted {
            self.put_after_what_was_sent(&mut buffer[..emitted.len]);
        }
        emitted
    }

    /// Joins to a data segment over IPv6 those that follow it, as long as they differ in nothing but what cutting them up
    /// again restores.
    fn join(&mut self, buffer: &mut [u8], first: Emitted, now: Instant) -> Emitted {
        const OFFSET: usize = ip::IPV6_HEADER_LEN;
        const HEADERS: usize = OFFSET + headers::TCP_HEADER_LEN;
        let mut len = first.len;
        let first_payload = match Joint::of(&buffer[..len]) {
            // With more to come: smoltcp pushes what is the last for now.
            Some(joint) if joint.flags == TCP_ACK => len - HEADERS,
            _ => return first,
        };
        while len + self.mtu - HEADERS <= buffer.len() {
            let Some(joint) = Joint::of(&buffer[..HEADERS]) else { break };
            let start = len - HEADERS;
            let mut before = [0; HEADERS];
            before.copy_from_slice(&buffer[start..len]);
            let next = self.next_packet(&mut buffer[start..], now);
            let follows = next.and_then(|next| {
                let sequence = joint.sequence.wrapping_add(start as u32);
                let following = Joint::of(&buffer[start..start + next.len])?;
                let is_alike = following.sequence == sequence
                    && following.acknowledgement_and_window == joint.acknowledgement_and_window
                    && next.len - HEADERS <= first_payload;
                is_alike.then_some((next.len - HEADERS, following.flags))
            });
            if let (Some(next), None) = (next, follows) {
                self.held = Some(buffer[start..start + next.len].into());
            }
            buffer[start..len].copy_from_slice(&before);
            let Some((payload, flags)) = follows else { break };
            len += payload;
            buffer[OFFSET + 13] = flags;
            if flags != TCP_ACK || payload < first_payload {
                break;
            }
        }
        if len == first.len {
            return first;
        }
        buffer[4..6].copy_from_slice(&((len - OFFSET) as u16).to_be_bytes());
        Emitted { len, segment: NonZeroU16::new(first_payload as u16) }
    }

    /// Gives a segment that says nothing but what arrived the place after all that was ever sent. (RFC 9293 §3.10.7.4)
    fn put_after_what_was_sent(&self, packet: &mut [u8]) {
        let Some((_, last)) = self.under_way else { return };
        let start = headers::ip_header_len_of(packet);
        let is_all_header = headers::has_no_payload(packet);
        let Some(segment) = packet.get_mut(start..start + headers::TCP_HEADER_LEN) else { return };
        let is_bare = is_all_header && segment[13] & (TCP_SYN | TCP_FIN | TCP_RST) == 0;
        let Some(sequence) = segment[4..].first_chunk_mut() else { return };
        if is_bare && is_after(last, u32::from_be_bytes(*sequence)) {
            *sequence = last.to_be_bytes();
        }
    }

    /// Remembers what was sent, and so may be quoted by an ICMP error.
    fn count_sent(&mut self, packet: &[u8]) {
        let segment = &packet[headers::ip_header_len_of(packet)..];
        let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
        let payload = segment.len() - usize::from(segment[12] >> 4) * 4;
        let controls = usize::from(segment[13] & TCP_SYN != 0) + usize::from(segment[13] & TCP_FIN != 0);
        let end = sequence.wrapping_add((payload + controls) as u32);
        let (_, last) = self.under_way.get_or_insert((sequence, end));
        if is_after(end, *last) {
            *last = end;
        }
    }

    /// Notes what a segment acknowledges. Returns whether that is a part only of what was under way at a loss.
    fn count_acknowledged(&mut self, packet: &[u8], is_bare: bool) -> bool {
        let Some(acknowledgement) = headers::acknowledgement(packet) else { return false };
        let Some((first, last)) = &mut self.under_way else { return false };
        if acknowledgement == *first && is_after(*last, *first) && is_bare {
            self.duplicates = self.duplicates.saturating_add(1);
            if self.duplicates == DUPLICATES {
                self.recovery.get_or_insert(*last);
            }
            return false;
        }
        if !is_after(acknowledgement, *first) || is_after(acknowledgement, *last) {
            return false;
        }
        *first = acknowledgement;
        self.duplicates = 0;
        self.recovery = self.recovery.filter(|end| is_after(*end, acknowledgement));
        self.recovery.is_some()
    }

    /// Whether our FIN alone is under way, and this acknowledges what came before it.
    fn repeats_what_the_end_waits_for(&mut self, packet: &[u8]) -> bool {
        let is_ending = matches!(self.socket().state(), State::FinWait1 | State::Closing | State::LastAck);
        is_ending
            && self.socket().send_queue() == 0
            && self.under_way.is_some_and(|(first, last)| {
                last == first.wrapping_add(1) && headers::acknowledgement(packet) == Some(first)
            })
    }

    fn due(&mut self, now: Instant, has_ended: bool) -> Due {
        if self.held.is_some() {
            return Due::Now;
        }
        let is_over = self.socket().local_endpoint().is_none();
        if has_ended && is_over {
            return Due::Ended;
        }
        let wanted = self.interface.poll_at(hurried(now), &self.sockets).map(unhurried);
        // Not before the peer's FIN was acknowledged.
        if self.socket().state() == State::TimeWait
            && !self.has_user
            && let Some(answer) = self.last_ack.take()
        {
            return Due::TimeWait(answer);
        }
        match [wanted, self.give_up, self.first_keepalive()].into_iter().flatten().min() {
            Some(at) if at <= now => Due::Now,
            Some(at) => Due::At(at),
            None => Due::Never,
        }
    }
}

/// What has to fit for one TCP segment over IPv6 to be joined to the one before.
struct Joint {
    sequence: u32,
    acknowledgement_and_window: ([u8; 4], [u8; 2]),
    flags: u8,
}

impl Joint {
    /// `None` when `packet`, one of ours, is no segment over IPv6 with nothing but data, or has options.
    fn of(packet: &[u8]) -> Option<Self> {
        let segment: &[u8; headers::TCP_HEADER_LEN] = packet.get(ip::IPV6_HEADER_LEN..)?.first_chunk()?;
        let flags = segment[13];
        let is_data = packet[0] >> 4 == 6 && segment[12] >> 4 == 5 && flags & !TCP_PSH == TCP_ACK;
        let [_, _, _, _, s0, s1, s2, s3, a0, a1, a2, a3, ..] = *segment;
        is_data.then_some(Self {
            sequence: u32::from_be_bytes([s0, s1, s2, s3]),
            acknowledgement_and_window: ([a0, a1, a2, a3], [segment[14], segment[15]]),
            flags,
        })
    }
}

/// Whether sequence number `a` comes after `b` (RFC 9293 §3.4).
fn is_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

impl Flow {
    fn new(key: FlowKey, hash: u64, inner: Inner) -> Arc<Self> {
        Arc::new(Self {
            key,
            hash,
            is_queued: AtomicBool::new(false),
            alarm: AtomicU64::new(NEVER),
            inner: Mutex::new(inner),
        })
    }

    /// A connection to be established; its first packet is due.
    pub(super) fn connect(key: FlowKey, hash: u64, parameters: &Parameters, now: Instant) -> Arc<Self> {
        let mut inner = Inner::new(&key, parameters, Stage::Connecting, now);
        let socket = inner.sockets.get_mut::<Socket<'_>>(inner.socket);
        socket
            .connect(inner.interface.context(), key.remote, key.local)
            .expect("a new socket can connect between addresses that are specified");
        inner.has_user = true;
        inner.give_up = Some(now + SYN_TIMEOUT.into());
        Self::new(key, hash, inner)
    }

    /// A connection that a peer asks for; the packet that does is to be ingested next.
    pub(super) fn accept(
        key: FlowKey,
        hash: u64,
        parameters: &Parameters,
        listener: Arc<Listener>,
        now: Instant,
    ) -> Arc<Self> {
        let small = Parameters { buffer: HALF_OPEN_BUFFER.min(parameters.buffer), ..*parameters };
        let half_open = HalfOpen { listener, parameters: *parameters, request: Box::default(), confirmation: None };
        let mut inner = Inner::new(&key, &small, Stage::Accepting(half_open), now);
        inner.socket().listen(key.local).expect("a new socket can listen at an address that is specified");
        inner.give_up = Some(now + SYN_ACK_TIMEOUT.into());
        Self::new(key, hash, inner)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic inside leaves a connection that its user sees as it is.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes packets that arrived for it, whose checksums were verified, in order. What has to be answered at once is
    /// added to `replies`: whole packets, without their TCP checksum.
    pub(super) fn ingest<'a>(
        &self,
        packets: impl Iterator<Item = (&'a [u8], u8)>,
        replies: &mut Vec<Box<[u8]>>,
        now: Instant,
    ) -> Settled {
        let mut inner = self.lock();
        let inner = &mut *inner;
        for (packet, flags) in packets {
            inner.confirm(&self.key, packet, flags, now);
            let is_bare = flags & (TCP_ACK | TCP_SYN | TCP_FIN) == TCP_ACK && headers::has_no_payload(packet);
            let is_partial = flags & TCP_ACK != 0 && inner.count_acknowledged(packet, is_bare);
            if is_bare && inner.repeats_what_the_end_waits_for(packet) {
                continue;
            }
            let before = inner.socket().state();
            inner.is_peer_there |= flags & TCP_SYN == 0;
            let mut edge = Edge::new(inner.mtu, Some(packet), &mut [], replies);
            inner.interface.poll_ingress_single(hurried(now), &mut edge, &mut inner.sockets);
            if is_partial && is_bare && !inner.repeats_what_the_end_waits_for(packet) {
                for _ in 0..DUPLICATES {
                    let mut edge = Edge::new(inner.mtu, Some(packet), &mut [], replies);
                    inner.interface.poll_ingress_single(hurried(now), &mut edge, &mut inner.sockets);
                }
            }
            if flags & TCP_RST != 0 && before != State::Closed && inner.socket().state() == State::Closed {
                inner.failure.get_or_insert(match before {
                    State::SynSent => io::ErrorKind::ConnectionRefused,
                    _ => io::ErrorKind::ConnectionReset,
                });
            }
        }
        replies.iter_mut().for_each(|reply| inner.put_after_what_was_sent(reply));
        inner.settle(now, true)
    }

    /// Writes its next packet to `buffer`, or several as one, without their TCP checksum.
    pub(super) fn emit(&self, buffer: &mut [u8], now: Instant) -> (Option<Emitted>, Settled) {
        let mut inner = self.lock();
        let inner = &mut *inner;
        if inner.give_up.is_some_and(|end| end <= now) {
            inner.fail(io::ErrorKind::TimedOut);
        }
        let first = inner.next_packet(buffer, now);
        let emitted = first.map(|first| inner.join(buffer, first, now));
        if let (Some(emitted), Stage::Accepting(half_open)) = (&emitted, &mut inner.stage) {
            half_open.complete_answer(&mut buffer[..emitted.len]);
        }
        if let Some(emitted) = &emitted
            && inner.socket().state() == State::TimeWait
        {
            inner.last_ack = Some(buffer[..emitted.len].into());
        }
        if let Some(emitted) = &emitted {
            inner.count_sent(&buffer[..emitted.len]);
        }
        let mut settled = inner.settle(now, false);
        if emitted.is_none() && matches!(settled.due, Due::Now) {
            settled.due = Due::At(now + NOTHING_GIVEN_DELAY.into());
        }
        (emitted, settled)
    }

    /// Looks whether anything is due: its alarm rang.
    pub(super) fn look(&self, now: Instant) -> Settled {
        self.lock().settle(now, false)
    }

    /// Waits until it is established, or is not going to be.
    pub(super) fn poll_connected(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        match inner.stage {
            Stage::Connecting => {
                inner.writers.register(context.waker());
                Poll::Pending
            }
            Stage::Ended => Poll::Ready(Err(inner.failure.unwrap_or(io::ErrorKind::ConnectionReset).into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    /// Reads into `buffer`: `Ok(0)` at the end of what the peer sent.
    pub(super) fn poll_read(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
        now: Instant,
    ) -> (Poll<io::Result<usize>>, Option<Settled>) {
        let mut inner = self.lock();
        if buffer.is_empty() || inner.is_read_shut {
            return (Poll::Ready(Ok(0)), None);
        }
        match inner.socket().recv_slice(buffer) {
            Ok(0) => {
                inner.readers.register(context.waker());
                (Poll::Pending, None)
            }
            Ok(len) => (Poll::Ready(Ok(len)), Some(inner.settle(now, false))),
            Err(RecvError::Finished) => (Poll::Ready(Ok(0)), None),
            Err(RecvError::InvalidState) => {
                (Poll::Ready(inner.failure.map_or(Ok(0), |failure| Err(failure.into()))), None)
            }
        }
    }

    /// Leaves bytes to be sent, as many as there is room for.
    pub(super) fn poll_write(
        &self,
        context: &mut Context<'_>,
        bytes: &[u8],
        now: Instant,
    ) -> (Poll<io::Result<usize>>, Option<Settled>) {
        let mut inner = self.lock();
        match inner.socket().send_slice(bytes) {
            Ok(0) if !bytes.is_empty() => {
                inner.writers.register(context.waker());
                (Poll::Pending, None)
            }
            Ok(len) => (Poll::Ready(Ok(len)), Some(inner.settle(now, false))),
            Err(_) => {
                let failure = inner.failure.unwrap_or(io::ErrorKind::BrokenPipe);
                (Poll::Ready(Err(failure.into())), None)
            }
        }
    }

    /// Nothing more will be written: the peer is told once it has what was written before.
    pub(super) fn shutdown_write(&self, now: Instant) -> io::Result<Settled> {
        let mut inner = self.lock();
        if matches!(inner.stage, Stage::Ended) {
            return Err(inner.failure.unwrap_or(io::ErrorKind::NotConnected).into());
        }
        inner.socket().close();
        Ok(inner.settle(now, false))
    }

    /// What arrived and what will arrive is dropped.
    pub(super) fn shutdown_read(&self, now: Instant) -> Settled {
        let mut inner = self.lock();
        inner.is_read_shut = true;
        let mut settled = inner.settle(now, false);
        settled.woken[0] = inner.readers.take();
        settled
    }

    /// Sends small writes at once, or waits for more while something is unacknowledged.
    pub(super) fn set_nodelay(&self, nodelay: bool) {
        self.lock().socket().set_nagle_enabled(!nodelay);
    }

    pub(super) fn is_nodelay(&self) -> bool {
        !self.lock().socket().nagle_enabled()
    }

    /// Asks a silent peer for a sign of life each `interval`.
    pub(super) fn set_keepalive(&self, interval: Option<Duration>, now: Instant) -> Settled {
        let mut inner = self.lock();
        inner.keepalive = interval;
        inner.is_keepalive_on = false;
        inner.socket().set_keep_alive(None);
        inner.settle(now, true)
    }

    /// Nobody has it in hand any more: what was written is still delivered and the connection closed in order. As with
    /// Linux it is reset instead when something arrived that was never read.
    pub(super) fn release(&self, now: Instant) -> Settled {
        let mut inner = self.lock();
        inner.has_user = false;
        inner.give_up = None;
        let socket = inner.socket();
        if socket.can_recv() {
            socket.abort();
        } else {
            socket.close();
        }
        if matches!(inner.stage, Stage::Connecting) {
            inner.stage = Stage::Ended;
        }
        inner.is_read_shut = true;
        inner.settle(now, false)
    }

    /// Ends it at once, for this reason; the peer is told by a reset.
    pub(super) fn fail(&self, failure: io::ErrorKind, now: Instant) -> Settled {
        let mut inner = self.lock();
        inner.fail(failure);
        inner.settle(now, false)
    }

    /// The same, if it is not established yet.
    pub(super) fn fail_connecting(&self, failure: io::ErrorKind, now: Instant) -> Option<Settled> {
        let mut inner = self.lock();
        if !matches!(inner.stage, Stage::Connecting) {
            return None;
        }
        inner.fail(failure);
        Some(inner.settle(now, false))
    }

    /// Whether this sequence number was sent and not acknowledged.
    pub(super) fn is_under_way(&self, sequence: u32) -> bool {
        self.lock().under_way.is_some_and(|(first, last)| !is_after(first, sequence) && is_after(last, sequence))
    }

    /// Packets may be no longer than `mtu` from now on; what was lost for its length comes again by its timer.
    pub(super) fn shrink(&self, mtu: usize, now: Instant) -> Option<Settled> {
        let mut inner = self.lock();
        if mtu >= inner.mtu || !matches!(inner.stage, Stage::Open) {
            return None;
        }
        inner.mtu = mtu;
        // An interface has its MTU for good, and nothing else that an established connection has need of.
        inner.interface = interface(&self.key, mtu, 0, now);
        Some(inner.settle(now, false))
    }

    /// Lets go of it without a word, with its buffers, if the peer has still to confirm it. Returns whether it did.
    pub(super) fn forget_half_open(&self) -> bool {
        let mut inner = self.lock();
        if !matches!(inner.stage, Stage::Accepting(_)) {
            return false;
        }
        inner.stage = Stage::Ended;
        inner.give_up = None;
        inner.sockets = SocketSet::new(Vec::with_capacity(1));
        let nothing = || SocketBuffer::new(Vec::new());
        inner.socket = inner.sockets.add(Socket::new(nothing(), nothing()));
        true
    }

    /// Its alarm rang, or is not needed any more; called under the timers' lock.
    pub(super) fn clear_alarm(&self) {
        self.alarm.store(NEVER, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn parameters() -> Parameters {
        Parameters { mtu: 1420, buffer: 1 << 16, seed: 1 }
    }

    /// What a flow sends at `now`: whole packets.
    fn emitted(flow: &Flow, now: Instant) -> Vec<Vec<u8>> {
        let mut buffer = vec![0; crate::packet::BUFFER_LEN];
        let emit = || flow.emit(&mut buffer, now).0.map(|emitted| buffer[..emitted.len].to_vec());
        std::iter::from_fn(emit).collect()
    }

    fn deliver(flow: &Flow, packets: &[Vec<u8>], now: Instant) {
        let mut replies = Vec::new();
        let _ = flow.ingest(packets.iter().map(|packet| (&packet[..], packet[33])), &mut replies, now);
        assert!(replies.is_empty());
    }

    /// Bytes after the TCP header of an IPv4 packet.
    fn payload_len(packet: &[u8]) -> usize {
        packet.len() - 20 - usize::from(packet[32] >> 4) * 4
    }

    /// A client, and a server that it waits to confirm its connection to.
    fn offered(now: Instant) -> (Arc<Flow>, Arc<Flow>) {
        let (here, there): (SocketAddr, SocketAddr) = (([10, 0, 0, 1], 4000).into(), ([10, 0, 0, 2], 80).into());
        let client = Flow::connect(FlowKey { local: here, remote: there }, 0, &parameters(), now);
        let listener = Listener::new(there);
        let server = Flow::accept(FlowKey { local: there, remote: here }, 0, &parameters(), listener, now);
        deliver(&server, &emitted(&client, now), now);
        deliver(&client, &emitted(&server, now), now);
        (client, server)
    }

    /// Two ends of a connection.
    fn connected(now: Instant) -> (Arc<Flow>, Arc<Flow>) {
        let (client, server) = offered(now);
        deliver(&server, &emitted(&client, now), now);
        (client, server)
    }

    fn write(flow: &Flow, bytes: &[u8], now: Instant) {
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(matches!(flow.poll_write(&mut context, bytes, now).0, Poll::Ready(Ok(len)) if len == bytes.len()));
    }

    fn sequence(packet: &[u8]) -> u32 {
        u32::from_be_bytes(packet[24..28].try_into().unwrap())
    }

    /// Three of them while only the FIN is under way, and smoltcp would repeat it fast, and then never again.
    #[test]
    fn a_fin_is_repeated_until_it_is_acknowledged_whatever_duplicates_come() {
        let mut now = Instant::from_secs(1);
        let (client, server) = connected(now);
        write(&client, b"question", now);
        deliver(&server, &emitted(&client, now), now);
        now += Duration::from_secs(1).into();
        let acknowledgement = emitted(&server, now);
        assert_eq!(acknowledgement.len(), 1);
        deliver(&client, &acknowledgement, now);
        let _ = client.shutdown_write(now).unwrap();
        let is_fin = |packets: &[Vec<u8>]| packets.len() == 1 && packets[0][33] & TCP_FIN != 0;
        assert!(is_fin(&emitted(&client, now)));
        for _ in 0..2 * DUPLICATES {
            deliver(&client, &acknowledgement, now);
            let _lost = emitted(&client, now);
        }
        // Neither is the last of them the one that ends it.
        for _ in 0..3 {
            now += Duration::from_secs(10).into();
            let _ = client.look(now);
            assert!(is_fin(&emitted(&client, now)));
        }
    }

    /// A receiver takes no notice of an acknowledgement whose sequence number lies before its window.
    #[test]
    fn after_a_timeout_acknowledgements_still_follow_all_that_was_sent() {
        let mut now = Instant::from_secs(1);
        let (client, server) = connected(now);
        write(&client, &[7; 8000], now);
        let end_of = |packets: &[Vec<u8>]| {
            packets.iter().map(|packet| sequence(packet) + payload_len(packet) as u32).max().unwrap()
        };
        let end = end_of(&emitted(&client, now));
        // The first segment again, alone; of the others nothing is known.
        now += Duration::from_secs(2).into();
        let _ = client.look(now);
        assert!(end_of(&emitted(&client, now)) < end);
        write(&server, b"anything", now);
        deliver(&client, &emitted(&server, now), now);
        now += (2 * ACK_DELAY).into();
        let answer = emitted(&client, now);
        assert_eq!(answer.iter().map(|packet| payload_len(packet)).collect::<Vec<_>>(), [0]);
        assert_eq!(sequence(&answer[0]), end);
    }

    #[test]
    fn keepalives_wait_for_silence_and_for_a_peer_that_knows_the_connection() {
        let mut now = Instant::from_secs(1);
        let (client, server) = offered(now);
        let _ = client.set_keepalive(Some(INTERVAL), now);
        let confirmation = emitted(&client, now);
        assert_eq!(confirmation.iter().map(|packet| payload_len(packet)).collect::<Vec<_>>(), [0]);

        // Nobody knows whether the confirmation came: not a byte more, however long it takes.
        now += (3 * INTERVAL).into();
        assert!(emitted(&client, now).is_empty());

        // Something comes from there.
        deliver(&server, &confirmation, now);
        write(&server, b"welcome", now);
        deliver(&client, &emitted(&server, now), now);
        // It is acknowledged, a moment later.
        now += Duration::from_secs(1).into();
        assert_eq!(emitted(&client, now).len(), 1);
        now += (INTERVAL / 2).into();
        assert!(emitted(&client, now).is_empty(), "it was not silent for long enough");
        now += INTERVAL.into();
        let _ = client.look(now);
        assert_eq!(emitted(&client, now).len(), 1, "is it still there?");
    }

    /// Packets of IPv4 and short ones are nothing to join.
    #[test]
    fn what_can_be_joined() {
        for first in [0x45, 0x60] {
            for len in 0..100 {
                let mut packet = vec![0; len];
                packet.iter_mut().take(1).for_each(|byte| *byte = first);
                packet.iter_mut().skip(ip::IPV6_HEADER_LEN + 12).take(1).for_each(|byte| *byte = 0x50);
                packet.iter_mut().skip(ip::IPV6_HEADER_LEN + 13).take(1).for_each(|byte| *byte = TCP_ACK);
                assert_eq!(Joint::of(&packet).is_some(), first == 0x60 && len >= 60, "{first:x} {len}");
            }
        }
    }

    /// What a peer is offered while it has not confirmed is what the socket offers that it gets then.
    #[test]
    fn a_confirmed_connection_is_the_one_that_was_offered() {
        let now = Instant::from_secs(1);
        let key = FlowKey { local: ([10, 0, 0, 1], 80).into(), remote: ([10, 0, 0, 2], 5).into() };
        let all: &[u8] = &[2, 4, 5, 100, 1, 3, 3, 7, 4, 2, 1, 1];
        for options in [all, &all[..4], &all[4..8], &[]] {
            let segment_len = headers::TCP_HEADER_LEN + options.len();
            let mut request = headers::begin(key.remote.ip(), key.local.ip(), ip::TCP, segment_len);
            request.extend([
                0,
                5,
                0,
                80,
                0,
                0,
                0,
                9,
                0,
                0,
                0,
                0,
                (segment_len * 4) as u8,
                TCP_SYN,
                255,
                255,
                0,
                0,
                0,
                0,
            ]);
            request.extend(options);
            for buffer in [4096, 65_535, 65_536, 256 << 10, 1 << 20] {
                let parameters = Parameters { mtu: 1420, buffer, seed: 7 };
                let flow = Flow::accept(key, 0, &parameters, Listener::new(key.local), now);
                let mut replies = Vec::new();
                _ = flow.ingest(std::iter::once((&request[..], TCP_SYN)), &mut replies, now);
                let mut offered = vec![0; 1420];
                let offered_len = flow.emit(&mut offered, now).0.unwrap().len;

                let mut inner = Inner::new(&key, &parameters, Stage::Connecting, now);
                inner.socket().listen(key.local).unwrap();
                let mut edge = Edge::new(1420, Some(&request), &mut [], &mut replies);
                inner.interface.poll_ingress_single(hurried(now), &mut edge, &mut inner.sockets);
                let mut whole = vec![0; 1420];
                let whole_len = inner.next_packet(&mut whole, now).unwrap().len;
                assert_eq!(offered[..offered_len], whole[..whole_len], "{options:?} {buffer}");
            }
        }
    }
}
