//! An implementation of WireGuard, running in a namespace: adit, or one of those that it must work with.

use std::fmt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::namespace::Namespace;
use super::process::{Process, Scratch, run_to_end, status_field, try_run_to_end};
use super::skip::find_program;
use super::uapi::{Client, answers, socket_path};
use super::{Dump, sys, wait_until};

/// From the start of a daemon until its socket answers.
const START_LIMIT: Duration = Duration::from_secs(20);
/// The longest that any use of `wg` takes.
const WG_LIMIT: Duration = Duration::from_secs(60);
/// How much of a log is printed when a test fails.
const LOG_LINES_MAX: usize = 150;

/// Whose daemon it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implementation {
    /// The program under test: adit, or what `ADIT_TEST_BINARY` names in its place.
    Adit,
    WireguardGo,
    Boringtun,
    Gotatun,
}

impl Implementation {
    /// The program's file.
    pub fn program(self) -> PathBuf {
        if self == Self::Adit {
            let substitute = std::env::var_os("ADIT_TEST_BINARY");
            return substitute.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_adit")), PathBuf::from);
        }
        find_program(self.tool()).unwrap_or_else(|| PathBuf::from(self.tool()))
    }

    /// What a test that uses it must name in `privileged!`.
    pub fn tool(self) -> &'static str {
        match self {
            Self::Adit => "ip",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun-cli",
            Self::Gotatun => "gotatun",
        }
    }

    /// The words and variables that keep it in the foreground and make it tell what it does.
    fn foreground(self, command: &mut Command) {
        match self {
            Self::Adit => command.arg("-f").env("LOG_LEVEL", "debug"),
            Self::WireguardGo => command.arg("-f").env("LOG_LEVEL", "verbose"),
            Self::Boringtun => command.args(["-f", "--disable-drop-privileges", "-v", "info"]),
            Self::Gotatun => command.args(["-f", "--disable-drop-privileges", "-v", "info"]),
        };
    }
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Adit => write!(f, "{}", self.program().display()),
            other => f.write_str(other.tool()),
        }
    }
}

/// An interface name that no other test uses: sockets of all namespaces share one folder.
pub fn unique_interface() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("t{:x}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    assert!(name.len() < libc::IFNAMSIZ, "interface names have at most 15 bytes: {name}");
    name
}

/// A daemon in the foreground and its interface; killed on drop, its socket unlinked.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    implementation: Implementation,
    namespace: Namespace,
    interface: String,
    scratch: Scratch,
}

impl Daemon {
    /// Starts one and waits until it answers.
    #[track_caller]
    pub fn start(namespace: &Namespace, implementation: Implementation) -> Self {
        Self::start_with(namespace, implementation, &unique_interface(), &[])
    }

    /// Starts one with this interface and these environment variables, and waits until it answers.
    #[track_caller]
    pub fn start_with(
        namespace: &Namespace,
        implementation: Implementation,
        interface: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        let mut command = namespace.command(implementation.program());
        implementation.foreground(&mut command);
        command.arg(interface).envs(environment.iter().copied());
        Self::adopt(namespace, implementation, interface, command)
    }

    /// Starts what `command` says, which must serve `interface`, and waits until it answers.
    #[track_caller]
    pub fn adopt(namespace: &Namespace, implementation: Implementation, interface: &str, command: Command) -> Self {
        let scratch = Scratch::new();
        let process = Process::spawn(command, scratch.file("log"));
        let mut daemon =
            Self { process, implementation, namespace: namespace.clone(), interface: interface.to_owned(), scratch };
        wait_until(&format!("{implementation} answers on the socket of {interface}"), START_LIMIT, || {
            assert!(daemon.process.ended().is_none(), "{implementation} ended at once:\n{}", daemon.process.log());
            answers(interface)
        });
        daemon
    }

    /// The interface's name.
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Where it runs.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has printed so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Sends it a signal.
    pub fn signal(&self, number: i32) {
        self.process.signal(number);
    }

    /// Kills it, which gives it no time for anything, and waits until it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Waits for its end, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.process.wait(limit)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.ended().is_none()
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS")
    }

    /// The most that it ever was, in bytes.
    pub fn peak_resident_bytes(&self) -> u64 {
        self.status_bytes("VmHWM")
    }

    fn status_bytes(&self, field: &str) -> u64 {
        let value = status_field(self.pid(), field).expect("the daemon runs");
        1024 * value.trim_end_matches(" kB").trim().parse::<u64>().expect("it is a number of kB")
    }

    /// Processor time used so far, user and system.
    pub fn cpu_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("the daemon runs");
        // The second field is the name in parentheses, which may hold spaces; utime and stime are the 14th and 15th.
        let after_name = stat.rsplit(')').next().expect("split gives at least one part");
        let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|n| n.parse::<u64>().unwrap_or(0)).sum();
        // USER_HZ is 100 on every architecture that Linux still has.
        Duration::from_millis(10 * ticks)
    }

    /// Runs `wg` with these words; fails the test if it fails.
    #[track_caller]
    pub fn wg(&self, words: &[&str]) -> String {
        run_to_end(self.namespace.command("wg").args(words), WG_LIMIT)
    }

    /// `wg show INTERFACE WORDS`.
    #[track_caller]
    pub fn show(&self, words: &str) -> String {
        let words: Vec<&str> = ["show", &self.interface].into_iter().chain(words.split_whitespace()).collect();
        self.wg(&words)
    }

    /// `wg set INTERFACE WORDS`.
    #[track_caller]
    pub fn set(&self, words: &str) {
        let words: Vec<&str> = ["set", &self.interface].into_iter().chain(words.split_whitespace()).collect();
        self.wg(&words);
    }

    /// `wg setconf`: this text becomes the configuration.
    #[track_caller]
    pub fn setconf(&self, text: &str) {
        self.load("setconf", text);
    }

    /// `wg addconf`: this text is added to the configuration.
    #[track_caller]
    pub fn addconf(&self, text: &str) {
        self.load("addconf", text);
    }

    /// `wg syncconf`: as setconf, but only with what differs.
    #[track_caller]
    pub fn syncconf(&self, text: &str) {
        self.load("syncconf", text);
    }

    /// `wg show INTERFACE dump`, parsed.
    #[track_caller]
    pub fn dump(&self) -> Dump {
        Dump::parse(&self.show("dump"))
    }

    /// A connection to its UAPI socket.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::connect(&self.interface)
    }

    /// Runs `ip` with these words, `DEV` standing for the interface.
    #[track_caller]
    pub fn ip(&self, line: &str) -> String {
        self.namespace.ip(&line.replace("DEV", &self.interface))
    }

    /// Writes a file that lives as long as the daemon.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        self.scratch.write(name, text)
    }

    #[track_caller]
    fn load(&self, verb: &str, text: &str) {
        let file = self.file(&format!("{verb}.conf"), text);
        self.wg(&[verb, &self.interface, file.to_str().expect("scratch paths are UTF-8")]);
    }

    /// What helps to understand a failure.
    fn tell(&self) {
        eprintln!("--- {} on {} in {}", self.implementation, self.interface, self.namespace.name());
        for line in [format!("wg show {}", self.interface), "ip -s address".to_owned(), "ip route".to_owned()] {
            let mut command = self.namespace.command("sh");
            match try_run_to_end(command.args(["-c", &format!("exec {line} 2>&1")]), Duration::from_secs(3)) {
                Ok(output) => eprintln!("--- {line}\n{}", String::from_utf8_lossy(&output.stdout)),
                Err(error) => eprintln!("--- {line}: {error}"),
            }
        }
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("--- its log, the last of {} lines", lines.len());
        for line in &lines[lines.len().saturating_sub(LOG_LINES_MAX)..] {
            eprintln!("{line}");
        }
        eprintln!("---");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.tell();
        }
        // SIGKILL: how well it ends by itself is a test of its own.
        self.process.kill();
        let _ = std::fs::remove_file(socket_path(&self.interface));
    }
}
