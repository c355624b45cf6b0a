//! Fuzz body: any text is parsed without a panic, and what was set, read back and set again is the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use adit::device::config::{AllowedIp, PeerSnapshot, PeerUpdate, Snapshot, Update};
use adit::key::PresharedKey;
use adit::uapi::{get, set};

/// Takes `data` as the body of `set=1`.
pub(crate) fn run(data: &[u8]) {
    let update = match set::parse(data) {
        Ok(update) => update,
        Err(error) => {
            assert!(error.errno() < 0, "wg(8) expects a negative errno: {error:?}");
            return;
        }
    };
    let told = tell(&applied(update));
    let again = set::parse(settable(&told).as_bytes()).expect("what a device tells of itself can be set");
    assert_eq!(tell(&applied(again)), told);
}

fn tell(snapshot: &Snapshot) -> String {
    let mut text = Vec::new();
    get::write(snapshot, &mut text).expect("memory takes everything");
    String::from_utf8(text).expect("the answer is text")
}

/// Those lines of an answer that a request may have.
fn settable(told: &str) -> String {
    let only_told = ["last_handshake_time_sec=", "last_handshake_time_nsec=", "tx_bytes=", "rx_bytes=", "errno="];
    told.lines()
        .filter(|line| !line.is_empty() && !only_told.iter().any(|key| line.starts_with(key)))
        .flat_map(|line| [line, "\n"])
        .collect()
}

/// What a device without peers becomes by `update`: the plainest model of it.
fn applied(update: Update) -> Snapshot {
    let mut device = Snapshot {
        private_key: update.private_key.flatten(),
        listen_port: update.listen_port.unwrap_or(0),
        fwmark: update.fwmark.unwrap_or(0),
        ..Snapshot::default()
    };
    for change in update.peers {
        apply_to_peer(&mut device.peers, change);
    }
    device
}

fn apply_to_peer(peers: &mut Vec<PeerSnapshot>, change: PeerUpdate) {
    let found = peers.iter().position(|peer| peer.public_key == change.public_key);
    let at = match found {
        _ if change.remove => return peers.retain(|peer| peer.public_key != change.public_key),
        Some(at) => at,
        None if change.update_only => return,
        None => {
            peers.push(PeerSnapshot {
                public_key: change.public_key,
                preshared_key: PresharedKey::default(),
                endpoint: None,
                last_handshake: None,
                rx_bytes: 0,
                tx_bytes: 0,
                persistent_keepalive: 0,
                allowed_ips: Vec::new(),
            });
            peers.len() - 1
        }
    };
    let peer = &mut peers[at];
    peer.preshared_key = change.preshared_key.unwrap_or_else(|| peer.preshared_key.clone());
    peer.endpoint = change.endpoint.or(peer.endpoint);
    peer.persistent_keepalive = change.persistent_keepalive.unwrap_or(peer.persistent_keepalive);
    if change.replace_allowed_ips {
        peer.allowed_ips.clear();
    }
    for step in change.allowed_ips {
        let prefix = masked(step.allowed_ip);
        if step.remove {
            peers[at].allowed_ips.retain(|other| *other != prefix);
        } else {
            peers.iter_mut().for_each(|peer| peer.allowed_ips.retain(|other| *other != prefix));
            peers[at].allowed_ips.push(prefix);
        }
    }
}

/// The prefix with its host bits zero.
fn masked(prefix: AllowedIp) -> AllowedIp {
    let len = u32::from(prefix.prefix_len);
    let address: IpAddr = match prefix.address {
        IpAddr::V4(v4) => Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(32 - len).unwrap_or(0)).into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(128 - len).unwrap_or(0)).into(),
    };
    AllowedIp { address, prefix_len: prefix.prefix_len }
}
