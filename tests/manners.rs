//! The wire's manners, which the kernel has and most implementations in userspace lack: what is copied between inner
//! and outer headers, what local senders are told, and how long packets become.

mod testbed;

use std::net::SocketAddr;
use std::time::Duration;

use testbed::{Capture, Frame, Implementation, Namespace, Node, Outer, Pair, PairOptions};
use testbed::{ping, ping_with, veth, wait_until};

/// Not-ECT, ECT(1), ECT(0), CE: the lower two bits of the traffic class.
const ECN: [u8; 4] = [0b00, 0b01, 0b10, 0b11];
const ECT_0: u8 = 0b10;
const CE: u8 = 0b11;
/// DSCP AF41, no ECN.
const AF41: u8 = 0x88;
/// Sealing adds a header of 16 bytes and a tag of 16.
const DATA_OVERHEAD: usize = 32;
const UDP_HEADER: usize = 8;
const ICMP_HEADER: usize = 8;
const IPV4_HEADER: usize = 20;
const INITIATION: u8 = 1;
const RESPONSE: u8 = 2;
const DATA: u8 = 4;

/// What ping calls the answer to a packet that has no way into the tunnel.
const UNREACHABLE: [&str; 2] = ["Unreachable", "unreachable"];

fn pair(outer: Outer) -> Pair {
    let pair = Pair::with(PairOptions { outer, ..PairOptions::default() });
    pair.ping_both_ways();
    pair
}

/// Pings `to` with a traffic class, and gives the traffic classes of the data messages that left and of the echo
/// requests that arrived.
#[track_caller]
fn classes(pair: &Pair, to: std::net::IpAddr, class: u8) -> (Vec<u8>, Vec<u8>) {
    let request = if to.is_ipv4() { "icmp[0] = 8" } else { "icmp6 and ip6[40] = 128" };
    let port = pair.right.port;
    let outer = Capture::start(&pair.left.ns, "outer", &format!("udp dst port {port}"));
    let inner = Capture::start(&pair.right.ns, pair.right.daemon.interface(), request);
    ping(&pair.left.ns, format!("-Q {class} -s 300 {to}"), 3);
    // Longer than a keepalive: the echo requests alone.
    let outer = outer.stop().into_iter().filter(|frame| frame.message_type() == Some(DATA) && frame.bytes.len() > 300);
    let outer = outer.map(|frame| frame.traffic_class()).collect();
    (outer, inner.stop().iter().map(Frame::traffic_class).collect())
}

/// The ECN bits are copied to the outer header and nothing else of the traffic class; the inner one arrives untouched.
#[track_caller]
fn check_ecn_out(outer: Outer) {
    let pair = pair(outer);
    for to in [pair.right.inner_v4.into(), pair.right.inner_v6.into()] {
        for ecn in ECN {
            let class = 0x28 << 2 | ecn;
            let (left, arrived) = classes(&pair, to, class);
            assert_eq!(left, [ecn; 3], "outer traffic class for {class:#04x} to {to}");
            assert_eq!(arrived, [class; 3], "inner traffic class for {class:#04x} to {to}");
        }
    }
}

#[test]
fn ecn_is_copied_to_the_outer_ipv4_header() {
    privileged!("ping", "tcpdump");
    check_ecn_out(Outer::V4);
}

#[test]
fn ecn_is_copied_to_the_outer_ipv6_header() {
    privileged!("ping", "tcpdump");
    check_ecn_out(Outer::V6);
}

/// A router on the way marks what is ECN-capable; the mark reaches the inner packet if that is ECN-capable too.
#[track_caller]
fn check_congestion_in(outer: Outer) {
    let pair = pair(outer);
    let family = if outer == Outer::V4 { "ip" } else { "ip6" };
    // The right end's own input stands for the congested router, and marks whatever comes.
    pair.right.ns.nft(&format!(
        "table {family} congested {{
             chain marks {{
                 type filter hook prerouting priority mangle
                 udp dport {} {family} ecn set ce
             }}
         }}",
        pair.right.port
    ));
    for to in [pair.right.inner_v4.into(), pair.right.inner_v6.into()] {
        for ecn in ECN {
            let (_, arrived) = classes(&pair, to, ecn);
            // Differs from RFC 6040, as the kernel does: a packet that is not ECN-capable arrives as it was sent.
            let expected = if ecn == 0 { 0 } else { CE };
            assert_eq!(arrived, [expected; 3], "inner ECN {ecn:#04b} under an outer CE, to {to}");
        }
    }
}

#[test]
fn congestion_on_the_outer_ipv4_network_is_told_to_the_inner_packet() {
    privileged!("ping", "tcpdump", "nft");
    check_congestion_in(Outer::V4);
}

#[test]
fn congestion_on_the_outer_ipv6_network_is_told_to_the_inner_packet() {
    privileged!("ping", "tcpdump", "nft");
    check_congestion_in(Outer::V6);
}

/// With merged segments too: a TCP connection that negotiated ECN learns of it and still moves its bytes.
#[test]
fn tcp_with_ecn_survives_congestion_marks() {
    privileged!("ping", "tcpdump", "nft");
    let pair = pair(Outer::V4);
    for ns in [&pair.left.ns, &pair.right.ns] {
        ns.sysctl("net.ipv4.tcp_ecn", "1");
    }
    pair.right.ns.nft(&format!(
        "table ip congested {{
             chain marks {{
                 type filter hook prerouting priority mangle
                 udp dport {} numgen random mod 20 0 ip ecn set ce
             }}
         }}",
        pair.right.port
    ));
    let told = Capture::start(&pair.left.ns, pair.left.daemon.interface(), "tcp[13] & 0x40 != 0 and tcp[13] & 2 = 0");
    testbed::transfer(&pair.left.ns, &pair.right.ns, pair.right.inner_v4.into(), 5_000_000);
    assert!(!told.stop().is_empty(), "the receiver echoed the congestion mark");
}

#[track_caller]
fn check_dscp_of_handshakes(outer: Outer) {
    let pair = Pair::with(PairOptions { outer, ..PairOptions::default() });
    let capture = Capture::start(&pair.left.ns, "outer", "udp");
    pair.ping_both_ways();
    let class_of = |frames: &[Frame], kind| -> Vec<u8> {
        let of_kind = frames.iter().filter(|frame| frame.message_type() == Some(kind));
        of_kind.map(Frame::traffic_class).collect()
    };
    let frames = capture.stop();
    assert_eq!(class_of(&frames, INITIATION), [AF41]);
    assert_eq!(class_of(&frames, RESPONSE), [AF41]);
    assert!(class_of(&frames, DATA).iter().all(|class| *class == 0), "data is not marked");
}

#[test]
fn handshakes_carry_dscp_af41_over_ipv4() {
    privileged!("ping", "tcpdump");
    check_dscp_of_handshakes(Outer::V4);
}

#[test]
fn handshakes_carry_dscp_af41_over_ipv6() {
    privileged!("ping", "tcpdump");
    check_dscp_of_handshakes(Outer::V6);
}

/// What ping prints for an address behind the tunnel that has no way.
#[track_caller]
fn check_unreachable(node: &Node, to: &str) {
    let found = ping_with(&node.ns, &format!("-c 3 -i 0.2 -W 2 {to}"));
    assert_eq!(found.received, 0, "{}", found.text);
    let lines: Vec<&str> = found.text.lines().filter(|line| line.starts_with("From ")).collect();
    assert_eq!(lines.len(), 3, "one answer a ping to {to}: {}", found.text);
    for line in lines {
        assert!(UNREACHABLE.iter().any(|word| line.contains(word)), "{line}");
    }
}

#[test]
fn the_sender_is_told_when_no_peer_matches() {
    privileged!("ping");
    let pair = Pair::new();
    pair.ping_both_ways();
    pair.left.daemon.ip("route add 10.77.0.0/16 dev DEV");
    pair.left.daemon.ip("route add fd77::/64 dev DEV");
    check_unreachable(&pair.left, "10.77.0.1");
    check_unreachable(&pair.left, "fd77::1");
}

#[test]
fn the_sender_is_told_when_the_peer_has_no_endpoint() {
    privileged!("ping");
    let pair = Pair::new();
    // The right end knows no endpoint until the left one speaks.
    check_unreachable(&pair.right, &pair.left.inner_v4.to_string());
    check_unreachable(&pair.right, &pair.left.inner_v6.to_string());
    pair.ping_both_ways();
}

#[test]
fn a_router_behind_the_tunnel_passes_the_unreachable_on() {
    privileged!("ping");
    let (host, router) = (Namespace::new("host"), Namespace::new("router"));
    veth(&host, "lan", &router, "lan");
    host.ip("address add 10.3.0.2/24 dev lan");
    host.ip("route add default via 10.3.0.1");
    router.ip("address add 10.3.0.1/24 dev lan");
    router.sysctl("net.ipv4.ip_forward", "1");
    let router = Node::start(&router, Implementation::Adit, 1);
    router.daemon.ip("route add 10.77.0.0/16 dev DEV");
    let found = ping_with(&host, "-c 3 -i 0.2 -W 2 10.77.0.1");
    let from = format!("From {} ", router.inner_v4);
    let told =
        found.text.lines().filter(|line| line.starts_with(&from) && UNREACHABLE.iter().any(|w| line.contains(w)));
    assert_eq!(told.count(), 3, "{}", found.text);
}

#[test]
fn nothing_is_told_to_multicast_nor_about_errors() {
    privileged!("ping", "tcpdump");
    let pair = Pair::new();
    pair.ping_both_ways();
    let errors = Capture::start(&pair.left.ns, pair.left.daemon.interface(), "icmp[0] = 3 or (icmp6 and ip6[40] = 1)");
    pair.left.daemon.ip("route add 224.0.0.0/4 dev DEV");
    let interface = pair.left.daemon.interface();
    ping_with(&pair.left.ns, "-c 3 -i 0.1 -W 0.2 224.0.0.77");
    ping_with(&pair.left.ns, &format!("-c 3 -i 0.1 -W 0.2 ff02::77%{interface}"));
    ping(&pair.left.ns, pair.right.inner_v4, 1);
    let seen = errors.stop();
    assert_eq!(seen, [], "no destination unreachable");
}

/// To a multiple of 16, never beyond the interface's MTU. A keepalive is 32 bytes.
#[test]
fn packets_are_padded_within_the_mtu() {
    privileged!("ping", "tcpdump");
    for mtu in [1420_usize, 1417] {
        let pair = Pair::with(PairOptions { inner_mtu: Some(mtu as u32), ..PairOptions::default() });
        pair.ping_both_ways();
        let headers = IPV4_HEADER + ICMP_HEADER;
        for inner in [headers, headers + 1, 48, 49, 84, 1400, 1401, mtu - 8, mtu - 1, mtu] {
            let wire = Capture::start(&pair.left.ns, "outer", &format!("udp dst port {}", pair.right.port));
            ping(&pair.left.ns, format!("-M do -s {} {}", inner - headers, pair.right.inner_v4), 1);
            let frames = wire.stop();
            let lens: Vec<usize> = frames.iter().map(|frame| frame.udp().expect("a datagram").2.len()).collect();
            let expected = inner.next_multiple_of(16).min(mtu) + DATA_OVERHEAD;
            assert_eq!(lens, [expected], "inner {inner} bytes, MTU {mtu}");
            let total = frames[0].bytes.len();
            assert_eq!(total, expected + UDP_HEADER + IPV4_HEADER, "in one datagram");
        }
    }
}

#[test]
fn a_keepalive_is_32_bytes() {
    privileged!("ping", "tcpdump");
    let pair = pair(Outer::V4);
    let wire = Capture::start(&pair.left.ns, "outer", &format!("udp dst port {}", pair.right.port));
    pair.left.daemon.set(&format!("peer {} persistent-keepalive 1", pair.right.keys.public));
    wait_until("two keepalives are sent", Duration::from_secs(10), || wire.frames().len() >= 2);
    for frame in wire.stop() {
        assert_eq!((frame.message_type(), frame.udp().expect("a datagram").2.len()), (Some(DATA), 32));
        assert_eq!(frame.traffic_class(), 0);
    }
}

/// Nothing comes back for what is not WireGuard, whatever its length and type.
#[test]
fn strangers_are_met_with_silence() {
    privileged!("ping", "tcpdump");
    // The wiretap would report what the test itself puts on the wire.
    let pair = Pair::with(PairOptions { wiretap: false, ..PairOptions::default() });
    pair.ping_both_ways();
    let answers =
        Capture::start(&pair.right.ns, "outer", &format!("udp src port {} and dst port 7777", pair.left.port));
    let socket = pair.right.ns.enter(|| std::net::UdpSocket::bind("10.0.0.2:7777")).expect("the port is free");
    let to = SocketAddr::new(Outer::V4.address(1), pair.left.port);
    let random = testbed::random_bytes::<65_507>();
    for len in [0, 1, 4, 31, 32, 33, 64, 92, 148, 149, 1400, 9000, 65_507] {
        for kind in [0, 1, 2, 3, 4, 5, 255] {
            let mut datagram: Vec<u8> = random[..len].to_vec();
            if let Some(header) = datagram.get_mut(..4) {
                header.copy_from_slice(&[kind, 0, 0, 0]);
            }
            socket.send_to(&datagram, to).expect("the datagram fits");
        }
    }
    ping(&pair.left.ns, pair.right.inner_v4, 3);
    assert_eq!(answers.stop(), []);
}

/// An ECN-capable inner packet that nobody marked stays as it was.
#[test]
fn without_congestion_nothing_is_marked() {
    privileged!("ping", "tcpdump");
    let pair = pair(Outer::V4);
    let (left, arrived) = classes(&pair, pair.right.inner_v4.into(), ECT_0);
    assert_eq!((left, arrived), (vec![ECT_0; 3], vec![ECT_0; 3]));
}
