//! A peer: the fast state that every thread reads, and behind a lock the slow state.
//!
//! The data plane uses what is atomic here, and two locks that are held for a copy and never across
//! the AEAD: the endpoint's and the staged packets'. It never locks `tunnel`.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use super::THREADS_MAX;
use crate::key::{PresharedKey, PublicKey};
use crate::proto::constants::STAGED_PACKETS_MAX;
use crate::proto::keypair::Keypair;
use crate::proto::time::{Instant, Now};
use crate::proto::timers::Timers;
use crate::proto::tunnel::{Authenticated, Tunnel};
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::{ArcSwapOption, Mutex, MutexGuard, RwLock, lock};
use crate::udp::Source;

/// Bytes of packets that wait for sessions, over all peers; beyond it new ones are dropped. Enough
/// for 90 peers with 128 full packets each; a dead peer must not hold the memory of the others.
pub(crate) const STAGED_BYTES_MAX: usize = 16 << 20;

/// Where a peer is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its address.
    pub(crate) address: SocketAddr,
    /// The address of ours that it last wrote to.
    pub(crate) source: Option<Source>,
}

/// What the control thread is to do for a peer; bits, so that asking twice is asking once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wish(u8);

impl Wish {
    /// Look at its timers: an earlier deadline was armed.
    pub(crate) const TIMERS: Self = Self(1);
    /// Start a handshake, unless one was started lately.
    pub(crate) const HANDSHAKE: Self = Self(2);
    /// The first packet on the next keypair has come: send on it from now on.
    pub(crate) const CONFIRM: Self = Self(4);
    /// Send a keepalive.
    pub(crate) const KEEPALIVE: Self = Self(8);
    /// It was removed: forget it.
    pub(crate) const REMOVED: Self = Self(16);

    /// Whether `other` is among these.
    pub(crate) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// What is to become of packets that are staged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// There are none.
    Nothing,
    /// They need a session first.
    ForSession,
    /// There is a session: they can be taken and sent.
    MayGo,
}

/// A packet that waits for a session.
struct Staged {
    /// The lane that it came by, and leaves by: packets of one flow must not overtake each other.
    lane: usize,
    /// The packet; none in a keepalive.
    packet: Box<[u8]>,
}

// A lane is a bit of `Peer::staged_lanes`.
const _: () = assert!(THREADS_MAX <= u32::BITS as usize);

/// A peer of a device.
pub(crate) struct Peer {
    /// Its place in [`super::Routes`], which is also what allowed IPs name.
    pub(crate) slot: u32,
    /// Peers are listed in the order of this.
    pub(crate) added: u64,
    /// Its name.
    pub(crate) public_key: PublicKey,
    /// Deadlines, stamped by the data path, read by the control path.
    pub(crate) timers: Arc<Timers>,
    /// The keypair to send with; `None` while there is no session.
    pub(crate) sending: ArcSwapOption<Keypair>,
    /// Bytes received in authenticated messages, as on the wire above UDP.
    pub(crate) rx_bytes: AtomicU64,
    /// Bytes sent, as on the wire above UDP.
    pub(crate) tx_bytes: AtomicU64,
    /// Until then its path takes no trains in one piece; nanoseconds as [`Instant`], 0 for never.
    pub(crate) offload_refused_until: AtomicU64,
    /// When the control thread will look at its timers next; nanoseconds, `u64::MAX` for never.
    scheduled: AtomicU64,
    /// The index whose first packet the [`Wish::CONFIRM`] is about.
    confirmed_index: AtomicU32,
    endpoint: RwLock<Option<Endpoint>>,
    staged: Mutex<VecDeque<Staged>>,
    /// A bit for each lane that has packets among the staged ones.
    staged_lanes: AtomicU32,
    /// Bytes staged over all peers of the device.
    staged_bytes: Arc<AtomicU64>,
    wishes: AtomicU8,
    flush_wanted: AtomicBool,
    removed: AtomicBool,
    tunnel: Mutex<Tunnel>,
}

impl Peer {
    /// A peer without a session; `staged_bytes` counts for all peers of the device.
    pub(crate) fn new(slot: u32, added: u64, public_key: PublicKey, staged_bytes: Arc<AtomicU64>) -> Self {
        let tunnel = Tunnel::new(public_key, PresharedKey::default());
        Self {
            slot,
            added,
            public_key,
            timers: tunnel.timers().clone(),
            sending: ArcSwapOption::empty(),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
            offload_refused_until: AtomicU64::new(0),
            scheduled: AtomicU64::new(u64::MAX),
            confirmed_index: AtomicU32::new(0),
            endpoint: RwLock::new(None),
            staged: Mutex::new(VecDeque::new()),
            staged_lanes: AtomicU32::new(0),
            staged_bytes,
            wishes: AtomicU8::new(0),
            flush_wanted: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            tunnel: Mutex::new(tunnel),
        }
    }

    /// The slow state. For the control path and configuration only.
    pub(crate) fn tunnel(&self) -> MutexGuard<'_, Tunnel> {
        lock(&self.tunnel)
    }

    /// Where it is reached, if that is known.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        *self.endpoint.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write_endpoint(&self, change: impl FnOnce(&mut Option<Endpoint>)) {
        change(&mut self.endpoint.write().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }

    /// It was heard from there: the only way in which the network moves an endpoint. True if its address was known
    /// and another one.
    /// [WP 2.1] Only an authenticated message may.
    pub(crate) fn heard_from(&self, endpoint: Endpoint, _proof: &Authenticated) -> bool {
        let known = self.endpoint();
        if known != Some(endpoint) {
            self.write_endpoint(|held| *held = Some(endpoint));
        }
        known.is_some_and(|known| known.address != endpoint.address)
    }

    /// The configuration says where it is. False if that was known already.
    pub(crate) fn configure_endpoint(&self, address: SocketAddr) -> bool {
        let changed = self.endpoint().is_none_or(|held| held.address != address);
        if changed {
            self.write_endpoint(|held| *held = Some(Endpoint { address, source: None }));
        }
        changed
    }

    /// Lets the routing choose where the next datagram leaves from. [KERNEL-STICKY]
    pub(crate) fn clear_source(&self) {
        if self.endpoint().is_some_and(|held| held.source.is_some()) {
            self.write_endpoint(|held| {
                if let Some(endpoint) = held {
                    endpoint.source = None;
                }
            });
        }
    }

    /// Whether packets wait for a session, as far as this thread has heard.
    pub(crate) fn has_staged(&self) -> bool {
        self.staged_lanes.load(Ordering::Acquire) != 0
    }

    /// Whether packets of a lane wait for a session. What this thread has staged it has heard of.
    pub(crate) fn has_staged_in(&self, lane: usize) -> bool {
        self.staged_lanes.load(Ordering::Acquire) & 1 << lane != 0
    }

    /// The lanes that have packets which wait for a session. To be asked by whoever knows of a new session: who stages
    /// later sees that session.
    pub(crate) fn lanes_waiting(&self) -> impl Iterator<Item = usize> + use<> {
        // With the lock, which whoever stages takes before he looks at the session.
        let lanes = {
            let _staged = lock(&self.staged);
            self.staged_lanes.load(Ordering::Relaxed)
        };
        (0..THREADS_MAX).filter(move |lane| lanes & 1 << lane != 0)
    }

    /// What is to become of what waits in a lane for a session. To be asked by whoever has staged something there, and
    /// for each of the [lanes that wait](Self::lanes_waiting) by whoever knows of a new session: one of them at least knows of both.
    pub(crate) fn waiting(&self, lane: usize, now: Instant) -> Waiting {
        if !self.has_staged_in(lane) {
            Waiting::Nothing
        } else if self.may_send(now) {
            Waiting::MayGo
        } else {
            Waiting::ForSession
        }
    }

    /// Whether there is a keypair that may number a packet now.
    pub(crate) fn may_send(&self, now: Instant) -> bool {
        self.sending.load().as_ref().is_some_and(|keypair| keypair.may_send(now))
    }

    /// Lets a packet of a lane wait for a session; an empty one is a keepalive. Returns how many packets were
    /// dropped for it: the oldest beyond 128, or this one if all peers together hold too much. `None` when
    /// the peer was removed: nothing waits in it any more. [KERNEL-STAGED]
    pub(crate) fn stage(&self, lane: usize, packet: &[u8]) -> Option<u64> {
        let mut staged = lock(&self.staged);
        if self.is_removed() {
            return None;
        }
        let mut dropped = 0;
        if staged.len() >= STAGED_PACKETS_MAX
            && let Some(oldest) = staged.pop_front()
        {
            self.staged_bytes.fetch_sub(oldest.packet.len() as u64, Ordering::Relaxed);
            dropped += 1;
        }
        let held = self.staged_bytes.fetch_add(packet.len() as u64, Ordering::Relaxed);
        if held + packet.len() as u64 > STAGED_BYTES_MAX as u64 {
            self.staged_bytes.fetch_sub(packet.len() as u64, Ordering::Relaxed);
            dropped += 1;
        } else {
            staged.push_back(Staged { lane, packet: packet.into() });
        }
        self.note_lanes(&staged);
        Some(dropped)
    }

    /// Stages a keepalive if nothing is staged: what waits will do as well.
    pub(crate) fn stage_keepalive(&self) {
        let mut staged = lock(&self.staged);
        if staged.is_empty() && !self.is_removed() {
            staged.push_back(Staged { lane: 0, packet: Box::default() });
            self.note_lanes(&staged);
        }
    }

    /// Takes what waits in a lane, oldest first.
    pub(crate) fn take_staged_in(&self, lane: usize) -> VecDeque<Box<[u8]>> {
        self.take_staged_if(|staged| staged.lane == lane)
    }

    /// Takes what waits, whatever its lane.
    pub(crate) fn take_staged(&self) -> VecDeque<Box<[u8]>> {
        self.take_staged_if(|_| true)
    }

    fn take_staged_if(&self, which: impl FnMut(&Staged) -> bool) -> VecDeque<Box<[u8]>> {
        let mut staged = lock(&self.staged);
        let (taken, left): (VecDeque<_>, _) = std::mem::take(&mut *staged).into_iter().partition(which);
        *staged = left;
        self.note_lanes(&staged);
        self.staged_bytes.fetch_sub(taken.iter().map(|staged| staged.packet.len() as u64).sum(), Ordering::Relaxed);
        taken.into_iter().map(|staged| staged.packet).collect()
    }

    /// Publishes which lanes have packets that wait.
    fn note_lanes(&self, staged: &VecDeque<Staged>) {
        let lanes = staged.iter().fold(0, |lanes, staged| lanes | 1 << staged.lane);
        self.staged_lanes.store(lanes, Ordering::Release);
    }

    /// Adds to what the control thread is to do; true if it has to be told.
    pub(crate) fn wish(&self, wish: Wish) -> bool {
        self.wishes.fetch_or(wish.0, Ordering::AcqRel) == 0
    }

    /// What the control thread is to do, once.
    pub(crate) fn take_wishes(&self) -> Wish {
        Wish(self.wishes.swap(0, Ordering::AcqRel))
    }

    /// Data came on a keypair that the peer had not confirmed yet: sends on it from now on. The control thread is to be
    /// told then, by [`Wish::CONFIRM`].
    pub(crate) fn send_on(&self, keypair: &Arc<Keypair>) {
        self.sending.store(Some(keypair.clone()));
        self.confirmed_index.store(keypair.local_index(), Ordering::Release);
    }

    /// Grants a [`Wish::CONFIRM`]: the slots follow the worker's choice; where the keypair was replaced in the meantime the
    /// choice does not stand.
    pub(crate) fn confirm(&self, tunnel: &mut Tunnel, now: Now) {
        if !tunnel.confirm(self.confirmed_index.load(Ordering::Acquire), now) {
            self.sending.store(tunnel.current().cloned());
        }
    }

    /// Grants a [`Wish::CONFIRM`] that is still to be taken: what a worker has heard comes before the step that is about to
    /// be taken with the tunnel. Else a new next keypair would displace one that the peer sends on already.
    pub(crate) fn confirm_wished(&self, tunnel: &mut Tunnel, now: Now) {
        if Wish(self.wishes.load(Ordering::Acquire)).has(Wish::CONFIRM) {
            self.confirm(tunnel, now);
        }
    }

    /// Whether the control thread would look too late for a timer that was just armed for `deadline`.
    pub(crate) fn is_before_appointment(&self, deadline: Instant) -> bool {
        // Pairs with the fence in `make_appointment`: either that sees the deadline, or this sees that the appointment
        // is forgotten.
        fence(Ordering::SeqCst);
        deadline.as_nanos() < self.scheduled.load(Ordering::Relaxed)
    }

    /// The control thread has come to its appointment: it has none until the next is made.
    pub(crate) fn keep_appointment(&self) {
        self.scheduled.store(u64::MAX, Ordering::Relaxed);
    }

    /// Makes the appointment for the earliest deadline, `None` where there is none or the peer was removed. Before it the one
    /// that was held, `u64::MAX` for none; both in nanoseconds.
    pub(crate) fn make_appointment(&self) -> (u64, Option<u64>) {
        let held = self.scheduled.swap(u64::MAX, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let deadline = self.timers.next_deadline().filter(|_| !self.is_removed()).map(Instant::as_nanos);
        if let Some(deadline) = deadline {
            self.scheduled.store(deadline, Ordering::Relaxed);
        }
        (held, deadline)
    }

    /// Asks the worker to flush what is staged; true if it has to be told.
    pub(crate) fn want_flush(&self) -> bool {
        !self.flush_wanted.swap(true, Ordering::AcqRel)
    }

    /// Whether a flush was wanted, once.
    pub(crate) fn take_flush(&self) -> bool {
        self.flush_wanted.swap(false, Ordering::AcqRel)
    }

    /// It is no peer any more. To be called and read with the tunnel locked, so that no handshake
    /// in progress reserves an index for a peer that has gone. What is staged is taken after it: whoever
    /// stages reads it with the staged packets locked.
    pub(crate) fn mark_removed(&self) {
        self.removed.store(true, Ordering::Release);
    }

    /// Whether it was removed.
    pub(crate) fn is_removed(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    /// Whether its path takes trains in one piece, as far as is known.
    pub(crate) fn takes_offload(&self, now: Instant) -> bool {
        self.offload_refused_until.load(Ordering::Relaxed) <= now.as_nanos()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.take_staged();
    }
}

/// As in logs: `peer(AbCd…wxyz)`, the first and last four characters of the key's base64.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.public_key.to_string();
        write!(f, "peer({}…{})", &key[..4], &key[39..43])
    }
}
