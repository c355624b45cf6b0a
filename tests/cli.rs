//! The program from outside: words, variables, exit codes, the keys' commands beside the real `wg`,
//! and what it says when there can be no interface.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const ADIT: &str = env!("CARGO_BIN_EXE_adit");
const VARIABLES: [&str; 10] = [
    "WG_PROCESS_FOREGROUND",
    "LOG_LEVEL",
    "WG_TUN_FD",
    "WG_UAPI_FD",
    "ADIT_READY_FD",
    "ADIT_DUMPABLE",
    "NOTIFY_SOCKET",
    "ADIT_THREADS",
    "ADIT_SPIN_US",
    "ADIT_CPUS",
];

/// How often an end is tried that has to come within a second.
const END_ATTEMPTS: usize = 5;

/// The program with none of its variables set.
fn adit(words: &[&str]) -> Command {
    let mut command = Command::new(ADIT);
    command.args(words).stdin(Stdio::null());
    for variable in VARIABLES {
        command.env_remove(variable);
    }
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // The program may end before it has read all of it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// A directory of this test's own, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("adit-cli-{}-{number}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Whether this test cannot run here, which it then says.
fn skipped(test: &str, reason: Option<&str>) -> bool {
    if let Some(reason) = reason {
        println!("SKIPPED: {test}: {reason}");
    }
    reason.is_some()
}

fn no_wg() -> Option<&'static str> {
    Command::new("wg").arg("--version").output().is_err().then_some("there is no wg")
}

fn no_root() -> Option<&'static str> {
    // SAFETY: reads a number of this process.
    (unsafe { libc::geteuid() } != 0).then_some("not root")
}

#[test]
fn usage_help_and_version() {
    let check = |words: &[&str], status, stdout: &str, stderr: &str| {
        let output = adit(words).output().unwrap();
        assert_eq!(output.status.code(), Some(status), "{words:?}");
        for (stream, expected) in [(&output.stdout, stdout), (&output.stderr, stderr)] {
            let stream = text(stream);
            assert_eq!(stream.is_empty(), expected.is_empty(), "{words:?}: {stream}");
            assert!(stream.contains(expected), "{words:?}: {stream}");
        }
    };
    let usage = format!("Usage: {ADIT} [-f/--foreground] INTERFACE-NAME\n");
    for words in [&[][..], &["-f"], &["--foreground"], &[""], &["--"], &["wg0", "wg1"], &["-f", "wg0", "wg1"], &["-x"]]
    {
        check(words, 1, "", &usage);
    }
    check(&["--help"], 0, "WG_QUICK_USERSPACE_IMPLEMENTATION=adit", "");
    check(&["-h"], 0, "--foreground", "");
    check(&["help", "pubkey"], 0, "Reads a private key from stdin", "");
    check(
        &["--version"],
        0,
        concat!("adit v", env!("CARGO_PKG_VERSION"), "\n\nUserspace WireGuard daemon for linux-"),
        "",
    );
    check(&["genkey", "wg0"], 1, "", &format!("Usage: {ADIT} genkey\n"));
}

#[test]
fn keys_as_wg_makes_them() {
    if skipped("keys_as_wg_makes_them", no_wg()) {
        return;
    }
    for _ in 0..8 {
        let private = adit(&["genkey"]).output().unwrap();
        assert!(private.status.success() && private.stderr.is_empty());
        assert_eq!(private.stdout.len(), 45);
        let mut wg = Command::new("wg");
        wg.arg("pubkey");
        let theirs = with_input(wg, &private.stdout);
        assert!(theirs.status.success(), "wg refuses our key: {theirs:?}");
        let ours = with_input(adit(&["pubkey"]), &private.stdout);
        assert_eq!((ours.status.code(), ours.stdout, ours.stderr), (Some(0), theirs.stdout, vec![]));
    }
    let theirs = Command::new("wg").arg("genkey").output().unwrap();
    let first = with_input(adit(&["pubkey"]), &theirs.stdout);
    assert!(first.status.success());
    let preshared: Vec<Vec<u8>> = (0..2).map(|_| adit(&["genpsk"]).output().unwrap().stdout).collect();
    assert!(preshared[0].len() == 45 && preshared[0] != preshared[1]);
}

#[test]
fn pubkey_judges_input_as_wg_does() {
    if skipped("pubkey_judges_input_as_wg_does", no_wg()) {
        return;
    }
    let key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    let inputs = [
        String::new(),
        "\n".into(),
        "foo\n".into(),
        key.into(),
        format!("{key}\n"),
        format!("{key} \t\r\n\n"),
        format!(" {key}"),
        format!("{key} x"),
        format!("{key}{key}"),
        key[..43].into(),
        key.replace('=', "A"),
        key.replace("mk=", "ml="),
        key.replace('+', "-"),
        format!("{}=", "0".repeat(43)),
        "A".repeat(100_000),
    ];
    for input in inputs {
        let mut wg = Command::new("wg");
        wg.arg("pubkey");
        let theirs = with_input(wg, input.as_bytes());
        let ours = with_input(adit(&["pubkey"]), input.as_bytes());
        assert_eq!(ours.status.code(), theirs.status.code(), "{input:?}");
        assert_eq!(ours.stdout, theirs.stdout, "{input:?}");
        let complaint = text(&theirs.stderr).replacen("wg:", &format!("{ADIT}:"), 1);
        assert_eq!(text(&ours.stderr), complaint, "{input:?}");
    }
}

#[test]
fn a_secret_for_everybody_to_read_deserves_a_warning() {
    let scratch = Scratch::new();
    let check = |command: &str, mode: u32, warned: bool| {
        let path = scratch.0.join(format!("{command}-{mode:o}"));
        let file = File::create(&path).unwrap();
        file.set_permissions(fs::Permissions::from_mode(mode)).unwrap();
        let output = with_stdout(adit(&[command]), file);
        assert!(output.status.success());
        assert_eq!(fs::read(&path).unwrap().len(), 45);
        let expected = "Warning: writing to world accessible file.\n\
                        Consider setting the umask to 077 and trying again.\n";
        assert_eq!(text(&output.stderr), if warned { expected } else { "" }, "{command} {mode:o}");
    };
    check("genkey", 0o644, true);
    check("genpsk", 0o604, true);
    check("genkey", 0o602, true);
    check("genkey", 0o640, false);
    check("genpsk", 0o600, false);
}

fn with_stdout(mut command: Command, stdout: File) -> Output {
    command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn what_cannot_be_written_is_an_error() {
    for words in [&["genkey"][..], &["genpsk"], &["--version"], &["--help"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = with_stdout(adit(words), full);
        assert_eq!(output.status.code(), Some(1), "{words:?}");
        assert!(text(&output.stderr).contains("No space left"), "{words:?}");
    }
}

/// One line in wireguard-go's manner, that says `what`, and exit code 1.
fn assert_fails(output: &Output, interface: &str, what: &str) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty());
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(stderr.starts_with(&format!("ERROR: ({interface}) 20")), "{stderr}");
    assert!(stderr.contains(what), "{stderr}");
}

// [F-19]
#[test]
fn f_19_names_that_no_interface_can_have() {
    for name in ["abcdefghijklmnop", "a/b", "a b", ".."] {
        for words in [&["-f", name][..], &["--", name]] {
            assert_fails(&adit(words).output().unwrap(), name, "Failed to create TUN device: ");
        }
    }
}

// [F-19]
#[test]
fn f_19_a_name_that_is_taken() {
    if skipped("f_19_a_name_that_is_taken", no_root()) {
        return;
    }
    assert_fails(&adit(&["-f", "lo"]).output().unwrap(), "lo", "Failed to create TUN device: ");
    assert_fails(&adit(&["lo"]).output().unwrap(), "lo", "Failed to create TUN device: ");
}

// [F-19]
#[test]
fn f_19_no_permission_to_make_an_interface() {
    let test = "f_19_no_permission_to_make_an_interface";
    if skipped(test, no_root()) {
        return;
    }
    // As nobody, who may not look into the build directory: hence the copy.
    let scratch = Scratch::new();
    let copy = scratch.0.join("adit");
    fs::copy(ADIT, &copy).unwrap();
    let nobody = ["--reuid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all", "--"];
    let output =
        Command::new("setpriv").args(nobody).arg(&copy).args(["-f", "wgcli0"]).env_remove("LOG_LEVEL").output();
    match output {
        Ok(output) => assert_fails(&output, "wgcli0", "CAP_NET_ADMIN"),
        Err(error) => println!("SKIPPED: {test}: no setpriv: {error}"),
    }
}

// [F-19]
#[test]
fn f_19_no_driver_for_interfaces() {
    if skipped("f_19_no_driver_for_interfaces", no_root()) {
        return;
    }
    // In a mount namespace of its own, /dev/net is empty.
    let script = "mount -t tmpfs none /dev/net && exec \"$0\" -f wgcli1";
    let output = Command::new("unshare").args(["-m", "-n", "sh", "-c", script, ADIT]).env_remove("LOG_LEVEL").output();
    match output {
        Ok(output) if text(&output.stderr).contains("ERROR: ") => assert_fails(&output, "wgcli1", "/dev/net/tun"),
        other => println!("SKIPPED: f_19_no_driver_for_interfaces: no mount namespace: {other:?}"),
    }
}

#[test]
fn descriptors_that_cannot_be_used() {
    let check = |variable: &str, value: &str, what: &str| {
        let output = adit(&["-f", "wgcli2"]).env(variable, value).output().unwrap();
        assert_fails(&output, "wgcli2", what);
    };
    check("WG_TUN_FD", "x", "WG_TUN_FD=\"x\" is not the number of a file descriptor");
    check("WG_UAPI_FD", "1", "WG_UAPI_FD=\"1\" is not the number of a file descriptor");
    check("WG_TUN_FD", "999", "WG_TUN_FD=999 cannot be used");
    check("WG_UAPI_FD", "999", "WG_UAPI_FD=999 cannot be used");
    let silent = adit(&["-f", "wgcli2"]).env("WG_TUN_FD", "x").env("LOG_LEVEL", "silent").output().unwrap();
    assert_eq!((silent.status.code(), silent.stderr.len()), (Some(1), 0));
}

#[test]
fn settings_of_the_workers_that_cannot_be_used() {
    // Refused in the foreground as before going into the background, where no interface is made first.
    for words in [&["-f", "wgcli4"][..], &["wgcli4"]] {
        let check = |variable: &str, value: &str, what: &str| {
            assert_fails(&adit(words).env(variable, value).output().unwrap(), "wgcli4", what);
        };
        check("ADIT_THREADS", "0", "ADIT_THREADS=\"0\" cannot be used: give a number of threads from 1 to 16");
        check("ADIT_THREADS", "many", "ADIT_THREADS=\"many\" cannot be used");
        check("ADIT_SPIN_US", "1001", "ADIT_SPIN_US=\"1001\" cannot be used: give microseconds from 0 (off) to 1000");
        check("ADIT_CPUS", "0,", "ADIT_CPUS=\"0,\" cannot be used: give a list of processors such as 0,2-3");
        check("ADIT_CPUS", "8191", "ADIT_CPUS names processor 8191, which does not exist or may not be used");
        let output = adit(&["--cpus", "8191"]).args(words).output().unwrap();
        assert_fails(&output, "wgcli4", "--cpus names processor 8191, which does not exist or may not be used");
    }
    for (option, value) in [("--threads", "17"), ("--spin-us", "fast"), ("--cpus", "1-0")] {
        let output = adit(&["-f", option, value, "wgcli4"]).output().unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains(&format!("invalid value '{value}' for '{option} <")), "{stderr}");
        assert!(stderr.contains(": give "), "{stderr}");
    }
}

#[test]
fn a_descriptor_that_is_no_tun() {
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" -f wgcli3 3</dev/null", ADIT]).env("WG_TUN_FD", "3").env_remove("LOG_LEVEL");
    assert_fails(&command.output().unwrap(), "wgcli3", "Failed to create TUN device: ");
}

/// A network namespace of its own, with a /run/wireguard of its own, held by a shell.
struct Inside {
    shell: Child,
}

impl Inside {
    fn new(test: &str) -> Option<Self> {
        if skipped(test, no_root()) {
            return None;
        }
        // /var/run is a link to /run wherever it matters.
        let script =
            "mkdir -p /run/wireguard && mount -t tmpfs none /run/wireguard && ip link set lo up && echo ok && exec cat";
        let shell = Command::new("unshare")
            .args(["-n", "-m", "--propagation", "private", "sh", "-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn();
        let mut shell = match shell {
            Ok(shell) => shell,
            Err(error) => {
                println!("SKIPPED: {test}: no unshare: {error}");
                return None;
            }
        };
        let mut ok = [0; 3];
        if shell.stdout.as_mut().unwrap().read_exact(&mut ok).is_err() {
            println!("SKIPPED: {test}: no namespaces");
            return None;
        }
        Some(Self { shell })
    }

    /// A command that runs inside.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.shell.id()));
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.shell.id()));
        command.args(["--", program]).stdin(Stdio::null());
        for variable in VARIABLES {
            command.env_remove(variable);
        }
        command
    }

    fn sh(&self, script: &str) -> Output {
        self.command("sh").args(["-c", script, ADIT]).output().unwrap()
    }

    fn interfaces(&self) -> String {
        text(&self.sh("ls /sys/class/net; ip -o link | cut -d: -f2; ls /run/wireguard").stdout).to_owned()
    }

    fn assert_nothing_left(&self, interface: &str) {
        let left = eventually(|| !self.interfaces().contains(interface));
        assert!(left, "{interface} is still there: {}", self.interfaces());
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}

/// Whether `condition` comes true within twenty seconds: far more than it takes, on a busy machine too.
fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The process that listens on the interface's socket.
fn daemon_of(inside: &Inside, interface: &str) -> u32 {
    let output = inside.sh(&format!("ss -xlpH src /var/run/wireguard/{interface}.sock"));
    let line = text(&output.stdout);
    let from = line.find("pid=").unwrap_or_else(|| panic!("nobody listens: {line}")) + 4;
    line[from..].split(',').next().unwrap().parse().unwrap()
}

fn status_field(process: u32, thread: &Path, field: &str) -> String {
    let status = fs::read_to_string(Path::new(&format!("/proc/{process}/task")).join(thread).join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

// Back in the script, the interface and the socket are there and answer, every time.
#[test]
fn the_background_is_ready_when_the_program_returns() {
    let Some(inside) = Inside::new("the_background_is_ready_when_the_program_returns") else { return };
    for round in 0..3 {
        let script = "\"$0\" wgbg0 && ip link show wgbg0 && wg set wgbg0 fwmark 7 && wg show wgbg0; \
                      \"$0\" -- wgbg0; echo second: $?; wg show wgbg0 && ip link del wgbg0";
        let output = inside.sh(script);
        let stdout = text(&output.stdout);
        assert!(output.status.success(), "round {round}: {output:?}");
        assert!(stdout.contains("interface: wgbg0"), "round {round}: {output:?}");
        assert!(stdout.contains("second: 1"), "round {round}: {output:?}");
        inside.assert_nothing_left("wgbg0");
    }
}

// [S-52] [S-51]
#[test]
fn a_daemon_in_the_background() {
    let Some(inside) = Inside::new("a_daemon_in_the_background") else { return };
    // What the shell has open must not stay open with the daemon.
    let output = inside.sh("exec 9</etc/passwd; cd /tmp; umask 000; \"$0\" wgbg1");
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    let daemon = daemon_of(&inside, "wgbg1");
    assert_eq!(fs::read_to_string(format!("/proc/{daemon}/comm")).unwrap(), "adit\n");
    assert_eq!(fs::read_link(format!("/proc/{daemon}/cwd")).unwrap(), Path::new("/"));
    let session = fs::read_to_string(format!("/proc/{daemon}/stat")).unwrap();
    assert_eq!(
        session.split(") ").nth(1).unwrap().split(' ').nth(3).unwrap(),
        daemon.to_string(),
        "no session of its own"
    );
    let mut others = 0;
    for fd in fs::read_dir(format!("/proc/{daemon}/fd")).unwrap() {
        let fd = fd.unwrap();
        let target = fs::read_link(fd.path()).unwrap();
        match fd.file_name().to_str().unwrap() {
            "0" | "1" | "2" => assert_eq!(target, Path::new("/dev/null")),
            _ => others += usize::from(target == Path::new("/etc/passwd")),
        }
    }
    assert_eq!(others, 0, "the shell's descriptor is still open");
    // NET_BIND_SERVICE is 10, NET_ADMIN 12.
    let kept = format!("{:016x}", (1 << 10) | (1 << 12));
    for thread in fs::read_dir(format!("/proc/{daemon}/task")).unwrap() {
        let thread = PathBuf::from(thread.unwrap().file_name());
        let name = fs::read_to_string(format!("/proc/{daemon}/task/{}/comm", thread.display())).unwrap();
        let expected = if name == "log\n" { "0".repeat(16) } else { kept.clone() };
        for field in ["CapPrm", "CapEff"] {
            assert_eq!(status_field(daemon, &thread, field), expected, "{name}{field}");
        }
        for (field, most) in [("CapInh", 0), ("CapAmb", 0), ("CapBnd", (1_u64 << 10) | (1 << 12))] {
            let held = u64::from_str_radix(&status_field(daemon, &thread, field), 16).unwrap();
            assert_eq!(held & !most, 0, "{name}{field}");
        }
    }
    // SAFETY: sends a signal to a process that this test has started.
    assert_eq!(unsafe { libc::kill(i32::try_from(daemon).unwrap(), libc::SIGTERM) }, 0);
    inside.assert_nothing_left("wgbg1");
}

// [S-52] What counts is the capability, not the user.
#[test]
fn s_52_a_daemon_of_an_ordinary_user() {
    let Some(inside) = Inside::new("s_52_a_daemon_of_an_ordinary_user") else { return };
    let scratch = Scratch::new();
    let copy = scratch.0.join("adit");
    fs::copy(ADIT, &copy).unwrap();
    // A device node that anybody may open, as most systems have it, and a directory of the user's.
    let script = format!(
        "mount -t tmpfs none /dev/net && mknod -m 666 /dev/net/tun c 10 200 && chown 65534 /run/wireguard && \
         setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=+net_admin --ambient-caps=+net_admin {} wguser0",
        copy.display()
    );
    let output = inside.sh(&script);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let daemon = daemon_of(&inside, "wguser0");
    let main = PathBuf::from(daemon.to_string());
    assert_eq!(status_field(daemon, &main, "Uid:"), "65534");
    assert_eq!(status_field(daemon, &main, "CapEff"), format!("{:016x}", 1 << 12));
    assert_eq!(status_field(daemon, &main, "CapAmb"), "0".repeat(16));
    // [S-51] What the kernel shows of a process that is not dumpable belongs to root.
    assert_eq!(fs::metadata(format!("/proc/{daemon}/environ")).unwrap().uid(), 0);
    let output = inside.sh("ip link set wguser0 up && wg set wguser0 fwmark 5 listen-port 0 && wg show wguser0 fwmark");
    assert_eq!(text(&output.stdout), "0x5\n", "{output:?}");
    assert!(inside.sh("ip link del wguser0").status.success());
    inside.assert_nothing_left("wguser0");
    assert!(inside.sh(&script.replace("setpriv", "ADIT_DUMPABLE=1 setpriv")).status.success());
    let daemon = daemon_of(&inside, "wguser0");
    assert_eq!(fs::metadata(format!("/proc/{daemon}/environ")).unwrap().uid(), 65534);
    assert!(inside.sh("rm /run/wireguard/wguser0.sock").status.success());
    inside.assert_nothing_left("wguser0");
}

/// The daemon's workers: the name of each, and the processors that it may run on.
fn workers_of(daemon: u32) -> Vec<(String, String)> {
    let mut workers = Vec::new();
    for thread in fs::read_dir(format!("/proc/{daemon}/task")).unwrap() {
        let thread = PathBuf::from(thread.unwrap().file_name());
        let name = fs::read_to_string(format!("/proc/{daemon}/task/{}/comm", thread.display())).unwrap();
        if name.starts_with("adit-worker-") {
            workers.push((name.trim_end().to_owned(), status_field(daemon, &thread, "Cpus_allowed_list:")));
        }
    }
    workers.sort();
    workers
}

// What is asked for reaches the workers, through the hand-over to the background too.
#[test]
fn the_workers_are_as_many_and_where_they_are_asked_to_be() {
    let Some(inside) = Inside::new("the_workers_are_as_many_and_where_they_are_asked_to_be") else { return };
    let main = PathBuf::from(std::process::id().to_string());
    let anywhere = status_field(std::process::id(), &main, "Cpus_allowed_list:");
    let ends: Vec<&str> = anywhere.split([',', '-']).collect();
    let (first, last) = (ends[0], ends[ends.len() - 1]);
    // Backwards, to show that the order counts; a machine may have one processor only.
    let list = if first == last { first.to_owned() } else { format!("{last},{first}") };
    let expected = |places: &[&str]| -> Vec<(String, String)> {
        places
            .iter()
            .enumerate()
            .map(|(number, place)| (format!("adit-worker-{number}"), (*place).to_owned()))
            .collect()
    };
    let free = [anywhere.as_str(); 3];
    let pinned = [last, first, last];
    for (command, expected) in [
        ("\"$0\" --threads 1 wgwork0".to_owned(), expected(&free[..1])),
        ("\"$0\" --threads 3 --spin-us 0 wgwork0".to_owned(), expected(&free)),
        ("ADIT_THREADS=2 ADIT_SPIN_US=1000 \"$0\" wgwork0".to_owned(), expected(&free[..2])),
        (format!("ADIT_THREADS=3 ADIT_CPUS={list} \"$0\" wgwork0"), expected(&pinned)),
        (format!("\"$0\" --cpus {list} --threads 2 -- wgwork0"), expected(&pinned[..2])),
        // Options count more, even than what could not be used.
        (format!("ADIT_THREADS=1 ADIT_CPUS=x \"$0\" wgwork0 --threads 2 --cpus {first}"), expected(&[first, first])),
    ] {
        let output = inside.sh(&command);
        assert!(output.status.success() && output.stderr.is_empty(), "{command}: {output:?}");
        let daemon = daemon_of(&inside, "wgwork0");
        // A worker pins itself when it has started, which may be after the daemon answers.
        assert!(eventually(|| workers_of(daemon) == expected), "{command}: {:?}", workers_of(daemon));
        assert!(inside.sh("ip link del wgwork0").status.success());
        inside.assert_nothing_left("wgwork0");
    }
}

/// The scheduling policies of the daemon's workers, by number.
fn policies_of(daemon: u32) -> Vec<i32> {
    let mut policies = Vec::new();
    for thread in fs::read_dir(format!("/proc/{daemon}/task")).unwrap() {
        let stat = fs::read_to_string(thread.unwrap().path().join("stat")).unwrap();
        // [proc_pid_stat(5)] The name in parentheses is the second field, the policy the 41st.
        let (name, fields) = stat.split_once(" (").unwrap().1.rsplit_once(") ").unwrap();
        if let Some(number) = name.strip_prefix("adit-worker-") {
            policies.push((number.to_owned(), fields.split(' ').nth(41 - 3).unwrap().parse().unwrap()));
        }
    }
    policies.sort();
    policies.into_iter().map(|(_, policy)| policy).collect()
}

/// Starts a daemon by `command`, and a program that wakes it up by packets for nobody: what others on the machine do may
/// have made a worker go first, and at rest it would stay so.
fn woken_daemon(inside: &Inside, interface: &str, command: &str) -> (u32, Child) {
    let up = format!("{command} {interface} && ip link set {interface} up && ip addr add 10.7.7.1/24 dev {interface}");
    let output = inside.sh(&up);
    assert!(output.status.success(), "{output:?}");
    let packets = "while sleep 0.02; do echo > /dev/udp/10.7.7.2/9; done 2> /dev/null";
    let packets = inside.command("bash").args(["-c", packets]).spawn().unwrap();
    (daemon_of(inside, interface), packets)
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

// The worker with the lane waits for who woke it, unless somebody chose a policy for it.
#[test]
fn a_worker_goes_after_who_woke_it() {
    let Some(inside) = Inside::new("a_worker_goes_after_who_woke_it") else { return };
    for (before, expected) in [("", [libc::SCHED_BATCH, libc::SCHED_OTHER]), ("chrt -i 0", [libc::SCHED_IDLE; 2])] {
        let (daemon, packets) = woken_daemon(&inside, "wgpol0", &format!("{before} \"$0\" --threads 2"));
        let as_expected = eventually(|| policies_of(daemon) == expected);
        end(packets);
        assert!(as_expected, "{before}: {:?}", policies_of(daemon));
        assert!(inside.sh("ip link del wgpol0").status.success());
        inside.assert_nothing_left("wgpol0");
    }
}

// Where the processor is busy, it goes first again: otherwise each packet would wait for some milliseconds.
#[test]
fn a_worker_goes_first_where_the_processor_is_busy() {
    let Some(inside) = Inside::new("a_worker_goes_first_where_the_processor_is_busy") else { return };
    let main = PathBuf::from(std::process::id().to_string());
    let anywhere = status_field(std::process::id(), &main, "Cpus_allowed_list:");
    let processor = anywhere.split([',', '-']).next().unwrap();
    let (daemon, packets) = woken_daemon(&inside, "wgpol1", &format!("\"$0\" --threads 1 --cpus {processor}"));
    assert!(eventually(|| policies_of(daemon) == [libc::SCHED_BATCH]));
    let busy = Command::new("taskset").args(["-c", processor, "sh", "-c", "while :; do :; done"]).spawn().unwrap();
    let went_first = eventually(|| policies_of(daemon) == [libc::SCHED_OTHER]);
    end(busy);
    let waits_again = eventually(|| policies_of(daemon) == [libc::SCHED_BATCH]);
    end(packets);
    assert!(went_first && waits_again, "{went_first}, {waits_again}");
    assert!(inside.sh("ip link del wgpol1").status.success());
    inside.assert_nothing_left("wgpol1");
}

/// Starts in the foreground and waits until the socket answers.
fn in_foreground(inside: &Inside, interface: &str, prepare: impl FnOnce(&mut Command)) -> Child {
    let mut command = inside.command(ADIT);
    command.args(["-f", interface]).stderr(Stdio::piped()).stdout(Stdio::piped());
    prepare(&mut command);
    let child = command.spawn().unwrap();
    let wg = format!("wg show {interface}");
    assert!(eventually(|| inside.sh(&wg).status.success()), "{interface} does not answer");
    child
}

// [F-07] [F-14]
#[test]
fn f_14_every_way_to_end_is_clean_and_fast() {
    let Some(inside) = Inside::new("f_14_every_way_to_end_is_clean_and_fast") else { return };
    let interface = "wgend0";
    let ways = [
        ("kill -TERM", "kill -TERM PID"),
        ("kill -INT", "kill -INT PID"),
        ("kill -HUP", "kill -HUP PID"),
        ("socket removed", "rm /var/run/wireguard/wgend0.sock"),
        ("interface deleted", "ip link del wgend0"),
        ("deleted while up", "ip link set wgend0 up; sleep 0.1; ip link del wgend0"),
    ];
    for (name, way) in ways {
        // The promise is about a machine with time for it: where others keep it busy, one of several attempts shows it.
        let mut took = Vec::new();
        while !took.iter().any(|time| *time < Duration::from_secs(1)) {
            assert!(took.len() < END_ATTEMPTS, "{name}: took {took:?}");
            let mut child = in_foreground(&inside, interface, |_| {});
            let script = way.replace("PID", &child.id().to_string());
            let ended = inside.sh(&script);
            assert!(ended.status.success(), "{name}: {ended:?}");
            let start = Instant::now();
            assert!(eventually(|| child.try_wait().unwrap().is_some()), "{name}: it does not end");
            took.push(start.elapsed());
            let output = child.wait_with_output().unwrap();
            assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""), "{name}");
            inside.assert_nothing_left(interface);
        }
    }
}

// [F-14] The name can be used again at once, before the old daemon has gone; and after it was killed.
#[test]
fn f_14_a_successor_waits_for_its_predecessor() {
    let Some(inside) = Inside::new("f_14_a_successor_waits_for_its_predecessor") else { return };
    for end in ["ip link del wgnext0", "rm /var/run/wireguard/wgnext0.sock", "kill -9 $(pgrep -x adit)"] {
        let script = format!("for i in $(seq 10); do \"$0\" wgnext0 || exit 1; {end} || exit 2; done");
        // The processes of other tests are visible, too: only those of this namespace are meant.
        let output = inside.sh(&script.replace("pgrep -x adit", "pgrep -x adit --ns $$ --nslist net"));
        assert!(output.status.success(), "{end}: {output:?}");
        inside.assert_nothing_left("/wgnext0:");
    }
}

#[test]
fn the_log_is_like_the_reference() {
    let Some(inside) = Inside::new("the_log_is_like_the_reference") else { return };
    let mut command = inside.command(ADIT);
    command.args(["-f", "wglog%d"]).env("LOG_LEVEL", "verbose").stderr(Stdio::piped()).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    assert!(eventually(|| inside.sh("wg show wglog0").status.success()), "wglog0 does not answer");
    let configure = "wg set wglog0 private-key <(wg genkey) listen-port 0; ip link set wglog0 up; wg showconf wglog0";
    let output = inside.command("bash").args(["-c", configure]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let shown = text(&output.stdout);
    let private = shown.lines().find_map(|line| line.strip_prefix("PrivateKey = ")).unwrap().to_owned();
    assert!(inside.sh(&format!("kill {}", child.id())).status.success());
    let output = child.wait_with_output().unwrap();
    assert!(output.stdout.is_empty());
    let log = text(&output.stderr);
    // The name as the system chose it; the time as wireguard-go writes it.
    for line in log.lines() {
        let rest = line.strip_prefix("DEBUG: (wglog0) ").unwrap_or_else(|| panic!("{line}"));
        let shape: String = rest.chars().take(20).map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "0000/00/00 00:00:00 ", "{line}");
    }
    for event in ["Starting adit version", "Device started", "UAPI listener started", "Device closing", "Shutting down"]
    {
        assert!(log.contains(event), "{event} is missing in {log}");
    }
    // [S-51] No secret is logged, however much is.
    assert!(!log.contains(&private[..20]), "{log}");
}

// A service manager is told, by both kinds of socket.
#[test]
fn service_managers_are_notified() {
    let Some(inside) = Inside::new("service_managers_are_notified") else { return };
    let scratch = Scratch::new();
    let path = scratch.0.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let child = in_foreground(&inside, "wgsd0", |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    let mut buffer = [0; 256];
    let len = manager.recv(&mut buffer).unwrap();
    let said = text(&buffer[..len]);
    assert!(said.starts_with("READY=1\n") && said.contains(&format!("MAINPID={}\n", child.id())), "{said}");
    assert!(inside.sh(&format!("kill {}", child.id())).status.success());
    let len = manager.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..len], b"STOPPING=1\n");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
}

// [F-20]
#[test]
fn f_20_a_log_that_nobody_reads_stops_nothing() {
    let Some(inside) = Inside::new("f_20_a_log_that_nobody_reads_stops_nothing") else { return };
    for closed in [false, true] {
        let mut child = in_foreground(&inside, "wgpipe0", |command| {
            command.env("LOG_LEVEL", "verbose");
        });
        let pipe = child.stderr.take().unwrap();
        let kept = if closed {
            drop(pipe);
            None
        } else {
            // The smallest that there is, so that it is full at once.
            let pipe = OwnedFd::from(pipe);
            // SAFETY: works on a number; the descriptor is open.
            unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
            Some(pipe)
        };
        let busy = "for i in $(seq 200); do ip link set wgpipe0 up; wg set wgpipe0 fwmark $i listen-port 0 || exit 1; \
                    ip link set wgpipe0 down; done";
        let output = inside.sh(busy);
        assert!(output.status.success(), "closed: {closed}: {output:?}");
        let start = Instant::now();
        assert!(inside.sh(&format!("kill {}", child.id())).status.success());
        assert_eq!(child.wait().unwrap().code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(1), "closed: {closed}: took {:?}", start.elapsed());
        drop(kept);
    }
}

#[test]
fn units_are_valid() {
    let verify = Command::new("systemd-analyze").arg("--version").output();
    if skipped("units_are_valid", verify.is_err().then_some("there is no systemd-analyze")) {
        return;
    }
    let scratch = Scratch::new();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/adit@.service");
    // The program and its manual page need not be installed here.
    let unit: String = fs::read_to_string(source)
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with("Documentation="))
        .map(|line| line.replace("/usr/bin/adit", ADIT) + "\n")
        .collect();
    let path = scratch.0.join("adit@wg0.service");
    fs::write(&path, unit).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}
