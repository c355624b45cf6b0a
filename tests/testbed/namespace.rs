//! A network namespace of the test's own, and veth pairs between two of them.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use super::process::{run_to_end, signal, try_run_to_end};
use super::sys;

/// Where `ip netns` keeps its handles.
const NAMESPACES: &str = "/run/netns";
/// Every namespace of the testbed is called `adit-PID-NUMBER-ROLE`.
const PREFIX: &str = "adit-";
/// No administrative command takes longer, also on a busy machine.
const COMMAND_LIMIT: Duration = Duration::from_secs(20);

/// A network namespace; clones are the same one. Deleted, with every process in it, when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Namespace(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    name: String,
}

impl Namespace {
    /// Makes a namespace with its loopback up. `role` becomes part of the name.
    #[track_caller]
    pub fn new(role: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: Once = Once::new();
        /// The first `ip netns add` of a machine makes the folder a mount point, and two at once get in each other's way.
        static ADDING: Mutex<()> = Mutex::new(());
        SWEPT.call_once(sweep);
        let name = format!("{PREFIX}{}-{}-{role}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        {
            let _one = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
            run_to_end(Command::new("ip").args(["netns", "add", &name]), COMMAND_LIMIT);
        }
        let namespace = Self(Arc::new(Handle { name }));
        namespace.ip("link set lo up");
        // Addresses are usable at once, without duplicate address detection.
        namespace.sysctl("net.ipv6.conf.all.accept_dad", "0");
        namespace.sysctl("net.ipv6.conf.default.accept_dad", "0");
        namespace.sysctl("net.ipv6.conf.default.router_solicitations", "0");
        // An address that goes takes no other with it.
        namespace.sysctl("net.ipv4.conf.all.promote_secondaries", "1");
        namespace
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// A command that will run in the namespace, and that dies with the thread that starts it.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", self.name(), "setpriv", "--pdeathsig", "KILL"]).arg(program);
        command
    }

    /// Runs a line of words in the namespace and gives what it printed; fails the test if it fails.
    #[track_caller]
    pub fn run(&self, line: &str) -> String {
        run_to_end(&mut self.words(line), COMMAND_LIMIT)
    }

    /// Runs a line of words in the namespace: what it printed, or what it printed before it failed.
    pub fn try_run(&self, line: &str) -> Result<String, String> {
        let output = try_run_to_end(&mut self.words(line), COMMAND_LIMIT).map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(text) } else { Err(format!("{text}{errors}{}", output.status)) }
    }

    /// Runs a shell script in the namespace and gives what it printed; fails the test if it fails.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        run_to_end(self.command("sh").args(["-euc", script]), COMMAND_LIMIT)
    }

    /// Runs `ip` with these words on the namespace.
    #[track_caller]
    pub fn ip(&self, line: &str) -> String {
        run_to_end(Command::new("ip").args(["-n", self.name()]).args(line.split_whitespace()), COMMAND_LIMIT)
    }

    /// Loads rules of nftables into the namespace; each statement ends with a semicolon or a new line.
    #[track_caller]
    pub fn nft(&self, rules: &str) {
        run_to_end(self.command("nft").arg(rules.replace(';', "\n")), COMMAND_LIMIT);
    }

    /// Sets a kernel parameter of the namespace.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/{}", key.replace('.', "/"));
        let result = self.enter(|| fs::write(&path, value));
        result.unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Calls `f` in a thread that is in the namespace. Sockets that it makes stay there, wherever they are used later.
    #[track_caller]
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let path = Path::new(NAMESPACES).join(self.name());
        let handle = File::open(path).expect("the namespace exists as long as its value");
        let result = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                sys::enter_network_namespace(&handle).expect("root may enter a namespace");
                f()
            });
            thread.join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The processes in the namespace.
    pub fn pids(&self) -> Vec<u32> {
        pids_in(self.name())
    }

    /// Whether it has an interface of this name.
    pub fn has_interface(&self, interface: &str) -> bool {
        self.try_run(&format!("ip link show dev {interface}")).is_ok()
    }

    fn words(&self, line: &str) -> Command {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a command has a first word"));
        command.args(words);
        command
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Joins two namespaces: `a` gets the interface `name_a`, `b` gets `name_b`, both up.
#[track_caller]
pub fn veth(a: &Namespace, name_a: &str, b: &Namespace, name_b: &str) {
    a.ip(&format!("link add {name_a} type veth peer name {name_b} netns {}", b.name()));
    a.ip(&format!("link set {name_a} up"));
    b.ip(&format!("link set {name_b} up"));
}

/// Kills whatever runs in a namespace, and deletes it.
fn remove(name: &str) {
    for pid in pids_in(name) {
        signal(pid, sys::SIGKILL);
    }
    // It may have been deleted by the test itself.
    let _ = try_run_to_end(Command::new("ip").args(["netns", "delete", name]), COMMAND_LIMIT);
}

fn pids_in(name: &str) -> Vec<u32> {
    let output = try_run_to_end(Command::new("ip").args(["netns", "pids", name]), COMMAND_LIMIT);
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Deletes the namespaces of test processes that were killed before they could do it themselves.
fn sweep() {
    for entry in fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| pid.parse::<u32>().is_ok() && !Path::new("/proc").join(pid).exists()) {
            remove(&name);
        }
    }
}
