//! Inbound, from the peer to the TUN; read it downwards.
//!
//! | stage | decides | may stop |
//! |---|---|---|
//! | receive | one call fills several buffers with runs of equal-sized datagrams | nothing there |
//! | sort | by which interface; type and length; whose index, once a run | own TUN, malformed, unknown index; handshakes go to control |
//! | open | AEAD in place | wrong tag |
//! | accept | replay window, endpoint, stamps | replayed counter |
//! | deliver | inner length, inner source; one write for a whole flow's packets | empty (keepalive), not the peer's source |
//!
//! Receive happens with the entry locked, by one worker at a time, and gives the batch its ticket; accept and deliver
//! happen in the order of the tickets (`ordered.rs`), so packets leave in the order in which they came. Sort and open,
//! in between, touch nothing but the batch's own bytes, and every worker may be at it with a batch of its own.
//!
//! Nothing changes before a tag is verified: not the window, the endpoint, the timers, the counters.
//! This file never locks a tunnel and answers nothing.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::batch::{InboundBatch, Run};
use super::lookup::Session;
use super::ordered::{Ordered, Ticket};
use super::peer::{Endpoint, Peer, Wish};
use super::pool::Lent;
use super::workers::{Crew, Turn};
use super::{Routes, Shared};
use crate::ip::{self, Header};
use crate::packet::{BUFFER_LEN, Buffers, PacketRef, Readiness, Wake};
use crate::proto::crypto::Opening;
use crate::proto::messages::{self, DATA_HEADER_LEN, DATA_OVERHEAD, Message, TAG_LEN};
use crate::proto::rejected::Rejected;
use crate::proto::time::Instant;
use crate::sync::{lock, try_lock};
use crate::tun::TunSender;
use crate::udp::{Received, UdpReceiver};

/// Packets that are written together, at most: a buffer full of the shortest.
const DELIVERED_MAX: usize = BUFFER_LEN / DATA_OVERHEAD;

/// The inbound direction of a lane.
pub(crate) struct Inbound {
    /// There may be something to receive. Cleared before a receive that finds nothing, set by the system's word.
    pub(crate) ready: AtomicBool,
    entry: Mutex<Entry>,
    ordered: Ordered<Lent<InboundBatch>, Exit>,
}

/// Where datagrams come in.
struct Entry {
    /// `None` while the link is down, and in a lane that has no socket of its own.
    receiver: Option<Box<dyn UdpReceiver>>,
    next_ticket: Ticket,
}

/// Where packets go out.
struct Exit {
    sender: Box<dyn TunSender>,
    /// Inner packets of one batch that passed every check.
    accepted: Vec<PacketRef>,
}

impl Inbound {
    /// `batches`: how many there are in the pool.
    pub(crate) fn new(sender: Box<dyn TunSender>, batches: usize) -> Self {
        Self {
            ready: AtomicBool::new(false),
            entry: Mutex::new(Entry { receiver: None, next_ticket: 0 }),
            ordered: Ordered::new(batches, Exit { sender, accepted: Vec::with_capacity(DELIVERED_MAX) }),
        }
    }

    /// From now on datagrams come in by `receiver`; returns how to wait for them. The one before is gone when this
    /// returns.
    pub(crate) fn replace_receiver(&self, receiver: Option<Box<dyn UdpReceiver>>, wake: Wake) -> Vec<Readiness> {
        let mut entry = lock(&self.entry);
        entry.receiver = None;
        entry.receiver = receiver;
        let sources = entry.receiver.as_mut().map(|receiver| receiver.readiness(wake)).unwrap_or_default();
        self.ready.store(true, Ordering::SeqCst);
        sources
    }

    /// The source at this place of what [`Inbound::replace_receiver`] returned has become ready.
    pub(crate) fn source_ready(&self, source: usize) {
        if let Some(receiver) = &mut lock(&self.entry).receiver {
            receiver.ready(source);
        }
        self.ready.store(true, Ordering::SeqCst);
    }

    /// Writes one packet to the local sender, an answer of ours.
    pub(crate) fn send_back(&self, crew: &Crew, buffers: &Buffers, packet: PacketRef) {
        self.ordered.with_exit(|exit| exit.sender.send(buffers, &[packet]), |exit, batch| exit.deliver(crew, batch));
    }

    /// Receives one batch and delivers what is in it.
    pub(crate) fn turn(&self, crew: &Crew, worker: usize, now: Instant) -> Turn {
        let Some(mut entry) = try_lock(&self.entry) else { return Turn::Busy };
        if !self.ready.load(Ordering::Acquire) {
            return Turn::Nothing;
        }
        let Some(mut batch) = crew.inbound.take(worker) else { return Turn::Busy };
        // Before the receiving: what the system says from here on counts.
        self.ready.store(false, Ordering::SeqCst);
        let InboundBatch { buffers, received, .. } = &mut *batch;
        received.clear();
        let outcome = match &mut entry.receiver {
            Some(receiver) => receiver.receive(buffers, received),
            None => Ok(false),
        };
        let more = outcome.unwrap_or_else(|error| {
            tracing::error!("Failed to receive from the UDP sockets: {error}");
            false
        });
        if more {
            self.ready.store(true, Ordering::SeqCst);
        }
        if batch.received.is_empty() {
            crew.inbound.give_back(batch);
            return if more { Turn::Worked { more, useful: false } } else { Turn::Nothing };
        }
        let ticket = entry.next_ticket;
        entry.next_ticket += 1;
        drop(entry);
        batch.received_at = now;
        sort(&crew.shared, &mut batch);
        open(&mut batch);
        let useful = batch.openings.iter().any(|opening| opening.ok);
        self.ordered.finish(ticket, batch, |exit, batch| exit.deliver(crew, batch));
        Turn::Worked { more, useful }
    }
}

// --- sort ------------------------------------------------------------------------------------

/// Splits what was received into runs of data messages to one session.
fn sort(shared: &Shared, batch: &mut InboundBatch) {
    batch.openings.clear();
    batch.runs.clear();
    let now = batch.received_at;
    let mut sorting = Sorting { shared, openings: &mut batch.openings, runs: &mut batch.runs, now };
    for received in &batch.received {
        let bytes = batch.buffers.get(PacketRef { buffer: received.buffer, start: 0, len: received.len });
        if is_routing_loop(shared, received) {
            let count = received.len.div_ceil(received.segment);
            shared.drops.count(Rejected::RoutingLoop, u64::from(count));
        } else {
            sorting.sort(received, bytes);
        }
    }
}

/// Whether this came out of the tunnel that it belongs to. [KERNEL-LOOP]
///
/// Such a datagram was routed into the TUN by its sender. It may be authentic, and then its sender's address is one
/// inside the tunnel: as an endpoint it would make the answers loop, too, and outlast the mistake.
/// Differs from the kernel: there the sender refuses it, because it sees its own route; here only the receiver can.
fn is_routing_loop(shared: &Shared, received: &Received) -> bool {
    let own = shared.tun_index.load(Ordering::Relaxed);
    own != 0 && received.source.is_some_and(|source| source.ifindex == own)
}

struct Sorting<'a> {
    shared: &'a Shared,
    openings: &'a mut Vec<Opening>,
    runs: &'a mut Vec<Run>,
    now: Instant,
}

impl Sorting<'_> {
    fn sort(&mut self, received: &Received, bytes: &[u8]) {
        let mut run = None;
        let mut first = self.openings.len();
        for (datagram, start) in bytes.chunks(received.segment as usize).zip((0..).step_by(received.segment as usize)) {
            match messages::parse(datagram) {
                Ok(Message::Data(header)) => {
                    if run.is_some_and(|index| index != header.receiver) {
                        self.finish_run(received, run, first);
                        first = self.openings.len();
                    }
                    run = Some(header.receiver);
                    let (start, len) = (start + DATA_HEADER_LEN as u32, (datagram.len() - DATA_HEADER_LEN) as u32);
                    self.openings.push(Opening::new(header.counter, start, len));
                }
                Ok(message) => self.shared.enqueue_handshake(datagram, &message, received),
                Err(reason) => self.shared.drops.count(reason, 1),
            }
        }
        self.finish_run(received, run, first);
    }

    /// Finds whose the openings from `first` on are; those that are nobody's are dropped.
    fn finish_run(&mut self, received: &Received, index: Option<u32>, first: usize) {
        let Some(index) = index else { return };
        // The next run mostly belongs to whom the last one did.
        let last = self.runs.last().map(|run| &run.entry).filter(|entry| entry.index() == index);
        let entry = last.cloned().or_else(|| self.shared.indices.get(index));
        let usable = match entry.as_ref().and_then(|entry| entry.session.as_ref()) {
            Some(session) => session.keypair.may_receive(self.now),
            None => Err(Rejected::UnknownIndex),
        };
        match usable {
            Ok(()) => {
                let openings = first..self.openings.len();
                self.runs.extend(entry.map(|entry| Run { entry, received: *received, openings }));
            }
            Err(reason) => {
                self.shared.drops.count(reason, (self.openings.len() - first) as u64);
                self.openings.truncate(first);
            }
        }
    }
}

// --- open ------------------------------------------------------------------------------------

/// Decrypts in place what is authentic. Pure: any thread can do it.
fn open(batch: &mut InboundBatch) {
    for run in &batch.runs {
        if let Some(session) = &run.entry.session {
            let buffer = batch.buffers.whole(run.received.buffer);
            session.keypair.open_train(buffer, &mut batch.openings[run.openings.clone()]);
        }
    }
}

// --- accept ----------------------------------------------------------------------------------

/// What an authentic message changes, in the order of arrival. False when there was none.
fn accept(shared: &Shared, run: &Run, session: &Session, openings: &mut [Opening], now: Instant) -> bool {
    let peer = &run.entry.peer;
    let mut proof = None;
    let mut rx_bytes = 0;
    let mut has_data = false;
    {
        let mut window = lock(&session.window);
        for opening in openings {
            match window.accept(opening) {
                Ok(authenticated) => {
                    proof = Some(authenticated);
                    rx_bytes += u64::from(opening.len) + DATA_HEADER_LEN as u64;
                    has_data |= opening.len as usize > TAG_LEN;
                }
                Err(reason) => {
                    shared.drops.count(reason, 1);
                    opening.ok = false;
                }
            }
        }
    }
    let Some(proof) = proof else { return false };
    shared.heard_from(peer, Endpoint { address: run.received.from, source: run.received.source }, &proof);
    peer.rx_bytes.fetch_add(rx_bytes, Ordering::Relaxed);
    if session.keypair.is_unconfirmed() {
        // [WP 5.4.5] From here on the session may send, and it must: the answer to what is about to be
        // delivered may be read before the control thread has looked, and a peer that restarted has
        // nothing but this session.
        peer.send_on(&session.keypair);
        shared.wish(peer, Wish::CONFIRM);
    }
    if session.keypair.needs_rekey_on_receive(now) && peer.timers.take_lastminute_handshake() {
        shared.wish(peer, Wish::HANDSHAKE);
    }
    peer.timers.any_authenticated_packet_received(now);
    let mut earliest = peer.timers.any_authenticated_packet_traversal(now);
    if has_data {
        earliest = earliest.into_iter().chain(peer.timers.data_received(now)).min();
    }
    shared.schedule(peer, earliest);
    true
}

impl Exit {
    /// The batch's way through `accept` and `deliver`.
    fn deliver(&mut self, crew: &Crew, mut batch: Lent<InboundBatch>) {
        let shared = &*crew.shared;
        let InboundBatch { buffers, openings, runs, received_at, .. } = &mut *batch;
        let routes = shared.routes.load();
        for run in runs.drain(..) {
            let Some(session) = &run.entry.session else { continue };
            let openings = &mut openings[run.openings.clone()];
            if accept(shared, &run, session, openings, *received_at) {
                self.check_inner(shared, &run, openings, buffers, &routes);
            }
            if self.accepted.len() >= DELIVERED_MAX / 2 {
                self.write(shared, buffers);
            }
        }
        self.write(shared, buffers);
        crew.inbound.give_back(batch);
    }

    // --- deliver -----------------------------------------------------------------------------

    /// Keeps of the run what is an IP packet that this peer may send, cut to its stated length.
    /// [WP 2] The source must route to the peer it came from, by the table of the whole device.
    fn check_inner(
        &mut self,
        shared: &Shared,
        run: &Run,
        openings: &[Opening],
        buffers: &mut Buffers,
        routes: &Routes,
    ) {
        let is_own = |owner: &Arc<Peer>| Arc::ptr_eq(owner, &run.entry.peer);
        let mut last_source = None;
        for opening in openings.iter().filter(|opening| opening.ok && opening.len as usize > TAG_LEN) {
            let buffer = run.received.buffer;
            let place = PacketRef { buffer, start: opening.start, len: opening.len - TAG_LEN as u32 };
            let packet = buffers.get_mut(place);
            let Some(header) = Header::parse(packet) else {
                shared.drops.count(Rejected::MalformedInner, 1);
                continue;
            };
            if last_source != Some(header.source) {
                if !routes.lookup(header.source).is_some_and(is_own) {
                    shared.drops.count(Rejected::ForbiddenSource, 1);
                    continue;
                }
                last_source = Some(header.source);
            }
            ip::decapsulate_ecn(packet, run.received.ecn);
            self.accepted.push(PacketRef { len: header.total_len as u32, ..place });
        }
    }

    /// Writes what was accepted; the TUN's edge joins packets of one flow.
    fn write(&mut self, shared: &Shared, buffers: &Buffers) {
        if self.accepted.is_empty() {
            return;
        }
        let refused = self.sender.send(buffers, &self.accepted);
        shared.drops.count(Rejected::DeliverFailed, refused as u64);
        self.accepted.clear();
    }
}
