//! The stack of `adit::netstack`: `cargo bench --bench netstack`, or one part of it: `-- stream`, `loss`, `connections`, `lookup`.
//! Figures in text, one line each; no criterion, since most of them are of something that takes seconds or is measured in bytes.
//!
//! 1. One TCP stream over two devices that are joined in memory, IPv4 and IPv6; no system call, so that it says what
//!    TCP, the stack and the devices take together. Then with a loss of 1 % in both directions.
//! 2. A thousand connections at once, and the memory that each takes when idle and when its buffers were used.
//! 3. What a packet costs with 1, 100 and 1,000 connections: in this stack, and in one smoltcp interface that has all sockets.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::key::PrivateKey;
use adit::netstack::{Config, Net, Netstack};
use adit::packet::{Buffers, PacketRef};
use adit::tun::Tun;
use adit::udp::lossy::{Faults, LossyUdp};
use adit::udp::memory::MemoryNetwork;
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::{DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpCidr};

const PATIENCE: Duration = Duration::from_secs(60);
const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

fn v4(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, host).into()
}

fn v6(host: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into()
}

/// Two stacks behind two devices, with some thousandths of what is sent lost.
fn pair(loss: u16) -> [(Device, Net); 2] {
    let network = MemoryNetwork::new();
    let outer = |host| SocketAddr::from(([192, 0, 2, host], 51820));
    let key = |host| PrivateKey::from_bytes([host; 32]);
    let pair = [(1, 2), (2, 1)].map(|(number, peer)| {
        let (tun, net) = Netstack::pair(Config::new(vec![(v4(number), 24), (v6(number), 64)])).unwrap();
        let udp = LossyUdp::new(network.host(&[outer(number).ip()]), Faults::default(), number.into());
        let device = Device::builder(tun, udp.clone()).start().unwrap();
        let start = Instant::now();
        while device.snapshot().listen_port == 0 {
            assert!(start.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(1));
        }
        let allowed_ips = [(v4(peer), 32), (v6(peer), 128)].map(|(address, prefix_len)| AllowedIpUpdate {
            allowed_ip: AllowedIp { address, prefix_len },
            remove: false,
        });
        let peer = PeerUpdate {
            endpoint: Some(outer(peer)),
            allowed_ips: allowed_ips.to_vec(),
            ..PeerUpdate::new(key(peer).public_key())
        };
        let update = Update {
            private_key: Some(Some(key(number))),
            listen_port: Some(51820),
            peers: vec![peer],
            ..Update::default()
        };
        device.apply(update).unwrap();
        (udp, (device, net))
    });
    // The first may be lost, before the interfaces are up.
    let start = Instant::now();
    while pair[0].1.1.ping(v4(2), Duration::from_secs(1)).is_err() {
        assert!(start.elapsed() < PATIENCE);
    }
    pair.map(|(udp, host)| {
        udp.set_faults(Faults { loss, ..Faults::default() });
        host
    })
}

fn stream(name: &str, address: IpAddr, loss: u16, bytes: usize) {
    let [(_one, client), (_two, server)] = pair(loss);
    let listener = server.listen_tcp(SocketAddr::new(address, 7)).unwrap();
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let (mut buffer, mut received) = (vec![0; 1 << 18], 0);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => return received,
                len => received += len,
            }
        }
    });
    let mut stream = client.connect_tcp(SocketAddr::new(address, 7), PATIENCE).unwrap();
    let start = Instant::now();
    let chunk = vec![7; 1 << 18];
    for _ in 0..bytes / chunk.len() {
        stream.write_all(&chunk).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let received = reader.join().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    println!("{name:32} {:>9.3} Gbit/s  ({} MiB in {seconds:.3} s)", received as f64 * 8e-9 / seconds, received >> 20);
}

/// KiB of this process in memory.
fn resident_kib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn connections(count: usize) {
    let [(_one, client), (_two, server)] = pair(0);
    let listener = server.listen_tcp(SocketAddr::new(v4(2), 7)).unwrap();
    for round in ["first", "second"] {
        let (before, start) = (resident_kib(), Instant::now());
        let pairs: Vec<_> = (0..count)
            .map(|_| {
                let stream = client.connect_tcp(SocketAddr::new(v4(2), 7), PATIENCE).unwrap();
                (stream, listener.accept().unwrap().0)
            })
            .collect();
        let connected = start.elapsed();
        let idle = resident_kib() - before;
        let chunk = vec![7; 1 << 20];
        for (stream, accepted) in &pairs {
            thread::scope(|scope| {
                scope.spawn(|| {
                    { stream }.write_all(&chunk).unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                });
                let mut received = Vec::new();
                { accepted }.read_to_end(&mut received).unwrap();
                assert_eq!(received.len(), chunk.len());
            });
        }
        let used = resident_kib() - before;
        let ends = (2 * count) as f64;
        println!(
            "{count} connections, {round} time: made in {connected:?}; one end takes {:.1} KiB idle, {:.1} KiB after 1 MiB",
            idle / ends,
            used / ends,
        );
        drop(pairs);
        let start = Instant::now();
        while client.stats().tcp_open + server.stats().tcp_open > 0 {
            assert!(start.elapsed() < PATIENCE);
            thread::sleep(Duration::from_millis(1));
        }
    }
}

// --- What finding the connection of a packet costs -------------------------------------------

/// A TCP segment from the port of a peer to port 80, with its checksums.
fn segment(port: u16, sequence: u32, acknowledgement: u32, flags: u8) -> Vec<u8> {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket};

    let ip = Ipv4Repr {
        src_addr: Ipv4Addr::new(10, 0, 0, 2),
        dst_addr: OWN,
        next_header: IpProtocol::Tcp,
        payload_len: 20,
        hop_limit: 64,
    };
    let mut bytes = vec![0; 40];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes[..]), &ChecksumCapabilities::default());
    let tcp = &mut bytes[20..];
    tcp[..2].copy_from_slice(&port.to_be_bytes());
    tcp[2..4].copy_from_slice(&80u16.to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[8..12].copy_from_slice(&acknowledgement.to_be_bytes());
    tcp[12..16].copy_from_slice(&[0x50, flags, 0xff, 0xff]);
    TcpPacket::new_unchecked(tcp).fill_checksum(&ip.src_addr.into(), &ip.dst_addr.into());
    bytes
}

/// Connects `count` times by hand and says what one acknowledgement costs from then on, when each connection gets its turn.
/// `give` hands packets in, `take` says what came out.
fn cost_of_a_packet(count: u16, mut exchange: impl FnMut(&[u8], bool) -> Option<Vec<u8>>) -> Duration {
    let packets: Vec<_> = (1..=count)
        .map(|port| {
            let answer = exchange(&segment(port, 1, 0, 2), true).expect("a SYN-ACK");
            let next = u32::from_be_bytes(answer[24..28].try_into().unwrap()).wrapping_add(1);
            let acknowledgement = segment(port, 2, next, 16);
            exchange(&acknowledgement, true);
            acknowledgement
        })
        .collect();
    let rounds = 200_000 / usize::from(count).max(20);
    let start = Instant::now();
    for _ in 0..rounds {
        for packet in &packets {
            black_box(exchange(packet, false));
        }
    }
    start.elapsed() / (rounds * usize::from(count)) as u32
}

fn one_interface_each(count: u16) -> Duration {
    let (mut tun, net) = Netstack::pair(Config::new(vec![(OWN.into(), 24)])).unwrap();
    let mut queue = tun.queues(1).unwrap().remove(0);
    let _listener = net.listen_tcp((OWN, 80).into()).unwrap();
    let (mut buffers, mut buffer) = (Buffers::new(1), vec![0; 65_535]);
    cost_of_a_packet(count, |packet, take| {
        buffers.whole(0)[..packet.len()].copy_from_slice(packet);
        queue.sender.send(&buffers, &[PacketRef { buffer: 0, start: 0, len: packet.len() as u32 }]);
        take.then(|| queue.receiver.receive(&mut buffer).unwrap().map(|packet| packet.bytes().to_vec())).flatten()
    })
}

/// A device that is two queues.
#[derive(Default)]
struct Queues {
    inbound: VecDeque<Vec<u8>>,
    outbound: VecDeque<Vec<u8>>,
}

struct Arrived(Vec<u8>);
struct Leaving<'a>(&'a mut VecDeque<Vec<u8>>);

impl RxToken for Arrived {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Leaving<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}

impl smoltcp::phy::Device for Queues {
    type RxToken<'a> = Arrived;
    type TxToken<'a> = Leaving<'a>;

    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(Arrived, Leaving<'_>)> {
        let packet = self.inbound.pop_front()?;
        Some((Arrived(packet), Leaving(&mut self.outbound)))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Leaving<'_>> {
        Some(Leaving(&mut self.outbound))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1420;
        capabilities
    }
}

fn one_interface_for_all(count: u16) -> Duration {
    let mut queues = Queues::default();
    let now = smoltcp::time::Instant::now;
    let mut interface = Interface::new(smoltcp::iface::Config::new(HardwareAddress::Ip), &mut queues, now());
    interface.update_ip_addrs(|addresses| addresses.push(IpCidr::new(OWN.into(), 24)).unwrap());
    let mut sockets = SocketSet::new(Vec::new());
    for _ in 0..count {
        let buffer = || tcp::SocketBuffer::new(vec![0; 4096]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.listen(80).unwrap();
        sockets.add(socket);
    }
    cost_of_a_packet(count, |packet, take| {
        queues.inbound.push_back(packet.to_vec());
        interface.poll(now(), &mut queues, &mut sockets);
        let answer = queues.outbound.pop_front();
        queues.outbound.clear();
        answer.filter(|_| take)
    })
}

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        // Whether it runs is all that is asked.
        stream("one stream", v4(2), 0, 1 << 20);
        return;
    }
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let is_wanted = |section: &str| wanted.as_deref().is_none_or(|wanted| section.contains(wanted));
    if is_wanted("stream") {
        for _ in 0..2 {
            stream("one stream, IPv4", v4(2), 0, 1 << 30);
            stream("one stream, IPv6", v6(2), 0, 1 << 30);
        }
    }
    if is_wanted("loss") {
        for loss in [1, 10] {
            stream(&format!("one stream, {}.{} % loss", loss / 10, loss % 10), v4(2), loss, 16 << 20);
        }
    }
    if is_wanted("connections") {
        connections(1000);
    }
    if is_wanted("lookup") {
        for count in [1, 100, 1000] {
            let (ours, theirs) = (one_interface_each(count), one_interface_for_all(count));
            println!("a packet to one of {count:>4} connections: {ours:?} here, {theirs:?} in one smoltcp interface");
        }
    }
}
