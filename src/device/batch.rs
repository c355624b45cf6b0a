//! The states that packets go through together.
//!
//! The unit is a *train*: packets of one peer with one range of counters. It moves from stage to
//! stage by value, and its type says how far it has come, so that nothing is sealed that has no
//! counters and nothing is transmitted that is not sealed.
//!
//! ```text
//! outbound   Routed ── number ──▶ Numbered ── seal ──▶ Sealed ── transmit ──▶ gone
//!               └── no session ──▶ staged in the peer
//! ```
//!
//! A train's bytes lie in its worker's send buffer, packet after packet as they will go out, each
//! `[16 header][padded payload][16 tag]`, all of one length but the last, which may be shorter.
//! Inbound trains (runs) lie in the receive buffers: see `receive.rs`.

use std::ops::Range;
use std::sync::Arc;

use super::peer::{Endpoint, Peer};
use crate::proto::keypair::Keypair;

/// Packets in a train, at most: the kernel's limit on one UDP_SEGMENT send.
pub(crate) const TRAIN_PACKETS_MAX: usize = 64;
/// Bytes in a train of several packets, at most: the longest UDP payload over IPv4.
pub(crate) const TRAIN_BYTES_MAX: usize = 65_507;

/// Packets of one peer, laid out for one send.
pub(crate) struct Train<S> {
    /// Whose they are.
    pub(crate) peer: Arc<Peer>,
    /// Where they go.
    pub(crate) endpoint: Endpoint,
    /// The ECN bits of all of them, and of the datagrams that carry them.
    pub(crate) ecn: u8,
    /// Where they lie in the send buffer.
    pub(crate) place: Range<usize>,
    /// Bytes from one to the next.
    pub(crate) stride: usize,
    /// How many they are.
    pub(crate) count: usize,
    /// How far they have come.
    pub(crate) stage: S,
}

/// Its peer is known; more packets may join.
pub(crate) struct Routed;

/// Counters were taken for it: they are its own whatever becomes of it.
pub(crate) struct Numbered {
    /// Whose counters they are.
    pub(crate) keypair: Arc<Keypair>,
    /// The first packet's counter; the others follow.
    pub(crate) first_counter: u64,
}

/// It is ciphertext.
pub(crate) struct Sealed;

impl<S> Train<S> {
    /// The same packets one stage on.
    pub(crate) fn into_stage<T>(self, stage: T) -> Train<T> {
        let Self { peer, endpoint, ecn, place, stride, count, stage: _ } = self;
        Train { peer, endpoint, ecn, place, stride, count, stage }
    }
}

impl Train<Routed> {
    /// Whether a packet that takes `len` bytes of the send buffer may join: equal ones may, a
    /// shorter one may as the last.
    pub(crate) fn takes(&self, peer: &Arc<Peer>, ecn: u8, len: usize) -> bool {
        Arc::ptr_eq(&self.peer, peer)
            && self.ecn == ecn
            && len <= self.stride
            && self.place.len() == self.count * self.stride
            && self.count < TRAIN_PACKETS_MAX
            && self.place.len() + len <= TRAIN_BYTES_MAX
    }
}
