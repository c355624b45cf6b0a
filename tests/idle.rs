//! An idle daemon sleeps: no tick, no housekeeping, whatever is configured. Counted are the times that any of its
//! threads gave up the processor by itself, which a sleeper that nobody wakes does not.
//!
//! One test after the other: the interfaces and sockets of a test that runs beside would be something to wake up for.

mod testbed;

use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64ct::Encoding as _;
use testbed::{Daemon, Implementation, Keys, Namespace, Pair, PairOptions, SIGTERM, check_idle, random_bytes};

/// Longer than twice KEEPALIVE_TIMEOUT, since a passive keepalive may be followed by another, and than
/// KEEPALIVE_TIMEOUT + REKEY_TIMEOUT with its jitter: no timer that a packet has armed is pending any more, but that
/// which wipes the keys after nine minutes.
const SESSION_SETTLES: Duration = Duration::from_secs(23);

/// What a daemon may take to end when it is asked to.
const END_LIMIT: Duration = Duration::from_secs(5);

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A namespace in which the system sends nothing by itself: its multicasts into a new interface are traffic.
fn silent() -> Namespace {
    let ns = Namespace::new("only");
    ns.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
    ns.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
    ns
}

#[track_caller]
fn check_configured(peers: usize) {
    let _one = one_at_a_time();
    let ns = silent();
    let daemon = Daemon::start(&ns, Implementation::Adit);
    let mut conf = format!("[Interface]\nPrivateKey = {}\nListenPort = 51820\n", Keys::generate().private);
    for n in 0..peers {
        // Any 32 bytes are a public key.
        let key = base64ct::Base64::encode_string(&random_bytes::<32>());
        let (a, b, c) = (n / 62_500, n / 250 % 250, n % 250);
        writeln!(conf, "[Peer]\nPublicKey = {key}\nEndpoint = 127.0.0.1:9\nAllowedIPs = 10.{a}.{b}.{c}/32")
            .expect("writing to a String cannot fail");
    }
    daemon.setconf(&conf);
    daemon.ip("link set DEV up");
    check_idle(&[daemon.pid()]);
}

#[test]
fn no_wake_ups_while_the_interface_is_down() {
    privileged!();
    let _one = one_at_a_time();
    let ns = silent();
    let daemon = Daemon::start(&ns, Implementation::Adit);
    check_idle(&[daemon.pid()]);
}

#[test]
fn no_wake_ups_with_a_hundred_peers() {
    privileged!();
    check_configured(100);
}

#[test]
fn no_wake_ups_with_twenty_thousand_peers() {
    privileged!();
    check_configured(20_000);
}

/// The sockets of all daemons lie in one directory.
#[test]
fn no_wake_ups_while_other_daemons_come_and_go() {
    privileged!();
    let _one = one_at_a_time();
    let ns = silent();
    let daemon = Daemon::start(&ns, Implementation::Adit);
    let stop = AtomicBool::new(false);
    let others = std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            let elsewhere = silent();
            let mut others = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut other = Daemon::start(&elsewhere, Implementation::Adit);
                other.signal(SIGTERM);
                assert!(other.wait(END_LIMIT).is_some_and(|status| status.success()), "it ends by itself");
                others += 1;
            }
            others
        });
        let idle = std::panic::catch_unwind(|| check_idle(&[daemon.pid()]));
        stop.store(true, Ordering::Relaxed);
        let others = others.join().expect("the others came and went");
        idle.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        others
    });
    assert!(others > 1, "{others} others");
}

#[test]
fn no_wake_ups_with_a_session() {
    privileged!("ping");
    let _one = one_at_a_time();
    let pair = Pair::with(PairOptions { wiretap: false, ..PairOptions::default() });
    pair.ping_both_ways();
    std::thread::sleep(SESSION_SETTLES);
    check_idle(&[pair.left.daemon.pid(), pair.right.daemon.pid()]);
    assert!(pair.left.peer(&pair.right).latest_handshake > 0, "the session is still there");
}
