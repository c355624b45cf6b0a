//! Seeds of real traffic: what two stacks say to each other (TCP, datagrams in fragments, echoes), and the messages that two
//! peers carry it in, in the form that the fuzz targets take.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant as Clock};

use adit::key::PrivateKey;
use adit::netstack::{Config, Net, Netstack, NetstackTun};
use adit::packet::{Buffers, PacketRef};
use adit::proto::constants::RATE_PACKETS_PER_SECOND;
use adit::proto::cookie::CookieJar;
use adit::proto::peer::{Outcome, Peer, datagram_len};
use adit::proto::time::{Instant, Now, UnixTime};
use adit::tun::offload::VNET_HEADER_LEN;
use adit::tun::{Tun, TunQueue};

use crate::input::rng::TestRng;

/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the client says.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: example\r\n\r\n";
/// Packets of one conversation that are kept.
const PACKETS_MAX: usize = 24;
/// Bytes of the longest packet that is kept: what is longer teaches nothing more.
const PACKET_MAX: usize = 700;

/// A seed: the target that it is for, its name, and its bytes.
pub(crate) type Seed = (&'static str, String, Vec<u8>);

/// A stack, and the wire that it is on.
struct Wire {
    net: Net,
    queue: TunQueue,
    _tun: NetstackTun,
}

impl Wire {
    fn new(number: u8) -> Self {
        let mut config =
            Config::new([false, true].map(|ipv6| (inner(number, ipv6), if ipv6 { 64 } else { 24 })).to_vec());
        config.mtu = 1280;
        let (mut tun, net) = Netstack::pair(config).expect("a sensible configuration");
        let queue = tun.queues(1).expect("queues").remove(0);
        Self { net, queue, _tun: tun }
    }
}

/// The server is what the target `stack` is: number 1.
fn inner(number: u8, ipv6: bool) -> IpAddr {
    if ipv6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number.into()).into()
    } else {
        Ipv4Addr::new(10, 0, 0, number).into()
    }
}

/// The packets of a conversation between two stacks, each with whether it went to the server.
fn conversation(ipv6: bool) -> Vec<(bool, Vec<u8>)> {
    let mut wires = [Wire::new(1), Wire::new(2)];
    let server = SocketAddr::new(inner(1, ipv6), 80);
    let listener = wires[0].net.listen_tcp(server).expect("the port is free");
    let socket = wires[0].net.bind_udp(SocketAddr::new(server.ip(), 9)).expect("the port is free");
    let net = wires[1].net.clone();
    let talking = std::thread::spawn(move || {
        net.ping(server.ip(), PATIENCE).expect("an echo");
        let sending = net.bind_udp(SocketAddr::new(inner(2, ipv6), 5)).expect("the port is free");
        sending.send_to(&[0x5a; 1800], SocketAddr::new(server.ip(), 9)).expect("in fragments");
        let mut stream = net.connect_tcp(server, PATIENCE).expect("somebody listens");
        stream.write_all(REQUEST).expect("it is open");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("an answer");
        answer
    });
    let serving = std::thread::spawn(move || {
        socket.recv_from(&mut [0; 2000]).expect("the datagram");
        let (mut stream, _) = listener.accept().expect("a client");
        stream.read_exact(&mut [0; REQUEST.len()]).expect("a request");
        stream.write_all(&[b'x'; 400]).expect("it is open");
    });
    let (mut buffers, mut buffer) = (Buffers::new(1), vec![0; 65_535]);
    let mut packets = Vec::new();
    let start = Clock::now();
    while !(talking.is_finished() && serving.is_finished()) {
        assert!(start.elapsed() < PATIENCE, "a conversation has an end");
        for from in 0..2 {
            let mut segments = Vec::new();
            while let Some(packet) = wires[from].queue.receiver.receive(&mut buffer).expect("a stack does not fail") {
                for index in 0..packet.count() {
                    let mut segment = vec![0; packet.segment_len(index)];
                    packet.write_segment(index, &mut segment);
                    segments.push(segment);
                }
            }
            for segment in segments {
                buffers.whole(0)[..segment.len()].copy_from_slice(&segment);
                let place = PacketRef { buffer: 0, start: 0, len: segment.len() as u32 };
                wires[1 - from].queue.sender.send(&buffers, &[place]);
                packets.push((from == 1, segment));
            }
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    assert_eq!(talking.join().expect("no panic").len(), 400);
    serving.join().expect("no panic");
    packets.retain(|(_, packet)| packet.len() <= PACKET_MAX);
    packets.truncate(PACKETS_MAX);
    packets
}

/// The messages of two peers: a handshake, a packet, a keepalive, and a cookie reply.
fn messages(packet: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let keys = [1, 2].map(|number| PrivateKey::from_bytes([number; 32]));
    let addresses = [1, 2].map(|number| SocketAddr::from(([192, 0, 2, number], 51820)));
    let mut peers = [0, 1].map(|side| Peer::new(keys[side].clone(), keys[1 - side].public_key()));
    let now = Now { instant: Instant::from_nanos(1_000_000_000), unix: UnixTime(Duration::from_secs(1 << 30)) };
    let (mut rng, mut out) = (TestRng(9), vec![0; datagram_len(PACKET_MAX)]);
    peers[0].set_endpoint(addresses[1]);
    let sent = |outcome: Result<Outcome<'_>, _>| match outcome {
        Ok(Outcome::Send(datagram)) => datagram.bytes.to_vec(),
        other => panic!("a datagram, not {other:?}"),
    };
    let initiation = sent(peers[0].encapsulate(packet, &mut out, now, &mut rng));
    let response = sent(peers[1].decapsulate(addresses[0], &mut initiation.clone(), &mut out, now, &mut rng));
    let data = sent(peers[0].decapsulate(addresses[1], &mut response.clone(), &mut out, now, &mut rng));
    peers[0].set_persistent_keepalive(1);
    let keepalive = peers[0].poll_transmit(&mut out, now, &mut rng).expect("it is due").bytes.to_vec();
    let mut cookie_reply = Vec::new();
    for _ in 0..=RATE_PACKETS_PER_SECOND {
        let mut again = initiation.clone();
        CookieJar::new().add_macs(&keys[1].public_key(), &mut again, now.instant);
        if let Ok(Outcome::Send(reply)) = peers[1].decapsulate(addresses[0], &mut again, &mut out, now, &mut rng) {
            cookie_reply = reply.bytes.to_vec();
        }
    }
    vec![
        ("initiation", initiation),
        ("response", response),
        ("data", data),
        ("keepalive", keepalive),
        ("cookie_reply", cookie_reply),
    ]
}

/// All seeds.
pub(crate) fn of_real_traffic() -> Vec<Seed> {
    let mut seeds: Vec<Seed> = Vec::new();
    let listed = |bytes: &[u8]| [&(bytes.len() as u16).to_le_bytes(), bytes].concat();
    for (family, ipv6) in [("v4", false), ("v6", true)] {
        let packets = conversation(ipv6);
        let to_server: Vec<u8> = packets
            .iter()
            .filter(|(to_server, _)| *to_server)
            .flat_map(|(_, bytes)| [vec![7], listed(bytes)].concat())
            .collect();
        seeds.push(("stack", format!("conversation_{family}"), to_server));
        for (number, (_, bytes)) in packets.iter().enumerate() {
            let padded = bytes.len().next_multiple_of(16) - bytes.len();
            let padded = [&[3], &bytes[..], &vec![0; padded]].concat();
            seeds.push(("inner_packet", format!("real_{family}_{number:02}"), padded));
            let plain = [&[0; 1 + VNET_HEADER_LEN], &bytes[..]].concat();
            seeds.push(("offload", format!("real_{family}_{number:02}"), plain));
        }
        let packet = &packets.first().expect("they talked").1;
        for (name, message) in messages(packet) {
            seeds.push(("strangers", format!("real_{family}_{name}"), [&[1, 0], &listed(&message)[..], &[1]].concat()));
            seeds.push(("messages", format!("real_{family}_{name}"), message));
        }
    }
    seeds
}
