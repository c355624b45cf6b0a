//! Under pressure nobody is starved and nothing piles up: a peer that floods leaves the others their pings, handshakes
//! and keepalives; floods of handshakes and garbage leave data alone; bulk does not hold up a ping; and small packets,
//! paced below what the machine can do, all arrive.
//!
//! Every limit here is one that only a defect reaches, not a busy machine; what was measured is printed. The floods from
//! outside are held at a rate far above any honest one and far below what fills a socket's buffer: what the kernel drops
//! before the daemon has seen it is not the daemon's.

mod testbed;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use adit::key::{PrivateKey, PublicKey};
use testbed::{
    Capture, Heard, Keys, Namespace, Node, Pace, Pair, PairOptions, Process, Scratch, ScriptedSocket, Strangers,
    TcpLoad, UdpFlood, echo_reply, echo_request, example, forged_initiation, paced, ping_with, wait_until,
};

/// Worker threads that the daemons run with, one after the other.
const THREADS: [usize; 3] = [1, 2, 4];
/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// The usual length of the packets of floods: it is the number of packets that hurts.
const SMALL: usize = 64;
/// Initiations until one is answered, when each but the first can carry a cookie and may be lost.
const ATTEMPTS_MAX: u32 = 12;
/// Half of the pings under load are faster: ten times what the fullest of bounded queues takes.
const PING_P50_MAX: f64 = 50.0;
/// The same when more comes than the machine can do, and a receiver's socket buffer of 7 MiB is full all the time: that
/// alone holds a packet up for a second on a slow machine.
const FLOOD_P50_MAX: f64 = 4000.0;
/// Of 100 pings beside a flood in both directions. What overflows are the interface's queue and the socket's buffer,
/// which belong to the system and do not know one peer from another: many are lost there, not all may be.
const PINGS_MIN: u32 = 5;
/// What the strangers send each second, together.
const STRANGERS_PER_SECOND: u64 = 20_000;

/// Each of these tests wants the whole machine.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pair(threads: usize) -> Pair {
    let pair = Pair::with(PairOptions { threads: Some(threads), wiretap: false, ..PairOptions::default() });
    pair.ping_both_ways();
    pair
}

/// The same with long queues before the tunnel: that the system drops what a machine busy with something else has not
/// taken for a tenth of a second is not the daemon's loss.
fn patient_pair(threads: usize) -> Pair {
    let pair = pair(threads);
    for node in [&pair.left, &pair.right] {
        node.daemon.ip("link set DEV txqueuelen 10000");
    }
    pair
}

/// A new peer of the left end that the test plays itself, from the namespace that `Pair::join` made with `n`.
fn scripted_peer(pair: &Pair, namespace: &Namespace, n: u8) -> ScriptedSocket {
    let keys = Keys::generate();
    let allowed = scripted_address(n);
    let public = &keys.public;
    pair.left.daemon.addconf(&format!("[Peer]\nPublicKey = {public}\nAllowedIPs = {allowed}/32\n"));
    let private = PrivateKey::from_base64(&keys.private).expect("a key was made");
    ScriptedSocket::new(namespace, private, device_key(pair), pair.left_endpoint_from(n))
}

fn device_key(pair: &Pair) -> PublicKey {
    PublicKey::from_base64(&pair.left.keys.public).expect("a key was made")
}

/// The inner address of the scripted peer `n`.
fn scripted_address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 241, n)
}

/// The machine at the left end answers an echo request of the scripted peer, on its newest session.
#[track_caller]
fn check_echo(peer: &mut ScriptedSocket, pair: &Pair, n: u8, number: u16) {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        peer.send_packet(&echo_request(scripted_address(n), pair.left.inner_v4, number));
        let end = Instant::now() + Duration::from_millis(500);
        while let Some(heard) = peer.receive(end) {
            if matches!(heard, Heard::Data(packet) if echo_reply(&packet) == Some(number)) {
                return;
            }
        }
    }
    panic!("no answer to echo request {number} within {PATIENCE:?}");
}

// --- Fairness --------------------------------------------------------------------------------

/// While two peers flood each other with small packets, a third one's pings are answered, a fourth connects and rekeys,
/// and a silent fifth gets its keepalives.
#[test]
fn s_32_a_flood_starves_no_other_peer() {
    privileged!("ping", "tcpdump");
    let _alone = alone();
    for threads in THREADS {
        let pair = pair(threads);
        let third = pair.join("third", 3);
        let third = Node::start_with(&third, pair.options.left, 3, Some(threads));
        third.add_peer(&pair.left, Some(pair.left_endpoint_from(3)), "");
        pair.left.add_peer(&third, None, "");
        third.ping(pair.left.inner_v4);
        let (fourth, fifth) = (pair.join("fourth", 4), pair.join("fifth", 5));
        let mut fourth = scripted_peer(&pair, &fourth, 4);
        let mut silent = scripted_peer(&pair, &fifth, 5);
        silent.connect(ATTEMPTS_MAX);
        pair.left.daemon.set(&format!("peer {} persistent-keepalive 1", silent.peer.public_key()));

        let there = UdpFlood::start(&pair.left.ns, &pair.right.ns, pair.right.inner_v4.into(), SMALL);
        let back = UdpFlood::start(&pair.right.ns, &pair.left.ns, pair.left.inner_v4.into(), SMALL);
        let start = Instant::now();
        let pings = ping_with(&third.ns, &format!("-c 100 -i 0.01 -W 3 {}", pair.left.inner_v4));
        let (p50, p99) = (pings.quantile(0.5), pings.quantile(0.99));
        let first = fourth.connect(ATTEMPTS_MAX);
        check_echo(&mut fourth, &pair, 4, 0);
        let rekeys: Vec<u32> = (1..=5)
            .map(|number| {
                let attempts = fourth.connect(ATTEMPTS_MAX);
                check_echo(&mut fourth, &pair, 4, number);
                attempts
            })
            .collect();
        let mut keepalives = 0;
        let keepalives_end = Instant::now() + PATIENCE;
        while keepalives < 2 {
            let heard = silent.receive(keepalives_end);
            assert!(heard.is_some(), "{keepalives} keepalives within {PATIENCE:?}");
            keepalives += u32::from(heard == Some(Heard::Data(Vec::new())));
        }
        let ((sent, arrived), (sent_back, arrived_back)) = (there.counts(), back.counts());
        let rate = |count: u64| count as f64 / start.elapsed().as_secs_f64() / 1e3;
        println!(
            "{threads} threads: {:.0} of {:.0} kpps there, {:.0} of {:.0} back; third: {}/{} pings, p50 {p50} ms, p99 {p99} \
             ms; fourth: connected at initiation {first}, rekeys at {rekeys:?}",
            rate(arrived),
            rate(sent),
            rate(arrived_back),
            rate(sent_back),
            pings.received,
            pings.transmitted
        );
        assert!(arrived > 1000 && arrived_back > 1000, "no direction of the flood starves the other");
        assert!(pings.received >= PINGS_MIN, "{}", pings.text);
    }
}

// --- Floods of strangers ---------------------------------------------------------------------

/// What strangers send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flood {
    /// Any bytes, any length.
    Garbage,
    /// Handshake messages and data of the right length.
    WrongMac1,
    /// Initiations that look right until a Diffie-Hellman shows that they are not.
    RightMac1,
    /// One true initiation of a peer, again and again.
    Replayed,
}

impl Flood {
    /// Starts the flood towards the left end from 256 sources in the namespace that `Pair::join` made with 9.
    fn start(self, pair: &Pair, strangers: &Namespace, replayed: [u8; 148]) -> Strangers {
        let addresses: Vec<IpAddr> = STRANGERS.map(|n| Ipv4Addr::new(10, 0, 9, n).into()).collect();
        let device = device_key(pair);
        let mut number = 0_usize;
        let make = move |message: &mut Vec<u8>| {
            number += 1;
            let dice = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            match self {
                Self::Garbage => message.resize(dice % 1400, dice as u8),
                Self::WrongMac1 => {
                    message.resize([148, 148, 92, 64, 32][number % 5], dice as u8);
                    message[..4].copy_from_slice(&[[1, 1, 2, 3, 4][number % 5], 0, 0, 0]);
                }
                Self::RightMac1 => message.extend(forged_initiation(&device)),
                Self::Replayed => message.extend(replayed),
            }
        };
        let to = pair.left_endpoint_from(9);
        Strangers::start(strangers, &addresses, 256 / addresses.len(), to, STRANGERS_PER_SECOND, make)
    }
}

/// The last bytes of the strangers' addresses.
const STRANGERS: std::ops::Range<u8> = 100..132;

/// Paced packets of a session all arrive while strangers flood the port, a peer that was never there before connects
/// within a few attempts, and what has no right mac1 is answered with nothing.
#[test]
fn s_32_floods_of_strangers_leave_data_alone() {
    privileged!("ping", "tcpdump");
    let _alone = alone();
    const PACKETS: u64 = 2000;
    for threads in THREADS {
        let pair = patient_pair(threads);
        let (strangers, newcomers) = (pair.join("strangers", 9), pair.join("newcomers", 8));
        for n in STRANGERS {
            strangers.ip(&format!("address add 10.0.9.{n}/24 dev outer"));
        }
        let mut replayed = scripted_peer(&pair, &newcomers, 8).peer.initiation();
        for flood in [Flood::Garbage, Flood::WrongMac1, Flood::RightMac1, Flood::Replayed] {
            let mut newcomer = scripted_peer(&pair, &newcomers, 8);
            let used = pair.left.daemon.cpu_time();
            let running = flood.start(&pair, &strangers, replayed);
            // Both directions at once.
            let pace = Pace { count: PACKETS, per_step: 5, len: |number| 64 + number as usize % 1200 };
            let arrived = std::thread::scope(|scope| {
                let (left, right) = (&pair.left, &pair.right);
                let back = scope.spawn(|| paced(&right.ns, &left.ns, left.inner_v4.into(), pace));
                let there = paced(&left.ns, &right.ns, right.inner_v4.into(), pace);
                [there, back.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))]
            });
            let attempts = newcomer.connect(ATTEMPTS_MAX);
            check_echo(&mut newcomer, &pair, 8, 1);
            let (sent, answers) = running.counts();
            drop(running);
            println!(
                "{threads} threads, {flood:?}: {sent} sent, {answers} answered, {arrived:?} of {PACKETS} packets arrived, \
                 connected at initiation {attempts}, {:?} of CPU",
                pair.left.daemon.cpu_time() - used
            );
            assert!(sent > 1000, "{flood:?}: {sent} sent");
            let silent = matches!(flood, Flood::Garbage | Flood::WrongMac1);
            assert!(!silent || answers == 0, "{flood:?}: {answers} answers to what has no right mac1");
            for arrived in arrived {
                assert!(arrived >= PACKETS * 99 / 100, "{flood:?}, {threads} threads: {arrived} of {PACKETS} arrived");
            }
            replayed = newcomer.peer.initiation();
        }
    }
}

/// Initiations of a million invented addresses that look right until a Diffie-Hellman take no memory to speak of, and do
/// not keep out a peer that was never there before.
#[test]
fn a_million_strangers_take_no_memory_and_keep_nobody_out() {
    privileged!("ping", "tcpdump");
    let _alone = alone();
    // What a quiet machine needs for all of them, at 50,000 a second.
    const SECONDS: u64 = 20;
    const GROWTH_MAX: u64 = 32 << 20;
    let pair = patient_pair(2);
    let (strangers, newcomers) = (pair.join("strangers", 9), pair.join("newcomers", 8));
    // Cookies for them leave, too.
    pair.left.ns.ip("route add 10.128.0.0/9 via 10.0.9.9");
    let mut newcomer = scripted_peer(&pair, &newcomers, 8);
    let before = pair.left.daemon.peak_resident_bytes();
    let mut command = strangers.command(example("stranger_flood"));
    command.args(["right-mac1", &pair.left.keys.public, &pair.left_endpoint_from(9).to_string()]);
    command.args([&SECONDS.to_string(), "50000", "1000000"]);
    let scratch = Scratch::new();
    let mut flood = Process::spawn(command, scratch.file("flood"));
    // Half of it finds the table of sources empty, the other half as full as it gets.
    std::thread::sleep(Duration::from_secs(SECONDS / 2));
    let start = Instant::now();
    let attempts = newcomer.connect(ATTEMPTS_MAX);
    let took = start.elapsed();
    check_echo(&mut newcomer, &pair, 8, 1);
    assert!(flood.wait(PATIENCE).is_some_and(|status| status.success()), "{}", flood.log());
    let growth = pair.left.daemon.peak_resident_bytes() - before;
    println!("{}; {growth} bytes; connected at initiation {attempts}, after {took:?}", flood.log().trim());
    assert!(growth <= GROWTH_MAX, "{growth} bytes");
    pair.ping_both_ways();
}

// --- Latency under load ----------------------------------------------------------------------

/// Pings beside bulk are answered, and soon: the queues inside are short.
#[test]
fn bulk_does_not_hold_up_a_ping() {
    privileged!("ping", "tcpdump");
    let _alone = alone();
    let check = |what: &str, pair: &Pair, threads: usize, p50_max: f64| {
        let pings = ping_with(&pair.left.ns, &format!("-c 60 -i 0.01 -W 1 {}", pair.right.inner_v4));
        let (p50, p99) = (pings.quantile(0.5), pings.quantile(0.99));
        println!("{threads} threads, {what}: {}/{}, p50 {p50} ms, p99 {p99} ms", pings.received, pings.transmitted);
        assert!(p50 < p50_max, "{what}, {threads} threads: {}", pings.text);
    };
    for threads in THREADS {
        let pair = pair(threads);
        let (left, right) = (&pair.left, &pair.right);
        check("at rest", &pair, threads, PING_P50_MAX);
        {
            let _there = TcpLoad::start(&left.ns, &right.ns, right.inner_v4.into());
            check("TCP the same way", &pair, threads, PING_P50_MAX);
        }
        {
            let _back = TcpLoad::start(&right.ns, &left.ns, left.inner_v4.into());
            check("TCP the other way", &pair, threads, PING_P50_MAX);
        }
        let _flood = UdpFlood::start(&left.ns, &right.ns, right.inner_v4.into(), 1372);
        check("UDP flood", &pair, threads, FLOOD_P50_MAX);
        for node in [left, right] {
            println!("    {} MB resident", node.daemon.resident_bytes() >> 20);
        }
    }
}

// --- Small packets ---------------------------------------------------------------------------

/// Streams like those of calls, of name resolution, of nothing but acknowledgements, and of all sizes mixed: below
/// what the tunnel can carry, every packet arrives, in order.
#[test]
fn small_packets_arrive_complete() {
    privileged!("ping", "tcpdump");
    let _alone = alone();
    // Like 50 calls, 5,000 questions a second, a bulk receiver's ACKs, and everything.
    let voice = Pace { count: 1000, per_step: 2, len: |_| 172 };
    let names =
        Pace { count: 1000, per_step: 2, len: |number| if number % 2 == 0 { 44 } else { 60 + number as usize % 440 } };
    let acks = Pace { count: 2500, per_step: 5, len: |_| 24 };
    let mixed = Pace { count: 1000, per_step: 2, len: |number| 12 + (number as usize * 7919) % 1380 };
    for threads in THREADS {
        let pair = patient_pair(threads);
        let (left, right) = (&pair.left, &pair.right);
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (what, pace) in [("voice", voice), ("names", names), ("acknowledgements", acks), ("mixed", mixed)] {
                for (from, to) in [(left, right), (right, left)] {
                    scope.spawn(move || {
                        let arrived = paced(&from.ns, &to.ns, to.inner_v4.into(), pace);
                        assert_eq!(arrived, pace.count, "{what}, {threads} threads");
                    });
                }
            }
        });
        println!("{threads} threads: 11,000 small packets in {:.1?}", start.elapsed());
    }
}

/// A backlog of small packets of one length leaves in trains, one system call each: on a link that segments late, they
/// are still in one piece when they are captured.
#[test]
fn a_backlog_of_small_packets_leaves_in_trains() {
    privileged!("ping", "tcpdump");
    let _alone = alone();
    for threads in THREADS {
        let pair = pair(threads);
        let capture = Capture::start(&pair.left.ns, "outer", &format!("src port {}", pair.left.port));
        let flood = UdpFlood::start(&pair.left.ns, &pair.right.ns, pair.right.inner_v4.into(), SMALL);
        wait_until("the flood arrives", PATIENCE, || flood.counts().1 > 2000);
        drop(flood);
        let frames = capture.stop();
        // Header, IPv4 and UDP headers with the payload padded to 16, tag.
        const MESSAGE: usize = 16 + (28 + SMALL).next_multiple_of(16) + 16;
        let messages: Vec<usize> = frames
            .iter()
            .filter(|frame| frame.message_type() == Some(4))
            .map(|frame| frame.udp().expect("it has a type").2.len())
            .filter(|len| len.is_multiple_of(MESSAGE))
            .map(|len| len / MESSAGE)
            .collect();
        let (total, longest) = (messages.iter().sum::<usize>(), messages.iter().max().copied().unwrap_or(0));
        let mean = total as f64 / messages.len() as f64;
        println!("{threads} threads: {total} messages in {} sends, {mean:.1} each, {longest} at most", messages.len());
        assert!(total > 100, "{total} messages were captured");
        assert!(longest > 1, "each message was sent by itself");
        assert!(longest <= 64, "{longest} messages in one train");
    }
}
