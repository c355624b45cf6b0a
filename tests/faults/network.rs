//! The network goes wrong: between two daemons in namespaces, with the real system's answers.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::privileged;
use crate::relay::{Relay, Trouble};
use crate::testbed::{
    Capture, Implementation, Initiator, NUMBERED_LEN_MIN, Namespace, Oracle, Outer, Pair, PairOptions, Process,
    Scratch, SetOnDrop, TcpLoad, check_calm, check_recovery, ping, read_numbered, udp_socket, wait_until,
    write_numbered,
};

/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often a link goes down and comes up again.
const FLAPS: usize = 100;
/// Changes of the port and of the mark under load, and the longest silence that the median of them may cause.
const CHANGES: u32 = 10;
const GAP_MAX: Duration = Duration::from_millis(100);

/// Both ends know each other's endpoint, so that either can begin again.
fn pair() -> Pair {
    Pair::with(PairOptions { initiator: Initiator::Both, ..PairOptions::default() })
}

/// Pings a hundred times a second, in the background, whatever comes back.
fn pings(from: &Namespace, to: impl std::fmt::Display, scratch: &Scratch) -> Process {
    let mut command = from.command("ping");
    command.args(["-n", "-q", "-i", "0.01"]).arg(to.to_string());
    Process::spawn(command, scratch.file(&format!("ping-{to}")))
}

#[test]
fn f_01_a_link_goes_down_and_up_a_hundred_times() {
    privileged!("ping", "tcpdump");
    let (mut pair, scratch) = (pair(), Scratch::new());
    let oracle = Oracle::before(&pair);
    {
        let _traffic =
            [pings(&pair.left.ns, pair.right.inner_v4, &scratch), pings(&pair.right.ns, pair.left.inner_v4, &scratch)];
        let batch = scratch.write("batch", &"link set outer up\nlink set outer down\n".repeat(FLAPS / 10));
        for _ in 0..10 {
            pair.left.ns.run(&format!("ip -batch {}", batch.display()));
            // So that pings meet a link that is down, too.
            std::thread::sleep(Duration::from_millis(30));
        }
        pair.left.ns.ip("link set outer up");
    }
    oracle.check(&mut pair);
}

#[test]
fn f_01_routes_go_and_come_back() {
    privileged!("ping", "tcpdump");
    let (mut pair, scratch) = (pair(), Scratch::new());
    let oracle = Oracle::before(&pair);
    // ENETUNREACH, EHOSTUNREACH, EACCES, EINVAL, and a link that is down.
    for (break_it, mend_it) in [
        ("route delete 10.0.0.0/24 dev outer", "route add 10.0.0.0/24 dev outer src 10.0.0.1"),
        ("route add unreachable 10.0.0.2/32", "route delete unreachable 10.0.0.2/32"),
        ("route add prohibit 10.0.0.2/32", "route delete prohibit 10.0.0.2/32"),
        ("route add blackhole 10.0.0.2/32", "route delete blackhole 10.0.0.2/32"),
        ("address delete 10.0.0.1/24 dev outer", "address add 10.0.0.1/24 dev outer"),
        ("link set outer down", "link set outer up"),
    ] {
        pair.left.ns.ip(break_it);
        {
            let _traffic = pings(&pair.left.ns, pair.right.inner_v4, &scratch);
            check_calm(&pair.left.daemon);
        }
        pair.left.ns.ip(mend_it);
        check_recovery(&pair.left, &pair.right);
    }
    oracle.check(&mut pair);
}

/// EPERM from the firewall on the way out, silence on the way in, and a port that refuses (ECONNREFUSED).
#[test]
fn f_02_firewalls_and_refusals_end_nothing_and_deafen_nobody() {
    privileged!("ping", "tcpdump", "nft");
    let (mut pair, scratch) = (pair(), Scratch::new());
    let oracle = Oracle::before(&pair);
    for (hook, verdict) in [("output", "reject"), ("output", "drop"), ("input", "reject"), ("input", "drop")] {
        let ports = format!("udp dport {{ {}, {} }}", pair.left.port, pair.right.port);
        pair.left.ns.nft(&format!(
            "add table inet fault; add chain inet fault c {{ type filter hook {hook} priority 0; }}; \
             add rule inet fault c {ports} {verdict}"
        ));
        {
            let _traffic = [
                pings(&pair.left.ns, pair.right.inner_v4, &scratch),
                pings(&pair.right.ns, pair.left.inner_v4, &scratch),
            ];
            check_calm(&pair.left.daemon);
        }
        pair.left.ns.run("nft delete table inet fault");
        check_recovery(&pair.left, &pair.right);
    }
    // The other end's port is closed while its interface is down: each datagram is answered by an ICMP error.
    pair.right.daemon.ip("link set DEV down");
    {
        let _traffic = pings(&pair.left.ns, pair.right.inner_v4, &scratch);
        check_calm(&pair.left.daemon);
    }
    pair.right.daemon.ip("link set DEV up");
    pair.right.daemon.ip(&format!("address replace {}/64 dev DEV nodad", pair.right.inner_v6));
    // An interface that was down has forgotten its sessions: the other end would notice after 15 s, this one knows.
    check_recovery(&pair.right, &pair.left);
    oracle.check(&mut pair);
}

/// Segments larger than the path's MTU: a train is refused with EMSGSIZE, and goes singly, in fragments.
#[test]
fn f_03_a_path_that_becomes_too_narrow_for_trains() {
    privileged!("ping", "tcpdump");
    for outer in [Outer::V4, Outer::V6] {
        let mut pair = Pair::with(PairOptions { outer, initiator: Initiator::Both, ..PairOptions::default() });
        let oracle = Oracle::before(&pair);
        pair.transfer_both_ways(2_000_000);
        for mtu in [1280, 1500] {
            for ns in [&pair.left.ns, &pair.right.ns] {
                ns.ip(&format!("link set outer mtu {mtu}"));
            }
            pair.transfer_both_ways(2_000_000);
        }
        oracle.check(&mut pair);
    }
}

/// Whatever the TUN and the outer link can do is switched off, and on again, while it is in use.
#[test]
fn f_04_offloads_are_switched_off_and_on_under_load() {
    privileged!("ping", "tcpdump", "ethtool");
    let mut pair = pair();
    let oracle = Oracle::before(&pair);
    let load = [
        TcpLoad::start(&pair.left.ns, &pair.right.ns, pair.right.inner_v4.into()),
        TcpLoad::start(&pair.right.ns, &pair.left.ns, pair.left.inner_v6.into()),
    ];
    for state in ["off", "on"] {
        for feature in ["tx-udp-segmentation", "gso", "gro", "tso", "tx", "rx", "sg"] {
            for node in [&pair.left, &pair.right] {
                for interface in ["outer", node.daemon.interface()] {
                    // Not every interface has every feature to switch.
                    let _ = node.ns.try_run(&format!("ethtool -K {interface} {feature} {state}"));
                }
            }
            for load in &load {
                let before = load.received();
                wait_until(&format!("bytes arrive with {feature} {state}"), PATIENCE, || {
                    load.received() > before + 100_000
                });
            }
        }
    }
    drop(load);
    oracle.check(&mut pair);
}

#[test]
fn f_10_ipv6_is_switched_off_and_on_while_it_is_used() {
    privileged!("ping", "tcpdump");
    let options = PairOptions { outer: Outer::V6, initiator: Initiator::Both, ..PairOptions::default() };
    let (mut pair, scratch) = (Pair::with(options), Scratch::new());
    let oracle = Oracle::before(&pair);
    for _ in 0..2 {
        pair.left.ns.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        {
            let _traffic = pings(&pair.left.ns, pair.right.inner_v4, &scratch);
            check_calm(&pair.left.daemon);
        }
        // By way of IPv4, meanwhile, the same daemon is reached.
        let IpAddr::V4(v4) = Outer::V4.address(2) else { unreachable!("an IPv4 address") };
        let at =
            |ip: IpAddr| format!("peer {} endpoint {}", pair.right.keys.public, SocketAddr::new(ip, pair.right.port));
        pair.left.daemon.set(&at(v4.into()));
        check_recovery(&pair.left, &pair.right);
        pair.left.ns.sysctl("net.ipv6.conf.all.disable_ipv6", "0");
        pair.left.ns.ip(&format!("address add {}/64 dev outer nodad", Outer::V6.address(1)));
        pair.left.daemon.ip(&format!("address add {}/64 dev DEV nodad", pair.left.inner_v6));
        pair.left.daemon.set(&at(Outer::V6.address(2)));
        check_recovery(&pair.left, &pair.right);
    }
    oracle.check(&mut pair);
}

/// The longest silence at the receiver around each of some changes of the sender, while numbered datagrams flow.
fn silences(pair: &Pair, changes: &mut dyn Iterator<Item = String>) -> Vec<Duration> {
    let receiver = udp_socket(&pair.right.ns, pair.right.inner_v4.into());
    let at = receiver.local_addr().unwrap();
    let sender = udp_socket(&pair.left.ns, IpAddr::from([0; 4]));
    sender.connect(at).unwrap();
    let ended = AtomicBool::new(false);
    let (arrivals, moments) = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                // What the interface does not take is lost, like what the tunnel loses.
                let _ = sender.send(&[0; 200]);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        let receiving = scope.spawn(|| {
            let (mut arrivals, mut buffer) = (Vec::new(), [0; 2048]);
            while !ended.load(Ordering::Relaxed) {
                if receiver.recv(&mut buffer).is_ok() {
                    arrivals.push(Instant::now());
                }
            }
            arrivals
        });
        let over = SetOnDrop(&ended);
        let pause = || std::thread::sleep(Duration::from_millis(150));
        let mut moments = Vec::new();
        for words in changes {
            pause();
            moments.push(Instant::now());
            pair.left.daemon.set(&words);
        }
        pause();
        moments.push(Instant::now());
        drop(over);
        (receiving.join().unwrap(), moments)
    });
    moments
        .windows(2)
        .map(|span| {
            let within = arrivals.iter().copied().filter(|at| (span[0]..span[1]).contains(at));
            let times: Vec<Instant> = [span[0]].into_iter().chain(within).chain([span[1]]).collect();
            times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap()
        })
        .collect()
}

/// Each change rebinds or marks the sockets while datagrams flow: none is missed for long, in either direction.
#[test]
fn f_11_port_and_mark_change_under_load() {
    privileged!("ping", "tcpdump");
    let mut pair = Pair::with(PairOptions { wiretap: false, initiator: Initiator::Both, ..PairOptions::default() });
    let oracle = Oracle::before(&pair);
    let port = pair.left.port;
    let mut changes: [(&str, Box<dyn Iterator<Item = String>>); 2] = [
        ("port", Box::new((1..=CHANGES).map(move |n| format!("listen-port {}", port + n as u16 % CHANGES as u16)))),
        ("mark", Box::new((1..=CHANGES).map(|n| format!("fwmark {}", n % CHANGES)))),
    ];
    for (what, changes) in &mut changes {
        let mut silences = silences(&pair, changes);
        silences.sort();
        let median = silences[silences.len() / 2];
        println!("{what}: silences {silences:?}");
        assert!(median < GAP_MAX, "{what}: {silences:?}");
    }
    // The last change of either has put back what was there.
    oracle.check(&mut pair);
}

/// Sends numbered datagrams from one end to the other for a while; gives how many were sent and which have arrived.
/// Fails the test if one arrives twice, or altered.
fn numbered(from: &Namespace, to: &Namespace, address: IpAddr, time: Duration) -> (u64, HashSet<u64>) {
    let receiver = udp_socket(to, address);
    let sender = udp_socket(from, IpAddr::from([0; 4]));
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| {
            let (mut arrived, mut buffer, mut expected) = (HashSet::new(), vec![0; 2048], Vec::new());
            let mut last = Instant::now();
            while !ended.load(Ordering::Relaxed) || last.elapsed() < Duration::from_millis(500) {
                if let Ok(len) = receiver.recv(&mut buffer) {
                    let (_, number) = read_numbered(&buffer[..len], &mut expected);
                    assert!(arrived.insert(number), "number {number} was delivered twice");
                    last = Instant::now();
                }
            }
            arrived
        });
        let over = SetOnDrop(&ended);
        let (start, mut sent, mut payload) = (Instant::now(), 0, Vec::new());
        while start.elapsed() < time {
            payload.resize(NUMBERED_LEN_MIN + (sent * 37 % 1300) as usize, 0);
            write_numbered(&mut payload, 0, sent);
            sender.send(&payload).unwrap();
            sent += 1;
            std::thread::sleep(Duration::from_micros(500));
        }
        drop(over);
        (sent, receiving.join().unwrap())
    })
}

/// 30 % loss, reordering, doubling, corruption: what can arrive does, and nothing twice.
#[test]
fn f_17_a_bad_network_between_daemons() {
    privileged!("ping", "tcpdump");
    const TROUBLE: Trouble =
        Trouble { loss: 300, duplication: 100, reordering: 100, corruption: 50, delay: Duration::from_millis(5) };
    // Spoilt messages look like nothing of WireGuard's: the wiretap would take them for plaintext.
    let mut pair = Pair::with(PairOptions { wiretap: false, ..PairOptions::default() });
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let bind = |port: u16| pair.left.ns.enter(|| UdpSocket::bind((Outer::V4.address(1), port))).unwrap();
    let relay = Relay::start(bind(7001), bind(7002), pair.right_endpoint(), Trouble::default(), seed).unwrap();
    pair.left.daemon.set(&format!("peer {} endpoint 10.0.0.1:7001", pair.right.keys.public));
    let oracle = Oracle::before(&pair);
    let wire = Capture::start(&pair.left.ns, "outer", "udp");
    relay.set(TROUBLE);
    let there = (&pair.left, &pair.right);
    for (from, to) in [there, (there.1, there.0)] {
        let (sent, arrived) = numbered(&from.ns, &to.ns, to.inner_v4.into(), Duration::from_secs(2));
        println!("{} of {sent} arrived; {:?}", arrived.len(), relay.counts());
        // Of a hundred, 70 are not lost and 95 of these not spoilt.
        assert!(arrived.len() as u64 * 100 > sent * 55, "{} of {sent} arrived", arrived.len());
        assert!((arrived.len() as u64) * 100 < sent * 80, "{} of {sent} arrived: no trouble", arrived.len());
    }
    let doubled = relay.counts().doubled.load(Ordering::Relaxed);
    assert!(doubled > 100, "{doubled} were doubled");
    relay.set(Trouble::default());
    oracle.check(&mut pair);
    let both = [pair.left.inner_v4.octets(), pair.right.inner_v4.octets()].concat();
    assert!(wire.stop().iter().all(|frame| !frame.contains(&both)), "plaintext on the outer wire");
}

/// The other end is killed and started again, time after time; then both at once. Nobody has to wait for a timeout as
/// long as the one that restarted speaks, or is spoken to by one that restarted as well.
#[test]
fn f_18_one_end_restarts_time_after_time_and_then_both() {
    privileged!("ping", "tcpdump");
    let mut pair = Pair::with(PairOptions { wiretap: false, initiator: Initiator::Both, ..PairOptions::default() });
    let oracle = Oracle::before(&pair);
    let (left_conf, right_conf) = pair.configurations();
    for round in 0..6 {
        let both = round >= 3;
        pair.right.restart(&right_conf);
        if both {
            pair.left.restart(&left_conf);
        }
        check_recovery(&pair.right, &pair.left);
        check_recovery(&pair.left, &pair.right);
    }
    oracle.check(&mut pair);
}

/// The relay itself: what it was asked for happens about as often, and the same seed tells the same story.
#[test]
fn the_relay_does_what_it_is_asked_for() {
    const COUNT: u64 = 2000;
    let story = |trouble: Trouble, seed: u64| -> (Vec<u64>, [u64; 4]) {
        let socket = || UdpSocket::bind("127.0.0.1:0").unwrap();
        let (near, far, server, client) = (socket(), socket(), socket(), socket());
        client.connect(near.local_addr().unwrap()).unwrap();
        server.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let relay = Relay::start(near, far, server.local_addr().unwrap(), trouble, seed).unwrap();
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                let (mut arrived, mut buffer, mut last) = (Vec::new(), [0; 64], Instant::now());
                while last.elapsed() < Duration::from_secs(1) || relay.counts().received.load(Ordering::Relaxed) < COUNT
                {
                    if let Ok(len) = server.recv(&mut buffer) {
                        arrived.push(u64::from_be_bytes(buffer[..len].try_into().unwrap()));
                        last = Instant::now();
                    }
                }
                arrived
            });
            for number in 0..COUNT {
                client.send(&number.to_be_bytes()).unwrap();
                if number % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            let mut arrived = receiving.join().unwrap();
            arrived.sort_unstable();
            let counts = relay.counts();
            let counts = [&counts.lost, &counts.doubled, &counts.reordered, &counts.spoilt];
            (arrived, counts.map(|count| count.load(Ordering::Relaxed)))
        })
    };
    let (arrived, counts) = story(Trouble::default(), 1);
    assert!(arrived.iter().copied().eq(0..COUNT), "{} of {COUNT} arrived", arrived.len());
    assert_eq!(counts, [0; 4]);
    let bad = Trouble { loss: 300, duplication: 100, reordering: 200, corruption: 50, ..Trouble::default() };
    let (arrived, counts) = story(bad, 2);
    for (count, odds) in counts.into_iter().zip([300, 100, 200, 50]) {
        assert!((odds..odds * 3).contains(&count), "{counts:?}");
    }
    assert!(((COUNT * 70 / 100)..(COUNT * 84 / 100)).contains(&(arrived.len() as u64)), "{}", arrived.len());
    assert!(story(bad, 2) == (arrived, counts), "the same seed, the same story");
}

/// Other implementations pass through the same trouble: the relay is theirs as well.
#[test]
fn f_17_a_bad_network_towards_another_implementation() {
    privileged!("ping", "tcpdump", "wireguard-go");
    let options = PairOptions { wiretap: false, right: Implementation::WireguardGo, ..PairOptions::default() };
    let pair = Pair::with(options);
    let bind = |port: u16| pair.left.ns.enter(|| UdpSocket::bind((Outer::V4.address(1), port))).unwrap();
    let relay = Relay::start(bind(7001), bind(7002), pair.right_endpoint(), Trouble::default(), 1).unwrap();
    pair.left.daemon.set(&format!("peer {} endpoint 10.0.0.1:7001", pair.right.keys.public));
    ping(&pair.left.ns, pair.right.inner_v4, 3);
    relay.set(Trouble { loss: 200, duplication: 200, reordering: 200, ..Trouble::default() });
    let time = Duration::from_secs(1);
    let (sent, arrived) = numbered(&pair.right.ns, &pair.left.ns, pair.left.inner_v4.into(), time);
    assert!(arrived.len() as u64 * 100 > sent * 60, "{} of {sent} arrived", arrived.len());
}
