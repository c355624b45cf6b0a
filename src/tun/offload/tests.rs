//! Splitting and coalescing against each other, and both against garbage.

use proptest::prelude::*;

use super::*;

/// What a generated packet looks like; everything else about it is fixed.
#[derive(Debug, Clone)]
pub(crate) struct Shape {
    ipv4: bool,
    tcp: bool,
    flow: u8,
    pub(crate) id: u16,
    tos: u8,
    ttl: u8,
    sequence: u32,
    flags: u8,
    window: u16,
    options: usize,
    payload: Vec<u8>,
    checksum: Checksum,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Checksum {
    Right,
    Wrong,
    None,
}

impl Shape {
    pub(crate) fn tcp(ipv4: bool, sequence: u32, len: usize) -> Self {
        Self {
            ipv4,
            tcp: true,
            flow: 0,
            id: 100,
            tos: 0,
            ttl: 64,
            sequence,
            flags: TCP_ACK,
            window: 500,
            options: 12,
            payload: (0..len).map(|i| sequence.wrapping_add(i as u32) as u8).collect(),
            checksum: Checksum::Right,
        }
    }

    pub(crate) fn udp(ipv4: bool, len: usize) -> Self {
        Self { tcp: false, ..Self::tcp(ipv4, 7, len) }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let header_len = if self.tcp { 20 + self.options } else { 8 };
        let transport_len = header_len + self.payload.len();
        let mut packet = if self.ipv4 {
            let mut header =
                vec![0x45, self.tos, 0, 0, 0, 0, 0x40, 0, self.ttl, 0, 0, 0, 10, 0, 0, self.flow, 10, 0, 1, 1];
            header[2..4].copy_from_slice(&(20 + transport_len as u16).to_be_bytes());
            header[4..6].copy_from_slice(&self.id.to_be_bytes());
            header[9] = if self.tcp { ip::TCP } else { ip::UDP };
            let checksum = reference_checksum(&[&header]);
            header[10..12].copy_from_slice(&checksum);
            header
        } else {
            let mut header = vec![0; 40];
            header[0] = 0x60 | self.tos >> 4;
            header[1] = self.tos << 4;
            header[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
            header[6] = if self.tcp { ip::TCP } else { ip::UDP };
            header[7] = self.ttl;
            header[8] = 0xfd;
            header[23] = self.flow;
            header[24] = 0xfd;
            header[39] = 1;
            header
        };
        let mut transport = vec![0; header_len];
        transport[..4].copy_from_slice(&[0x12, 0x34, 0x43, 0x21]);
        let field = if self.tcp {
            transport[4..8].copy_from_slice(&self.sequence.to_be_bytes());
            transport[8..12].copy_from_slice(&[1, 2, 3, 4]);
            transport[12] = (header_len as u8 / 4) << 4;
            transport[13] = self.flags;
            transport[14..16].copy_from_slice(&self.window.to_be_bytes());
            transport[20..].fill(1);
            TCP_CHECKSUM
        } else {
            transport[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
            UDP_CHECKSUM
        };
        transport.extend(&self.payload);
        packet.extend(transport);
        fill_checksum(&mut packet, field);
        let field = packet.len() - transport_len + field;
        match self.checksum {
            Checksum::Right => {}
            Checksum::Wrong => packet[field] ^= 0x40,
            Checksum::None => packet[field..field + 2].fill(0),
        }
        packet
    }
}

/// The checksum of RFC 1071 as its text says it, two big-endian bytes at a time.
fn reference_checksum(parts: &[&[u8]]) -> [u8; 2] {
    let bytes = parts.concat();
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

fn fill_checksum(packet: &mut [u8], field: usize) {
    let (addresses, start, protocol) =
        if packet[0] >> 4 == 4 { (12..20, 20, packet[9]) } else { (8..40, 40, packet[6]) };
    packet[start + field..start + field + 2].fill(0);
    let len = (packet.len() - start) as u16;
    let pseudo = [&packet[addresses], &[0, protocol], &len.to_be_bytes()].concat();
    let mut checksum = reference_checksum(&[&pseudo, &packet[start..]]);
    if protocol == ip::UDP && checksum == [0, 0] {
        checksum = [0xff; 2];
    }
    packet[start + field..start + field + 2].copy_from_slice(&checksum);
}

/// Puts packets into buffers, coalesces, and gives back each group's header and payloads in one piece.
fn coalesce(packets: &[Vec<u8>]) -> Vec<(usize, Vec<u8>)> {
    let mut buffers = Buffers::new(packets.len());
    let mut places = Vec::new();
    for (index, packet) in packets.iter().enumerate() {
        buffers.whole(index as u32)[..packet.len()].copy_from_slice(packet);
        places.push(PacketRef { buffer: index as u32, start: 0, len: packet.len() as u32 });
    }
    let mut coalescer = Coalescer::new(true, true);
    let mut groups = Vec::new();
    let mut rest = &places[..];
    while !rest.is_empty() {
        let taken = coalescer.coalesce(&buffers, rest);
        for group in coalescer.groups(&buffers, &rest[..taken]) {
            let mut header = [0; GROUP_HEADER_MAX];
            let len = group.write_header(&mut header);
            let payloads: Vec<&[u8]> = group.payloads().collect();
            assert_eq!(payloads.len(), group.count());
            groups.push((group.count(), [&header[..len], &payloads.concat()].concat()));
        }
        rest = &rest[taken..];
    }
    groups
}

fn split(written: &[u8]) -> Vec<Vec<u8>> {
    let (vnet, bytes) = written.split_first_chunk().unwrap();
    let packet = SuperPacket::parse(vnet, bytes).unwrap();
    (0..packet.count())
        .map(|index| {
            let mut segment = vec![0xaa; packet.segment_len(index) + 3];
            let len = packet.write_segment(index, &mut segment);
            assert_eq!(segment[len..], [0xaa; 3], "wrote too much");
            segment.truncate(len);
            segment
        })
        .collect()
}

/// The counts of the groups, and that splitting them gives back what went in.
fn check(shapes: &[Shape], expected: &[usize]) {
    let packets: Vec<Vec<u8>> = shapes.iter().map(Shape::bytes).collect();
    let groups = coalesce(&packets);
    assert_eq!(groups.iter().map(|(count, _)| *count).collect::<Vec<_>>(), expected, "{shapes:#?}");
    let mut all: Vec<Vec<u8>> = groups.iter().flat_map(|(_, written)| split(written)).collect();
    let mut packets = packets;
    all.sort();
    packets.sort();
    assert!(all == packets, "split ∘ coalesce");
}

fn run(shape: fn(u16) -> Shape, count: u16) -> Vec<Shape> {
    (0..count).map(shape).collect()
}

fn tcp4(i: u16) -> Shape {
    Shape { id: 65_530u16.wrapping_add(i), ..Shape::tcp(true, 0xffff_f000u32.wrapping_add(u32::from(i) * 1400), 1400) }
}

fn tcp6(i: u16) -> Shape {
    Shape::tcp(false, u32::from(i) * 1001, 1001)
}

fn udp4(i: u16) -> Shape {
    Shape { id: i, ..Shape::udp(true, 1372) }
}

#[test]
fn runs_become_one() {
    check(&run(tcp4, 45), &[45]); // over the wrap of sequence and identification
    check(&run(tcp6, 60), &[60]); // odd lengths
    check(&run(udp4, 40), &[40]);
    check(&run(|_| Shape::udp(false, 600), 40), &[40]);
    check(&run(tcp4, 50), &[46, 4]); // 65,535 bytes
    check(&run(|i| Shape::tcp(false, u32::from(i) * 2, 2), 300), &[128, 128, 44]); // GROUP_MAX
}

#[test]
fn a_shorter_one_or_psh_closes() {
    let mut shapes = run(tcp6, 6);
    shapes[3].payload.truncate(700);
    shapes[4].sequence -= 301;
    shapes[5].sequence -= 301;
    check(&shapes, &[4, 2]);
    let mut shapes = run(tcp4, 6);
    shapes[2].flags |= TCP_PSH;
    check(&shapes, &[3, 3]);
    shapes[0].flags |= TCP_PSH;
    check(&shapes, &[1, 2, 3]);
    let mut shapes = run(udp4, 4);
    shapes[0].payload.truncate(1000); // the next one is longer
    check(&shapes, &[1, 3]);
    shapes[2].payload.truncate(1); // too short to be a segment
    check(&shapes, &[1, 1, 1, 1]);
}

#[test]
fn any_difference_parts() {
    let changes: [fn(&mut Shape); 9] = [
        |shape| shape.flow = 1,
        |shape| shape.id += 1,
        |shape| shape.tos = 1,
        |shape| shape.ttl = 63,
        |shape| shape.sequence += 1,
        |shape| shape.flags |= TCP_FIN,
        |shape| shape.window = 1,
        |shape| shape.options = 16,
        |shape| shape.checksum = Checksum::Wrong,
    ];
    for (index, change) in changes.iter().enumerate() {
        let mut shapes = run(tcp4, 2);
        change(&mut shapes[1]);
        println!("change {index}");
        check(&shapes, &[1, 1]);
    }
}

/// A packet with a wrong checksum is never merged into right ones.
#[test]
fn s_44_a_wrong_checksum_stays_with_its_packet() {
    for place in 0..4 {
        let mut shapes = run(tcp4, 4);
        shapes[place].checksum = Checksum::Wrong;
        let packets: Vec<Vec<u8>> = shapes.iter().map(Shape::bytes).collect();
        let alone = [&[0; VNET_HEADER_LEN][..], &packets[place]].concat();
        assert!(coalesce(&packets).contains(&(1, alone)), "at {place}");
    }
    // A wrong IPv4 header checksum, too.
    let mut packets: Vec<Vec<u8>> = run(tcp4, 3).iter().map(Shape::bytes).collect();
    packets[1][10] ^= 1;
    assert_eq!(coalesce(&packets).iter().map(|group| group.0).collect::<Vec<_>>(), [1, 1, 1]);
}

#[test]
fn udp_without_checksum_merges_on_ipv4_only() {
    let packets = |ipv4, both| -> Vec<Vec<u8>> {
        let second = if both { Checksum::None } else { Checksum::Right };
        [Checksum::None, second]
            .iter()
            .zip(0u16..)
            .map(|(&checksum, id)| Shape { checksum, id, ..Shape::udp(ipv4, 1200) }.bytes())
            .collect()
    };
    let counts = |packets: &[Vec<u8>]| coalesce(packets).iter().map(|group| group.0).collect::<Vec<_>>();
    assert_eq!(counts(&packets(true, true)), [2]);
    assert_eq!(counts(&packets(true, false)), [1, 1]);
    assert_eq!(counts(&packets(false, true)), [1, 1]);
    // A split gives them checksums.
    let (_, written) = &coalesce(&packets(true, true))[0];
    let expected: Vec<Vec<u8>> = (0..2).map(|id| Shape { id, ..Shape::udp(true, 1200) }.bytes()).collect();
    assert!(split(written) == expected);
}

#[test]
fn an_unclassified_packet_is_not_overtaken() {
    let mut packets: Vec<Vec<u8>> = run(udp4, 4).iter().map(Shape::bytes).collect();
    packets[2][6] = 0x20; // the first fragment of something between the same hosts
    let counts: Vec<usize> = coalesce(&packets).iter().map(|group| group.0).collect();
    assert_eq!(counts, [2, 1, 1]);
}

#[test]
fn segments_of_a_tcp_super_packet() {
    let mut packet = Shape { flags: TCP_ACK | TCP_PSH | TCP_FIN | TCP_CWR, ..Shape::tcp(true, 1000, 2500) }.bytes();
    let transport_len = packet.len() - 20;
    let partial = fold(pseudo_header(&packet, ip::TCP, transport_len));
    packet[36..38].copy_from_slice(&partial.to_ne_bytes());
    let mut vnet = [0; VNET_HEADER_LEN];
    vnet[0] = VNET_NEEDS_CSUM;
    vnet[1] = VNET_GSO_TCPV4 | VNET_GSO_ECN;
    vnet[2..4].copy_from_slice(&9999u16.to_ne_bytes()); // hdr_len is not to be trusted
    vnet[4..6].copy_from_slice(&1000u16.to_ne_bytes());
    vnet[6..8].copy_from_slice(&20u16.to_ne_bytes());
    vnet[8..10].copy_from_slice(&16u16.to_ne_bytes());
    let segments = split(&[&vnet[..], &packet].concat());
    let whole = Shape::tcp(true, 1000, 2500).payload;
    let expected: Vec<Vec<u8>> =
        [(0usize, 1000usize, TCP_ACK | TCP_CWR), (1, 1000, TCP_ACK), (2, 500, TCP_ACK | TCP_PSH | TCP_FIN)]
            .map(|(i, len, flags)| {
                let payload = whole[i * 1000..][..len].to_vec();
                let shape = Shape::tcp(true, 1000 + i as u32 * 1000, 0);
                Shape { id: 100 + i as u16, flags, payload, ..shape }.bytes()
            })
            .into();
    assert!(segments == expected);
}

#[test]
fn a_missing_checksum_is_completed() {
    for tcp in [true, false] {
        let shape = Shape { tcp, ..Shape::tcp(false, 5, 333) };
        let expected = shape.bytes();
        let mut packet = expected.clone();
        let (protocol, field) = if tcp { (ip::TCP, 16) } else { (ip::UDP, 6) };
        let partial = fold(pseudo_header(&packet, protocol, packet.len() - 40));
        packet[40 + field..42 + field].copy_from_slice(&partial.to_ne_bytes());
        let mut vnet = [0; VNET_HEADER_LEN];
        vnet[0] = VNET_NEEDS_CSUM;
        vnet[6..8].copy_from_slice(&40u16.to_ne_bytes());
        vnet[8..10].copy_from_slice(&(field as u16).to_ne_bytes());
        assert!(split(&[&vnet[..], &packet].concat()) == [expected]);
    }
}

#[test]
fn inconsistent_offload_headers_are_refused() {
    let packets: Vec<Vec<u8>> = run(tcp4, 3).iter().map(Shape::bytes).collect();
    let (_, good) = coalesce(&packets).remove(0);
    assert_eq!(split(&good).len(), 3);
    let set = |at: usize, value: u16| {
        let mut bytes = good.clone();
        bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        bytes
    };
    let flags = |flags, kind| set(0, u16::from_ne_bytes([flags, kind]));
    let cut = |len: usize| good[..len].to_vec();
    for (name, written) in [
        ("gso_size 0", set(4, 0)),
        ("gso_size 1", set(4, 1)),
        ("gso_size beyond the packet", set(4, good.len() as u16)),
        ("csum_start beyond the end", set(6, 60_000)),
        ("csum_start not at the transport header", set(6, 24)),
        ("csum_offset of UDP", set(8, 6)),
        ("csum_offset at the edge of numbers", set(8, 65_535)),
        ("no checksum asked for", flags(0, VNET_GSO_TCPV4)),
        ("IPv6 on IPv4", flags(1, VNET_GSO_TCPV6)),
        ("UDP on TCP", flags(1, VNET_GSO_UDP_L4)),
        ("UFO, never asked for", flags(1, 3)),
        ("an unknown type", flags(1, 77)),
        ("single, csum_start beyond the end", {
            let mut bytes = set(6, 60_000);
            bytes[1] = 0;
            bytes
        }),
        ("truncated in the payload", cut(1000)),
        ("truncated in the header", cut(45)),
        ("IP options that are not there", {
            let mut bytes = good.clone();
            bytes[VNET_HEADER_LEN] = 0x4f;
            bytes
        }),
        ("a TCP header of 4 bytes", {
            let mut bytes = good.clone();
            bytes[VNET_HEADER_LEN + 32] = 0x10;
            bytes
        }),
        ("a fragment", {
            let mut bytes = good.clone();
            bytes[VNET_HEADER_LEN + 6] = 0x20;
            bytes
        }),
    ] {
        let (vnet, bytes) = written.split_first_chunk().unwrap();
        assert_eq!(SuperPacket::parse(vnet, bytes).err(), Some(Malformed), "{name}");
    }
}

prop_compose! {
    /// Mostly continuations of one of three flows, with now and then something different.
    fn shapes()(
        ipv4: bool,
        tcp: bool,
        len in prop_oneof![Just(700usize), 1usize..1500],
        steps in proptest::collection::vec((0u8..3, 0u8..24, any::<u8>(), prop_oneof![8 => Just(0usize), 1 => 0usize..40]), 1..60),
    ) -> Vec<Shape> {
        let mut flows: Vec<Shape> = (0..3).map(|flow| Shape { flow, tcp, ..Shape::tcp(ipv4, 0xffff_0000, 0) }).collect();
        steps.into_iter().map(|(flow, change, value, shorter)| {
            let flow = &mut flows[usize::from(flow)];
            flow.payload = (0..len.saturating_sub(shorter)).map(|i| i as u8 ^ value).collect();
            let mut shape = flow.clone();
            match change {
                0 => shape.flags = value,
                1 => shape.checksum = Checksum::Wrong,
                2 => shape.id = shape.id.wrapping_add(u16::from(value)),
                3 => shape.window = u16::from(value),
                4 => shape.tos = value,
                5 => shape.options = usize::from(value % 11) * 4,
                6 => shape.flags |= TCP_PSH,
                7 => shape.sequence = shape.sequence.wrapping_add(u32::from(value)),
                8 => shape.ttl = value,
                _ => {}
            }
            flow.sequence = flow.sequence.wrapping_add(flow.payload.len() as u32);
            flow.id = flow.id.wrapping_add(1);
            shape
        }).collect()
    }
}

proptest! {
    #[test]
    fn s_44_split_after_coalesce_gives_the_bytes_back(shapes in shapes()) {
        let packets: Vec<Vec<u8>> = shapes.iter().map(Shape::bytes).collect();
        let groups = coalesce(&packets);
        let split: Vec<Vec<u8>> = groups.iter().flat_map(|(_, written)| split(written)).collect();
        // Flow by flow: the same packets in the same order.
        let of_flow = |packets: &[Vec<u8>], flow: u8| -> Vec<Vec<u8>> {
            packets.iter().filter(|packet| packet[if packet[0] >> 4 == 4 { 15 } else { 23 }] == flow).cloned().collect()
        };
        prop_assert_eq!(split.len(), packets.len());
        for flow in 0..3 {
            prop_assert!(of_flow(&split, flow) == of_flow(&packets, flow), "flow {}", flow);
        }
    }

    #[test]
    fn s_44_wrong_checksums_travel_alone(mut shapes in shapes(), wrong in proptest::collection::vec(0u8..5, 60)) {
        let spoilt = shapes.iter_mut().zip(wrong).filter(|(_, wrong)| *wrong == 0);
        spoilt.for_each(|(shape, _)| shape.checksum = Checksum::Wrong);
        let packets: Vec<Vec<u8>> = shapes.iter().map(Shape::bytes).collect();
        let groups = coalesce(&packets);
        for (shape, packet) in shapes.iter().zip(&packets).filter(|(shape, _)| shape.checksum == Checksum::Wrong) {
            let alone = [&[0; VNET_HEADER_LEN][..], packet].concat();
            prop_assert!(groups.contains(&(1, alone)), "{:?}", shape);
        }
    }

    #[test]
    fn no_offload_header_panics(
        vnet: [u8; VNET_HEADER_LEN],
        shapes in shapes(),
        patches in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        sane: bool,
    ) {
        let (_, mut written) = coalesce(&shapes.iter().map(Shape::bytes).collect::<Vec<_>>()).remove(0);
        if !sane {
            written[..VNET_HEADER_LEN].copy_from_slice(&vnet);
        }
        for (at, byte) in patches {
            let at = at.index(written.len().min(100));
            written[at] = byte;
        }
        let (vnet, bytes) = written.split_first_chunk().unwrap();
        if let Ok(packet) = SuperPacket::parse(vnet, bytes) {
            let count = packet.count();
            let mut segment = vec![0; 65_535];
            for index in 0..count {
                let len = packet.write_segment(index, &mut segment);
                prop_assert!(Header::parse(&segment[..len]).is_some_and(|header| header.total_len == len));
                prop_assert!(index + 1 == count || len == packet.segment_len(0));
            }
        }
    }

    #[test]
    fn no_packets_panic(
        shapes in shapes(),
        patches in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 0..20),
        garbage in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..10),
    ) {
        let mut packets: Vec<Vec<u8>> = shapes.iter().map(Shape::bytes).collect();
        for (packet, at, byte) in patches {
            let packet = packet.index(packets.len());
            let at = at.index(packets[packet].len().min(70));
            packets[packet][at] = byte;
        }
        packets.extend(garbage);
        let groups = coalesce(&packets);
        prop_assert_eq!(groups.iter().map(|group| group.0).sum::<usize>(), packets.len());
        for (count, written) in groups {
            if count > 1 {
                prop_assert!(split(&written).iter().all(|packet| packets.contains(packet)));
            }
        }
    }

    #[test]
    fn sums_as_rfc_1071_has_it(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut copy = vec![0; bytes.len()];
        prop_assert_eq!(finish(copy_and_sum(&mut copy, &bytes, 0), false), reference_checksum(&[&bytes]));
        prop_assert_eq!(finish(sum(&bytes, 0), false), reference_checksum(&[&bytes]));
        prop_assert_eq!(copy, bytes);
    }
}
