//! The slow path: everything that is rare, on one thread.
//!
//! - handshake messages that the workers found to have a right mac1: consume, answer, cookies
//! - what the data path wishes of a peer: a handshake, a keypair confirmed, a timer looked at
//! - the timers of every peer, through one ordered table of appointments
//! - the link: up, down, MTU, routes, gone
//!
//! It sleeps until one of these is due: nothing ticks. A peer's tunnel is locked for one step at a
//! time; what the step asks for (`TunnelEvent`s) is carried out before the lock is given back, so
//! that index table, sending keypair and tunnel never disagree.
//!
//! An appointment is the earliest deadline of a peer when it was last looked at. The data path arms
//! timers without a lock and tells this thread only when its appointment would be too late: a busy
//! peer costs a look every ten seconds, an idle one none.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use getrandom::SysRng;
use rand_core::UnwrapErr;
use tracing::{debug, error};

use super::builder::CloseReason;
use super::peer::{Endpoint, Peer, Wish};
use super::time::{now, now_both, to_sleep};
use super::{HandshakeDatagram, Shared};
use crate::proto::constants::{UNDER_LOAD_AT, UNDER_LOAD_FOR};
use crate::proto::cookie::CookieChecker;
use crate::proto::crypto::wipe_stack;
use crate::proto::handshake::Identity;
use crate::proto::messages::{self, CookieReply, Initiation, MAC_LEN, Message, Response};
use crate::proto::ratelimiter::RateLimiter;
use crate::proto::rejected::Rejected;
use crate::proto::time::{Instant, Now};
use crate::proto::tunnel::{Tunnel, TunnelEvent};
use crate::sys::poll::{Poll, Ready, Token, Trigger};
use crate::tun::{Readiness, TunEvent, TunEvents, Wake};
use crate::udp::{Sent, Transmit};

const LINK: Token = Token(1);

/// DSCP AF41, as the kernel marks handshake messages. [KERNEL-DSCP]
const HANDSHAKE_TOS: u8 = 0x88;
/// Handshake messages handled before the thread turns to timers and wishes again.
const HANDSHAKES_PER_TURN: usize = 64;
/// What it waits for: the link, and being signalled.
const SOURCES: usize = 2;
/// A port that was taken when the link came up is tried again after this.
const BIND_RETRY_AFTER: Duration = Duration::from_secs(1);
/// The thread's state.
pub(crate) struct Control {
    shared: Arc<Shared>,
    poll: Poll,
    link: Box<dyn TunEvents>,
    /// (when, the peer's order of addition) → the peer: one entry for each that has a deadline.
    appointments: BTreeMap<(u64, u64), Arc<Peer>>,
    cookies: Option<Cookies>,
    limiter: RateLimiter,
    under_load_until: Instant,
    bind_retry_at: Option<Instant>,
    rng: UnwrapErr<SysRng>,
}

/// Cookies are made for one public key.
struct Cookies {
    identity: Arc<Identity>,
    checker: CookieChecker,
}

impl Control {
    pub(crate) fn new(shared: Arc<Shared>, poll: Poll, link: Box<dyn TunEvents>) -> Self {
        Self {
            shared,
            poll,
            link,
            appointments: BTreeMap::new(),
            cookies: None,
            limiter: RateLimiter::new(),
            under_load_until: Instant::default(),
            bind_retry_at: None,
            rng: UnwrapErr(SysRng),
        }
    }

    /// Runs until the device closes, and says why it did.
    pub(crate) fn run(mut self) -> io::Result<CloseReason> {
        if let Readiness::Fd(fd) = self.link.readiness(self.wake()) {
            self.poll.add(fd, LINK, Trigger::Edge)?;
        }
        let mut ready = Ready::with_capacity(SOURCES);
        loop {
            self.shared.control.signal.acknowledge();
            if self.shared.closing.load(Ordering::Acquire) {
                return Ok(CloseReason::Requested);
            }
            if self.follow_link()? {
                return Ok(CloseReason::TunDeleted);
            }
            self.grant_wishes();
            let more = self.handle_handshakes();
            self.keep_appointments();
            let wait = if more { Some(Duration::ZERO) } else { self.next_appointment() };
            self.poll.wait(&mut ready, wait)?;
        }
    }

    fn wake(&self) -> Wake {
        let shared = Arc::downgrade(&self.shared);
        Arc::new(move || {
            if let Some(shared) = shared.upgrade() {
                shared.control.signal.wake();
            }
        })
    }

    // --- the link ----------------------------------------------------------------------------

    /// Does what link events ask for. True when the interface is gone.
    fn follow_link(&mut self) -> io::Result<bool> {
        while let Some(event) = self.link.next()? {
            match event {
                TunEvent::Up => self.link_up(),
                TunEvent::Down => self.link_down()?,
                TunEvent::Mtu(mtu) => {
                    debug!("MTU updated: {mtu}");
                    self.shared.mtu.store(mtu, Ordering::Relaxed);
                }
                TunEvent::Index(index) => self.shared.tun_index.store(index, Ordering::Relaxed),
                TunEvent::Routes => self.routes_changed(),
                TunEvent::Deleted => {
                    debug!("Interface deleted");
                    return Ok(true);
                }
            }
        }
        if self.bind_retry_at.is_some_and(|at| at <= now()) {
            self.link_up();
        }
        Ok(false)
    }

    fn link_up(&mut self) {
        self.bind_retry_at = None;
        match self.shared.link_up() {
            Ok(false) => {}
            Ok(true) => {
                debug!("Interface state was Down, requested Up, now Up");
                // [KERNEL-DOWN] Only who has a persistent keepalive speaks by himself.
                for peer in self.all_peers() {
                    self.with_tunnel(&peer, now_both(), |_, tunnel, _| tunnel.allow_initiation_now());
                    if peer.timers.persistent_keepalive() != 0 {
                        self.send_keepalive(&peer);
                    } else if peer.has_staged() {
                        self.shared.want_flush(&peer);
                    }
                }
            }
            Err(error) => {
                error!("Unable to bind the UDP port: {error}; trying again");
                self.bind_retry_at = Some(now() + BIND_RETRY_AFTER);
            }
        }
    }

    // [KERNEL-DOWN] Sessions and handshakes end with the link, whether or not it comes back.
    fn link_down(&mut self) -> io::Result<()> {
        self.bind_retry_at = None;
        if !self.shared.link_down()? {
            return Ok(());
        }
        debug!("Interface state was Up, requested Down, now Down");
        for peer in self.all_peers() {
            self.with_tunnel(&peer, now_both(), |_, tunnel, _| tunnel.clear());
            peer.clear_source();
        }
        Ok(())
    }

    /// An address or a route changed: where datagrams leave from is for the routing to say again.
    /// [KERNEL-STICKY]
    fn routes_changed(&mut self) {
        for peer in self.all_peers() {
            peer.clear_source();
        }
    }

    fn all_peers(&self) -> Vec<Arc<Peer>> {
        self.shared.routes.load().peers.iter().flatten().cloned().collect()
    }

    // --- wishes and timers -------------------------------------------------------------------

    fn grant_wishes(&mut self) {
        while let Some(peer) = self.shared.control.pop() {
            let wishes = peer.take_wishes();
            if peer.is_removed() {
                self.reschedule(&peer);
                continue;
            }
            let now = now_both();
            if wishes.has(Wish::CONFIRM) {
                self.with_tunnel(&peer, now, |_, tunnel, now| peer.confirm(tunnel, now));
            }
            if wishes.has(Wish::HANDSHAKE) {
                self.with_tunnel(&peer, now, |control, tunnel, now| {
                    control.send_initiation(&peer, tunnel, false, now);
                });
            }
            if wishes.has(Wish::KEEPALIVE) {
                self.send_keepalive(&peer);
            }
            self.reschedule(&peer);
            if wishes.has(Wish::HANDSHAKE) {
                wipe_stack();
            }
        }
    }

    fn keep_appointments(&mut self) {
        let now = now_both();
        while let Some(entry) = self.appointments.first_entry() {
            if entry.key().0 > now.instant.as_nanos() {
                return;
            }
            let peer = entry.remove();
            peer.keep_appointment();
            self.with_tunnel(&peer, now, |_, tunnel, now| tunnel.handle_timeout(now.instant));
            self.reschedule(&peer);
            wipe_stack();
        }
    }

    /// How long to sleep; for ever when nothing is due.
    fn next_appointment(&self) -> Option<Duration> {
        let appointment = self.appointments.keys().next().map(|&(at, _)| Instant::from_nanos(at));
        let next = appointment.into_iter().chain(self.bind_retry_at).min()?;
        // epoll counts milliseconds: a moment too late rather than too early, which would spin.
        Some(to_sleep(next.since(now())) + Duration::from_micros(999))
    }

    /// Makes the appointment for the peer's earliest deadline; a peer that was removed has none.
    fn reschedule(&mut self, peer: &Arc<Peer>) {
        let (held, deadline) = peer.make_appointment();
        if let Some(deadline) = deadline {
            if deadline == held {
                return;
            }
            self.appointments.insert((deadline, peer.added), peer.clone());
        }
        self.appointments.remove(&(held, peer.added));
    }

    // --- tunnels -----------------------------------------------------------------------------

    /// Takes one step with a peer's tunnel and carries out what it asks for.
    fn with_tunnel<T>(&mut self, peer: &Arc<Peer>, now: Now, step: impl FnOnce(&mut Self, &mut Tunnel, Now) -> T) -> T {
        let mut tunnel = peer.tunnel();
        peer.confirm_wished(&mut tunnel, now);
        let keepalive_before = self.carry_out(peer, &mut tunnel, now);
        let result = step(self, &mut tunnel, now);
        let keepalive = self.carry_out(peer, &mut tunnel, now);
        drop(tunnel);
        if keepalive_before || keepalive {
            self.send_keepalive(peer);
        }
        result
    }

    /// Carries out what a step has asked for, but for a keepalive, which needs the tunnel to be free: true if there is to be
    /// one.
    fn carry_out(&mut self, peer: &Arc<Peer>, tunnel: &mut Tunnel, now: Now) -> bool {
        let mut keepalive = false;
        while let Some(event) = tunnel.poll_event() {
            match event {
                TunnelEvent::SendInitiation { retry } => self.send_initiation(peer, tunnel, retry, now),
                TunnelEvent::SendKeepalive => keepalive = true,
                other => self.shared.settle(peer, tunnel, other),
            }
        }
        keepalive
    }

    /// An empty packet, unless something is waiting that will do as well; in order with the others. Where
    /// the endpoint is not known yet it waits for that.
    fn send_keepalive(&self, peer: &Arc<Peer>) {
        if peer.endpoint().is_some() {
            debug!("{peer} - Sending keepalive packet");
        }
        peer.stage_keepalive();
        self.shared.want_flush(peer);
    }

    fn send_initiation(&mut self, peer: &Arc<Peer>, tunnel: &mut Tunnel, retry: bool, now: Now) {
        let shared = self.shared.clone();
        let identity = shared.identity.load();
        let (Some(identity), Some(endpoint)) = (identity.as_ref(), peer.endpoint()) else { return };
        if peer.is_removed() {
            return;
        }
        let Some(index) = shared.indices.reserve(peer, &mut self.rng) else {
            return shared.drops.count(Rejected::QueueFull, 1);
        };
        match tunnel.create_initiation(identity, index, retry, now, &mut self.rng) {
            Ok(message) => {
                debug!("{peer} - Sending handshake initiation");
                self.send_message(peer, endpoint, &message);
            }
            Err(reason) => {
                shared.indices.release(index);
                if reason != Rejected::HandshakeTooSoon {
                    debug!("{peer} - Failed to create initiation message: {reason:?}");
                }
            }
        }
    }

    /// Sends a handshake message to a peer and counts it.
    fn send_message(&mut self, peer: &Peer, endpoint: Endpoint, message: &[u8]) {
        let sent = self.send_to(endpoint, message);
        if sent.source_lost {
            peer.clear_source();
        }
        peer.tx_bytes.fetch_add(sent.bytes as u64, Ordering::Relaxed);
    }

    fn send_to(&mut self, to: Endpoint, message: &[u8]) -> Sent {
        let sent = self.shared.send_one(Transmit {
            to: to.address,
            source: to.source,
            tos: HANDSHAKE_TOS,
            segment: message.len(),
            data: message,
            offload: false,
        });
        self.shared.drops.count(Rejected::SendFailed, sent.refused as u64);
        sent
    }

    // --- handshake messages ------------------------------------------------------------------

    /// Handles some of what waits; true if there is more.
    fn handle_handshakes(&mut self) -> bool {
        for _ in 0..HANDSHAKES_PER_TURN {
            let now = now_both();
            if self.shared.handshakes.len() >= UNDER_LOAD_AT {
                self.under_load_until = now.instant + UNDER_LOAD_FOR;
            }
            let Some(datagram) = self.shared.handshakes.pop() else { return false };
            if let Err(reason) = self.handle_handshake(&datagram, now) {
                debug!("Handshake message from {} dropped: {reason:?}", datagram.from);
                self.shared.drops.count(reason, 1);
            }
            wipe_stack();
        }
        true
    }

    fn handle_handshake(&mut self, datagram: &HandshakeDatagram, now: Now) -> Result<(), Rejected> {
        let identity = self.shared.identity.load_full().ok_or(Rejected::NoPrivateKey)?;
        // The key may have changed since the worker checked.
        match messages::parse(datagram.bytes())? {
            Message::Initiation(message) => {
                identity.check_mac1(datagram.bytes())?;
                self.check_load(&identity, datagram, (message.sender(), message.mac1()), now)?;
                self.consume_initiation(&identity, message, datagram, now)
            }
            Message::Response(message) => {
                identity.check_mac1(datagram.bytes())?;
                self.check_load(&identity, datagram, (message.sender(), message.mac1()), now)?;
                self.consume_response(&identity, message, datagram, now)
            }
            Message::CookieReply(message) => self.consume_cookie_reply(message, now),
            Message::Data(_) => Err(Rejected::MalformedMessage),
        }
    }

    /// [WP 5.3] Under load a message must prove its source by mac2, and come at a bearable rate;
    /// otherwise it is answered with a cookie, before any Diffie-Hellman.
    fn check_load(
        &mut self,
        identity: &Arc<Identity>,
        datagram: &HandshakeDatagram,
        (sender, mac1): (u32, &[u8; MAC_LEN]),
        now: Now,
    ) -> Result<(), Rejected> {
        if now.instant >= self.under_load_until {
            return Ok(());
        }
        let cookies = match self.cookies.take() {
            Some(cookies) if Arc::ptr_eq(&cookies.identity, identity) => self.cookies.insert(cookies),
            _ => self.cookies.insert(Cookies {
                identity: identity.clone(),
                checker: CookieChecker::new(&identity.public_key(), now.instant, &mut self.rng),
            }),
        };
        if cookies.checker.check_mac2(datagram.bytes(), datagram.from, now.instant, &mut self.rng) {
            return if self.limiter.allow(datagram.from.ip(), now.instant) {
                Ok(())
            } else {
                Err(Rejected::RateLimited)
            };
        }
        let reply = cookies.checker.create_reply(mac1, sender, datagram.from, now.instant, &mut self.rng);
        debug!("Sending cookie response for denied handshake message for {}", datagram.from);
        self.send_to(Endpoint { address: datagram.from, source: datagram.source }, &reply);
        Err(Rejected::CookieRequired)
    }

    fn consume_initiation(
        &mut self,
        identity: &Identity,
        message: Initiation<'_>,
        datagram: &HandshakeDatagram,
        now: Now,
    ) -> Result<(), Rejected> {
        let opened = identity.open_initiation(&message)?;
        let peer = self.shared.peer_by_key(&opened.remote_static()).ok_or(Rejected::UnknownPeer)?;
        let endpoint = Endpoint { address: datagram.from, source: datagram.source };
        self.with_tunnel(&peer, now, |control, tunnel, now| {
            if peer.is_removed() {
                return Err(Rejected::UnknownPeer);
            }
            let shared = control.shared.clone();
            let proof = tunnel.consume_initiation(identity, opened, now.instant)?;
            shared.heard_from(&peer, endpoint, &proof);
            peer.rx_bytes.fetch_add(datagram.bytes().len() as u64, Ordering::Relaxed);
            debug!("{peer} - Received handshake initiation");
            let index = shared.indices.reserve(&peer, &mut control.rng).ok_or(Rejected::QueueFull)?;
            match tunnel.create_response(identity, index, now, &mut control.rng) {
                Ok((response, keypair)) => {
                    shared.indices.promote(index, keypair);
                    debug!("{peer} - Sending handshake response");
                    control.send_message(&peer, endpoint, &response);
                    Ok(())
                }
                Err(reason) => {
                    shared.indices.release(index);
                    Err(reason)
                }
            }
        })?;
        self.reschedule(&peer);
        Ok(())
    }

    fn consume_response(
        &mut self,
        identity: &Identity,
        message: Response<'_>,
        datagram: &HandshakeDatagram,
        now: Now,
    ) -> Result<(), Rejected> {
        let entry = self.shared.indices.get(message.receiver()).ok_or(Rejected::UnknownIndex)?;
        let peer = &entry.peer;
        self.with_tunnel(peer, now, |control, tunnel, now| {
            let (proof, keypair) = tunnel.consume_response(identity, &message, now)?;
            control.shared.indices.promote(message.receiver(), keypair);
            control.shared.heard_from(peer, Endpoint { address: datagram.from, source: datagram.source }, &proof);
            peer.rx_bytes.fetch_add(datagram.bytes().len() as u64, Ordering::Relaxed);
            debug!("{peer} - Received handshake response");
            Ok(())
        })?;
        self.reschedule(peer);
        Ok(())
    }

    fn consume_cookie_reply(&mut self, message: CookieReply<'_>, now: Now) -> Result<(), Rejected> {
        let entry = self.shared.indices.get(message.receiver()).ok_or(Rejected::UnknownIndex)?;
        self.with_tunnel(&entry.peer, now, |_, tunnel, now| tunnel.consume_cookie_reply(&message, now.instant))
    }
}
