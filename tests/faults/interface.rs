//! The interface is taken away, moved, renamed, and made narrow and wide, while packets pass through it.

use std::time::Duration;

use crate::privileged;
use crate::testbed::{
    Daemon, Initiator, Namespace, Oracle, Pair, PairOptions, Process, Scratch, TcpLoad, UdpFlood, check_calm,
    check_recovery, ping_with, socket_path, wait_until,
};

/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn pair() -> Pair {
    Pair::with(PairOptions { initiator: Initiator::Both, ..PairOptions::default() })
}

/// It ends by itself, with exit code 0, and leaves no socket.
#[track_caller]
fn check_ended(daemon: &mut Daemon) {
    let status = daemon.wait(PATIENCE).expect("it ends");
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert!(!socket_path(daemon.interface()).exists(), "the socket is gone");
}

#[test]
fn f_07_an_interface_deleted_under_load_ends_its_daemon_alone() {
    privileged!("ping", "tcpdump");
    let mut pair = Pair::with(PairOptions { wiretap: false, ..PairOptions::default() });
    pair.ping_both_ways();
    let _load = [
        UdpFlood::start(&pair.left.ns, &pair.right.ns, pair.right.inner_v4.into(), 1000),
        UdpFlood::start(&pair.right.ns, &pair.left.ns, pair.left.inner_v4.into(), 1000),
    ];
    pair.left.daemon.ip("link delete DEV");
    check_ended(&mut pair.left.daemon);
    assert!(pair.right.daemon.is_running());
    assert_eq!(pair.right.daemon.dump().peers.len(), 1);
}

/// The namespace that the interface was moved to is deleted, and the interface with it.
#[test]
fn f_08_a_namespace_deleted_under_load_ends_the_daemon_of_its_interface() {
    privileged!("ping", "tcpdump");
    let mut pair = Pair::with(PairOptions { wiretap: false, ..PairOptions::default() });
    let inside = Namespace::new("inside");
    let interface = pair.left.daemon.interface().to_owned();
    pair.left.ns.ip(&format!("link set {interface} netns {}", inside.name()));
    inside.ip(&format!("address add {}/24 dev {interface}", pair.left.inner_v4));
    inside.ip(&format!("link set {interface} up"));
    wait_until("a ping passes from there", PATIENCE, || {
        ping_with(&inside, &format!("-c 1 -W 0.3 {}", pair.right.inner_v4)).received == 1
    });
    // From without: a socket inside would keep the namespace alive.
    let scratch = Scratch::new();
    let mut load = pair.right.ns.command("ping");
    load.args(["-n", "-q", "-i", "0.002", "-s", "1000"]).arg(pair.left.inner_v4.to_string());
    let _load = Process::spawn(load, scratch.file("ping"));
    drop(inside);
    check_ended(&mut pair.left.daemon);
    assert!(pair.right.daemon.is_running());
}

/// Another name, and its own again, under load: the daemon answers on the socket that it was born with, and goes on.
#[test]
fn f_08_an_interface_is_renamed_under_load() {
    privileged!("ping", "tcpdump");
    let mut pair = pair();
    let oracle = Oracle::before(&pair);
    let load = TcpLoad::start(&pair.left.ns, &pair.right.ns, pair.right.inner_v4.into());
    let (left, born) = (&pair.left, pair.left.daemon.interface().to_owned());
    for round in 0..3 {
        let other = format!("{born}r");
        for (from, to) in [(&born, &other), (&other, &born)] {
            left.ns.ip(&format!("link set {from} down"));
            left.ns.ip(&format!("link set {from} name {to}"));
            left.ns.ip(&format!("link set {to} up"));
            left.ns.ip(&format!("address replace {}/64 dev {to} nodad", left.inner_v6));
            assert_eq!(left.daemon.dump().peers.len(), 1, "it answers, whatever the interface is called");
            let before = load.received();
            wait_until(&format!("round {round}: bytes arrive by way of {to}"), PATIENCE, || {
                load.received() > before + 50_000
            });
        }
    }
    drop(load);
    oracle.check(&mut pair);
}

/// Each MTU that the system accepts, and one after the other under load.
#[test]
fn f_09_every_mtu_from_68_to_65535_under_load() {
    privileged!("ping", "tcpdump");
    // The wiretap knows fragments by their headers, not by what they were.
    let mut pair = Pair::with(PairOptions { wiretap: false, initiator: Initiator::Both, ..PairOptions::default() });
    // Of packets in fragments under load some pieces are lost, and the others would fill the system's memory for them.
    for node in [&pair.left, &pair.right] {
        node.ns.sysctl("net.ipv4.ipfrag_time", "1");
    }
    let oracle = Oracle::before(&pair);
    {
        let _load = [
            UdpFlood::start(&pair.left.ns, &pair.right.ns, pair.right.inner_v4.into(), 1300),
            UdpFlood::start(&pair.right.ns, &pair.left.ns, pair.left.inner_v4.into(), 40),
        ];
        let sizes = [68, 69, 576, 1279, 1280, 1281, 1420, 1500, 9000, 34_736, 65_534, 65_535];
        for mtu in sizes.into_iter().chain(sizes.into_iter().rev()) {
            for node in [&pair.left, &pair.right] {
                let interface = node.daemon.interface();
                // One that the system does not give to any TUN is not adit's to refuse.
                let set = node.ns.try_run(&format!("ip link set {interface} mtu {mtu}"));
                assert!(set.is_ok() || mtu > 65_521, "{mtu}: {set:?}");
            }
        }
    }
    // With nobody pressing: what fills the MTU comes back whole, up to the largest packet that an outer one has room for.
    for mtu in [68, 576, 1280, 9000, 65_475, 1420] {
        for node in [&pair.left, &pair.right] {
            node.daemon.ip(&format!("link set DEV mtu {mtu}"));
        }
        wait_until(&format!("a ping of {mtu} bytes passes"), PATIENCE, || {
            ping_with(&pair.left.ns, &format!("-M do -c 1 -W 0.5 -s {} {}", mtu - 28, pair.right.inner_v4)).received
                == 1
        });
    }
    // An MTU below 1280 takes the IPv6 addresses away.
    for node in [&pair.left, &pair.right] {
        node.daemon.ip(&format!("address replace {}/64 dev DEV nodad", node.inner_v6));
    }
    check_calm(&pair.left.daemon);
    check_recovery(&pair.left, &pair.right);
    oracle.check(&mut pair);
}
