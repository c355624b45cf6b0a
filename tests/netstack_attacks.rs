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
}

/// An ICMP error ends what it is about only if it quotes what was really sent (RFC 5927): guessing the ports is not enough.
#[test]
fn errors_that_quote_what_was_never_sent() {
    for (own, peer, unreachable) in [(OWN, PEER, [3, 1]), (OWN_V6, PEER_V6, [1, 3])] {
        let mut wire = Wire::new(|_| ());
        let net = wire.net.clone();
        let connecting = std::thread::spawn(move || net.connect_tcp(SocketAddr::new(peer, 7), PATIENCE));
        let syn = wire.wait_for(|packets| !packets.is_empty()).remove(0);
        let Segment { from, to, sequence, .. } = read(&syn);
        assert_eq!((from.ip(), to), (own, SocketAddr::new(peer, 7)));
        for wrong in [sequence.wrapping_add(1), sequence.wrapping_sub(1), !sequence] {
            wire.give(&icmp(&tcp(from, to, wrong, 0, SYN, &[]), unreachable, 0));
        }
        // Nor one that is somebody else's.
        wire.give(&icmp(&tcp(SocketAddr::new(peer, from.port()), to, sequence, 0, SYN, &[]), unreachable, 0));
        assert_eq!(wire.net.stats().tcp_open, 1);
        assert!(!connecting.is_finished());
        wire.give(&icmp(&syn, unreachable, 0));
        assert_eq!(connecting.join().unwrap().unwrap_err().kind(), ErrorKind::HostUnreachable);
    }
}

/// A path that is narrower than the tunnel (RFC 1191, RFC 8201): segments get shorter, those of later connections from the
/// start; and who only guesses has no say.
#[test]
fn packets_too_big() {
    for (peer, header_len, type_and_code) in [(PEER, 20, [3, 4]), (PEER_V6, 40, [2, 0])] {
        let mut wire = Wire::new(|config| config.mtu = 1420);
        let (mut stream, own) = wire.connect(peer);
        stream.write_all(&pattern(3000)).unwrap();
        let packets = wire.wait_for(|packets| packets.iter().map(Vec::len).sum::<usize>() > 2500);
        let longest = packets.iter().max_by_key(|packet| packet.len()).unwrap();
        // The peer's SYN named no MSS: 536 bytes it is (RFC 9293 §3.7.1).
        let segment = longest.len();
        assert_eq!(segment, header_len + 20 + 536);
        let mut forged = longest.clone();
        forged[header_len + 4] ^= 0x40;
        wire.give(&icmp(&forged, type_and_code, 1300));
        assert_eq!(wire.net.stats().tcp_open, 1);

        let socket = wire.net.bind_udp(SocketAddr::new(own.from.ip(), 0)).unwrap();
        let to = SocketAddr::new(peer, 9);
        let longest_datagram = |wire: &mut Wire| {
            socket.send_to(&pattern(1300), to).unwrap();
            wire.wait_for(|packets| packets.iter().any(|packet| packet[if header_len == 20 { 9 } else { 6 }] != TCP))
                .into_iter()
                .map(|packet| packet.len())
                .max()
                .unwrap()
        };
        assert_eq!(longest_datagram(&mut wire), header_len + 8 + 1300, "the forged error had no effect");
        wire.give(&icmp(longest, type_and_code, 1300));
        assert!(longest_datagram(&mut wire) <= 1300);
        // What is less than any link has is not believed, or only so far.
        wire.give(&icmp(longest, type_and_code, 68));
        let least = longest_datagram(&mut wire);
        assert!(least > 500, "{least}");
        drop(stream);
    }
}

/// Segments of an established connection follow what a router says.
#[test]
fn segments_get_shorter() {
    let mut wire = Wire::new(|config| config.mtu = 1420);
    let net = wire.net.clone();
    let connecting = std::thread::spawn(move || net.connect_tcp(SocketAddr::new(PEER_V6, 7), PATIENCE));
    let syn = read(&wire.wait_for(|packets| !packets.is_empty())[0]);
    // With an MSS of 1360, which is what an MTU of 1420 has room for.
    let mut answer = Vec::new();
    answer.extend(syn.to.port().to_be_bytes());
    answer.extend(syn.from.port().to_be_bytes());
    answer.extend(1000u32.to_be_bytes());
    answer.extend(syn.sequence.wrapping_add(1).to_be_bytes());
    answer.extend([0x60, SYN | ACK, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 80]);
    wire.give(&transport(PEER_V6, OWN_V6, TCP, 16, answer));
    let mut stream = connecting.join().unwrap().unwrap();
    stream.write_all(&pattern(2700)).unwrap();
    let packets = wire.wait_for(|packets| packets.iter().any(|packet| packet.len() == 1420));
    let lost = packets.iter().find(|packet| packet.len() == 1420).unwrap();
    wire.give(&icmp(lost, [2, 0], 1280));
    // It comes again when its time is up.
    let packets = wire.wait_for(|packets| packets.iter().any(|packet| packet.len() > 1000));
    assert_eq!(packets.iter().map(Vec::len).max(), Some(1280));
}

/// Datagrams to a port that nobody has are answered by an error, but not each.
#[test]
fn closed_ports_and_who_asks_for_them() {
    for (own, peer, offset, expected) in [(OWN, PEER, 20, [3, 3]), (OWN_V6, PEER_V6, 40, [1, 4])] {
        let mut wire = Wire::new(|_| ());
        let datagram = udp(SocketAddr::new(peer, 5), SocketAddr::new(own, 6), b"anybody?");
        wire.give(&datagram);
        let answer = wire.take().remove(0);
        assert_eq!((&answer[offset..offset + 2], &answer[offset + 8..]), (&expected[..], &datagram[..]));
        for _ in 0..1000 {
            wire.give(&datagram);
        }
        assert!(wire.take().len() < 100);
        assert_eq!(wire.net.stats().udp_refused, 1001);

        // The other side of it: a connected socket is told, one that is not is not.
        let socket = wire.net.bind_udp(SocketAddr::new(own, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let to = SocketAddr::new(peer, 9);
        for is_connected in [false, true] {
            if is_connected {
                socket.connect(to).unwrap();
            }
            socket.send_to(b"hello", to).unwrap();
            let sent = wire.take().remove(0);
            // About a datagram to somebody else; then about this.
            wire.give(&icmp(&udp(socket.local_addr().unwrap(), SocketAddr::new(peer, 10), b""), expected, 0));
            assert_eq!(socket.recv_from(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock);
            wire.give(&icmp(&sent, expected, 0));
            let kind = socket.recv_from(&mut [0; 9]).unwrap_err().kind();
            assert_eq!(kind, if is_connected { ErrorKind::ConnectionRefused } else { ErrorKind::WouldBlock });
            assert_eq!(socket.recv_from(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock, "told once");
        }
        // Others are not heard any more.
        wire.give(&udp(SocketAddr::new(peer, 10), socket.local_addr().unwrap(), b"other"));
        wire.give(&udp(to, socket.local_addr().unwrap(), b"peer"));
        let mut buffer = [0; 9];
        assert_eq!(socket.recv(&mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"peer");
    }
}

/// Fragments that never become a packet take a bounded part of memory, and those that do get through.
#[test]
fn a_flood_of_fragments() {
    let mut wire = Wire::new(|_| ());
    let before = resident_mib();
    let socket = wire.net.bind_udp(SocketAddr::new(OWN, 9)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let payload = pattern(1400);
    let fragment = |identification: u16, offset: u16, more: bool, payload: &[u8]| {
        let mut packet = ip(PEER, OWN, UDP, payload);
        packet[4..6].copy_from_slice(&identification.to_be_bytes());
        packet[6..8].copy_from_slice(&((offset / 8) | if more { 0x2000 } else { 0 }).to_be_bytes());
        packet[10..12].fill(0);
        let sum = checksum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&sum);
        packet
    };
    for number in 0..50_000u32 {
        wire.give(&fragment(number as u16, (number % 40) as u16 * 1400, true, &payload));
    }
    assert!(resident_mib() - before < 32);
    assert!(wire.net.stats().fragments_dropped >= 49_000);
    let whole = udp(SocketAddr::new(PEER, 5), SocketAddr::new(OWN, 9), &pattern(4000));
    let datagram = &whole[20..];
    wire.give(&fragment(7, 2400, false, &datagram[2400..]));
    wire.give(&fragment(7, 0, true, &datagram[..1200]));
    wire.give(&fragment(7, 1200, true, &datagram[1200..2400]));
    let mut buffer = vec![0; 5000];
    let (len, _) = socket.recv_from(&mut buffer).unwrap();
    assert!(buffer[..len] == pattern(4000));
}
