//! Fuzz body: segmentation offload both ways. No offload header panics; what is split are whole IP packets with right
//! checksums; what is coalesced and split again are the packets that there were, each once, those of a flow in order.

use std::collections::BTreeMap;

use adit::ip::{self, Header};
use adit::packet::{BUFFER_LEN, Buffers, PacketRef};
use adit::tun::offload::{COALESCE_BATCH, Coalescer, GROUP_HEADER_MAX, SuperPacket, VNET_HEADER_LEN};

/// Bytes of parameters for one made packet.
const STEP: usize = 6;
/// Packets made from one input.
const STEPS: usize = 200;

/// An even first byte: an offload header and a packet as the system might hand them over. An odd one: a list of packets
/// to make and to coalesce.
pub(crate) fn run(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    let packets: Vec<Vec<u8>> = if kind & 1 == 0 {
        let Some((vnet, packet)) = data.split_first_chunk() else { return };
        split(vnet, packet)
    } else {
        let mut sequences = BTreeMap::new();
        data.chunks_exact(STEP).take(STEPS).map(|step| make(step, &mut sequences)).collect()
    };
    coalesce(&packets, kind & 2 == 0, kind & 4 == 0);
}

/// Splits one packet of the system's, if it is one.
fn split(vnet: &[u8; VNET_HEADER_LEN], packet: &[u8]) -> Vec<Vec<u8>> {
    let Ok(whole) = SuperPacket::parse(vnet, packet) else { return Vec::new() };
    let packets: Vec<Vec<u8>> = (0..whole.count()).map(|index| segment(&whole, index)).collect();
    for packet in &packets {
        let header = Header::parse(packet).expect("a segment is an IP packet");
        assert_eq!(header.total_len, packet.len());
        assert_eq!((header.source, header.destination), (whole.header().source, whole.header().destination));
    }
    packets
}

fn segment(whole: &SuperPacket<'_>, index: usize) -> Vec<u8> {
    let mut packet = vec![0xaa; whole.segment_len(index)];
    assert_eq!(whole.write_segment(index, &mut packet), packet.len());
    packet
}

/// Coalesces packets as if they had come from a peer, and splits every group again.
fn coalesce(packets: &[Vec<u8>], tcp: bool, udp: bool) {
    let mut places = Vec::new();
    let (mut buffer, mut start) = (0, 0);
    for packet in packets {
        if start + packet.len() > BUFFER_LEN {
            (buffer, start) = (buffer + 1, 0);
        }
        places.push(PacketRef { buffer, start: start as u32, len: packet.len() as u32 });
        start += packet.len();
    }
    let mut buffers = Buffers::new(buffer as usize + 1);
    for (packet, &place) in packets.iter().zip(&places) {
        buffers.get_mut(place).copy_from_slice(packet);
    }

    let mut coalescer = Coalescer::new(tcp, udp);
    let mut flows_in = BTreeMap::<Vec<u8>, Vec<&[u8]>>::new();
    let mut flows_out = BTreeMap::<Vec<u8>, Vec<Vec<u8>>>::new();
    for packet in packets {
        flows_in.entry(flow(packet)).or_default().push(packet);
    }
    let mut rest = &places[..];
    while !rest.is_empty() {
        let taken = coalescer.coalesce(&buffers, rest);
        assert_eq!(taken, rest.len().min(COALESCE_BATCH));
        for group in coalescer.groups(&buffers, &rest[..taken]) {
            let mut header = [0; GROUP_HEADER_MAX];
            let header_len = group.write_header(&mut header);
            let vnet = *header.first_chunk().expect("a group header begins with the offload header");
            let mut bytes = header[VNET_HEADER_LEN..header_len].to_vec();
            group.payloads().for_each(|payload| bytes.extend_from_slice(payload));
            let whole = SuperPacket::parse(&vnet, &bytes).expect("a group is what a system would hand over");
            assert_eq!(whole.count(), group.count());
            for (index, original) in group.packets().enumerate() {
                let again = segment(&whole, index);
                assert_eq!(without_completed_checksum(&again, original), original, "packet {index} of a group");
                flows_out.entry(flow(original)).or_default().push(original.to_vec());
            }
        }
        rest = &rest[taken..];
    }
    assert_eq!(flows_in.len(), flows_out.len());
    for (flow, packets) in flows_in {
        assert_eq!(flows_out[&flow], packets, "a flow's packets, in order");
    }
}

/// Whatever a packet has in common with those that it may not overtake: its addresses, protocol and ports.
fn flow(packet: &[u8]) -> Vec<u8> {
    let addresses = if packet[0] >> 4 == 4 { 12..20 } else { 8..40 };
    let mut flow = packet[addresses].to_vec();
    if let Some(transport) = ip::transport(packet).filter(|transport| !transport.fragment) {
        flow.push(transport.protocol);
        flow.extend(packet[transport.offset..].iter().take(4));
    }
    flow
}

/// An IPv4 UDP packet without a checksum may get one; nothing else may change.
fn without_completed_checksum(again: &[u8], original: &[u8]) -> Vec<u8> {
    let mut again = again.to_vec();
    if let Some(transport) = ip::transport(original)
        && (transport.protocol, original[0] >> 4, transport.fragment) == (ip::UDP, 4, false)
        && original.get(transport.offset + 6..transport.offset + 8) == Some(&[0, 0])
    {
        again[transport.offset + 6..transport.offset + 8].fill(0);
    }
    again
}

/// Makes a packet of one of a few flows from its parameters, mostly one that continues its flow.
fn make(step: &[u8], sequences: &mut BTreeMap<u8, (u32, u16)>) -> Vec<u8> {
    let &[kind, len, flags, gap, spoil, fill] = step else { unreachable!("chunks are of this length") };
    let (ipv6, udp, flow) = (kind & 1 != 0, kind & 2 != 0, kind & 0x0f);
    let (sequence, id) = sequences.entry(flow).or_insert((u32::MAX - 3000, u16::MAX - 3));
    let payload_len = [0, 1, 2, 100, 512, 1000, 1372, 1400][usize::from(len & 7)] + usize::from(len >> 6);
    let (ip_len, protocol) = (if ipv6 { 40 } else { 20 }, if udp { ip::UDP } else { ip::TCP });
    let options_len = if kind & 0x10 != 0 { 12 } else { 0 };
    let transport_len = if udp { 8 } else { 20 + options_len };
    let total_len = ip_len + transport_len + payload_len;

    let mut packet = vec![fill; total_len];
    let (ip, transport) = packet.split_at_mut(ip_len);
    ip.fill(0);
    if ipv6 {
        ip[0] = 0x60;
        ip[4..6].copy_from_slice(&((total_len - ip_len) as u16).to_be_bytes());
        (ip[6], ip[7]) = (protocol, 64);
        (ip[8], ip[24]) = (0xfd, 0xfd);
        (ip[23], ip[39]) = (1, 2);
    } else {
        ip[0] = 0x45;
        ip[2..4].copy_from_slice(&(total_len as u16).to_be_bytes());
        ip[4..6].copy_from_slice(&id.to_be_bytes());
        ip[6] = (kind & 0x20) << 1;
        (ip[8], ip[9]) = (64, protocol);
        ip[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        let checksum = !ones_sum(ip, 0);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    *id = id.wrapping_add(u16::from(gap & 0x10 == 0));

    transport[..transport_len].fill(0);
    transport[..4].copy_from_slice(&[4, flow >> 2, 0, 80]);
    let field = if udp {
        transport[4..6].copy_from_slice(&((total_len - ip_len) as u16).to_be_bytes());
        6
    } else {
        transport[4..8].copy_from_slice(&sequence.to_be_bytes());
        transport[12] = (transport_len as u8 / 4) << 4;
        // Mostly a plain ACK, at times with another flag.
        transport[13] = 0x10 | if flags >= 0xc0 { flags & 0x3f } else { 0 };
        transport[15] = flags & 1;
        16
    };
    *sequence = sequence.wrapping_add(payload_len as u32 + u32::from(gap & 0x0f == 0x0f));
    let pseudo = ones_sum(&ip[if ipv6 { 8 } else { 12 }..], 0);
    let start = u32::from(pseudo) + u32::from(protocol) + (total_len - ip_len) as u32;
    let checksum = match !ones_sum(transport, start) {
        0 if udp => 0xffff,
        checksum => checksum,
    };
    let none = udp && !ipv6 && kind & 0x40 != 0;
    transport[field..field + 2].copy_from_slice(&if none { 0 } else { checksum }.to_be_bytes());

    // Some are spoilt, anywhere but in what makes them one whole IP packet.
    if spoil >= 0xf0 {
        let at = [1, 6, 8][usize::from(spoil & 3) % 3];
        let at = if spoil & 8 != 0 { ip_len + usize::from(fill) % (total_len - ip_len) } else { at };
        packet[at] ^= fill;
        if Header::parse(&packet).is_none_or(|header| header.total_len != packet.len()) {
            packet[at] ^= fill;
        }
    }
    packet
}

/// The one's complement sum of the bytes as big-endian words (RFC 1071), the plainest way.
fn ones_sum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}
