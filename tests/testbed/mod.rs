//! The testbed: networks made of namespaces, with real daemons, real `wg` and real traffic in them.
//!
//! A privileged test target says `mod testbed;` and begins each test with [`privileged!`]. Then it makes
//! [`Namespace`]s, joins them with [`veth`]s, starts a [`Daemon`] in each (or takes the usual two ends as a
//! [`Pair`]) and looks at what happens from outside: through `wg`, `ping`, sockets of its own and captures.
//!
//! - Every test makes what it uses. Names carry the process id and a number, so that tests run in parallel threads
//!   and processes; nothing of the machine's own network is used or changed.
//! - Everything is given back on drop, also after a panic: processes killed, sockets unlinked, namespaces deleted.
//!   What a killed test run left behind, the next one sweeps up.
//! - Nothing sleeps for luck: [`wait_until`] polls with a deadline, and says what it waited for.
//! - When a test fails, each daemon's `wg show`, links and log are printed under it.
//! - A test that cannot run says so through [`skip`]; it never passes in silence.
//!
//! | module | what it holds |
//! |---|---|
//! | `namespace` | a network namespace, a veth pair between two |
//! | `daemon` | an implementation of WireGuard, running: adit or another |
//! | `pair` | the usual two ends with a tunnel between them, and the wiretap on it |
//! | `keys` | key pairs |
//! | `dump` | `wg show … dump`, parsed |
//! | `uapi` | a raw client of the UAPI socket |
//! | `capture` | tcpdump, and the packets that it saw |
//! | `traffic` | ping, iperf3, a checked TCP transfer |
//! | `load` | traffic in the background, floods, paced traffic that is counted |
//! | `numbered` | payloads that show whether they were lost, reordered, repeated or altered |
//! | `oracle` | what holds after every fault |
//! | `scripted` | a peer that the test plays itself |
//! | `sidecar` | `adit proxy`, running as a user without privileges, and clients of its proxies |
//! | `services` | what is behind a peer: HTTP, DNS, an echo |
//! | `edges` | interfaces and sockets in memory, with something of the test's around them |
//! | `process` | commands with a deadline, daemons killed on drop, `/proc` |
//! | `skip` | what was skipped, and why |
//! | `sys` | the system calls that std lacks |
#![allow(dead_code, unused_imports, unreachable_pub, reason = "each test target uses another part of the testbed")]

mod capture;
mod daemon;
mod dump;
mod edges;
mod keys;
mod load;
mod namespace;
mod numbered;
mod oracle;
mod pair;
mod process;
mod scripted;
mod services;
mod sidecar;
mod skip;
mod sys;
mod traffic;
mod uapi;

use std::time::{Duration, Instant};

pub use capture::{Capture, Frame};
pub use daemon::{Daemon, Implementation, unique_interface};
pub use dump::{Dump, DumpedPeer};
pub use edges::{Hooked, Hooks};
pub use keys::{Keys, random_bytes, random_key};
pub use load::{Pace, SetOnDrop, Strangers, TcpCounters, TcpLoad, UdpFlood, paced, udp_socket};
pub use namespace::{Namespace, veth};
pub use numbered::{Ledger, NUMBERED_LEN_MIN, read_numbered, write_numbered};
pub use oracle::{GROWTH_MAX, InUse, Oracle, RECOVERY_LIMIT, Vitals, check_calm, check_recovery};
pub use pair::{Initiator, Node, Outer, Pair, PairOptions};
pub use process::{Process, Scratch, check_idle, example, run_to_end, signal, status_field, try_run_to_end};
pub use scripted::{Heard, ScriptedPeer, ScriptedSocket, echo_reply, echo_request, forged_initiation};
pub use services::{NAME as SERVICE_NAME, Services, dns_address, dns_question};
pub use sidecar::{
    Destination, FOLDER, Sidecar, SocksUdp, connect, folder_of_user, http_get, listens, socks_connect, unprivileged,
};
pub use skip::{missing, name_of, skip};
pub use sys::{SIGHUP, SIGINT, SIGKILL, SIGTERM, interrupt_by_sigusr1, interrupt_thread, raise_open_files, refuse_udp};
pub use traffic::{Iperf, Ping, iperf, listen, ping, ping_with, transfer};
pub use uapi::{Client, answers, socket_path};

/// Begins a privileged test: skips it, in words, unless it runs as root and has every tool that it names
/// (`wg`, `ip` and `setpriv` are always needed).
#[macro_export]
macro_rules! privileged {
    ($($tool:literal),* $(,)?) => {
        if let Some(reason) = $crate::testbed::missing(&["wg", "ip", "setpriv", $($tool),*]) {
            $crate::testbed::skip($crate::testbed::name_of(&|| ()), &reason);
            return;
        }
    };
}

/// How often [`wait_until`] looks.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Waits until `holds` says so; fails with `what` when `limit` has passed.
#[track_caller]
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    assert!(holds_within(limit, &mut holds), "not within {limit:?}: {what}");
}

/// Whether `holds` says so within `limit`.
pub fn holds_within(limit: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if holds() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
