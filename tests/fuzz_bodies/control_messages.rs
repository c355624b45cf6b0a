//! Fuzz body (Z-08): the control messages beside a datagram, as any kernel could leave them. No bytes panic; what comes
//! before a malformed message counts, what comes after it does not; and what is written is read back.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

// The parser is of the layer that nobody outside sees, so its file is taken as it is.
#[path = "../../src/sys/cmsg.rs"]
#[allow(dead_code, unreachable_pub)]
mod cmsg;
use crate::input::Input;
use cmsg::{CONTROL_LEN, Control, Inbound, Outbound};

const WORD: usize = size_of::<usize>();
/// Length, level and type of a message, aligned.
const HEADER_LEN: usize = (WORD + 8).next_multiple_of(WORD);

/// The plainest reading: the messages of a buffer up to the first that is malformed.
fn messages(control: &[u8]) -> Vec<(i32, i32, Vec<u8>)> {
    let (mut found, mut at) = (Vec::new(), 0usize);
    while at < control.len() && control.len() - at >= WORD + 8 {
        let number = |start: usize| i32::from_ne_bytes([0, 1, 2, 3].map(|n| control[at + start + n]));
        let mut len = [0; WORD];
        len.copy_from_slice(&control[at..at + WORD]);
        let len = usize::from_ne_bytes(len);
        if len < HEADER_LEN || len > control.len() - at {
            break;
        }
        found.push((number(WORD), number(WORD + 4), control[at + HEADER_LEN..at + len].to_vec()));
        at += len.next_multiple_of(WORD);
    }
    found
}

/// What those messages say.
fn model(control: &[u8]) -> Inbound {
    let mut inbound = Inbound::default();
    for (level, kind, data) in messages(control) {
        let word = |at: usize| Some(<[u8; 4]>::try_from(data.get(at..at + 4)?).expect("four bytes"));
        if (level, kind) == (libc::IPPROTO_IP, libc::IP_PKTINFO) {
            if let (Some(interface), Some(address)) = (word(0), word(4)) {
                inbound.local = Some((IpAddr::V4(Ipv4Addr::from(address)), u32::from_ne_bytes(interface)));
            }
        } else if (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) {
            if let Some(interface) = word(16) {
                let address = <[u8; 16]>::try_from(&data[..16]).expect("sixteen bytes");
                inbound.local = Some((IpAddr::V6(Ipv6Addr::from(address)), u32::from_ne_bytes(interface)));
            }
        } else if (level, kind) == (libc::IPPROTO_IP, libc::IP_TOS) {
            inbound.tos = data.first().copied().unwrap_or(inbound.tos);
        } else if (level, kind) == (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) {
            inbound.tos = word(0).map_or(inbound.tos, |class| (i32::from_ne_bytes(class) & 0xff) as u8);
        } else if (level, kind) == (libc::SOL_UDP, libc::UDP_GRO)
            && let Some(segment) = word(0)
        {
            let segment = i32::from_ne_bytes(segment);
            inbound.segment = (segment > 0).then_some(segment as u32);
        }
    }
    inbound
}

/// An even first byte: a control buffer. An odd one: what is to be written, and bytes after it.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let kind = input.byte();
    if kind & 1 == 0 {
        let mut control = input.bytes(2 * CONTROL_LEN).to_vec();
        assert_eq!(Inbound::parse(&control), model(&control));
        // The same with a length that fits, so that more than the first message is met.
        if let Some(len) = control.first_chunk_mut::<WORD>() {
            *len = (HEADER_LEN + usize::from(kind >> 3)).to_ne_bytes();
        }
        assert_eq!(Inbound::parse(&control), model(&control));
        return;
    }
    let ipv6 = kind & 2 != 0;
    let interface = u32::from(input.word());
    let address = if ipv6 { IpAddr::V6(input.array().into()) } else { IpAddr::V4(input.array::<4>().into()) };
    let outbound = Outbound {
        local: (kind & 4 != 0).then_some((address, interface)),
        tos: input.byte(),
        segment: (kind & 8 != 0).then(|| input.word()),
    };
    let mut control = Control::EMPTY;
    let len = outbound.write(&mut control, ipv6);
    assert!(len <= CONTROL_LEN && len.is_multiple_of(WORD));
    let inbound = Inbound::parse(&control.0[..len]);
    assert_eq!((inbound.local, inbound.tos, inbound.segment), (outbound.local, outbound.tos, None));
    // A message that cannot be one ends the reading, and takes nothing back.
    let mut more = control.0[..len].to_vec();
    more.extend((usize::from(input.byte()) % HEADER_LEN).to_ne_bytes());
    more.extend(input.bytes(CONTROL_LEN));
    assert_eq!(Inbound::parse(&more), inbound);
}
