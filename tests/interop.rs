//! adit with itself and with every other implementation of WireGuard in userspace: over outer IPv4 and IPv6, with and
//! without a preshared key, as initiator and as responder.
//!
//! Each row of the matrix is a test of its own, whose name is the row. It pings both ways over both inner families and
//! moves some TCP both ways, while a wiretap watches the outer wire.

mod testbed;

use testbed::{Implementation, Initiator, Outer, Pair, PairOptions};

/// Some more than one TCP window, so that segments are merged and split.
const TRANSFER_LEN: usize = 2_000_000;

#[track_caller]
fn check(right: Implementation, outer: Outer, psk: bool, initiator: Initiator) {
    // Not every implementation makes its interface with this MTU by itself.
    let inner_mtu = Some(1420);
    let pair = Pair::with(PairOptions { right, outer, psk, initiator, inner_mtu, ..PairOptions::default() });
    pair.ping_both_ways();
    pair.transfer_both_ways(TRANSFER_LEN);
    let handshake = pair.left.peer(&pair.right).latest_handshake;
    assert!(handshake > 0, "adit tells when the handshake was; others tell its age instead, which may be 0");
    for node in [&pair.left, &pair.right] {
        let dump = node.daemon.dump();
        assert!(dump.peers.len() == 1, "{dump:?}");
        assert!(dump.peers[0].rx > TRANSFER_LEN as u64, "{dump:?}");
        assert!(dump.peers[0].tx > TRANSFER_LEN as u64, "{dump:?}");
    }
}

macro_rules! matrix {
    ($($peer:ident = $implementation:ident, $tool:literal;)*) => {$(
        mod $peer {
            use super::*;
            matrix!(@outer $implementation, $tool, over_ipv4 = V4);
            matrix!(@outer $implementation, $tool, over_ipv6 = V6);
        }
    )*};
    (@outer $implementation:ident, $tool:literal, $name:ident = $outer:ident) => {
        mod $name {
            use super::*;
            matrix!(@row $implementation, $tool, $outer, adit_initiates_without_psk = false, Left);
            matrix!(@row $implementation, $tool, $outer, adit_initiates_with_psk = true, Left);
            matrix!(@row $implementation, $tool, $outer, adit_responds_without_psk = false, Right);
            matrix!(@row $implementation, $tool, $outer, adit_responds_with_psk = true, Right);
        }
    };
    (@row $implementation:ident, $tool:literal, $outer:ident, $name:ident = $psk:literal, $initiator:ident) => {
        #[test]
        fn $name() {
            privileged!("ping", "tcpdump", $tool);
            check(Implementation::$implementation, Outer::$outer, $psk, Initiator::$initiator);
        }
    };
}

matrix! {
    with_adit = Adit, "ip";
    with_wireguard_go = WireguardGo, "wireguard-go";
    with_boringtun = Boringtun, "boringtun-cli";
    with_gotatun = Gotatun, "gotatun";
}

/// The jumbo frame of the kernel's own test: an inner MTU whose sealed packets are cut into outer fragments.
#[track_caller]
fn check_jumbo(right: Implementation) {
    let pair = Pair::with(PairOptions { right, inner_mtu: Some(34_736), ..PairOptions::default() });
    testbed::ping(&pair.left.ns, format!("-s 30000 -M do {}", pair.right.inner_v4), 3);
    pair.transfer_both_ways(TRANSFER_LEN);
}

macro_rules! jumbo {
    ($($name:ident = $implementation:ident, $tool:literal;)*) => {$(
        #[test]
        fn $name() {
            privileged!("ping", "tcpdump", $tool);
            check_jumbo(Implementation::$implementation);
        }
    )*};
}

jumbo! {
    jumbo_inner_mtu_with_adit = Adit, "ip";
    jumbo_inner_mtu_with_wireguard_go = WireguardGo, "wireguard-go";
}
