//! What holds for a daemon after every fault, whatever the fault was.
//!
//! [`Oracle::before`] is taken when all is well, [`Oracle::check`] is asked when the fault has cleared:
//!
//! - both daemons are alive, and answer;
//! - pings pass in both directions within [`RECOVERY_LIMIT`];
//! - what `wg showconf` prints is the same, byte for byte, but for the lines that the test names because it changed them;
//! - as many descriptors and threads as before: nothing leaked, nothing was lost;
//! - memory is within [`GROWTH_MAX`] of what it was.
//!
//! That no plaintext is on the outer wire and no ciphertext on the TUN is looked after by each [`Pair`]'s wiretap. While
//! a fault lasts, [`check_calm`] says that nobody spins.

use std::time::Duration;

use super::daemon::Daemon;
use super::pair::{Node, Pair};
use super::process::status_field;
use super::traffic::ping_with;
use super::{holds_within, wait_until};

/// The promise is that a ping passes 5 s after the fault has cleared; a handshake that was retried just before takes as
/// long and up to a third of a second of jitter, and a busy machine some more.
pub const RECOVERY_LIMIT: Duration = Duration::from_secs(8);
/// What is given back takes a moment: clients' threads end, sockets are closed.
const SETTLE_LIMIT: Duration = Duration::from_secs(20);
/// Resident memory that a daemon may have more after a fault: its pools are made when they are first needed and stay, in
/// all less than this.
pub const GROWTH_MAX: u64 = 48 << 20;
/// While a fault lasts, a daemon with little to do uses at most this share of a processor ...
const CALM_SHARE: f64 = 0.05;
/// ... on average over this time.
const CALM_WATCH: Duration = Duration::from_secs(2);

/// What a daemon has in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InUse {
    pub descriptors: usize,
    pub threads: usize,
}

impl InUse {
    /// What it has in use now.
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the daemon runs").count();
        let threads = status_field(pid, "Threads").and_then(|count| count.parse().ok()).expect("the daemon runs");
        Self { descriptors, threads }
    }
}

/// One daemon when all was well.
#[derive(Debug)]
pub struct Vitals {
    in_use: InUse,
    resident: u64,
    configuration: String,
}

impl Vitals {
    /// Looks at a daemon that is at rest.
    #[track_caller]
    pub fn of(daemon: &Daemon) -> Self {
        let configuration = daemon.wg(&["showconf", daemon.interface()]);
        // The client that asked for the configuration has gone, and its thread goes.
        let mut last = InUse::of(daemon.pid());
        holds_within(SETTLE_LIMIT, || {
            std::thread::sleep(Duration::from_millis(20));
            std::mem::replace(&mut last, InUse::of(daemon.pid())) == InUse::of(daemon.pid())
        });
        Self { in_use: last, resident: daemon.resident_bytes(), configuration }
    }

    /// Fails the test unless the daemon is as it was, but for lines of its configuration that begin with one of `changed`.
    #[track_caller]
    pub fn check(&self, daemon: &mut Daemon, changed: &[&str]) {
        assert!(daemon.is_running(), "the daemon has ended:\n{}", daemon.log());
        let without = |text: &str| -> String {
            let kept = text.lines().filter(|line| !changed.iter().any(|start| line.starts_with(start)));
            kept.map(|line| format!("{line}\n")).collect()
        };
        let now = daemon.wg(&["showconf", daemon.interface()]);
        assert!(without(&now) == without(&self.configuration), "was\n{}is\n{now}", self.configuration);
        let settled = holds_within(SETTLE_LIMIT, || InUse::of(daemon.pid()) == self.in_use);
        assert!(settled, "in use: {:?} before, {:?} now", self.in_use, InUse::of(daemon.pid()));
        let resident = daemon.resident_bytes();
        assert!(resident <= self.resident + GROWTH_MAX, "resident: {} bytes before, {resident} now", self.resident);
    }
}

/// Both ends of a pair when all was well.
#[derive(Debug)]
pub struct Oracle {
    left: Vitals,
    right: Vitals,
}

impl Oracle {
    /// Brings the session up and looks at both ends.
    #[track_caller]
    pub fn before(pair: &Pair) -> Self {
        pair.ping_both_ways();
        Self { left: Vitals::of(&pair.left.daemon), right: Vitals::of(&pair.right.daemon) }
    }

    /// The fault has cleared this moment: all is as before.
    #[track_caller]
    pub fn check(&self, pair: &mut Pair) {
        self.check_but(pair, &[]);
    }

    /// The same, but for lines of either configuration that begin with one of `changed`.
    #[track_caller]
    pub fn check_but(&self, pair: &mut Pair, changed: &[&str]) {
        check_recovery(&pair.left, &pair.right);
        check_recovery(&pair.right, &pair.left);
        self.left.check(&mut pair.left.daemon, changed);
        self.right.check(&mut pair.right.daemon, changed);
    }
}

/// A ping from one end to the other passes within [`RECOVERY_LIMIT`].
#[track_caller]
pub fn check_recovery(from: &Node, to: &Node) {
    wait_until(&format!("a ping from {} passes", from.ns.name()), RECOVERY_LIMIT, || {
        ping_with(&from.ns, &format!("-c 1 -W 0.3 {}", to.inner_v4)).received == 1
    });
}

/// Fails the test if a daemon, which has little to do while a fault lasts, uses more than 5 % of a processor.
#[track_caller]
pub fn check_calm(daemon: &Daemon) {
    let before = daemon.cpu_time();
    std::thread::sleep(CALM_WATCH);
    let used = daemon.cpu_time() - before;
    assert!(used < CALM_WATCH.mul_f64(CALM_SHARE), "{used:?} of {CALM_WATCH:?} on the processor");
}
