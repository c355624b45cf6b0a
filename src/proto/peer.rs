//! One peer in one object, for one thread: packets in, datagrams out, and the other way round.
//!
//! [`Peer`] puts together what a program with one tunnel and one loop would otherwise put together itself: the
//! [`Tunnel`] with its timers, the [`Keypair`]s with their replay windows, our [`Identity`], the packets that wait for
//! a session, and the cookies that a flood of handshakes is answered with. Nothing of the protocol is here; whoever
//! has many peers on one socket, or many threads, uses those parts themselves, or a whole device.
//!
//! **Packets, datagrams, the time and randomness go in. What comes out of a call is for the caller to send or to
//! deliver; after every call, drain [`Peer::poll_transmit`], and call [`Peer::handle_timeout`] no later than
//! [`Peer::poll_timeout`] says.** The loop to write:
//!
//! ```text
//! loop {
//!     // 1. Something came.
//!     packet of the host:    outcome = peer.encapsulate(packet, &mut out, now, rng)
//!     datagram from `from`:  outcome = peer.decapsulate(from, &mut datagram, &mut out, now, rng)
//!     the sleep is over:     peer.handle_timeout(now)
//!     // 2. Act on it.
//!     Ok(Send(datagram))     socket.send_to(datagram.bytes, datagram.to)
//!     Ok(Deliver(packet))    may packet.source be behind this peer? then give packet.bytes to the host
//!     Ok(Done)               nothing
//!     Err(rejected)          count it
//!     // 3. There may be more to send.
//!     while let Some(datagram) = peer.poll_transmit(&mut out, now, rng) { send it }
//!     // 4. Sleep until something comes, or until then; without a limit if there is none.
//!     sleep(peer.poll_timeout())
//! }
//! ```
//!
//! Invariants:
//! - what is not authentic changes nothing; the endpoint moves only on what the peer itself has sent;
//! - at most [`STAGED_PACKETS_MAX`] packets wait for a session; beyond it the oldest is dropped;
//! - packets leave in the order in which they were given;
//! - a message whose mac1 is wrong is not answered. [WP 5.3]

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::time::Duration;

use rand_core::CryptoRng;

use super::constants::{PADDING_MULTIPLE, RATE_PACKETS_PER_SECOND, STAGED_PACKETS_MAX, UNDER_LOAD_FOR};
use super::cookie::CookieChecker;
use super::crypto::{Opening, wipe_stack};
use super::handshake::Identity;
use super::keypair::Keypair;
use super::messages::{
    self, COOKIE_REPLY_LEN, DATA_HEADER_LEN, DATA_OVERHEAD, DataHeader, INITIATION_LEN, MAC_LEN, Message, RESPONSE_LEN,
    TAG_LEN, padded_len, write_data_header,
};
use super::ratelimiter::RateLimiter;
use super::rejected::Rejected;
use super::replay::ReplayWindow;
use super::time::{Instant, Now, UnixTime};
use super::timers::Timer;
use super::tunnel::{Authenticated, Tunnel, TunnelEvent};
use crate::ip::Header;
use crate::key::{PresharedKey, PrivateKey, PublicKey};

/// Handshake messages with a right mac1 that are looked at in a second before cookies are demanded: what an honest
/// source may send. A peer sends one in five seconds, and each costs up to four Diffie-Hellmans.
const HANDSHAKES_PER_SECOND: u64 = RATE_PACKETS_PER_SECOND;

/// Bytes that `out` needs for a packet of this length: sealed and padded, or the longest handshake message.
pub const fn datagram_len(packet_len: usize) -> usize {
    let sealed = packet_len.next_multiple_of(PADDING_MULTIPLE) + DATA_OVERHEAD;
    if sealed >= INITIATION_LEN { sealed } else { INITIATION_LEN }
}

/// What is to be done with the result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome<'a> {
    /// Nothing.
    Done,
    /// Send this.
    Send(Datagram<'a>),
    /// Give this to the host, if its source is one that this peer may have.
    Deliver(Packet<'a>),
}

/// A datagram to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// The peer's endpoint; for the reply to a message that nobody authenticated, its sender.
    pub to: SocketAddr,
    /// One of the four messages.
    pub bytes: &'a [u8],
}

/// An inner packet that the peer sent: authentic, of IPv4 or IPv6, without padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The source that it names. That it may is for the caller to check: see
    /// [`AllowedIps`](super::allowed_ips::AllowedIps). [WP 2]
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// The packet, its header included.
    pub bytes: &'a [u8],
}

/// A keypair that data may come on, and what came on it.
struct Session {
    keypair: Arc<Keypair>,
    window: ReplayWindow,
}

/// How many handshake messages come, and what is done when they are too many.
struct Load {
    cookies: Option<CookieChecker>,
    limiter: RateLimiter,
    counted_since: Instant,
    counted: u64,
    until: Instant,
}

impl Load {
    fn new() -> Self {
        Self {
            cookies: None,
            limiter: RateLimiter::new(),
            counted_since: Instant::default(),
            counted: 0,
            until: Instant::default(),
        }
    }

    /// Counts a message; whether there are too many.
    fn is_high(&mut self, now: Instant) -> bool {
        if now.since(self.counted_since) >= Duration::from_secs(1) {
            self.counted_since = now;
            self.counted = 0;
        }
        self.counted += 1;
        if self.counted > HANDSHAKES_PER_SECOND {
            self.until = now + UNDER_LOAD_FOR;
        }
        now < self.until
    }
}

/// A peer, us towards it, and all that is between. See the [module](self) for the loop around it.
pub struct Peer {
    identity: Identity,
    tunnel: Tunnel,
    endpoint: Option<SocketAddr>,
    mtu: usize,
    sessions: Vec<Session>,
    /// Indices of ours that name no session (yet).
    reserved: Vec<u32>,
    /// An empty one is a keepalive.
    staged: VecDeque<Box<[u8]>>,
    /// An initiation is to be sent, as this kind of `retry`.
    initiation: Option<bool>,
    load: Load,
    rx_bytes: u64,
    tx_bytes: u64,
    staged_dropped: u64,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("remote_static", &self.tunnel.remote_static())
            .field("endpoint", &self.endpoint)
            .field("current", &self.tunnel.current())
            .finish_non_exhaustive()
    }
}

/// Configuration.
impl Peer {
    /// The peer of this static public key, towards the owner of `private_key`: without a preshared key, keepalives, an
    /// endpoint or an MTU.
    pub fn new(private_key: PrivateKey, public_key: PublicKey) -> Self {
        Self {
            identity: Identity::new(private_key),
            tunnel: Tunnel::new(public_key, PresharedKey::default()),
            endpoint: None,
            mtu: 0,
            sessions: Vec::new(),
            reserved: Vec::new(),
            staged: VecDeque::new(),
            initiation: None,
            load: Load::new(),
            rx_bytes: 0,
            tx_bytes: 0,
            staged_dropped: 0,
        }
    }

    /// Uses another static key from now on. What is under way on the old one is still received.
    pub fn set_private_key(&mut self, private_key: PrivateKey) {
        self.identity = Identity::new(private_key);
        self.load.cookies = None;
        self.tunnel.identity_changed();
        self.settle();
    }

    /// Uses this preshared key from the next handshake on; all zeros for none.
    pub fn set_preshared_key(&mut self, preshared_key: PresharedKey) {
        self.tunnel.set_preshared_key(preshared_key);
    }

    /// Where the peer is reached, until it is heard from elsewhere. The next handshake need not wait.
    pub fn set_endpoint(&mut self, endpoint: SocketAddr) {
        self.endpoint = Some(endpoint);
        self.tunnel.allow_initiation_now();
    }

    /// Sends something at least this often, in seconds; 0, as at first, for never. Switched on, a keepalive is due at
    /// once. [WP 6.5]
    pub fn set_persistent_keepalive(&mut self, seconds: u16) {
        if self.tunnel.timers().set_persistent_keepalive(seconds) {
            self.stage_keepalive();
        }
    }

    /// The MTU of the inside, in bytes: padding makes no packet longer than this. 0, as at first, for none.
    pub fn set_mtu(&mut self, mtu: usize) {
        self.mtu = mtu;
    }

    /// Begins a handshake as soon as one may be sent, even if no packet asks for it: drain
    /// [`poll_transmit`](Self::poll_transmit).
    pub fn initiate(&mut self, now: Instant) {
        if self.tunnel.timers().may_initiate(false, now) {
            self.initiation = Some(false);
        }
    }

    /// Ends sessions and handshakes, wipes their keys, drops what waits, and stops all timers, as when a link goes
    /// down. What outlives sessions (timestamps, the endpoint, the configuration) stays.
    pub fn clear(&mut self) {
        self.tunnel.clear();
        self.initiation = None;
        self.settle();
    }
}

/// Getters.
impl Peer {
    /// Where the peer is reached: as configured, or where it was last heard from.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.endpoint
    }

    /// The peer's static public key.
    pub fn public_key(&self) -> PublicKey {
        self.tunnel.remote_static()
    }

    /// When the last handshake completed, by the wall clock.
    pub fn last_handshake(&self) -> Option<UnixTime> {
        self.tunnel.timers().last_handshake()
    }

    /// Whether there is a session to send on.
    pub fn has_session(&self, now: Instant) -> bool {
        self.tunnel.current().is_some_and(|keypair| keypair.may_send(now))
    }

    /// Whether a datagram to this receiver index is for this peer; for whoever sorts datagrams to several.
    pub fn owns_index(&self, index: u32) -> bool {
        self.reserved.contains(&index) || self.sessions.iter().any(|session| session.keypair.local_index() == index)
    }

    /// Bytes of the datagrams that were taken from the peer.
    pub fn rx_bytes(&self) -> u64 {
        self.rx_bytes
    }

    /// Bytes of the datagrams that were made for the peer.
    pub fn tx_bytes(&self) -> u64 {
        self.tx_bytes
    }

    /// Packets that wait for a session.
    pub fn staged(&self) -> usize {
        self.staged.len()
    }

    /// Packets that waited for a session and were dropped: displaced, or none came.
    pub fn staged_dropped(&self) -> u64 {
        self.staged_dropped
    }
}

/// What is called from the loop.
impl Peer {
    /// Sends a packet of the host: seals it, or lets it wait for a session and begins the handshake. `out` gets the
    /// datagram and has at least [`datagram_len`]`(packet.len())` bytes, and as many as any packet that may wait
    /// needs.
    ///
    /// # Errors
    /// [`Rejected::MalformedOutbound`] for what is no IP packet, [`Rejected::NoEndpoint`] where the peer is not known
    /// to be anywhere, [`Rejected::LowOrderPoint`] where its key is none.
    ///
    /// # Panics
    /// If `out` is too short: a programmer's error.
    pub fn encapsulate<'a>(
        &mut self,
        packet: &[u8],
        out: &'a mut [u8],
        now: Now,
        rng: &mut impl CryptoRng,
    ) -> Result<Outcome<'a>, Rejected> {
        let header = Header::parse(packet).ok_or(Rejected::MalformedOutbound)?;
        let packet = &packet[..header.total_len];
        let to = self.endpoint.ok_or(Rejected::NoEndpoint)?;
        if self.staged.is_empty()
            && let Some(len) = self.seal(packet, out, now.instant, rng)
        {
            return Ok(Outcome::Send(Datagram { to, bytes: &out[..len] }));
        }
        self.stage(packet);
        if !self.has_session(now.instant) {
            self.initiate(now.instant);
        }
        self.transmit(out, now, rng)
    }

    /// Takes a datagram that came from `from`, opening it where it lies. `out` gets an answer, if one is due, and has
    /// as many bytes as for [`encapsulate`](Self::encapsulate). Where datagrams have no address, any one will do that
    /// tells one sender from another: it is where cookies are bound to, and what the endpoint becomes.
    ///
    /// # Errors
    /// The rule that the datagram broke. Under load it is [`Rejected::RateLimited`] for who sends too much; who has
    /// not proven its address yet is answered with a cookie reply, as an [`Outcome::Send`].
    ///
    /// # Panics
    /// If `out` is too short: a programmer's error.
    pub fn decapsulate<'a>(
        &mut self,
        from: SocketAddr,
        datagram: &'a mut [u8],
        out: &'a mut [u8],
        now: Now,
        rng: &mut impl CryptoRng,
    ) -> Result<Outcome<'a>, Rejected> {
        assert!(out.len() >= INITIATION_LEN, "out has room for the longest handshake message");
        if let Message::Data(header) = messages::parse(datagram)? {
            return match self.open(from, header, datagram, now)? {
                Some(packet) => Ok(Outcome::Deliver(packet)),
                None => self.transmit(out, now, rng),
            };
        }
        let answer = self.consume(from, datagram, out, now, rng);
        self.settle();
        wipe_stack();
        match answer? {
            Some(len) => Ok(Outcome::Send(Datagram { to: from, bytes: &out[..len] })),
            None => self.transmit(out, now, rng),
        }
    }

    /// The next datagram that is due by itself: an initiation, a packet that waited, a keepalive. `None` when there is
    /// none now. `out` as for [`encapsulate`](Self::encapsulate).
    ///
    /// # Panics
    /// If `out` is too short: a programmer's error.
    pub fn poll_transmit<'a>(&mut self, out: &'a mut [u8], now: Now, rng: &mut impl CryptoRng) -> Option<Datagram<'a>> {
        match self.transmit(out, now, rng) {
            Ok(Outcome::Send(datagram)) => Some(datagram),
            _ => None,
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), as things are; `None` for never.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.tunnel.poll_timeout()
    }

    /// Acts on the timers that have expired. Calling it early or twice does nothing. [WP 6.4]
    pub fn handle_timeout(&mut self, now: Now) {
        self.tunnel.handle_timeout(now.instant);
        self.settle();
    }
}

/// Sending.
impl Peer {
    fn stage(&mut self, packet: &[u8]) {
        if self.staged.len() == STAGED_PACKETS_MAX {
            self.staged.pop_front();
            self.staged_dropped += 1;
        }
        self.staged.push_back(packet.into());
    }

    /// An empty packet, unless something is waiting that will do as well.
    fn stage_keepalive(&mut self) {
        if self.staged.is_empty() {
            self.staged.push_back(Box::default());
        }
    }

    fn transmit<'a>(&mut self, out: &'a mut [u8], now: Now, rng: &mut impl CryptoRng) -> Result<Outcome<'a>, Rejected> {
        let Some(to) = self.endpoint else { return Ok(Outcome::Done) };
        // What waits without a handshake under way begins one; a retry that is due is not a new one.
        let is_under_way = || self.tunnel.timers().deadline(Timer::RetransmitHandshake).is_some();
        if !self.staged.is_empty() && self.initiation.is_none() && !self.has_session(now.instant) && !is_under_way() {
            self.initiate(now.instant);
        }
        let len = match self.initiation.take() {
            Some(retry) => match self.create_initiation(retry, out, now, rng) {
                // The timers try again, or the next packet does.
                Err(Rejected::HandshakeTooSoon) => self.seal_staged(out, now.instant, rng),
                result => Some(result?),
            },
            None => self.seal_staged(out, now.instant, rng),
        };
        Ok(len.map_or(Outcome::Done, |len| Outcome::Send(Datagram { to, bytes: &out[..len] })))
    }

    fn create_initiation(
        &mut self,
        retry: bool,
        out: &mut [u8],
        now: Now,
        rng: &mut impl CryptoRng,
    ) -> Result<usize, Rejected> {
        let index = self.reserve(rng);
        let result = self.tunnel.create_initiation(&self.identity, index, retry, now, rng);
        self.settle();
        wipe_stack();
        let message = result.inspect_err(|_| self.release(index))?;
        out[..INITIATION_LEN].copy_from_slice(&message);
        self.tx_bytes += INITIATION_LEN as u64;
        Ok(INITIATION_LEN)
    }

    fn seal_staged(&mut self, out: &mut [u8], now: Instant, rng: &mut impl CryptoRng) -> Option<usize> {
        let packet = self.staged.pop_front()?;
        let len = self.seal(&packet, out, now, rng);
        if len.is_none() {
            self.staged.push_front(packet);
        }
        len
    }

    /// Makes a data message of a packet; nothing where there is no session for it. [WP 5.4.6]
    fn seal(&mut self, packet: &[u8], out: &mut [u8], now: Instant, rng: &mut impl CryptoRng) -> Option<usize> {
        let keypair = self.tunnel.current()?.clone();
        let len = padded_len(packet.len(), self.mtu) + DATA_OVERHEAD;
        assert!(out.len() >= len, "out has room for the packet, sealed and padded");
        let counter = keypair.number(1, now).ok()?;
        let message = &mut out[..len];
        write_data_header(message, keypair.remote_index(), counter);
        let payload = &mut message[DATA_HEADER_LEN..len - TAG_LEN];
        payload[..packet.len()].copy_from_slice(packet);
        payload[packet.len()..].fill(0);
        keypair.seal_train(counter, message, len);
        if keypair.needs_rekey_on_send(now) {
            self.initiate(now);
        }
        let timers = self.tunnel.timers();
        timers.any_authenticated_packet_sent(now);
        timers.any_authenticated_packet_traversal(now);
        if !packet.is_empty() {
            timers.data_sent(now, rng);
        }
        self.tx_bytes += len as u64;
        Some(len)
    }
}

/// Receiving.
impl Peer {
    /// Opens a data message: the packet in it, or nothing if it is a keepalive.
    fn open<'a>(
        &mut self,
        from: SocketAddr,
        header: DataHeader,
        datagram: &'a mut [u8],
        now: Now,
    ) -> Result<Option<Packet<'a>>, Rejected> {
        let session = self.sessions.iter_mut().find(|session| session.keypair.local_index() == header.receiver);
        let session = session.ok_or(Rejected::UnknownIndex)?;
        session.keypair.may_receive(now.instant)?;
        let sealed_len = datagram.len() - DATA_HEADER_LEN;
        let mut opening = [Opening::new(header.counter, DATA_HEADER_LEN as u32, sealed_len as u32)];
        session.keypair.open_train(datagram, &mut opening);
        let proof = session.window.accept(&opening[0])?;
        let keypair = session.keypair.clone();

        self.heard_from(from, datagram.len(), &proof);
        if keypair.is_unconfirmed() {
            self.tunnel.confirm(header.receiver, now);
            self.settle();
        }
        if keypair.needs_rekey_on_receive(now.instant) && self.tunnel.timers().take_lastminute_handshake() {
            self.initiate(now.instant);
        }
        let timers = self.tunnel.timers();
        timers.any_authenticated_packet_received(now.instant);
        timers.any_authenticated_packet_traversal(now.instant);
        let payload = &datagram[DATA_HEADER_LEN..][..sealed_len - TAG_LEN];
        if payload.is_empty() {
            return Ok(None);
        }
        timers.data_received(now.instant);
        let header = Header::parse(payload).ok_or(Rejected::MalformedInner)?;
        let bytes = &payload[..header.total_len];
        Ok(Some(Packet { source: header.source, destination: header.destination, bytes }))
    }

    /// Consumes a handshake message; the length of the answer to it, if it has one.
    fn consume(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
        now: Now,
        rng: &mut impl CryptoRng,
    ) -> Result<Option<usize>, Rejected> {
        match messages::parse(datagram)? {
            Message::Initiation(message) => {
                self.identity.check_mac1(datagram)?;
                if let Some(len) = self.check_load(from, datagram, (message.sender(), message.mac1()), out, now, rng)? {
                    return Ok(Some(len));
                }
                let opened = self.identity.open_initiation(&message)?;
                let proof = self.tunnel.consume_initiation(&self.identity, opened, now.instant)?;
                self.heard_from(from, datagram.len(), &proof);
                let index = self.reserve(rng);
                let result = self.tunnel.create_response(&self.identity, index, now, rng);
                let (response, keypair) = result.inspect_err(|_| self.release(index))?;
                self.promote(keypair);
                out[..RESPONSE_LEN].copy_from_slice(&response);
                self.tx_bytes += RESPONSE_LEN as u64;
                Ok(Some(RESPONSE_LEN))
            }
            Message::Response(message) => {
                self.identity.check_mac1(datagram)?;
                if let Some(len) = self.check_load(from, datagram, (message.sender(), message.mac1()), out, now, rng)? {
                    return Ok(Some(len));
                }
                let (proof, keypair) = self.tunnel.consume_response(&self.identity, &message, now)?;
                self.promote(keypair);
                self.heard_from(from, datagram.len(), &proof);
                Ok(None)
            }
            Message::CookieReply(message) => {
                if !self.owns_index(message.receiver()) {
                    return Err(Rejected::UnknownIndex);
                }
                self.tunnel.consume_cookie_reply(&message, now.instant)?;
                Ok(None)
            }
            Message::Data(_) => Err(Rejected::MalformedMessage),
        }
    }

    /// [WP 5.3] Under load a message must prove its source by mac2, and come at a bearable rate; otherwise it is
    /// answered with a cookie, whose length this is, before any Diffie-Hellman.
    fn check_load(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        (sender, mac1): (u32, &[u8; MAC_LEN]),
        out: &mut [u8],
        now: Now,
        rng: &mut impl CryptoRng,
    ) -> Result<Option<usize>, Rejected> {
        let now = now.instant;
        if !self.load.is_high(now) {
            return Ok(None);
        }
        let public_key = self.identity.public_key();
        let cookies = self.load.cookies.get_or_insert_with(|| CookieChecker::new(&public_key, now, rng));
        if cookies.check_mac2(datagram, from, now, rng) {
            return if self.load.limiter.allow(from.ip(), now) { Ok(None) } else { Err(Rejected::RateLimited) };
        }
        out[..COOKIE_REPLY_LEN].copy_from_slice(&cookies.create_reply(mac1, sender, from, now, rng));
        Ok(Some(COOKIE_REPLY_LEN))
    }

    fn heard_from(&mut self, from: SocketAddr, len: usize, _proof: &Authenticated) {
        self.endpoint = Some(from);
        self.rx_bytes += len as u64;
    }
}

/// Indices and events.
impl Peer {
    /// A random index that names nothing else of this peer.
    fn reserve(&mut self, rng: &mut impl CryptoRng) -> u32 {
        loop {
            let index = rng.next_u32();
            if !self.owns_index(index) {
                self.reserved.push(index);
                return index;
            }
        }
    }

    fn release(&mut self, index: u32) {
        self.reserved.retain(|reserved| *reserved != index);
        self.sessions.retain(|session| session.keypair.local_index() != index);
    }

    /// The index of this keypair names a session from now on.
    fn promote(&mut self, keypair: Arc<Keypair>) {
        self.reserved.retain(|reserved| *reserved != keypair.local_index());
        self.sessions.push(Session { keypair, window: ReplayWindow::new() });
    }

    /// Does what the tunnel asks for.
    fn settle(&mut self) {
        while let Some(event) = self.tunnel.poll_event() {
            match event {
                TunnelEvent::ReleaseIndex(index) => self.release(index),
                TunnelEvent::SendInitiation { retry } => self.initiation = Some(retry),
                TunnelEvent::SendKeepalive => self.stage_keepalive(),
                TunnelEvent::PurgeStaged => {
                    let dropped = self.staged.drain(..).filter(|packet| !packet.is_empty()).count();
                    self.staged_dropped += dropped as u64;
                }
                // What waits is looked at with every poll; the source is the caller's, and it sees a failure by
                // what is dropped.
                TunnelEvent::SendStaged
                | TunnelEvent::CurrentChanged
                | TunnelEvent::ClearSource
                | TunnelEvent::HandshakeFailed => {}
            }
        }
    }
}
