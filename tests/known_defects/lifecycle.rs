//! Many peers, peers that go, and ends.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;

use adit::device::Device;
use adit::device::config::{PeerUpdate, Update};
use adit::key::PublicKey;
use adit::tun::memory::MemoryTun;
use adit::udp::linux::LinuxUdp;
use adit::udp::memory::MemoryNetwork;

use super::network::{Host, PATIENCE, allowed, eventually, inner, key, pair, pass, peer};
use super::uapi_support::alone;

/// Peer `number` of very many. Any 32 bytes are a public key.
fn one_of_many(number: u32) -> PeerUpdate {
    let mut bytes = [9; 32];
    bytes[..4].copy_from_slice(&number.to_le_bytes());
    let address = Ipv4Addr::from_bits(0x0a00_0000 + number);
    PeerUpdate { allowed_ips: vec![allowed(address, 32)], ..PeerUpdate::new(PublicKey::from_bytes(bytes)) }
}

/// Nothing that is done with peers is recursive in their number.
#[test]
fn stack_overflow_at_24_000_peers() {
    const PEERS: u32 = 30_000;
    const SMALL_STACK: usize = 256 << 10;
    let network = MemoryNetwork::new();
    let done = thread::Builder::new().stack_size(SMALL_STACK).spawn(move || {
        let one = Host::new(&network, 1);
        one.device.apply(Update { peers: (0..PEERS).map(one_of_many).collect(), ..Update::default() }).unwrap();
        assert_eq!(one.device.snapshot().peers.len(), PEERS as usize);
        one.device.apply(Update { replace_peers: true, ..Update::default() }).unwrap();
        assert_eq!(one.device.snapshot().peers.len(), 0);
        one.device.apply(Update { peers: (0..PEERS).map(one_of_many).collect(), ..Update::default() }).unwrap();
    });
    done.unwrap().join().unwrap();
}

/// Closing, configuring, reading and the link's going up and down, all at once: nobody waits for ever.
#[test]
fn deadlock_of_close_config_and_state() {
    const ROUNDS: usize = 30;
    let (done, finished) = channel();
    thread::spawn(move || {
        for round in 0..ROUNDS {
            let network = MemoryNetwork::new();
            let (mut one, two) = pair(&network);
            let ended = AtomicBool::new(false);
            let goes_on = || !ended.load(Ordering::Relaxed);
            thread::scope(|scope| {
                let (device, tun) = (&two.device, &two.tun);
                scope.spawn(|| {
                    while goes_on() {
                        tun.set_up(false);
                        tun.set_up(true);
                        tun.set_mtu(1280);
                    }
                });
                scope.spawn(|| {
                    while goes_on() {
                        device.snapshot();
                        device.figures();
                    }
                });
                for port in [4000, 5000] {
                    scope.spawn(move || {
                        while goes_on() {
                            let _ = device.apply(Update { listen_port: Some(port), ..Update::default() });
                            let _ = device.apply(Update {
                                peers: vec![peer(1), peer(3)],
                                replace_peers: true,
                                ..Update::default()
                            });
                        }
                    });
                }
                for number in 0..20 * (1 + round % 3) {
                    one.tun.send(&super::network::packet(inner(1), inner(2), b"x"));
                    two.tun.send(&super::network::packet(inner(2), inner(1), b"x"));
                    if number % 8 == 0 {
                        two.device.start_handshake(&key(1).public_key());
                        thread::yield_now();
                    }
                }
                one.device.close();
                ended.store(true, Ordering::Relaxed);
            });
            let Host { device: mut closing, tun, .. } = two;
            thread::scope(|scope| {
                scope.spawn(|| (0..50).for_each(|up| tun.set_up(up % 2 == 0)));
                scope.spawn(|| closing.close());
            });
        }
        done.send(()).unwrap();
    });
    finished.recv_timeout(2 * PATIENCE).expect("somebody waits for ever, or has panicked");
}

/// A dump while peers go and come shows each as it is: whole, or not at all.
#[test]
fn dump_touches_a_dead_peer() {
    const CHANGES: u32 = 4000;
    const PEERS: u32 = 16;
    let network = MemoryNetwork::new();
    let one = Host::new(&network, 1);
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..CHANGES {
                let gone = PeerUpdate { remove: true, ..PeerUpdate::new(one_of_many(number).public_key) };
                let peers = vec![one_of_many(number + PEERS), gone];
                one.device.apply(Update { peers, ..Update::default() }).unwrap();
            }
            ended.store(true, Ordering::Relaxed);
        });
        while !ended.load(Ordering::Relaxed) {
            for peer in one.device.snapshot().peers {
                let number = u32::from_le_bytes(*peer.public_key.as_bytes().first_chunk().unwrap());
                let expected = one_of_many(number).allowed_ips[0].allowed_ip;
                assert_eq!(peer.allowed_ips, [expected], "peer {number}");
            }
        }
    });
    assert_eq!(one.device.snapshot().peers.len(), PEERS as usize);
    let two = Host::new(&network, 2);
    one.add(peer(2));
    two.add(peer(1));
    pass(&two, &one, "after");
}

/// Ports that change, are refused, and come and go with the link: no socket stays open.
#[test]
fn fd_leaks() {
    if !alone("lifecycle::fd_leaks", "") {
        return;
    }
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let taken = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let (tun, handle) = MemoryTun::new("memory", 1420);
    let device = Device::builder(tun, LinuxUdp).threads(2).start().unwrap();
    handle.set_up(true);
    let set_port = |port| device.apply(Update { listen_port: Some(port), ..Update::default() });
    eventually("a bound socket", || device.figures().is_bound);
    let bound = descriptors();
    for _ in 0..50 {
        let own = device.snapshot().listen_port;
        assert!(set_port(taken.local_addr().unwrap().port()).is_err());
        assert_eq!(device.snapshot().listen_port, own, "the old one goes on");
        let free = std::net::UdpSocket::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
        let _ = set_port(free);
        handle.set_up(false);
        eventually("a freed socket", || !device.figures().is_bound);
        handle.set_up(true);
        eventually("a bound socket", || device.figures().is_bound);
    }
    eventually("as many descriptors as at first", || descriptors() == bound);
    drop((device, taken));
    eventually("no descriptor", || descriptors() == before);
}
