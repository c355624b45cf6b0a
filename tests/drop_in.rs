//! The drop-in contract: what wireguard-go promises to those who start, configure and end it, adit promises too.
//! Arguments, environment, descriptors, the socket, exit codes, the background start, `wg-quick`, and silence when idle.

mod testbed;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use testbed::{Daemon, Implementation, Keys, Namespace, Node, Pair, PairOptions, Process, SIGINT, SIGTERM, Scratch};
use testbed::{answers, ping, ping_with, refuse_udp, signal, socket_path, status_field, transfer, try_run_to_end};
use testbed::{unique_interface, veth, wait_until};

/// SIGTERM, a removed socket, a deleted interface: gone within this.
const END_LIMIT: Duration = Duration::from_secs(1);
/// Any start or refusal of a start.
const START_LIMIT: Duration = Duration::from_secs(20);
/// Starts in the background that are followed at once by something that needs the interface.
const RACES: usize = 50;
/// CAP_NET_BIND_SERVICE and CAP_NET_ADMIN.
const CAPABILITIES_NEEDED: u64 = 1 << 10 | 1 << 12;

fn program() -> PathBuf {
    Implementation::Adit.program()
}

/// How a start ended that was not to last.
struct Refusal {
    code: Option<i32>,
    text: String,
}

/// Runs the program in the namespace to its end.
#[track_caller]
fn refused(command: &mut Command) -> Refusal {
    let output = try_run_to_end(command, START_LIMIT).unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // wireguard-go, when it stands in for adit, begins with a box of advice.
    let text = text.lines().filter(|line| !line.starts_with(['┌', '│', '└'])).map(|line| format!("{line}\n")).collect();
    Refusal { code: output.status.code(), text }
}

/// The start failed as it should: exit code 1, one line that says why, no interface and no socket left behind.
#[track_caller]
fn check_refused(ns: &Namespace, interface: &str, refusal: &Refusal) {
    assert_eq!(refusal.code, Some(1), "{}", refusal.text);
    assert_eq!(refusal.text.trim_end().lines().count(), 1, "one line:\n{}", refusal.text);
    assert!(refusal.text.len() > 20, "that says why: {}", refusal.text);
    assert!(!ns.ip("-o link").contains(&format!(" {interface}:")), "no interface is left");
    assert!(!ns.pids().iter().any(|pid| exe(*pid) == program()), "no process is left");
}

fn exe(pid: u32) -> PathBuf {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default()
}

/// Starts the program in the background as a script does, and returns when the command has.
#[track_caller]
fn start_in_background(ns: &Namespace, interface: &str) {
    let refusal = refused(ns.command(program()).arg(interface));
    assert_eq!(refusal.code, Some(0), "{}", refusal.text);
}

/// The one daemon that runs in the namespace.
#[track_caller]
fn daemon_in(ns: &Namespace) -> u32 {
    let pids: Vec<u32> = ns.pids().into_iter().filter(|pid| exe(*pid) == program()).collect();
    assert_eq!(pids.len(), 1, "one daemon in {}", ns.name());
    pids[0]
}

fn is_gone(pid: u32) -> bool {
    status_field(pid, "State").is_none_or(|state| state.starts_with('Z'))
}

// --- Arguments and environment ---------------------------------------------------------------

#[test]
fn version_is_printed_with_exit_code_0() {
    let output = refused(Command::new(program()).arg("--version"));
    assert_eq!(output.code, Some(0));
    assert!(output.text.contains(&format!("v{}", env!("CARGO_PKG_VERSION"))), "{}", output.text);
}

#[test]
fn a_wrong_shape_prints_the_usage_with_exit_code_1() {
    for words in [&[][..], &["-f"], &["--foreground"], &["a", "b"], &["-f", "a", "b"], &["--no-such-option", "a"]] {
        let output = refused(Command::new(program()).args(words));
        assert_eq!(output.code, Some(1), "{words:?}: {}", output.text);
        assert!(output.text.contains("sage: "), "{words:?}: {}", output.text);
    }
}

#[test]
fn foreground_is_chosen_by_option_and_by_environment() {
    privileged!();
    let ns = Namespace::new("only");
    for (words, environment) in [
        (&["-f"][..], None),
        (&["--foreground"], None),
        (&["-f", "--"], None),
        (&[], Some(("WG_PROCESS_FOREGROUND", "1"))),
        (&["--"], Some(("WG_PROCESS_FOREGROUND", "1"))),
    ] {
        let interface = unique_interface();
        let mut command = ns.command(program());
        command.args(words).arg(&interface).envs(environment);
        let mut daemon = Daemon::adopt(&ns, Implementation::Adit, &interface, command);
        assert!(daemon.is_running(), "{words:?} {environment:?}");
        assert_eq!(exe(daemon.pid()), program(), "the process that was started is the daemon");
    }
}

#[test]
fn the_log_level_is_chosen_by_environment() {
    privileged!();
    let ns = Namespace::new("only");
    let log = |level: &str| {
        let interface = unique_interface();
        let mut command = ns.command(program());
        command.args(["-f", &interface]).env("LOG_LEVEL", level);
        let mut daemon = Daemon::adopt(&ns, Implementation::Adit, &interface, command);
        daemon.ip("link set DEV up");
        daemon.signal(SIGTERM);
        assert!(daemon.wait(END_LIMIT).is_some(), "it ends");
        daemon.log()
    };
    for level in ["verbose", "debug"] {
        let text = log(level);
        assert!(text.lines().any(|line| line.starts_with("DEBUG: (")), "{level}: {text}");
    }
    assert_eq!(log("error"), "");
    assert_eq!(log("silent"), "");
}

#[test]
fn a_name_with_a_percent_sign_becomes_a_free_number() {
    privileged!();
    let ns = Namespace::new("only");
    let stem = unique_interface();
    for number in 0..2 {
        let interface = format!("{stem}x{number}");
        assert!(interface.len() < libc::IFNAMSIZ);
        let mut command = ns.command(program());
        command.args(["-f", &format!("{stem}x%d")]).env("LOG_LEVEL", "debug");
        let daemon = Daemon::adopt(&ns, Implementation::Adit, &interface, command);
        assert!(daemon.show("").contains(&interface));
        // It lives on until the namespace goes, so that the next one has to take another number.
        std::mem::forget(daemon);
    }
    for number in 0..2 {
        let _ = fs::remove_file(socket_path(&format!("{stem}x{number}")));
    }
}

/// A TUN device that somebody else made, handed over as a descriptor.
fn tun_of(ns: &Namespace, interface: &str, vnet_header: bool) -> OwnedFd {
    ns.enter(|| {
        let builder = tun_rs::DeviceBuilder::new().name(interface).offload(vnet_header).enable(false);
        let device = builder.build_sync().expect("root may make a TUN device");
        device.as_fd().try_clone_to_owned().expect("a descriptor can be duplicated")
    })
}

#[track_caller]
fn check_descriptors(vnet_header: bool) {
    let (left, right) = (Namespace::new("left"), Namespace::new("right"));
    veth(&left, "outer", &right, "outer");
    left.ip("address add 10.0.0.1/24 dev outer");
    right.ip("address add 10.0.0.2/24 dev outer");
    let interface = unique_interface();
    let tun = tun_of(&left, &interface, vnet_header);
    let uapi = UnixListener::bind(socket_path(&interface)).expect("the folder of sockets exists by now");
    // Descriptors 0 and 1 are those that std hands over; the shell moves them to where wireguard-go has them.
    let mut command = left.command("sh");
    command
        .args(["-c", "exec 3<&0 4<&1 0</dev/null 1>&2; exec \"$0\" -f \"$1\""])
        .arg(program())
        .arg(&interface)
        .envs([("WG_TUN_FD", "3"), ("WG_UAPI_FD", "4"), ("LOG_LEVEL", "debug")])
        .stdin(Stdio::from(tun))
        .stdout(Stdio::from(OwnedFd::from(uapi)));
    let scratch = Scratch::new();
    let log = fs::File::create(scratch.file("log")).expect("the scratch folder can be written");
    let mut child = command.stderr(log).spawn().expect("sh runs");
    let result = std::panic::catch_unwind(|| {
        wait_until("it answers on the socket that was handed over", START_LIMIT, || answers(&interface));
        let right = Node::start(&right, Implementation::Adit, 2);
        let keys = Keys::generate();
        let conf = format!("[Interface]\nPrivateKey = {}\nListenPort = 51821\n", keys.private);
        let peer = right.peer_section(Some(SocketAddr::new(Ipv4Addr::new(10, 0, 0, 2).into(), right.port)), "");
        let file = scratch.write("conf", &(conf + &peer));
        left.run(&format!("wg setconf {interface} {}", file.display()));
        right.daemon.addconf(&format!("[Peer]\nPublicKey = {}\nAllowedIPs = 192.168.241.1/32\n", keys.public));
        left.ip(&format!("address add 192.168.241.1/24 dev {interface}"));
        left.ip(&format!("link set {interface} up"));
        ping(&left, right.inner_v4, 3);
        transfer(&left, &right.ns, right.inner_v4.into(), 1_000_000);
    });
    let _ = child.kill();
    let _ = child.wait();
    let _ = fs::remove_file(socket_path(&interface));
    if let Err(panic) = result {
        eprintln!("{}", fs::read_to_string(scratch.file("log")).unwrap_or_default());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn descriptors_of_a_tun_and_of_a_listening_socket_are_taken_over() {
    privileged!("ping");
    // The folder of sockets is made by whichever daemon is first.
    drop(Daemon::start(&Namespace::new("first"), Implementation::Adit));
    check_descriptors(true);
}

#[test]
fn a_tun_descriptor_without_vnet_header_is_taken_over() {
    privileged!("ping");
    drop(Daemon::start(&Namespace::new("first"), Implementation::Adit));
    check_descriptors(false);
}

#[test]
fn the_service_manager_is_told_when_it_is_ready() {
    privileged!();
    let ns = Namespace::new("only");
    let scratch = Scratch::new();
    let path = scratch.file("notify");
    let socket = UnixDatagram::bind(&path).expect("the scratch folder can hold a socket");
    socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
    let path = path.to_str().expect("scratch paths are UTF-8");
    let _daemon = Daemon::start_with(&ns, Implementation::Adit, &unique_interface(), &[("NOTIFY_SOCKET", path)]);
    let mut message = [0; 256];
    let mut text = String::new();
    wait_until("the service manager is told", START_LIMIT, || {
        let len = socket.recv(&mut message).unwrap_or(0);
        text += &String::from_utf8_lossy(&message[..len]);
        text.lines().any(|line| line == "READY=1")
    });
}

// --- The interface and the socket ------------------------------------------------------------

#[test]
fn the_interface_is_left_down_with_mtu_1420_and_not_persistent() {
    privileged!();
    let ns = Namespace::new("only");
    let daemon = Daemon::start(&ns, Implementation::Adit);
    let details = daemon.ip("-d link show dev DEV");
    for part in ["mtu 1420", "state DOWN", "tun type tun", "pi off", "vnet_hdr on", "persist off"] {
        assert!(details.contains(part), "{part:?} is missing in {details}");
    }
    assert!(!details.contains(",UP"), "{details}");
}

/// How many address families `port` is bound on.
fn families(ns: &Namespace, port: u16) -> usize {
    let sockets = ["-4", "-6"].map(|family| ns.run(&format!("ss -Huan {family} sport = :{port}")));
    sockets.iter().filter(|sockets| !sockets.is_empty()).count()
}

#[test]
fn udp_is_bound_only_while_the_interface_is_up() {
    privileged!();
    let ns = Namespace::new("only");
    let daemon = Daemon::start(&ns, Implementation::Adit);
    daemon.setconf(&format!("[Interface]\nPrivateKey = {}\nListenPort = 5555\n", Keys::generate().private));
    assert_eq!(families(&ns, 5555), 0);
    assert_eq!(daemon.dump().listen_port, 5555, "while down, the requested one");
    for _ in 0..3 {
        daemon.ip("link set DEV up");
        wait_until("a socket for each family is bound", START_LIMIT, || families(&ns, 5555) == 2);
        daemon.ip("link set DEV down");
        wait_until("both are closed", START_LIMIT, || families(&ns, 5555) == 0);
    }
}

#[test]
fn the_socket_is_for_its_owner_alone_also_under_umask_000() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    let mut command = ns.command("sh");
    command.args(["-c", "umask 000; exec \"$0\" -f \"$1\""]).arg(program()).arg(&interface);
    let _daemon = Daemon::adopt(&ns, Implementation::Adit, &interface, command);
    let meta = fs::metadata(socket_path(&interface)).expect("the socket is there");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.mode() & 0o077, 0, "{:o}", meta.mode());
}

#[test]
fn the_folder_of_sockets_is_made_if_missing() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    // `ip netns exec` has given the command a mount namespace of its own.
    let mut command = ns.command("sh");
    command.args(["-c", "mount -t tmpfs tmpfs /run && exec \"$0\" -f \"$1\""]).arg(program()).arg(&interface);
    let scratch = Scratch::new();
    let mut process = Process::spawn(command, scratch.file("log"));
    let folder = PathBuf::from(format!("/proc/{}/root/run/wireguard", process.pid()));
    wait_until("the socket is there", START_LIMIT, || {
        assert!(process.ended().is_none(), "{}", process.log());
        folder.join(format!("{interface}.sock")).exists()
    });
    let mode = fs::metadata(&folder).expect("the folder is there").mode();
    assert_eq!(mode & 0o022, 0, "others may not put anything there: {mode:o}");
}

#[test]
fn f_14_a_stale_socket_is_replaced() {
    privileged!();
    let ns = Namespace::new("only");
    drop(Daemon::start(&ns, Implementation::Adit));
    for _ in 0..5 {
        let interface = unique_interface();
        drop(UnixListener::bind(socket_path(&interface)).expect("a socket can be made"));
        assert!(socket_path(&interface).exists(), "nobody listens on it");
        let daemon = Daemon::start_with(&ns, Implementation::Adit, &interface, &[]);
        assert!(daemon.show("").contains(&interface));
    }
}

#[test]
fn f_14_a_killed_daemon_is_succeeded_by_another_of_the_same_name() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    for _ in 0..30 {
        let mut daemon = Daemon::start_with(&ns, Implementation::Adit, &interface, &[]);
        daemon.signal(testbed::SIGKILL);
        assert!(daemon.wait(END_LIMIT).is_some());
        assert!(socket_path(&interface).exists(), "it had no time to remove its socket");
        // Forgotten, so that the socket stays; its process has been waited for.
        std::mem::forget(daemon);
    }
    drop(Daemon::start_with(&ns, Implementation::Adit, &interface, &[]));
}

// --- Refusals --------------------------------------------------------------------------------

#[test]
fn a_socket_in_use_is_refused_and_left_alone() {
    privileged!();
    let (ns, other) = (Namespace::new("only"), Namespace::new("other"));
    let interface = unique_interface();
    let first = Daemon::start_with(&other, Implementation::Adit, &interface, &[]);
    for words in [&["-f"][..], &[]] {
        let refusal = refused(ns.command(program()).args(words).arg(&interface));
        check_refused(&ns, &interface, &refusal);
        assert!(answers(first.interface()), "the first one still serves");
    }
}

#[test]
fn f_19_a_name_that_is_taken_is_refused() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    ns.ip(&format!("link add {interface} type bridge"));
    for words in [&["-f"][..], &[]] {
        let refusal = refused(ns.command(program()).args(words).arg(&interface));
        assert_eq!(refusal.code, Some(1), "{}", refusal.text);
        assert!(!socket_path(&interface).exists(), "no socket is left");
        assert!(ns.ip("-d link").contains("bridge"), "the other's interface is left alone");
    }
}

#[test]
fn f_19_a_name_that_is_too_long_or_impossible_is_refused() {
    privileged!();
    let ns = Namespace::new("only");
    for interface in ["a234567890123456", "a/b", ".", "..", "a b"] {
        for words in [&["-f"][..], &[]] {
            let refusal = refused(ns.command(program()).args(words).arg(interface));
            check_refused(&ns, interface, &refusal);
            assert!(!socket_path(interface).is_file(), "no socket is left");
        }
    }
}

#[test]
fn f_19_an_absent_tun_driver_is_refused() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    let script = "mount -t tmpfs tmpfs /dev/net && exec \"$0\" -f \"$1\"";
    let refusal = refused(ns.command("sh").args(["-c", script]).arg(program()).arg(&interface));
    check_refused(&ns, &interface, &refusal);
    assert!(refusal.text.contains("/dev/net/tun"), "{}", refusal.text);
    assert!(!socket_path(&interface).exists(), "no socket is left");
}

#[test]
fn f_19_missing_privileges_are_refused() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    let mut command = ns.command("setpriv");
    command.args(["--bounding-set", "-net_admin"]).arg(program()).args(["-f", &interface]);
    let refusal = refused(&mut command);
    check_refused(&ns, &interface, &refusal);
    assert!(!socket_path(&interface).exists(), "no socket is left");
}

// --- The background --------------------------------------------------------------------------

#[test]
fn a_background_start_returns_when_it_answers_and_holds_no_pipe() {
    privileged!();
    let ns = Namespace::new("only");
    for _ in 0..10 {
        let interface = unique_interface();
        // Reads both pipes to their end: that comes only if the daemon has not kept them.
        start_in_background(&ns, &interface);
        assert!(answers(&interface), "the command has returned, so it answers");
        let pid = daemon_in(&ns);
        assert!(signal(pid, SIGTERM));
        wait_until("it ends", END_LIMIT, || is_gone(pid));
        assert!(!socket_path(&interface).exists());
    }
}

#[test]
fn a_background_start_followed_at_once_by_a_move_to_another_namespace() {
    privileged!();
    let (ns, other) = (Namespace::new("birth"), Namespace::new("other"));
    for round in 0..RACES {
        let interface = unique_interface();
        start_in_background(&ns, &interface);
        ns.ip(&format!("link set {interface} netns {}", other.name()));
        assert!(answers(&interface), "round {round}");
        let pid = daemon_in(&ns);
        other.ip(&format!("link set {interface} up"));
        wait_until("the daemon sees it go up there", START_LIMIT, || {
            !ns.run("ss -Hulnp").is_empty() && other.run("ss -Hulnp").is_empty()
        });
        other.ip(&format!("link delete {interface}"));
        wait_until("the daemon sees it go", END_LIMIT, || is_gone(pid));
        assert!(!socket_path(&interface).exists(), "round {round}");
    }
}

#[test]
fn a_background_start_followed_at_once_by_setconf() {
    privileged!();
    let ns = Namespace::new("only");
    let scratch = Scratch::new();
    for round in 0..RACES {
        let interface = unique_interface();
        let keys = Keys::generate();
        let file = scratch.write("conf", &format!("[Interface]\nPrivateKey = {}\n", keys.private));
        start_in_background(&ns, &interface);
        ns.run(&format!("wg setconf {interface} {}", file.display()));
        assert_eq!(ns.run(&format!("wg show {interface} public-key")).trim(), keys.public, "round {round}");
        ns.ip(&format!("link delete {interface}"));
        wait_until("it ends", END_LIMIT, || !socket_path(&interface).exists());
    }
}

/// The sockets stay in the namespace of birth: the way to give a container nothing but a tunnel.
#[test]
fn f_08_an_interface_moved_to_another_namespace_carries_traffic() {
    privileged!("ping", "tcpdump");
    let pair = Pair::with(PairOptions { wiretap: false, ..PairOptions::default() });
    let inside = Namespace::new("inside");
    let interface = pair.left.daemon.interface();
    pair.left.ns.ip(&format!("link set {interface} netns {}", inside.name()));
    inside.ip(&format!("address add {}/24 dev {interface}", pair.left.inner_v4));
    inside.ip(&format!("link set {interface} up"));
    ping(&inside, pair.right.inner_v4, 3);
    ping(&pair.right.ns, pair.left.inner_v4, 3);
    transfer(&inside, &pair.right.ns, pair.right.inner_v4.into(), 1_000_000);
    inside.ip(&format!("link set {interface} mtu 1300"));
    ping(&inside, format!("-M do -s 1272 {}", pair.right.inner_v4), 3);
    inside.ip(&format!("link set {interface} down"));
    wait_until("the socket is closed", START_LIMIT, || {
        pair.left.ns.run(&format!("ss -Huln sport = :{}", pair.left.port)).is_empty()
    });
}

// --- The end ---------------------------------------------------------------------------------

/// Ends a daemon in a way of the caller's choice: exit code 0 within a second, nothing left behind.
#[track_caller]
fn check_end(ns: &Namespace, mut daemon: Daemon, end: impl FnOnce(&Daemon)) {
    let interface = daemon.interface().to_owned();
    end(&daemon);
    let status = daemon.wait(END_LIMIT).unwrap_or_else(|| panic!("it ends within {END_LIMIT:?}"));
    assert_eq!(status.code(), Some(0), "{}", daemon.log());
    assert!(!socket_path(&interface).exists(), "the socket is gone");
    assert!(!ns.ip("-o link").contains(&interface), "the interface is gone");
}

/// Down; up; up with a peer that never answers and one that has no endpoint, both called.
fn in_each_state(ns: &Namespace) -> Vec<Daemon> {
    let down = Daemon::start(ns, Implementation::Adit);
    let up = Daemon::start(ns, Implementation::Adit);
    up.ip("link set DEV up");
    let busy = Daemon::start(ns, Implementation::Adit);
    busy.setconf(&format!(
        "[Interface]\nPrivateKey = {}\n\
         [Peer]\nPublicKey = {}\nEndpoint = 127.0.0.1:9\nAllowedIPs = 10.9.0.0/24\nPersistentKeepalive = 1\n\
         [Peer]\nPublicKey = {}\nAllowedIPs = 10.8.0.0/24\n",
        Keys::generate().private,
        Keys::generate().public,
        Keys::generate().public
    ));
    busy.ip("address add 10.9.0.1/24 dev DEV");
    busy.ip("link set DEV up");
    let called = ping_with(ns, "-c 2 -i 0.1 -W 0.1 10.9.0.2");
    assert_eq!(called.received, 0);
    vec![down, up, busy]
}

#[test]
fn f_14_sigterm_ends_it_within_a_second_in_every_state() {
    privileged!("ping");
    let ns = Namespace::new("only");
    for daemon in in_each_state(&ns) {
        check_end(&ns, daemon, |daemon| daemon.signal(SIGTERM));
    }
}

#[test]
fn f_14_sigint_ends_it_within_a_second_in_every_state() {
    privileged!("ping");
    let ns = Namespace::new("only");
    for daemon in in_each_state(&ns) {
        check_end(&ns, daemon, |daemon| daemon.signal(SIGINT));
    }
}

#[test]
fn u_10_removing_the_socket_ends_it_within_a_second_in_every_state() {
    privileged!("ping");
    let ns = Namespace::new("only");
    for daemon in in_each_state(&ns) {
        check_end(&ns, daemon, |daemon| fs::remove_file(socket_path(daemon.interface())).expect("the socket is there"));
    }
}

#[test]
fn f_07_deleting_the_interface_ends_it_within_a_second_in_every_state() {
    privileged!("ping");
    let ns = Namespace::new("only");
    for daemon in in_each_state(&ns) {
        check_end(&ns, daemon, |daemon| {
            daemon.ip("link delete DEV");
        });
    }
}

#[test]
fn u_02_a_stalled_client_does_not_delay_the_end() {
    use std::io::Write as _;
    privileged!();
    let ns = Namespace::new("only");
    let daemon = Daemon::start(&ns, Implementation::Adit);
    let path = socket_path(daemon.interface());
    let mut stalled = std::os::unix::net::UnixStream::connect(path).expect("it listens");
    stalled.write_all(b"set=1\nlisten_po").expect("it reads");
    assert!(daemon.show("").contains(daemon.interface()), "another client is served meanwhile");
    check_end(&ns, daemon, |daemon| daemon.signal(SIGTERM));
}

/// A hundred clients that send a byte now and then, or nothing: `wg show` of others answers at once, and so does the end.
#[test]
fn u_02_a_hundred_slow_clients_hold_up_nobody() {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;
    const PROMPT: Duration = Duration::from_millis(100);
    privileged!();
    let ns = Namespace::new("only");
    // What is promised is promised to a machine with time for it: where others keep it busy, one of so many shows it.
    let attempts = 4;
    let mut ends = Vec::new();
    for _ in 0..attempts {
        let mut daemon = Daemon::start(&ns, Implementation::Adit);
        let bytes = format!("set=1\nprivate_key={}", "0".repeat(64));
        let beginnings = 20;
        let mut slow: Vec<UnixStream> =
            (0..100).map(|_| UnixStream::connect(socket_path(daemon.interface())).expect("it listens")).collect();
        for (number, client) in slow.iter_mut().enumerate() {
            client.write_all(&bytes.as_bytes()[..number % beginnings]).expect("it reads");
        }
        let mut round = 0;
        let show = || {
            for (number, client) in slow.iter_mut().enumerate() {
                client.write_all(&bytes.as_bytes()[number % beginnings + round..][..1]).expect("it reads");
            }
            round += 1;
            let start = Instant::now();
            assert!(daemon.show("").contains(daemon.interface()));
            start.elapsed()
        };
        let mut times: Vec<Duration> = std::iter::repeat_with(show).take(15).collect();
        times.sort();
        println!("wg show: {times:?}");
        assert!(times[0] < PROMPT, "wg show: {times:?}");
        let start = Instant::now();
        daemon.signal(SIGTERM);
        let status = daemon.wait(START_LIMIT).expect("it ends");
        ends.push(start.elapsed());
        assert_eq!(status.code(), Some(0), "{}", daemon.log());
        if ends.iter().any(|time| *time < END_LIMIT) {
            return;
        }
    }
    panic!("never within {END_LIMIT:?}: {ends:?}");
}

#[test]
fn a_name_can_be_used_again_at_once() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    for round in 0..20 {
        let daemon = Daemon::start_with(&ns, Implementation::Adit, &interface, &[]);
        check_end(&ns, daemon, |daemon| match round % 2 {
            0 => daemon.signal(SIGTERM),
            _ => drop(daemon.ip("link delete DEV")),
        });
    }
}

// --- Ports, families, privileges -------------------------------------------------------------

#[test]
fn f_06_a_port_conflict_on_a_live_device_is_refused_and_the_old_port_kept() {
    privileged!("ping", "tcpdump");
    let pair = Pair::new();
    pair.ping_both_ways();
    let blocker = pair.left.ns.enter(|| UdpSocket::bind("0.0.0.0:6100")).expect("the port is free");
    let mut client = pair.left.daemon.client();
    assert_eq!(client.set("listen_port=6100"), -libc::EADDRINUSE);
    assert_eq!(pair.left.daemon.dump().listen_port, pair.left.port);
    ping(&pair.left.ns, pair.right.inner_v4, 3);
    ping(&pair.right.ns, pair.left.inner_v6, 3);
    drop(blocker);
}

/// Nor does an option that lets several sockets share a port hide the conflict.
#[test]
fn a_port_that_another_is_ready_to_share_is_a_conflict_too() {
    use socket2::{Domain, Socket, Type};
    privileged!();
    let ns = Namespace::new("only");
    let daemon = Daemon::start(&ns, Implementation::Adit);
    daemon.ip("link set DEV up");
    for (domain, address) in [(Domain::IPV4, "0.0.0.0:6101"), (Domain::IPV6, "[::]:6102")] {
        let address: SocketAddr = address.parse().expect("an address");
        let _blocker = ns.enter(|| {
            let socket = Socket::new(domain, Type::DGRAM, None).expect("a socket can be made");
            socket.set_reuse_port(true).expect("the option exists");
            socket.set_reuse_address(true).expect("the option exists");
            if address.is_ipv6() {
                socket.set_only_v6(true).expect("the option exists");
            }
            socket.bind(&address.into()).expect("the port is free");
            socket
        });
        assert_eq!(daemon.client().set(&format!("listen_port={}", address.port())), -libc::EADDRINUSE, "{address}");
    }
}

#[test]
fn f_06_a_port_conflict_at_link_up_is_logged_and_retried() {
    privileged!();
    let ns = Namespace::new("only");
    let mut daemon = Daemon::start(&ns, Implementation::Adit);
    daemon.setconf(&format!("[Interface]\nPrivateKey = {}\nListenPort = 6103\n", Keys::generate().private));
    let blocker = ns.enter(|| UdpSocket::bind("0.0.0.0:6103")).expect("the port is free");
    daemon.ip("link set DEV up");
    wait_until("the log says so", START_LIMIT, || {
        daemon.log().lines().any(|line| {
            (line.starts_with("ERROR") || line.starts_with("WARNING"))
                && (line.contains("6103") || line.contains("in use"))
        })
    });
    assert!(daemon.is_running(), "it goes on");
    drop(blocker);
    wait_until("the port is taken when it becomes free", START_LIMIT, || families(&ns, 6103) == 2);
}

/// A daemon that gets no UDP socket of an address family, as if the system did not have it.
#[track_caller]
fn start_without(family: libc::c_int, ns: &Namespace) -> Daemon {
    let interface = unique_interface();
    let mut command = ns.command(program());
    command.args(["-f", &interface]);
    refuse_udp(&mut command, family);
    Daemon::adopt(ns, Implementation::Adit, &interface, command)
}

#[test]
fn f_10_without_ipv6_it_goes_on_with_ipv4() {
    privileged!("ping", "tcpdump");
    let (left, right) = (Namespace::new("left"), Namespace::new("right"));
    for ns in [&left, &right] {
        ns.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        ns.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
    }
    veth(&left, "outer", &right, "outer");
    left.ip("address add 10.0.0.1/24 dev outer");
    right.ip("address add 10.0.0.2/24 dev outer");
    let set_up = |daemon: Daemon, n: u8| {
        let keys = Keys::generate();
        daemon.setconf(&format!("[Interface]\nPrivateKey = {}\nListenPort = 5182{n}\n", keys.private));
        daemon.ip(&format!("address add 192.168.241.{n}/24 dev DEV"));
        daemon.ip("link set DEV up");
        (daemon, keys)
    };
    // Where the family is switched off, its sockets can be had all the same.
    let (left_daemon, left_keys) = set_up(start_without(libc::AF_INET6, &left), 1);
    let (right_daemon, right_keys) = set_up(Daemon::start(&right, Implementation::Adit), 2);
    left_daemon.set(&format!("peer {} allowed-ips 192.168.241.2/32 endpoint 10.0.0.2:51822", right_keys.public));
    right_daemon.set(&format!("peer {} allowed-ips 192.168.241.1/32", left_keys.public));
    assert_eq!(families(&left, 51821), 1, "it has sockets of one family alone");
    ping(&left, "192.168.241.2", 3);
    ping(&right, "192.168.241.1", 3);
}

#[test]
fn f_10_without_an_ipv4_address_it_goes_on_with_ipv6() {
    privileged!("ping", "tcpdump");
    let mut pair = Pair::with(PairOptions { outer: testbed::Outer::V6, ..PairOptions::default() });
    for (ns, n) in [(&pair.left.ns, 1), (&pair.right.ns, 2)] {
        ns.ip(&format!("address del 10.0.0.{n}/24 dev outer"));
    }
    pair.ping_both_ways();
    // And without as much as a socket.
    let (configuration, _) = pair.configurations();
    pair.left.daemon.kill();
    pair.left.daemon = start_without(libc::AF_INET, &pair.left.ns);
    pair.left.bring_up(&configuration);
    assert_eq!(families(&pair.left.ns, pair.left.port), 1, "it has sockets of one family alone");
    pair.ping_both_ways();
}

#[test]
fn s_52_only_the_needed_capabilities_are_kept() {
    privileged!();
    let ns = Namespace::new("only");
    for in_background in [false, true] {
        let interface = unique_interface();
        let daemon = (!in_background).then(|| Daemon::start_with(&ns, Implementation::Adit, &interface, &[]));
        if in_background {
            start_in_background(&ns, &interface);
        }
        let pid = daemon_in(&ns);
        for task in fs::read_dir(format!("/proc/{pid}/task")).expect("the daemon runs") {
            let status = fs::read_to_string(task.expect("a thread").path().join("status")).expect("it has a status");
            for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
                let line = status.lines().find_map(|line| line.strip_prefix(set)).expect("Linux lists it");
                let held = u64::from_str_radix(line.trim_start_matches(':').trim(), 16).expect("in hexadecimal");
                assert_eq!(held & !CAPABILITIES_NEEDED, 0, "{set} of a thread:\n{status}");
            }
        }
        drop(daemon);
    }
}

// --- wg-quick --------------------------------------------------------------------------------

/// Runs wg-quick in the namespace, which finds the program by its name in the path.
#[track_caller]
fn wg_quick(ns: &Namespace, verb: &str, conf: &Path) -> String {
    let program = program();
    let name = program.file_name().expect("a program has a name");
    let folder = program.parent().expect("a program lies in a folder").display().to_string();
    let path = format!("{folder}:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = ns.command("wg-quick");
    command.arg(verb).arg(conf).env("WG_QUICK_USERSPACE_IMPLEMENTATION", name).env("PATH", path);
    let output = refused(&mut command);
    assert_eq!(output.code, Some(0), "wg-quick {verb}:\n{}", output.text);
    output.text
}

struct Quick {
    left: Namespace,
    right: Node,
    interface: String,
    conf: PathBuf,
    _scratch: Scratch,
}

/// A namespace for wg-quick with a configuration file, and the peer that it names, which has addresses behind it.
#[track_caller]
fn quick(allowed_ips: &str, further: &str) -> Quick {
    let (left, right) = (Namespace::new("left"), Namespace::new("right"));
    veth(&left, "outer", &right, "outer");
    left.ip("address add 10.0.0.1/24 dev outer");
    left.ip("address add fd00::1/64 dev outer nodad");
    left.ip("route add default via 10.0.0.2");
    left.ip("route add default via fd00::2");
    right.ip("address add 10.0.0.2/24 dev outer");
    right.ip("address add fd00::2/64 dev outer nodad");
    for address in ["198.51.100.1/32", "203.0.113.1/32", "2001:db8:2::1/128"] {
        right.ip(&format!("address add {address} dev lo"));
    }
    let right = Node::start(&right, Implementation::Adit, 2);
    let keys = Keys::generate();
    right
        .daemon
        .addconf(&format!("[Peer]\nPublicKey = {}\nAllowedIPs = 192.168.241.1/32, fd00:241::1/128\n", keys.public));
    let (scratch, interface) = (Scratch::new(), unique_interface());
    let conf = scratch.write(
        &format!("{interface}.conf"),
        &format!(
            "[Interface]\nPrivateKey = {}\nAddress = 192.168.241.1/24, fd00:241::1/64\nListenPort = 51821\n{further}\n\
             [Peer]\nPublicKey = {}\nAllowedIPs = {allowed_ips}\nEndpoint = 198.51.100.1:{}\n",
            keys.private, right.keys.public, right.port
        ),
    );
    Quick { left, right, interface, conf, _scratch: scratch }
}

#[track_caller]
fn check_quick_down(quick: &Quick, pid: u32) {
    wg_quick(&quick.left, "down", &quick.conf);
    wait_until("the daemon ends", END_LIMIT, || is_gone(pid));
    assert!(!socket_path(&quick.interface).exists(), "the socket is gone");
    assert!(!quick.left.has_interface(&quick.interface), "the interface is gone");
}

#[test]
fn wg_quick_up_and_down_with_both_families() {
    privileged!("wg-quick", "ping");
    let quick = quick("192.168.241.2/32, fd00:241::2/128, 203.0.113.0/24", "MTU = 1400");
    for _ in 0..2 {
        wg_quick(&quick.left, "up", &quick.conf);
        let pid = daemon_in(&quick.left);
        ping(&quick.left, quick.right.inner_v4, 3);
        ping(&quick.left, quick.right.inner_v6, 3);
        ping(&quick.right.ns, "192.168.241.1", 3);
        ping(&quick.left, "203.0.113.1", 3);
        assert!(quick.left.ip(&format!("link show dev {}", quick.interface)).contains("mtu 1400"));
        check_quick_down(&quick, pid);
    }
}

#[test]
fn wg_quick_up_and_down_with_default_routes_of_both_families() {
    privileged!("wg-quick", "ping", "nft");
    let quick = quick("0.0.0.0/0, ::/0", "");
    let before = (quick.left.ip("rule"), quick.left.ip("-6 rule"), quick.left.ip("route"));
    wg_quick(&quick.left, "up", &quick.conf);
    let pid = daemon_in(&quick.left);
    let routed = quick.left.ip("route get 203.0.113.1");
    assert!(routed.contains(&quick.interface), "{routed}");
    ping(&quick.left, "203.0.113.1", 3);
    ping(&quick.left, "2001:db8:2::1", 3);
    transfer(&quick.left, &quick.right.ns, "203.0.113.1".parse().expect("an address"), 1_000_000);
    transfer(&quick.left, &quick.right.ns, "2001:db8:2::1".parse().expect("an address"), 1_000_000);
    // wg-quick save reads it back, and a second up is refused.
    assert!(quick.left.try_run(&format!("wg-quick up {}", quick.conf.display())).is_err());
    check_quick_down(&quick, pid);
    assert_eq!((quick.left.ip("rule"), quick.left.ip("-6 rule"), quick.left.ip("route")), before);
}

#[test]
fn wg_quick_save_writes_the_configuration_back() {
    privileged!("wg-quick", "ping");
    let quick = quick("192.168.241.2/32", "SaveConfig = true");
    wg_quick(&quick.left, "up", &quick.conf);
    let pid = daemon_in(&quick.left);
    let added = Keys::generate().public;
    quick.left.run(&format!("wg set {} peer {added} allowed-ips 10.20.0.0/16", quick.interface));
    check_quick_down(&quick, pid);
    let saved = fs::read_to_string(&quick.conf).expect("the file is still there");
    assert!(saved.contains(&added) && saved.contains(&quick.right.keys.public), "{saved}");
}

#[test]
fn wg_quick_strip_and_syncconf_work_on_a_live_interface() {
    privileged!("wg-quick", "ping");
    let quick = quick("192.168.241.2/32", "");
    wg_quick(&quick.left, "up", &quick.conf);
    let pid = daemon_in(&quick.left);
    ping(&quick.left, quick.right.inner_v4, 3);
    let script = format!("wg syncconf {0} <(wg-quick strip {1})", quick.interface, quick.conf.display());
    let synced = refused(quick.left.command("bash").args(["-c", &script]));
    assert_eq!(synced.code, Some(0), "{}", synced.text);
    ping(&quick.left, quick.right.inner_v4, 3);
    check_quick_down(&quick, pid);
}
