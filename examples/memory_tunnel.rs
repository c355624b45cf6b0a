//! Two whole devices in one process, on edges in memory: no root, no TUN, no socket, and all of the protocol.
//!
//! `cargo run --release --example memory_tunnel`

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::key::PrivateKey;
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::udp::memory::MemoryNetwork;

const PORT: u16 = 51820;
const PACKETS: usize = 100_000;
/// Packets under way at once: fewer than a queue holds, so that none is dropped.
const WINDOW: usize = 256;
const PACKET_LEN: usize = 1420;
const PATIENCE: Duration = Duration::from_secs(5);

fn outer(host: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, host), PORT).into()
}

fn inner(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, host)
}

/// A device at `outer(host)`, with one peer; and the system's end of its interface.
fn start(
    network: &MemoryNetwork,
    host: u8,
    key: &PrivateKey,
    peer: u8,
    peer_key: &PrivateKey,
) -> Result<(Device, MemoryTunHandle), Box<dyn Error>> {
    let (tun, system) = MemoryTun::new("memory", 1420);
    let device = Device::builder(tun, network.host(&[outer(host).ip()])).start()?;
    let allowed_ip = AllowedIp { address: inner(peer).into(), prefix_len: 32 };
    system.set_up(true);
    // A port of the system's choice tells that the link is up.
    while device.snapshot().listen_port == 0 {
        std::thread::yield_now();
    }
    device.apply(Update {
        private_key: Some(Some(key.clone())),
        listen_port: Some(PORT),
        peers: vec![PeerUpdate {
            endpoint: Some(outer(peer)),
            allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
            ..PeerUpdate::new(peer_key.public_key())
        }],
        ..Update::default()
    })?;
    Ok((device, system))
}

/// An IPv4 packet with nothing but a header and its number.
fn packet(from: u8, to: u8, number: usize) -> Vec<u8> {
    let mut packet = vec![0; PACKET_LEN];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(PACKET_LEN as u16).to_be_bytes());
    packet[8] = 64;
    packet[9] = 253; // for experimentation, RFC 3692
    packet[12..16].copy_from_slice(&inner(from).octets());
    packet[16..20].copy_from_slice(&inner(to).octets());
    packet[20..28].copy_from_slice(&(number as u64).to_be_bytes());
    packet
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let (key_a, key_b) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng));
    let network = MemoryNetwork::new();
    let (a, system_a) = start(&network, 1, &key_a, 2, &key_b)?;
    let (_b, system_b) = start(&network, 2, &key_b, 1, &key_a)?;

    // The first packet starts the handshake and waits for it.
    let begun = Instant::now();
    system_a.send(&packet(1, 2, 0));
    system_b.receive(PATIENCE).ok_or("nothing came through the tunnel")?;
    println!("handshake and first packet: {:?}", begun.elapsed());

    let begun = Instant::now();
    for start in (0..PACKETS).step_by(WINDOW) {
        let window = start..(start + WINDOW).min(PACKETS);
        for number in window.clone() {
            system_a.send(&packet(1, 2, number));
        }
        for number in window {
            let arrived = system_b.receive(PATIENCE).ok_or("a packet was lost")?;
            assert_eq!(arrived[20..28], (number as u64).to_be_bytes(), "in order");
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{PACKETS} packets of {PACKET_LEN} bytes, all there and in order: {:.0} a second",
        PACKETS as f64 / seconds
    );

    let peer = &a.snapshot().peers[0];
    println!("peer {}: {} bytes sent, {} received", peer.public_key, peer.tx_bytes, peer.rx_bytes);
    Ok(())
}
