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
//! A train's bytes lie in its batch, packet after packet as they will go out, each `[16 header][padded payload][16 tag]`,
//! all of one length but the last, which may be shorter. Inbound trains (runs) lie in the receive buffers.
//!
//! A *batch* is what one worker takes from a queue in one turn, with the memory for it: trains of any peers on the way
//! out, runs of any sessions on the way in.

use std::ops::Range;
use std::sync::Arc;

use super::lookup::Entry;
use super::peer::{Endpoint, Peer};
use crate::packet::{BUFFER_LEN, Buffers, READ_BUFFER_LEN};
use crate::proto::constants::PADDING_MULTIPLE;
use crate::proto::crypto::Opening;
use crate::proto::keypair::Keypair;
use crate::proto::messages::DATA_OVERHEAD;
use crate::proto::time::Instant;
use crate::udp::Received;

/// Packets in a train, at most: the kernel's limit on one UDP_SEGMENT send.
pub(crate) const TRAIN_PACKETS_MAX: usize = 64;
/// Bytes in a train of several packets, at most: the longest UDP payload over IPv4.
pub(crate) const TRAIN_BYTES_MAX: usize = 65_507;
/// Trains in an outbound batch, at most: one for each packet of a turn.
pub(crate) const TRAINS_MAX: usize = TRAIN_PACKETS_MAX;
/// Bytes after which an outbound batch takes no more: two full super-packets. Each fills a train and leaves a rest, which
/// joins the next one's train where there is one; more of them would not stay in the cache until they are sent.
pub(crate) const TRANSMIT_AT: usize = 128 << 10;
/// Bytes of an outbound batch: what may wait, and the longest train, which is that of one longest packet.
const SEND_BUFFER_LEN: usize = TRANSMIT_AT + BUFFER_LEN + PADDING_MULTIPLE + DATA_OVERHEAD;
/// Buffers that one receive call may fill. A buffer holds up to 64 KiB of coalesced datagrams, so
/// this is about small ones that the system does not coalesce.
const RECEIVE_BATCH: usize = 16;

const _: () = assert!(SEND_BUFFER_LEN >= TRANSMIT_AT + TRAIN_BYTES_MAX);

/// What one worker takes from a TUN's queue in one turn.
pub(crate) struct OutboundBatch {
    /// Where the TUN's packet lies until it is split.
    pub(crate) read_buffer: Box<[u8]>,
    /// Train after train.
    pub(crate) bytes: Box<[u8]>,
    /// Where `bytes` is free.
    pub(crate) filled: usize,
    /// The train that further packets may join: the last one in `bytes`.
    pub(crate) open: Option<Train<Routed>>,
    /// Trains that are to be sealed.
    pub(crate) numbered: Vec<Train<Numbered>>,
    /// Trains that are to be transmitted.
    pub(crate) sealed: Vec<Train<Sealed>>,
    /// When it was read.
    pub(crate) read_at: Instant,
}

impl OutboundBatch {
    pub(crate) fn new() -> Self {
        Self {
            read_buffer: vec![0; READ_BUFFER_LEN].into(),
            bytes: vec![0; SEND_BUFFER_LEN].into(),
            filled: 0,
            open: None,
            numbered: Vec::with_capacity(TRAINS_MAX),
            sealed: Vec::with_capacity(TRAINS_MAX),
            read_at: Instant::default(),
        }
    }

    /// Whether a packet that takes `len` bytes may join the open train, or open one.
    pub(crate) fn has_room(&self, len: usize) -> bool {
        self.filled + len <= self.bytes.len() && (self.open.is_some() || self.numbered.len() < TRAINS_MAX)
    }
}

/// What one worker takes from a socket in one turn.
pub(crate) struct InboundBatch {
    pub(crate) buffers: Buffers,
    /// What lies in them.
    pub(crate) received: Vec<Received>,
    /// All data messages to indices that are known, run after run.
    pub(crate) openings: Vec<Opening>,
    pub(crate) runs: Vec<Run>,
    /// When it was received.
    pub(crate) received_at: Instant,
}

impl InboundBatch {
    pub(crate) fn new() -> Self {
        Self {
            buffers: Buffers::new(RECEIVE_BATCH),
            received: Vec::with_capacity(RECEIVE_BATCH),
            openings: Vec::new(),
            runs: Vec::with_capacity(RECEIVE_BATCH),
            received_at: Instant::default(),
        }
    }
}

/// Consecutive data messages of one receive to one session.
pub(crate) struct Run {
    /// Whose they are.
    pub(crate) entry: Arc<Entry>,
    /// Where they came from, and which buffer they lie in.
    pub(crate) received: Received,
    /// Which of the batch's openings they are.
    pub(crate) openings: Range<usize>,
}

/// Packets of one peer, laid out for one send.
pub(crate) struct Train<S> {
    /// Whose they are.
    pub(crate) peer: Arc<Peer>,
    /// Where they go.
    pub(crate) endpoint: Endpoint,
    /// The ECN bits of all of them, and of the datagrams that carry them.
    pub(crate) ecn: u8,
    /// Where they lie in the batch.
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
    /// Whether a packet that takes `len` bytes of the batch may join: equal ones may, a
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
