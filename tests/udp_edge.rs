//! The Linux sockets against a real network stack: offloads, small MTUs, lost addresses, firewalls.
//!
//! Each test runs again inside a network namespace of its own (`unshare --net`), where it may do what
//! it likes; those with two ends put the far one into a second namespace, behind a veth pair.
//! Namespaces vanish with their processes, so there is nothing to clean up.
#![cfg(feature = "device")]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use adit::packet::Buffers;
use adit::udp::linux::LinuxUdp;
use adit::udp::{Received, Sent, Source, Transmit, Udp, UdpReceiver, UdpSender, UdpSocket};

/// Which part of a test this process is; the test harness gives us no arguments of our own.
const ROLE: &str = "ADIT_TEST_ROLE";

/// How long a test waits for datagrams that should be there at once.
const PATIENCE: Duration = Duration::from_secs(5);

const FAR_PORT: u16 = 7777;
const NEAR_V4: &str = "192.0.2.1";
const FAR_V4: &str = "192.0.2.2";
const NEAR_V6: &str = "2001:db8::1";
const FAR_V6: &str = "2001:db8::2";

/// Runs `body` in a new network namespace with its loopback up. `test` is the calling test's name.
fn in_namespace(test: &str, body: impl FnOnce()) {
    match std::env::var(ROLE).as_deref() {
        Ok("near") => {
            run("ip link set lo up");
            body();
        }
        Ok("far") => far_end(),
        Ok("unprivileged") => fwmark_is_refused(),
        _ => {
            if let Some(reason) = cannot_make_namespaces() {
                println!("SKIPPED: {test}: {reason}");
                return;
            }
            let status = again(test, "near", &["unshare", "--net"]).status().unwrap();
            assert!(status.success(), "inside the namespace: {status}");
        }
    }
}

fn cannot_make_namespaces() -> Option<String> {
    if std::fs::metadata("/proc/self").map_or(true, |process| process.uid() != 0) {
        return Some("needs root".into());
    }
    for needed in ["ip", "unshare"] {
        if !has(needed) {
            return Some(format!("needs {needed}"));
        }
    }
    let output = Command::new("unshare").args(["--net", "true"]).output().ok()?;
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

fn has(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// This test program once more, for one test in another role.
fn again(test: &str, role: &str, wrapper: &[&str]) -> Command {
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(ROLE, role);
    command
}

fn try_run(line: &str) -> Result<String, String> {
    let output = Command::new("sh").args(["-c", line]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

fn run(line: &str) -> String {
    try_run(line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

/// Makes an empty chain for what is sent.
fn firewall() -> Result<String, String> {
    try_run("nft add table inet t && nft 'add chain inet t out { type filter hook output priority 0; }'")
}

/// How many packets each counting rule of that chain has seen.
fn firewall_counts() -> Vec<u32> {
    let chain = run("nft list chain inet t out");
    let counts = chain.split("packets ").skip(1);
    counts.map(|rest| rest.split(' ').next().unwrap().parse().unwrap()).collect()
}

/// One bound socket with its receiver and a sender.
struct End {
    socket: Arc<dyn UdpSocket>,
    receiver: Box<dyn UdpReceiver>,
    sender: Box<dyn UdpSender>,
    buffers: Buffers,
    received: Vec<Received>,
}

impl End {
    fn bind(port: u16) -> Self {
        let socket = LinuxUdp.bind(port, 0, 1).unwrap();
        let (receiver, sender) = (socket.receivers().unwrap().remove(0), socket.sender().unwrap());
        Self { socket, receiver, sender, buffers: Buffers::new(8), received: Vec::with_capacity(8) }
    }

    fn at(&self, ip: &str) -> SocketAddr {
        (ip.parse::<IpAddr>().unwrap(), self.socket.port()).into()
    }

    fn send(&mut self, transmit: Transmit<'_>) -> Sent {
        let mut sent = [Sent::default()];
        self.sender.send(&[transmit], &mut sent);
        sent[0]
    }

    /// Receives until `count` datagrams have come or patience ends.
    fn receive(&mut self, count: usize) -> Report {
        let deadline = Instant::now() + PATIENCE;
        let mut report = Report::default();
        while report.datagrams < count && Instant::now() < deadline {
            self.receiver.receive(&mut self.buffers, &mut self.received).unwrap();
            for received in &self.received {
                let bytes = &self.buffers.whole(received.buffer)[..received.len as usize];
                report.messages += 1;
                report.ecn = received.ecn;
                report.from = Some(received.from);
                for datagram in bytes.chunks(received.segment as usize) {
                    report.in_order &= numbered(report.datagrams as u32, datagram.len()) == datagram;
                    report.datagrams += 1;
                    report.bytes += datagram.len();
                }
            }
            if self.received.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        report
    }
}

/// What came, as one end tells the other.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    datagrams: usize,
    bytes: usize,
    messages: usize,
    ecn: u8,
    in_order: bool,
    from: Option<SocketAddr>,
}

impl Default for Report {
    fn default() -> Self {
        Self { datagrams: 0, bytes: 0, messages: 0, ecn: 0, in_order: true, from: None }
    }
}

/// The datagram number `number` of a test's train.
fn numbered(number: u32, len: usize) -> Vec<u8> {
    number.to_be_bytes().iter().cycle().take(len).copied().collect()
}

/// `len` bytes of numbered datagrams, `segment` bytes each.
fn train(segment: usize, len: usize) -> Vec<u8> {
    let mut train: Vec<u8> = (0..len.div_ceil(segment)).flat_map(|i| numbered(i as u32, segment)).collect();
    train.truncate(len);
    train
}

fn transmit(to: SocketAddr, segment: usize, data: &[u8]) -> Transmit<'_> {
    Transmit { to, source: None, tos: 0, segment, data, offload: true }
}

/// The end in the other namespace, as the near end sees it.
struct Far {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Far {
    /// Starts it behind a veth pair (`near` here, `far` there) and waits until it listens.
    fn start(test: &str, mtu: u32) -> Self {
        let mut process =
            again(test, "far", &["unshare", "--net"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let commands = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut far = Self { process, commands, answers };
        far.answer("ready");
        run(&format!("ip link add near mtu {mtu} type veth peer name far mtu {mtu} netns {}", far.process.id()));
        far.command("listen");
        run(&format!("ip addr add {NEAR_V4}/24 dev near && ip addr add {NEAR_V6}/64 dev near nodad"));
        run("ip link set near up");
        far.answer("listening");
        far
    }

    fn command(&mut self, command: &str) {
        writeln!(self.commands, "{command}").unwrap();
    }

    /// The rest of the first line that has `far: word` in it.
    fn answer(&mut self, word: &str) -> String {
        let marker = format!("far: {word}");
        let mut line = String::new();
        while self.answers.read_line(&mut line).unwrap() > 0 {
            if let Some((_, rest)) = line.split_once(&marker) {
                return rest.trim().to_owned();
            }
            line.clear();
        }
        panic!("the far end is gone");
    }

    /// What came of `count` datagrams.
    fn report(&mut self, count: usize) -> Report {
        self.command(&format!("{count}"));
        let answer = self.answer("report");
        let fields: Vec<&str> = answer.split(' ').collect();
        Report {
            datagrams: fields[0].parse().unwrap(),
            bytes: fields[1].parse().unwrap(),
            messages: fields[2].parse().unwrap(),
            ecn: fields[3].parse().unwrap(),
            in_order: fields[4].parse().unwrap(),
            from: fields[5].parse().ok(),
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The far end's whole life: listen, and report for each count that it is given.
fn far_end() {
    println!("far: ready");
    let mut lines = std::io::stdin().lines();
    assert_eq!(lines.next().unwrap().unwrap(), "listen");
    run(&format!("ip addr add {FAR_V4}/24 dev far && ip addr add {FAR_V6}/64 dev far nodad && ip link set far up"));
    let mut end = End::bind(FAR_PORT);
    println!("far: listening");
    for line in lines {
        let Report { datagrams, bytes, messages, ecn, in_order, from } = end.receive(line.unwrap().parse().unwrap());
        let from = from.map_or_else(|| "-".into(), |from| from.to_string());
        println!("far: report {datagrams} {bytes} {messages} {ecn} {in_order} {from}");
    }
}

fn far_at(ip: &str) -> SocketAddr {
    (ip.parse::<IpAddr>().unwrap(), FAR_PORT).into()
}

/// Whole trains in, whole trains out, with their ECN bits. [KERNEL-ECN]
#[test]
fn trains_cross_a_veth_in_one_piece() {
    const TEST: &str = "trains_cross_a_veth_in_one_piece";
    in_namespace(TEST, || {
        let mut far = Far::start(TEST, 1500);
        let mut near = End::bind(0);
        for (near_ip, far_ip) in [(NEAR_V4, FAR_V4), (NEAR_V6, FAR_V6)] {
            for ecn in 0..4 {
                let data = train(1452, 200_000);
                let sent = near.send(Transmit { tos: ecn, ..transmit(far_at(far_ip), 1452, &data) });
                assert_eq!(sent, Sent { bytes: data.len(), ..Sent::default() });
                let count = data.len().div_ceil(1452);
                let report = far.report(count);
                assert_eq!((report.datagrams, report.bytes, report.ecn), (count, data.len(), ecn));
                assert!(report.in_order);
                assert!(report.messages <= count / 20, "neither GSO nor GRO: {} messages", report.messages);
                assert_eq!(report.from, Some(near.at(near_ip)));
            }
        }
    });
}

/// A link whose driver cannot segment UDP: the kernel does it.
#[test]
fn trains_cross_a_link_that_cannot_segment() {
    const TEST: &str = "trains_cross_a_link_that_cannot_segment";
    in_namespace(TEST, || {
        let mut far = Far::start(TEST, 1500);
        let mut near = End::bind(0);
        // Each on top of those before it.
        for feature in ["tx-udp-segmentation", "tx-checksumming", "sg", "gso"] {
            if let Err(error) = try_run(&format!("ethtool -K near {feature} off")) {
                println!("SKIPPED: {TEST}: {feature}: {}", error.trim());
                continue;
            }
            for far_ip in [FAR_V4, FAR_V6] {
                let data = train(1000, 60_500);
                assert_eq!(near.send(transmit(far_at(far_ip), 1000, &data)).bytes, data.len(), "without {feature}");
                let report = far.report(61);
                let expected = (61, data.len(), true);
                assert_eq!((report.datagrams, report.bytes, report.in_order), expected, "without {feature}");
            }
        }
    });
}

/// Several receivers: each message comes to its own, also by way of a link that coalesces what it receives.
#[test]
fn messages_are_steered_behind_a_veth() {
    const TEST: &str = "messages_are_steered_behind_a_veth";
    const RECEIVERS: usize = 3;
    const BURST: usize = 40;
    in_namespace(TEST, || {
        let far = Far::start(TEST, 1500);
        let space = std::fs::File::open(format!("/proc/{}/ns/net", far.process.id())).unwrap();
        let there = move |ip: &'static str| {
            let space = space.try_clone().unwrap();
            let bind = move || {
                // SAFETY: the descriptor is open; the call concerns this thread only.
                assert_eq!(unsafe { libc::setns(space.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
                std::net::UdpSocket::bind((ip, 0)).unwrap()
            };
            std::thread::spawn(bind).join().unwrap()
        };
        let socket = LinuxUdp.bind(FAR_PORT, 0, RECEIVERS).unwrap();
        let mut receivers = socket.receivers().unwrap();
        assert_eq!(receivers.len(), RECEIVERS);
        let (mut buffers, mut received) = (Buffers::new(8), Vec::with_capacity(8));
        for coalescing in ["off", "on"] {
            if let Err(error) = try_run(&format!("ethtool -K near gro {coalescing}")) {
                println!("SKIPPED: {TEST}: {}", error.trim());
                continue;
            }
            for (far_ip, near_ip) in [(FAR_V4, NEAR_V4), (FAR_V6, NEAR_V6)] {
                let from = there(far_ip);
                from.connect((near_ip, FAR_PORT)).unwrap();
                for low in (0..=255u8).step_by(15) {
                    let mut message = vec![0x55; 200];
                    message[..5].copy_from_slice(&[4, 0, 0, 0, low]);
                    (0..BURST).for_each(|_| assert_eq!(from.send(&message).unwrap(), 200));
                    let mut counts = [0; RECEIVERS];
                    let deadline = Instant::now() + PATIENCE;
                    while counts.iter().sum::<usize>() < BURST && Instant::now() < deadline {
                        for (receiver, count) in receivers.iter_mut().zip(&mut counts) {
                            receiver.receive(&mut buffers, &mut received).unwrap();
                            *count += received.iter().map(|train| (train.len / train.segment) as usize).sum::<usize>();
                        }
                    }
                    let mut expected = [0; RECEIVERS];
                    expected[usize::from(low) % RECEIVERS] = BURST;
                    assert_eq!(counts, expected, "{low} from {far_ip}, coalescing {coalescing}");
                }
            }
        }
    });
}

/// F-03, gso_emsgsize_black_hole: segments beyond the MTU are refused as a train, and go singly.
#[test]
fn gso_emsgsize_black_hole() {
    const TEST: &str = "gso_emsgsize_black_hole";
    in_namespace(TEST, || {
        let mut far = Far::start(TEST, 1280);
        let mut near = End::bind(0);
        for far_ip in [FAR_V4, FAR_V6] {
            let data = train(1452, 1452 * 20 + 100);
            let too_large = transmit(far_at(far_ip), 1452, &data);
            let sent = near.send(too_large);
            assert_eq!(sent, Sent { bytes: data.len(), offload_refused: true, ..Sent::default() });
            let report = far.report(21);
            assert_eq!((report.datagrams, report.bytes, report.in_order), (21, data.len(), true));

            // Whoever has learnt it is not told again, and smaller ones still go in one piece.
            let sent = near.send(Transmit { offload: false, ..too_large });
            assert_eq!(sent, Sent { bytes: data.len(), ..Sent::default() });
            assert_eq!(far.report(21).datagrams, 21);
            let data = train(1200, 12_000);
            assert_eq!(near.send(transmit(far_at(far_ip), 1200, &data)), Sent { bytes: 12_000, ..Sent::default() });
            let report = far.report(10);
            assert_eq!((report.datagrams, report.messages), (10, 1));
        }
    });
}

/// The outer IPv4 header never forbids fragments, not even where it would fit. [KERNEL-DF]
#[test]
fn no_datagram_forbids_fragments() {
    const TEST: &str = "no_datagram_forbids_fragments";
    in_namespace(TEST, || {
        if let Err(error) = firewall() {
            println!("SKIPPED: {TEST}: nft: {}", error.trim());
            return;
        }
        run("nft 'add rule inet t out udp length > 0 ip frag-off & 0x4000 != 0 counter'");
        run("nft 'add rule inet t out udp length > 0 ip frag-off & 0x4000 == 0 counter'");
        let (mut a, b) = (End::bind(0), End::bind(0));
        let data = train(1000, 5000);
        a.send(transmit(b.at("127.0.0.1"), 1000, &data));
        a.send(Transmit { offload: false, ..transmit(b.at("127.0.0.1"), 1000, &data) });
        assert_eq!(firewall_counts(), [0, 6]);
    });
}

/// F-01: a source that went away, or that has no route any more, is given up; the datagrams are not.
/// [KERNEL-STICKY]
#[test]
fn f_01_a_source_that_is_gone_is_given_up() {
    const TEST: &str = "f_01_a_source_that_is_gone_is_given_up";
    in_namespace(TEST, || {
        let (mut a, mut b) = (End::bind(0), End::bind(0));
        let cases = [("10.9.0.1/32", "10.9.0.1", "127.0.0.1"), ("2001:db8:9::1/128", "2001:db8:9::1", "::1")];
        for (prefix, ip, loopback) in cases {
            run(&format!("ip addr add {prefix} dev lo $(test {loopback} = ::1 && echo nodad)"));
            let source = Some(Source { ip: ip.parse().unwrap(), ifindex: 1 });
            let data = train(1000, 3000);
            let sticky = Transmit { source, ..transmit(b.at(loopback), 1000, &data) };
            assert_eq!(a.send(sticky), Sent { bytes: 3000, ..Sent::default() });
            assert_eq!(b.receive(3).from, Some(a.at(ip)));

            let family = if loopback == "::1" { "-6" } else { "-4" };
            run(&format!("ip {family} rule del pref 0 && ip {family} rule add pref 10 lookup local"));
            run(&format!("ip {family} rule add pref 5 from {ip} unreachable"));
            assert_eq!(a.send(sticky), Sent { bytes: 3000, source_lost: true, ..Sent::default() });
            assert_eq!(b.receive(3).from, Some(a.at(loopback)));
            run(&format!("ip {family} rule del pref 5"));

            run(&format!("ip addr del {prefix} dev lo"));
            assert_eq!(a.send(sticky), Sent { bytes: 3000, source_lost: true, ..Sent::default() });
            assert_eq!(b.receive(3).from, Some(a.at(loopback)));
        }
    });
}

/// F-01: no route, a link that is down, a black hole: everything is lost at once, and nothing after.
#[test]
fn f_01_a_network_that_goes_away_comes_back() {
    const TEST: &str = "f_01_a_network_that_goes_away_comes_back";
    in_namespace(TEST, || {
        let mut far = Far::start(TEST, 1500);
        let mut near = End::bind(0);
        let data = train(1000, 10_000);
        let source = Some(Source { ip: NEAR_V4.parse().unwrap(), ifindex: 0 });
        let train = Transmit { source, ..transmit(far_at(FAR_V4), 1000, &data) };
        connect(&mut near, &mut far, train);
        for round in 0..100 {
            run("ip link set near down");
            assert_eq!((near.send(train).bytes, near.send(train).refused), (0, 10), "round {round}");
            run("ip link set near up");
        }
        for kind in ["blackhole", "unreachable", "prohibit"] {
            run(&format!("ip route add {kind} {FAR_V4}/32"));
            assert_eq!((near.send(train).bytes, near.send(train).refused), (0, 10), "{kind}");
            run(&format!("ip route del {kind} {FAR_V4}/32"));
        }
        let deadline = Instant::now() + PATIENCE;
        while near.send(train).bytes == 0 {
            assert!(Instant::now() < deadline, "still deaf");
            std::thread::sleep(Duration::from_millis(10));
        }
        let report = far.report(10);
        assert_eq!((report.datagrams, report.messages), (10, 1), "all of it, and in one piece as before");
        // By a socket that is not connected.
        assert_eq!(near.send(Transmit { source: None, ..train }).bytes, 10_000);
        let report = far.report(10);
        assert_eq!((report.datagrams, report.messages), (10, 1), "all of it, and in one piece as before");
    });
}

/// F-01: a connected socket whose address of ours has gone loses nothing: the same call sends by another one.
#[test]
fn f_01_a_connection_ends_with_its_source() {
    const TEST: &str = "f_01_a_connection_ends_with_its_source";
    in_namespace(TEST, || {
        let mut far = Far::start(TEST, 1500);
        let mut near = End::bind(0);
        run("echo 1 > /proc/sys/net/ipv4/conf/near/promote_secondaries && ip addr add 192.0.2.101/24 dev near");
        let data = train(1000, 10_000);
        let source = Some(Source { ip: NEAR_V4.parse().unwrap(), ifindex: 0 });
        let train = Transmit { source, ..transmit(far_at(FAR_V4), 1000, &data) };
        connect(&mut near, &mut far, train);
        run(&format!("ip addr del {NEAR_V4}/24 dev near"));
        assert_eq!(near.send(train), Sent { bytes: 10_000, source_lost: true, ..Sent::default() });
        let report = far.report(10);
        assert_eq!((report.datagrams, report.in_order), (10, true));
        assert_eq!(report.from, Some(near.at("192.0.2.101")));
    });
}

/// Sends the first of a train so often that a socket of the near end is connected to the far one.
fn connect(near: &mut End, far: &mut Far, train: Transmit<'_>) {
    for _ in 0..20 {
        assert_eq!(near.send(Transmit { data: &train.data[..train.segment], ..train }).bytes, train.segment);
        far.report(1);
    }
    assert_eq!(run("ss -Huan state established").lines().count(), 1);
}

/// F-02: a firewall's verdict is about one datagram, not about the socket.
#[test]
fn f_02_a_firewall_that_rejects_is_survived() {
    const TEST: &str = "f_02_a_firewall_that_rejects_is_survived";
    in_namespace(TEST, || {
        if let Err(error) = firewall() {
            println!("SKIPPED: {TEST}: nft: {}", error.trim());
            return;
        }
        let (mut a, mut b) = (End::bind(0), End::bind(0));
        let data = train(1000, 5000);
        for verdict in ["reject", "drop"] {
            run(&format!("nft add rule inet t out udp dport {} {verdict}", b.socket.port()));
            for ip in ["127.0.0.1", "::1"] {
                let sent = a.send(transmit(b.at(ip), 1000, &data));
                assert_eq!(sent, Sent { refused: 5, ..Sent::default() }, "{verdict} {ip}");
            }
            run("nft flush chain inet t out");
            for ip in ["127.0.0.1", "::1"] {
                assert_eq!(a.send(transmit(b.at(ip), 1000, &data)), Sent { bytes: 5000, ..Sent::default() });
                assert_eq!(b.receive(5).datagrams, 5);
                assert_eq!(a.receive(0).datagrams, 0);
            }
        }
    });
}

/// The mark is on what both sockets send, from the first datagram on and after each change.
#[test]
fn the_mark_is_seen_by_the_firewall() {
    const TEST: &str = "the_mark_is_seen_by_the_firewall";
    in_namespace(TEST, || {
        if let Err(error) = firewall() {
            println!("SKIPPED: {TEST}: nft: {}", error.trim());
            return;
        }
        run("nft add rule inet t out meta mark 51820 counter && nft add rule inet t out meta mark 4294967295 counter");
        let b = End::bind(0);
        for receivers in [1, 3] {
            let socket = LinuxUdp.bind(0, 51820, receivers).unwrap();
            let mut senders: Vec<_> = (0..receivers).map(|_| socket.sender().unwrap()).collect();
            let mut send_both = || {
                for sender in &mut senders {
                    let both = [transmit(b.at("127.0.0.1"), 1, b"4"), transmit(b.at("::1"), 1, b"6")];
                    sender.send(&both, &mut [Sent::default(); 2]);
                }
            };
            let before = firewall_counts();
            let counts = || firewall_counts().iter().zip(&before).map(|(now, before)| now - before).collect::<Vec<_>>();
            let all = 2 * receivers as u32;
            send_both();
            assert_eq!(counts(), [all, 0]);
            socket.set_fwmark(u32::MAX).unwrap();
            send_both();
            assert_eq!(counts(), [all, all]);
            socket.set_fwmark(0).unwrap();
            send_both();
            assert_eq!(counts(), [all, all]);
        }
    });
}

/// Without the privilege a mark is refused, and no mark is no question.
#[test]
fn a_mark_needs_a_privilege() {
    const TEST: &str = "a_mark_needs_a_privilege";
    in_namespace(TEST, || {
        if !has("setpriv") {
            println!("SKIPPED: {TEST}: needs setpriv");
            return;
        }
        let without = ["setpriv", "--bounding-set", "-net_admin,-net_raw", "--inh-caps", "-net_admin,-net_raw"];
        let status = again(TEST, "unprivileged", &without).status().unwrap();
        assert!(status.success());
    });
}

fn fwmark_is_refused() {
    assert_eq!(LinuxUdp.bind(0, 7, 1).err().unwrap().kind(), std::io::ErrorKind::PermissionDenied);
    let socket = LinuxUdp.bind(0, 0, 1).unwrap();
    assert_eq!(socket.set_fwmark(7).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    socket.set_fwmark(0).unwrap();
}

/// F-10: an IPv6 that is switched off leaves IPv4 as it is.
#[test]
fn ipv6_absent_will_not_stop_ipv4() {
    const TEST: &str = "ipv6_absent_will_not_stop_ipv4";
    in_namespace(TEST, || {
        run("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6");
        let (mut a, mut b) = (End::bind(0), End::bind(7778));
        let data = train(1000, 5000);
        assert_eq!(a.send(transmit(b.at("::1"), 1000, &data)), Sent { refused: 5, ..Sent::default() });
        assert_eq!(a.send(transmit(b.at("127.0.0.1"), 1000, &data)), Sent { bytes: 5000, ..Sent::default() });
        let report = b.receive(5);
        assert_eq!((report.datagrams, report.from), (5, Some(a.at("127.0.0.1"))));
        let several = LinuxUdp.bind(0, 0, 3).unwrap();
        assert_eq!(several.receivers().unwrap().len(), 3);
        let mut sender = several.sender().unwrap();
        let mut sent = [Sent::default(); 2];
        sender.send(&["127.0.0.1", "::1"].map(|ip| transmit(b.at(ip), 1000, &data)), &mut sent);
        assert_eq!(sent.map(|sent| (sent.bytes, sent.refused)), [(5000, 0), (0, 5)]);
        assert_eq!(b.receive(5).datagrams, 5);
    });
}

/// F-06: a port in use is said so, and free again at once when its holder goes.
#[test]
fn f_06_a_port_in_use_is_said_so() {
    const TEST: &str = "f_06_a_port_in_use_is_said_so";
    in_namespace(TEST, || {
        for holder in ["0.0.0.0:51820", "[::]:51820", "127.0.0.1:51820"] {
            let holder = std::net::UdpSocket::bind(holder).unwrap();
            for receivers in [1, 4] {
                let error = LinuxUdp.bind(51820, 0, receivers).err().unwrap();
                assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
            }
            drop(holder);
            assert_eq!(LinuxUdp.bind(51820, 0, 1).unwrap().port(), 51820);
            assert_eq!(LinuxUdp.bind(51820, 0, 4).unwrap().receivers().unwrap().len(), 4);
        }
        // Nearly every port is taken on IPv6: one is found that both families have, or it is said so.
        run("echo '50000 50003' > /proc/sys/net/ipv4/ip_local_port_range");
        let holders: Vec<_> = (50000..50003).map(|port| std::net::UdpSocket::bind(("::1", port)).unwrap()).collect();
        assert_eq!(LinuxUdp.bind(0, 0, 1).unwrap().port(), 50003);
        let several = LinuxUdp.bind(0, 0, 4).unwrap();
        assert_eq!((several.port(), several.receivers().unwrap().len()), (50003, 4));
        drop(several);
        let last = std::net::UdpSocket::bind("[::1]:50003").unwrap();
        assert_eq!(LinuxUdp.bind(0, 0, 1).err().unwrap().kind(), std::io::ErrorKind::AddrInUse);
        drop((holders, last));
    });
}
