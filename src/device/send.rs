//! Outbound, from the TUN to the peer; read it downwards.
//!
//! | stage | decides | may stop |
//! |---|---|---|
//! | read | one read is one packet, or what the system left in one | nothing there |
//! | route | which peer; which train it joins | no peer, no endpoint (ICMP error to the sender) |
//! | stage | whether it must wait for a session | the oldest of 128 waiting is dropped |
//! | number | which keypair, which counters | no usable keypair: the train is staged |
//! | seal | headers and AEAD, in place | never |
//! | transmit | one datagram train for each | the system refuses |
//!
//! All stages run on the worker that read the packet. Sequential are number and transmit: counters
//! leave in the order in which they were taken. Seal touches nothing but the train's own bytes.
//!
//! This file never locks a tunnel, never allocates on the way of a packet that has a session, and
//! never uses a counter twice: a train that fails after `number` is dropped.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use getrandom::SysRng;
use rand_core::{Rng, SeedableRng, UnwrapErr};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::batch::{Numbered, Routed, Sealed, TRAIN_BYTES_MAX, Train};
use super::peer::{Endpoint, Peer, Wish};
use super::{Routes, Shared, UdpQueue};
use crate::icmp;
use crate::ip::Header;
use crate::packet::{BUFFER_LEN, Buffers, PacketRef};
use crate::proto::constants::PADDING_MULTIPLE;
use crate::proto::messages::{DATA_HEADER_LEN, DATA_OVERHEAD, TAG_LEN, write_data_header};
use crate::proto::rejected::Rejected;
use crate::proto::time::Instant;
use crate::tun::offload::SuperPacket;
use crate::tun::{ReceiveError, TunQueue};
use crate::udp::{Sent, Transmit};

/// Reads from the TUN before the worker turns to the other direction.
const READS_PER_TURN: usize = 16;
/// Trains that wait for one transmission, at most.
const TRAINS_MAX: usize = 16;
/// Bytes sealed that are transmitted at once: while they are still in the cache.
const TRANSMIT_AT: usize = 32 << 10;
/// Bytes of the send buffer: what may wait, and the longest train, which is that of one longest packet.
const SEND_BUFFER_LEN: usize = TRANSMIT_AT + BUFFER_LEN + PADDING_MULTIPLE + DATA_OVERHEAD;
/// A peer whose path refused trains in one piece is tried again after this.
const OFFLOAD_RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(60);

const _: () = assert!(SEND_BUFFER_LEN >= TRANSMIT_AT + TRAIN_BYTES_MAX);

/// What one worker needs for the outbound direction; made once.
pub(crate) struct Sender {
    shared: Arc<Shared>,
    read_buffer: Box<[u8]>,
    send_buffer: Box<[u8]>,
    /// The train that further packets may join: the last in the send buffer.
    open: Option<Train<Routed>>,
    sealed: Vec<Train<Sealed>>,
    /// Where the send buffer is free.
    filled: usize,
    icmp_limiter: icmp::Limiter,
    icmp_buffer: Buffers,
    /// For the timers' jitter, which keeps peers from acting in step and is no secret.
    rng: Xoshiro256PlusPlus,
}

/// The edges of a worker, lent to a stage.
pub(crate) struct Edges<'a> {
    pub(crate) tun: &'a mut TunQueue,
    /// `None` while the link is down.
    pub(crate) udp: Option<&'a mut UdpQueue>,
}

impl Sender {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            read_buffer: vec![0; BUFFER_LEN].into(),
            send_buffer: vec![0; SEND_BUFFER_LEN].into(),
            open: None,
            sealed: Vec::with_capacity(TRAINS_MAX),
            filled: 0,
            icmp_limiter: icmp::Limiter::default(),
            icmp_buffer: Buffers::new(1),
            rng: Xoshiro256PlusPlus::from_rng(&mut UnwrapErr(SysRng)),
        }
    }

    /// Takes packets from the TUN and sends them, within a budget. False when the TUN has no more for
    /// now; an error when it is gone.
    pub(crate) fn run(&mut self, edges: &mut Edges<'_>, now: Instant) -> std::io::Result<bool> {
        let shared = self.shared.clone();
        let routes = shared.routes.load();
        let mut read_buffer = std::mem::take(&mut self.read_buffer);
        let mut outcome = Ok(true);
        for _ in 0..READS_PER_TURN {
            match edges.tun.receiver.receive(&mut read_buffer) {
                Ok(Some(packet)) => self.route(edges, &routes, &packet, now),
                Ok(None) => {
                    outcome = Ok(false);
                    break;
                }
                Err(ReceiveError::Malformed) => shared.drops.count(Rejected::MalformedOutbound, 1),
                Err(ReceiveError::Gone(error)) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        self.read_buffer = read_buffer;
        self.finish(edges, now);
        outcome
    }

    /// Sends what is staged for a peer, if it has a session by now; asks for one if not.
    pub(crate) fn flush(&mut self, edges: &mut Edges<'_>, peer: &Arc<Peer>, now: Instant) {
        self.flush_staged(edges, peer, now);
        self.finish(edges, now);
    }

    // --- route -------------------------------------------------------------------------------

    /// [WP 2] The destination decides the peer.
    fn route(&mut self, edges: &mut Edges<'_>, routes: &Routes, packet: &SuperPacket<'_>, now: Instant) {
        let header = packet.header();
        let Some(peer) = routes.lookup(header.destination) else {
            return self.unreachable(edges, packet, Rejected::NoRoute, now);
        };
        let Some(endpoint) = peer.endpoint() else {
            return self.unreachable(edges, packet, Rejected::NoEndpoint, now);
        };
        let must_wait = peer.has_staged() || !may_send(peer, now);
        for segment in 0..packet.count() {
            let len = packet.segment_len(segment);
            if must_wait {
                let mut bytes = vec![0; len];
                packet.write_segment(segment, &mut bytes);
                self.stage(peer, &bytes);
            } else {
                let place = self.join(edges, peer, endpoint, header.ecn, len, now);
                packet.write_segment(segment, &mut self.send_buffer[place]);
            }
        }
        if must_wait {
            self.flush_staged(edges, peer, now);
        }
    }

    /// Tells the local sender that a packet can go nowhere. [KERNEL-ICMP]
    fn unreachable(&mut self, edges: &mut Edges<'_>, packet: &SuperPacket<'_>, reason: Rejected, now: Instant) {
        self.shared.drops.count(reason, 1);
        let Some(message) = icmp::unreachable(packet.bytes()) else { return };
        if self.icmp_limiter.allow(now.as_nanos()) {
            let bytes: &[u8] = &message;
            self.icmp_buffer.whole(0)[..bytes.len()].copy_from_slice(bytes);
            edges.tun.sender.send(&self.icmp_buffer, &[PacketRef { buffer: 0, start: 0, len: bytes.len() as u32 }]);
        }
    }

    /// Makes room for a packet of `len` bytes in the open train, or in a new one, and pads it.
    /// Returns where the packet's own bytes go.
    fn join(
        &mut self,
        edges: &mut Edges<'_>,
        peer: &Arc<Peer>,
        endpoint: Endpoint,
        ecn: u8,
        len: usize,
        now: Instant,
    ) -> Range<usize> {
        let padded = padded_len(len, self.shared.mtu.load(Ordering::Relaxed));
        let stride = padded + DATA_OVERHEAD;
        if !self.open.as_ref().is_some_and(|train| train.takes(peer, ecn, stride)) {
            self.close(edges, now);
            let place = self.filled..self.filled;
            self.open = Some(Train { peer: peer.clone(), endpoint, ecn, place, stride, count: 0, stage: Routed });
        }
        let start = self.filled + DATA_HEADER_LEN;
        self.filled += stride;
        if let Some(train) = &mut self.open {
            train.place.end = self.filled;
            train.count += 1;
        }
        self.send_buffer[start + len..start + padded].fill(0);
        start..start + len
    }

    /// Closes and transmits whatever is left.
    fn finish(&mut self, edges: &mut Edges<'_>, now: Instant) {
        self.close(edges, now);
        self.transmit(edges, now);
    }

    // --- stage -------------------------------------------------------------------------------

    fn stage(&self, peer: &Arc<Peer>, packet: &[u8]) {
        let dropped = peer.stage(packet);
        if dropped != 0 {
            self.shared.drops.count(Rejected::StagedDropped, dropped);
        }
    }

    /// What waited goes before what comes now.
    fn flush_staged(&mut self, edges: &mut Edges<'_>, peer: &Arc<Peer>, now: Instant) {
        if !peer.has_staged() {
            return;
        }
        if !may_send(peer, now) {
            return self.want_handshake(peer, now);
        }
        let Some(endpoint) = peer.endpoint() else { return };
        for packet in peer.take_staged() {
            let ecn = Header::parse(&packet).map_or(0, |header| header.ecn);
            let place = self.join(edges, peer, endpoint, ecn, packet.len(), now);
            self.send_buffer[place].copy_from_slice(&packet);
        }
    }

    /// Asks for a handshake, unless the last one is so young that none would be started.
    fn want_handshake(&self, peer: &Arc<Peer>, now: Instant) {
        if peer.timers.may_initiate(false, now) {
            self.shared.wish(peer, Wish::HANDSHAKE);
        }
    }

    // --- number, seal ------------------------------------------------------------------------

    /// No more packets join the open train: takes it through `number` and `seal`.
    fn close(&mut self, edges: &mut Edges<'_>, now: Instant) {
        let Some(train) = self.open.take() else { return };
        match number(train, now) {
            Ok(train) => {
                if train.stage.keypair.needs_rekey_on_send(now) {
                    self.want_handshake(&train.peer, now);
                }
                let sealed = seal(train, &mut self.send_buffer);
                self.sealed.push(sealed);
                if self.filled >= TRANSMIT_AT || self.sealed.len() == TRAINS_MAX {
                    self.transmit(edges, now);
                }
            }
            Err(train) => {
                for packet in self.send_buffer[train.place.clone()].chunks(train.stride) {
                    self.stage(&train.peer, unpadded(&packet[DATA_HEADER_LEN..packet.len() - TAG_LEN]));
                }
                self.filled = train.place.start;
                self.want_handshake(&train.peer, now);
            }
        }
    }

    // --- transmit ----------------------------------------------------------------------------

    /// Hands over what is sealed, in the order of the counters, and stamps what went.
    fn transmit(&mut self, edges: &mut Edges<'_>, now: Instant) {
        if self.sealed.is_empty() {
            return;
        }
        let count = self.sealed.len();
        let mut sent = [Sent::default(); TRAINS_MAX];
        if let Some(udp) = edges.udp.as_deref_mut() {
            let transmits: [Transmit<'_>; TRAINS_MAX] = std::array::from_fn(|i| {
                let train = &self.sealed[i.min(count - 1)];
                Transmit {
                    to: train.endpoint.address,
                    source: train.endpoint.source,
                    tos: train.ecn,
                    segment: train.stride,
                    data: &self.send_buffer[train.place.clone()],
                    offload: train.peer.takes_offload(now),
                }
            });
            udp.sender.send(&transmits[..count], &mut sent[..count]);
        } else {
            for (train, sent) in self.sealed.iter().zip(&mut sent) {
                sent.refused = train.count;
            }
        }
        for (train, sent) in self.sealed.drain(..).zip(sent) {
            stamp(&self.shared, &train, sent, now, &mut self.rng);
        }
        self.filled = 0;
    }
}

/// Whether the peer has a keypair that may number a packet now.
fn may_send(peer: &Peer, now: Instant) -> bool {
    peer.sending.load().as_ref().is_some_and(|keypair| keypair.may_send(now))
}

/// Takes counters for a train; gives it back where there is no session for it.
/// [WP 5.4.6] A counter is used once.
fn number(train: Train<Routed>, now: Instant) -> Result<Train<Numbered>, Train<Routed>> {
    let keypair = train.peer.sending.load_full();
    match keypair.and_then(|keypair| Some((keypair.number(train.count as u64, now).ok()?, keypair))) {
        Some((first_counter, keypair)) => Ok(train.into_stage(Numbered { keypair, first_counter })),
        None => Err(train),
    }
}

/// Writes the headers and encrypts in place. Pure: any thread could do it.
fn seal(train: Train<Numbered>, send_buffer: &mut [u8]) -> Train<Sealed> {
    let Numbered { keypair, first_counter } = &train.stage;
    let bytes = &mut send_buffer[train.place.clone()];
    for (counter, packet) in (*first_counter..).zip(bytes.chunks_mut(train.stride)) {
        write_data_header(packet, keypair.remote_index(), counter);
    }
    keypair.seal_train(*first_counter, bytes, train.stride);
    train.into_stage(Sealed)
}

/// What follows from a train having been sent.
fn stamp(shared: &Shared, train: &Train<Sealed>, sent: Sent, now: Instant, rng: &mut impl Rng) {
    let peer = &train.peer;
    if sent.refused != 0 {
        shared.drops.count(Rejected::SendFailed, sent.refused as u64);
    }
    if sent.source_lost {
        peer.clear_source();
    }
    if sent.offload_refused {
        peer.offload_refused_until.store((now + OFFLOAD_RETRY_AFTER).as_nanos(), Ordering::Relaxed);
    }
    if sent.bytes == 0 {
        return;
    }
    peer.tx_bytes.fetch_add(sent.bytes as u64, Ordering::Relaxed);
    peer.timers.any_authenticated_packet_sent(now);
    let mut earliest = peer.timers.any_authenticated_packet_traversal(now);
    if train.stride > DATA_OVERHEAD {
        earliest = earliest.into_iter().chain(peer.timers.data_sent(now, rng)).min();
    }
    shared.schedule(peer, earliest);
}

/// A payload's length with its padding: to a multiple of 16, but never beyond the MTU.
/// [WP 5.4.6] [KERNEL-PADDING]
fn padded_len(len: usize, mtu: usize) -> usize {
    if mtu == 0 {
        return len.next_multiple_of(PADDING_MULTIPLE);
    }
    let last_unit = if len > mtu { len % mtu } else { len };
    len - last_unit + last_unit.next_multiple_of(PADDING_MULTIPLE).min(mtu)
}

/// The packet at the start of a padded payload.
fn unpadded(payload: &[u8]) -> &[u8] {
    Header::parse(payload).map_or(payload, |header| &payload[..header.total_len])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [WP 5.4.6] [KERNEL-PADDING]
    #[test]
    fn padding_never_exceeds_the_mtu() {
        let check = |len, mtu, expected| assert_eq!(padded_len(len, mtu), expected, "{len} at MTU {mtu}");
        check(0, 1420, 0);
        check(1, 1420, 16);
        check(16, 1420, 16);
        check(84, 1420, 96);
        check(1409, 1420, 1420);
        check(1416, 1420, 1420);
        check(1420, 1420, 1420);
        check(1421, 1420, 1436);
        check(2840, 1420, 2840);
        check(100, 0, 112);
        check(5, 3, 6);
    }
}
