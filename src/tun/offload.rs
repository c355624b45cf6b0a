//! Generic segmentation offload, both ways: splitting what the system left in one piece, and coalescing what
//! belongs together. Pure functions over bytes; `linux` does the reading and writing.
//!
//! A TUN opened with `IFF_VNET_HDR` puts a header before each packet (virtio 1.2 §5.1.6, here 10 bytes) that says
//! whether the packet is really many segments of one flow under one header, and whether its checksum is still to be
//! completed. One such read replaces 45 reads, so a [`SuperPacket`] keeps the packet as it came and writes each segment
//! straight to where it will be sealed, copying and summing in one pass.
//!
//! The other way a [`Coalescer`] finds runs of packets that one header can stand for, and describes them by reference:
//! the payloads are never copied, a [`Group`] is written with one `writev`.
//!
//! Invariants:
//! - no header from the system, and no packet from a peer, panics or reads outside of its bytes;
//! - splitting what was coalesced gives the same packets back; IPv4 UDP packets without a checksum get one;
//! - what is coalesced had right checksums: a wrong one stays with its packet, for the receiver to see;
//! - packets of one flow leave in the order in which they came;
//! - nothing is allocated after [`Coalescer::new`].

use crate::ip::{self, Header, copy_and_sum, finish, fold, pseudo_header, sum, word};
use crate::packet::{Buffers, PacketRef};

/// Bytes of the virtio header before each packet: without the count of merged buffers, which a TUN has no use for.
pub const VNET_HEADER_LEN: usize = 10;

/// The system left the transport checksum to be completed: the field holds the pseudo-header's sum.
const VNET_NEEDS_CSUM: u8 = 1;
const VNET_GSO_NONE: u8 = 0;
const VNET_GSO_TCPV4: u8 = 1;
const VNET_GSO_TCPV6: u8 = 4;
const VNET_GSO_UDP_L4: u8 = 5;
/// Or-ed to a TCP type: the first segment carries CWR.
const VNET_GSO_ECN: u8 = 0x80;

/// Bytes in a TCP header without options, and in a UDP header.
const TCP_HEADER_LEN: usize = 20;
const UDP_HEADER_LEN: usize = 8;
/// Bytes in a TCP header with all options that it can have.
const TRANSPORT_HEADER_MAX: usize = 60;
/// Where the checksum lies in each.
const TCP_CHECKSUM: usize = 16;
const UDP_CHECKSUM: usize = 6;

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_ACK: u8 = 0x10;
const TCP_CWR: u8 = 0x80;

/// Fewest payload bytes of a segment that are taken from the system, or coalesced for it. No real one is smaller than
/// Linux' `TCP_MIN_SND_MSS` less the options, 8; 0 and 1 come from a broken or hostile offload header.
const SEGMENT_MIN: usize = 2;

/// Why a packet read from the TUN cannot be used: it is no IP packet, or its offload header contradicts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no IP packet, or an inconsistent offload header")
    }
}

impl std::error::Error for Malformed {}

/// One packet from the TUN, or several of one flow that the system left in one. Cutting it up is left to
/// [`SuperPacket::write_segment`], which gives IP packet after IP packet, complete with checksums.
#[derive(Debug, Clone, Copy)]
pub struct SuperPacket<'a> {
    bytes: &'a [u8],
    header: Header,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Leaves as it came.
    Plain,
    /// One packet whose transport checksum has to be completed.
    Checksum {
        /// What is summed begins here.
        start: usize,
        /// Where the checksum goes, from the packet's start.
        field: usize,
        /// Whether it is a UDP checksum, for which zero means none.
        udp: bool,
    },
    /// Many packets.
    Segments(Segments),
}

#[derive(Debug, Clone, Copy)]
struct Segments {
    tcp: bool,
    /// Where the transport header begins.
    transport: usize,
    /// Bytes before the payload.
    header_len: usize,
    /// Payload bytes in each but the last.
    size: usize,
    count: usize,
    /// Sum of what is the same in all segments: the pseudo-header without its length, the transport header without
    /// sequence, flags, length and checksum.
    sum: u64,
}

impl<'a> SuperPacket<'a> {
    /// Checks a packet and the header that the system put before it. Of the offload header only what the packet
    /// itself bears out is believed; its `hdr_len` is not read at all, as it is wrong for forwarded packets.
    pub fn parse(vnet: &[u8; VNET_HEADER_LEN], bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = Header::parse(bytes).ok_or(Malformed)?;
        let bytes = &bytes[..header.total_len];
        let field = |at: usize| usize::from(u16::from_ne_bytes([vnet[at], vnet[at + 1]]));
        let (size, start, offset) = (field(4), field(6), field(8));
        let needs_checksum = vnet[0] & VNET_NEEDS_CSUM != 0;

        if vnet[1] == VNET_GSO_NONE {
            let kind = if needs_checksum {
                let ip_header_len = if bytes[0] >> 4 == 4 { ip::IPV4_HEADER_LEN } else { ip::IPV6_HEADER_LEN };
                if start < ip_header_len || start + offset + 2 > bytes.len() {
                    return Err(Malformed);
                }
                let udp = offset == UDP_CHECKSUM;
                Kind::Checksum { start, field: start + offset, udp }
            } else {
                Kind::Plain
            };
            return Ok(Self { bytes, header, kind });
        }

        let (tcp, ipv4) = match vnet[1] & !VNET_GSO_ECN {
            VNET_GSO_TCPV4 => (true, true),
            VNET_GSO_TCPV6 => (true, false),
            VNET_GSO_UDP_L4 => (false, bytes[0] >> 4 == 4),
            _ => return Err(Malformed),
        };
        let (protocol, checksum) = if tcp { (ip::TCP, TCP_CHECKSUM) } else { (ip::UDP, UDP_CHECKSUM) };
        let transport = ip::transport(bytes).ok_or(Malformed)?;
        if transport.protocol != protocol
            || transport.fragment
            || ipv4 != (bytes[0] >> 4 == 4)
            || !needs_checksum
            || start != transport.offset
            || offset != checksum
            || size < SEGMENT_MIN
            || size > bytes.len()
        {
            return Err(Malformed);
        }
        let transport = transport.offset;
        let transport_len = if tcp {
            let header = bytes.get(transport..transport + TCP_HEADER_LEN).ok_or(Malformed)?;
            usize::from(header[12] >> 4) * 4
        } else {
            UDP_HEADER_LEN
        };
        let header_len = transport + transport_len;
        if (tcp && transport_len < TCP_HEADER_LEN) || header_len >= bytes.len() {
            return Err(Malformed);
        }
        // The field holds the sum over addresses, protocol and the length of the whole: take the length out again.
        // Reading the addresses instead would be wrong behind a routing header, where the last destination counts.
        let field = transport + checksum;
        let pseudo = u64::from(u16::from_ne_bytes([bytes[field], bytes[field + 1]]))
            + u64::from(!word((bytes.len() - transport) as u16));
        let mut same = [0; TRANSPORT_HEADER_MAX];
        let same = &mut same[..transport_len];
        same.copy_from_slice(&bytes[transport..header_len]);
        same[4..8].fill(0); // sequence, or length and checksum
        if tcp {
            same[12..14].fill(0); // flags
            same[TCP_CHECKSUM..TCP_CHECKSUM + 2].fill(0);
        }
        let sum = sum(same, pseudo);
        let count = (bytes.len() - header_len).div_ceil(size);
        Ok(Self { bytes, header, kind: Kind::Segments(Segments { tcp, transport, header_len, size, count, sum }) })
    }

    /// A packet that came without an offload header.
    pub fn plain(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let header = Header::parse(bytes).ok_or(Malformed)?;
        Ok(Self { bytes: &bytes[..header.total_len], header, kind: Kind::Plain })
    }

    /// The packet as it came: an IP header for all of its segments, one transport header, all payload.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its IP header, already read: it is the same for all segments but for the lengths.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// How many IP packets it is: at least one.
    pub fn count(&self) -> usize {
        match &self.kind {
            Kind::Segments(segments) => segments.count,
            Kind::Plain | Kind::Checksum { .. } => 1,
        }
    }

    /// Bytes in the IP packet `index`. All are equal but the last, which may be shorter.
    ///
    /// # Panics
    /// When there is no such packet: a programmer's error.
    pub fn segment_len(&self, index: usize) -> usize {
        assert!(index < self.count(), "segment {index} of {}", self.count());
        match &self.kind {
            Kind::Segments(segments) => {
                let rest = self.bytes.len() - segments.header_len - index * segments.size;
                segments.header_len + rest.min(segments.size)
            }
            Kind::Plain | Kind::Checksum { .. } => self.bytes.len(),
        }
    }

    /// Writes the IP packet `index`, with all of its lengths and checksums, to the start of `to`, and returns its
    /// length.
    ///
    /// # Panics
    /// When there is no such packet, or `to` is shorter than it: a programmer's error.
    pub fn write_segment(&self, index: usize, to: &mut [u8]) -> usize {
        let len = self.segment_len(index);
        let to = &mut to[..len];
        match &self.kind {
            Kind::Plain => to.copy_from_slice(self.bytes),
            Kind::Checksum { start, field, udp } => {
                to[..*start].copy_from_slice(&self.bytes[..*start]);
                let sum = copy_and_sum(&mut to[*start..], &self.bytes[*start..], 0);
                to[*field..*field + 2].copy_from_slice(&finish(sum, *udp));
            }
            Kind::Segments(segments) => segments.write(self.bytes, index, to),
        }
        len
    }
}

impl Segments {
    fn write(&self, bytes: &[u8], index: usize, to: &mut [u8]) {
        let (header, payload) = to.split_at_mut(self.header_len);
        header.copy_from_slice(&bytes[..self.header_len]);
        write_ip_header(header, self.header_len + payload.len(), index as u16);

        let transport_len = self.header_len - self.transport + payload.len();
        let transport = &mut header[self.transport..];
        let start = self.header_len + index * self.size;
        // A transport header has an even length, so that the payload's words lie as they do in the whole.
        let mut sum = copy_and_sum(payload, &bytes[start..start + payload.len()], self.sum);
        sum += u64::from(word(transport_len as u16));
        let field = if self.tcp {
            let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
            let sequence = sequence.wrapping_add((index * self.size) as u32).to_be_bytes();
            transport[4..8].copy_from_slice(&sequence);
            let mut flags = transport[13];
            if index + 1 < self.count {
                flags &= !(TCP_FIN | TCP_PSH);
            }
            if index > 0 {
                flags &= !TCP_CWR;
            }
            transport[13] = flags;
            sum += u64::from(u32::from_ne_bytes(sequence)) + u64::from(u16::from_ne_bytes([transport[12], flags]));
            TCP_CHECKSUM
        } else {
            transport[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
            sum += u64::from(word(transport_len as u16));
            UDP_CHECKSUM
        };
        transport[field..field + 2].copy_from_slice(&finish(sum, !self.tcp));
    }
}

/// Sets the lengths of the IP header at the start of `header` for a packet of `total_len` bytes, and, for IPv4, moves
/// the identification on by `index` and completes the checksum.
fn write_ip_header(header: &mut [u8], total_len: usize, index: u16) {
    if header[0] >> 4 == 4 {
        let header_len = usize::from(header[0] & 0x0f) * 4;
        let id = u16::from_be_bytes([header[4], header[5]]).wrapping_add(index);
        // Summed before it is changed, less the fields that change: reading back what was just written in smaller
        // pieces would stall.
        let old = [2, 4, 10].map(|field| u64::from(!u16::from_ne_bytes([header[field], header[field + 1]])));
        let same = sum(&header[..header_len], old.iter().sum());
        let checksum = finish(same + u64::from(word(total_len as u16)) + u64::from(word(id)), false);
        header[2..4].copy_from_slice(&(total_len as u16).to_be_bytes());
        header[4..6].copy_from_slice(&id.to_be_bytes());
        header[10..12].copy_from_slice(&checksum);
    } else {
        header[4..6].copy_from_slice(&((total_len - ip::IPV6_HEADER_LEN) as u16).to_be_bytes());
    }
}

/// Packets that are looked at together: what one batch of receives can hold. More are done in several goes.
pub const COALESCE_BATCH: usize = 1024;

/// Flows that can have an open group at the same time. One that finds its place taken closes the other's group:
/// more groups, nothing lost.
const FLOWS: usize = 64;

/// Most packets in a group: a full super-packet of the smallest payloads that come in bulk (65,535 / 536, RFC 9293's
/// default segment), rounded up. It bounds the list for `writev`, which takes 1024 entries.
pub const GROUP_MAX: usize = 128;

/// Longest header that is put before coalesced payloads: virtio, IPv6, and TCP with all options it can have.
pub const GROUP_HEADER_MAX: usize = VNET_HEADER_LEN + ip::IPV6_HEADER_LEN + TRANSPORT_HEADER_MAX;

/// Most bytes in an IP packet whose length field has 16 bits.
const IP_LEN_MAX: usize = 65_535;

const NOBODY: u16 = u16::MAX;
const _: () = assert!(COALESCE_BATCH < NOBODY as usize);

/// Finds, among packets that are about to be written, the runs that one header can stand for.
///
/// ```text
/// while !packets.is_empty() {
///     let taken = coalescer.coalesce(buffers, packets);
///     for group in coalescer.groups(buffers, &packets[..taken]) { writev(header, payloads) }
///     packets = &packets[taken..];
/// }
/// ```
///
/// Packets join when a split would give them back: same addresses, ports, protocol, TOS, TTL, DF, flow label; IPv4
/// identifications that count up; equal payload lengths but for the last; right checksums; and for TCP adjacent sequence
/// numbers, the same acknowledgement, window and options, no flag but ACK, and PSH on the last one only. IP options,
/// extension headers and fragments are left alone.
#[derive(Debug)]
pub struct Coalescer {
    tcp: bool,
    udp: bool,
    /// For each packet the next one of its group.
    next: Box<[u16]>,
    runs: Vec<Run>,
    /// For each flow, by hash, its open run.
    open: [u16; FLOWS],
}

/// Packets that form a group.
#[derive(Debug, Clone, Copy)]
struct Run {
    first: u16,
    last: u16,
    count: u16,
    /// Whether the first packet's checksums were found right; it is looked at only when a second one would join.
    checked: bool,
    segment: Segment,
    /// Bytes of the whole as one IP packet.
    total_len: usize,
}

/// What joining takes to know about a packet.
#[derive(Debug, Clone, Copy, Default)]
struct Segment {
    tcp: bool,
    transport: u16,
    header_len: u16,
    /// Payload bytes.
    payload: u16,
    /// Nothing may follow it in its group.
    last: bool,
}

/// What a packet is to the coalescer.
#[derive(Debug, Clone, Copy)]
enum Class {
    /// May open or join a group of this flow.
    Joins(usize, Segment),
    /// Leaves alone, after what came before it in this flow.
    Alone(usize),
    /// Leaves alone, after everything between the same two addresses: its flow cannot be told.
    Other,
}

impl Coalescer {
    /// A coalescer for an interface that takes coalesced TCP, or UDP.
    pub fn new(tcp: bool, udp: bool) -> Self {
        Self {
            tcp,
            udp,
            next: vec![NOBODY; COALESCE_BATCH].into_boxed_slice(),
            runs: Vec::with_capacity(COALESCE_BATCH),
            open: [NOBODY; FLOWS],
        }
    }

    /// From now on leaves TCP alone.
    pub fn stop_tcp(&mut self) {
        self.tcp = false;
    }

    /// From now on leaves UDP alone.
    pub fn stop_udp(&mut self) {
        self.udp = false;
    }

    /// Arranges the first of `packets`, at most [`COALESCE_BATCH`], in groups and returns how many it took: all, or
    /// that many. Each packet has to be exactly one IP packet.
    pub fn coalesce(&mut self, buffers: &Buffers, packets: &[PacketRef]) -> usize {
        let packets = &packets[..packets.len().min(COALESCE_BATCH)];
        self.runs.clear();
        self.open.fill(NOBODY);
        // A single packet, the common case of a quiet link, has nothing to join.
        if let [_] = packets {
            self.start(0, Segment::default(), 0);
            return 1;
        }
        let bytes = |index: u16| buffers.get(packets[usize::from(index)]);
        for (index, &place) in packets.iter().enumerate() {
            let index = index as u16;
            let packet = buffers.get(place);
            match self.classify(packet) {
                Class::Joins(flow, segment) => {
                    if let Some(run) = self.runs.get_mut(usize::from(self.open[flow]))
                        && run.takes(bytes(run.first), packet, segment)
                    {
                        self.next[usize::from(run.last)] = index;
                        run.last = index;
                        run.count += 1;
                        run.total_len += usize::from(segment.payload);
                        if segment.last || segment.payload < run.segment.payload {
                            self.open[flow] = NOBODY;
                        }
                    } else {
                        let run = self.start(index, segment, packet.len());
                        self.open[flow] = if segment.last { NOBODY } else { run };
                    }
                }
                Class::Alone(flow) => {
                    self.start(index, Segment::default(), 0);
                    self.open[flow] = NOBODY;
                }
                Class::Other => {
                    self.start(index, Segment::default(), 0);
                    for open in &mut self.open {
                        if let Some(run) = self.runs.get(usize::from(*open))
                            && addresses(bytes(run.first)) == addresses(packet)
                        {
                            *open = NOBODY;
                        }
                    }
                }
            }
        }
        packets.len()
    }

    fn start(&mut self, index: u16, segment: Segment, total_len: usize) -> u16 {
        self.next[usize::from(index)] = NOBODY;
        self.runs.push(Run { first: index, last: index, count: 1, checked: false, segment, total_len });
        (self.runs.len() - 1) as u16
    }

    fn classify(&self, packet: &[u8]) -> Class {
        let Some((protocol, transport)) = plain_transport(packet) else { return Class::Other };
        let rest = &packet[transport..];
        let (minimum, enabled) = match protocol {
            ip::TCP => (TCP_HEADER_LEN, self.tcp),
            ip::UDP => (UDP_HEADER_LEN, self.udp),
            _ => return Class::Other,
        };
        if rest.len() < minimum {
            return Class::Other;
        }
        let flow = flow(packet, rest);
        if !enabled {
            return Class::Alone(flow);
        }
        let tcp = protocol == ip::TCP;
        let (header_len, last, plain) = if tcp {
            let header_len = usize::from(rest[12] >> 4) * 4;
            let plain = rest[12] & 0x0f == 0 && rest[13] & !TCP_PSH == TCP_ACK && header_len >= TCP_HEADER_LEN;
            (header_len, rest[13] & TCP_PSH != 0, plain)
        } else {
            let plain = usize::from(u16::from_be_bytes([rest[4], rest[5]])) == rest.len();
            (UDP_HEADER_LEN, false, plain)
        };
        if !plain || rest.len() < header_len + SEGMENT_MIN || packet.len() > IP_LEN_MAX {
            return Class::Alone(flow);
        }
        let segment = Segment {
            tcp,
            transport: transport as u16,
            header_len: (transport + header_len) as u16,
            payload: (rest.len() - header_len) as u16,
            last,
        };
        Class::Joins(flow, segment)
    }

    /// The groups of what [`Coalescer::coalesce`] took last, in the order in which they have to be written. `buffers`
    /// and `packets` have to be the same as then.
    pub fn groups<'a>(&'a self, buffers: &'a Buffers, packets: &'a [PacketRef]) -> impl Iterator<Item = Group<'a>> {
        self.runs.iter().map(move |run| Group { run, next: &self.next, buffers, packets })
    }
}

impl Run {
    /// Whether `packet` continues this run, which begins with `first`.
    fn takes(&mut self, first: &[u8], packet: &[u8], segment: Segment) -> bool {
        let one = &self.segment;
        if one.tcp != segment.tcp
            || one.transport != segment.transport
            || one.header_len != segment.header_len
            || segment.payload > one.payload
            || usize::from(self.count) >= GROUP_MAX
            || self.total_len + usize::from(segment.payload) > IP_LEN_MAX
        {
            return false;
        }
        let same_ip = if first[0] >> 4 == 4 {
            let id = u16::from_be_bytes([first[4], first[5]]).wrapping_add(self.count);
            first[..2] == packet[..2]
                && packet[4..6] == id.to_be_bytes()
                && first[6..10] == packet[6..10]
                && first[12..20] == packet[12..20]
        } else {
            first[..4] == packet[..4] && first[6..40] == packet[6..40]
        };
        if !same_ip {
            return false;
        }
        let transport = usize::from(one.transport);
        let (a, b) = (&first[transport..usize::from(one.header_len)], &packet[transport..usize::from(one.header_len)]);
        let same_transport = if one.tcp {
            let sequence = u32::from_be_bytes([a[4], a[5], a[6], a[7]]);
            let sequence = sequence.wrapping_add(u32::from(self.count) * u32::from(one.payload));
            // Ports; sequence; acknowledgement and header length; window; urgent pointer and options.
            a[..4] == b[..4]
                && b[4..8] == sequence.to_be_bytes()
                && a[8..13] == b[8..13]
                && a[14..16] == b[14..16]
                && a[18..] == b[18..]
        } else {
            // Ports, and a checksum in both or in none.
            a[..4] == b[..4] && (a[6..8] == [0, 0]) == (b[6..8] == [0, 0])
        };
        if !same_transport {
            return false;
        }
        self.checked = self.checked || checksums_are_right(first, one);
        self.checked && checksums_are_right(packet, &segment)
    }
}

/// Whether the IPv4 header's and the transport's checksums are right, so that recomputing them for a coalesced packet
/// makes nothing right that was wrong. An IPv4 UDP packet may have none (VXLAN does that), an IPv6 one may not.
fn checksums_are_right(packet: &[u8], segment: &Segment) -> bool {
    let transport = usize::from(segment.transport);
    let ipv4 = packet[0] >> 4 == 4;
    if ipv4 && fold(sum(&packet[..transport], 0)) != 0xffff {
        return false;
    }
    if !segment.tcp && packet[transport + UDP_CHECKSUM..][..2] == [0, 0] {
        return ipv4;
    }
    // The addresses of the pseudo-header lie right before the transport header: one pass does for both.
    let protocol = if segment.tcp { ip::TCP } else { ip::UDP };
    let rest = u64::from(word(u16::from(protocol))) + u64::from(word((packet.len() - transport) as u16));
    fold(sum(&packet[if ipv4 { 12 } else { 8 }..], rest)) == 0xffff
}

/// Protocol and offset of the transport header of a packet that could be coalesced: exactly as long as it says,
/// without IP options or extension headers, not a fragment.
fn plain_transport(packet: &[u8]) -> Option<(u8, usize)> {
    match packet.first()? {
        0x45 => {
            let header: &[u8; ip::IPV4_HEADER_LEN] = packet.first_chunk()?;
            let whole = usize::from(u16::from_be_bytes([header[2], header[3]])) == packet.len();
            // Of the flags only DF may be set.
            let fragment = u16::from_be_bytes([header[6], header[7]]) & !0x4000 != 0;
            (whole && !fragment).then_some((header[9], ip::IPV4_HEADER_LEN))
        }
        0x60..=0x6f => {
            let header: &[u8; ip::IPV6_HEADER_LEN] = packet.first_chunk()?;
            let len = ip::IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
            (len == packet.len()).then_some((header[6], ip::IPV6_HEADER_LEN))
        }
        _ => None,
    }
}

/// The bytes of both addresses; nothing where there are none.
fn addresses(packet: &[u8]) -> &[u8] {
    let range = match packet.first().map(|byte| byte >> 4) {
        Some(4) => 12..20,
        Some(6) => 8..40,
        _ => return &[],
    };
    packet.get(range).unwrap_or(&[])
}

/// Where a flow has its place among the open ones. Whoever makes flows collide only spoils the coalescing of his own
/// packets and his neighbours', so that a plain multiplicative hash does.
fn flow(packet: &[u8], transport: &[u8]) -> usize {
    const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
    let (words, _) = addresses(packet).as_chunks::<8>();
    let ports = u64::from(u32::from_ne_bytes([transport[0], transport[1], transport[2], transport[3]]));
    let hash =
        words.iter().fold(ports, |hash, word| (hash.rotate_left(23) ^ u64::from_ne_bytes(*word)).wrapping_mul(ODD));
    (hash.wrapping_mul(ODD) >> 32) as usize % FLOWS
}

/// Packets to be written as one: a header, then the payloads.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    run: &'a Run,
    next: &'a [u16],
    buffers: &'a Buffers,
    packets: &'a [PacketRef],
}

impl<'a> Group<'a> {
    /// How many packets it is: at least one, at most [`GROUP_MAX`].
    pub fn count(&self) -> usize {
        usize::from(self.run.count)
    }

    /// Whether it is TCP; says nothing about a single packet.
    pub fn is_tcp(&self) -> bool {
        self.run.segment.tcp
    }

    /// Writes what goes before the payloads, and returns its length: the virtio header, and for several packets the
    /// IP and transport header that stand for all.
    pub fn write_header(&self, to: &mut [u8; GROUP_HEADER_MAX]) -> usize {
        to[..VNET_HEADER_LEN].fill(0);
        if self.run.count == 1 {
            return VNET_HEADER_LEN;
        }
        let Segment { tcp, transport, header_len, payload, .. } = self.run.segment;
        let (transport, header_len) = (usize::from(transport), usize::from(header_len));
        let (vnet, header) = to.split_at_mut(VNET_HEADER_LEN);
        let header = &mut header[..header_len];

        let first = self.packet(self.run.first);
        header.copy_from_slice(&first[..header_len]);
        write_ip_header(header, self.run.total_len, 0);
        let transport_len = self.run.total_len - transport;
        let protocol = if tcp { ip::TCP } else { ip::UDP };
        let pseudo = fold(pseudo_header(header, protocol, transport_len));
        let field = if tcp {
            header[transport + 13] = self.packet(self.run.last)[transport + 13];
            TCP_CHECKSUM
        } else {
            header[transport + 4..transport + 6].copy_from_slice(&(transport_len as u16).to_be_bytes());
            UDP_CHECKSUM
        };
        header[transport + field..transport + field + 2].copy_from_slice(&pseudo.to_ne_bytes());

        vnet[0] = VNET_NEEDS_CSUM;
        vnet[1] = match (tcp, header[0] >> 4) {
            (true, 4) => VNET_GSO_TCPV4,
            (true, _) => VNET_GSO_TCPV6,
            (false, _) => VNET_GSO_UDP_L4,
        };
        vnet[2..4].copy_from_slice(&(header_len as u16).to_ne_bytes());
        vnet[4..6].copy_from_slice(&payload.to_ne_bytes());
        vnet[6..8].copy_from_slice(&(transport as u16).to_ne_bytes());
        vnet[8..10].copy_from_slice(&(field as u16).to_ne_bytes());
        VNET_HEADER_LEN + header_len
    }

    /// What follows the header, in order: the payload of each packet, or the whole of a single one.
    pub fn payloads(&self) -> impl Iterator<Item = &'a [u8]> {
        let skip = if self.run.count == 1 { 0 } else { usize::from(self.run.segment.header_len) };
        self.packets().map(move |packet| &packet[skip..])
    }

    /// The packets as they came, in order.
    pub fn packets(&self) -> impl Iterator<Item = &'a [u8]> {
        let Self { run, next, buffers, packets } = *self;
        let mut index = run.first;
        (0..run.count).map(move |_| {
            let place = packets[usize::from(index)];
            index = next[usize::from(index)];
            buffers.get(place)
        })
    }

    fn packet(&self, index: u16) -> &'a [u8] {
        self.buffers.get(self.packets[usize::from(index)])
    }
}

#[cfg(test)]
pub(crate) mod tests;
