//! What the local sender of a packet is told when no peer takes it: destination unreachable `[KERNEL-ICMP]`.
//!
//! Without it an application would wait for its own time-out; with it `connect` fails at once. The kernel module sends
//! host unreachable (IPv4) and address unreachable (IPv6), and so does adit, back through the interface that the packet
//! came from. An error must never cause errors: RFC 1122 §3.2.2 and RFC 4443 §2.4 (e) say what must not be answered.
//!
//! Differs from the kernel: the error's source is the address that could not be reached, not one of the interface.
//! The kernel module makes its error inside the stack; ours comes in through the interface, where Linux drops IPv4
//! packets from its own addresses as martians, and strict reverse path filtering those from any address that is not
//! routed there. The one address that always is routed there is the packet's destination.
//!
//! Invariants:
//! - any bytes may be passed; what is no answerable IP packet gets no answer;
//! - an answer is never longer than what every host must be able to receive.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use crate::ip::{self, Header, IPV4_HEADER_LEN, IPV6_HEADER_LEN, finish, pseudo_header, sum};

/// Errors that are sent in a second: enough for every application that waits for one, too few to be worth causing.
pub const ERRORS_PER_SECOND: u64 = 100;

/// Errors that may be sent at once before [`ERRORS_PER_SECOND`] spaces them out.
pub const ERRORS_BURST: u64 = 10;

/// Most bytes of an ICMP error: what every IPv4 host must accept (RFC 1812 §4.3.2.3).
const IPV4_ERROR_MAX: usize = 576;

/// Most bytes of an ICMPv6 error: the least MTU of IPv6 (RFC 4443 §2.4 (c)).
const IPV6_ERROR_MAX: usize = 1280;

/// Bytes before the quoted packet: type, code, checksum, and four unused ones.
const ICMP_HEADER_LEN: usize = 8;

/// The TTL, or hop limit, of an error (RFC 1700's default).
const HOP_LIMIT: u8 = 64;

/// DSCP CS6, internetwork control, as RFC 1812 §4.3.2.5 has it for errors.
const TOS: u8 = 0xc0;

/// Type and code of ICMP destination unreachable, host unreachable (RFC 792).
const HOST_UNREACHABLE: [u8; 2] = [3, 1];

/// Type and code of ICMPv6 destination unreachable, address unreachable (RFC 4443 §3.1).
const ADDRESS_UNREACHABLE: [u8; 2] = [1, 3];

/// The same for a port that nobody listens at.
const PORT_UNREACHABLE: [u8; 2] = [3, 3];
const PORT_UNREACHABLE_V6: [u8; 2] = [1, 4];

/// ICMP types that are errors: destination unreachable, source quench, redirect, time exceeded, parameter problem.
const ICMP_ERRORS: [u8; 5] = [3, 4, 5, 11, 12];

/// First ICMPv6 type that is no error (RFC 4443 §2.1).
const ICMPV6_INFORMATIONAL: u8 = 128;

/// ICMPv6 redirect, informational by its number, which must not be answered either (RFC 4443 §2.4 (e.2)).
const ICMPV6_REDIRECT: u8 = 137;

/// A whole IP packet with an ICMP error in it.
#[derive(Debug, Clone)]
pub struct Unreachable {
    bytes: [u8; IPV6_ERROR_MAX],
    len: usize,
}

impl Deref for Unreachable {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The destination unreachable message that answers `packet`, an inner packet from the local system. `None` when it
/// must not be answered, or is no IP packet.
pub fn unreachable(packet: &[u8]) -> Option<Unreachable> {
    error(packet, HOST_UNREACHABLE, ADDRESS_UNREACHABLE)
}

/// The same that answers a packet to a port of ours that nobody listens at.
pub fn port_unreachable(packet: &[u8]) -> Option<Unreachable> {
    error(packet, PORT_UNREACHABLE, PORT_UNREACHABLE_V6)
}

fn error(packet: &[u8], reason_v4: [u8; 2], reason_v6: [u8; 2]) -> Option<Unreachable> {
    let header = Header::parse(packet)?;
    let packet = &packet[..header.total_len];
    let transport = ip::transport(packet)?;
    if transport.later_fragment {
        return None;
    }
    let icmp_type = packet.get(transport.offset);
    match (header.source, header.destination) {
        (IpAddr::V4(sender), IpAddr::V4(receiver)) => {
            let group = |address: Ipv4Addr| address.is_multicast() || address.is_broadcast();
            let error = transport.protocol == ip::ICMP && icmp_type.is_none_or(|kind| ICMP_ERRORS.contains(kind));
            let nobody = sender.is_unspecified() || sender.is_loopback() || group(sender);
            (!error && !nobody && !group(receiver)).then(|| ipv4_error(packet, reason_v4, receiver, sender))
        }
        (IpAddr::V6(sender), IpAddr::V6(receiver)) => {
            let error = transport.protocol == ip::ICMPV6
                && icmp_type.is_none_or(|&kind| kind < ICMPV6_INFORMATIONAL || kind == ICMPV6_REDIRECT);
            let nobody = sender.is_unspecified() || sender.is_loopback() || sender.is_multicast();
            (!error && !nobody && !receiver.is_multicast()).then(|| ipv6_error(packet, reason_v6, receiver, sender))
        }
        _ => None,
    }
}

fn ipv4_error(packet: &[u8], reason: [u8; 2], source: Ipv4Addr, destination: Ipv4Addr) -> Unreachable {
    let len = IPV4_ERROR_MAX.min(IPV4_HEADER_LEN + ICMP_HEADER_LEN + packet.len());
    let mut error = Unreachable { bytes: [0; IPV6_ERROR_MAX], len };
    let (header, message) = error.bytes[..len].split_at_mut(IPV4_HEADER_LEN);
    header[0] = 0x45;
    header[1] = TOS;
    header[2..4].copy_from_slice(&(len as u16).to_be_bytes());
    header[8] = HOP_LIMIT;
    header[9] = ip::ICMP;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&destination.octets());
    let checksum = finish(sum(header, 0), false);
    header[10..12].copy_from_slice(&checksum);
    write_message(message, reason, packet, 0);
    error
}

fn ipv6_error(packet: &[u8], reason: [u8; 2], source: Ipv6Addr, destination: Ipv6Addr) -> Unreachable {
    let len = IPV6_ERROR_MAX.min(IPV6_HEADER_LEN + ICMP_HEADER_LEN + packet.len());
    let mut error = Unreachable { bytes: [0; IPV6_ERROR_MAX], len };
    let (header, message) = error.bytes[..len].split_at_mut(IPV6_HEADER_LEN);
    header[0] = 0x60 | TOS >> 4;
    header[1] = TOS << 4;
    header[4..6].copy_from_slice(&(message.len() as u16).to_be_bytes());
    header[6] = ip::ICMPV6;
    header[7] = HOP_LIMIT;
    header[8..24].copy_from_slice(&source.octets());
    header[24..40].copy_from_slice(&destination.octets());
    let pseudo = pseudo_header(header, ip::ICMPV6, message.len());
    write_message(message, reason, packet, pseudo);
    error
}

/// Fills `message` with an error that quotes as much of `packet` as there is room for; `pseudo` is the sum of the
/// pseudo-header that its checksum covers.
fn write_message(message: &mut [u8], type_and_code: [u8; 2], packet: &[u8], pseudo: u64) {
    message[..2].copy_from_slice(&type_and_code);
    let quoted = message.len() - ICMP_HEADER_LEN;
    message[ICMP_HEADER_LEN..].copy_from_slice(&packet[..quoted]);
    let checksum = finish(sum(message, pseudo), false);
    message[2..4].copy_from_slice(&checksum);
}

/// Spaces errors out: [`ERRORS_BURST`] at once, [`ERRORS_PER_SECOND`] in the long run.
#[derive(Debug, Clone, Default)]
pub struct Limiter {
    /// When the errors sent so far would have been sent at an even pace, in nanoseconds.
    paid_until: u64,
}

impl Limiter {
    /// Whether an error may be sent at `now` (nanoseconds on a clock that never goes back), which is then counted.
    pub fn allow(&mut self, now: u64) -> bool {
        const PACE: u64 = 1_000_000_000 / ERRORS_PER_SECOND;
        let next = self.paid_until.max(now).saturating_add(PACE);
        if next > now.saturating_add(PACE * ERRORS_BURST) {
            return false;
        }
        self.paid_until = next;
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ip::fold;

    fn ipv4(protocol: u8, len: usize) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        packet[9] = protocol;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        packet
    }

    fn ipv6(protocol: u8, len: usize) -> Vec<u8> {
        let mut packet = vec![0; len];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(len as u16 - 40).to_be_bytes());
        packet[6] = protocol;
        packet[8] = 0xfd;
        packet[23] = 1;
        packet[24] = 0xfd;
        packet[39] = 2;
        packet
    }

    /// [KERNEL-ICMP]
    #[test]
    fn an_error_is_well_formed() {
        for len in [28, 548, 549, 1400] {
            let packet = ipv4(ip::UDP, len);
            let error = unreachable(&packet).unwrap();
            let header = Header::parse(&error).unwrap();
            assert_eq!((header.source, header.destination), ([10, 0, 0, 2].into(), [10, 0, 0, 1].into()));
            assert_eq!(header.total_len, error.len());
            assert_eq!(error.len(), (28 + len).min(576));
            assert_eq!(error[20..22], HOST_UNREACHABLE);
            assert_eq!(error[28..], packet[..error.len() - 28]);
            assert_eq!((fold(sum(&error[..20], 0)), fold(sum(&error[20..], 0))), (0xffff, 0xffff));
        }
        for len in [48, 1232, 1233, 1400] {
            let packet = ipv6(ip::TCP, len);
            let error = unreachable(&packet).unwrap();
            let header = Header::parse(&error).unwrap();
            assert_eq!(
                (header.source, header.destination),
                ("fd00::2".parse().unwrap(), "fd00::1".parse::<IpAddr>().unwrap())
            );
            assert_eq!((header.total_len, error.len()), (error.len(), (48 + len).min(1280)));
            assert_eq!(error[40..42], ADDRESS_UNREACHABLE);
            assert_eq!(error[48..], packet[..error.len() - 48]);
            let message_len = error.len() - 40;
            assert_eq!(fold(sum(&error[40..], pseudo_header(&error, ip::ICMPV6, message_len))), 0xffff);
        }
    }

    #[test]
    fn a_closed_port_is_another_reason() {
        let error = port_unreachable(&ipv4(ip::UDP, 60)).unwrap();
        assert_eq!((&error[20..22], fold(sum(&error[20..], 0))), (&PORT_UNREACHABLE[..], 0xffff));
        assert_eq!(port_unreachable(&ipv6(ip::UDP, 60)).unwrap()[40..42], PORT_UNREACHABLE_V6);
        assert!(port_unreachable(&error).is_none(), "no error is answered by another");
    }

    /// [KERNEL-ICMP], and RFC 1122 §3.2.2, RFC 4443 §2.4.
    #[test]
    fn what_must_not_be_answered() {
        type Change = fn(&mut Vec<u8>);
        let check = |base: Vec<u8>, answered: bool, name: &str, change: Change| {
            let mut packet = base;
            change(&mut packet);
            assert_eq!(unreachable(&packet).is_some(), answered, "{name}");
        };
        let v4 = |protocol, answered, name, change: Change| check(ipv4(protocol, 60), answered, name, change);
        v4(ip::ICMP, true, "echo request", |p| p[20] = 8);
        for (name, change) in [
            ("unreachable", (|p| p[20] = 3) as Change),
            ("source quench", |p| p[20] = 4),
            ("redirect", |p| p[20] = 5),
            ("time exceeded", |p| p[20] = 11),
            ("parameter problem", |p| p[20] = 12),
            ("nothing of the message", |p| {
                p.truncate(20);
                p[3] = 20;
            }),
        ] {
            v4(ip::ICMP, false, name, change);
        }
        v4(ip::UDP, true, "the first fragment", |p| p[6] = 0x20);
        v4(ip::UDP, false, "a later fragment", |p| p[7] = 1);
        v4(ip::UDP, false, "to multicast", |p| p[16] = 224);
        v4(ip::UDP, false, "to broadcast", |p| p[16..20].fill(255));
        v4(ip::UDP, false, "from nobody", |p| p[12..16].fill(0));
        v4(ip::UDP, false, "from multicast", |p| p[12] = 224);
        v4(ip::UDP, false, "from broadcast", |p| p[12..16].fill(255));
        v4(ip::UDP, false, "from loopback", |p| p[12] = 127);

        let v6 = |protocol, answered, name, change: Change| check(ipv6(protocol, 80), answered, name, change);
        v6(ip::ICMPV6, true, "echo request", |p| p[40] = 128);
        v6(ip::ICMPV6, false, "an error", |p| p[40] = 1);
        v6(ip::ICMPV6, false, "an unknown error", |p| p[40] = 127);
        v6(ip::ICMPV6, false, "redirect", |p| p[40] = 137);
        v6(ip::UDP, false, "to multicast", |p| p[24] = 0xff);
        v6(ip::UDP, false, "from multicast", |p| p[8] = 0xff);
        v6(ip::UDP, false, "from nobody", |p| p[8..24].fill(0));
        v6(44, true, "the first fragment", |p| p[40] = ip::UDP);
        v6(44, false, "a later fragment", |p| {
            p[40] = ip::UDP;
            p[43] = 8;
        });
        check(vec![0x45; 10], false, "no packet", |_| {});
    }

    /// [KERNEL-ICMP]
    #[test]
    fn errors_are_limited() {
        let mut limiter = Limiter::default();
        let second = |limiter: &mut Limiter, start: u64| {
            (0..100_000).filter(|i| limiter.allow(start + i * 10_000)).count() as u64
        };
        let first = second(&mut limiter, 5_000_000_000);
        assert!((ERRORS_PER_SECOND..=ERRORS_PER_SECOND + ERRORS_BURST).contains(&first), "{first}");
        assert_eq!(second(&mut limiter, 6_000_000_000), ERRORS_PER_SECOND);
        // A quiet hour is not saved up.
        let burst = (0..1000).filter(|_| limiter.allow(3_600_000_000_000)).count() as u64;
        assert_eq!(burst, ERRORS_BURST);
        assert!(!Limiter { paid_until: u64::MAX }.allow(0));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..1500), ipv4: bool, whole: bool) {
            if let Some(first) = bytes.first_mut() {
                *first = if ipv4 { 0x45 } else { 0x60 };
            }
            if whole && bytes.len() >= 40 {
                let len = bytes.len() as u16;
                if ipv4 {
                    bytes[2..4].copy_from_slice(&len.to_be_bytes());
                } else {
                    bytes[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                }
            }
            if let Some(error) = unreachable(&bytes) {
                // No error is answered by another.
                prop_assert!(unreachable(&error).is_none());
            }
        }
    }
}
