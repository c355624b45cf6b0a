//! The slow state of one peer: its handshake, its keypairs, its cookie, its timers.
//!
//! **Bytes, the time and randomness go in; bytes, keypairs and events come out. After every call that
//! takes `&mut self`, drain [`Tunnel::poll_event`]; look again no later than
//! [`Tunnel::poll_timeout`].** The loop to write:
//!
//! ```text
//! loop {
//!     // 1. A handshake message came. The claim of an initiation says whose tunnel it is for; the
//!     //    receiver index of a response or a cookie reply does.
//!     initiation:   opened = identity.open_initiation(&message)?
//!                   endpoint.set(tunnel.consume_initiation(&identity, opened, now)?)
//!                   (response, keypair) = tunnel.create_response(&identity, index, now, rng)?
//!                   index names keypair from now on; send response
//!     response:     (authenticated, keypair) = tunnel.consume_response(&identity, &message, now)?
//!                   endpoint.set(authenticated); the index names keypair from now on
//!     cookie reply: tunnel.consume_cookie_reply(&message, now)?
//!     // 2. The data path accepted a packet on a keypair of which is_unconfirmed() is true.
//!     data:         tunnel.confirm(index, now)
//!     // 3. The sleep is over.
//!     timeout:      tunnel.handle_timeout(now)
//!     // 4. After each of them:
//!     while let Some(event) = tunnel.poll_event() { act on it }
//!     sleep until tunnel.poll_timeout(), a message, or an event of the data path that armed an
//!     earlier deadline
//! }
//! ```
//!
//! Data never comes here: it is sealed and opened by [`Keypair`], which any thread may hold, and it
//! reports to [`Timers`], which need no lock.
//!
//! # Crossed initiations
//! Differs from the kernel: when both sides initiate at once, the kernel's answer to the other's
//! initiation discards its own, both wait for a confirmation that neither may send, and the retry 5 s
//! later settles it. Here our initiation is put aside while the peer's is answered, and goes on to
//! wait for its response for REKEY_TIMEOUT. If both responses arrive, the session that the greater
//! public key initiated is the one that both send on; the other one is received on until it is
//! replaced. If one arrives, its session is the one. Either way both sides agree after one round
//! trip, and exactly one of them is the initiator who renews the session. All that shows on the wire is
//! one keepalive, by which the side that gives way says that it has the other session; a peer that does
//! not do so is settled with at once, too.
//!
//! The peer may have no session but the one that lost, after all (it was restarted, its messages were
//! lost). What it sends on that may be from before it heard of the other one: it is remembered, and if
//! nothing has come on the other one after CROSSING_SETTLES_WITHIN, we send on the one that lost, too.
//! Data on the other one that comes later still brings us back.
//!
//! # Invariants
//! - [`Authenticated`] comes from here and from the replay window alone, after the proof;
//! - a local index that was given is reported by [`TunnelEvent::ReleaseIndex`] exactly once, when
//!   nothing answers to it any more; a handshake's index passes on to its keypair in silence;
//! - a verb that fails keeps the index that it was given out of use, and releases none;
//! - after [`Tunnel::clear`], and 540 s after the last session, no key is left.
//!
//! [WP 5.4]

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::mem;

use rand_core::CryptoRng;
use subtle::ConstantTimeEq;

use super::constants::REKEY_TIMEOUT;
use super::cookie::CookieJar;
use super::handshake::{CreatedInitiation, DerivedKeys, Handshake, Identity, OpenedInitiation};
use super::keypair::{Dropped, Heard, Keypair, Keypairs};
use super::messages::{CookieReply, INITIATION_LEN, RESPONSE_LEN, Response};
use super::rejected::Rejected;
use super::tai64n::Tai64n;
use super::time::{Instant, Now};
use super::timers::{Expired, Timers};
use crate::key::{PresharedKey, PublicKey};

/// Proof that the peer itself sent what has just been consumed or accepted: an initiation, a response
/// or data, never a cookie reply. Only with it in hand may an endpoint move.
#[derive(Debug, PartialEq, Eq)]
pub struct Authenticated(());

impl Authenticated {
    /// Made where the tag was verified, and nowhere else.
    pub(super) const fn proof() -> Self {
        Self(())
    }
}

/// What the owner of a tunnel has to do, in the order in which it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TunnelEvent {
    /// Nothing answers to this local index any more.
    ReleaseIndex(u32),
    /// Another keypair, or none, is sent on: read [`Tunnel::current`].
    CurrentChanged,
    /// Send what is staged, if anything is.
    SendStaged,
    /// Take an index and send [`Tunnel::create_initiation`].
    SendInitiation {
        /// As its argument.
        retry: bool,
    },
    /// Send what is staged, or an empty packet if nothing is, which is staged where there is no keypair.
    SendKeepalive,
    /// Drop what is staged.
    PurgeStaged,
    /// No handshake was answered for REKEY_ATTEMPT_TIME; none is tried any more until there is something to send.
    HandshakeFailed,
    /// Forget the source address that the peer was reached from.
    ClearSource,
}

/// The most events that one call leaves: handling every timer at once leaves fifteen.
const EVENTS_MAX: usize = 16;

/// Our initiation, while one of the peer's crosses it.
enum Crossing {
    /// Nothing crossed.
    None,
    /// Theirs was consumed and waits to be answered; ours is put aside.
    Aside(Box<CreatedInitiation>),
    /// Theirs was answered; ours waits for its response in the handshake.
    Answered,
}

/// The slow state of one peer. See the [module](self) for the loop around it.
pub struct Tunnel {
    handshake: Handshake,
    crossing: Crossing,
    /// When the initiation that the handshake waits on was created.
    initiated: Instant,
    keypairs: Keypairs,
    cookie_jar: CookieJar,
    timers: Arc<Timers>,
    events: VecDeque<TunnelEvent>,
}

/// Getters and configuration.
impl Tunnel {
    /// A peer without history.
    pub fn new(remote_static: PublicKey, preshared_key: PresharedKey) -> Self {
        Self {
            handshake: Handshake::new(remote_static, preshared_key),
            crossing: Crossing::None,
            initiated: Instant::default(),
            keypairs: Keypairs::default(),
            cookie_jar: CookieJar::new(),
            timers: Arc::new(Timers::new()),
            events: VecDeque::new(),
        }
    }

    /// The peer's static public key: its name.
    pub fn remote_static(&self) -> PublicKey {
        self.handshake.remote_static()
    }

    /// The preshared key; all zeros if there is none.
    pub fn preshared_key(&self) -> &PresharedKey {
        self.handshake.preshared_key()
    }

    /// The timers, shared with the data path.
    pub fn timers(&self) -> &Arc<Timers> {
        &self.timers
    }

    /// The keypair that is sent on.
    pub fn current(&self) -> Option<&Arc<Keypair>> {
        self.keypairs.current()
    }

    /// All keypairs.
    pub fn keypairs(&self) -> &Keypairs {
        &self.keypairs
    }

    /// Uses this preshared key from the next handshake on. The live session goes on; setting the same
    /// key again changes nothing.
    pub fn set_preshared_key(&mut self, preshared_key: PresharedKey) {
        if !bool::from(self.preshared_key().ct_eq(&preshared_key)) {
            self.handshake.set_preshared_key(preshared_key);
        }
    }

    /// Our private key is another one: ends sending on all keypairs (what is under way is still
    /// received) and forgets all that came from the old key; the next handshake may begin at once.
    pub fn identity_changed(&mut self) {
        self.forget_handshake();
        self.handshake.identity_changed();
        self.keypairs.expire_sending();
        self.allow_initiation_now();
    }

    /// The next initiation need not wait for REKEY_TIMEOUT: an endpoint was configured, the link came up.
    pub fn allow_initiation_now(&mut self) {
        self.timers.forget_handshake_sent();
    }

    /// Stops the peer: removes the timers and wipes the handshake and all keypairs. What outlives
    /// sessions (the greatest timestamp, the cookie) stays.
    pub fn clear(&mut self) {
        self.timers.stop();
        self.zero_key_material();
        self.allow_initiation_now();
    }
}

/// Handshake messages that we send.
impl Tunnel {
    /// Begins a handshake, or begins it again: the message to send. `retry` is false unless the event
    /// says so. Nothing was sent before for REKEY_TIMEOUT, or this is [`Rejected::HandshakeTooSoon`];
    /// a peer whose key is a low-order point gives [`Rejected::LowOrderPoint`]. [WP 5.4.2] [WP 6.4]
    pub fn create_initiation(
        &mut self,
        identity: &Identity,
        local_index: u32,
        retry: bool,
        now: Now,
        rng: &mut impl CryptoRng,
    ) -> Result<[u8; INITIATION_LEN], Rejected> {
        if !self.timers.may_initiate(retry, now.instant) {
            return Err(Rejected::HandshakeTooSoon);
        }
        self.timers.handshake_sent(now.instant);
        let replaced = self.handshake.local_index();
        let timestamp = Tai64n::from_unix(now.unix);
        let mut message = self.handshake.create_initiation(identity, local_index, timestamp, rng)?;
        self.release(replaced);
        self.end_crossing();
        self.initiated = now.instant;
        self.cookie_jar.add_macs(&self.handshake.remote_static(), &mut message, now.instant);
        self.timers.any_authenticated_packet_traversal(now.instant);
        self.timers.any_authenticated_packet_sent(now.instant);
        self.timers.handshake_initiated(now.instant, rng);
        Ok(message)
    }

    /// Answers the initiation that was consumed: the message to send, and the keypair, which
    /// `local_index` names from now on. It may not be sent on before [`confirm`](Self::confirm).
    /// Fails with [`Rejected::NoHandshake`] or [`Rejected::LowOrderPoint`]. [WP 5.4.3]
    pub fn create_response(
        &mut self,
        identity: &Identity,
        local_index: u32,
        now: Now,
        rng: &mut impl CryptoRng,
    ) -> Result<([u8; RESPONSE_LEN], Arc<Keypair>), Rejected> {
        self.timers.response_sent(now.instant, rng);
        let (mut message, keys) = self.handshake.create_response(local_index, rng)?;
        if let Crossing::Aside(ours) = mem::replace(&mut self.crossing, Crossing::None) {
            self.handshake.take_up(ours);
            self.crossing = Crossing::Answered;
        }
        self.cookie_jar.add_macs(&self.handshake.remote_static(), &mut message, now.instant);
        let keypair = self.derive(keys, now.instant);
        let dropped = self.keypairs.add_responder(keypair.clone(), self.ours_wins(identity));
        self.release_dropped(dropped);
        self.timers.any_authenticated_packet_traversal(now.instant);
        self.timers.any_authenticated_packet_sent(now.instant);
        Ok((message, keypair))
    }
}

/// Messages that came.
impl Tunnel {
    /// Accepts an initiation of this peer; it is to be answered at once. Fails as
    /// [`Handshake::consume_initiation`] does, and then nothing has changed. [WP 5.4.2]
    pub fn consume_initiation(
        &mut self,
        identity: &Identity,
        opened: OpenedInitiation,
        now: Instant,
    ) -> Result<Authenticated, Rejected> {
        let ours = self.handshake.put_aside();
        if let Err(rejected) = self.handshake.consume_initiation(identity, opened, now) {
            ours.into_iter().for_each(|ours| self.handshake.take_up(ours));
            return Err(rejected);
        }
        if let Some(ours) = ours {
            if now.since(self.initiated) < REKEY_TIMEOUT {
                self.crossing = Crossing::Aside(ours);
            } else {
                self.crossing = Crossing::None;
                self.release(Some(ours.local_index()));
            }
        }
        Ok(self.authenticated(now))
    }

    /// Accepts the response to our initiation: its keypair is current, the initiation's index names
    /// it, and a keepalive is due that shows it to the peer. Fails as
    /// [`Handshake::consume_response`] does, and then nothing has changed. [WP 5.4.3]
    pub fn consume_response(
        &mut self,
        identity: &Identity,
        message: &Response<'_>,
        now: Now,
    ) -> Result<(Authenticated, Arc<Keypair>), Rejected> {
        let crossed = matches!(self.crossing, Crossing::Answered);
        if crossed && now.instant.since(self.initiated) >= REKEY_TIMEOUT {
            // The peer has long settled for its own handshake.
            return Err(Rejected::NoHandshake);
        }
        let keys = self.handshake.consume_response(identity, message)?;
        let keypair = self.derive(keys, now.instant);
        let dropped = if crossed && self.keypairs.next().is_some() {
            self.keypairs.add_crossed_initiator(keypair.clone(), self.ours_wins(identity))
        } else {
            self.keypairs.add_initiator(keypair.clone())
        };
        self.crossing = Crossing::None;
        self.release_dropped(dropped);
        self.timers.handshake_complete(now);
        self.push(TunnelEvent::CurrentChanged);
        self.push(TunnelEvent::SendKeepalive);
        Ok((self.authenticated(now.instant), keypair))
    }

    /// Takes the cookie of a reply to our last message. It proves nothing about where the peer is.
    /// Fails with [`Rejected::UnexpectedCookie`] or [`Rejected::BadTag`]. [WP 5.4.7]
    pub fn consume_cookie_reply(&mut self, message: &CookieReply<'_>, now: Instant) -> Result<(), Rejected> {
        self.cookie_jar.consume_reply(&self.handshake.remote_static(), message, now)
    }

    /// Valid data came on the keypair of `local_index`. The first on the one that we responded with
    /// makes it current. Returns whether another one is current now. To be called as long as
    /// [`Keypair::is_unconfirmed`] says so. [WP 5.4.5]
    pub fn confirm(&mut self, local_index: u32, now: Now) -> bool {
        match self.keypairs.heard_on(local_index, now) {
            Heard::Nothing => return false,
            Heard::DecideAt(at) => {
                self.timers.settle_crossing_at(at);
                return false;
            }
            Heard::Decided => {
                self.timers.crossing_settled();
                return false;
            }
            Heard::ConfirmNext { tell } => {
                self.confirm_next(now);
                self.push(if tell { TunnelEvent::SendKeepalive } else { TunnelEvent::SendStaged });
            }
            Heard::ReturnToPrevious => {
                self.keypairs.return_to_previous();
                self.push(TunnelEvent::CurrentChanged);
            }
        }
        true
    }

    fn confirm_next(&mut self, now: Now) {
        if matches!(self.crossing, Crossing::Answered) {
            // The peer sends on the session that it initiated: ours is not wanted any more.
            self.forget_handshake();
        }
        let dropped = self.keypairs.confirm_next();
        self.release_dropped(dropped);
        self.timers.handshake_complete(now);
        self.timers.crossing_settled();
        self.push(TunnelEvent::CurrentChanged);
    }
}

/// Timers and events.
impl Tunnel {
    /// When to call [`handle_timeout`](Self::handle_timeout), as things are; `None` for never.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next_deadline()
    }

    /// Acts on all timers that have expired. Calling it early or twice does nothing. [WP 6.4]
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(expired) = self.timers.take_expired(now) {
            match expired {
                Expired::RetryHandshake => {
                    self.push(TunnelEvent::ClearSource);
                    self.push(TunnelEvent::SendInitiation { retry: true });
                }
                Expired::GiveUpHandshake => {
                    self.push(TunnelEvent::PurgeStaged);
                    self.push(TunnelEvent::HandshakeFailed);
                }
                Expired::SendKeepalive | Expired::PersistentKeepalive => self.push(TunnelEvent::SendKeepalive),
                Expired::NewHandshake => {
                    self.push(TunnelEvent::ClearSource);
                    self.push(TunnelEvent::SendInitiation { retry: false });
                }
                Expired::ZeroKeyMaterial => self.zero_key_material(),
                Expired::SettleCrossing => {
                    if let Some(heard) = self.keypairs.only_heard_on_next(now) {
                        self.confirm_next(heard);
                        self.push(TunnelEvent::SendStaged);
                    }
                }
            }
        }
    }

    /// What is to be done next; `None` when nothing is left.
    pub fn poll_event(&mut self) -> Option<TunnelEvent> {
        self.events.pop_front()
    }

    fn push(&mut self, event: TunnelEvent) {
        debug_assert!(self.events.len() < EVENTS_MAX, "events are drained after every call");
        self.events.push_back(event);
    }

    fn release(&mut self, index: Option<u32>) {
        index.into_iter().for_each(|index| self.push(TunnelEvent::ReleaseIndex(index)));
    }

    fn release_dropped(&mut self, dropped: Dropped) {
        dropped.iter().flatten().for_each(|keypair| self.push(TunnelEvent::ReleaseIndex(keypair.local_index())));
    }

    fn derive(&self, keys: DerivedKeys, now: Instant) -> Arc<Keypair> {
        self.timers.session_derived(now);
        Keypair::new(keys, now)
    }

    /// Which of two crossed initiations both sides prefer.
    fn ours_wins(&self, identity: &Identity) -> bool {
        identity.public_key() > self.remote_static()
    }

    fn authenticated(&self, now: Instant) -> Authenticated {
        self.timers.any_authenticated_packet_received(now);
        self.timers.any_authenticated_packet_traversal(now);
        Authenticated::proof()
    }

    fn end_crossing(&mut self) {
        if let Crossing::Aside(ours) = mem::replace(&mut self.crossing, Crossing::None) {
            self.release(Some(ours.local_index()));
        }
    }

    fn forget_handshake(&mut self) {
        self.end_crossing();
        self.release(self.handshake.local_index());
        self.handshake.clear();
    }

    /// [WP 6.3] Wipes the handshake and all keypairs; what is staged would be sent in another life.
    fn zero_key_material(&mut self) {
        self.forget_handshake();
        let had_current = self.keypairs.current().is_some();
        let dropped = self.keypairs.clear();
        self.release_dropped(dropped);
        if had_current {
            self.push(TunnelEvent::CurrentChanged);
        }
        self.push(TunnelEvent::PurgeStaged);
    }
}

#[cfg(test)]
mod tests;
