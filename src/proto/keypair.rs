//! The keys of a session, and the three that a peer may have at once. [WP 5.4.5] [WP 6.2]
//!
//! [`Keypair`] is fast state: any thread numbers, seals and opens by `&self`. Its counter lies on a
//! cache line of its own, because every sender writes it and every opener reads its neighbours. What
//! was received is remembered elsewhere, in the in-order accept stage's
//! [`ReplayWindow`](super::replay::ReplayWindow).
//!
//! [`Keypairs`] is slow state: which keypair is sent on, and which others may still be received on.
//!
//! ```text
//!   we responded:      new → next                          previous, old next dropped
//!   first data on it:  next → current → previous           old previous dropped
//!   we initiated:      new → current → previous            old previous dropped
//!     with a next:     new → current, next → previous      old previous, old current dropped
//!   initiations crossed (Differs from the kernel, see Tunnel):
//!                      new → current → previous, next stays
//!     data on next alone for a second, and later on the other one after all:
//!                      next → current → previous; previous ↔ current
//! ```
//!
//! Invariants:
//! - a counter is handed out once, and none at or beyond REJECT_AFTER_MESSAGES;
//! - a keypair older than REJECT_AFTER_TIME neither sends nor receives;
//! - a keypair that leaves its slot is retired: whoever still holds it can do nothing more with it;
//! - the keys are wiped when the last holder lets go.

use alloc::sync::Arc;
use core::fmt;

use zeroize::Zeroizing;

use super::constants::{
    CROSSING_SETTLES_WITHIN, REJECT_AFTER_MESSAGES, REJECT_AFTER_TIME, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME,
    REKEY_ON_RECEIVE_AFTER,
};
use super::crypto::{DefaultAead, HASH_LEN, Opening, PacketAead, Secret};
use super::handshake::DerivedKeys;
use super::rejected::Rejected;
use super::time::{Instant, Now};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Apart from its neighbours by a cache line.
#[derive(Default)]
#[repr(align(64))]
struct CacheLine<T>(T);

/// The keys of one session, and how far they were used.
pub struct Keypair {
    sending: Secret,
    receiving: Secret,
    local_index: u32,
    remote_index: u32,
    birth: Instant,
    is_initiator: bool,
    /// The peer has not shown yet that it has it too: we responded, or ours crossed one of the peer's.
    unconfirmed: AtomicBool,
    /// It may still receive.
    sending_expired: AtomicBool,
    /// It was replaced, or wiped.
    retired: AtomicBool,
    /// The next counter.
    sending_counter: CacheLine<AtomicU64>,
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keypair")
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .field("birth", &self.birth)
            .field("is_initiator", &self.is_initiator)
            .finish_non_exhaustive()
    }
}

impl Keypair {
    /// A keypair that was derived at `birth`. Takes the keys by value, so that the originals are wiped.
    pub fn new(keys: DerivedKeys, birth: Instant) -> Arc<Self> {
        let empty = || Zeroizing::new([0; HASH_LEN]);
        let mut keypair = Arc::new(Self {
            sending: empty(),
            receiving: empty(),
            local_index: keys.local_index,
            remote_index: keys.remote_index,
            birth,
            is_initiator: keys.is_initiator,
            unconfirmed: AtomicBool::new(!keys.is_initiator),
            sending_expired: AtomicBool::new(false),
            retired: AtomicBool::new(false),
            sending_counter: CacheLine::default(),
        });
        // Filled in where they stay: moving a secret would leave a copy behind that nothing wipes.
        let inner = Arc::get_mut(&mut keypair).expect("nobody else has it yet");
        inner.sending.copy_from_slice(&*keys.sending);
        inner.receiving.copy_from_slice(&*keys.receiving);
        keypair
    }

    /// The index that the peer addresses this session with.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// The index that we address this session with.
    pub fn remote_index(&self) -> u32 {
        self.remote_index
    }

    /// When it was derived.
    pub fn birth(&self) -> Instant {
        self.birth
    }

    /// Whether we began the handshake, so that it is we who renew it by its age.
    pub fn is_initiator(&self) -> bool {
        self.is_initiator
    }

    /// Whether data received on it calls for [`Tunnel::confirm`](super::tunnel::Tunnel::confirm). The
    /// data path asks at every train, and mostly gets a no; while it is yes, one call need not do.
    pub fn is_unconfirmed(&self) -> bool {
        self.unconfirmed.load(Relaxed)
    }

    /// The next counter: how many were handed out.
    pub fn sending_counter(&self) -> u64 {
        self.sending_counter.0.load(Relaxed)
    }

    /// Takes `n` consecutive counters and returns the first of them. They are used up thereby, even if
    /// nothing is sent with them.
    ///
    /// # Errors
    /// - [`Rejected::ExpiredKeypair`] when it may not send any more [WP 6.2];
    /// - [`Rejected::MessageLimit`] when the last of them would be at or beyond REJECT_AFTER_MESSAGES;
    ///   the keypair then does not send again, since a part of a train is worth no exception [WP 6.2].
    pub fn number(&self, n: u64, now: Instant) -> Result<u64, Rejected> {
        if !self.may_send(now) {
            return Err(Rejected::ExpiredKeypair);
        }
        let taken = self
            .sending_counter
            .0
            .fetch_update(Relaxed, Relaxed, |first| first.checked_add(n).filter(|&end| end <= REJECT_AFTER_MESSAGES));
        taken.map_err(|_| {
            self.expire_sending();
            Rejected::MessageLimit
        })
    }

    /// Whether it may send, but for the message limit.
    pub fn may_send(&self, now: Instant) -> bool {
        !self.sending_expired.load(Relaxed) && self.may_receive(now).is_ok()
    }

    /// Whether it may receive: checked before a packet is opened. The message limit is the replay
    /// window's. Fails with [`Rejected::ExpiredKeypair`]. [WP 6.2]
    pub fn may_receive(&self, now: Instant) -> Result<(), Rejected> {
        if self.retired.load(Relaxed) || now.since(self.birth) >= REJECT_AFTER_TIME {
            return Err(Rejected::ExpiredKeypair);
        }
        Ok(())
    }

    /// Whether a new handshake is due, now that a packet was sent: both sides count messages, only the
    /// initiator looks at the age, or both would begin at once. [WP 6.2]
    pub fn needs_rekey_on_send(&self, now: Instant) -> bool {
        !self.sending_expired.load(Relaxed)
            && (self.sending_counter() > REKEY_AFTER_MESSAGES
                || (self.is_initiator && now.since(self.birth) >= REKEY_AFTER_TIME))
    }

    /// Whether a new handshake is due, now that a packet was received: the session would end before
    /// its silence were noticed. Once a session, which is
    /// [`take_lastminute_handshake`](super::timers::Timers::take_lastminute_handshake)'s to know. [WP 6.2]
    pub fn needs_rekey_on_receive(&self, now: Instant) -> bool {
        !self.sending_expired.load(Relaxed) && self.is_initiator && now.since(self.birth) >= REKEY_ON_RECEIVE_AFTER
    }

    /// Ends sending: our identity is another one now. What the peer sent meanwhile is still received.
    pub fn expire_sending(&self) {
        self.sending_expired.store(true, Relaxed);
    }

    /// Uses up all counters below `counter`: those that a session was resumed from may have taken.
    /// Never goes back.
    pub fn skip_counters(&self, counter: u64) {
        self.sending_counter.0.fetch_max(counter, Relaxed);
    }

    /// Seals a train that was numbered from `first`; see [`PacketAead::seal_train`]. [WP 5.4.6]
    pub fn seal_train(&self, first: u64, train: &mut [u8], stride: usize) {
        DefaultAead::seal_train(&self.sending, first, train, stride);
    }

    /// Opens packets; see [`PacketAead::open_train`]. [WP 5.4.6]
    pub fn open_train(&self, buffer: &mut [u8], packets: &mut [Opening]) {
        DefaultAead::open_train(&self.receiving, buffer, packets);
    }

    fn retire(&self) {
        self.retired.store(true, Relaxed);
    }
}

/// The most keypairs that one change drops.
const DROPPED_MAX: usize = 3;

/// The keypairs that a change drops, retired: their indices are free.
pub(super) type Dropped = [Option<Arc<Keypair>>; DROPPED_MAX];

fn retired(dropped: Dropped) -> Dropped {
    dropped.iter().flatten().for_each(|keypair| keypair.retire());
    dropped
}

/// The keypairs of a peer: what it sends on, and what it may receive on besides.
#[derive(Debug, Default)]
pub struct Keypairs {
    previous: Option<Arc<Keypair>>,
    current: Option<Arc<Keypair>>,
    next: Option<Arc<Keypair>>,
    crossed: Crossed,
}

/// Two sessions, one that we initiated ("ours") and one that the peer did ("theirs"): which one is sent on.
///
/// ```text
///   TheirsPreferred ── data on theirs ─▶ No
///   OursPreferred ──── data on ours ───▶ OursConfirmed ── late data on theirs ─▶ No
///         └─ a second over, data on theirs ─▶ OursGivenUp ── data on ours ─────▶ No
/// ```
#[derive(Debug, Default)]
enum Crossed {
    /// None crossed, or it is settled.
    #[default]
    No,
    /// Theirs is `next`, ours `current` until there is data on theirs.
    TheirsPreferred,
    /// Ours is `current`, theirs `next`. Until this moment data on theirs does not say that the peer has no other; but it
    /// is remembered, with the time at which it first came.
    OursPreferred { settles_at: Instant, theirs_heard: Option<Now> },
    /// As before, and the peer has ours.
    OursConfirmed { settles_at: Instant },
    /// Theirs is `current`, ours `previous`: the peer was heard on theirs alone.
    OursGivenUp,
}

/// What data on a keypair means for the others.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing.
    Nothing,
    /// To be decided at this moment, unless there is data on another one before.
    DecideAt(Instant),
    /// Nothing has to be decided any more.
    Decided,
    /// `next` is to be sent on.
    ConfirmNext {
        /// The peer prefers ours and cannot know that it arrived: it has to hear so.
        tell: bool,
    },
    /// `previous` was sent on before, and is to be again.
    ReturnToPrevious,
}

impl Keypairs {
    /// Received on until what was sent before the change has arrived.
    pub fn previous(&self) -> Option<&Arc<Keypair>> {
        self.previous.as_ref()
    }

    /// Sent on.
    pub fn current(&self) -> Option<&Arc<Keypair>> {
        self.current.as_ref()
    }

    /// Derived as responder, and sent on only once the initiator has shown that it has it too.
    pub fn next(&self) -> Option<&Arc<Keypair>> {
        self.next.as_ref()
    }

    /// Adds a keypair for which we responded. [WP 5.4.5]
    ///
    /// `ours_wins` says whose initiation is preferred if two crossed. They did so if ours has only just
    /// been answered: the peer does not begin a handshake so soon after it sent a response, so its
    /// initiation was sent before and overtaken.
    pub(super) fn add_responder(&mut self, new: Arc<Keypair>, ours_wins: bool) -> Dropped {
        let is_fresh = |current: &Arc<Keypair>| new.birth.since(current.birth) < CROSSING_SETTLES_WITHIN;
        let crossed = self.current.as_ref().is_some_and(|current| current.is_initiator && is_fresh(current));
        self.end_crossing();
        let birth = new.birth;
        let dropped = retired([self.previous.take(), self.next.replace(new), None]);
        if crossed {
            self.begin_crossing(ours_wins, birth);
        }
        dropped
    }

    /// Adds a keypair for which the peer responded: it is sent on at once. [WP 5.4.5]
    pub(super) fn add_initiator(&mut self, new: Arc<Keypair>) -> Dropped {
        self.end_crossing();
        let current = self.current.replace(new);
        match self.next.take() {
            Some(next) => {
                // Data on it changes nothing any more: the data path need not ask.
                next.unconfirmed.store(false, Relaxed);
                retired([self.previous.replace(next), current, None])
            }
            None => retired([core::mem::replace(&mut self.previous, current), None, None]),
        }
    }

    /// Adds a keypair for which the peer responded, while we responded to an initiation of its own
    /// that crossed ours. `next` stays receivable, and becomes current by data on it unless ours wins.
    pub(super) fn add_crossed_initiator(&mut self, new: Arc<Keypair>, ours_wins: bool) -> Dropped {
        self.end_crossing();
        let birth = new.birth;
        let current = self.current.replace(new);
        let dropped = retired([core::mem::replace(&mut self.previous, current), None, None]);
        self.begin_crossing(ours_wins, birth);
        dropped
    }

    /// Valid data came on the keypair of this index.
    pub(super) fn heard_on(&mut self, local_index: u32, now: Now) -> Heard {
        let is = |slot: &Option<Arc<Keypair>>| slot.as_ref().is_some_and(|keypair| keypair.local_index == local_index);
        let (on_previous, on_current, on_next) = (is(&self.previous), is(&self.current), is(&self.next));
        match &mut self.crossed {
            Crossed::OursPreferred { settles_at, .. } if on_current => {
                let settles_at = *settles_at;
                self.end_crossing();
                self.crossed = Crossed::OursConfirmed { settles_at };
                Heard::Decided
            }
            Crossed::OursPreferred { settles_at, theirs_heard } if on_next && now.instant < *settles_at => {
                theirs_heard.get_or_insert(now);
                Heard::DecideAt(*settles_at)
            }
            Crossed::OursConfirmed { settles_at } if now.instant < *settles_at => Heard::Nothing,
            Crossed::OursGivenUp if on_previous => Heard::ReturnToPrevious,
            crossed if on_next => Heard::ConfirmNext { tell: matches!(crossed, Crossed::TheirsPreferred) },
            _ => Heard::Nothing,
        }
    }

    /// When data first came on `next`, if that is all that came of two crossed initiations, and it is time to decide.
    pub(super) fn only_heard_on_next(&self, now: Instant) -> Option<Now> {
        match self.crossed {
            Crossed::OursPreferred { settles_at, theirs_heard } if settles_at <= now => theirs_heard,
            _ => None,
        }
    }

    fn begin_crossing(&mut self, ours_wins: bool, now: Instant) {
        if !ours_wins {
            self.crossed = Crossed::TheirsPreferred;
            return;
        }
        self.crossed = Crossed::OursPreferred { settles_at: now + CROSSING_SETTLES_WITHIN, theirs_heard: None };
        self.current.iter().for_each(|ours| ours.unconfirmed.store(true, Relaxed));
    }

    /// Data on ours changes nothing any more: the data path need not ask.
    fn end_crossing(&mut self) {
        self.crossed = Crossed::No;
        self.previous.iter().chain(&self.current).for_each(|keypair| keypair.unconfirmed.store(false, Relaxed));
    }

    /// What was sent on before it was given up is sent on again.
    pub(super) fn return_to_previous(&mut self) {
        self.end_crossing();
        core::mem::swap(&mut self.previous, &mut self.current);
    }

    /// The first valid data on `next` came: it is sent on from now on. [WP 5.4.5]
    pub(super) fn confirm_next(&mut self) -> Dropped {
        match core::mem::take(&mut self.crossed) {
            Crossed::OursPreferred { .. } => self.crossed = Crossed::OursGivenUp,
            _ => self.end_crossing(),
        }
        match self.next.take() {
            Some(next) => {
                next.unconfirmed.store(false, Relaxed);
                let current = self.current.replace(next);
                retired([core::mem::replace(&mut self.previous, current), None, None])
            }
            None => Dropped::default(),
        }
    }

    /// Ends sending on all of them.
    pub(super) fn expire_sending(&self) {
        self.current.iter().chain(&self.next).for_each(|keypair| keypair.expire_sending());
    }

    /// Drops all.
    pub(super) fn clear(&mut self) -> Dropped {
        self.end_crossing();
        retired([self.previous.take(), self.current.take(), self.next.take()])
    }
}

#[cfg(test)]
mod tests;
