//! Where datagrams go and come from: endpoints that follow the peer, source addresses that are kept and let go, marks,
//! NAT, and who may speak for which inner address.

mod testbed;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use testbed::{Capture, Daemon, Implementation, Initiator, Keys, Namespace, Node, Outer, Pair, PairOptions};
use testbed::{ping, ping_with, veth, wait_until};

/// How long a change of the network may take to show in the traffic.
const NOTICE_LIMIT: Duration = Duration::from_secs(5);
/// A NAT that forgets a mapping this fast shows whether keepalives hold it.
const NAT_TIMEOUT_S: u32 = 2;

/// The seven points of small order and their encodings with the unused top bit set, little-endian in hexadecimal:
/// 0, 1, two of order 8, p − 1, p and p + 1. [WP 5.4] [RFC 7748]
const LOW_ORDER_POINTS: [&str; 14] = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000080",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b880",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f11d7",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
];

fn endpoint(of: &Node, at: &Node) -> Option<String> {
    at.peer(of).endpoint
}

#[track_caller]
fn expect_endpoint(of: &Node, at: &Node, address: &str) {
    let expected = SocketAddr::new(address.parse().expect("an address"), of.port).to_string();
    assert_eq!(endpoint(of, at), Some(expected));
}

/// Both know where the other is; the wiretap is off where ports change.
fn both(outer: Outer) -> Pair {
    let pair = Pair::with(PairOptions { outer, initiator: Initiator::Both, wiretap: false, ..PairOptions::default() });
    pair.ping_both_ways();
    pair
}

/// Whether an end has said so much to the other that a socket of its is connected to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Talk {
    Little,
    Much,
}

const TALKS: [Talk; 2] = [Talk::Little, Talk::Much];

/// Pings from one end to the other, so much that `connected` have a connected socket if they are to: those whose answers
/// leave from the address that the system would choose by itself.
#[track_caller]
fn talk(talk: Talk, from: &Node, to: impl std::fmt::Display, connected: &[&Node]) {
    ping(&from.ns, &to, 3);
    if talk == Talk::Much {
        let many = ping_with(&from.ns, &format!("-c 40 -i 0.005 -W 5 {to}"));
        assert_eq!(many.received, 40, "{}", many.text);
        for node in connected {
            let sockets = node.ns.run(&format!("ss -Huan state established sport = :{}", node.port));
            assert_eq!(sockets.lines().count(), 1, "{sockets}");
        }
    }
}

fn change_address(node: &Node, old: &str, new: &str) {
    let nodad = if new.contains(':') { "nodad" } else { "" };
    node.ns.ip(&format!("address add {new} dev outer {nodad}"));
    node.ns.ip(&format!("address del {old} dev outer"));
}

#[track_caller]
fn check_roaming(outer: Outer, [left_old, left_new]: [&str; 2], [right_old, right_new]: [&str; 2]) {
    for how_much in TALKS {
        check_roaming_after(how_much, outer, [left_old, left_new], [right_old, right_new]);
    }
}

#[track_caller]
fn check_roaming_after(
    how_much: Talk,
    outer: Outer,
    [left_old, left_new]: [&str; 2],
    [right_old, right_new]: [&str; 2],
) {
    let pair = both(outer);
    talk(how_much, &pair.left, pair.right.inner_v4, &[&pair.left, &pair.right]);
    let bare = |address: &str| address.split('/').next().unwrap_or_default().to_owned();
    // The left end moves, and is heard from by data packets of its live session.
    let handshake = pair.right.peer(&pair.left).latest_handshake;
    change_address(&pair.left, left_old, left_new);
    ping(&pair.left.ns, pair.right.inner_v4, 3);
    expect_endpoint(&pair.left, &pair.right, &bare(left_new));
    ping(&pair.right.ns, pair.left.inner_v4, 3);
    // Then the right end.
    change_address(&pair.right, right_old, right_new);
    ping(&pair.right.ns, pair.left.inner_v6, 3);
    expect_endpoint(&pair.right, &pair.left, &bare(right_new));
    ping(&pair.left.ns, pair.right.inner_v6, 3);
    assert_eq!(pair.right.peer(&pair.left).latest_handshake, handshake, "roaming needs no handshake");
}

#[test]
fn roaming_both_ways_over_ipv4() {
    privileged!("ping", "tcpdump");
    check_roaming(Outer::V4, ["10.0.0.1/24", "10.0.0.101/24"], ["10.0.0.2/24", "10.0.0.102/24"]);
}

#[test]
fn roaming_both_ways_over_ipv6() {
    privileged!("ping", "tcpdump");
    check_roaming(Outer::V6, ["fd00::1/64", "fd00::101/64"], ["fd00::2/64", "fd00::102/64"]);
}

#[test]
fn roaming_from_ipv4_to_ipv6_and_back() {
    privileged!("ping");
    let pair = both(Outer::V4);
    for (outer, address) in [(Outer::V6, "fd00::1"), (Outer::V4, "10.0.0.1")] {
        let to = SocketAddr::new(outer.address(2), pair.right.port);
        pair.left.daemon.set(&format!("peer {} endpoint {to}", pair.right.keys.public));
        ping(&pair.left.ns, pair.right.inner_v4, 3);
        expect_endpoint(&pair.left, &pair.right, address);
        ping(&pair.right.ns, pair.left.inner_v4, 3);
    }
}

#[test]
fn a_changed_listen_port_is_followed() {
    privileged!("ping");
    let mut pair = both(Outer::V4);
    for port in [6001, 6002] {
        pair.left.daemon.set(&format!("listen-port {port}"));
        pair.left.port = port;
        ping(&pair.left.ns, pair.right.inner_v4, 3);
        expect_endpoint(&pair.left, &pair.right, "10.0.0.1");
        ping(&pair.right.ns, pair.left.inner_v4, 3);
    }
}

/// Client, NAT, server; only the client knows an endpoint.
struct BehindNat {
    client: Node,
    server: Node,
    nat: Namespace,
}

fn behind_nat() -> BehindNat {
    let (client, nat, server) = (Namespace::new("client"), Namespace::new("nat"), Namespace::new("server"));
    veth(&client, "outer", &nat, "private");
    veth(&server, "outer", &nat, "public");
    client.ip("address add 10.1.0.2/24 dev outer");
    client.ip("route add default via 10.1.0.1");
    nat.ip("address add 10.1.0.1/24 dev private");
    nat.ip("address add 10.2.0.1/24 dev public");
    server.ip("address add 10.2.0.2/24 dev outer");
    nat.sysctl("net.ipv4.ip_forward", "1");
    nat.nft(
        "table ip nat {
             chain postrouting {
                 type nat hook postrouting priority srcnat
                 ip saddr 10.1.0.0/24 oifname public masquerade
             }
         }
         table ip filter {
             chain forward {
                 type filter hook forward priority filter
                 iifname public ct state new drop
             }
         }",
    );
    nat.sysctl("net.netfilter.nf_conntrack_udp_timeout", &NAT_TIMEOUT_S.to_string());
    nat.sysctl("net.netfilter.nf_conntrack_udp_timeout_stream", &NAT_TIMEOUT_S.to_string());
    let client = Node::start(&client, Implementation::Adit, 1);
    let server = Node::start(&server, Implementation::Adit, 2);
    let endpoint = SocketAddr::new(Ipv4Addr::new(10, 2, 0, 2).into(), server.port);
    server.add_peer(&client, None, "");
    client.add_peer(&server, Some(endpoint), "");
    BehindNat { client, server, nat }
}

#[test]
fn a_persistent_keepalive_holds_a_mapping_of_nat() {
    privileged!("ping", "nft");
    let BehindNat { client, server, nat: _nat } = behind_nat();
    let keepalive = |value: &str| {
        client.daemon.set(&format!("peer {} persistent-keepalive {value}", server.keys.public));
    };
    keepalive("1");
    ping(&client.ns, server.inner_v4, 3);
    assert!(endpoint(&client, &server).is_some_and(|endpoint| endpoint.starts_with("10.2.0.1:")), "the NAT's address");
    // Longer than the NAT remembers: what is looked at is that nothing happens meanwhile.
    let past_timeout = Duration::from_secs(2 * u64::from(NAT_TIMEOUT_S));
    std::thread::sleep(past_timeout);
    ping(&server.ns, client.inner_v4, 3);
    // The same without keepalives, to know that it was they.
    keepalive("off");
    std::thread::sleep(past_timeout);
    let lost = ping_with(&server.ns, &format!("-c 1 -W 1 {}", client.inner_v4));
    assert_eq!(lost.received, 0, "the NAT had forgotten: {}", lost.text);
}

#[test]
fn a_keepalive_alone_moves_the_endpoint_when_nat_changes_it() {
    privileged!("ping", "nft");
    let BehindNat { client, server, nat } = behind_nat();
    client.daemon.set(&format!("peer {} persistent-keepalive 1", server.keys.public));
    ping(&client.ns, server.inner_v4, 3);
    let handshake = server.peer(&client).latest_handshake;
    nat.ip("address add 10.2.0.77/24 dev public");
    nat.ip("address del 10.2.0.1/24 dev public");
    wait_until("the server sees the client at the new address", NOTICE_LIMIT, || {
        endpoint(&client, &server).is_some_and(|endpoint| endpoint.starts_with("10.2.0.77:"))
    });
    ping(&server.ns, client.inner_v4, 3);
    assert_eq!(server.peer(&client).latest_handshake, handshake, "no handshake was needed");
}

/// The left end owns a wide range at the right end, out of which one address belongs to a third peer.
fn with_a_third_peer() -> Pair {
    let pair = both(Outer::V4);
    let third = Keys::generate().public;
    pair.right.daemon.set(&format!(
        "peer {} allowed-ips 10.5.0.0/24,fd05::/64 peer {third} allowed-ips 10.5.0.66/32,fd05::66/128",
        pair.left.keys.public
    ));
    for address in ["10.5.0.7/32", "10.5.0.66/32", "fd05::7/128 nodad", "fd05::66/128 nodad"] {
        pair.left.daemon.ip(&format!("address add {address} dev DEV"));
    }
    pair.right.daemon.ip("route add 10.5.0.0/24 dev DEV");
    pair.right.daemon.ip("route add fd05::/64 dev DEV");
    pair
}

/// The owner of the longest prefix of the whole device must be the sender, not just any prefix of the sender's.
#[test]
fn a_wide_peer_must_not_speak_for_an_address_of_another() {
    privileged!("ping", "tcpdump");
    let pair = with_a_third_peer();
    let arriving = Capture::start(&pair.right.ns, pair.right.daemon.interface(), "icmp or icmp6");
    for (own, others, to) in [
        ("10.5.0.7", "10.5.0.66", IpAddr::from(pair.right.inner_v4)),
        ("fd05::7", "fd05::66", IpAddr::from(pair.right.inner_v6)),
    ] {
        let rx = pair.right.peer(&pair.left).rx;
        let spoofed = ping_with(&pair.left.ns, &format!("-c 3 -i 0.1 -W 1 -I {others} {to}"));
        assert_eq!((spoofed.transmitted, spoofed.received), (3, 0), "{}", spoofed.text);
        assert!(pair.right.peer(&pair.left).rx >= rx + 3 * 100, "the packets were authentic, and count");
        ping(&pair.left.ns, format!("-I {own} {to}"), 3);
    }
    let sources: Vec<IpAddr> = arriving.stop().iter().filter_map(testbed::Frame::source).collect();
    assert!(sources.contains(&"10.5.0.7".parse().expect("an address")), "{sources:?}");
    assert!(sources.contains(&"fd05::7".parse().expect("an address")), "{sources:?}");
    assert!(!sources.contains(&"10.5.0.66".parse().expect("an address")), "{sources:?}");
    assert!(!sources.contains(&"fd05::66".parse().expect("an address")), "{sources:?}");
}

/// It is authentic, so it tells where the peer is, even if what it carries is refused.
#[test]
fn a_packet_with_a_refused_inner_source_still_moves_the_endpoint() {
    privileged!("ping");
    let pair = with_a_third_peer();
    ping(&pair.left.ns, format!("-I 10.5.0.7 {}", pair.right.inner_v4), 1);
    expect_endpoint(&pair.left, &pair.right, "10.0.0.1");
    change_address(&pair.left, "10.0.0.1/24", "10.0.0.101/24");
    let spoofed = ping_with(&pair.left.ns, &format!("-c 3 -i 0.1 -W 1 -I 10.5.0.66 {}", pair.right.inner_v4));
    assert_eq!(spoofed.received, 0, "{}", spoofed.text);
    expect_endpoint(&pair.left, &pair.right, "10.0.0.101");
}

#[track_caller]
fn check_source_address(outer: Outer, second: &str, first: &str, mask: u8) {
    TALKS.into_iter().for_each(|how_much| check_source_address_after(how_much, outer, second, first, mask));
}

#[track_caller]
fn check_source_address_after(how_much: Talk, outer: Outer, second: &str, first: &str, mask: u8) {
    let pair = Pair::with(PairOptions { outer, initiator: Initiator::Right, ..PairOptions::default() });
    let nodad = if outer == Outer::V6 { "nodad preferred_lft 0" } else { "" };
    pair.left.ns.ip(&format!("address add {second}/{mask} dev outer {nodad}"));
    let endpoint = SocketAddr::new(second.parse().expect("an address"), pair.left.port);
    pair.right.daemon.set(&format!("peer {} endpoint {endpoint}", pair.left.keys.public));
    ping(&pair.right.ns, pair.left.inner_v4, 3);
    talk(how_much, &pair.left, pair.right.inner_v4, &[&pair.right]);
    // A reply from the system's own choice of address would have moved the endpoint.
    expect_endpoint(&pair.left, &pair.right, second);
    pair.left.ns.ip(&format!("address del {second}/{mask} dev outer"));
    wait_until("packets leave from the address that is left", NOTICE_LIMIT, || {
        ping_with(&pair.left.ns, &format!("-c 1 -W 1 {}", pair.right.inner_v4)).received == 1
    });
    expect_endpoint(&pair.left, &pair.right, first);
    ping(&pair.right.ns, pair.left.inner_v4, 3);
}

#[test]
fn replies_leave_from_the_address_that_was_hit_until_it_is_removed_over_ipv4() {
    privileged!("ping", "tcpdump");
    check_source_address(Outer::V4, "10.0.0.11", "10.0.0.1", 24);
}

#[test]
fn replies_leave_from_the_address_that_was_hit_until_it_is_removed_over_ipv6() {
    privileged!("ping", "tcpdump");
    check_source_address(Outer::V6, "fd00::11", "fd00::1", 64);
}

#[test]
fn a_better_route_that_appears_is_taken_with_its_source_address() {
    privileged!("ping");
    TALKS.into_iter().for_each(check_better_route);
}

#[track_caller]
fn check_better_route(how_much: Talk) {
    let (left, right) = (Namespace::new("left"), Namespace::new("right"));
    for ns in [&left, &right] {
        ns.sysctl("net.ipv4.conf.all.rp_filter", "0");
        ns.sysctl("net.ipv4.conf.default.rp_filter", "0");
    }
    for (n, name) in [(1, "one"), (2, "two")] {
        veth(&left, name, &right, name);
        left.ip(&format!("address add 10.{n}.0.1/24 dev {name}"));
        right.ip(&format!("address add 10.{n}.0.2/24 dev {name}"));
    }
    right.ip("address add 10.9.9.9/32 dev lo");
    left.ip("route add 10.9.9.9/32 via 10.1.0.2 metric 200");
    let left = Node::start(&left, Implementation::Adit, 1);
    let right = Node::start(&right, Implementation::Adit, 2);
    left.add_peer(&right, Some(SocketAddr::new(Ipv4Addr::new(10, 9, 9, 9).into(), right.port)), "");
    right.add_peer(&left, None, "");
    ping(&left.ns, right.inner_v4, 3);
    talk(how_much, &right, left.inner_v4, &[&left]);
    expect_endpoint(&left, &right, "10.1.0.1");
    left.ns.ip("route add 10.9.9.9/32 via 10.2.0.2 metric 100");
    wait_until("the left end is heard from at its address on the better route", NOTICE_LIMIT, || {
        ping(&left.ns, right.inner_v4, 1);
        endpoint(&left, &right) == Some(SocketAddr::new(Ipv4Addr::new(10, 2, 0, 1).into(), left.port).to_string())
    });
    left.ns.ip("route del 10.9.9.9/32 via 10.2.0.2 metric 100");
    wait_until("and back, when it is gone", NOTICE_LIMIT, || {
        ping_with(&left.ns, &format!("-c 1 -W 1 {}", right.inner_v4)).received == 1
            && endpoint(&left, &right)
                == Some(SocketAddr::new(Ipv4Addr::new(10, 1, 0, 1).into(), left.port).to_string())
    });
    ping(&right.ns, left.inner_v4, 3);
}

/// [KERNEL-DOWN]
#[test]
fn a_persistent_keepalive_is_sent_on_link_up() {
    privileged!("tcpdump");
    let pair = Pair::new();
    let shaken = |node: &Node, other: &Node| node.peer(other).latest_handshake > 0;
    let key = &pair.right.keys.public;
    let down = || {
        pair.left.daemon.ip("link set DEV down");
        wait_until("the daemon notices, and closes its socket", NOTICE_LIMIT, || {
            pair.left.ns.run(&format!("ss -Huln sport = :{}", pair.left.port)).is_empty()
        });
    };
    down();
    pair.left.daemon.set(&format!("peer {key} persistent-keepalive 25"));
    assert!(!shaken(&pair.left, &pair.right), "nothing is sent while it is down");
    pair.left.daemon.ip("link set DEV up");
    wait_until("a handshake without any traffic", NOTICE_LIMIT, || shaken(&pair.left, &pair.right));
    // And again with a session that the first one left behind, well before the interval of 25 s is over.
    down();
    let rx = pair.right.peer(&pair.left).rx;
    pair.left.daemon.ip("link set DEV up");
    wait_until("a packet without any traffic", NOTICE_LIMIT, || pair.right.peer(&pair.left).rx > rx);
}

#[test]
fn enabling_a_persistent_keepalive_sends_one_at_once() {
    privileged!("tcpdump");
    let pair = Pair::new();
    pair.left.daemon.set(&format!("peer {} persistent-keepalive 25", pair.right.keys.public));
    wait_until("a handshake without any traffic", NOTICE_LIMIT, || pair.left.peer(&pair.right).latest_handshake > 0);
}

/// Two ends of which the left one's tunnel owns the default route, and only its own marked datagrams take the system's,
/// as wg-quick arranges it; but the mark is not set. And an address at the right end.
#[track_caller]
fn with_policy_routing(outer: Outer) -> (Node, Node, &'static str) {
    let (left, right) = (Namespace::new("left"), Namespace::new("right"));
    veth(&left, "outer", &right, "outer");
    let (family, elsewhere, inside, gateway) = match outer {
        Outer::V4 => ("-4", "198.51.100.1", "203.0.113.1", "10.0.0.2"),
        Outer::V6 => ("-6", "2001:db8:1::1", "2001:db8:2::1", "fd00::2"),
    };
    for (ns, n) in [(&left, 1), (&right, 2)] {
        ns.ip(&format!("address add {}/{} dev outer", outer.address(n), if outer == Outer::V4 { 24 } else { 64 }));
    }
    right.ip(&format!("address add {elsewhere} dev lo"));
    right.ip(&format!("address add {inside} dev lo"));
    left.ip(&format!("{family} route add default via {gateway}"));
    let left = Node::start(&left, Implementation::Adit, 1);
    let right = Node::start(&right, Implementation::Adit, 2);
    right.add_peer(&left, None, "");
    let everything = "AllowedIPs = 0.0.0.0/0, ::/0\n";
    left.add_peer(&right, Some(SocketAddr::new(elsewhere.parse().expect("an address"), right.port)), everything);
    left.ns.sysctl("net.ipv4.conf.all.src_valid_mark", "1");
    left.daemon.ip(&format!("{family} route add default dev DEV table 51820"));
    left.ns.ip(&format!("{family} rule add not fwmark 51820 table 51820"));
    left.ns.ip(&format!("{family} rule add table main suppress_prefixlength 0"));
    (left, right, inside)
}

#[track_caller]
fn check_fwmark(outer: Outer) {
    let (left, _right, inside) = with_policy_routing(outer);
    // Without the mark, initiations go into the tunnel themselves.
    let lost = ping_with(&left.ns, &format!("-c 2 -i 0.2 -W 1 {inside}"));
    assert_eq!(lost.received, 0, "{}", lost.text);
    left.daemon.set("fwmark 51820");
    wait_until("the next initiation carries the mark", Duration::from_secs(10), || {
        ping_with(&left.ns, &format!("-c 1 -W 1 {inside}")).received == 1
    });
    ping(&left.ns, inside, 3);
    // It holds for the sockets that a change of port makes.
    left.daemon.set("listen-port 6003");
    ping(&left.ns, inside, 3);
    assert_eq!(left.daemon.dump().fwmark, 51820);
}

#[test]
fn fwmark_policy_routing_of_a_default_route_over_ipv4() {
    privileged!("ping");
    check_fwmark(Outer::V4);
}

#[test]
fn fwmark_policy_routing_of_a_default_route_over_ipv6() {
    privileged!("ping");
    check_fwmark(Outer::V6);
}

/// [KERNEL-LOOP] While the mark is missing, datagrams go round in the tunnel. What of it reaches the other end comes from
/// addresses inside of the tunnel, to which nobody must roam: with the mark, all is as it was.
#[track_caller]
fn check_lost_mark(outer: Outer) {
    TALKS.into_iter().for_each(|how_much| check_lost_mark_after(how_much, outer));
}

#[track_caller]
fn check_lost_mark_after(how_much: Talk, outer: Outer) {
    let (left, right, inside) = with_policy_routing(outer);
    left.daemon.set("fwmark 51820");
    talk(how_much, &left, inside, &[&left]);
    let endpoints = || (endpoint(&left, &right), endpoint(&right, &left));
    let before = endpoints();
    for round in 0..3 {
        left.daemon.set("fwmark 0");
        let lost = ping_with(&left.ns, &format!("-c 20 -i 0.05 -W 1 {inside}"));
        assert_eq!(lost.received, 0, "round {round}: {}", lost.text);
        left.daemon.set("fwmark 51820");
        wait_until("the tunnel works again", NOTICE_LIMIT, || {
            ping_with(&left.ns, &format!("-c 1 -W 1 {inside}")).received == 1
        });
        ping(&left.ns, inside, 3);
        assert_eq!(endpoints(), before, "round {round}");
    }
}

#[test]
fn a_lost_mark_infects_neither_end() {
    privileged!("ping");
    check_lost_mark(Outer::V4);
}

#[test]
fn a_lost_mark_infects_neither_end_over_ipv6() {
    privileged!("ping");
    check_lost_mark(Outer::V6);
}

/// The next packet shakes hands at once with the new key, though less than REKEY_TIMEOUT has passed. [WP 6.4]
#[test]
fn a_private_key_changed_live_shakes_hands_at_once() {
    privileged!("ping", "tcpdump");
    let mut pair = Pair::with(PairOptions { initiator: Initiator::Both, ..PairOptions::default() });
    pair.ping_both_ways();
    for round in 0..3 {
        let old = std::mem::replace(&mut pair.left.keys, Keys::generate());
        let key = pair.left.daemon.file("private-key", &pair.left.keys.private);
        pair.left.daemon.set(&format!("private-key {}", key.display()));
        pair.right.daemon.set(&format!(
            "peer {} remove peer {} allowed-ips {}/32,{}/128",
            old.public, pair.left.keys.public, pair.left.inner_v4, pair.left.inner_v6
        ));
        let start = Instant::now();
        ping(&pair.left.ns, pair.right.inner_v4, 3);
        assert!(start.elapsed() < Duration::from_secs(3), "round {round} took {:?}", start.elapsed());
        ping(&pair.right.ns, pair.left.inner_v6, 3);
        assert_eq!(pair.right.daemon.dump().peers.len(), 1);
    }
}

#[test]
fn s_10_peers_with_low_order_keys_stay_silent() {
    use base64ct::Encoding as _;
    privileged!("ping", "tcpdump");
    let pair = Pair::with(PairOptions { wiretap: false, ..PairOptions::default() });
    let wire = Capture::start(&pair.right.ns, "outer", "udp");
    let control = Keys::generate().public;
    let mut keys = Vec::new();
    for (n, point) in LOW_ORDER_POINTS.iter().enumerate() {
        let bytes = base16ct::lower::decode_vec(point).expect("the table is in hexadecimal");
        let key = base64ct::Base64::encode_string(&bytes);
        pair.left.daemon.set(&format!(
            "peer {key} persistent-keepalive 1 allowed-ips 10.6.0.{n}/32 endpoint 10.0.0.2:{}",
            7000 + n
        ));
        keys.push(key);
    }
    // One whose key is in order shows that datagrams would be seen.
    pair.left
        .daemon
        .set(&format!("peer {control} persistent-keepalive 1 allowed-ips 10.6.0.100/32 endpoint 10.0.0.2:7100"));
    pair.left.daemon.ip("route add 10.6.0.0/24 dev DEV");
    for n in (0..LOW_ORDER_POINTS.len()).chain([100]) {
        assert_eq!(ping_with(&pair.left.ns, &format!("-c 1 -W 0.1 10.6.0.{n}")).received, 0);
    }
    let to_control =
        |frames: &[testbed::Frame]| frames.iter().any(|frame| frame.udp().is_some_and(|(_, port, _)| port == 7100));
    wait_until("the peer in order is called", NOTICE_LIMIT, || to_control(&wire.frames()));
    let frames = wire.stop();
    let called: Vec<u16> = frames.iter().filter_map(|frame| Some(frame.udp()?.1)).collect();
    assert!(called.iter().all(|port| !(7000..7014).contains(port)), "{called:?}");
    for key in &keys {
        let dump = pair.left.daemon.dump();
        let peer = dump.peer(key);
        assert_eq!((peer.tx, peer.rx, peer.latest_handshake), (0, 0, 0), "{peer:?}");
    }
    // And the device still works.
    pair.ping_both_ways();
}

/// The responder answers in the new session from its first packet on, though the old one would still hold.
#[test]
fn f_18_a_restarted_peer_is_answered_at_its_first_packet() {
    privileged!("ping", "tcpdump");
    let mut pair = both(Outer::V4);
    let (left, right) = (&mut pair.left, &pair.right);
    let conf =
        left.interface_section() + &right.peer_section(Some(SocketAddr::new(Outer::V4.address(2), right.port)), "");
    for round in 0..10 {
        left.daemon = Daemon::start(&left.ns, Implementation::Adit);
        left.daemon.setconf(&conf);
        left.daemon.ip(&format!("address add {}/24 dev DEV", left.inner_v4));
        left.daemon.ip("link set DEV up");
        let first = ping_with(&left.ns, &format!("-c 1 -W 2 {}", right.inner_v4));
        assert_eq!(first.received, 1, "round {round}: {}", first.text);
    }
}
