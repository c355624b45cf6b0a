//! Fuzz body: what comes out of the tunnel into the TCP/IP stack, fragments above all. No packet panics; a datagram is
//! received if and only if all of its parts came and none contradicted another, byte for byte and once; and what a
//! stranger is told is never more than he said.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use adit::netstack::{Config, Net, Netstack, NetstackTun};
use adit::packet::{Buffers, PacketRef};
use adit::tun::{Tun, TunQueue};

use crate::input::Input;

/// Packets of one input.
const PACKETS_MAX: usize = 64;
/// Bytes of the longest packet.
const PACKET_MAX: usize = 2000;
/// Ports of ours: datagrams, and connections.
const UDP_PORT: u16 = 9;
const TCP_PORT: u16 = 80;
/// Packets that the stack may send for one that it gets: a segment may be answered by what waits for it.
const ANSWERS_MAX: usize = 4;

fn own(ipv6: bool) -> IpAddr {
    if ipv6 { Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into() } else { Ipv4Addr::new(10, 0, 0, 1).into() }
}

fn peer(ipv6: bool) -> IpAddr {
    if ipv6 { Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2).into() } else { Ipv4Addr::new(10, 0, 0, 2).into() }
}

/// A stack, and the wire that it is on.
struct Wire {
    net: Net,
    queue: TunQueue,
    buffers: Buffers,
    buffer: Vec<u8>,
    _tun: NetstackTun,
}

impl Wire {
    fn new() -> Self {
        let config = Config::new(vec![(own(false), 24), (own(true), 64)]);
        let (mut tun, net) = Netstack::pair(config).expect("a sensible configuration");
        let queue = tun.queues(1).expect("queues").remove(0);
        Self { net, queue, buffers: Buffers::new(1), buffer: vec![0; 65_535], _tun: tun }
    }

    /// A packet comes out of the tunnel. How many are sent then.
    fn give(&mut self, packet: &[u8]) -> usize {
        self.buffers.whole(0)[..packet.len()].copy_from_slice(packet);
        let place = PacketRef { buffer: 0, start: 0, len: packet.len() as u32 };
        self.queue.sender.send(&self.buffers, &[place]);
        let mut count = 0;
        while let Some(packet) = self.queue.receiver.receive(&mut self.buffer).expect("a stack does not fail") {
            let mut segment = vec![0; packet.segment_len(0)];
            packet.write_segment(0, &mut segment);
            assert!(matches!(segment[0] >> 4, 4 | 6));
            count += packet.count();
        }
        count
    }
}

/// The one's complement sum of the bytes as big-endian words (RFC 1071), the plainest way.
fn ones_sum(bytes: &[u8], start: u32) -> u32 {
    let mut sum = start;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum
}

fn checksum(sum: u32) -> [u8; 2] {
    (!(((sum & 0xffff) + (sum >> 16)) as u16)).to_be_bytes()
}

/// An IP packet from the peer to us.
fn packet(ipv6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    if let (IpAddr::V6(from), IpAddr::V6(to)) = (peer(ipv6), own(ipv6)) {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend(from.octets());
        packet.extend(to.octets());
    } else if let (IpAddr::V4(from), IpAddr::V4(to)) = (peer(ipv6), own(ipv6)) {
        packet.extend([0x45, 0]);
        packet.extend((20 + payload.len() as u16).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
        packet.extend(from.octets());
        packet.extend(to.octets());
        complete_header(&mut packet);
    }
    packet.extend(payload);
    packet
}

fn complete_header(packet: &mut [u8]) {
    packet[10..12].fill(0);
    let sum = checksum(ones_sum(&packet[..20], 0));
    packet[10..12].copy_from_slice(&sum);
}

/// The same packet, with the checksum of its transport at `field` right.
fn transport(ipv6: bool, protocol: u8, field: usize, mut bytes: Vec<u8>) -> Vec<u8> {
    if bytes.len() < field + 2 {
        return packet(ipv6, protocol, &bytes);
    }
    let header = packet(ipv6, protocol, &[]);
    let addresses = if ipv6 { &header[8..40] } else { &header[12..20] };
    let pseudo = if protocol == 1 { 0 } else { ones_sum(addresses, bytes.len() as u32 + u32::from(protocol)) };
    bytes[field..field + 2].fill(0);
    let sum = match checksum(ones_sum(&bytes, pseudo)) {
        // Of a datagram it would say that there is none.
        [0, 0] if protocol == 17 => [0xff, 0xff],
        sum => sum,
    };
    bytes[field..field + 2].copy_from_slice(&sum);
    packet(ipv6, protocol, &bytes)
}

/// A part of a datagram of ours: its bytes from `start` to `end`.
fn fragment(ipv6: bool, identification: u8, datagram: &[u8], start: usize, end: usize) -> Vec<u8> {
    let has_more = end < datagram.len();
    let mut part = Vec::new();
    if ipv6 {
        part.extend([17, 0]);
        part.extend((start as u16 | u16::from(has_more)).to_be_bytes());
        part.extend(u32::from(identification).to_be_bytes());
        part.extend(&datagram[start..end]);
        return packet(true, 44, &part);
    }
    part.extend(&datagram[start..end]);
    let mut packet = packet(false, 17, &part);
    packet[4..6].copy_from_slice(&u16::from(identification).to_be_bytes());
    packet[6..8].copy_from_slice(&((start / 8) as u16 | if has_more { 0x2000 } else { 0 }).to_be_bytes());
    complete_header(&mut packet);
    packet
}

/// The parts of a datagram that have come, as a naive receiver remembers them.
struct Parts {
    datagram: Vec<u8>,
    came: Vec<(usize, usize)>,
}

/// Packets: a byte of kind, and what it needs.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut wire = Wire::new();
    let sockets = [false, true].map(|ipv6| wire.net.bind_udp(SocketAddr::new(own(ipv6), UDP_PORT)).expect("free"));
    for socket in &sockets {
        socket.set_read_timeout(Some(Duration::from_nanos(1))).expect("a time");
    }
    let _listener = wire.net.listen_tcp(SocketAddr::new(own(false), TCP_PORT)).expect("free");
    let mut parts: [Option<Parts>; 16] = [const { None }; 16];
    // Other fragments that are honest and wait are given up for want of room only beyond these bounds.
    for _ in 0..PACKETS_MAX {
        if input.is_empty() {
            break;
        }
        let kind = input.byte();
        let ipv6 = kind & 0x80 != 0;
        match kind & 7 {
            // A part of one of a few datagrams; what contradicts another is left to the next arm.
            0..=2 => {
                let number = kind >> 3 & 15;
                let place = &mut parts[usize::from(number)];
                let ipv6 = number & 1 != 0;
                let made = place.get_or_insert_with(|| Parts {
                    datagram: datagram(ipv6, 40 + input.below(1400), input.byte()),
                    came: Vec::new(),
                });
                let len = made.datagram.len();
                // Cut at multiples of a step, so that parts are the same or apart.
                let step = 8 * (1 + len / 8 / 5);
                let start = input.below(len.div_ceil(step)) * step;
                let end = (start + step).min(len);
                if !made.came.contains(&(start, end)) {
                    made.came.push((start, end));
                }
                let is_whole = made.came.iter().map(|(start, end)| end - start).sum::<usize>() == len;
                let bytes = fragment(ipv6, number, &made.datagram, start, end);
                let answers = wire.give(&bytes);
                assert_eq!(answers, 0, "a datagram for a socket is not answered");
                let mut buffer = [0; PACKET_MAX];
                let received = sockets[usize::from(ipv6)].recv_from(&mut buffer);
                assert_eq!(received.is_ok(), is_whole, "{received:?}, {:?} of {len}", made.came);
                if let Ok((received, from)) = received {
                    assert_eq!(from, SocketAddr::new(peer(ipv6), 5));
                    assert_eq!(buffer[..received], made.datagram[8..]);
                    *place = None;
                }
            }
            // A fragment of any kind, of numbers that the others do not have.
            3 => {
                let mut bytes = fragment(ipv6, 0x80 | kind, &[0x5a; 64], 0, 64);
                let (more, at) = (u16::from(kind & 8 != 0), 8 * (input.word() % 8192));
                if ipv6 {
                    bytes[42..44].copy_from_slice(&(at | more).to_be_bytes());
                } else {
                    bytes[6..8].copy_from_slice(&((at / 8) | (more << 13)).to_be_bytes());
                }
                bytes.extend(input.list(PACKET_MAX - 200));
                let len = bytes.len();
                if ipv6 {
                    bytes[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
                } else {
                    bytes[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                    complete_header(&mut bytes);
                }
                assert!(wire.give(&bytes) <= ANSWERS_MAX);
            }
            4 => {
                let mut segment = vec![0x40, 0, 0, if kind & 8 != 0 { TCP_PORT as u8 } else { 81 }];
                segment.extend(input.array::<8>());
                segment.extend([0x50 | input.byte() & 0xa0, input.byte(), 0xff, 0xff, 0, 0, 0, 0]);
                segment.extend(input.list(PACKET_MAX - 200));
                let bytes = transport(ipv6, 6, 16, segment);
                assert!(wire.give(&bytes) <= ANSWERS_MAX);
            }
            5 => {
                let (protocol, field) = if ipv6 { (58, 2) } else { (1, 2) };
                let bytes = transport(ipv6, protocol, field, input.list(PACKET_MAX - 200).to_vec());
                assert!(wire.give(&bytes) <= 1);
            }
            6 => {
                let bytes = transport(ipv6, input.byte(), usize::from(kind >> 3 & 7) * 2, input.list(200).to_vec());
                assert!(wire.give(&bytes) <= ANSWERS_MAX);
            }
            _ => {
                let bytes = input.list(PACKET_MAX);
                assert!(wire.give(bytes) <= ANSWERS_MAX);
            }
        }
        for socket in &sockets {
            // What other arms have sent to it by chance.
            while socket.recv_from(&mut [0; PACKET_MAX]).is_ok() {}
        }
    }
}

/// A UDP datagram from the peer's port 5 to us.
fn datagram(ipv6: bool, len: usize, fill: u8) -> Vec<u8> {
    let mut bytes = vec![0, 5, 0, UDP_PORT as u8];
    bytes.extend((len as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend((bytes.len()..len).map(|at| fill ^ (at / 8) as u8));
    transport(ipv6, 17, 6, bytes).split_off(if ipv6 { 40 } else { 20 })
}
