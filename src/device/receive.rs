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
//! All stages run on the worker that received. Sequential for each peer are accept and deliver; open
//! touches nothing but the datagram's own bytes.
//!
//! Nothing changes before a tag is verified: not the window, the endpoint, the timers, the counters.
//! This file never locks a tunnel and answers nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::lookup::{Entry, Session};
use super::peer::{Endpoint, Peer, Wish};
use super::send::Edges;
use super::{Routes, Shared, lock};
use crate::ip::{self, Header};
use crate::packet::{Buffers, PacketRef};
use crate::proto::crypto::Opening;
use crate::proto::messages::{self, DATA_HEADER_LEN, DATA_OVERHEAD, Message, TAG_LEN};
use crate::proto::rejected::Rejected;
use crate::proto::time::Instant;
use crate::udp::Received;

/// Buffers that one receive call may fill. A buffer holds up to 64 KiB of coalesced datagrams, so
/// this is about small ones that the system does not coalesce.
const RECEIVE_BATCH: usize = 16;
/// Datagrams that one buffer holds, at most: empty keepalives of 32 bytes.
const RUN_MAX: usize = crate::packet::BUFFER_LEN / DATA_OVERHEAD;

/// What one worker needs for the inbound direction; made once.
pub(crate) struct Receiver {
    shared: Arc<Shared>,
    buffers: Buffers,
    received: Vec<Received>,
    /// The run that is being worked on: consecutive data messages to one index.
    run: Vec<Opening>,
    /// Inner packets that passed every check.
    accepted: Vec<PacketRef>,
    /// Whom the last run of this batch belonged to; the next one mostly does too.
    last: Option<Arc<Entry>>,
}

impl Receiver {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            buffers: Buffers::new(RECEIVE_BATCH),
            received: Vec::with_capacity(RECEIVE_BATCH),
            run: Vec::with_capacity(RUN_MAX),
            accepted: Vec::with_capacity(RUN_MAX),
            last: None,
        }
    }

    /// Receives one batch and delivers what is in it. False when there is nothing more for now.
    pub(crate) fn run(&mut self, edges: &mut Edges<'_>, now: Instant) -> std::io::Result<bool> {
        let Some(udp) = edges.udp.as_deref_mut() else { return Ok(false) };
        let more = udp.receiver.receive(&mut self.buffers, &mut self.received)?;
        self.last = None;
        let shared = self.shared.clone();
        let routes = shared.routes.load();
        for i in 0..self.received.len() {
            let received = self.received[i];
            if self.is_routing_loop(&received) {
                let count = received.len.div_ceil(received.segment);
                self.shared.drops.count(Rejected::RoutingLoop, u64::from(count));
                continue;
            }
            self.sort(edges, &received, &routes, now);
        }
        self.deliver(edges);
        Ok(more)
    }

    // --- sort --------------------------------------------------------------------------------

    /// Whether this came out of the tunnel that it belongs to. [KERNEL-LOOP]
    ///
    /// Such a datagram was routed into the TUN by its sender. It may be authentic, and then its sender's address is one
    /// inside the tunnel: as an endpoint it would make the answers loop, too, and outlast the mistake.
    /// Differs from the kernel: there the sender refuses it, because it sees its own route; here only the receiver can.
    fn is_routing_loop(&self, received: &Received) -> bool {
        let own = self.shared.tun_index.load(Ordering::Relaxed);
        own != 0 && received.source.is_some_and(|source| source.ifindex == own)
    }

    /// Splits what was received together into runs of data messages to one index.
    fn sort(&mut self, edges: &mut Edges<'_>, received: &Received, routes: &Routes, now: Instant) {
        let mut run_index = None;
        let mut start = 0;
        while start < received.len {
            let len = received.segment.min(received.len - start);
            let datagram = self.buffers.get(PacketRef { buffer: received.buffer, start, len });
            match messages::parse(datagram) {
                Ok(Message::Data(header)) => {
                    if run_index.is_some_and(|index| index != header.receiver) {
                        self.finish_run(edges, received, run_index, routes, now);
                    }
                    run_index = Some(header.receiver);
                    let header_len = DATA_HEADER_LEN as u32;
                    self.run.push(Opening::new(header.counter, start + header_len, len - header_len));
                }
                Ok(message) => self.shared.enqueue_handshake(datagram, &message, received),
                Err(reason) => self.shared.drops.count(reason, 1),
            }
            start += len;
        }
        self.finish_run(edges, received, run_index, routes, now);
    }

    fn finish_run(
        &mut self,
        edges: &mut Edges<'_>,
        received: &Received,
        index: Option<u32>,
        routes: &Routes,
        now: Instant,
    ) {
        let Some(index) = index else { return };
        if let Err((reason, count)) = self.open_run(received, index, routes, now) {
            self.shared.drops.count(reason, count as u64);
        }
        self.run.clear();
        if self.accepted.len() >= RUN_MAX / 2 {
            self.deliver(edges);
        }
    }

    /// The run's way through `open` and `accept`; as an error, why all of it was dropped.
    fn open_run(
        &mut self,
        received: &Received,
        index: u32,
        routes: &Routes,
        now: Instant,
    ) -> Result<(), (Rejected, usize)> {
        let count = self.run.len();
        if self.last.as_ref().is_none_or(|entry| entry.index() != index) {
            self.last = self.shared.indices.get(index);
        }
        let entry = self.last.clone().ok_or((Rejected::UnknownIndex, count))?;
        let session = entry.session.as_ref().ok_or((Rejected::UnknownIndex, count))?;
        session.keypair.may_receive(now).map_err(|reason| (reason, count))?;
        session.keypair.open_train(self.buffers.whole(received.buffer), &mut self.run);
        self.accept(&entry, session, received, routes, now);
        Ok(())
    }

    // --- accept ------------------------------------------------------------------------------

    /// What an authentic message changes, in the order of arrival.
    fn accept(&mut self, entry: &Entry, session: &Session, received: &Received, routes: &Routes, now: Instant) {
        let peer = &entry.peer;
        let mut proof = None;
        let mut rx_bytes = 0;
        let mut has_data = false;
        {
            let mut window = lock(&session.window);
            for opening in &mut self.run {
                match window.accept(opening) {
                    Ok(authenticated) => {
                        proof = Some(authenticated);
                        rx_bytes += u64::from(opening.len) + DATA_HEADER_LEN as u64;
                        has_data |= opening.len as usize > TAG_LEN;
                    }
                    Err(reason) => {
                        self.shared.drops.count(reason, 1);
                        opening.ok = false;
                    }
                }
            }
        }
        let Some(proof) = proof else { return };
        peer.heard_from(Endpoint { address: received.from, source: received.source }, &proof);
        peer.rx_bytes.fetch_add(rx_bytes, Ordering::Relaxed);
        if session.keypair.is_unconfirmed() {
            // [WP 5.4.5] From here on the session may send, and it must: the answer to what is about to be
            // delivered may be read before the control thread has looked, and a peer that restarted has
            // nothing but this session.
            peer.sending.store(Some(session.keypair.clone()));
            peer.confirmed_index.store(entry.index(), Ordering::Release);
            self.shared.wish(peer, Wish::CONFIRM);
        }
        if session.keypair.needs_rekey_on_receive(now) && peer.timers.take_lastminute_handshake() {
            self.shared.wish(peer, Wish::HANDSHAKE);
        }
        peer.timers.any_authenticated_packet_received(now);
        let mut earliest = peer.timers.any_authenticated_packet_traversal(now);
        if has_data {
            earliest = earliest.into_iter().chain(peer.timers.data_received(now)).min();
        }
        self.shared.schedule(peer, earliest);
        self.check_inner(peer, received, routes);
    }

    // --- deliver -----------------------------------------------------------------------------

    /// Keeps of the run what is an IP packet that this peer may send, cut to its stated length.
    /// [WP 2] The source must route to the peer it came from, by the table of the whole device.
    fn check_inner(&mut self, peer: &Arc<Peer>, received: &Received, routes: &Routes) {
        let mut last_source = None;
        for opening in self.run.iter().filter(|opening| opening.ok && opening.len as usize > TAG_LEN) {
            let place = PacketRef { buffer: received.buffer, start: opening.start, len: opening.len - TAG_LEN as u32 };
            let packet = self.buffers.get_mut(place);
            let Some(header) = Header::parse(packet) else {
                self.shared.drops.count(Rejected::MalformedInner, 1);
                continue;
            };
            if last_source != Some(header.source) {
                if !routes.lookup(header.source).is_some_and(|owner| Arc::ptr_eq(owner, peer)) {
                    self.shared.drops.count(Rejected::ForbiddenSource, 1);
                    continue;
                }
                last_source = Some(header.source);
            }
            ip::decapsulate_ecn(packet, received.ecn);
            self.accepted.push(PacketRef { len: header.total_len as u32, ..place });
        }
    }

    /// Writes what was accepted; the TUN's edge joins packets of one flow.
    fn deliver(&mut self, edges: &mut Edges<'_>) {
        if self.accepted.is_empty() {
            return;
        }
        let refused = edges.tun.sender.send(&self.buffers, &self.accepted);
        self.shared.drops.count(Rejected::DeliverFailed, refused as u64);
        self.accepted.clear();
    }
}
