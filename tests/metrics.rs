//! Metrics, probes and logs for programs: the text that the library writes, and what the daemon shows of itself over HTTP
//! and in its log.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod openmetrics;
mod testbed;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use adit::device::Figures;
use adit::device::config::{AllowedIp, PeerSnapshot, Snapshot};
use adit::key::{PresharedKey, PrivateKey, PublicKey};
use adit::metrics::{Exposition, Family, Kind};
use adit::proto::rejected::Rejected;
use openmetrics::Metrics;
use testbed::{
    Daemon, Implementation, Keys, Namespace, Pair, SIGTERM, check_idle, forged_initiation, unique_interface, wait_until,
};

/// What an answer over loopback may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 9586;
const ENDPOINT: &str = "127.0.0.1:9586";

// --- The text --------------------------------------------------------------------------------

fn peer(n: u8) -> PeerSnapshot {
    PeerSnapshot {
        public_key: PublicKey::from_bytes([n; 32]),
        preshared_key: PresharedKey::from_bytes([0xee; 32]),
        endpoint: Some(([192, 0, 2, n], 51820).into()),
        last_handshake: (n > 1).then(|| Duration::new(1_700_000_000, 999_999_999)),
        rx_bytes: u64::MAX,
        tx_bytes: 1 << 53,
        persistent_keepalive: 25,
        allowed_ips: vec![
            AllowedIp { address: [10, 0, 0, n].into(), prefix_len: 32 },
            AllowedIp { address: "fd00::".parse().unwrap(), prefix_len: 64 },
        ],
    }
}

fn snapshot(peers: impl IntoIterator<Item = PeerSnapshot>) -> Snapshot {
    let private_key = Some(PrivateKey::from_bytes([0xdd; 32]));
    Snapshot { private_key, listen_port: 51820, peers: peers.into_iter().collect(), ..Snapshot::default() }
}

#[test]
fn a_text_by_the_rules() {
    let mut figures = Figures::default();
    figures.drops[Rejected::BadTag.index()] = 7;
    figures.sessions = 1;
    figures.staged_bytes = 1500;
    let families = [
        Family {
            name: "adit_service_connections",
            help: "Connections accepted",
            unit: None,
            kind: Kind::Counter,
            samples: vec![(vec![("service", "socks5".into())], 3), (vec![("service", "h\\\"t\nt".into())], 4)],
        },
        Family {
            name: "adit_netstack_memory",
            help: "Memory",
            unit: Some("bytes"),
            kind: Kind::Gauge,
            samples: vec![(vec![], 9)],
        },
    ];
    let interface = "w\"g\\0";
    let text = String::from(Exposition::new(interface, &snapshot([peer(1), peer(2)]), figures).with(families));
    let metrics = Metrics::parse(&text);

    let one = peer(1).public_key.to_string();
    let one = [("interface", interface), ("public_key", &*one), ("allowed_ips", "10.0.0.1/32,fd00::/64")];
    assert_eq!(metrics.value("wireguard_sent_bytes_total", &one), (1_u64 << 53) as f64);
    assert_eq!(metrics.value("wireguard_received_bytes_total", &one), u64::MAX as f64);
    assert_eq!(metrics.value("wireguard_latest_handshake_seconds", &one), 0.0);
    let two = peer(2).public_key.to_string();
    assert_eq!(metrics.value("wireguard_latest_handshake_seconds", &[("public_key", &two)]), 1.7e9);

    let drops = &metrics.samples["adit_drops_total"];
    assert_eq!(drops.len(), Rejected::COUNT);
    let bad_tag = [("interface", interface), ("fault", "unauthentic"), ("reason", "bad_tag")];
    assert_eq!(metrics.value("adit_drops_total", &bad_tag), 7.0);
    assert_eq!(metrics.value("adit_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(metrics.value("adit_sessions", &[("interface", interface)]), 1.0);
    assert_eq!(metrics.value("adit_staged_bytes", &[]), 1500.0);
    assert_eq!(metrics.value("adit_service_connections_total", &[("service", "socks5")]), 3.0);
    assert_eq!(metrics.value("adit_service_connections_total", &[("service", "h\\\"t\nt")]), 4.0);
    assert_eq!(metrics.value("adit_netstack_memory_bytes", &[("interface", interface)]), 9.0);
}

#[test]
fn no_secret_and_no_address_of_a_peer() {
    let text = String::from(Exposition::new("wg0", &snapshot([peer(1)]), Figures::default()));
    let secrets = [
        PrivateKey::from_bytes([0xdd; 32]).to_base64().to_string(),
        PrivateKey::from_bytes([0xdd; 32]).to_hex().to_string(),
        PresharedKey::from_bytes([0xee; 32]).to_base64().to_string(),
        PresharedKey::from_bytes([0xee; 32]).to_hex().to_string(),
        "192.0.2.1".to_owned(),
    ];
    for secret in secrets {
        assert!(!text.contains(&secret), "{secret} in\n{text}");
    }
}

#[test]
fn a_device_without_peers_and_one_with_many() {
    Metrics::parse(&String::from(Exposition::new("wg0", &snapshot([]), Figures::default())));
    let many = (0..20_000_u32).map(|n| {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_le_bytes());
        PeerSnapshot { public_key: PublicKey::from_bytes(key), ..peer(1) }
    });
    let metrics = Metrics::parse(&String::from(Exposition::new("wg0", &snapshot(many), Figures::default())));
    assert_eq!(metrics.samples["wireguard_sent_bytes_total"].len(), 20_000);
}

/// `docs/metrics.md` names every metric, and none that there is not.
#[test]
fn the_document_is_complete() {
    let document = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let text = String::from(Exposition::new("wg0", &snapshot([peer(1)]), Figures::default()));
    let shown: BTreeSet<String> = Metrics::parse(&text).samples.into_keys().collect();
    let named = |prefix: &str| {
        let rows = document.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        rows.filter(|(name, _)| name.starts_with(prefix)).map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
    };
    let listed: BTreeSet<String> = named("wireguard_").into_iter().chain(named("adit_")).collect();
    let of_device = |name: &&String| !name.starts_with("adit_service_") && !name.starts_with("adit_netstack_");
    assert_eq!(listed.iter().filter(of_device).collect::<Vec<_>>(), shown.iter().collect::<Vec<_>>());
    for reason in Rejected::ALL {
        assert!(document.contains(&format!("`{}`", reason.name())), "{} is not explained", reason.name());
    }
}

// --- The daemon ------------------------------------------------------------------------------

/// Asks the daemon in `ns`: the status, the head, and the body with its pieces joined.
#[track_caller]
fn get(ns: &Namespace, path: &str) -> (u16, String, String) {
    let answer = ns.enter(|| {
        let mut stream = TcpStream::connect(ENDPOINT).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") { joined(body) } else { body.to_owned() };
    (status, head.to_owned(), body)
}

fn joined(mut pieces: &str) -> String {
    let mut body = String::new();
    loop {
        let (len, rest) = pieces.split_once("\r\n").unwrap();
        let len = usize::from_str_radix(len, 16).unwrap();
        if len == 0 {
            return body;
        }
        body += &rest[..len];
        pieces = rest[len..].strip_prefix("\r\n").unwrap();
    }
}

#[track_caller]
fn scrape(ns: &Namespace) -> Metrics {
    let (status, head, body) = get(ns, "/metrics");
    assert_eq!(status, 200, "{head}");
    assert!(head.contains("application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    Metrics::parse(&body)
}

fn start(ns: &Namespace) -> Daemon {
    Daemon::start_with(ns, Implementation::Adit, &unique_interface(), &[("ADIT_METRICS", ENDPOINT)])
}

#[test]
fn a_daemon_is_scraped() {
    privileged!();
    let ns = Namespace::new("only");
    let mut daemon = start(&ns);
    let (key, other) = (Keys::generate(), Keys::generate());
    daemon.setconf(&format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.0.0.2/32\n",
        key.private, other.public
    ));
    let interface = [("interface", daemon.interface())];
    let metrics = scrape(&ns);
    let labels = [("interface", daemon.interface()), ("public_key", &other.public), ("allowed_ips", "10.0.0.2/32")];
    assert_eq!(metrics.value("wireguard_sent_bytes_total", &labels), 0.0);
    assert_eq!(metrics.value("wireguard_latest_handshake_seconds", &labels), 0.0);
    assert_eq!(metrics.value("adit_udp_bound", &interface), 0.0);
    assert_eq!(metrics.value("adit_mtu_bytes", &interface), 1420.0);

    daemon.ip("link set DEV up");
    wait_until("the port is bound", PATIENCE, || scrape(&ns).value("adit_udp_bound", &interface) == 1.0);
    for path in ["/livez", "/readyz"] {
        let (status, _, body) = get(&ns, path);
        assert_eq!((status, body.as_str()), (200, "ok\n"), "{path}");
    }
    assert_eq!(get(&ns, "/").0, 404);
    let (_, _, body) = get(&ns, "/metrics");
    assert!(!body.contains(&key.private) && !body.contains(&key.private_hex()));

    daemon.signal(SIGTERM);
    assert!(daemon.wait(PATIENCE).is_some_and(|status| status.success()));
}

#[test]
fn traffic_and_drops_are_counted() {
    privileged!("ping");
    let pair = Pair::new();
    pair.ping_both_ways();
    // A daemon with metrics beside the pair's left one would be another device: so the left one's are read by wg,
    // and those of a third, that joins them, over HTTP.
    let ns = pair.join("third", 3);
    let daemon = start(&ns);
    let key = Keys::generate();
    daemon.setconf(&format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.9.9.0/24\nEndpoint = {}\n\
         PersistentKeepalive = 1\n",
        key.private,
        pair.left.keys.public,
        pair.left_endpoint_from(3)
    ));
    pair.left.daemon.set(&format!("peer {} allowed-ips 10.9.9.3/32", key.public));
    daemon.ip("link set DEV up");
    let peer = [("public_key", pair.left.keys.public.as_str())];
    wait_until("a handshake is shown", PATIENCE, || {
        scrape(&ns).value("wireguard_latest_handshake_seconds", &peer) > 1.7e9
    });
    let metrics = scrape(&ns);
    assert!(metrics.value("wireguard_sent_bytes_total", &peer) >= 148.0);
    assert!(metrics.value("wireguard_received_bytes_total", &peer) >= 92.0);
    assert_eq!(metrics.value("adit_sessions", &[]), 1.0);
    assert!(metrics.value("adit_receiver_indices", &[]) >= 1.0);

    // What is no message at all is counted by that name.
    let port = daemon.dump().listen_port;
    let malformed = [("reason", "malformed_message"), ("fault", "malformed")];
    assert_eq!(metrics.value("adit_drops_total", &malformed), 0.0);
    ns.enter(|| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..3 {
            socket.send_to(b"garbage", ("127.0.0.1", port)).unwrap();
        }
    });
    wait_until("drops are counted", PATIENCE, || scrape(&ns).value("adit_drops_total", &malformed) == 3.0);
}

/// Datagrams that the kernel has dropped at the sockets of this port, by a filter or for want of room.
fn kept_out(ns: &Namespace, port: u16) -> u64 {
    let text = ns.shell("cat /proc/net/udp /proc/net/udp6");
    let bound = format!(":{port:04X}");
    let sockets =
        text.lines().filter(|line| line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&bound)));
    sockets.map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap()).sum()
}

/// [S-03] A wrong mac1 does not get as far as the daemon: whatever the port, the family and the key that holds now. It is
/// counted all the same, and a right one gets through.
#[test]
fn s_03_the_kernel_drops_a_wrong_mac1() {
    privileged!();
    let ns = Namespace::new("only");
    let (mut keys, bad) = (Keys::generate(), ("reason", "bad_mac1"));
    let bad_mac1 = || scrape(&ns).value("adit_drops_total", &[bad]) as u64;
    let bad_tag = || scrape(&ns).value("adit_drops_total", &[("reason", "bad_tag")]) as u64;
    let send = |to: &Keys, port: u16| {
        let message = forged_initiation(&PublicKey::from_base64(&to.public).unwrap());
        ns.enter(|| {
            for address in ["127.0.0.1", "::1"] {
                let any = if address == "::1" { "[::]:0" } else { "0.0.0.0:0" };
                std::net::UdpSocket::bind(any).unwrap().send_to(&message, (address, port)).unwrap();
            }
        });
    };
    // What gets through is nobody's, which a tag says.
    let check_key = |keys: &Keys, stranger: &Keys, port: u16, threads: u64| {
        let (dropped, opened, kept) = (bad_mac1(), bad_tag(), kept_out(&ns, port));
        send(stranger, port);
        send(keys, port);
        wait_until("the right ones are opened", PATIENCE, || bad_tag() == opened + 2);
        assert_eq!(bad_mac1(), dropped + 2, "port {port}, {threads} threads");
        assert_eq!(kept_out(&ns, port), kept + 2, "port {port}, {threads} threads");
    };
    for threads in [1, 3] {
        let variables = [("ADIT_METRICS", ENDPOINT), ("ADIT_THREADS", &threads.to_string())];
        let daemon = Daemon::start_with(&ns, Implementation::Adit, &unique_interface(), &variables);
        let log = daemon.log();
        if let Some(line) = log.lines().find(|line| line.contains("The kernel does not check mac1")) {
            return testbed::skip("s_03_the_kernel_drops_a_wrong_mac1", line);
        }
        daemon.setconf(&format!("[Interface]\nPrivateKey = {}\nListenPort = 40001\n", keys.private));
        daemon.ip("link set DEV up");
        check_key(&keys, &Keys::generate(), 40_001, threads);
        daemon.set("listen-port 40002");
        check_key(&keys, &Keys::generate(), 40_002, threads);
        let before = std::mem::replace(&mut keys, Keys::generate());
        daemon.setconf(&format!("[Interface]\nPrivateKey = {}\nListenPort = 40002\n", keys.private));
        check_key(&keys, &before, 40_002, threads);
        // Without a key there is nothing to check.
        let kept = kept_out(&ns, 40_002);
        daemon.setconf("[Interface]\nListenPort = 40002\n");
        send(&keys, 40_002);
        let no_key = [("reason", "no_private_key")];
        wait_until("they get through", PATIENCE, || scrape(&ns).value("adit_drops_total", &no_key) == 2.0);
        assert_eq!(kept_out(&ns, 40_002), kept);
    }
}

/// What the kernel does not drop, the daemon does.
#[test]
fn s_03_without_the_filter_a_wrong_mac1_is_dropped_all_the_same() {
    privileged!();
    let ns = Namespace::new("only");
    let variables = [("ADIT_METRICS", ENDPOINT), ("ADIT_MAC1_FILTER", "off")];
    let daemon = Daemon::start_with(&ns, Implementation::Adit, &unique_interface(), &variables);
    daemon.setconf(&format!("[Interface]\nPrivateKey = {}\nListenPort = 40001\n", Keys::generate().private));
    daemon.ip("link set DEV up");
    let message = forged_initiation(&PublicKey::from_bytes([9; 32]));
    ns.enter(|| std::net::UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&message, "127.0.0.1:40001").unwrap());
    wait_until("it is counted", PATIENCE, || scrape(&ns).value("adit_drops_total", &[("reason", "bad_mac1")]) == 1.0);
    assert_eq!(kept_out(&ns, 40_001), 0);
}

#[test]
fn many_peers_are_scraped_while_the_daemon_is_configured() {
    privileged!();
    let ns = Namespace::new("only");
    let daemon = start(&ns);
    let mut conf = format!("[Interface]\nPrivateKey = {}\n", Keys::generate().private);
    for n in 0..10_000 {
        let (a, b) = (n / 250, n % 250);
        conf += &format!("[Peer]\nPublicKey = {}\nAllowedIPs = 10.{a}.{b}.0/24\n", testbed::random_key());
    }
    daemon.setconf(&conf);
    let begun = Instant::now();
    let metrics = scrape(&ns);
    println!("a scrape of 10,000 peers took {:?}", begun.elapsed());
    assert_eq!(metrics.samples["wireguard_sent_bytes_total"].len(), 10_000);
    assert_eq!(metrics.value("adit_peers", &[]), 10_000.0);
    // Nobody reads: the device does not wait for that.
    let _held = ns.enter(|| {
        let mut stream = TcpStream::connect(ENDPOINT).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream
    });
    let begun = Instant::now();
    daemon.set("fwmark 1");
    assert_eq!(daemon.dump().peers.len(), 10_000);
    assert_eq!(get(&ns, "/livez").0, 200);
    assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
}

#[test]
fn metrics_that_nobody_scrapes_cost_no_wake_up() {
    privileged!();
    let ns = Namespace::new("only");
    ns.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
    ns.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
    let daemon = start(&ns);
    daemon.setconf(&format!("[Interface]\nPrivateKey = {}\n", Keys::generate().private));
    daemon.ip("link set DEV up");
    let threads = || testbed::status_field(daemon.pid(), "Threads").unwrap().parse::<u32>().unwrap();
    let unscraped = threads();
    check_idle(&[daemon.pid()]);
    // Also not after a scrape, once the threads that it took have gone.
    scrape(&ns);
    wait_until("the scrape's threads end", PATIENCE, || threads() == unscraped);
    check_idle(&[daemon.pid()]);
}

#[test]
fn without_the_variable_there_is_no_thread_and_no_socket() {
    privileged!();
    let ns = Namespace::new("only");
    let daemon = Daemon::start(&ns, Implementation::Adit);
    let names = std::fs::read_dir(format!("/proc/{}/task", daemon.pid()))
        .unwrap()
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
    let names: Vec<String> = names.collect();
    assert!(names.iter().all(|name| !name.contains("metrics")), "{names:?}");
    assert_eq!(ns.run("ss -Htln").trim(), "");
}

#[test]
fn whoever_serves_has_no_capability() {
    privileged!();
    let ns = Namespace::new("only");
    let daemon = start(&ns);
    scrape(&ns);
    let mut seen = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        if status.lines().next().is_some_and(|name| name.contains("metrics")) {
            seen += 1;
            let permitted = status.lines().find(|line| line.starts_with("CapPrm:")).unwrap();
            assert_eq!(permitted.split_whitespace().nth(1), Some("0000000000000000"), "{status}");
        }
    }
    assert!(seen >= 1);
}

/// Runs the program in the foreground until it fails, and gives what it said.
#[track_caller]
fn failure(ns: &Namespace, words: &[&str], variables: &[(&str, &str)]) -> String {
    let mut command = ns.command(Implementation::Adit.program());
    command.args(words).arg(unique_interface()).envs(variables.iter().copied());
    let output = testbed::try_run_to_end(&mut command, PATIENCE).unwrap();
    assert_eq!(output.status.code(), Some(1));
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn addresses_that_cannot_be_used() {
    privileged!();
    let ns = Namespace::new("only");
    for background in [&["-f"][..], &[]] {
        let said = failure(&ns, background, &[("ADIT_METRICS", "9586")]);
        let expected =
            "ADIT_METRICS=\"9586\" cannot be used: give an address and a port such as 127.0.0.1:9586 or [::1]:9586";
        assert!(said.contains(expected) && said.lines().count() == 1, "{said}");
        let said = failure(&ns, background, &[("ADIT_METRICS", "192.0.2.1:9586")]);
        assert!(said.contains("Failed to serve metrics on 192.0.2.1:9586: ") && said.lines().count() == 1, "{said}");
        let _taken = ns.enter(|| TcpListener::bind(ENDPOINT).unwrap());
        let said = failure(&ns, background, &[("ADIT_METRICS", ENDPOINT)]);
        assert!(said.contains("Failed to serve metrics on 127.0.0.1:9586: Address already in use"), "{said}");
    }
    let leftover = ns.run("ip -o link");
    assert_eq!(leftover.lines().count(), 1, "nothing is left behind: {leftover}");
}

#[test]
fn in_the_background_and_by_option() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    let mut command = ns.command(Implementation::Adit.program());
    command.args(["--metrics", ENDPOINT, &interface]);
    testbed::run_to_end(&mut command, PATIENCE);
    assert_eq!(scrape(&ns).value("adit_peers", &[("interface", &interface)]), 0.0);
    // The name follows the interface.
    ns.ip(&format!("link set {interface} name renamed0"));
    assert_eq!(scrape(&ns).value("adit_peers", &[("interface", "renamed0")]), 0.0);
    ns.ip("link delete renamed0");
    let address: SocketAddr = ([127, 0, 0, 1], PORT).into();
    wait_until("the port is free again", PATIENCE, || ns.enter(|| TcpStream::connect(address).is_err()));
}

// --- The log ---------------------------------------------------------------------------------

#[test]
fn a_log_for_programs() {
    privileged!();
    let ns = Namespace::new("only");
    let interface = unique_interface();
    let daemon = Daemon::start_with(&ns, Implementation::Adit, &interface, &[("ADIT_LOG_FORMAT", "json")]);
    daemon.setconf(&format!(
        "[Interface]\nPrivateKey = {}\n[Peer]\nPublicKey = {}\nEndpoint = 127.0.0.1:9\nPersistentKeepalive = 1\n",
        Keys::generate().private,
        Keys::generate().public
    ));
    daemon.ip("link set DEV up");
    wait_until("an initiation is logged", PATIENCE, || daemon.log().contains("Sending handshake initiation"));
    let log = daemon.log();
    let objects: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    for object in &objects {
        assert_eq!(object["interface"], interface.as_str(), "{object}");
        assert!(["error", "warning", "debug"].contains(&object["level"].as_str().unwrap()), "{object}");
        let time = object["time"].as_str().unwrap();
        assert!(time.len() == "2026-11-21T09:59:09.123456Z".len() && time.ends_with('Z'), "{object}");
        assert!(object["message"].is_string(), "{object}");
    }
    let initiation = objects.iter().find(|object| object["message"] == "Sending handshake initiation").unwrap();
    assert!(initiation["peer"].as_str().unwrap().contains('…'), "{initiation}");
}
