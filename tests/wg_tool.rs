//! Real `wg(8)` drives the daemon: every verb, the sizes that must work, and what must survive it.

mod testbed;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use testbed::{Client, Daemon, Implementation, Keys, Namespace, Pair, PairOptions, ping, random_key};
use testbed::{holds_within, ping_with, wait_until};

/// The kernel's own test gives one peer this many allowed IPs: 256 × 255 × 2.
const ALLOWED_IPS_ON_ONE_PEER: usize = 130_560;

/// A daemon with a key, not up.
fn idle() -> (Namespace, Daemon, Keys) {
    let ns = Namespace::new("only");
    let daemon = Daemon::start(&ns, Implementation::Adit);
    let keys = Keys::generate();
    daemon.setconf(&format!("[Interface]\nPrivateKey = {}\n", keys.private));
    (ns, daemon, keys)
}

fn lines(text: &str) -> Vec<&str> {
    text.lines().collect()
}

#[test]
fn setconf_configures_a_tunnel_that_carries_pings() {
    privileged!("ping", "tcpdump");
    let pair = Pair::with(PairOptions { psk: true, ..PairOptions::default() });
    pair.ping_both_ways();
}

#[test]
fn setconf_replaces_what_was_there() {
    privileged!();
    let (_ns, daemon, keys) = idle();
    let (old, new) = (Keys::generate(), Keys::generate());
    daemon.setconf(&format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 5000\nFwMark = 7\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.1.0.0/16\n",
        keys.private, old.public
    ));
    daemon.setconf(&format!(
        "[Interface]\nPrivateKey = {}\nListenPort = 5001\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.2.0.0/16\n",
        keys.private, new.public
    ));
    let dump = daemon.dump();
    assert_eq!((dump.listen_port, dump.fwmark), (5001, 0));
    assert_eq!(dump.peers.len(), 1);
    assert_eq!(dump.peer(&new.public).allowed_ips, ["10.2.0.0/16"]);
}

#[test]
fn addconf_adds_a_peer_and_leaves_the_others_alone() {
    privileged!("ping", "tcpdump");
    let pair = Pair::new();
    pair.ping_both_ways();
    let before = pair.left.peer(&pair.right);
    let other = Keys::generate();
    pair.left.daemon.addconf(&format!("[Peer]\nPublicKey = {}\nAllowedIPs = 10.9.0.0/24\n", other.public));
    let dump = pair.left.daemon.dump();
    assert_eq!(dump.peers.len(), 2);
    assert_eq!(dump.peer(&other.public).allowed_ips, ["10.9.0.0/24"]);
    assert_eq!(dump.peer(&pair.right.keys.public), &before);
    assert_eq!((dump.listen_port, &dump.private_key), (pair.left.port, &pair.left.keys.private));
}

#[test]
fn syncconf_removes_adds_and_keeps_peers() {
    privileged!("ping", "tcpdump");
    let pair = Pair::new();
    pair.ping_both_ways();
    let (removed, added) = (Keys::generate(), Keys::generate());
    let section = |keys: &Keys, ips: &str| format!("[Peer]\nPublicKey = {}\nAllowedIPs = {ips}\n", keys.public);
    let (conf, _) = pair.configurations();
    pair.left.daemon.syncconf(&format!("{conf}{}", section(&removed, "10.8.0.0/24")));
    assert_eq!(pair.left.daemon.dump().peers.len(), 2);
    let before = pair.left.peer(&pair.right);
    pair.left.daemon.syncconf(&format!("{conf}{}", section(&added, "10.9.0.0/24")));
    let dump = pair.left.daemon.dump();
    assert_eq!(dump.peers.len(), 2);
    assert!(dump.peers.iter().all(|peer| peer.public_key != removed.public));
    assert_eq!(dump.peer(&added.public).allowed_ips, ["10.9.0.0/24"]);
    assert_eq!(dump.peer(&pair.right.keys.public).latest_handshake, before.latest_handshake);
    assert!(dump.peer(&pair.right.keys.public).rx >= before.rx, "the session went on");
}

/// Re-applying what holds loses no packet and makes no new handshake, however it is done.
#[test]
fn live_session_survives_identical_setconf_and_syncconf() {
    privileged!("ping", "tcpdump");
    let pair = Pair::with(PairOptions { psk: true, ..PairOptions::default() });
    pair.ping_both_ways();
    let before = pair.left.peer(&pair.right);
    let (left_conf, right_conf) = pair.configurations();
    let flood = std::thread::scope(|scope| {
        let flood = scope.spawn(|| ping_with(&pair.left.ns, &format!("-i 0.005 -c 400 -W 2 {}", pair.right.inner_v4)));
        while !flood.is_finished() {
            pair.left.daemon.setconf(&left_conf);
            pair.right.daemon.setconf(&right_conf);
            pair.left.daemon.syncconf(&left_conf);
            pair.right.daemon.syncconf(&right_conf);
        }
        flood.join().expect("ping ran")
    });
    assert_eq!((flood.transmitted, flood.received), (400, 400), "{}", flood.text);
    let after = pair.left.peer(&pair.right);
    assert_eq!(after.latest_handshake, before.latest_handshake, "no new handshake was needed");
    assert!(after.rx > before.rx && after.tx > before.tx, "the counters went on: {before:?} {after:?}");
}

#[test]
fn setting_the_same_port_key_and_mark_again_loses_no_packet() {
    privileged!("ping", "tcpdump");
    let pair = Pair::new();
    pair.ping_both_ways();
    let key = pair.left.daemon.file("same-key", &pair.left.keys.private);
    let before = pair.left.peer(&pair.right);
    let flood = std::thread::scope(|scope| {
        let flood = scope.spawn(|| ping_with(&pair.left.ns, &format!("-i 0.005 -c 300 -W 2 {}", pair.right.inner_v4)));
        while !flood.is_finished() {
            pair.left.daemon.set(&format!("listen-port {} fwmark 0 private-key {}", pair.left.port, key.display()));
        }
        flood.join().expect("ping ran")
    });
    assert_eq!((flood.transmitted, flood.received), (300, 300), "{}", flood.text);
    assert_eq!(pair.left.peer(&pair.right).latest_handshake, before.latest_handshake);
}

#[test]
fn set_changes_each_property_of_the_device() {
    privileged!();
    let (_ns, daemon, _) = idle();
    let keys = Keys::generate();
    let key = daemon.file("new-key", &keys.private);
    daemon.set(&format!("private-key {} listen-port 4711 fwmark 0x1234", key.display()));
    let dump = daemon.dump();
    assert_eq!((dump.private_key, dump.public_key), (keys.private, keys.public));
    assert_eq!((dump.listen_port, dump.fwmark), (4711, 0x1234));
    daemon.set("fwmark off private-key /dev/null");
    let dump = daemon.dump();
    assert_eq!((dump.private_key.as_str(), dump.fwmark), ("(none)", 0));
}

#[test]
fn set_changes_each_property_of_a_peer() {
    privileged!();
    let (_ns, daemon, _) = idle();
    let (peer, psk) = (Keys::generate().public, random_key());
    let key = daemon.file("psk", &psk);
    daemon.set(&format!(
        "peer {peer} preshared-key {} endpoint 192.0.2.1:53 persistent-keepalive 25 allowed-ips 10.1.2.3/8,fd00::1/16",
        key.display()
    ));
    let dumped = daemon.dump().peer(&peer).clone();
    assert_eq!(dumped.preshared_key, Some(psk));
    assert_eq!(dumped.endpoint.as_deref(), Some("192.0.2.1:53"));
    assert_eq!(dumped.persistent_keepalive, 25);
    assert_eq!(dumped.allowed_ips, ["10.0.0.0/8", "fd00::/16"], "host bits are masked, order is kept");
    daemon.set(&format!(
        "peer {peer} preshared-key /dev/null endpoint [2001:db8::1]:54 persistent-keepalive off allowed-ips 10.2.0.0/16"
    ));
    let dumped = daemon.dump().peer(&peer).clone();
    assert_eq!(dumped.preshared_key, None);
    assert_eq!(dumped.endpoint.as_deref(), Some("[2001:db8::1]:54"));
    assert_eq!(dumped.persistent_keepalive, 0);
    assert_eq!(dumped.allowed_ips, ["10.2.0.0/16"]);
    daemon.set(&format!("peer {peer} remove"));
    assert_eq!(daemon.dump().peers, []);
}

#[test]
fn an_allowed_ip_moves_from_one_peer_to_another() {
    privileged!();
    let (_ns, daemon, _) = idle();
    let (first, second) = (Keys::generate().public, Keys::generate().public);
    daemon.set(&format!("peer {first} allowed-ips 10.0.0.0/8,10.1.0.0/16 peer {second} allowed-ips 10.2.0.0/16"));
    daemon.set(&format!("peer {second} allowed-ips 10.1.0.0/16"));
    let dump = daemon.dump();
    assert_eq!(dump.peer(&first).allowed_ips, ["10.0.0.0/8"]);
    assert_eq!(dump.peer(&second).allowed_ips, ["10.1.0.0/16"]);
}

#[test]
fn show_prints_each_property() {
    privileged!("ping", "tcpdump");
    let pair = Pair::with(PairOptions { psk: true, ..PairOptions::default() });
    pair.ping_both_ways();
    let (daemon, right) = (&pair.left.daemon, &pair.right);
    daemon.set(&format!("fwmark 0x10 peer {} persistent-keepalive 25", right.keys.public));
    let peer = |value: &str| format!("{}\t{value}\n", right.keys.public);
    assert_eq!(daemon.show("private-key"), format!("{}\n", pair.left.keys.private));
    assert_eq!(daemon.show("public-key"), format!("{}\n", pair.left.keys.public));
    assert_eq!(daemon.show("listen-port"), format!("{}\n", pair.left.port));
    assert_eq!(daemon.show("fwmark"), "0x10\n");
    assert_eq!(daemon.show("peers"), format!("{}\n", right.keys.public));
    assert_eq!(daemon.show("endpoints"), peer(&pair.right_endpoint().to_string()));
    assert_eq!(daemon.show("preshared-keys"), peer(pair.psk.as_deref().expect("the pair has one")));
    assert_eq!(daemon.show("persistent-keepalive"), peer("25"));
    assert_eq!(daemon.show("allowed-ips"), peer(&format!("{}/32 {}/128", right.inner_v4, right.inner_v6)));
    let dumped = pair.left.peer(right);
    assert_eq!(daemon.show("latest-handshakes"), peer(&dumped.latest_handshake.to_string()));
    assert!(daemon.show("transfer").starts_with(&format!("{}\t", right.keys.public)));
    let human = daemon.show("");
    for part in ["listening port: 518", "peer: ", "latest handshake: ", "transfer: ", "every 25 seconds", "(hidden)"] {
        assert!(human.contains(part), "{part:?} is missing in {human}");
    }
}

#[test]
fn show_interfaces_and_show_all_find_the_daemon() {
    privileged!();
    let (_ns, daemon, _) = idle();
    for _ in 0..20 {
        let interfaces = daemon.wg(&["show", "interfaces"]);
        assert!(interfaces.split_whitespace().any(|name| name == daemon.interface()), "{interfaces}");
    }
    // Daemons of other tests come and go meanwhile, and `wg` fails when one goes between its look and its question.
    wait_until("wg show all dump lists the interface", Duration::from_secs(20), || {
        daemon
            .namespace()
            .try_run("wg show all dump")
            .is_ok_and(|all| all.lines().any(|line| line.starts_with(&format!("{}\t", daemon.interface()))))
    });
}

#[test]
fn showconf_restores_the_same_configuration() {
    privileged!();
    let (_ns, daemon, _) = idle();
    let (first, second, psk) = (Keys::generate().public, Keys::generate().public, random_key());
    let key = daemon.file("psk", &psk);
    daemon.set(&format!(
        "listen-port 4712 fwmark 9 \
         peer {first} preshared-key {} endpoint 192.0.2.1:53 persistent-keepalive 25 allowed-ips 10.0.0.0/8,fd00::/16 \
         peer {second} endpoint [2001:db8::1]:54",
        key.display()
    ));
    let conf = daemon.wg(&["showconf", daemon.interface()]);
    // The order of peers is not the configuration's to keep.
    let dump = || {
        let mut dump = daemon.dump();
        dump.peers.sort_by(|a, b| a.public_key.cmp(&b.public_key));
        dump
    };
    let before = dump();
    daemon.setconf("[Interface]\n");
    assert_eq!(daemon.dump().peers, []);
    daemon.setconf(&conf);
    assert_eq!(dump(), before);
}

#[test]
fn u_06_one_peer_takes_130560_allowed_ips() {
    privileged!();
    let (_ns, daemon, keys) = idle();
    let peer = Keys::generate().public;
    let mut conf = format!("[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {peer}\n", keys.private);
    let mut expected = Vec::new();
    for a in 0..256 {
        for b in 0..255 {
            expected.push(format!("10.{a}.{b}.0/24"));
            expected.push(format!("fd00:{a:x}:{b:x}::/48"));
        }
    }
    assert_eq!(expected.len(), ALLOWED_IPS_ON_ONE_PEER);
    for ip in &expected {
        writeln!(conf, "AllowedIPs = {ip}").expect("writing to a String cannot fail");
    }
    let start = Instant::now();
    daemon.setconf(&conf);
    println!("setconf of {ALLOWED_IPS_ON_ONE_PEER} allowed IPs: {:?}", start.elapsed());
    let dump = daemon.dump();
    // Zeros may be written in more than one way: addresses are compared, not their text.
    let parsed = |list: &[String]| -> BTreeSet<(IpAddr, String)> {
        let parts = list.iter().map(|ip| ip.split_once('/').expect("an allowed IP has a length"));
        parts.map(|(ip, len)| (ip.parse().expect("an allowed IP has an address"), len.to_owned())).collect()
    };
    let found = &dump.peer(&peer).allowed_ips;
    assert_eq!(found.len(), ALLOWED_IPS_ON_ONE_PEER);
    assert!(parsed(found) == parsed(&expected), "every allowed IP is there, and no other");
    daemon.setconf(&format!("[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {peer}\n", keys.private));
    assert_eq!(daemon.dump().peer(&peer).allowed_ips, Vec::<String>::new());
}

/// Debian's `wg` is too old to send it. [UAPI]
#[test]
fn an_allowed_ip_with_a_minus_is_removed() {
    privileged!();
    let (_ns, daemon, _) = idle();
    let (peer, other) = (Keys::generate(), Keys::generate());
    let mut client: Client = daemon.client();
    let section = |keys: &Keys, lines: &str| format!("public_key={}\n{lines}", keys.public_hex());
    assert_eq!(client.set(&section(&peer, "allowed_ip=10.0.0.0/8\nallowed_ip=fd00::/16\nallowed_ip=10.1.0.0/16")), 0);
    assert_eq!(client.set(&section(&other, "allowed_ip=10.2.0.0/16")), 0);
    assert_eq!(client.set(&section(&peer, "allowed_ip=-10.0.0.0/8\nallowed_ip=-fd00::/16")), 0);
    assert_eq!(daemon.dump().peer(&peer.public).allowed_ips, ["10.1.0.0/16"]);
    assert_eq!(client.set(&section(&peer, "allowed_ip=-10.2.0.0/16\nallowed_ip=-10.1.0.0/24")), 0);
    assert_eq!(daemon.dump().peer(&peer.public).allowed_ips, ["10.1.0.0/16"], "only exactly what it owns");
    assert_eq!(daemon.dump().peer(&other.public).allowed_ips, ["10.2.0.0/16"], "another's is not its to remove");
}

/// 148 bytes of initiation and ten pings of 128 one way, 92 of response and ten of 128 the other way; a passive
/// keepalive of 32 may follow.
#[test]
fn show_transfer_is_exact_after_ten_pings() {
    privileged!("ping", "tcpdump");
    let pair = Pair::new();
    // The system's own multicasts (router solicitations, MLD) have no peer and are not counted.
    ping(&pair.left.ns, pair.right.inner_v4, 10);
    let counted = || {
        let (left, right) = (pair.left.peer(&pair.right), pair.right.peer(&pair.left));
        ((left.rx, left.tx), (right.rx, right.tx))
    };
    let exact = |((left_rx, left_tx), (right_rx, right_tx)): ((u64, u64), (u64, u64))| {
        left_rx == 1372 && [1428, 1460].contains(&left_tx) && [1428, 1460].contains(&right_rx) && right_tx == 1372
    };
    let found = holds_within(Duration::from_secs(2), || exact(counted()));
    assert!(found, "(rx, tx) left and right: {:?}", counted());
}

#[test]
fn a_changed_preshared_key_is_used_by_the_next_handshake_only() {
    privileged!("ping", "tcpdump");
    let pair = Pair::new();
    pair.ping_both_ways();
    let before = pair.left.peer(&pair.right).latest_handshake;
    let key = pair.left.daemon.file("psk", &random_key());
    pair.left.daemon.set(&format!("peer {} preshared-key {}", pair.right.keys.public, key.display()));
    pair.right.daemon.set(&format!("peer {} preshared-key {}", pair.left.keys.public, key.display()));
    pair.ping_both_ways();
    assert_eq!(pair.left.peer(&pair.right).latest_handshake, before, "the live session is not torn down");
}

#[test]
fn a_peer_with_the_devices_own_key_is_passed_over() {
    privileged!();
    let (_ns, daemon, keys) = idle();
    daemon.set(&format!("peer {} allowed-ips 10.0.0.0/8", keys.public));
    assert_eq!(daemon.dump().peers, []);
}

#[test]
fn a_peer_whose_key_becomes_the_devices_own_is_removed() {
    privileged!();
    let (_ns, daemon, _) = idle();
    let (keys, other) = (Keys::generate(), Keys::generate());
    daemon.set(&format!("peer {} allowed-ips 10.0.0.0/8 peer {}", keys.public, other.public));
    let key = daemon.file("key", &keys.private);
    daemon.set(&format!("private-key {}", key.display()));
    assert_eq!(lines(&daemon.show("peers")), [other.public]);
}
