//! IP headers and checksums of the packets that the stack makes and takes itself.
//!
//! Invariants:
//! - what is begun here is an IP packet without options, complete with its header checksum;
//! - a checksum is completed or verified over what lies in the packet, never over what a length field claims.

use std::net::IpAddr;

use crate::ip::{self, IPV4_HEADER_LEN, IPV6_HEADER_LEN, finish, fold, pseudo_header, sum};

/// The TTL, or hop limit, of all that is sent (RFC 1700's default).
const HOP_LIMIT: u8 = 64;

/// Don't fragment: with it the identification means nothing and may be zero (RFC 6864 §4.1).
const DONT_FRAGMENT: u8 = 0x40;

/// Bytes in a UDP header (RFC 768).
pub(super) const UDP_HEADER_LEN: usize = 8;
/// Bytes in a TCP header without options (RFC 9293 §3.1).
pub(super) const TCP_HEADER_LEN: usize = 20;
/// Bytes in an ICMP echo message's header, and in an ICMP error's (RFC 792, RFC 4443).
pub(super) const ICMP_HEADER_LEN: usize = 8;

/// TCP flags (RFC 9293 §3.1).
pub(super) const TCP_FIN: u8 = 0x01;
pub(super) const TCP_SYN: u8 = 0x02;
pub(super) const TCP_RST: u8 = 0x04;
pub(super) const TCP_PSH: u8 = 0x08;
pub(super) const TCP_ACK: u8 = 0x10;

/// Bytes in the IP header of what is sent between these addresses.
pub(super) fn ip_header_len(address: IpAddr) -> usize {
    if address.is_ipv4() { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN }
}

/// The same of a packet of ours: it has no options and no extension headers.
pub(super) fn ip_header_len_of(packet: &[u8]) -> usize {
    if packet.first().is_some_and(|byte| byte >> 4 == 4) { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN }
}

/// What a TCP segment, in a packet that arrived, acknowledges; whether it does so, its flags tell.
pub(super) fn acknowledgement(packet: &[u8]) -> Option<u32> {
    let segment = packet.get(ip::transport(packet)?.offset..)?;
    segment.get(8..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// Whether a TCP segment, in a packet that arrived, is nothing but its header.
pub(super) fn has_no_payload(packet: &[u8]) -> bool {
    let Some(segment) = ip::transport(packet).and_then(|transport| packet.get(transport.offset..)) else {
        return false;
    };
    segment.get(12).is_some_and(|offset| usize::from(offset >> 4) * 4 == segment.len())
}

/// Where the window scale option of a TCP header has its value (RFC 7323 §2.2); `None` when there is no such option.
pub(super) fn window_scale_mut(segment: &mut [u8]) -> Option<&mut u8> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const WINDOW_SCALE: u8 = 3;
    let header_len = usize::from(segment.get(12)? >> 4) * 4;
    let mut at = TCP_HEADER_LEN;
    while at < header_len {
        match *segment.get(at)? {
            END => return None,
            NOTHING => at += 1,
            WINDOW_SCALE => return segment.get_mut(at + 2),
            // The length, of at least kind and length.
            _ => at += usize::from(*segment.get(at + 1)?).max(2),
        }
    }
    None
}

/// Begins a packet with its IP header; `payload_len` bytes of `protocol` are to follow it.
///
/// # Panics
/// When the addresses are of two families: a programmer's error.
pub(super) fn begin(source: IpAddr, destination: IpAddr, protocol: u8, payload_len: usize) -> Vec<u8> {
    let mut packet = Vec::with_capacity(IPV6_HEADER_LEN + payload_len);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let total_len = ((IPV4_HEADER_LEN + payload_len) as u16).to_be_bytes();
            packet.extend([0x45, 0, total_len[0], total_len[1], 0, 0, DONT_FRAGMENT, 0, HOP_LIMIT, protocol, 0, 0]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
            complete_ipv4_header(&mut packet);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let payload_len = (payload_len as u16).to_be_bytes();
            packet.extend([0x60, 0, 0, 0, payload_len[0], payload_len[1], protocol, HOP_LIMIT]);
            packet.extend(source.octets());
            packet.extend(destination.octets());
        }
        _ => unreachable!("both addresses of a packet are of one family"),
    }
    packet
}

/// Fills in the checksum of the IPv4 header, without options, at the start of `packet`.
pub(super) fn complete_ipv4_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let checksum = finish(sum(&packet[..IPV4_HEADER_LEN], 0), false);
    packet[10..12].copy_from_slice(&checksum);
}

/// Where the checksum lies in a transport header.
fn checksum_field(protocol: u8) -> usize {
    match protocol {
        ip::TCP => 16,
        ip::UDP => 6,
        _ => 2,
    }
}

/// What the checksum of a transport covers beyond its own bytes.
fn covered(packet: &[u8], protocol: u8, transport_len: usize) -> u64 {
    if protocol == ip::ICMP { 0 } else { pseudo_header(packet, protocol, transport_len) }
}

/// Fills in the transport checksum of a packet whose transport header begins at `offset`.
pub(super) fn complete(packet: &mut [u8], offset: usize, protocol: u8) {
    let field = offset + checksum_field(protocol);
    packet[field..field + 2].fill(0);
    let covered = covered(packet, protocol, packet.len() - offset);
    let checksum = finish(sum(&packet[offset..], covered), protocol == ip::UDP);
    packet[field..field + 2].copy_from_slice(&checksum);
}

/// Writes the sum of the pseudo-header where the transport's checksum goes, as whoever completes it later expects.
/// Returns where that is, from the transport's start.
pub(super) fn leave_to_be_completed(packet: &mut [u8], offset: usize, protocol: u8) -> usize {
    let pseudo = fold(covered(packet, protocol, packet.len() - offset));
    let field = checksum_field(protocol);
    packet[offset + field..offset + field + 2].copy_from_slice(&pseudo.to_ne_bytes());
    field
}

/// Whether the IPv4 header and the transport that begins at `offset` are as they were sent. `packet` ends where its
/// header says.
pub(super) fn are_checksums_right(packet: &[u8], offset: usize, protocol: u8) -> bool {
    is_header_checksum_right(packet) && {
        let transport = &packet[offset..];
        let field = checksum_field(protocol);
        // RFC 768: none was made. RFC 8200 §8.1: over IPv6 there must be one.
        if protocol == ip::UDP && transport.get(field..field + 2) == Some(&[0, 0]) {
            return packet[0] >> 4 == 4;
        }
        fold(sum(transport, covered(packet, protocol, transport.len()))) == 0xffff
    }
}

/// Whether the IPv4 header is as it was sent; IPv6 has no checksum there.
pub(super) fn is_header_checksum_right(packet: &[u8]) -> bool {
    packet[0] >> 4 != 4 || fold(sum(&packet[..usize::from(packet[0] & 0x0f) * 4], 0)) == 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ip::Header;

    #[test]
    fn what_is_completed_is_right_and_one_bit_makes_it_wrong() {
        let v4 = |last| IpAddr::from([10, 0, 0, last]);
        let v6 = |last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last]);
        for (source, destination) in [(v4(1), v4(2)), (v6(1), v6(2))] {
            for protocol in [ip::TCP, ip::UDP, if source.is_ipv4() { ip::ICMP } else { ip::ICMPV6 }] {
                for payload in [20, 33, 1200] {
                    let mut packet = begin(source, destination, protocol, payload);
                    let offset = packet.len();
                    packet.extend((0..payload).map(|byte| byte as u8));
                    complete(&mut packet, offset, protocol);
                    let header = Header::parse(&packet).unwrap();
                    assert_eq!((header.source, header.destination), (source, destination));
                    assert_eq!(header.total_len, packet.len());
                    assert!(are_checksums_right(&packet, offset, protocol), "{source} {protocol} {payload}");
                    for byte in [offset, packet.len() - 1, offset - 1] {
                        packet[byte] ^= 0x10;
                        assert!(
                            !are_checksums_right(&packet, offset, protocol) || protocol == ip::ICMP && byte < offset
                        );
                        packet[byte] ^= 0x10;
                    }
                }
            }
        }
    }

    /// RFC 768: zero is no checksum; over IPv6 that is not allowed.
    #[test]
    fn udp_without_a_checksum() {
        for (address, expected) in
            [(IpAddr::from([10, 0, 0, 1]), true), (IpAddr::from([1, 0, 0, 0, 0, 0, 0, 1]), false)]
        {
            let mut packet = begin(address, address, ip::UDP, 12);
            let offset = packet.len();
            packet.extend([0x30, 0x39, 0x30, 0x39, 0, 12, 0, 0, 1, 2, 3, 4]);
            assert_eq!(are_checksums_right(&packet, offset, ip::UDP), expected);
        }
    }
}
