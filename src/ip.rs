//! The few fields of an inner packet's header that adit reads, the one that it changes, and the Internet checksum.
//!
//! An inner packet comes from a peer or from the local system, and nothing about it is certain: every
//! function here takes any bytes at all and answers `None`, or does nothing, where they are no IP packet.
//! What lies behind the header is looked at only as far as finding the transport header requires.
//!
//! Invariants:
//! - no input panics; lengths are computed in `usize`, so that none wraps;
//! - a length that a header claims is never more than what is there.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes in an IPv4 header without options (RFC 791 §3.1).
pub const IPV4_HEADER_LEN: usize = 20;
/// Bytes in an IPv6 header without extensions (RFC 8200 §3).
pub const IPV6_HEADER_LEN: usize = 40;

/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// The two bits of the TOS or traffic class byte that carry ECN (RFC 3168 §5).
pub const ECN_MASK: u8 = 0b11;
/// ECN codepoint: the transport does not understand ECN.
pub const ECN_NOT_ECT: u8 = 0b00;
/// ECN codepoint: congestion was experienced.
pub const ECN_CE: u8 = 0b11;

/// Most IPv6 extension headers that are followed to the transport header. Each kind makes sense once (RFC 8200
/// §4.1, destination options twice); whoever sends more only wants time spent on them.
const EXTENSIONS_MAX: usize = 8;

/// An inner packet's header, as far as routing it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Who sent it.
    pub source: IpAddr,
    /// Who it is for.
    pub destination: IpAddr,
    /// Bytes of the packet, header included, by its own account: never more than there are.
    pub total_len: usize,
    /// The two ECN bits.
    pub ecn: u8,
}

impl Header {
    /// Reads the header of the packet at the start of `packet`, which may be followed by padding. `None` when this
    /// is neither IPv4 nor IPv6, or is shorter than its header says, or the header shorter than it can be.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let header: &[u8; IPV4_HEADER_LEN] = packet.first_chunk()?;
                let header_len = usize::from(header[0] & 0x0f) * 4;
                let total_len = usize::from(u16::from_be_bytes([header[2], header[3]]));
                if header_len < IPV4_HEADER_LEN || total_len < header_len || total_len > packet.len() {
                    return None;
                }
                let [.., s0, s1, s2, s3, d0, d1, d2, d3] = *header;
                Some(Self {
                    source: IpAddr::V4(Ipv4Addr::new(s0, s1, s2, s3)),
                    destination: IpAddr::V4(Ipv4Addr::new(d0, d1, d2, d3)),
                    total_len,
                    ecn: header[1] & ECN_MASK,
                })
            }
            6 => {
                let header: &[u8; IPV6_HEADER_LEN] = packet.first_chunk()?;
                let total_len = IPV6_HEADER_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
                if total_len > packet.len() {
                    return None;
                }
                Some(Self {
                    source: IpAddr::V6(ipv6_address(header, 8)),
                    destination: IpAddr::V6(ipv6_address(header, 24)),
                    total_len,
                    ecn: (header[1] >> 4) & ECN_MASK,
                })
            }
            _ => None,
        }
    }
}

fn ipv6_address(header: &[u8; IPV6_HEADER_LEN], start: usize) -> Ipv6Addr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[start..start + 16]);
    octets.into()
}

/// Carries the congestion mark of the outer header, `outer_ecn`, over to the inner packet, and repairs the IPv4
/// header checksum `[KERNEL-ECN]`. Only CE is carried over, and only to a packet whose transport understands it.
///
/// Differs from RFC 6040 §4.2, as the kernel does: an inner Not-ECT packet under an outer CE is left as it is
/// instead of being dropped, because a tunnel that loses packets on a path whose middle marks everything serves nobody.
///
/// `packet` may be any bytes; what is no IP packet is left alone.
pub fn decapsulate_ecn(packet: &mut [u8], outer_ecn: u8) {
    if outer_ecn & ECN_MASK != ECN_CE {
        return;
    }
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => {
            let Some(header) = packet.first_chunk_mut::<IPV4_HEADER_LEN>() else { return };
            let ecn = header[1] & ECN_MASK;
            if ecn == ECN_NOT_ECT || ecn == ECN_CE {
                return;
            }
            let old = u16::from_be_bytes([header[0], header[1]]);
            header[1] |= ECN_CE;
            let new = u16::from_be_bytes([header[0], header[1]]);
            // RFC 1624 §3, equation 3: HC' = ~(~HC + ~m + m').
            let checksum = u16::from_be_bytes([header[10], header[11]]);
            let sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        }
        Some(6) => {
            let Some(byte) = packet.get_mut(1) else { return };
            if (*byte >> 4) & ECN_MASK != ECN_NOT_ECT {
                *byte |= ECN_CE << 4;
            }
        }
        _ => {}
    }
}

/// Where a packet's transport header lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    /// Its protocol number.
    pub protocol: u8,
    /// Its first byte in the packet; not beyond the packet's end.
    pub offset: usize,
    /// Whether the packet is a fragment that is not the first one: there is payload at `offset`, no header.
    pub later_fragment: bool,
    /// Whether the packet is a fragment, the first one or a later one.
    pub fragment: bool,
}

/// Finds the transport header behind the IP header, its options and its extension headers. `None` when `packet` is
/// no IP packet, ends before the transport header begins, or has more than eight extension headers.
pub fn transport(packet: &[u8]) -> Option<Transport> {
    match packet.first()? >> 4 {
        4 => {
            let header: &[u8; IPV4_HEADER_LEN] = packet.first_chunk()?;
            let offset = usize::from(header[0] & 0x0f) * 4;
            if offset < IPV4_HEADER_LEN || offset > packet.len() {
                return None;
            }
            let fragment = u16::from_be_bytes([header[6], header[7]]);
            Some(Transport {
                protocol: header[9],
                offset,
                later_fragment: fragment & 0x1fff != 0,
                // More fragments follow, or this is not the first.
                fragment: fragment & 0x3fff != 0,
            })
        }
        6 => {
            let header: &[u8; IPV6_HEADER_LEN] = packet.first_chunk()?;
            let mut found =
                Transport { protocol: header[6], offset: IPV6_HEADER_LEN, later_fragment: false, fragment: false };
            for _ in 0..EXTENSIONS_MAX {
                let extension = packet.get(found.offset..)?;
                let len = match found.protocol {
                    // Hop-by-hop options, routing, destination options: length in units of eight, less one.
                    0 | 43 | 60 => (usize::from(*extension.get(1)?) + 1) * 8,
                    44 => {
                        let fragment = u16::from_be_bytes([*extension.get(2)?, *extension.get(3)?]);
                        found.fragment = true;
                        found.later_fragment = fragment & 0xfff8 != 0;
                        8
                    }
                    _ => return Some(found),
                };
                found.protocol = *extension.first()?;
                found.offset += len;
                if found.offset > packet.len() {
                    return None;
                }
                if found.later_fragment {
                    return Some(found);
                }
            }
            None
        }
        _ => None,
    }
}

// The Internet checksum (RFC 1071). Sums are of words in the machine's own order: the one's complement sum is the same
// in either order once its two bytes are swapped back, and storing it natively does that (RFC 1071 §2.B).

/// The value `number` as a word of a sum.
pub(crate) fn word(number: u16) -> u16 {
    u16::from_ne_bytes(number.to_be_bytes())
}

/// Adds `bytes`, at most 65,535 of them, to the sum `start`, as if a zero byte followed an odd number of them.
pub(crate) fn sum(bytes: &[u8], start: u64) -> u64 {
    // The halves of 64-bit words, each in a lane of its own: compilers make plain vector code of masking and shifting,
    // where reading 32-bit words makes them shuffle (4 times slower), and no lane can overflow.
    const LANES: usize = 4;
    let (mut low, mut high) = ([0u64; LANES], [0u64; LANES]);
    let (words, rest) = bytes.as_chunks::<8>();
    let (blocks, words) = words.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            let word = u64::from_ne_bytes(block[lane]);
            low[lane] += word & 0xffff_ffff;
            high[lane] += word >> 32;
        }
    }
    let mut sum = start + low.iter().sum::<u64>() + high.iter().sum::<u64>();
    for word in words {
        let word = u64::from_ne_bytes(*word);
        sum += (word & 0xffff_ffff) + (word >> 32);
    }
    let (words, rest) = rest.as_chunks::<2>();
    for word in words {
        sum += u64::from(u16::from_ne_bytes(*word));
    }
    sum + rest.first().map_or(0, |&byte| u64::from(u16::from_ne_bytes([byte, 0])))
}

/// Copies `from` to `to`, which is as long, and adds it to the sum `start`.
pub(crate) fn copy_and_sum(to: &mut [u8], from: &[u8], start: u64) -> u64 {
    // For a packet's worth the copy is still in the nearest cache when it is summed, which makes this as fast as a loop
    // that does both at once, and faster than one that only the compiler's baseline of vector code can be used for.
    to.copy_from_slice(from);
    sum(from, start)
}

/// Adds the carries back in until 16 bits are left.
pub(crate) fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The checksum field for a sum. For UDP a result of zero is sent as all ones, since zero means none (RFC 768).
pub(crate) fn finish(sum: u64, udp: bool) -> [u8; 2] {
    let checksum = !fold(sum);
    if udp && checksum == 0 { [0xff; 2] } else { checksum.to_ne_bytes() }
}

/// The sum of the pseudo-header of a packet without extension headers.
pub(crate) fn pseudo_header(packet: &[u8], protocol: u8, transport_len: usize) -> u64 {
    let addresses = if packet[0] >> 4 == 4 { &packet[12..20] } else { &packet[8..40] };
    sum(addresses, u64::from(word(u16::from(protocol))) + u64::from(word(transport_len as u16)))
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn ipv4(total_len: u16, first: u8) -> Vec<u8> {
        let mut packet = vec![0; 24];
        packet[0] = first;
        packet[2..4].copy_from_slice(&total_len.to_be_bytes());
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        packet
    }

    fn ipv6(payload_len: u16) -> Vec<u8> {
        let mut packet = vec![0; 48];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&payload_len.to_be_bytes());
        packet[6] = 59;
        packet[23] = 1;
        packet[39] = 2;
        packet
    }

    #[test]
    fn s_41_header_lengths_at_their_edges() {
        let check = |packet: &[u8], expected: Option<usize>| {
            assert_eq!(Header::parse(packet).map(|header| header.total_len), expected, "{packet:02x?}");
        };
        check(&[], None);
        check(&[0x45], None);
        check(&[0x60; 39], None);
        check(&[0x55; 100], None);
        check(&ipv4(19, 0x45), None);
        check(&ipv4(20, 0x45), Some(20));
        check(&ipv4(24, 0x45), Some(24));
        check(&ipv4(25, 0x45), None);
        check(&ipv4(0xffff, 0x45), None);
        check(&ipv4(24, 0x44), None); // IHL below 5
        check(&ipv4(23, 0x46), None); // shorter than its own header
        check(&ipv4(24, 0x46), Some(24));
        check(&ipv4(24, 0x4f), None); // header longer than the packet
        check(&ipv6(0), Some(40));
        check(&ipv6(8), Some(48));
        check(&ipv6(9), None);
        check(&ipv6(0xffff), None); // 65,575: no wrap
    }

    #[test]
    fn addresses() {
        let header = Header::parse(&ipv4(20, 0x45)).unwrap();
        assert_eq!((header.source, header.destination), ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()));
        let header = Header::parse(&ipv6(8)).unwrap();
        let address = |last| IpAddr::from([0, 0, 0, 0, 0, 0, 0, last]);
        assert_eq!((header.source, header.destination), (address(1), address(2)));
    }

    /// [KERNEL-ECN]
    #[test]
    fn s_43_congestion_marks_as_the_kernel_does() {
        for (outer, inner, expected) in
            [(0, 0, 0), (1, 2, 2), (2, 1, 1), (3, 0, 0), (3, 1, 3), (3, 2, 3), (3, 3, 3), (0, 3, 3), (2, 0, 0)]
        {
            let mut packet = ipv4(20, 0x45);
            packet[1] = 0xb8 | inner;
            let checksum = !ones_sum(&packet[..20]);
            packet[10..12].copy_from_slice(&checksum.to_be_bytes());
            decapsulate_ecn(&mut packet, outer);
            assert_eq!(packet[1], 0xb8 | expected, "IPv4, outer {outer}, inner {inner}");
            assert_eq!(ones_sum(&packet[..20]), 0xffff, "IPv4 checksum, outer {outer}, inner {inner}");

            let mut packet = ipv6(8);
            packet[0] = 0x6b;
            packet[1] = 0x8f | inner << 4;
            decapsulate_ecn(&mut packet, outer);
            assert_eq!(packet[..2], [0x6b, 0x8f | expected << 4], "IPv6, outer {outer}, inner {inner}");
            assert_eq!(Header::parse(&packet).unwrap().ecn, expected);
        }
    }

    fn ones_sum(bytes: &[u8]) -> u16 {
        let mut sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn transport_behind_extensions() {
        let mut packet = ipv6(0);
        packet.resize(80, 0);
        packet[6] = 0; // hop-by-hop, 8 bytes
        packet[40] = 60; // then destination options, 16 bytes
        packet[48] = UDP;
        packet[49] = 1;
        let expected = Transport { protocol: UDP, offset: 64, later_fragment: false, fragment: false };
        assert_eq!(transport(&packet), Some(expected));
        assert_eq!(transport(&packet[..64]), Some(expected));
        assert_eq!(transport(&packet[..63]), None);
        packet[40] = 44;
        packet[50..52].copy_from_slice(&8u16.to_be_bytes());
        let found = transport(&packet).unwrap();
        assert!(found.later_fragment && found.fragment);
        // A chain that never ends.
        let mut packet = ipv6(0);
        packet.resize(400, 0);
        assert_eq!(
            transport(&{
                packet[6] = 0;
                packet
            }),
            None
        );
    }

    proptest! {
        #[test]
        fn s_41_no_bytes_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200),
            version in prop_oneof![Just(4u8), Just(6), 0u8..16],
            claimed in prop_oneof![any::<u16>(), 0u16..250, 65_400u16..],
            ecn: u8,
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = *first & 0x0f | version << 4;
            }
            // Lengths at both ends of what the field can say.
            let field = if version == 4 { 2..4 } else { 4..6 };
            bytes.get_mut(field).into_iter().for_each(|field| field.copy_from_slice(&claimed.to_be_bytes()));
            if let Some(header) = Header::parse(&bytes) {
                prop_assert!(header.total_len <= bytes.len());
            }
            if let Some(found) = transport(&bytes) {
                prop_assert!(found.offset <= bytes.len());
            }
            decapsulate_ecn(&mut bytes, ecn);
        }
    }
}
