//! Traffic through a tunnel: ping and iperf3 over both inner and both outer families, extreme sizes, tunnels in
//! tunnels, and nothing in plaintext on the outer wire.

mod testbed;

use std::net::SocketAddr;
use std::time::Duration;

use testbed::{Capture, Node, Outer, Pair, PairOptions, iperf, ping, ping_with, transfer, udp_socket, wait_until};

/// Slow machines carry more than this; a tunnel that lives from retransmissions does not.
const TCP_BITS_PER_SECOND_MIN: f64 = 20e6;
/// What the UDP tests send: little enough for every packet to arrive on a busy machine.
const UDP_RATE: &str = "20M";
const UDP_LOST_PERCENT_MAX: f64 = 5.0;
/// The inner MTU of the kernel's jumbo test.
const JUMBO_MTU: u32 = 34_736;
/// What a daemon in a routing loop may hold at most: its bounded buffers, not a growing backlog.
const LOOP_RESIDENT_BYTES_MAX: u64 = 256 << 20;

#[derive(Clone, Copy)]
enum Inner {
    V4,
    V6,
}

impl Inner {
    fn of(self, node: &Node) -> std::net::IpAddr {
        match self {
            Self::V4 => node.inner_v4.into(),
            Self::V6 => node.inner_v6.into(),
        }
    }
}

fn pair(outer: Outer) -> Pair {
    Pair::with(PairOptions { outer, ..PairOptions::default() })
}

#[track_caller]
fn check_ping(outer: Outer, inner: Inner) {
    let pair = pair(outer);
    let (left, right) = (inner.of(&pair.left), inner.of(&pair.right));
    ping(&pair.left.ns, right, 10);
    ping(&pair.right.ns, left, 10);
    // Empty, one that fills the MTU of 1420 exactly, and ones that the sender's system cuts into fragments.
    let full = 1420 - 8 - if left.is_ipv4() { 20 } else { 40 };
    for size in [0, 1, 15, 16, 17, full - 1, full] {
        ping(&pair.left.ns, format!("-M do -s {size} {right}"), 3);
    }
    for size in [full + 1, 8_000, 60_000] {
        ping(&pair.left.ns, format!("-M dont -s {size} {right}"), 3);
    }
}

#[test]
fn ping_over_inner_ipv4_and_outer_ipv4() {
    privileged!("ping", "tcpdump");
    check_ping(Outer::V4, Inner::V4);
}

#[test]
fn ping_over_inner_ipv4_and_outer_ipv6() {
    privileged!("ping", "tcpdump");
    check_ping(Outer::V6, Inner::V4);
}

#[test]
fn ping_over_inner_ipv6_and_outer_ipv4() {
    privileged!("ping", "tcpdump");
    check_ping(Outer::V4, Inner::V6);
}

#[test]
fn ping_over_inner_ipv6_and_outer_ipv6() {
    privileged!("ping", "tcpdump");
    check_ping(Outer::V6, Inner::V6);
}

#[track_caller]
fn check_tcp(pair: &Pair, inner: Inner) {
    pair.ping_both_ways();
    let (left, right) = (inner.of(&pair.left), inner.of(&pair.right));
    for (from, to, address) in [(&pair.left.ns, &pair.right.ns, right), (&pair.right.ns, &pair.left.ns, left)] {
        let found = iperf(from, to, address, "-t 1");
        println!("TCP to {address}: {:.0} Mbit/s", found.bits_per_second / 1e6);
        assert!(found.bits_per_second > TCP_BITS_PER_SECOND_MIN, "TCP to {address}: {found:?}");
        // And every byte is the one that was sent, which iperf3 does not look at.
        transfer(from, to, address, 3_000_000);
    }
}

#[test]
fn tcp_over_inner_ipv4_and_outer_ipv4() {
    privileged!("ping", "tcpdump", "iperf3");
    check_tcp(&pair(Outer::V4), Inner::V4);
}

#[test]
fn tcp_over_inner_ipv4_and_outer_ipv6() {
    privileged!("ping", "tcpdump", "iperf3");
    check_tcp(&pair(Outer::V6), Inner::V4);
}

#[test]
fn tcp_over_inner_ipv6_and_outer_ipv4() {
    privileged!("ping", "tcpdump", "iperf3");
    check_tcp(&pair(Outer::V4), Inner::V6);
}

#[test]
fn tcp_over_inner_ipv6_and_outer_ipv6() {
    privileged!("ping", "tcpdump", "iperf3");
    check_tcp(&pair(Outer::V6), Inner::V6);
}

#[track_caller]
fn check_udp(pair: &Pair, inner: Inner) {
    pair.ping_both_ways();
    let (left, right) = (inner.of(&pair.left), inner.of(&pair.right));
    for (from, to, address) in [(&pair.left.ns, &pair.right.ns, right), (&pair.right.ns, &pair.left.ns, left)] {
        for len in [64, 1300] {
            let rate = if len == 64 { "1M" } else { UDP_RATE };
            let found = iperf(from, to, address, &format!("-u -t 1 -b {rate} -l {len}"));
            assert!(found.received > 0 && found.lost_percent < UDP_LOST_PERCENT_MAX, "UDP to {address}: {found:?}");
        }
    }
}

#[test]
fn udp_over_inner_ipv4_and_outer_ipv4() {
    privileged!("ping", "tcpdump", "iperf3");
    check_udp(&pair(Outer::V4), Inner::V4);
}

#[test]
fn udp_over_inner_ipv4_and_outer_ipv6() {
    privileged!("ping", "tcpdump", "iperf3");
    check_udp(&pair(Outer::V6), Inner::V4);
}

#[test]
fn udp_over_inner_ipv6_and_outer_ipv4() {
    privileged!("ping", "tcpdump", "iperf3");
    check_udp(&pair(Outer::V4), Inner::V6);
}

#[test]
fn udp_over_inner_ipv6_and_outer_ipv6() {
    privileged!("ping", "tcpdump", "iperf3");
    check_udp(&pair(Outer::V6), Inner::V6);
}

#[track_caller]
fn check_jumbo(outer: Outer, outer_mtu: Option<u32>) {
    let pair = Pair::with(PairOptions { outer, outer_mtu, inner_mtu: Some(JUMBO_MTU), ..PairOptions::default() });
    pair.ping_both_ways();
    for size in [1500, 9000, JUMBO_MTU - 28] {
        ping(&pair.left.ns, format!("-M do -s {size} {}", pair.right.inner_v4), 3);
    }
    check_tcp(&pair, Inner::V4);
    check_tcp(&pair, Inner::V6);
}

#[test]
fn jumbo_inner_mtu_over_a_jumbo_outer_network() {
    privileged!("ping", "tcpdump", "iperf3");
    check_jumbo(Outer::V4, Some(65_535));
}

#[test]
fn jumbo_inner_mtu_in_outer_ipv4_fragments() {
    privileged!("ping", "tcpdump", "iperf3");
    check_jumbo(Outer::V4, None);
}

#[test]
fn jumbo_inner_mtu_in_outer_ipv6_fragments() {
    privileged!("ping", "tcpdump", "iperf3");
    check_jumbo(Outer::V6, None);
}

/// A second pair of daemons whose outer network is the first pair's tunnel.
#[test]
fn a_tunnel_in_a_tunnel() {
    privileged!("ping", "tcpdump", "iperf3");
    // The wiretap would take the inner tunnel's messages, seen on the outer tunnel's interface, for a leak.
    let outer = Pair::with(PairOptions { wiretap: false, ..PairOptions::default() });
    outer.ping_both_ways();
    let start = |node: &Node, n| testbed::Node::start(&node.ns, testbed::Implementation::Adit, n);
    let (left, right) = (start(&outer.left, 11), start(&outer.right, 12));
    for node in [&left, &right] {
        node.daemon.ip("link set DEV mtu 1340");
        // Both tunnels have the same inner network: the more specific route decides.
        let (v4, v6) =
            if node.port == left.port { (right.inner_v4, right.inner_v6) } else { (left.inner_v4, left.inner_v6) };
        node.daemon.ip(&format!("route add {v4}/32 dev DEV src {}", node.inner_v4));
        node.daemon.ip(&format!("route add {v6}/128 dev DEV src {}", node.inner_v6));
    }
    left.add_peer(&right, Some(SocketAddr::new(outer.right.inner_v4.into(), right.port)), "");
    right.add_peer(&left, None, "");
    ping(&left.ns, right.inner_v4, 5);
    ping(&right.ns, left.inner_v6, 5);
    transfer(&left.ns, &right.ns, right.inner_v4.into(), 3_000_000);
    transfer(&right.ns, &left.ns, left.inner_v6.into(), 3_000_000);
    assert!(iperf(&left.ns, &right.ns, right.inner_v4.into(), "-t 1").bits_per_second > TCP_BITS_PER_SECOND_MIN);
}

#[track_caller]
fn check_routing_loop(with_session: bool) {
    let mut pair = Pair::with(PairOptions { wiretap: false, ..PairOptions::default() });
    if with_session {
        pair.ping_both_ways();
    }
    // The peer is said to be at an address that is routed into the tunnel itself. (Not one that the peer has: what is
    // still on its way when the loop ends would make its endpoints loop in their turn.)
    let key = &pair.right.keys.public;
    pair.left.daemon.ip("route add 10.66.0.0/24 dev DEV");
    pair.left
        .daemon
        .set(&format!("peer {key} allowed-ips {}/32,10.66.0.0/24 endpoint 10.66.0.1:9", pair.right.inner_v4));
    let lost = ping_with(&pair.left.ns, &format!("-c 5 -i 0.2 -W 1 {}", pair.right.inner_v4));
    assert_eq!(lost.received, 0, "{}", lost.text);
    assert!(pair.left.daemon.is_running());
    let resident = pair.left.daemon.resident_bytes();
    assert!(resident < LOOP_RESIDENT_BYTES_MAX, "{resident} bytes resident");
    pair.left.daemon.set(&format!("peer {key} endpoint {}", pair.right_endpoint()));
    wait_until("the tunnel works again", Duration::from_secs(10), || {
        ping_with(&pair.left.ns, &format!("-c 1 -W 1 {}", pair.right.inner_v4)).received == 1
    });
    ping(&pair.left.ns, pair.right.inner_v4, 5);
    assert!(pair.left.daemon.is_running());
}

#[test]
fn a_routing_loop_before_the_first_handshake_is_survived() {
    privileged!("ping", "tcpdump");
    check_routing_loop(false);
}

#[test]
fn a_routing_loop_with_a_live_session_is_survived() {
    privileged!("ping", "tcpdump");
    check_routing_loop(true);
}

#[test]
fn f_09_the_mtu_changes_under_traffic_without_loss() {
    privileged!("ping", "tcpdump");
    let pair = Pair::new();
    pair.ping_both_ways();
    let flood = std::thread::scope(|scope| {
        let flood =
            scope.spawn(|| ping_with(&pair.left.ns, &format!("-i 0.01 -c 200 -s 1100 {}", pair.right.inner_v4)));
        for mtu in [1280, 1420, 9000, 1300, 1420].into_iter().cycle() {
            if flood.is_finished() {
                break;
            }
            pair.left.daemon.ip(&format!("link set DEV mtu {mtu}"));
            pair.right.daemon.ip(&format!("link set DEV mtu {mtu}"));
        }
        flood.join().expect("ping ran")
    });
    assert_eq!((flood.transmitted, flood.received), (200, 200), "{}", flood.text);
    for mtu in [1280, 8920, 1420] {
        for node in [&pair.left, &pair.right] {
            node.daemon.ip(&format!("link set DEV mtu {mtu}"));
        }
        ping(&pair.left.ns, format!("-M do -s {} {}", mtu - 28, pair.right.inner_v4), 3);
        transfer(&pair.left.ns, &pair.right.ns, pair.right.inner_v4.into(), 1_000_000);
    }
}

/// Where packets come alone each is taken alone. One that comes with another must not wait for the next, on any way.
#[test]
fn what_comes_together_after_lone_packets_arrives_together() {
    privileged!("ping", "tcpdump");
    let pair = Pair::new();
    pair.ping_both_ways();
    let address = pair.right.inner_v4.into();
    let (from, to) = (udp_socket(&pair.left.ns, pair.left.inner_v4.into()), udp_socket(&pair.right.ns, address));
    from.connect(to.local_addr().expect("it is bound")).expect("there is a route");
    let mut received = [0; 8];
    for number in 0..200_u64 {
        // Mostly alone, sometimes two to four in one go: at first there for one daemon, then for the other.
        let count = if number % 5 == 4 { 2 + number % 3 } else { 1 };
        for daemon in [&pair.left.daemon, &pair.right.daemon] {
            daemon.signal(libc::SIGSTOP);
        }
        for part in 0..count {
            from.send(&(number * 8 + part).to_be_bytes()).expect("it is short");
        }
        for daemon in [&pair.left.daemon, &pair.right.daemon] {
            daemon.signal(libc::SIGCONT);
            std::thread::sleep(Duration::from_millis(2));
        }
        for part in 0..count {
            let mut arrived = false;
            wait_until(&format!("part {part} of {count} of {number} arrives"), Duration::from_secs(5), || {
                arrived |= to.recv(&mut received).is_ok();
                arrived
            });
            assert_eq!(u64::from_be_bytes(received), number * 8 + part);
        }
    }
}

/// What the wiretap of every [`Pair`] looks for, proven able to see: the pattern is on the tunnel interface, and
/// neither it nor an inner address is on the wire.
#[test]
fn no_plaintext_on_the_outer_wire() {
    privileged!("ping", "tcpdump");
    let pattern = *b"adit is watching";
    let hex: String = pattern.iter().map(|byte| format!("{byte:02x}")).collect();
    for outer in [Outer::V4, Outer::V6] {
        let pair = pair(outer);
        let on_the_tunnel = Capture::start(&pair.left.ns, pair.left.daemon.interface(), "");
        let on_the_wire = Capture::start(&pair.left.ns, "outer", "");
        for right in [pair.right.inner_v4.to_string(), pair.right.inner_v6.to_string()] {
            ping(&pair.left.ns, format!("-s 200 -p {hex} {right}"), 5);
        }
        transfer(&pair.left.ns, &pair.right.ns, pair.right.inner_v4.into(), 100_000);
        let seen = on_the_tunnel.stop();
        assert!(seen.iter().filter(|frame| frame.contains(&pattern)).count() >= 20, "the pattern was sent");
        assert!(seen.iter().all(|frame| frame.message_type().is_none()), "ciphertext on the tunnel interface");
        let wire = on_the_wire.stop();
        assert!(wire.iter().filter(|frame| frame.message_type() == Some(4)).count() >= 20, "the tunnel was used");
        for frame in &wire {
            assert!(!frame.contains(&pattern) && !frame.contains(&pair.right.inner_v6.octets()), "{frame:02x?}");
            let source = frame.source().expect("an IP packet").to_string();
            assert!(!source.starts_with("192.168.241.") && !source.starts_with("fd00:241:"), "{frame:02x?}");
        }
    }
}
