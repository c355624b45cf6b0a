//! The edge towards the system: real TUN interfaces, in network namespaces that each test makes for itself.
//!
//! Needs root, `ip`, `unshare` and `nsenter`; prints `SKIPPED:` and returns without.
#![cfg(feature = "device")]
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Read;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use adit::tun::linux::{LinuxTun, OpenError};
use adit::tun::{ReceiveError, Tun, TunEvent, TunEvents, TunQueue};

/// How long anything may take that should happen at once.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `test` on a thread with a network namespace of its own, if that can be had.
fn in_namespace(name: &str, test: fn()) {
    let run = move || {
        // SAFETY: takes its argument by value, and concerns this thread only.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return false;
        }
        test();
        true
    };
    match thread::Builder::new().name(name.to_owned()).spawn(run).unwrap().join() {
        Ok(true) => {}
        Ok(false) => println!("SKIPPED: {name}: needs root to make a network namespace"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn sh(command: &str) {
    let status = Command::new("sh").args(["-ec", command]).status().unwrap();
    assert!(status.success(), "{command}");
}

/// A network namespace kept alive by a process.
struct Namespace(Child);

impl Namespace {
    fn new() -> Self {
        let child =
            Command::new("unshare").args(["-n", "sh", "-c", "echo; exec sleep 60"]).stdout(Stdio::piped()).spawn();
        let mut child = child.unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self(child)
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    fn sh(&self, command: &str) {
        sh(&format!("nsenter -t {} -n sh -ec '{command}'", self.id()));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The next event but for changes of routes, which come with everything.
fn next(events: &mut dyn TunEvents) -> TunEvent {
    let start = Instant::now();
    loop {
        match events.next().unwrap() {
            Some(TunEvent::Routes) => {}
            Some(event) => return event,
            None => thread::sleep(Duration::from_millis(5)),
        }
        assert!(start.elapsed() < PATIENCE, "no event");
    }
}

/// A change of routes, and then nothing for a while.
fn routes_change(events: &mut dyn TunEvents) {
    assert_eq!(events.next().unwrap(), Some(TunEvent::Routes));
    thread::sleep(Duration::from_millis(300));
    while let Some(event) = events.next().unwrap() {
        assert_eq!(event, TunEvent::Routes);
    }
}

fn receive(queue: &mut dyn TunQueue) -> Result<Option<Vec<u8>>, ReceiveError> {
    let mut buffer = vec![0; 65_535];
    Ok(queue.receive(&mut buffer)?.map(|packet| packet.bytes().to_vec()))
}

fn is_gone(queue: &mut dyn TunQueue) {
    let start = Instant::now();
    while !matches!(receive(queue), Err(ReceiveError::Gone(_))) {
        assert!(start.elapsed() < PATIENCE, "still there");
    }
}

#[test]
fn follows_the_interface() {
    in_namespace("follows_the_interface", || {
        let mut tun = LinuxTun::create("wg%d").unwrap();
        assert_eq!((tun.name().as_str(), tun.mtu()), ("wg0", 1420));
        let mut queue = tun.queues().unwrap().remove(0);
        let mut events = tun.events().unwrap();
        assert_eq!(next(&mut *events), TunEvent::Mtu(1420));
        assert_eq!(next(&mut *events), TunEvent::Down);
        assert_eq!(events.next().unwrap(), None);
        assert!(receive(&mut *queue).unwrap().is_none());

        sh("ip link set wg0 up");
        assert_eq!(next(&mut *events), TunEvent::Up);
        sh("ip link set wg0 mtu 1280");
        assert_eq!(next(&mut *events), TunEvent::Mtu(1280));
        sh("ip link set wg0 down; ip link set wg0 up");
        assert_eq!(next(&mut *events), TunEvent::Down);
        assert_eq!(next(&mut *events), TunEvent::Up);
        while events.next().unwrap().is_some() {}

        let (v4, v6) = ([10, 0, 0, 1].into(), "fd00::1".parse().unwrap());
        assert_eq!(events.address(v4), Some([192, 0, 0, 8].into()));
        sh("ip addr add 10.0.0.1/24 dev wg0; ip addr add fd00::1/64 dev wg0 nodad");
        assert_eq!(events.address(v4), Some(v4));
        assert_eq!(events.address(v6), Some(v6));
        routes_change(&mut *events);
        sh("ip route add 10.1.0.0/16 dev wg0");
        routes_change(&mut *events);

        sh("ip link set wg0 down; ip link set wg0 name other");
        assert_eq!(next(&mut *events), TunEvent::Down);
        assert_eq!(tun.name(), "other");
        sh("ip link set other mtu 1300");
        assert_eq!(next(&mut *events), TunEvent::Mtu(1300));

        sh("ip link del other");
        assert_eq!(next(&mut *events), TunEvent::Deleted);
        assert_eq!(events.next().unwrap(), None);
        is_gone(&mut *queue);
        assert_eq!(LinuxTun::create("other").unwrap().name(), "other");
    });
}

#[test]
fn follows_it_from_namespace_to_namespace() {
    in_namespace("follows_it_from_namespace_to_namespace", || {
        let (one, two) = (Namespace::new(), Namespace::new());
        // Indices differ from namespace to namespace, and are taken.
        one.sh("ip link add va type veth peer name vb; ip link add vc type veth peer name vd");
        let mut tun = LinuxTun::create("wg0").unwrap();
        let mut queue = tun.queues().unwrap().remove(0);
        let mut events = tun.events().unwrap();
        assert_eq!(next(&mut *events), TunEvent::Mtu(1420));
        assert_eq!(next(&mut *events), TunEvent::Down);
        sh("ip link set wg0 up");
        assert_eq!(next(&mut *events), TunEvent::Up);

        for (space, last) in [(&one, 1), (&two, 2)] {
            let from = if last == 1 { "" } else { &format!("nsenter -t {} -n ", one.id()) };
            sh(&format!("{from} ip link set wg0 netns {}", space.id()));
            assert_eq!(next(&mut *events), TunEvent::Down, "moved to {last}");
            space.sh(&format!("ip addr add 10.0.0.{last}/24 dev wg0; ip link set wg0 mtu 13{last}0 up"));
            assert_eq!(next(&mut *events), TunEvent::Mtu(1300 + last * 10));
            assert_eq!(next(&mut *events), TunEvent::Up);
            assert_eq!(events.address([1, 1, 1, 1].into()), Some(IpAddr::from([10, 0, 0, last as u8])));
            space.sh("ip link set wg0 down; ip link set wg0 name wg9; ip link set wg9 up; ip link set wg9 down");
            for event in [TunEvent::Down, TunEvent::Up, TunEvent::Down] {
                assert_eq!(next(&mut *events), event);
            }
            assert_eq!(tun.name(), "wg9");
            space.sh("ip link set wg9 name wg0; ip link set wg0 up");
            assert_eq!(next(&mut *events), TunEvent::Up);
        }

        // SAFETY: getpid and gettid only return numbers.
        let home = unsafe { format!("/proc/{}/task/{}/ns/net", libc::getpid(), libc::gettid()) };
        two.sh(&format!("ip link set wg0 netns {home}"));
        assert_eq!(next(&mut *events), TunEvent::Down);
        sh("ip link set wg0 up");
        assert_eq!(next(&mut *events), TunEvent::Up);

        sh(&format!("ip link set wg0 netns {}", one.id()));
        assert_eq!(next(&mut *events), TunEvent::Down);
        one.sh("ip link del wg0");
        assert_eq!(next(&mut *events), TunEvent::Deleted);
        is_gone(&mut *queue);
    });
}

#[test]
fn ends_with_its_namespace() {
    in_namespace("ends_with_its_namespace", || {
        let one = Namespace::new();
        let mut tun = LinuxTun::create("wg0").unwrap();
        let mut queue = tun.queues().unwrap().remove(0);
        let mut events = tun.events().unwrap();
        sh(&format!("ip link set wg0 netns {}", one.id()));
        one.sh("ip link set wg0 up");
        while next(&mut *events) != TunEvent::Up {}
        drop(one);
        is_gone(&mut *queue);
        println!("event: {:?}", events.next());
    });
}

#[test]
fn a_descriptor_is_handed_over() {
    in_namespace("a_descriptor_is_handed_over", || {
        let one = Namespace::new();
        let first = LinuxTun::create("wg0").unwrap();
        let fd = first.fd().try_clone_to_owned().unwrap();
        drop(first);
        sh(&format!("ip link set wg0 netns {}", one.id()));
        one.sh("ip link set wg0 mtu 1333 up");
        let mut tun = LinuxTun::from_fd(fd).unwrap();
        assert_eq!((tun.name().as_str(), tun.mtu()), ("wg0", 1333));
        let mut events = tun.events().unwrap();
        assert_eq!(next(&mut *events), TunEvent::Mtu(1333));
        assert_eq!(next(&mut *events), TunEvent::Up);
        let null = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(LinuxTun::from_fd(null.into()), Err(OpenError::NotTun(_))));
    });
}

#[test]
fn refusals_have_names() {
    in_namespace("refusals_have_names", || {
        let _first = LinuxTun::create("wg0").unwrap();
        sh("ip link add veth0 type veth peer name veth1");
        for name in ["wg0", "veth0", "lo"] {
            assert!(matches!(LinuxTun::create(name), Err(OpenError::NameTaken(_))), "{name}");
        }
        assert!(matches!(LinuxTun::create("sixteen-bytes-ab"), Err(OpenError::InvalidName(_))));
        // SAFETY: takes its arguments by value; the system call itself concerns this thread only.
        unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
        let error = LinuxTun::create("wg1").unwrap_err();
        assert!(matches!(error, OpenError::NotPermitted(_)), "{error:?}");
        assert!(!error.to_string().contains('\n'));
    });
}
