//! Control messages of datagrams: what the kernel says beside the bytes, and what it is told.
//!
//! Plain byte work on the kernel's layout (`cmsghdr`: length as a native `size_t`, level and type as
//! native `int`, then the data, everything aligned to `size_t`), so that a parser bug can at worst
//! misread a field. A malformed list ends the reading; what was read before it counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const ALIGN: usize = size_of::<usize>();
const HEADER_LEN: usize = (size_of::<usize>() + 8).next_multiple_of(ALIGN);

/// Bytes of control data for one datagram. The most that is asked for is IPV6_PKTINFO,
/// IPV6_TCLASS and UDP_GRO: 40 + 24 + 24 on a 64-bit system; the rest is slack for what a later
/// kernel adds to one of them.
pub(crate) const CONTROL_LEN: usize = 128;

/// A control buffer, aligned as the kernel wants it.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct Control(pub(crate) [u8; CONTROL_LEN]);

impl Control {
    pub(crate) const EMPTY: Self = Self([0; CONTROL_LEN]);
}

/// What came beside a received datagram.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Inbound {
    /// Our address that it came to and the interface that it came in on.
    pub(crate) local: Option<(IpAddr, u32)>,
    /// The outer header's TOS or traffic class byte.
    pub(crate) tos: u8,
    /// Bytes of each datagram when several were coalesced.
    pub(crate) segment: Option<u32>,
}

impl Inbound {
    /// Reads a control buffer as `recvmsg` left it; unknown messages are passed over.
    pub(crate) fn parse(control: &[u8]) -> Self {
        let mut inbound = Self::default();
        for (level, kind, data) in Messages(control) {
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                    // in_pktinfo: interface, the local address that an answer should have, the
                    // header's destination. They differ for broadcast and multicast only.
                    if let (Some(ifindex), Some(address)) = (array(data, 0), array::<4>(data, 4)) {
                        inbound.local = Some((Ipv4Addr::from(address).into(), u32::from_ne_bytes(ifindex)));
                    }
                }
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                    if let (Some(address), Some(ifindex)) = (array::<16>(data, 0), array(data, 16)) {
                        inbound.local = Some((Ipv6Addr::from(address).into(), u32::from_ne_bytes(ifindex)));
                    }
                }
                (libc::IPPROTO_IP, libc::IP_TOS) => {
                    if let Some(&tos) = data.first() {
                        inbound.tos = tos;
                    }
                }
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    if let Some(class) = array(data, 0) {
                        inbound.tos = i32::from_ne_bytes(class) as u8;
                    }
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    if let Some(segment) = array(data, 0) {
                        inbound.segment = u32::try_from(i32::from_ne_bytes(segment)).ok().filter(|&len| len > 0);
                    }
                }
                _ => {}
            }
        }
        inbound
    }
}

/// What the kernel is told beside a datagram to be sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outbound {
    /// The address to leave from, and the interface (0 lets the routing decide).
    pub(crate) local: Option<(IpAddr, u32)>,
    /// The outer header's TOS or traffic class byte; 0 is the default and costs nothing.
    pub(crate) tos: u8,
    /// Cut the bytes into datagrams of this many each.
    pub(crate) segment: Option<u16>,
}

impl Outbound {
    /// Writes the control messages for a receiver of the given family; returns their length.
    pub(crate) fn write(&self, control: &mut Control, ipv6: bool) -> usize {
        let mut writer = Writer { control: &mut control.0, len: 0 };
        match self.local {
            Some((IpAddr::V4(address), ifindex)) => {
                let mut info = [0; 12];
                info[..4].copy_from_slice(&ifindex.to_ne_bytes());
                info[4..8].copy_from_slice(&address.octets());
                writer.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some((IpAddr::V6(address), ifindex)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&address.octets());
                info[16..].copy_from_slice(&ifindex.to_ne_bytes());
                writer.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        if self.tos != 0 {
            let (level, kind) =
                if ipv6 { (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) } else { (libc::IPPROTO_IP, libc::IP_TOS) };
            writer.push(level, kind, &i32::from(self.tos).to_ne_bytes());
        }
        if let Some(segment) = self.segment {
            writer.push(libc::SOL_UDP, libc::UDP_SEGMENT, &segment.to_ne_bytes());
        }
        writer.len
    }
}

/// The messages of a control buffer: level, type, data.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = (i32, i32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let len = usize::from_ne_bytes(array(self.0, 0)?);
        let level = i32::from_ne_bytes(array(self.0, size_of::<usize>())?);
        let kind = i32::from_ne_bytes(array(self.0, size_of::<usize>() + 4)?);
        let data = self.0.get(HEADER_LEN..len)?;
        let next = len.checked_next_multiple_of(ALIGN)?;
        self.0 = self.0.get(next..).unwrap_or_default();
        Some((level, kind, data))
    }
}

struct Writer<'a> {
    control: &'a mut [u8; CONTROL_LEN],
    len: usize,
}

impl Writer<'_> {
    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let message = &mut self.control[self.len..];
        let len = HEADER_LEN + data.len();
        message[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
        message[size_of::<usize>()..][..4].copy_from_slice(&level.to_ne_bytes());
        message[size_of::<usize>() + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        message[HEADER_LEN..len].copy_from_slice(data);
        self.len += len.next_multiple_of(ALIGN);
    }
}

/// `N` bytes of `data` from `start`, if it has them.
fn array<const N: usize>(data: &[u8], start: usize) -> Option<[u8; N]> {
    data.get(start..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(messages: &[(i32, i32, &[u8])]) -> Vec<u8> {
        let mut control = Control::EMPTY;
        let mut writer = Writer { control: &mut control.0, len: 0 };
        for (level, kind, data) in messages {
            writer.push(*level, *kind, data);
        }
        let len = writer.len;
        control.0[..len].to_vec()
    }

    #[test]
    fn what_the_kernel_says_is_read() {
        let v4 = raw(&[
            (libc::IPPROTO_IP, libc::IP_PKTINFO, &[7, 0, 0, 0, 10, 0, 0, 1, 10, 0, 0, 255]),
            (libc::IPPROTO_IP, libc::IP_TOS, &[0x89]),
            (libc::SOL_SOCKET, libc::SO_TIMESTAMP, &[0; 16]),
            (libc::SOL_UDP, libc::UDP_GRO, &1452i32.to_ne_bytes()),
        ]);
        let expected = Inbound {
            local: Some((IpAddr::from([10, 0, 0, 1]), u32::from_ne_bytes([7, 0, 0, 0]))),
            tos: 0x89,
            segment: Some(1452),
        };
        assert_eq!(Inbound::parse(&v4), expected);

        let mut info = [0; 20];
        info[15] = 1;
        info[16..].copy_from_slice(&3u32.to_ne_bytes());
        let v6 = raw(&[
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &3i32.to_ne_bytes()),
        ]);
        let expected = Inbound { local: Some((Ipv6Addr::LOCALHOST.into(), 3)), tos: 3, segment: None };
        assert_eq!(Inbound::parse(&v6), expected);
    }

    #[test]
    fn what_is_written_has_the_kernels_layout() {
        let mut control = Control::EMPTY;
        let outbound = Outbound { local: Some(([10, 0, 0, 1].into(), 0)), tos: 0x88, segment: Some(1000) };
        let len = outbound.write(&mut control, false);
        let messages: Vec<_> = Messages(&control.0[..len]).collect();
        assert_eq!(
            messages,
            [
                (libc::IPPROTO_IP, libc::IP_PKTINFO, &[0, 0, 0, 0, 10, 0, 0, 1, 0, 0, 0, 0][..]),
                (libc::IPPROTO_IP, libc::IP_TOS, &0x88i32.to_ne_bytes()[..]),
                (libc::SOL_UDP, libc::UDP_SEGMENT, &1000u16.to_ne_bytes()[..]),
            ]
        );
        assert_eq!(Outbound::default().write(&mut control, true), 0);
        let fullest = Outbound { local: Some((Ipv6Addr::LOCALHOST.into(), 1)), tos: 1, segment: Some(1) };
        assert!(fullest.write(&mut control, true) <= CONTROL_LEN);
    }

    #[test]
    fn a_segment_that_is_no_length_is_none() {
        for segment in [0, -1, i32::MIN] {
            let control = raw(&[(libc::SOL_UDP, libc::UDP_GRO, &segment.to_ne_bytes())]);
            assert_eq!(Inbound::parse(&control).segment, None);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end_without_a_panic(control in proptest::collection::vec(any::<u8>(), 0..256)) {
            Inbound::parse(&control);
        }

        #[test]
        fn any_lengths_end_without_a_panic(len in any::<usize>(), kind in 0..64i32, data in any::<[u8; 24]>()) {
            let mut control = raw(&[(libc::IPPROTO_IP, kind, &data)]);
            control[..size_of::<usize>()].copy_from_slice(&len.to_ne_bytes());
            Inbound::parse(&control);
        }
    }
}
