//! A sidecar's readiness, with real devices in memory and in real time: it is lost when a required peer vanishes, and comes
//! back by itself. The rules in all their cases, without waiting, are tested beside `src/proxy/health.rs`.

#![cfg(feature = "proxy")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{PeerUpdate, Update};
use adit::key::PrivateKey;
use adit::metrics::{Family, Kind, Site};
use adit::proxy::health::{Health, Required};
use adit::tun::memory::{MemoryTun, MemoryTunHandle};
use adit::udp::memory::MemoryNetwork;

const PORT: u16 = 51820;
/// Until a new peer has answered, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// What is promised where a keepalive is set.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);

fn outer(host: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, host).into()
}

/// A device at `outer(host)` with one peer, and what keeps its interface alive.
fn start(
    network: &MemoryNetwork,
    host: u8,
    key: &PrivateKey,
    peer: (u8, &PrivateKey),
    keepalive: u16,
) -> (Arc<Device>, MemoryTunHandle) {
    let (tun, system) = MemoryTun::new("memory", 1420);
    let device = Device::builder(tun, network.host(&[outer(host)])).threads(1).start().unwrap();
    let peers = vec![PeerUpdate {
        endpoint: Some(SocketAddr::new(outer(peer.0), PORT)),
        persistent_keepalive: Some(keepalive),
        ..PeerUpdate::new(peer.1.public_key())
    }];
    let update = Update { private_key: Some(Some(key.clone())), listen_port: Some(PORT), peers, ..Update::default() };
    device.apply(update).unwrap();
    system.set_up(true);
    (Arc::new(device), system)
}

/// How long it took until `health` was as it should be.
#[track_caller]
fn became(health: &Health, ready: bool, limit: Duration) -> Duration {
    let begun = Instant::now();
    while health.is_ready().is_ok() != ready {
        assert!(begun.elapsed() < limit, "not within {limit:?}: ready = {ready}; {:?}", health.is_ready());
        std::thread::sleep(Duration::from_millis(50));
    }
    begun.elapsed()
}

#[test]
fn a_peer_vanishes_and_comes_back() {
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let (key_a, key_b) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng));
    let network = MemoryNetwork::new();
    let (a, _system_a) = start(&network, 1, &key_a, (2, &key_b), 25);
    let family =
        Family { name: "adit_test", help: "A test", unit: None, kind: Kind::Gauge, samples: vec![(vec![], 1)] };
    let health = Arc::new(Health::new(&a, Box::new(move || vec![family.clone()])));
    assert_eq!(health.is_ready(), Ok(()), "nothing is required yet");

    health.require([Required { public_key: key_b.public_key(), pings: None }]);
    let expected = format!("peer {}: no handshake has completed yet", key_b.public_key());
    assert_eq!(health.is_ready(), Err(vec![expected]));

    let (b, system_b) = start(&network, 2, &key_b, (1, &key_a), 0);
    became(&health, true, PATIENCE);
    let text = String::from(health.metrics().unwrap());
    assert!(text.contains("\nadit_test{interface=\"memory\"} 1\n") && text.contains("\nadit_sessions"), "{text}");

    // From here on it is only watched: whoever asks once, after twenty seconds, must see it.
    drop((b, system_b));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(NOTICED_WITHIN, health.watch()).await }).unwrap_err();
    let reasons = health.is_ready().unwrap_err();
    assert!(reasons.len() == 1 && reasons[0].contains("does not answer"), "{reasons:?}");
    assert!(health.is_alive().is_ok());

    let (_b, _system_b) = start(&network, 2, &key_b, (1, &key_a), 0);
    let took = became(&health, true, PATIENCE);
    println!("ready again {took:?} after the peer came back");

    drop(a);
    assert_eq!(health.is_alive(), Err("the device has ended".to_owned()));
    assert_eq!(health.is_ready(), Err(vec!["the device has ended".to_owned()]));
    assert!(health.metrics().is_none());
}

#[test]
fn watching_ends_with_the_device() {
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let (key_a, key_b) = (PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng));
    let (a, system) = start(&MemoryNetwork::new(), 1, &key_a, (2, &key_b), 0);
    let health = Health::new(&a, Box::new(Vec::new));
    // The interface's end is the device's.
    drop(system);
    a.wait();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, health.watch()).await }).unwrap();
}
