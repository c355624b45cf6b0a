//! The process goes short of descriptors, memory and threads, is interrupted, and is ended.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::key::PrivateKey;
use adit::tun::linux::LinuxTun;
use adit::udp::linux::LinuxUdp;

use crate::privileged;
use crate::testbed::{
    Daemon, Implementation, Initiator, Keys, Namespace, Oracle, Pair, PairOptions, Process, SIGTERM, Scratch,
    SetOnDrop, UdpFlood, answers, check_calm, check_recovery, interrupt_by_sigusr1, interrupt_thread, ping_with,
    socket_path, status_field, transfer, try_run_to_end, unique_interface, veth, wait_until,
};

/// Nothing that is waited for takes longer, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a start that is short of something may take until it has failed, or serves.
const START_LIMIT: Duration = Duration::from_secs(20);
/// SIGTERM ends it within this. On a machine that others keep busy, one of so many attempts has to show it.
const END_LIMIT: Duration = Duration::from_secs(1);
const ATTEMPTS: usize = 4;
/// A user that nobody else is, with processes that nobody else counts.
const LONELY_USER: u32 = 64_999;

// --- Descriptors -----------------------------------------------------------------------------

/// From now on the daemon gets no descriptor with this number or a higher one.
fn limit_descriptors(daemon: &Daemon, limit: &str) {
    daemon.namespace().run(&format!("prlimit --pid {} --nofile={limit}:", daemon.pid()));
}

/// The limit under which it finds room for so many descriptors more.
fn limit_with_spare(daemon: &Daemon, spare: usize) -> String {
    let numbers = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("the daemon runs");
    let used: BTreeSet<u64> = numbers.filter_map(|fd| fd.ok()?.file_name().to_str()?.parse().ok()).collect();
    let mut free = (0..).filter(|number| !used.contains(number));
    free.nth(spare).expect("numbers do not end").to_string()
}

/// A port change that finds no descriptors is refused and keeps the old port; clients wait until there is one.
#[test]
fn f_05_descriptors_run_out_in_a_port_change_and_in_accept() {
    privileged!("ping", "tcpdump", "prlimit");
    let mut pair = Pair::with(PairOptions { initiator: Initiator::Both, ..PairOptions::default() });
    let oracle = Oracle::before(&pair);
    let (limits, port) = ([0, 1, 2].map(|spare| limit_with_spare(&pair.left.daemon, spare)), pair.left.port);
    // For a client, and for a client and one of the two sockets of a port.
    for (spare, limit) in limits.iter().enumerate().skip(1) {
        limit_descriptors(&pair.left.daemon, limit);
        let mut client = pair.left.daemon.client();
        assert!(client.set(&format!("listen_port={}", port + 1)) < 0, "refused with {spare} to spare");
        drop(client);
        check_recovery(&pair.left, &pair.right);
        check_recovery(&pair.right, &pair.left);
    }
    // For nobody.
    wait_until("the client's descriptor is given back", PATIENCE, || {
        limit_with_spare(&pair.left.daemon, 0) == limits[0]
    });
    limit_descriptors(&pair.left.daemon, &limits[0]);
    let mut waiting = UnixStream::connect(socket_path(pair.left.daemon.interface())).expect("it listens");
    waiting.write_all(b"get=1\n\n").expect("the system takes it");
    check_calm(&pair.left.daemon);
    check_recovery(&pair.right, &pair.left);
    let lines = pair.left.daemon.log().matches("cannot accept a connection now").count();
    assert!((1..=3).contains(&lines), "said once for as long as it lasts, which was three times: {lines}");
    limit_descriptors(&pair.left.daemon, "1024");
    waiting.set_read_timeout(Some(PATIENCE)).expect("a time above zero is accepted");
    let answered = std::io::Read::read(&mut waiting, &mut [0; 4096]).expect("it is answered now");
    assert!(answered > 0);
    drop(waiting);
    oracle.check(&mut pair);
}

/// How a start ended that a limit was put on: by itself, with a message; or it served.
struct Start {
    code: Option<i32>,
    text: String,
    served: bool,
}

/// Starts the program in the foreground, behind the words of another that puts a limit on it.
fn start_limited(ns: &Namespace, limit: &[&str], program: &str) -> Start {
    let (interface, scratch) = (unique_interface(), Scratch::new());
    let mut command = ns.command(limit[0]);
    command.args(&limit[1..]).arg(program).args(["-f", &interface]).env("LOG_LEVEL", "verbose");
    let mut process = Process::spawn(command, scratch.file("log"));
    // It has begun to wait for signals, or it has given up before.
    let waits_for_signals = |pid: u32| {
        let sets =
            ["SigBlk", "SigCgt"].map(|set| u64::from_str_radix(&status_field(pid, set).unwrap_or_default(), 16).ok());
        sets.into_iter().flatten().any(|set| set >> (SIGTERM - 1) & 1 == 1)
    };
    wait_until("the start has failed, or it serves", START_LIMIT, || {
        process.ended().is_some()
            || (process.log().contains("UAPI listener started") && waits_for_signals(process.pid()))
    });
    process.signal(SIGTERM);
    let status = process.wait(PATIENCE).expect("it ends");
    let start = Start { code: status.code(), text: process.log(), served: status.code() == Some(0) };
    assert!(!ns.ip("-o link").contains(&interface), "{limit:?}: the interface is gone:\n{}", start.text);
    assert!(!socket_path(&interface).exists(), "{limit:?}: the socket is gone:\n{}", start.text);
    start
}

/// Any shortage is said in words; none hangs, none leaves an interface; with the highest limit it serves.
#[track_caller]
fn check_starts(ns: &Namespace, program: &str, limits: impl Iterator<Item = Vec<String>>, codes: &[Option<i32>]) {
    let (mut failed, mut served) = (0, false);
    for limit in limits {
        let words: Vec<&str> = limit.iter().map(String::as_str).collect();
        let start = start_limited(ns, &words, program);
        served = start.served;
        if served {
            continue;
        }
        failed += 1;
        assert!(codes.contains(&start.code), "{limit:?}: {:?}\n{}", start.code, start.text);
        let says_why = |line: &str| line.starts_with("ERROR: ") || line.contains("adit: ");
        assert!(start.text.lines().any(says_why), "{limit:?}: it says why:\n{}", start.text);
    }
    assert!(failed > 0 && served, "{failed} failed; the last one served: {served}");
}

fn program() -> String {
    Implementation::Adit.program().to_str().expect("cargo's paths are UTF-8").to_owned()
}

#[test]
fn f_05_a_start_without_descriptors_fails_in_words() {
    privileged!("prlimit");
    let ns = Namespace::new("only");
    let limits = (4..32).map(|limit| vec!["prlimit".to_owned(), format!("--nofile={limit}")]);
    // 127 from the loader, if whoever started the test left it too few to open a library.
    check_starts(&ns, &program(), limits, &[Some(1), Some(127)]);
}

#[test]
fn f_15_a_start_without_memory_fails_in_words() {
    privileged!("prlimit");
    let ns = Namespace::new("only");
    for option in ["as", "data"] {
        let limited = |mib: u64| vec!["prlimit".to_owned(), format!("--{option}={}", mib << 20)];
        // With less than the program's file takes in memory, the system kills it before its first instruction.
        let begins = |mib: &u64| {
            let words = limited(*mib);
            let begun = Command::new(&words[0]).arg(&words[1]).args([&program(), "--version"]).output();
            begun.expect("prlimit runs").status.code().is_some()
        };
        let least = (2..20).step_by(2).find(begins).expect("a little memory is enough to begin with");
        // 127 from the loader, which says what it could not map.
        let codes = [Some(1), Some(127)];
        check_starts(&ns, &program(), (least..20).step_by(2).chain([512]).map(limited), &codes);
        let too_little = limited(20);
        let refused = start_limited(&ns, &too_little.iter().map(String::as_str).collect::<Vec<_>>(), &program());
        let needed = needed_mib(&refused.text);
        // What is mapped at the start is not the same each time.
        check_starts(&ns, &program(), [limited(needed - 2), limited(needed + 1)].into_iter(), &[Some(1)]);
    }
}

/// What a start that was refused for its limit on memory says that it needs.
#[track_caller]
fn needed_mib(text: &str) -> u64 {
    let words = text.split_once("Too little memory to start: ").and_then(|(_, words)| words.split_once("needs "));
    let needed = words.and_then(|(_, words)| words.split_once(" MiB; raise the limit"));
    needed.unwrap_or_else(|| panic!("it says what is needed:\n{text}")).0.parse().unwrap()
}

/// A sidecar needs no privilege, and is refused by the same words; with what it says that it needs, it serves.
#[test]
fn f_15_a_sidecar_without_memory_fails_in_words() {
    privileged!("prlimit");
    let (ns, scratch) = (Namespace::new("only"), Scratch::new());
    let (keys, peer, configuration) = (Keys::generate(), Keys::generate(), scratch.file("sidecar.conf"));
    let text = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.9.9.1/32\n\n[Peer]\nPublicKey = {}\nAllowedIPs = 0.0.0.0/0\n\n\
         [Socks5]\nBindAddress = 127.0.0.1:0\n",
        keys.private, peer.public
    );
    std::fs::write(&configuration, text).expect("the folder is this test's");
    let start = |option: &str, mib: u64| {
        let mut command = ns.command("prlimit");
        command.arg(format!("--{option}={}", mib << 20)).arg(program()).args(["proxy", "-c"]).arg(&configuration);
        command.env("LOG_LEVEL", "verbose");
        Process::spawn(command, scratch.file("log"))
    };
    for option in ["as", "data"] {
        let mut refused = start(option, 20);
        assert_eq!(refused.wait(START_LIMIT).expect("it ends").code(), Some(1), "{}", refused.log());
        let mut serves = start(option, needed_mib(&refused.log()) + 1);
        wait_until("it serves", START_LIMIT, || serves.ended().is_some() || serves.log().contains("The sidecar runs"));
        serves.signal(SIGTERM);
        assert_eq!(serves.wait(PATIENCE).expect("it ends").code(), Some(0), "{}", serves.log());
    }
}

#[test]
fn f_15_a_start_without_threads_fails_in_words() {
    privileged!("prlimit");
    let ns = Namespace::new("only");
    // Root's threads are not limited. The program lies where that user may not go: it gets a copy.
    let folder = std::env::temp_dir().join(format!("adit-lonely-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the folder for temporary files can be written");
    let copy = folder.join("adit");
    std::fs::copy(program(), &copy).expect("the program can be copied");
    let user = LONELY_USER;
    let prepare = format!(
        "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && \
         mount -t tmpfs none /run/wireguard && chown {user} /run/wireguard && \
         exec setpriv --reuid={user} --regid={user} --clear-groups --inh-caps=+net_admin --ambient-caps=+net_admin \
         prlimit --nproc=\"$0\" \"$@\""
    );
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let limits =
        (1..=10 + threads).map(|limit| vec!["sh".to_owned(), "-c".to_owned(), prepare.clone(), limit.to_string()]);
    check_starts(&ns, copy.to_str().expect("a name of this test's"), limits, &[Some(1)]);
    std::fs::remove_dir_all(folder).expect("it is this test's");
}

// --- The end ---------------------------------------------------------------------------------

/// While both directions are full, and clients of the socket stall.
#[test]
fn f_14_sigterm_under_load_ends_it_within_a_second() {
    privileged!("ping", "tcpdump");
    let mut took = Vec::new();
    for _ in 0..ATTEMPTS {
        let mut pair = Pair::with(PairOptions { wiretap: false, ..PairOptions::default() });
        pair.ping_both_ways();
        let load = [
            UdpFlood::start(&pair.left.ns, &pair.right.ns, pair.right.inner_v4.into(), 1000),
            UdpFlood::start(&pair.right.ns, &pair.left.ns, pair.left.inner_v4.into(), 1000),
        ];
        wait_until("both directions are full", PATIENCE, || load.iter().all(|load| load.counts().1 > 100));
        let stalled: Vec<UnixStream> = (0..10)
            .map(|_| {
                let mut stream = UnixStream::connect(socket_path(pair.left.daemon.interface())).expect("it listens");
                stream.write_all(b"set=1\nlisten_po").expect("it reads");
                stream
            })
            .collect();
        let start = Instant::now();
        pair.left.daemon.signal(SIGTERM);
        let status = pair.left.daemon.wait(PATIENCE).expect("it ends");
        took.push(start.elapsed());
        assert_eq!(status.code(), Some(0), "{}", pair.left.daemon.log());
        assert!(!socket_path(pair.left.daemon.interface()).exists(), "the socket is gone");
        drop(stalled);
        if took.iter().any(|time| *time < END_LIMIT) {
            return;
        }
    }
    panic!("never within {END_LIMIT:?}: {took:?}");
}

/// An interface of the name is there already, as one that was made to outlive its program: it is taken over, or refused
/// in words; what a killed daemon left of its own is no obstacle.
#[test]
fn f_14_a_name_that_was_left_behind() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    ns.run(&format!("ip tuntap add dev {interface} mode tun"));
    for _ in 0..3 {
        let mut daemon = Daemon::start_with(&ns, Implementation::Adit, &interface, &[]);
        assert!(daemon.show("").contains(&interface));
        daemon.kill();
        assert!(ns.has_interface(&interface), "it was made to stay");
    }
    ns.ip(&format!("link delete {interface}"));
    drop(Daemon::start_with(&ns, Implementation::Adit, &interface, &[]));
}

// --- Interruptions ---------------------------------------------------------------------------

/// Runs the rest of the test in a process of its own, whose signals are nobody else's. True in that process.
pub(crate) fn alone(test: &str) -> bool {
    const MARK: &str = "ADIT_TEST_ALONE";
    if std::env::var(MARK).is_ok_and(|marked| marked == test) {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().expect("this test is a program"));
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(MARK, test);
    let output = try_run_to_end(&mut command, Duration::from_secs(120)).expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    false
}

/// A device of this process with a real TUN and real sockets, in a namespace.
fn device_in(ns: &Namespace, n: u8, key: &PrivateKey) -> (Device, String) {
    ns.enter(|| {
        let tun = LinuxTun::create(&unique_interface(), 1).expect("root may make one");
        let device = Device::builder(tun, LinuxUdp).threads(2).start().expect("threads start");
        let update = Update {
            private_key: Some(Some(key.clone())),
            listen_port: Some(51_820 + u16::from(n)),
            ..Update::default()
        };
        device.apply(update).expect("a key and a port are accepted");
        let name = device.name();
        (device, name)
    })
}

/// The threads of this process that belong to devices and their sockets.
fn threads_of_devices() -> Vec<i32> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is there");
    let id_of = |task: std::fs::DirEntry| {
        let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
        let is_ours = name.starts_with("adit-") || name.starts_with("uapi");
        is_ours.then(|| task.file_name().to_str()?.parse().ok())?
    };
    tasks.filter_map(|task| id_of(task.ok()?)).collect()
}

/// Signals without SA_RESTART at 10 kHz to every thread of two devices and of their socket: nothing is lost over it,
/// and nothing ends.
#[test]
fn f_16_interrupted_ten_thousand_times_a_second() {
    privileged!("ping");
    if !alone("process::f_16_interrupted_ten_thousand_times_a_second") {
        return;
    }
    let namespaces = [Namespace::new("left"), Namespace::new("right")];
    veth(&namespaces[0], "outer", &namespaces[1], "outer");
    let mut rng = rand_core::UnwrapErr(getrandom::SysRng);
    let keys = [PrivateKey::generate(&mut rng), PrivateKey::generate(&mut rng)];
    let inner = |n: u8| Ipv4Addr::new(192, 168, 241, n);
    let mut devices = Vec::new();
    for (n, ns, key) in [(1, &namespaces[0], &keys[0]), (2, &namespaces[1], &keys[1])] {
        ns.ip(&format!("address add 10.0.0.{n}/24 dev outer"));
        let (device, name) = device_in(ns, n, key);
        ns.ip(&format!("address add {}/24 dev {name}", inner(n)));
        ns.ip(&format!("link set {name} up"));
        let other = 3 - n;
        let allowed_ip = AllowedIp { address: inner(other).into(), prefix_len: 32 };
        let peer = PeerUpdate {
            endpoint: Some(SocketAddr::from(([10, 0, 0, other], 51_820 + u16::from(other)))),
            allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
            ..PeerUpdate::new(keys[usize::from(other) - 1].public_key())
        };
        device.apply(Update { peers: vec![peer], ..Update::default() }).expect("a peer is accepted");
        devices.push((Arc::new(device), name));
    }
    let listener = adit::uapi::Listener::bind(adit::uapi::socket::DIRECTORY, &devices[0].1).expect("root may listen");
    let _server = adit::uapi::serve(listener, devices[0].0.clone(), |_| ()).expect("threads start");

    interrupt_by_sigusr1().expect("a handler can be set");
    let (ended, sent) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let start = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                let threads = threads_of_devices();
                for _ in 0..100 {
                    // What a busy machine has missed is made up for: the rate counts.
                    let due = start.elapsed().as_micros() as u64 / 100;
                    for number in sent.load(Ordering::Relaxed)..due {
                        // A client's thread may have ended in the meantime.
                        let _ = interrupt_thread(threads[number as usize % threads.len()]);
                    }
                    sent.fetch_max(due, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        });
        let (start, _over) = (Instant::now(), SetOnDrop(&ended));
        let to = &namespaces[1];
        wait_until("a ping passes", PATIENCE, || {
            ping_with(&namespaces[0], &format!("-c 1 -W 0.5 {}", inner(2))).received == 1
        });
        transfer(&namespaces[0], to, inner(2).into(), 5_000_000);
        for mark in 0..50 {
            devices[0].0.apply(Update { fwmark: Some(mark), ..Update::default() }).expect("root may set a mark");
            assert!(answers(&devices[0].1), "the socket answers");
        }
        transfer(to, &namespaces[0], inner(1).into(), 5_000_000);
        let (sent, time) = (sent.load(Ordering::Relaxed), start.elapsed());
        println!("{sent} signals in {time:?}");
        assert!(sent as f64 > 5000.0 * time.as_secs_f64(), "{sent} signals in {time:?}");
    });
    for (device, _) in devices {
        assert!(device.is_running(), "nothing has ended it");
    }
}
