//! What the daemon and the sidecar can still do once they serve, as the kernel tells it. What the sandbox refuses is tried
//! beside its code, in `src/cli/sandbox/tests.rs`.

mod testbed;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use testbed::{Daemon, Implementation, Namespace, SIGTERM, Sidecar, unique_interface};

/// CAP_NET_BIND_SERVICE and CAP_NET_ADMIN.
const CAPABILITIES_NEEDED: u64 = 1 << 10 | 1 << 12;
/// Any end.
const END_LIMIT: Duration = Duration::from_secs(10);
/// SECCOMP_MODE_FILTER.
const FILTERED: &str = "2";

/// A file that a sidecar starts with; nobody is there to speak to.
const SIDECAR: &str = "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nAddress = 10.9.0.2/32\n\
    [Peer]\nPublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nEndpoint = 127.0.0.1:9\nAllowedIPs = 10.9.0.1/32\n\
    [Socks5]\nBindAddress = 127.0.0.1:1080\n";

/// What `/proc` says of each thread of a process.
fn threads(pid: u32) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
    let status = |task: PathBuf| fs::read_to_string(task.join("status")).ok();
    tasks.filter_map(|task| status(task.expect("a thread").path())).collect()
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value.unwrap_or_else(|| panic!("no {name} in:\n{status}")).trim()
}

#[track_caller]
fn check_threads(pid: u32, no_new_privileges: &str, filter: &str) {
    let threads = threads(pid);
    assert!(threads.len() >= 3, "workers, control, the log: {}", threads.len());
    for status in threads {
        assert_eq!(field(&status, "NoNewPrivs"), no_new_privileges, "{status}");
        assert_eq!(field(&status, "Seccomp"), filter, "{status}");
    }
}

/// [S-52] No thread of the daemon, begun before or after, has more than it needs; and it ends as ever.
#[test]
fn s_52_each_thread_of_the_daemon_is_in_the_sandbox() {
    privileged!();
    let ns = Namespace::new("only");
    let mut daemon = Daemon::start(&ns, Implementation::Adit);
    daemon.ip("link set DEV up");
    // A client's thread, too.
    let _client = daemon.client();
    check_threads(daemon.pid(), "1", FILTERED);
    for status in threads(daemon.pid()) {
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb", "CapBnd"] {
            let held = u64::from_str_radix(field(&status, set), 16).expect("in hexadecimal");
            assert_eq!(held & !CAPABILITIES_NEEDED, 0, "{set} of a thread:\n{status}");
        }
    }
    for line in ["Sandbox: files are restricted", "Sandbox: system calls are restricted"] {
        assert!(daemon.log().contains(line), "{line}");
    }
    daemon.signal(SIGTERM);
    assert_eq!(daemon.wait(END_LIMIT).and_then(|status| status.code()), Some(0));
    assert!(!testbed::socket_path(daemon.interface()).exists(), "it may still remove its socket");
}

/// [S-52] Also behind a start in the background, where the process that hands over must still execute a program.
#[test]
fn s_52_a_daemon_in_the_background_is_in_the_sandbox() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    let program = Implementation::Adit.program();
    ns.run(&format!("{} {interface}", program.display()));
    let is_daemon = |pid: &u32| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program);
    let pids: Vec<u32> = ns.pids().into_iter().filter(is_daemon).collect();
    assert_eq!(pids.len(), 1, "one daemon");
    check_threads(pids[0], "1", FILTERED);
    ns.ip(&format!("link delete {interface}"));
}

/// [S-52] The switch that is documented works, and only as documented.
#[test]
fn s_52_the_sandbox_can_be_turned_off() {
    privileged!();
    let ns = Namespace::new("only");
    let daemon = Daemon::start_with(&ns, Implementation::Adit, &unique_interface(), &[("ADIT_SANDBOX", "off")]);
    check_threads(daemon.pid(), "0", "0");
    assert!(!daemon.log().contains("Sandbox"), "{}", daemon.log());
    let mut command = ns.command(Implementation::Adit.program());
    command.args(["-f", "none"]).env("ADIT_SANDBOX", "0");
    let output = command.output().expect("it starts");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("ADIT_SANDBOX=\"0\" cannot be used: give on or off, or unset it"), "{text}");
}

/// [S-52] The sidecar, which has no capability to begin with.
#[test]
fn s_52_each_thread_of_the_sidecar_is_in_the_sandbox() {
    privileged!();
    let ns = Namespace::new("only");
    let sidecar = Sidecar::start(&ns, SIDECAR, "127.0.0.1:1080");
    check_threads(sidecar.pid(), "1", FILTERED);
}
