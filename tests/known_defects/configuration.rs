//! What a change of the configuration must leave alone.

use std::sync::atomic::Ordering;

use adit::device::config::{PeerUpdate, Update};
use adit::udp::memory::MemoryNetwork;

use super::network::{allowed, inner, key, outer, pair, pass, peer};

/// Whatever of a peer is changed, its session goes on: no new handshake, and nothing lost.
#[test]
fn modifying_a_peer_resets_its_session() {
    let network = MemoryNetwork::new();
    let (one, two) = pair(&network);
    pass(&one, &two, "before");
    let bare = || PeerUpdate::new(key(2).public_key());
    let changes = [
        PeerUpdate { allowed_ips: vec![allowed(inner(7), 32)], ..bare() },
        PeerUpdate { replace_allowed_ips: true, ..peer(2) },
        PeerUpdate { persistent_keepalive: Some(25), ..bare() },
        PeerUpdate { persistent_keepalive: Some(0), ..bare() },
        PeerUpdate { endpoint: Some(outer(2)), ..bare() },
        PeerUpdate { update_only: true, ..bare() },
        PeerUpdate { preshared_key: Some(adit::key::PresharedKey::from_bytes([7; 32])), ..bare() },
        PeerUpdate { preshared_key: Some(adit::key::PresharedKey::default()), ..bare() },
    ];
    for (number, change) in changes.into_iter().enumerate() {
        one.add(change);
        pass(&one, &two, &format!("after change {number}"));
        pass(&two, &one, &format!("back after change {number}"));
    }
    let initiations =
        |host: &super::network::Host| host.wire.left.lock().unwrap().iter().filter(|datagram| datagram[0] == 1).count();
    assert_eq!((initiations(&one), initiations(&two)), (1, 0));
}

/// The port that the device has already is no reason to bind.
#[test]
fn wg_set_on_an_unchanged_port_rebinds() {
    let network = MemoryNetwork::new();
    let (one, two) = pair(&network);
    pass(&one, &two, "before");
    let binds = one.wire.binds.load(Ordering::SeqCst);
    let port = one.device.snapshot().listen_port;
    for _ in 0..20 {
        one.device.apply(Update { listen_port: Some(port), fwmark: Some(0), ..Update::default() }).unwrap();
        pass(&two, &one, "it goes on");
    }
    assert_eq!(one.wire.binds.load(Ordering::SeqCst), binds);
}
