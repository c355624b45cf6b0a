//! Fuzz body (Z-03): what lies in a data message of an authentic peer. No bytes panic the reading of an inner header, and no
//! length that it tells lies beyond the packet. A device delivers it if and only if it is an IP packet whose source is
//! that peer's by the table of the whole device, cut to the length that it states.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant as Clock, SystemTime, UNIX_EPOCH};

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::ip;
use adit::key::{PresharedKey, PrivateKey};
use adit::packet::Buffers;
use adit::proto::cookie::CookieJar;
use adit::proto::crypto::{DefaultAead, PacketAead};
use adit::proto::handshake::{DerivedKeys, Handshake, Identity};
use adit::proto::messages::{self, DATA_HEADER_LEN, DATA_OVERHEAD, Message, RESPONSE_LEN};
use adit::proto::tai64n::Tai64n;
use adit::proto::time::{Instant, UnixTime};
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::udp::memory::MemoryNetwork;
use adit::udp::{Received, Sent, Transmit, Udp as _, UdpReceiver, UdpSender};

use crate::input::rng::TestRng;

/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// A session is used for so long: less than it takes until the device would have a new one.
const SESSION_TIME: Duration = Duration::from_secs(60);
/// Bytes of the longest inner packet.
const PACKET_MAX: usize = 1600;
/// A packet of the peer's that ends a round: an IPv4 header, and a number.
const LAST_LEN: usize = 28;

/// The first byte is the outer header's ECN, the rest an inner packet with its padding.
pub(crate) fn run(data: &[u8]) {
    let Some((&ecn, packet)) = data.split_first() else { return };
    let packet = &packet[..packet.len().min(PACKET_MAX)];
    read(ecn, packet);
    thread_local! {
        static RIG: RefCell<Option<Rig>> = const { RefCell::new(None) };
    }
    RIG.with_borrow_mut(|rig| {
        let rig = rig.get_or_insert_with(Rig::start);
        let delivered = rig.exchange(ecn & ip::ECN_MASK, packet);
        let expected: Vec<Vec<u8>> = model(packet)
            .filter(|(source, _)| is_the_peers(*source))
            .map(|(_, len)| {
                let mut packet = packet.to_vec();
                ip::decapsulate_ecn(&mut packet, ecn);
                packet.truncate(len);
                packet
            })
            .into_iter()
            .collect();
        assert_eq!(delivered, expected);
    });
}

/// The readers of headers, by themselves.
fn read(ecn: u8, packet: &[u8]) {
    let header = ip::Header::parse(packet);
    assert_eq!(header.map(|header| (header.source, header.total_len)), model(packet));
    if let Some(header) = header {
        assert_eq!(header.source.is_ipv4(), header.destination.is_ipv4());
        // Trimmed to its stated length it is the same packet.
        assert_eq!(ip::Header::parse(&packet[..header.total_len]), Some(header));
        assert_eq!(ip::Header::parse(&packet[..header.total_len - 1]), None);
    }
    if let Some(transport) = ip::transport(packet) {
        assert!(transport.offset >= 20 && transport.offset <= packet.len());
    }
    let mut marked = packet.to_vec();
    ip::decapsulate_ecn(&mut marked, ecn);
    if let (Some(before), Some(after)) = (header, ip::Header::parse(&marked)) {
        assert_eq!(
            (before.source, before.destination, before.total_len),
            (after.source, after.destination, after.total_len)
        );
        let expected =
            if ecn & ip::ECN_MASK == ip::ECN_CE && before.ecn != ip::ECN_NOT_ECT { ip::ECN_CE } else { before.ecn };
        assert_eq!(after.ecn, expected);
    }
}

/// Source and length of an IP packet by its own account, read in the plainest way.
fn model(packet: &[u8]) -> Option<(IpAddr, usize)> {
    let (source, header_len, len) = match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            let source = <[u8; 4]>::try_from(&packet[12..16]).expect("four bytes");
            (source.into(), usize::from(packet[0] % 16) * 4, usize::from(packet[2]) * 256 + usize::from(packet[3]))
        }
        6 if packet.len() >= 40 => {
            let source = <[u8; 16]>::try_from(&packet[8..24]).expect("sixteen bytes");
            (source.into(), 40, 40 + usize::from(packet[4]) * 256 + usize::from(packet[5]))
        }
        _ => return None,
    };
    let has_header = header_len >= if packet[0] >> 4 == 4 { 20 } else { 40 };
    (has_header && (header_len..=packet.len()).contains(&len)).then_some((source, len))
}

/// 10.0.0.0/24 but for its upper half, which is another peer's; and the same of fd00::/64.
fn is_the_peers(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => {
            let [a, b, c, d] = source.octets();
            (a, b, c) == (10, 0, 0) && d < 128
        }
        IpAddr::V6(source) => {
            let groups = source.segments();
            groups[..4] == [0xfd00, 0, 0, 0] && groups[4] < 0x8000
        }
    }
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, number], 51820))
}

/// A device, and a peer of it by hand.
struct Rig {
    _device: Device,
    tun: MemoryTunHandle,
    receiver: Box<dyn UdpReceiver>,
    sender: Box<dyn UdpSender>,
    buffers: Buffers,
    rng: TestRng,
    session: Option<(Clock, DerivedKeys, u64)>,
    last: u64,
}

impl Rig {
    fn start() -> Self {
        let network = MemoryNetwork::new();
        let (tun, handle) = MemoryTun::new("memory", 1420);
        let device = Device::builder(tun, network.host(&[address(1).ip()])).threads(1).start().expect("threads start");
        let peer = |number: u8, allowed_ips: [(IpAddr, u8); 2]| PeerUpdate {
            allowed_ips: allowed_ips
                .map(|(address, prefix_len)| {
                    let allowed_ip = AllowedIp { address, prefix_len };
                    AllowedIpUpdate { allowed_ip, remove: false }
                })
                .to_vec(),
            ..PeerUpdate::new(key(number).public_key())
        };
        let parse = |text: &str| text.parse().expect("an address");
        let update = Update {
            private_key: Some(Some(key(1))),
            listen_port: Some(address(1).port()),
            peers: vec![
                peer(2, [(parse("10.0.0.0"), 24), (parse("fd00::"), 64)]),
                peer(3, [(parse("10.0.0.128"), 25), (parse("fd00::8000:0:0:0"), 65)]),
            ],
            ..Update::default()
        };
        device.apply(update).expect("a configuration is accepted");
        handle.set_up(true);
        let socket = network.host(&[address(2).ip()]).bind(address(2).port(), 0, 1).expect("the port is free");
        let receiver = socket.receivers().expect("they were not taken").remove(0);
        let sender = socket.sender().expect("a sender");
        let buffers = Buffers::new(1);
        Self { _device: device, tun: handle, receiver, sender, buffers, rng: TestRng(5), session: None, last: 0 }
    }

    fn send(&mut self, messages: &[Vec<u8>], tos: u8) {
        let transmit = |data| Transmit { to: address(1), source: None, tos, segment: 4096, data, offload: false };
        let transmits: Vec<Transmit<'_>> = messages.iter().map(|message| transmit(message)).collect();
        self.sender.send(&transmits, &mut vec![Sent::default(); messages.len()]);
    }

    /// Shakes hands, again and again until the device listens.
    fn handshake(&mut self) -> DerivedKeys {
        let (identity, remote) = (Identity::new(key(2)), key(1).public_key());
        let start = Clock::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "no response");
            let mut handshake = Handshake::new(remote, PresharedKey::default());
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later");
            let stamp = Tai64n::from_unix(UnixTime(since_1970));
            let created = handshake.create_initiation(&identity, 7, stamp, &mut self.rng);
            let mut initiation = created.expect("their key is a point").to_vec();
            CookieJar::new().add_macs(&remote, &mut initiation, Instant::from_nanos(1));
            self.send(&[initiation], 0);
            let sent = Clock::now();
            while sent.elapsed() < Duration::from_millis(500) {
                let mut received: Vec<Received> = Vec::with_capacity(1);
                self.receiver.receive(&mut self.buffers, &mut received).expect("memory does not fail");
                let Some(received) = received.first() else {
                    std::thread::sleep(Duration::from_micros(100));
                    continue;
                };
                let message = &self.buffers.whole(received.buffer)[..received.len as usize];
                if message.len() == RESPONSE_LEN
                    && let Ok(Message::Response(response)) = messages::parse(message)
                    && let Ok(keys) = handshake.consume_response(&identity, &response)
                {
                    return keys;
                }
            }
        }
    }

    /// What comes out of the TUN of a data message with this in it.
    fn exchange(&mut self, ecn: u8, inner: &[u8]) -> Vec<Vec<u8>> {
        if self.session.as_ref().is_none_or(|(since, ..)| since.elapsed() > SESSION_TIME) {
            let keys = self.handshake();
            self.session = Some((Clock::now(), keys, 0));
        }
        self.last += 1;
        let mut last = vec![0x45, 0, 0, LAST_LEN as u8, 0, 0, 0, 0, 64, 253, 0, 0, 10, 0, 0, 1];
        last.extend(Ipv4Addr::new(10, 0, 0, 2).octets());
        last.extend(self.last.to_be_bytes());
        let Some((_, keys, counter)) = &mut self.session else { unreachable!("there is one by now") };
        let messages = [inner, &last].map(|payload| {
            *counter += 1;
            seal(keys, *counter, payload)
        });
        self.send(&messages[..1], ecn);
        self.send(&messages[1..], 0);
        let mut delivered = Vec::new();
        loop {
            let packet = self.tun.receive(PATIENCE).expect("what is right is delivered").into_vec();
            if packet == last {
                return delivered;
            }
            delivered.push(packet);
        }
    }
}

fn key(number: u8) -> PrivateKey {
    PrivateKey::from_bytes([number; 32])
}

/// A payload as a data message, as it is.
fn seal(keys: &DerivedKeys, counter: u64, payload: &[u8]) -> Vec<u8> {
    let mut message = vec![0; payload.len() + DATA_OVERHEAD];
    messages::write_data_header(&mut message, keys.remote_index, counter);
    message[DATA_HEADER_LEN..][..payload.len()].copy_from_slice(payload);
    let stride = message.len();
    DefaultAead::seal_train(&keys.sending, counter, &mut message, stride);
    message
}
