//! What a peer does that is not a TCP/IP stack but somebody who means ill: packets by hand into a stack, and what comes
//! out of it. The stack is driven by its two ends, without a device in between.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use adit::netstack::{Config, Net, Netstack, NetstackTun, TcpStream};
use adit::packet::{Buffers, PacketRef};
use adit::tun::{Tun, TunQueue};

const PATIENCE: Duration = Duration::from_secs(20);
const TCP: u8 = 6;
const UDP: u8 = 17;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Own address of the stack, and one of somebody in the tunnel.
const OWN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
const OWN_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1));
const PEER_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));

/// A stack, and the wire that it is on.
struct Wire {
    net: Net,
    queue: TunQueue,
    buffers: Buffers,
    buffer: Vec<u8>,
    _tun: NetstackTun,
}

impl Wire {
    fn new(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::new(vec![(OWN, 24), (OWN_V6, 64)]);
        change(&mut config);
        let (mut tun, net) = Netstack::pair(config).expect("a sensible configuration");
        let queue = tun.queues(1).expect("queues").remove(0);
        Self { net, queue, buffers: Buffers::new(1), buffer: vec![0; 65_535], _tun: tun }
    }

    /// A packet comes out of the tunnel.
    fn give(&mut self, packet: &[u8]) {
        self.buffers.whole(0)[..packet.len()].copy_from_slice(packet);
        let place = PacketRef { buffer: 0, start: 0, len: packet.len() as u32 };
        self.queue.sender.send(&self.buffers, &[place]);
    }

    /// All packets that the stack has to send now, cut up.
    fn take(&mut self) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        while let Some(packet) = self.queue.receiver.receive(&mut self.buffer).expect("a stack does not fail") {
            for index in 0..packet.count() {
                let mut segment = vec![0; packet.segment_len(index)];
                packet.write_segment(index, &mut segment);
                packets.push(segment);
            }
        }
        packets
    }

    /// What it sends within some time, until `enough` of it is there.
    fn wait_for(&mut self, enough: impl Fn(&[Vec<u8>]) -> bool) -> Vec<Vec<u8>> {
        let start = Instant::now();
        let mut packets = Vec::new();
        while !enough(&packets) {
            assert!(start.elapsed() < PATIENCE, "of what was waited for only {} packets came", packets.len());
            packets.append(&mut self.take());
            std::thread::sleep(Duration::from_millis(1));
        }
        packets
    }

    /// A connection from the stack to the peer's port 7, and where it is; the peer is the test.
    fn connect(&mut self, peer: IpAddr) -> (TcpStream, Segment) {
        let net = self.net.clone();
        let connecting = std::thread::spawn(move || net.connect_tcp(SocketAddr::new(peer, 7), PATIENCE));
        let syn = read(&self.wait_for(|packets| !packets.is_empty())[0]);
        assert_eq!(syn.flags, SYN);
        self.give(&tcp(syn.to, syn.from, 1000, syn.sequence.wrapping_add(1), SYN | ACK, &[]));
        let stream = connecting.join().expect("no panic").expect("connected");
        (stream, Segment { sequence: syn.sequence.wrapping_add(1), ..syn })
    }
}

/// The Internet checksum (RFC 1071), of several pieces of which all but the last are even.
fn checksum(pieces: &[&[u8]]) -> [u8; 2] {
    let words = pieces.iter().flat_map(|piece| piece.chunks(2));
    let mut sum: u32 = words.map(|word| u32::from(word[0]) << 8 | word.get(1).map_or(0, |byte| u32::from(*byte))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// An IP packet.
fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            packet.extend([0x45, 0]);
            packet.extend((20 + payload.len() as u16).to_be_bytes());
            packet.extend([0, 0, 0, 0, 64, protocol, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            let sum = checksum(&[&packet]);
            packet[10..12].copy_from_slice(&sum);
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
        }
        _ => unreachable!("one family"),
    }
    packet.extend(payload);
    packet
}

/// A transport with its checksum filled in at `field`.
fn transport(from: IpAddr, to: IpAddr, protocol: u8, field: usize, mut bytes: Vec<u8>) -> Vec<u8> {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let len = (bytes.len() as u32).to_be_bytes();
    let sum = if protocol == 1 {
        checksum(&[&bytes])
    } else {
        checksum(&[&octets(from), &octets(to), &len, &[0, protocol], &bytes])
    };
    bytes[field..field + 2].copy_from_slice(&sum);
    ip(from, to, protocol, &bytes)
}

fn tcp(from: SocketAddr, to: SocketAddr, sequence: u32, acknowledgement: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend(acknowledgement.to_be_bytes());
    bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(payload);
    transport(from.ip(), to.ip(), TCP, 16, bytes)
}

fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend((8 + payload.len() as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    transport(from.ip(), to.ip(), UDP, 6, bytes)
}

/// An ICMP error about `quoted`, from the peer.
fn icmp(quoted: &[u8], type_and_code: [u8; 2], rest: u32) -> Vec<u8> {
    let mut bytes = type_and_code.to_vec();
    bytes.extend([0, 0]);
    bytes.extend(rest.to_be_bytes());
    bytes.extend(&quoted[..quoted.len().min(548)]);
    if quoted[0] >> 4 == 4 { transport(PEER, OWN, 1, 2, bytes) } else { transport(PEER_V6, OWN_V6, 58, 2, bytes) }
}

/// What a test looks at in a TCP segment.
#[derive(Debug, Clone, Copy)]
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
}

fn addresses(packet: &[u8]) -> (IpAddr, IpAddr, usize) {
    if packet[0] >> 4 == 4 {
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).expect("four bytes"));
        (address(12), address(16), 20)
    } else {
        let address = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen bytes"));
        (address(8), address(24), 40)
    }
}

fn read(packet: &[u8]) -> Segment {
    let (source, destination, offset) = addresses(packet);
    let segment = &packet[offset..];
    let port = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let number = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("four bytes"));
    Segment {
        from: SocketAddr::new(source, port(0)),
        to: SocketAddr::new(destination, port(2)),
        sequence: number(4),
        acknowledgement: number(8),
        flags: segment[13],
    }
}

/// Bytes that tell if some are missing or changed places.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|number| (number.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

/// Megabytes of this process in memory.
fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux says so");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("it is there");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number") >> 10
}

/// Requests for connections that nobody confirms: memory is bounded, and who confirms is let in meanwhile.
#[test]
fn a_flood_of_requests() {
    const FLOOD: u32 = 20_000;
    let mut wire = Wire::new(|_| ());
    let listener = wire.net.listen_tcp(SocketAddr::new(OWN, 80)).unwrap();
    let before = resident_mib();
    let from =
        |number: u32| SocketAddr::from((Ipv4Addr::from(0x0a01_0000 + number / 60_000), (number % 60_000) as u16 + 1));
    let at = SocketAddr::new(OWN, 80);
    let client = SocketAddr::new(PEER, 999);
    let mut answers = 0;
    for number in 0..FLOOD {
        wire.give(&tcp(from(number), at, number, 0, SYN, &[]));
        if number % 8 == 7 {
            answers += wire.take().len();
        }
        if number % 2000 == 1000 {
            // In the middle of it a client.
            let client = SocketAddr::new(PEER, 1000 + (number / 2000) as u16);
            wire.give(&tcp(client, at, 5, 0, SYN, &[]));
            let answer = wire.take().iter().map(|packet| read(packet)).find(|segment| segment.to == client).unwrap();
            assert_eq!(answer.flags, SYN | ACK);
            for number in number..number + 500 {
                wire.give(&tcp(from(number + FLOOD), at, number, 0, SYN, &[]));
            }
            wire.give(&tcp(client, at, 6, answer.sequence.wrapping_add(1), ACK, b"hello"));
            let (mut stream, peer) = listener.accept().unwrap();
            assert_eq!(peer, client);
            let mut text = [0; 5];
            stream.read_exact(&mut text).unwrap();
            assert_eq!(&text, b"hello");
        }
    }
    assert!(answers > 0);
    let stats = wire.net.stats();
    // All that is left of the flood.
    assert!(stats.tcp_open <= 1024 + 10, "{stats:?}");
    assert!(stats.tcp_overflows >= u64::from(FLOOD) - 1024, "{stats:?}");
    let grown = resident_mib().saturating_sub(before);
    println!("{} half-open connections take {grown} MiB", stats.tcp_open);
    assert!(grown < 64, "{grown} MiB");
    // One that was forgotten and confirms is told so.
    wire.take();
    wire.give(&tcp(from(0), at, 1, 77, ACK, &[]));
    assert!(wire.take().iter().any(|packet| read(packet).flags & RST != 0));
    _ = client;
}
