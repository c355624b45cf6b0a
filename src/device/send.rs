//! Outbound, from the TUN to the peer; read it downwards.
//!
//! | stage | decides | may stop |
//! |---|---|---|
//! | read | one packet, or several that the system left in one | nothing there |
//! | route | which peer; which train it joins | no peer, no endpoint (ICMP error to the sender) |
//! | stage | whether it must wait for a session | the oldest of 128 waiting is dropped; a removed peer's are routed anew |
//! | number | which keypair, which counters | no usable keypair: the train is staged |
//! | seal | headers and AEAD, in place | never |
//! | transmit | one datagram train for each | the system refuses |
//!
//! Read to number happen with the entry locked, by one worker at a time, and give the batch its ticket; transmit
//! happens in the order of the tickets (`ordered.rs`). So counters leave in the order in which they were taken, and
//! packets in the order in which they were read. Seal, in between, touches nothing but the batch's own bytes, and
//! every worker may be at it with a batch of its own.
//!
//! This file never locks a tunnel, never allocates on the way of a packet that has a session, and
//! never uses a counter twice: a train that fails after `number` is dropped.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use getrandom::SysRng;
use rand_core::{Rng, SeedableRng, UnwrapErr};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::batch::{Numbered, OutboundBatch, Routed, Sealed, TRANSMIT_AT, Train};
use super::ordered::{Ordered, Ticket};
use super::peer::{Endpoint, Peer, Waiting, Wish};
use super::pool::Lent;
use super::receive::Inbound;
use super::workers::{Crew, Turn};
use super::{Routes, Shared};
use crate::icmp;
use crate::ip::Header;
use crate::packet::{Buffers, Lone, PacketRef, Readiness, Wake};
use crate::proto::messages::{DATA_HEADER_LEN, DATA_OVERHEAD, TAG_LEN, padded_len, write_data_header};
use crate::proto::rejected::Rejected;
use crate::proto::time::Instant;
use crate::sync::{lock, try_lock};
use crate::tun::offload::SuperPacket;
use crate::tun::{ReceiveError, TunReceiver};
use crate::udp::{Sent, Transmit, UdpSender};

/// Reads from the TUN before the worker turns to the other direction: as many as fill a train.
const READS_PER_TURN: usize = super::batch::TRAIN_PACKETS_MAX;
/// Trains handed to the system in one call.
const TRANSMITS: usize = 16;
/// A peer whose path refused trains in one piece is tried again after this.
const OFFLOAD_RETRY_AFTER: std::time::Duration = std::time::Duration::from_secs(60);

/// The outbound direction of a lane.
pub(crate) struct Outbound {
    /// The lane's number.
    lane: usize,
    /// There may be something to read. Cleared before a read that finds nothing, set by the system's word.
    pub(crate) ready: AtomicBool,
    entry: Mutex<Entry>,
    ordered: Ordered<Lent<OutboundBatch>, Exit>,
}

/// Where packets come in.
struct Entry {
    receiver: Box<dyn TunReceiver>,
    /// A packet that comes alone is sent before the TUN is asked for more.
    lone: Lone,
    /// Whoever waits for the TUN is told as long as it has something, so it need not be read to the end.
    tells_rest: bool,
    next_ticket: Ticket,
    icmp_limiter: icmp::Limiter,
    icmp_buffer: Buffers,
}

/// Where datagrams go out.
struct Exit {
    /// `None` while the link is down.
    sender: Option<Box<dyn UdpSender>>,
    /// For the timers' jitter, which keeps peers from acting in step and is no secret.
    rng: Xoshiro256PlusPlus,
}

impl Outbound {
    /// The direction of lane number `lane`. `batches`: how many there are in the pool.
    pub(crate) fn new(lane: usize, receiver: Box<dyn TunReceiver>, batches: usize) -> Self {
        let entry = Entry {
            receiver,
            lone: Lone::default(),
            tells_rest: false,
            next_ticket: 0,
            icmp_limiter: icmp::Limiter::default(),
            icmp_buffer: Buffers::new(1),
        };
        let exit = Exit { sender: None, rng: Xoshiro256PlusPlus::from_rng(&mut UnwrapErr(SysRng)) };
        Self { lane, ready: AtomicBool::new(true), entry: Mutex::new(entry), ordered: Ordered::new(batches, exit) }
    }

    /// How to learn that there is something to read.
    pub(crate) fn readiness(&self, wake: Wake) -> Readiness {
        let mut entry = lock(&self.entry);
        let readiness = entry.receiver.readiness(wake);
        entry.tells_rest = matches!(readiness, Readiness::Fd(_));
        readiness
    }

    /// From now on datagrams leave by `sender`. The one before is gone when this returns.
    pub(crate) fn replace_sender(&self, crew: &Crew, sender: Option<Box<dyn UdpSender>>) {
        self.ordered.with_exit(|exit| exit.sender = sender, |exit, batch| exit.transmit(crew, batch));
    }

    /// Takes packets from the TUN and sends them, within a budget.
    pub(crate) fn turn(&self, crew: &Crew, worker: usize, inbound: &Inbound, now: Instant) -> Turn {
        let Some(entry) = try_lock(&self.entry) else { return Turn::Busy };
        if !self.ready.load(Ordering::Acquire) {
            return Turn::Nothing;
        }
        let Some(batch) = crew.outbound.take(worker) else { return Turn::Busy };
        // Before the reading: what the system says from here on counts.
        self.ready.store(false, Ordering::SeqCst);
        let mut reading = Reading { outbound: self, crew, worker, inbound, entry, batch, now };
        let turn = reading.read();
        if matches!(turn, Turn::Worked { more: true, .. }) {
            // Others may read while this batch is sealed.
            self.ready.store(true, Ordering::SeqCst);
        }
        reading.finish();
        turn
    }

    /// Sends what is staged for a peer in this lane, if it has a session by now; asks for one if not.
    pub(crate) fn flush(&self, crew: &Crew, worker: usize, inbound: &Inbound, peer: &Arc<Peer>, now: Instant) {
        let entry = lock(&self.entry);
        let batch = crew.outbound.wait(worker);
        let mut reading = Reading { outbound: self, crew, worker, inbound, entry, batch, now };
        reading.flush_staged(peer);
        reading.finish();
    }

    /// Seals a batch, and transmits it when its turn comes.
    fn seal(&self, crew: &Crew, ticket: Ticket, mut batch: Lent<OutboundBatch>) {
        seal(&mut batch);
        self.ordered.finish(ticket, batch, |exit, batch| exit.transmit(crew, batch));
    }
}

/// A worker at the entry, with the batch that it fills.
struct Reading<'a> {
    outbound: &'a Outbound,
    crew: &'a Crew,
    worker: usize,
    inbound: &'a Inbound,
    entry: MutexGuard<'a, Entry>,
    batch: Lent<OutboundBatch>,
    now: Instant,
}

impl Reading<'_> {
    /// Reads until a batch is full or the budget used up, or the TUN has no more for now.
    fn read(&mut self) -> Turn {
        let crew = self.crew;
        let routes = crew.shared.routes.load();
        let mut read_buffer = std::mem::take(&mut self.batch.read_buffer);
        let mut turn = Turn::Nothing;
        let lone = self.entry.lone.is_expected();
        let reads_max = if lone { 1 } else { READS_PER_TURN };
        for _ in 0..reads_max {
            let mut more = true;
            match self.entry.receiver.receive(&mut read_buffer) {
                Ok(Some(packet)) => {
                    self.route(&routes, &packet);
                    if lone && self.entry.tells_rest && self.entry.lone.leaves(packet.bytes().len()) {
                        more = false;
                    } else {
                        self.entry.lone.took(1);
                    }
                }
                Ok(None) => {
                    self.entry.lone.ended();
                    if let Turn::Worked { more, .. } = &mut turn {
                        *more = false;
                    }
                    break;
                }
                Err(ReceiveError::Malformed) => crew.shared.drops.count(Rejected::MalformedOutbound, 1),
                Err(ReceiveError::Gone(error)) => {
                    turn = Turn::Gone(error);
                    break;
                }
            }
            turn = Turn::Worked { more, useful: true };
            if self.batch.filled >= TRANSMIT_AT {
                break;
            }
        }
        self.batch.read_buffer = read_buffer;
        turn
    }

    // --- route -------------------------------------------------------------------------------

    /// [WP 2] The destination decides the peer.
    fn route(&mut self, routes: &Routes, packet: &SuperPacket<'_>) {
        let header = packet.header();
        let Some(peer) = routes.lookup(header.destination) else {
            return self.unreachable(packet, Rejected::NoRoute);
        };
        let Some(endpoint) = peer.endpoint() else {
            return self.unreachable(packet, Rejected::NoEndpoint);
        };
        let must_wait = peer.has_staged_in(self.outbound.lane) || !peer.may_send(self.now);
        if must_wait {
            // What came before it goes, or waits, before it.
            self.close();
        }
        for segment in 0..packet.count() {
            let len = packet.segment_len(segment);
            if must_wait {
                let mut bytes = vec![0; len];
                packet.write_segment(segment, &mut bytes);
                self.stage(peer, &bytes);
            } else {
                let place = self.join(peer, endpoint, header.ecn, len);
                packet.write_segment(segment, &mut self.batch.bytes[place]);
            }
        }
        if must_wait {
            self.flush_staged(peer);
        }
    }

    /// Tells the local sender that a packet can go nowhere. [KERNEL-ICMP]
    fn unreachable(&mut self, packet: &SuperPacket<'_>, reason: Rejected) {
        self.crew.shared.drops.count(reason, 1);
        let Some(message) = icmp::unreachable(packet.bytes()) else { return };
        let entry = &mut *self.entry;
        if entry.icmp_limiter.allow(self.now.as_nanos()) {
            let bytes: &[u8] = &message;
            entry.icmp_buffer.whole(0)[..bytes.len()].copy_from_slice(bytes);
            let place = PacketRef { buffer: 0, start: 0, len: bytes.len() as u32 };
            self.inbound.send_back(self.crew, &entry.icmp_buffer, place);
        }
    }

    /// Makes room for a packet of `len` bytes in the open train, or in a new one, and pads it.
    /// Returns where in the batch the packet's own bytes go.
    fn join(&mut self, peer: &Arc<Peer>, endpoint: Endpoint, ecn: u8, len: usize) -> Range<usize> {
        let padded = padded_len(len, self.crew.shared.mtu.load(Ordering::Relaxed));
        let stride = padded + DATA_OVERHEAD;
        if !self.batch.open.as_ref().is_some_and(|train| train.takes(peer, ecn, stride)) {
            self.close();
        }
        if !self.batch.has_room(stride) {
            self.hand_over();
        }
        let batch = &mut *self.batch;
        let train = batch.open.get_or_insert_with(|| {
            let place = batch.filled..batch.filled;
            Train { peer: peer.clone(), endpoint, ecn, place, stride, count: 0, stage: Routed }
        });
        let start = batch.filled + DATA_HEADER_LEN;
        batch.filled += stride;
        train.place.end = batch.filled;
        train.count += 1;
        batch.bytes[start + len..start + padded].fill(0);
        start..start + len
    }

    // --- stage -------------------------------------------------------------------------------

    fn stage(&self, peer: &Arc<Peer>, packet: &[u8]) {
        let dropped = peer.stage(self.outbound.lane, packet).unwrap_or_else(|| self.stage_elsewhere(packet));
        self.crew.shared.drops.count(Rejected::StagedDropped, dropped);
    }

    /// The packet's peer was removed since the routes were read: stages it where it belongs by those that hold now.
    fn stage_elsewhere(&self, packet: &[u8]) -> u64 {
        let shared = &self.crew.shared;
        let routes = shared.routes.load();
        let Some(peer) = Header::parse(packet).and_then(|header| routes.lookup(header.destination)) else {
            shared.drops.count(Rejected::NoRoute, 1);
            return 0;
        };
        if peer.endpoint().is_none() {
            shared.drops.count(Rejected::NoEndpoint, 1);
            return 0;
        }
        let Some(dropped) = peer.stage(self.outbound.lane, packet) else { return 1 };
        shared.want_flush(peer);
        dropped
    }

    /// What waited goes before what comes now.
    fn flush_staged(&mut self, peer: &Arc<Peer>) {
        match peer.waiting(self.outbound.lane, self.now) {
            Waiting::Nothing => return,
            Waiting::ForSession => return self.want_handshake(peer),
            Waiting::MayGo => {}
        }
        let Some(endpoint) = peer.endpoint() else { return };
        for packet in peer.take_staged_in(self.outbound.lane) {
            let ecn = Header::parse(&packet).map_or(0, |header| header.ecn);
            let place = self.join(peer, endpoint, ecn, packet.len());
            self.batch.bytes[place].copy_from_slice(&packet);
        }
    }

    /// Asks for a handshake, unless the last one is so young that none would be started.
    fn want_handshake(&self, peer: &Arc<Peer>) {
        if peer.timers.may_initiate(false, self.now) {
            self.crew.shared.wish(peer, Wish::HANDSHAKE);
        }
    }

    // --- number ------------------------------------------------------------------------------

    /// No more packets join the open train: numbers it.
    fn close(&mut self) {
        let Some(train) = self.batch.open.take() else { return };
        match number(train, self.outbound.lane, self.now) {
            Ok(train) => {
                if train.stage.keypair.needs_rekey_on_send(self.now) {
                    self.want_handshake(&train.peer);
                }
                self.batch.numbered.push(train);
            }
            Err(train) => {
                for packet in self.batch.bytes[train.place.clone()].chunks(train.stride) {
                    self.stage(&train.peer, unpadded(&packet[DATA_HEADER_LEN..packet.len() - TAG_LEN]));
                }
                self.batch.filled = train.place.start;
                // A session may have come in the meantime, and its flush have passed.
                if train.peer.may_send(self.now) {
                    self.crew.shared.want_flush(&train.peer);
                } else {
                    self.want_handshake(&train.peer);
                }
            }
        }
    }

    /// Sends what is in the batch and goes on with another one, while nobody else reads.
    fn hand_over(&mut self) {
        self.close();
        let mut full = std::mem::replace(&mut self.batch, self.crew.outbound.wait(self.worker));
        // The one buffer is being read from, and comes back to the batch at hand.
        std::mem::swap(&mut full.read_buffer, &mut self.batch.read_buffer);
        let ticket = self.draw_ticket();
        self.outbound.seal(self.crew, ticket, full);
    }

    /// Sends what is in the batch; others may read meanwhile.
    fn finish(mut self) {
        self.close();
        if self.batch.numbered.is_empty() {
            return self.crew.outbound.give_back(self.batch);
        }
        let ticket = self.draw_ticket();
        let Self { outbound, crew, entry, batch, .. } = self;
        drop(entry);
        outbound.seal(crew, ticket, batch);
    }

    fn draw_ticket(&mut self) -> Ticket {
        self.batch.read_at = self.now;
        let ticket = self.entry.next_ticket;
        self.entry.next_ticket += 1;
        ticket
    }
}

impl Exit {
    // --- transmit ----------------------------------------------------------------------------

    /// Hands over what is sealed, in the order of the counters.
    fn transmit(&mut self, crew: &Crew, mut batch: Lent<OutboundBatch>) {
        let now = batch.read_at;
        // Mostly there is one, and a list of many takes longer to fill than a short packet to seal.
        if batch.sealed.len() == 1 {
            self.send::<1>(crew, &batch.sealed, &batch.bytes, now);
        } else {
            for trains in batch.sealed.chunks(TRANSMITS) {
                self.send::<TRANSMITS>(crew, trains, &batch.bytes, now);
            }
        }
        batch.sealed.clear();
        batch.filled = 0;
        crew.outbound.give_back(batch);
    }

    /// Sends trains, one at least and `MOST` at most, whose packets lie in `bytes`, and stamps what went.
    fn send<const MOST: usize>(&mut self, crew: &Crew, trains: &[Train<Sealed>], bytes: &[u8], now: Instant) {
        let mut sent = [Sent::default(); MOST];
        let sent = &mut sent[..trains.len()];
        if let Some(sender) = &mut self.sender {
            let transmits: [_; MOST] = std::array::from_fn(|index| {
                let train = &trains[index.min(trains.len() - 1)];
                Transmit {
                    to: train.endpoint.address,
                    source: train.endpoint.source,
                    tos: train.ecn,
                    segment: train.stride,
                    data: &bytes[train.place.clone()],
                    offload: train.peer.takes_offload(now),
                }
            });
            sender.send(&transmits[..trains.len()], sent);
        } else {
            for (train, sent) in trains.iter().zip(&mut *sent) {
                sent.refused = train.count;
            }
        }
        for (train, sent) in trains.iter().zip(sent) {
            stamp(&crew.shared, train, *sent, now, &mut self.rng);
        }
    }
}

/// Takes counters for a lane's train; gives it back where there is no session for it, and where packets of its peer and
/// lane wait, which came before it.
/// [WP 5.4.6] A counter is used once.
fn number(train: Train<Routed>, lane: usize, now: Instant) -> Result<Train<Numbered>, Train<Routed>> {
    if train.peer.has_staged_in(lane) {
        return Err(train);
    }
    let keypair = train.peer.sending.load_full();
    match keypair.and_then(|keypair| Some((keypair.number(train.count as u64, now).ok()?, keypair))) {
        Some((first_counter, keypair)) => Ok(train.into_stage(Numbered { keypair, first_counter })),
        None => Err(train),
    }
}

/// Writes the headers and encrypts in place. Pure: any thread can do it.
fn seal(batch: &mut OutboundBatch) {
    for train in batch.numbered.drain(..) {
        let Numbered { keypair, first_counter } = &train.stage;
        let bytes = &mut batch.bytes[train.place.clone()];
        for (counter, packet) in (*first_counter..).zip(bytes.chunks_mut(train.stride)) {
            write_data_header(packet, keypair.remote_index(), counter);
        }
        keypair.seal_train(*first_counter, bytes, train.stride);
        batch.sealed.push(train.into_stage(Sealed));
    }
}

/// What follows from a train having been sent.
fn stamp(shared: &Shared, train: &Train<Sealed>, sent: Sent, now: Instant, rng: &mut impl Rng) {
    let peer = &train.peer;
    shared.drops.count(Rejected::SendFailed, sent.refused as u64);
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

/// The packet at the start of a padded payload.
fn unpadded(payload: &[u8]) -> &[u8] {
    Header::parse(payload).map_or(payload, |header| &payload[..header.total_len])
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use zeroize::Zeroizing;

    use super::*;
    use crate::key::PublicKey;
    use crate::proto::handshake::DerivedKeys;
    use crate::proto::keypair::Keypair;

    const LANE: usize = 1;

    /// A batch holds two trains of a peer; the first finds no session, and waits; before the second is numbered the session
    /// comes. It must not overtake the first.
    #[test]
    fn no_train_overtakes_what_waits() {
        let peer = Arc::new(Peer::new(0, 0, PublicKey::from_bytes([1; 32]), Arc::default()));
        let train = || Train {
            peer: peer.clone(),
            endpoint: Endpoint { address: (Ipv4Addr::LOCALHOST, 9).into(), source: None },
            ecn: 0,
            place: 0..DATA_OVERHEAD,
            stride: DATA_OVERHEAD,
            count: 1,
            stage: Routed,
        };
        let now = Instant::default();
        assert!(number(train(), LANE, now).is_err(), "there is no session");
        peer.stage(LANE, &[0; 20]).expect("it is a peer");
        peer.stage(LANE + 1, &[0; 20]).expect("it is a peer");
        let key = || Zeroizing::new([0; 32]);
        let keys =
            DerivedKeys { sending: key(), receiving: key(), local_index: 1, remote_index: 2, is_initiator: true };
        peer.sending.store(Some(Keypair::new(keys, now)));
        assert!(number(train(), LANE, now).is_err(), "an earlier one waits");
        assert_eq!(peer.take_staged_in(LANE).len(), 1);
        assert!(number(train(), LANE, now).is_ok());
    }
}
