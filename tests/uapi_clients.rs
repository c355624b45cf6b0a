//! The clients of the UAPI must not notice a difference: wg(8), wireguard-control and defguard_wireguard_rs configure
//! and read a device that only remembers, and wireguard-go is asked what adit's tests take for its replies.
//!
//! The clients look only in /var/run/wireguard, so each test runs in a mount namespace with an empty /var/run of its
//! own. Without root, or without the program, a test says SKIPPED and why.
#![cfg(feature = "device")]
#![allow(clippy::unwrap_used, reason = "a test may")]

mod uapi_support;

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use adit::key::{PresharedKey, PrivateKey, PublicKey};
use adit::uapi::{Listener, socket};
use uapi_support::{Served, alone};

const NAME: &str = "adituapi0";
const ISOLATE: &str = "mount -t tmpfs tmpfs \"$(readlink -f /var/run)\" || exit 1";

fn skipped(test: &str, reason: &str) -> bool {
    println!("SKIPPED: {test}: {reason}");
    false
}

/// Whether `program` can be run at all.
fn have(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Whether this is the process, in namespaces of its own, in which the rest of the test is to run.
fn isolated(test: &str) -> bool {
    if std::env::var("ADIT_TEST_ALONE").is_ok_and(|name| name == test) {
        return true;
    }
    let may = Command::new("unshare").args(["-m", "-n", "true"]).stderr(Stdio::null()).status();
    if !may.is_ok_and(|status| status.success()) {
        return skipped(test, "making namespaces needs root");
    }
    alone(test, &format!("exec unshare -m -n sh -c '{ISOLATE}; exec \"$0\" \"$@\"' \"$0\" \"$@\""))
}

fn served() -> Served {
    let listener = Listener::bind(socket::DIRECTORY, NAME).unwrap();
    Served::at(listener, std::env::temp_dir().join(format!("adit-uapi-clients-{}", std::process::id())))
}

fn wg(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("wg")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Runs `wg`, which must succeed without a complaint, and returns what it prints.
fn wg_ok(arguments: &[&str], input: &str) -> String {
    let output = wg(arguments, input);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaint.is_empty(), "wg {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

fn private() -> PrivateKey {
    PrivateKey::from_bytes([0x48; 32])
}

fn peer(byte: u8) -> PublicKey {
    PrivateKey::from_bytes([byte; 32]).public_key()
}

/// [UAPI] wg set, setconf, addconf, syncconf, show, showconf.
#[test]
fn wg_configures_and_shows() {
    if !have("wg") {
        skipped("wg_configures_and_shows", "wg is not installed");
        return;
    }
    if !isolated("wg_configures_and_shows") {
        return;
    }
    let served = served();
    let preshared = PresharedKey::from_bytes([7; 32]);
    let (one, two) = (peer(1).to_string(), peer(2).to_string());
    let config = format!(
        "[Interface]\nListenPort = 51820\nFwMark = 0xca6c\nPrivateKey = {}\n\n\
         [Peer]\nPublicKey = {one}\nPresharedKey = {}\nAllowedIPs = 10.0.0.0/24, fd00::/64\n\
         Endpoint = 192.0.2.1:51820\nPersistentKeepalive = 25\n\n\
         [Peer]\nPublicKey = {two}\nAllowedIPs = 10.0.1.0/24\nEndpoint = [fe80::1%lo]:51820\n",
        private().to_base64().as_str(),
        preshared.to_base64().as_str(),
    );
    wg_ok(&["setconf", NAME, "/dev/stdin"], &config);
    assert_eq!(wg_ok(&["showconf", NAME], "").trim(), config.trim());
    assert_eq!(wg_ok(&["show", "interfaces"], "").trim(), NAME);
    assert_eq!(wg_ok(&["show", NAME, "fwmark"], "").trim(), "0xca6c");
    assert_eq!(wg_ok(&["show", NAME, "public-key"], "").trim(), private().public_key().to_string());

    let dump = wg_ok(&["show", NAME, "dump"], "");
    wg_ok(&["syncconf", NAME, "/dev/stdin"], &config);
    wg_ok(&["addconf", NAME, "/dev/stdin"], &config);
    assert_eq!(wg_ok(&["show", NAME, "dump"], ""), dump);

    served.device.touch(|peer| {
        peer.last_handshake = Some(Duration::from_secs(1_700_000_000));
        peer.rx_bytes = 1024;
        peer.tx_bytes = u64::MAX;
    });
    assert!(wg_ok(&["show", NAME, "latest-handshakes"], "").contains("\t1700000000\n"));
    assert!(wg_ok(&["show", NAME, "transfer"], "").contains("\t1024\t18446744073709551615\n"));

    wg_ok(&["set", NAME, "peer", &two, "allowed-ips", "10.0.0.0/24,::/0", "persistent-keepalive", "off"], "");
    assert_eq!(wg_ok(&["show", NAME, "allowed-ips"], ""), format!("{one}\tfd00::/64\n{two}\t10.0.0.0/24 ::/0\n"));
    wg_ok(&["set", NAME, "fwmark", "0", "peer", &one, "remove"], "");
    assert_eq!(wg_ok(&["show", NAME, "peers"], "").trim(), two);
    wg_ok(&["setconf", NAME, "/dev/stdin"], "[Interface]\n");
    assert_eq!(wg_ok(&["show", NAME, "dump"], "").trim(), "(none)\t(none)\t0\toff");
}

/// [UAPI] wg prints the error that the number stands for.
#[test]
fn wg_reports_errors() {
    if !have("wg") {
        skipped("wg_reports_errors", "wg is not installed");
        return;
    }
    if !isolated("wg_reports_errors") {
        return;
    }
    let served = served();
    served.device.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
    let output = wg(&["set", NAME, "listen-port", "1"], "");
    assert!(!output.status.success());
    let complaint = String::from_utf8(output.stderr).unwrap();
    assert!(complaint.contains("Address already in use"), "{complaint}");
}

/// [UAPI] `wg` takes a configuration as large as it can be asked for.
#[test]
fn wg_takes_ten_thousand_peers() {
    if !have("wg") {
        skipped("wg_takes_ten_thousand_peers", "wg is not installed");
        return;
    }
    if !isolated("wg_takes_ten_thousand_peers") {
        return;
    }
    let _served = served();
    let config: String = (0..10_000_u32)
        .map(|index| {
            let mut bytes = [9; 32];
            bytes[..4].copy_from_slice(&index.to_le_bytes());
            let [_, b, c, d] = index.to_be_bytes();
            format!("[Peer]\nPublicKey = {}\nAllowedIPs = 10.{b}.{c}.{d}/32\n\n", PublicKey::from_bytes(bytes))
        })
        .collect();
    wg_ok(&["setconf", NAME, "/dev/stdin"], &format!("[Interface]\n\n{config}"));
    assert_eq!(wg_ok(&["showconf", NAME], "").trim(), format!("[Interface]\n\n{config}").trim());
}

#[test]
fn wireguard_control_configures_and_reads() {
    use wireguard_control::{Backend, Device, DeviceUpdate, Key, PeerConfigBuilder};
    if !isolated("wireguard_control_configures_and_reads") {
        return;
    }
    let served = served();
    let name = NAME.parse().unwrap();
    let (one, two) = (Key(*peer(1).as_bytes()), Key(*peer(2).as_bytes()));
    let endpoint: SocketAddr = "192.0.2.1:51820".parse().unwrap();
    DeviceUpdate::new()
        .set_private_key(Key(*private().as_bytes()))
        .set_listen_port(51820)
        .set_fwmark(7)
        .replace_peers()
        .add_peer(
            PeerConfigBuilder::new(&one)
                .set_preshared_key(Key([7; 32]))
                .set_endpoint(endpoint)
                .set_persistent_keepalive_interval(25)
                .replace_allowed_ips()
                .add_allowed_ip("10.0.0.0".parse().unwrap(), 24)
                .add_allowed_ip("fd00::".parse().unwrap(), 64),
        )
        .add_peer(PeerConfigBuilder::new(&two).set_endpoint("[2001:db8::1]:1".parse().unwrap()))
        .apply(&name, Backend::Userspace)
        .unwrap();
    served.device.touch(|peer| peer.last_handshake = Some(Duration::new(1_700_000_000, 5)));
    let device = Device::get(&name, Backend::Userspace).unwrap();
    assert_eq!(device.public_key.unwrap().as_bytes(), private().public_key().as_bytes());
    assert_eq!((device.listen_port, device.fwmark), (Some(51820), Some(7)));
    let [first, second] = &device.peers[..] else { panic!("{:?}", device.peers) };
    assert_eq!((&first.config.public_key, &second.config.public_key), (&one, &two));
    assert_eq!(first.config.preshared_key.as_ref().unwrap().as_bytes(), [7; 32]);
    assert_eq!(first.config.endpoint, Some(endpoint));
    assert_eq!(first.config.persistent_keepalive_interval, Some(25));
    assert_eq!(format!("{:?}", first.config.allowed_ips), "[10.0.0.0/24, fd00::/64]");
    assert!(first.stats.last_handshake_time.is_some());
    DeviceUpdate::new().remove_peer_by_key(&one).apply(&name, Backend::Userspace).unwrap();
    let device = Device::get(&name, Backend::Userspace).unwrap();
    assert_eq!(device.peers.len(), 1);
    served.device.refuses.store(true, std::sync::atomic::Ordering::SeqCst);
    assert!(DeviceUpdate::new().set_listen_port(1).apply(&name, Backend::Userspace).is_err());
    served.device.refuses.store(false, std::sync::atomic::Ordering::SeqCst);
    // This is how it deletes an interface.
    device.delete().unwrap();
    assert!(matches!(served.ended.recv_timeout(Duration::from_secs(1)), Ok(adit::uapi::Ended::Removed)));
}

#[test]
fn defguard_configures_and_reads() {
    use defguard_wireguard_rs::{
        Userspace, WGApi, WireguardInterfaceApi, host::Host, key::Key, net::IpAddrMask, peer::Peer,
    };
    if !isolated("defguard_configures_and_reads") {
        return;
    }
    let served = served();
    let api = WGApi::<Userspace>::new(NAME).unwrap();
    let mut host = Host::new(51820, Key::new(*private().as_bytes()));
    host.fwmark = Some(7);
    let mut one = Peer::new(Key::new(*peer(1).as_bytes()));
    one.preshared_key = Some(Key::new([7; 32]));
    one.endpoint = Some("192.0.2.1:51820".parse().unwrap());
    one.persistent_keepalive_interval = Some(25);
    one.allowed_ips = vec![IpAddrMask::new(IpAddr::from([10, 0, 0, 0]), 24)];
    host.peers.insert(one.public_key.clone(), one.clone());
    api.write_host(&host).unwrap();
    api.configure_peer(&Peer::new(Key::new(*peer(2).as_bytes()))).unwrap();

    let read = api.read_interface_data().unwrap();
    assert_eq!((read.listen_port, read.fwmark, read.peers.len()), (51820, Some(7), 2));
    let mut read_one = read.peers[&one.public_key].clone();
    assert_eq!(read_one.protocol_version.take(), Some(1));
    read_one.last_handshake = None;
    assert!(read_one == one, "{read_one:?}");

    api.remove_peer(&one.public_key).unwrap();
    assert_eq!(api.read_interface_data().unwrap().peers.len(), 1);
    // This is how it deletes an interface.
    api.remove_interface().unwrap_or_else(|error| println!("beyond the socket: {error}"));
    assert!(matches!(served.ended.recv_timeout(Duration::from_secs(1)), Ok(adit::uapi::Ended::Removed)));
}

/// The record in vectors/ is what wireguard-go says, where the version that it names is installed.
#[test]
fn the_record_is_what_wireguard_go_says() {
    const TEST: &str = "the_record_is_what_wireguard_go_says";
    let record = include_str!("../vectors/uapi_wireguard_go.txt");
    let version =
        Command::new("wireguard-go").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    let version = String::from_utf8(version).unwrap();
    let version = version.split_ascii_whitespace().nth(1).unwrap_or("none").trim_start_matches('v').to_owned();
    if !record.lines().next().unwrap().contains(&format!("wireguard-go {version} ")) {
        skipped(TEST, &format!("the record is of another wireguard-go than the installed one ({version})"));
        return;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        skipped(TEST, "there is no /dev/net/tun");
        return;
    }
    if !isolated(TEST) {
        return;
    }
    let mut daemon =
        Command::new("wireguard-go").args(["-f", NAME]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let path = std::path::Path::new(socket::DIRECTORY).join(format!("{NAME}.sock"));
    let deadline = Instant::now() + Duration::from_secs(10);
    while std::os::unix::net::UnixStream::connect(&path).is_err() {
        assert!(Instant::now() < deadline, "wireguard-go does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let different: Vec<_> = record
        .lines()
        .filter(|row| !row.starts_with('#'))
        .filter(|row| {
            let mut columns = row.splitn(3, '\t');
            let expected = format!("errno={}\n\n", columns.next().unwrap());
            let request = uapi_support::expand(columns.nth(1).unwrap());
            uapi_support::ask(&path, format!("set=1\n{request}\n")) != expected
        })
        .collect();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(different.is_empty(), "{different:#?}");
}
