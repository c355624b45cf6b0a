//! What the UAPI tests share: a device that only remembers, a server for it, a client, and a way to
//! run a test in a process of its own.
#![allow(dead_code, unreachable_pub, reason = "each test target uses its part")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use adit::device::config::{AllowedIp, ApplyError, Configure, PeerSnapshot, PeerUpdate, Snapshot, Update};
use adit::key::{PresharedKey, PrivateKey, PublicKey};
use adit::uapi::{Ended, Listener, Server, serve};

/// Implements the semantics of a set in the simplest way.
#[derive(Default)]
pub struct FakeDevice {
    state: Mutex<State>,
    /// Sets that were applied, or refused by the device.
    pub applied: AtomicUsize,
    /// While set, `apply` waits.
    pub held: (Mutex<bool>, Condvar),
    /// While set, a `listen_port` or `fwmark` in a set is refused.
    pub refuses: AtomicBool,
    /// While set, `apply` panics.
    pub panics: AtomicBool,
}

#[derive(Default)]
struct State {
    private_key: Option<PrivateKey>,
    listen_port: u16,
    fwmark: u32,
    added: u64,
    peers: BTreeMap<u64, PeerSnapshot>,
    by_key: HashMap<PublicKey, u64>,
    owners: HashMap<AllowedIp, u64>,
}

impl FakeDevice {
    pub fn hold(&self, held: bool) {
        *self.held.0.lock().unwrap() = held;
        self.held.1.notify_all();
    }

    /// What only traffic changes.
    pub fn touch(&self, change: impl Fn(&mut PeerSnapshot)) {
        self.state.lock().unwrap().peers.values_mut().for_each(change);
    }
}

impl Configure for FakeDevice {
    fn apply(&self, update: Update) -> Result<(), ApplyError> {
        self.applied.fetch_add(1, Ordering::SeqCst);
        assert!(!self.panics.load(Ordering::SeqCst), "asked to panic");
        drop(self.held.1.wait_while(self.held.0.lock().unwrap(), |held| *held).unwrap());
        let refused = || std::io::Error::from_raw_os_error(libc::EACCES);
        if self.refuses.load(Ordering::SeqCst) {
            if update.listen_port.is_some() {
                return Err(ApplyError::ListenPort(refused()));
            }
            if update.fwmark.is_some() {
                return Err(ApplyError::Fwmark(refused()));
            }
            return Err(ApplyError::Other(refused()));
        }
        self.state.lock().unwrap().apply(update);
        Ok(())
    }

    fn snapshot(&self) -> Snapshot {
        let state = self.state.lock().unwrap();
        Snapshot {
            private_key: state.private_key.clone(),
            listen_port: state.listen_port,
            fwmark: state.fwmark,
            peers: state.peers.values().cloned().collect(),
        }
    }
}

impl State {
    fn apply(&mut self, update: Update) {
        if let Some(private_key) = update.private_key {
            self.private_key = private_key;
            if let Some(own) = self.own_key() {
                self.remove(&own);
            }
        }
        self.listen_port = update.listen_port.unwrap_or(self.listen_port);
        self.fwmark = update.fwmark.unwrap_or(self.fwmark);
        if update.replace_peers {
            let named: HashSet<_> = update.peers.iter().map(|peer| peer.public_key).collect();
            let others: Vec<_> = self.by_key.keys().filter(|key| !named.contains(key)).copied().collect();
            others.iter().for_each(|key| self.remove(key));
        }
        let own = self.own_key();
        for peer in update.peers {
            if Some(peer.public_key) != own {
                self.apply_peer(peer);
            }
        }
    }

    fn own_key(&self) -> Option<PublicKey> {
        self.private_key.as_ref().map(PrivateKey::public_key)
    }

    fn apply_peer(&mut self, update: PeerUpdate) {
        if update.remove {
            return self.remove(&update.public_key);
        }
        let id = match self.by_key.get(&update.public_key) {
            Some(&id) => id,
            None if update.update_only => return,
            None => self.add(update.public_key),
        };
        let peer = self.peers.get_mut(&id).unwrap();
        peer.preshared_key = update.preshared_key.unwrap_or(peer.preshared_key.clone());
        peer.endpoint = update.endpoint.or(peer.endpoint);
        peer.persistent_keepalive = update.persistent_keepalive.unwrap_or(peer.persistent_keepalive);
        if update.replace_allowed_ips {
            for allowed_ip in peer.allowed_ips.drain(..) {
                self.owners.remove(&allowed_ip);
            }
        }
        for change in update.allowed_ips {
            let allowed_ip = change.allowed_ip;
            let owner = self.owners.get(&allowed_ip).copied();
            if let Some(owner) = owner
                && (!change.remove || owner == id)
            {
                self.peers.get_mut(&owner).unwrap().allowed_ips.retain(|it| *it != allowed_ip);
                self.owners.remove(&allowed_ip);
            }
            if !change.remove {
                self.peers.get_mut(&id).unwrap().allowed_ips.push(allowed_ip);
                self.owners.insert(allowed_ip, id);
            }
        }
    }

    fn add(&mut self, public_key: PublicKey) -> u64 {
        self.added += 1;
        let peer = PeerSnapshot {
            public_key,
            preshared_key: PresharedKey::default(),
            endpoint: None,
            last_handshake: None,
            rx_bytes: 0,
            tx_bytes: 0,
            persistent_keepalive: 0,
            allowed_ips: Vec::new(),
        };
        self.peers.insert(self.added, peer);
        self.by_key.insert(public_key, self.added);
        self.added
    }

    fn remove(&mut self, key: &PublicKey) {
        let Some(id) = self.by_key.remove(key) else { return };
        for allowed_ip in self.peers.remove(&id).unwrap().allowed_ips {
            self.owners.remove(&allowed_ip);
        }
    }
}

/// A fake device that is served on a socket in a directory of its own.
pub struct Served {
    pub device: Arc<FakeDevice>,
    pub path: PathBuf,
    pub ended: Receiver<Ended>,
    pub server: Option<Server>,
    directory: PathBuf,
}

impl Served {
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("adit-uapi-test-{}-{count}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        Self::at(Listener::bind(&directory, "wg0").unwrap(), directory)
    }

    pub fn at(listener: Listener, directory: PathBuf) -> Self {
        let device = Arc::new(FakeDevice::default());
        let path = listener.path().to_owned();
        let (sender, ended) = mpsc::channel();
        let server = serve(listener, device.clone(), move |why| sender.send(why).unwrap()).unwrap();
        Self { device, path, ended, server: Some(server), directory }
    }

    pub fn connect(&self) -> UnixStream {
        connect(&self.path)
    }

    /// Sends, says that nothing more comes, and reads to the end.
    pub fn ask(&self, request: impl AsRef<[u8]>) -> String {
        ask(&self.path, request)
    }

    pub fn get(&self) -> String {
        self.ask("get=1\n\n")
    }

    pub fn set(&self, body: &str) -> String {
        self.ask(format!("set=1\n{body}\n"))
    }

    pub fn stop(&mut self) {
        self.server.take().unwrap().stop();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.device.hold(false);
        drop(self.server.take());
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// More than any answer takes, so that a test that would hang fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn connect(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub fn ask(path: &Path, request: impl AsRef<[u8]>) -> String {
    let mut stream = connect(path);
    // The server may close before it has everything.
    let _ = stream.write_all(request.as_ref());
    let _ = stream.shutdown(Shutdown::Write);
    read_to_end(stream)
}

pub fn read_to_end(mut stream: UnixStream) -> String {
    let mut reply = Vec::new();
    if let Err(error) = stream.read_to_end(&mut reply) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    String::from_utf8(reply).unwrap()
}

/// Reads one reply: up to the first empty line.
pub fn read_reply(stream: &mut UnixStream) -> String {
    let mut reply = Vec::new();
    let mut byte = [0];
    while !reply.ends_with(b"\n\n") {
        stream.read_exact(&mut byte).unwrap();
        reply.push(byte[0]);
    }
    String::from_utf8(reply).unwrap()
}

/// Runs the rest of the test `name` in a process of its own that `shell` prepares and then `exec`s.
/// True in that process; in the first one, false, after the other has succeeded.
pub fn alone(name: &str, shell: &str) -> bool {
    const MARK: &str = "ADIT_TEST_ALONE";
    if std::env::var(MARK).is_ok_and(|marked| marked == name) {
        return true;
    }
    let status = Command::new("sh")
        .args(["-c", &format!("{shell}\nexec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, name)
        .status()
        .unwrap();
    assert!(status.success(), "{name} alone: {status}");
    false
}

/// The number behind `field` in /proc/self/status.
pub fn own_status(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A request as vectors/uapi_wireguard_go.txt writes it, in full.
pub fn expand(request: &str) -> String {
    let mut request = request.replace("\\n", "\n").replace("{0}", &"0".repeat(64));
    for (name, byte) in [("A", "aa"), ("B", "bb"), ("K", "c0")] {
        let key = byte.repeat(32);
        request =
            request.replace(&format!("{{{name}}}"), &key).replace(&format!("{{{name}:upper}}"), &key.to_uppercase());
    }
    request
}
