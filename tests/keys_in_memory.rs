//! How long a key is in the daemon's memory: while it is of use, and not a moment after it was replaced, removed or has
//! expired. Searched for as root can, in the memory of the running process and in a core dump that the kernel writes.
//!
//! The test knows each key: it is the peer, and it wrote the configuration. A key that is in force must be found, so that
//! the search is known to find. What a handshake leaves on stacks is looked for more closely in `tests/key_residue.rs`.

mod testbed;

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use adit::key::{PresharedKey, PrivateKey, PublicKey};
use base64ct::{Base64, Encoding as _};
use testbed::{Daemon, Heard, Implementation, Keys, Namespace, Scratch, ScriptedSocket, echo_reply, echo_request};
use testbed::{random_key, signal, unique_interface, wait_until};
use x25519_dalek::{PublicKey as Point, StaticSecret};

/// Workers let go of a keypair when they are done with the packets in hand.
const GONE_LIMIT: Duration = Duration::from_secs(20);
/// Any answer of the daemon's, and its end.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// Memory is looked through in pieces of this size, each overlapping the next by a key.
const PIECE: usize = 1 << 20;
const ATTEMPTS_MAX: u32 = 10;
const PORT: u16 = 51820;
const DEVICE: Ipv4Addr = Ipv4Addr::new(192, 168, 241, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 168, 241, 2);

/// A secret by its name.
type Secret = (String, [u8; 32]);

/// How often each secret occurs. Compares the 30 bytes in the middle: clamping changes the first and the last.
fn count(secrets: &[Secret], bytes: &[u8], counts: &mut [usize]) {
    // Two bytes tell nearly always.
    let mut may_match = vec![false; 1 << 16];
    let pair = |bytes: &[u8]| usize::from(u16::from_le_bytes([bytes[1], bytes[2]]));
    secrets.iter().for_each(|(_, secret)| may_match[pair(secret)] = true);
    for window in bytes.windows(32).filter(|window| may_match[pair(window)]) {
        for (count, (_, secret)) in counts.iter_mut().zip(secrets) {
            *count += usize::from(window[1..31] == secret[1..31]);
        }
    }
}

fn counted(secrets: &[Secret], file: &File, range: std::ops::Range<u64>, counts: &mut [usize]) {
    let mut piece = vec![0; PIECE];
    let mut at = range.start;
    while at < range.end {
        let want = PIECE.min((range.end - at) as usize);
        let len = file.read_at(&mut piece[..want], at).unwrap_or(0);
        count(secrets, &piece[..len], counts);
        if len < want || at + len as u64 >= range.end {
            break;
        }
        at += len as u64 - 31;
    }
}

/// How often each secret is in the writable memory of a process.
fn in_memory(pid: u32, secrets: &[Secret]) -> Vec<usize> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("the process runs");
    let memory = File::open(format!("/proc/{pid}/mem")).expect("root may read it");
    let mut counts = vec![0; secrets.len()];
    for line in maps.lines().filter(|line| line.split(' ').nth(1).is_some_and(|mode| mode.starts_with("rw"))) {
        let (start, end) = line.split(' ').next().and_then(|range| range.split_once('-')).expect("a range");
        let address = |text| u64::from_str_radix(text, 16).expect("in hexadecimal");
        counted(secrets, &memory, address(start)..address(end), &mut counts);
    }
    counts
}

/// The same in a file.
fn in_file(path: &Path, secrets: &[Secret]) -> Vec<usize> {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let len = file.metadata().expect("it is open").len();
    let mut counts = vec![0; secrets.len()];
    counted(secrets, &file, 0..len, &mut counts);
    counts
}

fn bytes_of(base64: &str) -> [u8; 32] {
    Base64::decode_vec(base64).expect("a key").try_into().expect("of 32 bytes")
}

/// A daemon whose only peer is the test.
struct Scene {
    daemon: Daemon,
    peer: ScriptedSocket,
    keys: Keys,
    peer_keys: Keys,
    preshared: String,
    ns: Namespace,
}

impl Scene {
    fn new(daemon: Daemon, ns: Namespace) -> Self {
        let (keys, peer_keys, preshared) = (Keys::generate(), Keys::generate(), random_key());
        daemon.ip(&format!("address add {DEVICE}/24 dev DEV"));
        daemon.ip("link set DEV up");
        let endpoint = (Ipv4Addr::LOCALHOST, PORT).into();
        let peer = ScriptedSocket::new(&ns, private(&peer_keys), public(&keys), endpoint);
        let mut scene = Self { daemon, peer, keys, peer_keys, preshared, ns };
        scene.configure();
        scene
    }

    /// Has the daemon take the keys of the scene, and its peer know them.
    fn configure(&mut self) {
        let Self { keys, peer_keys, preshared, .. } = self;
        self.daemon.setconf(&format!(
            "[Interface]\nPrivateKey = {}\nListenPort = {PORT}\n\
             [Peer]\nPublicKey = {}\nPresharedKey = {preshared}\nAllowedIPs = {PEER}/32\n",
            keys.private, peer_keys.public
        ));
        self.peer.peer.set_preshared_key(PresharedKey::from_bytes(bytes_of(preshared)));
    }

    /// A handshake, and a packet there and back on its session.
    fn session(&mut self) {
        self.peer.connect(ATTEMPTS_MAX);
        self.peer.send_packet(&echo_request(PEER, DEVICE, 7));
        let end = Instant::now() + ANSWER_LIMIT;
        loop {
            match self.peer.receive(end) {
                Some(Heard::Data(packet)) if echo_reply(&packet) == Some(7) => return,
                Some(_) => {}
                None => panic!("no answer through the session"),
            }
        }
    }

    /// The keys of the session of this number, counted from 0.
    fn session_keys(&self, number: usize) -> [Secret; 2] {
        let [receiving, sending] = self.peer.peer.session_keys()[number];
        [(format!("session {number}, receiving"), receiving), (format!("session {number}, sending"), sending)]
    }

    /// What the configuration holds, and what is computed of it ahead of handshakes.
    fn configured(&self) -> [Secret; 3] {
        let private = StaticSecret::from(bytes_of(&self.keys.private));
        let shared = private.diffie_hellman(&Point::from(bytes_of(&self.peer_keys.public)));
        [
            ("the private key".to_owned(), bytes_of(&self.keys.private)),
            ("the preshared key".to_owned(), bytes_of(&self.preshared)),
            ("the static keys' shared secret".to_owned(), *shared.as_bytes()),
        ]
    }

    #[track_caller]
    fn check_present(&self, when: &str, secrets: &[Secret]) {
        for ((name, _), count) in secrets.iter().zip(in_memory(self.daemon.pid(), secrets)) {
            assert!(count > 0, "{when}: {name} is not found: is the search right?");
        }
    }

    #[track_caller]
    fn check_absent(&self, when: &str, secrets: &[Secret]) {
        let mut counts = Vec::new();
        let deadline = Instant::now() + GONE_LIMIT;
        while counts.iter().any(|count| *count > 0) || counts.is_empty() {
            assert!(Instant::now() < deadline, "{when}: {:?}: still there {counts:?} times", names(secrets));
            counts = in_memory(self.daemon.pid(), secrets);
        }
    }
}

fn names(secrets: &[Secret]) -> Vec<&str> {
    secrets.iter().map(|(name, _)| name.as_str()).collect()
}

fn private(keys: &Keys) -> PrivateKey {
    PrivateKey::from_base64(&keys.private).expect("it was generated")
}

fn public(keys: &Keys) -> PublicKey {
    PublicKey::from_base64(&keys.public).expect("it was generated")
}

/// A command for a daemon that may leave a core in `folder`.
fn with_cores(ns: &Namespace, folder: &Path, interface: &str, dumpable: bool) -> std::process::Command {
    let mut command = ns.command("sh");
    let program = Implementation::Adit.program();
    command.args(["-c", "ulimit -c unlimited; exec \"$0\" -f \"$1\""]).arg(program).arg(interface);
    // In the sandbox no file is made, not even by the kernel for a core.
    command.env("LOG_LEVEL", "debug").env("ADIT_SANDBOX", "off").current_dir(folder);
    if dumpable {
        command.env("ADIT_DUMPABLE", "1");
    }
    command
}

/// Has the kernel write a core dump of the daemon, and gives it.
fn core_of(mut daemon: Daemon, folder: &Path) -> Option<PathBuf> {
    // The signal that an abort would send; the daemon has no handler for it.
    assert!(signal(daemon.pid(), libc::SIGABRT));
    let status = daemon.wait(ANSWER_LIMIT).expect("it dies");
    let entries = fs::read_dir(folder).expect("the scratch folder").flatten();
    let core = entries
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains("core")));
    let is_dumped = std::os::unix::process::ExitStatusExt::core_dumped(&status);
    assert_eq!(core.is_some(), is_dumped, "{status}: the kernel says so, and there is one");
    core
}

/// Whether the kernel writes cores into the folder of the process, and not to another program.
fn writes_cores() -> bool {
    let pattern = fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    !pattern.starts_with(['|', '/', '@']) && pattern.contains("core")
}

/// [S-51] [S-12] Each kind of key, replaced, removed, or expired by the link that goes down, in the memory of the daemon after
/// traffic; and in a core of it at the end.
#[test]
fn s_51_keys_that_are_gone_are_not_in_the_daemons_memory_or_core() {
    privileged!();
    if !writes_cores() {
        testbed::skip(testbed::name_of(&|| ()), "the kernel hands cores to another program (core_pattern)");
        return;
    }
    let ns = Namespace::new("only");
    let (scratch, interface) = (Scratch::new(), unique_interface());
    let command = with_cores(&ns, scratch.path(), &interface, true);
    let mut scene = Scene::new(Daemon::adopt(&ns, Implementation::Adit, &interface, command), ns.clone());
    let mut gone: Vec<Secret> = Vec::new();

    // Replaced by a third session: until then the one before it may still be received on.
    (0..3).for_each(|_| scene.session());
    scene.check_present("in force", &[&scene.configured()[..], &scene.session_keys(2)].concat());
    gone.extend(scene.session_keys(0));
    scene.check_absent("after two more sessions", &gone);

    // Another preshared key, then another private key; each is used in a handshake.
    let [_, preshared, _] = scene.configured();
    scene.preshared = random_key();
    scene.configure();
    gone.push(preshared);
    scene.check_absent("another preshared key", &gone);
    scene.session();
    scene.check_absent("another preshared key, in use", &gone);
    scene.check_present("in force", &scene.configured());
    let [private_key, _, shared] = scene.configured();
    scene.keys = Keys::generate();
    scene.configure();
    gone.extend([private_key, shared]);
    scene.check_absent("another private key", &gone);
    let endpoint = (Ipv4Addr::LOCALHOST, PORT).into();
    gone.extend((0..scene.peer.peer.session_count()).flat_map(|number| scene.session_keys(number)));
    scene.peer = ScriptedSocket::new(&scene.ns, private(&scene.peer_keys), public(&scene.keys), endpoint);
    scene.configure();
    (0..3).for_each(|_| scene.session());
    scene.check_present("in force", &[&scene.configured()[..], &scene.session_keys(2)].concat());
    gone.extend(scene.session_keys(0));
    scene.check_absent("sessions of the private key before", &gone);

    // The link goes down: no session is left. What was configured is.
    gone.extend((1..3).flat_map(|number| scene.session_keys(number)));
    scene.daemon.ip("link set DEV down");
    scene.check_absent("the link is down", &gone);
    scene.check_present("the link is down", &scene.configured()[..2]);
    scene.daemon.ip("link set DEV up");
    wait_until("the port is bound", ANSWER_LIMIT, || scene.daemon.dump().listen_port == PORT);
    scene.session();
    scene.check_present("the link is up again", &scene.session_keys(3));

    // The peer is removed, with all that it had; then the private key.
    let [private_key, preshared, shared] = scene.configured();
    gone.extend([preshared, shared]);
    gone.extend(scene.session_keys(3));
    scene.daemon.set(&format!("peer {} remove", scene.peer_keys.public));
    scene.check_absent("the peer was removed", &gone);
    scene.check_present("the peer was removed", std::slice::from_ref(&private_key));
    scene.daemon.set("private-key /dev/null");
    gone.push(private_key);
    scene.check_absent("the private key was removed", &gone);

    // All this once more in a core; in which new keys are the proof of the search.
    (scene.keys, scene.preshared) = (Keys::generate(), random_key());
    scene.configure();
    let present = scene.configured();
    let core = core_of(scene.daemon, scratch.path()).expect("a daemon that may be dumped leaves a core");
    let counts = in_file(&core, &gone);
    assert!(counts.iter().all(|count| *count == 0), "in the core: {:?}: {counts:?} times", names(&gone));
    assert!(in_file(&core, &present[..2]).iter().all(|count| *count > 0), "what is in force is in the core");
}

/// [S-51] By default there is no core, whatever the limits allow; and one that root makes all the same has no key in it,
/// since all memory is left out.
#[test]
fn s_51_by_default_nothing_can_be_dumped() {
    privileged!();
    let ns = Namespace::new("only");
    let (scratch, interface) = (Scratch::new(), unique_interface());
    let command = with_cores(&ns, scratch.path(), &interface, false);
    let mut scene = Scene::new(Daemon::adopt(&ns, Implementation::Adit, &interface, command), ns.clone());
    scene.session();
    let secrets = [&scene.configured()[..], &scene.session_keys(0)].concat();
    scene.check_present("in force", &secrets);
    let filter = fs::read_to_string(format!("/proc/{}/coredump_filter", scene.daemon.pid())).expect("it runs");
    assert_eq!(u32::from_str_radix(filter.trim(), 16), Ok(0), "no mapping is dumped");
    assert_eq!(core_of(scene.daemon, scratch.path()), None);
}
