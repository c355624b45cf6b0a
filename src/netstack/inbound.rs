//! Packets that came out of the tunnel: whose are they?
//!
//! For each packet, in order: is it an IP packet with right checksums, for one of our addresses? Then TCP segments go to the
//! flow of their four numbers, or to who listens, or are refused; datagrams go to their socket; echo requests are answered, and
//! errors told to whoever caused them. Fragments wait until they are a packet. TCP segments of one flow that follow each other are passed on together: its lock is taken
//! once, and what they bring is acknowledged once.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::config::count;
use super::echo;
use super::flow::FlowKey;
use super::headers;
use super::stack::{NotAccepted, Stack};
use crate::ip::{self, Header, Transport};
use crate::packet::{Buffers, PacketRef};
use crate::tun::TunSender;

/// The device's way in: the sender of one of the interface's queues.
pub(super) struct Inbound {
    stack: Arc<Stack>,
    /// Segments of one flow: where they are, and their flags.
    run: Vec<(PacketRef, u8)>,
}

/// A packet for us.
enum Checked {
    Whole(Header, Transport),
    /// A part of one, and its bytes.
    Fragment(usize),
}

/// What tells one TCP segment from another.
struct Segment {
    key: FlowKey,
    flags: u8,
}

impl Inbound {
    pub(super) fn new(stack: Arc<Stack>) -> Self {
        Self { stack, run: Vec::new() }
    }

    /// Passes on the segments that were gathered.
    fn flush(&mut self, buffers: &Buffers, key: Option<FlowKey>) {
        let Some(key) = key else { return };
        let segments = self.run.iter().map(|&(place, flags)| (buffers.get(place), flags));
        match self.stack.flow(&key) {
            Some(_) => self.stack.ingest(&key, segments),
            // The first of them may make the flow.
            None => segments.for_each(|segment| self.stack.ingest(&key, std::iter::once(segment))),
        }
        self.run.clear();
    }
}

impl TunSender for Inbound {
    fn send(&mut self, buffers: &Buffers, packets: &[PacketRef]) -> usize {
        let mut current = None;
        for &place in packets {
            let packet = buffers.get(place);
            let (header, transport) = match self.stack.check(packet) {
                Some(Checked::Whole(header, transport)) => (header, transport),
                Some(Checked::Fragment(len)) => {
                    self.flush(buffers, current.take());
                    self.stack.receive_fragment(&packet[..len]);
                    continue;
                }
                None => {
                    count(&self.stack.counters.inbound_dropped);
                    continue;
                }
            };
            let packet = &packet[..header.total_len];
            if transport.protocol != ip::TCP {
                self.stack.receive(packet, &header, &transport);
                continue;
            }
            let Some(segment) = segment(packet, &header, &transport) else {
                count(&self.stack.counters.inbound_dropped);
                continue;
            };
            if current != Some(segment.key) {
                self.flush(buffers, current);
                current = Some(segment.key);
            }
            self.run.push((PacketRef { len: packet.len() as u32, ..place }, segment.flags));
        }
        self.flush(buffers, current);
        0
    }
}

/// What is in a TCP header; `None` when there is not all of it.
fn segment(packet: &[u8], header: &Header, transport: &Transport) -> Option<Segment> {
    let segment: &[u8; headers::TCP_HEADER_LEN] = packet[transport.offset..].first_chunk()?;
    let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let key = FlowKey { local: (header.destination, port(2)).into(), remote: (header.source, port(0)).into() };
    Some(Segment { key, flags: segment[13] })
}

impl Stack {
    /// Whether a packet is for us, with right checksums as far as they can be told.
    fn check(&self, packet: &[u8]) -> Option<Checked> {
        let header = Header::parse(packet)?;
        let packet = &packet[..header.total_len];
        if !self.has_address(header.destination) || header.source.is_unspecified() || header.source.is_multicast() {
            return None;
        }
        let transport = ip::transport(packet)?;
        if transport.fragment {
            return headers::is_header_checksum_right(packet).then_some(Checked::Fragment(packet.len()));
        }
        let is_right = headers::are_checksums_right(packet, transport.offset, transport.protocol);
        is_right.then_some(Checked::Whole(header, transport))
    }

    /// A fragment, which may complete a packet.
    fn receive_fragment(&self, fragment: &[u8]) {
        let Some(packet) = self.reassemble(fragment) else { return };
        let Some(Checked::Whole(header, transport)) = self.check(&packet) else {
            count(&self.counters.inbound_dropped);
            return;
        };
        match segment(&packet, &header, &transport).filter(|_| transport.protocol == ip::TCP) {
            Some(segment) => self.ingest(&segment.key, std::iter::once((&packet[..], segment.flags))),
            None => self.receive(&packet, &header, &transport),
        }
    }

    /// Segments of one flow.
    fn ingest<'a>(&self, key: &FlowKey, segments: impl Iterator<Item = (&'a [u8], u8)>) {
        let mut segments = segments.peekable();
        let flow = match self.flow(key) {
            Some(flow) => flow,
            None => {
                let Some(&(packet, flags)) = segments.peek() else { return };
                match self.unknown(key, packet, flags) {
                    Some(flow) => flow,
                    None => return,
                }
            }
        };
        let mut replies = Vec::new();
        let settled = flow.ingest(segments, &mut replies, self.timers.now());
        for reply in replies {
            let mut reply = Vec::from(reply);
            let offset = headers::ip_header_len(key.local.ip());
            headers::complete(&mut reply, offset, ip::TCP);
            self.send_packet(flow.hash, reply);
        }
        self.follow(&flow, settled);
    }

    /// A segment of no flow: the flow that it makes, if it makes one.
    fn unknown(&self, key: &FlowKey, packet: &[u8], flags: u8) -> Option<Arc<super::flow::Flow>> {
        let is_request = flags & (headers::TCP_SYN | headers::TCP_ACK | headers::TCP_RST) == headers::TCP_SYN;
        if !is_request && let Some(answer) = self.time_wait_answer(key) {
            if flags & headers::TCP_FIN != 0 {
                let mut answer = Vec::from(answer);
                headers::complete(&mut answer, headers::ip_header_len(key.local.ip()), ip::TCP);
                self.send_packet(self.flow_of(key.local, key.remote), answer);
            }
            return None;
        }
        if is_request {
            match self.accept(*key) {
                Ok(flow) => return Some(flow),
                Err(NotAccepted::Overflow) => {
                    count(&self.counters.tcp_overflows);
                    return None;
                }
                Err(NotAccepted::Refused) => {}
            }
        }
        if flags & headers::TCP_RST == 0
            && let Some(transport) = ip::transport(packet)
        {
            self.reset(key, packet, transport.offset);
        }
        None
    }

    /// Anything but TCP.
    fn receive(&self, packet: &[u8], header: &Header, transport: &Transport) {
        let payload = &packet[transport.offset..];
        match transport.protocol {
            ip::UDP if let Some(datagram) = udp_payload(payload) => {
                let port = |at: usize| u16::from_be_bytes([payload[at], payload[at + 1]]);
                let (from, to) = ((header.source, port(0)).into(), (header.destination, port(2)).into());
                match self.udp_socket(to) {
                    Some(socket) if socket.push(from, header.destination, datagram) => {}
                    Some(_) => count(&self.counters.udp_overflows),
                    None => self.refuse_datagram(packet, to, from),
                }
            }
            ip::ICMP | ip::ICMPV6 if header.source.is_ipv4() == (transport.protocol == ip::ICMP) => {
                echo::receive(self, header, payload);
            }
            _ => _ = self.counters.inbound_dropped.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// What is in a datagram; `None` when its length says something else than the packet's.
fn udp_payload(datagram: &[u8]) -> Option<&[u8]> {
    let len = usize::from(u16::from_be_bytes([*datagram.get(4)?, *datagram.get(5)?]));
    datagram.get(headers::UDP_HEADER_LEN..len)
}
