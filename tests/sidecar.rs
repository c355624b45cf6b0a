//! The sidecar from end to end: `adit proxy` as a user without a single capability, a real peer with a TUN device in
//! another namespace, services behind it, and the usual clients: curl, dig, iperf3, wg.
//!
//! ```text
//! left: curl, dig, iperf3 ── 127.0.0.1 ── adit proxy ── 10.0.0.1 ══ 10.0.0.2 ── a daemon, its TUN ── right: services
//!                                        192.168.241.1                         192.168.241.2
//! ```

mod openmetrics;
mod testbed;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use testbed::{
    Destination, Dump, Implementation, Keys, Namespace, Node, Outer, Process, SERVICE_NAME, SIGHUP, SIGTERM, Scratch,
    Services, Sidecar, SocksUdp, connect, dns_address, dns_question, folder_of_user, http_get, listens,
    raise_open_files, run_to_end, socket_path, socks_connect, try_run_to_end, unprivileged, veth, wait_until,
};

/// Any command here; iperf3 takes the longest.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// What was changed is in force by then.
const RELOAD_LIMIT: Duration = Duration::from_secs(10);
/// For a peer with CheckAlive or a keepalive, until `/readyz` fails after it has gone.
const UNREADY_LIMIT: Duration = Duration::from_secs(20);
/// For another, from its last handshake: it is no longer fresh after 180 s, and a new one has 15 s.
const UNREADY_QUIET_LIMIT: Duration = Duration::from_secs(180 + 15);
/// What a look at `/readyz` may add on a busy machine.
const LOOK_SLACK: Duration = Duration::from_secs(2);
/// Until it is ready again after the peer has come back: its next attempt of a handshake is at most that far.
const READY_LIMIT: Duration = Duration::from_secs(30);
/// Until a peer that has moved is found by its name: half a minute of silence with a session, a look every three seconds, a
/// handshake's pause, and room for a busy machine.
const NAME_LIMIT: Duration = Duration::from_secs(120);
/// Slow machines carry more than this.
const TCP_BITS_PER_SECOND_MIN: f64 = 20e6;
const CONNECTIONS: usize = 1000;
/// What each of them carries in either direction.
const CONNECTION_BYTES: usize = 16_384;
/// What a sidecar may hold with so many connections open: 128 KiB each, and what it has without.
const CONNECTIONS_RESIDENT_MAX: u64 = (CONNECTIONS as u64 * (128 << 10)) + (64 << 20);
const HALF_OPEN: usize = 10_000;
/// What it may hold while so many clients say nothing.
const HALF_OPEN_RESIDENT_MAX: u64 = 128 << 20;
/// Reply codes of RFC 1928.
const HOST_UNREACHABLE: u8 = 4;
const CONNECTION_REFUSED: u8 = 5;

const SOCKS: &str = "127.0.0.1:1080";
const HTTP: &str = "127.0.0.1:8080";
const ECHO: &str = "127.0.0.1:7000";
const HEALTH: &str = "127.0.0.1:9586";
/// The sidecar's side.
const INNER_V4: Ipv4Addr = Ipv4Addr::new(192, 168, 241, 1);
const INNER_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x241, 0, 0, 0, 0, 0, 1);

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address with a port")
}

/// The network, the peer, and what is behind it.
struct Site {
    left: Namespace,
    right: Namespace,
    peer: Node,
    keys: Keys,
    _services: Services,
}

impl Site {
    #[track_caller]
    fn new(implementation: Implementation) -> Self {
        let (left, right) = (Namespace::new("left"), Namespace::new("right"));
        veth(&left, "outer", &right, "outer");
        for (ns, n) in [(&left, 1), (&right, 2)] {
            ns.ip(&format!("address add {}/24 dev outer", Outer::V4.address(n)));
            ns.ip(&format!("address add {}/64 dev outer nodad", Outer::V6.address(n)));
        }
        let peer = Node::start(&right, implementation, 2);
        let keys = Keys::generate();
        let services = Services::start(&right, peer.inner_v4, peer.inner_v6);
        let site = Self { left, right, peer, keys, _services: services };
        site.add_sidecar();
        site
    }

    /// Lets the peer know the sidecar, but not where it is.
    fn add_sidecar(&self) {
        let public = &self.keys.public;
        let text = format!("[Peer]\nPublicKey = {public}\nAllowedIPs = {INNER_V4}/32, {INNER_V6}/128\n");
        self.peer.daemon.addconf(&text);
    }

    /// The sidecar's file with these lines in its `[Interface]` and `[Peer]`, and these sections.
    fn file_with(&self, interface: &str, peer: &str, sections: &str) -> String {
        format!(
            "[Interface]\nPrivateKey = {}\nAddress = {INNER_V4}/24, {INNER_V6}/64\nDNS = {}\n{interface}\n\n\
             [Peer]\nPublicKey = {}\nEndpoint = {}:{}\nAllowedIPs = 192.168.241.0/24, fd00:241::/64\n{peer}\n\n{sections}\n",
            self.keys.private,
            self.peer.inner_v4,
            self.peer.keys.public,
            Outer::V4.address(2),
            self.peer.port,
        )
    }

    fn file(&self, sections: &str) -> String {
        self.file_with("", "", sections)
    }

    #[track_caller]
    fn sidecar(&self, sections: &str, listener: &str) -> Sidecar {
        Sidecar::start(&self.left, &self.file(sections), listener)
    }

    /// A service of the peer, by its IPv4 address.
    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.peer.inner_v4.into(), port)
    }

    /// Runs a line of words on the sidecar's side and gives what it printed.
    #[track_caller]
    fn run(&self, line: &str) -> String {
        run_to_end(self.left.command("sh").args(["-c", line]), COMMAND_LIMIT)
    }

    /// When the peer last shook hands with the sidecar.
    fn latest_handshake(&self) -> u64 {
        self.peer.daemon.dump().peer(&self.keys.public).latest_handshake
    }

    fn is_ready(&self) -> bool {
        http_get(&self.left, address(HEALTH), "/readyz").is_ok_and(|(status, _)| status == 200)
    }
}

const PROXIES: &str = "[Socks5]\nBindAddress = 127.0.0.1:1080\n\n[http]\nBindAddress = 127.0.0.1:8080\n";

/// Sends `bytes` and reads as many back.
fn echo(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("the connection holds");
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back).expect("the connection holds");
    assert!(back == bytes, "{} bytes came back altered", bytes.len());
}

// --- Clients ------------------------------------------------------------------------------------

#[track_caller]
fn check_curl(implementation: Implementation) {
    let site = Site::new(implementation);
    let _sidecar = site.sidecar(PROXIES, HTTP);
    let (v4, v6) = (site.peer.inner_v4, site.peer.inner_v6);
    let proxies = [
        format!("--proxy socks5h://{SOCKS}"),
        format!("--proxy http://{HTTP}"),
        format!("--proxytunnel --proxy http://{HTTP}"),
    ];
    for proxy in &proxies {
        for (host, said) in [
            (v4.to_string(), v4.to_string()),
            (format!("[{v6}]"), format!("[{v6}]")),
            // Resolved through the tunnel: nobody else knows the name.
            (SERVICE_NAME.to_owned(), SERVICE_NAME.to_owned()),
        ] {
            let found = site.run(&format!("curl -sS --fail --max-time 20 {proxy} 'http://{host}/one?two=3'"));
            assert_eq!(found, format!("you asked for /one?two=3 at {said}\n"), "{proxy}");
        }
    }
}

#[test]
fn curl_to_a_peer_of_adit() {
    privileged!("curl");
    check_curl(Implementation::Adit);
}

#[test]
fn curl_to_a_peer_of_wireguard_go() {
    privileged!("curl", "wireguard-go");
    check_curl(Implementation::WireguardGo);
}

#[test]
fn passwords_are_asked_for() {
    privileged!("curl");
    let site = Site::new(Implementation::Adit);
    let who = "Username = alice\nPassword = wonder land\n";
    let sections = format!("[Socks5]\nBindAddress = {SOCKS}\n{who}\n[http]\nBindAddress = {HTTP}\n{who}\n");
    let _sidecar = site.sidecar(&sections, HTTP);
    let curl = |proxy: &str, user: &str| {
        let url = format!("http://{}/", site.peer.inner_v4);
        let mut command = site.left.command("curl");
        command.args(["-sS", "--fail", "--max-time", "20", "--proxy", proxy, &url]);
        if !user.is_empty() {
            command.args(["--proxy-user", user]);
        }
        try_run_to_end(&mut command, COMMAND_LIMIT).expect("curl ends").status.success()
    };
    for proxy in [format!("socks5h://{SOCKS}"), format!("http://{HTTP}")] {
        assert!(curl(&proxy, "alice:wonder land"), "{proxy}");
        for wrong in ["", "alice:", "alice:wonderland", "bob:wonder land"] {
            assert!(!curl(&proxy, wrong), "{proxy} {wrong:?}");
        }
    }
}

/// A certificate, and one that takes its place while the sidecar runs.
#[test]
fn curl_speaks_tls_with_the_http_proxy() {
    privileged!("curl");
    let site = Site::new(Implementation::Adit);
    let socks = format!("[Socks5]\nBindAddress = {SOCKS}\n");
    let sidecar = site.sidecar(&socks, SOCKS);
    let certificates = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates");
    let shows = |name: &str| {
        for end in ["crt", "key"] {
            let text = fs::read(certificates.join(format!("{name}.{end}"))).expect("it is there");
            fs::write(sidecar.file(&format!("proxy.{end}")), text).expect("the folder can be written");
        }
    };
    shows("proxy");
    let tls = format!("[http]\nBindAddress = {HTTP}\nCertFile = proxy.crt\nKeyFile = proxy.key\n");
    sidecar.rewrite(&site.file(&format!("{socks}\n{tls}")));
    wait_until("the HTTP proxy is there", RELOAD_LIMIT, || listens(&site.left, address(HTTP)));
    let curl = |trusted: &str, how: &str| {
        let line = format!(
            "curl -sS --fail --max-time 20 {how} --proxy https://{HTTP} --proxy-cacert {} http://{}/one",
            certificates.join(trusted).display(),
            site.peer.inner_v4,
        );
        let output = try_run_to_end(site.left.command("sh").args(["-c", &line]), COMMAND_LIMIT).expect("curl ends");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let answered = (Some(0), format!("you asked for /one at {}\n", site.peer.inner_v4));
    // curl's own number for a server that it does not trust.
    let distrusted = (Some(60), String::new());
    for how in ["", "--proxytunnel"] {
        assert_eq!(curl("proxy.crt", how), answered, "{how}");
        assert_eq!(curl("other.crt", how), distrusted, "{how}");
    }
    shows("other");
    wait_until("the other certificate is shown", RELOAD_LIMIT, || curl("other.crt", "") == answered);
    assert_eq!(curl("proxy.crt", ""), distrusted);
}

/// What cannot be reached is told by the code that says why.
#[test]
fn failures_have_the_right_code() {
    privileged!("curl");
    let site = Site::new(Implementation::Adit);
    let _sidecar = site.sidecar(PROXIES, HTTP);
    let closed = Destination::Address(site.at(9));
    // Covered by AllowedIPs, and nobody's: the peer's system says so after some seconds.
    let nobody = Destination::Address(address("192.168.241.99:80"));
    let no_name = Destination::Name("no-such-name.internal", 80);
    for (to, codes) in [
        (closed, &[CONNECTION_REFUSED][..]),
        (nobody, &[HOST_UNREACHABLE]),
        (no_name, &[HOST_UNREACHABLE]),
        // Network unreachable by the ruleset of AllowedIPs, or no host there: both are true.
        (Destination::Address(address("198.51.100.1:80")), &[3, HOST_UNREACHABLE]),
    ] {
        let code = socks_connect(&site.left, address(SOCKS), to).expect("the proxy answers").err();
        assert!(code.is_some_and(|code| codes.contains(&code)), "{to:?}: {code:?}, not {codes:?}");
    }
    for (url, status) in [
        (format!("http://{}/", site.at(9)), 502),
        ("http://no-such-name.internal/".to_owned(), 502),
        ("http://192.168.241.99/".to_owned(), 504),
    ] {
        let words = "curl -s --max-time 30 -o /dev/null -w '%{http_code}'";
        let found = site.run(&format!("{words} --proxy http://{HTTP} {url} || true"));
        let allowed = [status, if status == 504 { 502 } else { status }];
        assert!(allowed.iter().any(|status| found.trim() == status.to_string()), "{url}: {found}");
        // CONNECT is answered likewise, where curl shows the code on its own.
        let words = "curl -s --max-time 30 -o /dev/null -w '%{http_connect}' --proxytunnel";
        let found = site.run(&format!("{words} --proxy http://{HTTP} {url} || true"));
        assert!(allowed.iter().any(|status| found.trim() == status.to_string()), "CONNECT {url}: {found}");
    }
}

/// SOCKS5 carries UDP: questions of our own, and Debian's dig by way of a relay that wraps what it sends.
#[test]
fn dig_over_socks5_udp() {
    privileged!("dig");
    let site = Site::new(Implementation::WireguardGo);
    let _sidecar = site.sidecar(PROXIES, SOCKS);
    let udp = SocksUdp::associate(&site.left, address(SOCKS));
    for (number, to) in [
        (1, Destination::Address(site.at(Services::DNS))),
        (2, Destination::Address(SocketAddr::new(site.peer.inner_v6.into(), Services::DNS))),
        (3, Destination::Name(SERVICE_NAME, Services::DNS)),
    ] {
        udp.send(&dns_question(number, SERVICE_NAME), to).expect("the relay is there");
        let answer = udp.receive().unwrap_or_else(|error| panic!("{to:?}: {error}"));
        assert_eq!(dns_address(number, &answer), Some(site.peer.inner_v4), "{to:?}");
    }
    // Empty, and as much as one packet of the tunnel carries, and more.
    for len in [0, 1, 1392, 4000] {
        let payload: Vec<u8> = (0..len).map(|n| n as u8).collect();
        udp.send(&payload, Destination::Address(site.at(Services::ECHO))).expect("the relay is there");
        assert!(udp.receive().expect("an echo") == payload, "{len} bytes");
    }

    let local = site.left.enter(|| UdpSocket::bind("127.0.0.1:0")).expect("a port is free");
    let port = local.local_addr().expect("it is bound").port();
    let dns = site.at(Services::DNS);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut question = [0; 4096];
            let (len, from) = local.recv_from(&mut question).expect("dig asks");
            udp.send(&question[..len], Destination::Address(dns)).expect("the relay is there");
            local.send_to(&udp.receive().expect("an answer"), from).expect("dig listens");
        });
        let found = site.run(&format!("dig +short +tries=1 +time=20 @127.0.0.1 -p {port} {SERVICE_NAME} A"));
        assert_eq!(found.trim(), site.peer.inner_v4.to_string());
    });
}

#[test]
fn the_dns_server_of_the_host_asks_through_the_tunnel() {
    privileged!("dig");
    let site = Site::new(Implementation::Adit);
    let _sidecar = site.sidecar(&format!("{PROXIES}\n[Dns]\nBindAddress = 127.0.0.1:5300\n"), SOCKS);
    let found = site.run(&format!("dig +short +tries=2 +time=10 @127.0.0.1 -p 5300 {SERVICE_NAME} AAAA"));
    assert_eq!(found.trim(), site.peer.inner_v6.to_string());
}

// --- Forwards -----------------------------------------------------------------------------------

#[track_caller]
fn check_iperf(implementation: Implementation) {
    let site = Site::new(implementation);
    let sections = format!("[TCPClientTunnel]\nBindAddress = 127.0.0.1:5201\nTarget = {}\n", site.at(5201));
    let _sidecar = site.sidecar(&sections, "127.0.0.1:5201");
    for direction in [&["-t", "2"][..], &["-t", "2", "-R"], &["-t", "1", "-P", "4", "--bidir"]] {
        let scratch = Scratch::new();
        let mut server = site.right.command("iperf3");
        server.args(["-s", "-1", "--forceflush", "-B", &site.peer.inner_v4.to_string()]);
        let server = Process::spawn(server, scratch.file("server"));
        wait_until("iperf3 listens", COMMAND_LIMIT, || server.log().contains("listening"));
        let mut client = site.left.command("iperf3");
        client.args(["-J", "-c", "127.0.0.1", "--connect-timeout", "10000"]).args(direction);
        let text = run_to_end(&mut client, COMMAND_LIMIT);
        let json: serde_json::Value = serde_json::from_str(&text).expect("iperf3 -J prints JSON");
        let rate = json["end"]["sum_received"]["bits_per_second"].as_f64();
        let rate = rate.unwrap_or_else(|| panic!("{direction:?}: iperf3 told no rate: {}", json["error"]));
        println!("through the TCP forward, {direction:?}: {:.0} Mbit/s", rate / 1e6);
        assert!(rate > TCP_BITS_PER_SECOND_MIN, "{direction:?}: {rate}");
    }
}

#[test]
fn iperf3_through_a_tcp_forward_to_adit() {
    privileged!("iperf3");
    check_iperf(Implementation::Adit);
}

#[test]
fn iperf3_through_a_tcp_forward_to_wireguard_go() {
    privileged!("iperf3", "wireguard-go");
    check_iperf(Implementation::WireguardGo);
}

#[test]
fn a_half_close_passes_in_both_directions() {
    privileged!();
    let site = Site::new(Implementation::Adit);
    let sections = format!("[TCPClientTunnel]\nBindAddress = {ECHO}\nTarget = {}\n", site.at(Services::ECHO));
    let _sidecar = site.sidecar(&sections, ECHO);
    let mut stream = connect(&site.left, address(ECHO)).expect("the forward listens");
    let sent: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut writer = stream.try_clone().expect("a socket can be duplicated");
    let back = std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&sent).and_then(|()| writer.shutdown(Shutdown::Write)).expect("it is taken"));
        let mut back = Vec::new();
        stream.read_to_end(&mut back).expect("the echo ends after our end");
        back
    });
    assert!(back == sent, "{} bytes sent, {} returned, not the same", sent.len(), back.len());
}

#[test]
fn a_service_here_is_reached_from_there() {
    privileged!("curl");
    let site = Site::new(Implementation::WireguardGo);
    // Here is the same web server, on the host's side of the sidecar.
    let _here = Services::start(&site.left, Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    let sections = format!("{PROXIES}\n[TCPServerTunnel]\nListenPort = 8000\nTarget = 127.0.0.1:80\n");
    let _sidecar = site.sidecar(&sections, SOCKS);
    // The peer does not know the endpoint before the sidecar has spoken.
    site.run(&format!("curl -sS --fail --proxy socks5h://{SOCKS} http://{}/", site.peer.inner_v4));
    for host in [INNER_V4.to_string(), format!("[{INNER_V6}]")] {
        let url = format!("http://{host}:8000/");
        let found = run_to_end(site.right.command("curl").args(["-sS", "--fail", &url]), COMMAND_LIMIT);
        assert_eq!(found, format!("you asked for / at {host}:8000\n"));
    }
    // And the interface's addresses answer a ping.
    for inner in [IpAddr::from(INNER_V4), INNER_V6.into()] {
        testbed::ping(&site.right, inner, 3);
    }
}

/// The same for UDP: here is a DNS server, which the peer asks by either address of the sidecar.
#[test]
fn dig_to_a_udp_service_here_from_there() {
    privileged!("curl", "dig");
    let site = Site::new(Implementation::WireguardGo);
    let here = Ipv4Addr::LOCALHOST;
    let _here = Services::start(&site.left, here, Ipv6Addr::LOCALHOST);
    let sections = format!("{PROXIES}\n[UDPServerTunnel]\nListenPort = 5300\nTarget = {here}:{}\n", Services::DNS);
    let _sidecar = site.sidecar(&sections, SOCKS);
    // The peer does not know the endpoint before the sidecar has spoken.
    site.run(&format!("curl -sS --fail --proxy socks5h://{SOCKS} http://{}/", site.peer.inner_v4));
    for server in [IpAddr::from(INNER_V4), INNER_V6.into()] {
        let line = format!("dig +short +tries=2 +time=10 @{server} -p 5300 {SERVICE_NAME}");
        let found = run_to_end(site.right.command("sh").args(["-c", &line]), COMMAND_LIMIT);
        assert_eq!(found.trim(), here.to_string(), "{server}");
    }
}

#[test]
fn dig_through_a_udp_forward() {
    privileged!("dig");
    let site = Site::new(Implementation::Adit);
    let dns = site.at(Services::DNS);
    let sections =
        format!("{PROXIES}\n[UDPProxyTunnel]\nBindAddress = 127.0.0.1:5353\nTarget = {dns}\nInactivityTimeout = 2\n");
    let _sidecar = site.sidecar(&sections, SOCKS);
    for round in 0..3 {
        let found = site.run(&format!("dig +short +tries=2 +time=10 @127.0.0.1 -p 5353 {SERVICE_NAME}"));
        assert_eq!(found.trim(), site.peer.inner_v4.to_string(), "round {round}");
    }
}

#[test]
fn standard_input_and_output_are_a_connection() {
    privileged!();
    let site = Site::new(Implementation::Adit);
    let folder = folder_of_user();
    let file = site.file(&format!("[STDIOTunnel]\nTarget = {SERVICE_NAME}:{}\n", Services::HTTP));
    fs::write(folder.file("adit.conf"), file).expect("the scratch folder can be written");
    let mut command = unprivileged(&site.left, folder.path(), "exec adit proxy -c adit.conf");
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.expect("the program can be started");
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(b"GET /by/stdio HTTP/1.0\r\nHost: here\r\n\r\n").expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends with the connection");
    let (said, log) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(said.ends_with("you asked for /by/stdio at here\n"), "{said}\n{log}");
    assert!(output.status.success(), "{}\n{log}", output.status);
}

// --- Many ---------------------------------------------------------------------------------------

/// As many connections at once as a busy application has, each carrying data while all others are open.
#[test]
fn a_thousand_connections_at_once() {
    privileged!();
    let limit = raise_open_files().expect("the limit can be raised to the hard one");
    assert!(limit >= 4 * CONNECTIONS as u64, "a hard limit of {limit} open files is too low for this test");
    let site = Site::new(Implementation::Adit);
    let sections = format!("[TCPClientTunnel]\nBindAddress = {ECHO}\nTarget = {}\n", site.at(Services::ECHO));
    let sidecar = site.sidecar(&sections, ECHO);
    let mut first = connect(&site.left, address(ECHO)).expect("the forward listens");
    echo(&mut first, b"the tunnel is there");
    let (before, _) = sidecar.resident_bytes();

    let mut streams: Vec<TcpStream> = site.left.enter(|| {
        let open = |_| TcpStream::connect_timeout(&address(ECHO), COMMAND_LIMIT).expect("the forward listens");
        (0..CONNECTIONS).map(open).collect()
    });
    for stream in &streams {
        stream.set_read_timeout(Some(COMMAND_LIMIT)).expect("a time above zero is accepted");
    }
    let payload =
        |number: usize| -> Vec<u8> { (number as u32..).flat_map(u32::to_le_bytes).take(CONNECTION_BYTES).collect() };
    // All have something under way before anybody reads.
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&payload(number)).expect("a socket's buffer has room");
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut back = vec![0; CONNECTION_BYTES];
        stream.read_exact(&mut back).unwrap_or_else(|error| panic!("connection {number}: {error}"));
        let differing = back.iter().zip(payload(number)).position(|(found, expected)| *found != expected);
        assert_eq!(
            differing,
            None,
            "connection {number}: altered from this byte on: {:?}",
            &back[differing.unwrap_or(0)..][..16]
        );
    }
    let (open, peak) = sidecar.resident_bytes();
    for (number, mut stream) in streams.into_iter().enumerate() {
        stream.shutdown(Shutdown::Write).expect("the connection holds");
        assert_eq!(stream.read(&mut [0]).unwrap_or_else(|error| panic!("connection {number}: {error}")), 0);
    }
    println!(
        "{CONNECTIONS} connections: resident {} MiB before, {} MiB with all open ({} KiB each), {} MiB at most",
        before >> 20,
        open >> 20,
        (open.saturating_sub(before) / CONNECTIONS as u64) >> 10,
        peak >> 20
    );
    assert!(peak < CONNECTIONS_RESIDENT_MAX, "{peak} bytes resident");
    echo(&mut first, b"and so is the first");
}

/// Clients that connect and say nothing take what a bound says, and no place from those that speak.
#[test]
fn ten_thousand_half_open_clients_are_bounded() {
    privileged!();
    let limit = raise_open_files().expect("the limit can be raised to the hard one");
    assert!(limit >= HALF_OPEN as u64 + 1000, "a hard limit of {limit} open files is too low for this test");
    let site = Site::new(Implementation::Adit);
    site.left.sysctl("net.ipv4.ip_local_port_range", "1024 65535");
    let sidecar = site.sidecar(PROXIES, SOCKS);
    let to = Destination::Address(site.at(Services::ECHO));
    let mut held = socks_connect(&site.left, address(SOCKS), to).expect("it answers").expect("it connects");
    echo(&mut held, b"before");
    for proxy in [SOCKS, HTTP] {
        // Those beyond the listener's backlog wait for its place, or are turned away; both is bounded.
        let silent: Vec<TcpStream> = site.left.enter(|| {
            let open = |_| TcpStream::connect_timeout(&address(proxy), Duration::from_millis(200)).ok();
            let end = Instant::now() + COMMAND_LIMIT;
            (0..HALF_OPEN).take_while(|_| Instant::now() < end).filter_map(open).collect()
        });
        let (resident, peak) = sidecar.resident_bytes();
        println!(
            "{proxy}: {} half-open clients: {} files open, {} MiB resident, {} MiB at most",
            silent.len(),
            sidecar.open_files(),
            resident >> 20,
            peak >> 20
        );
        assert!(peak < HALF_OPEN_RESIDENT_MAX, "{peak} bytes resident");
        echo(&mut held, b"a connection that was there goes on");
        drop(silent);
        wait_until("new clients are served again", COMMAND_LIMIT, || {
            socks_connect(&site.left, address(SOCKS), to).is_ok_and(|answer| answer.is_ok())
        });
    }
}

// --- Operations ---------------------------------------------------------------------------------

const METRICS: &str = "[Metrics]\nBindAddress = 127.0.0.1:9586\n";

/// The peer goes and comes back: how long until `/readyz` fails, counted from `since`, and until it is 200 again.
#[track_caller]
fn check_readiness(interface: &str, peer: &str, limit: Duration) {
    let site = Site::new(Implementation::Adit);
    let file = site.file_with(interface, peer, &format!("{PROXIES}\n{METRICS}"));
    let _sidecar = Sidecar::start(&site.left, &file, HEALTH);
    wait_until("it is ready", READY_LIMIT, || site.is_ready());
    assert_eq!(http_get(&site.left, address(HEALTH), "/livez").expect("it answers").0, 200);

    // Gone without a word, as a machine that lost its power.
    let gone = Instant::now();
    site.right.ip("link set outer down");
    wait_until("it is no longer ready", limit + LOOK_SLACK, || !site.is_ready());
    println!("not ready {:?} after the peer was gone", gone.elapsed());
    let (status, said) = http_get(&site.left, address(HEALTH), "/readyz").expect("it answers");
    assert_eq!(status, 503, "{said}");
    assert_eq!(http_get(&site.left, address(HEALTH), "/livez").expect("it answers").0, 200);

    let back = Instant::now();
    site.right.ip("link set outer up");
    wait_until("it is ready again", READY_LIMIT, || site.is_ready());
    println!("ready {:?} after the peer was back", back.elapsed());
    let url = format!("http://{}/", site.peer.inner_v4);
    site.run(&format!("curl -sS --fail --max-time 20 --proxy socks5h://{SOCKS} {url}"));
}

#[test]
fn readiness_with_addresses_to_check() {
    privileged!("curl");
    check_readiness("CheckAlive = 192.168.241.2", "", UNREADY_LIMIT);
}

#[test]
fn readiness_with_a_keepalive() {
    privileged!("curl");
    check_readiness("", "PersistentKeepalive = 25", UNREADY_LIMIT);
}

/// Takes more than three minutes, which is the protocol's time.
#[test]
fn readiness_with_neither() {
    privileged!("curl");
    check_readiness("", "", UNREADY_QUIET_LIMIT);
}

#[test]
fn the_metrics_count_and_hold_no_secret() {
    privileged!("curl");
    let site = Site::new(Implementation::Adit);
    let _sidecar = site.sidecar(&format!("{PROXIES}\n{METRICS}"), HEALTH);
    site.run(&format!("curl -sS --fail --proxy socks5h://{SOCKS} http://{}/", site.peer.inner_v4));
    let (status, text) = http_get(&site.left, address(HEALTH), "/metrics").expect("it answers");
    assert_eq!(status, 200);
    // Called as the file is.
    let metrics = openmetrics::Metrics::parse(&text);
    let labels = metrics.samples.iter().filter(|(name, _)| *name != "adit_build_info").flat_map(|(_, samples)| samples);
    let interfaces: BTreeSet<_> = labels.map(|(labels, _)| labels.get("interface").map(String::as_str)).collect();
    assert_eq!(interfaces, BTreeSet::from([Some("adit")]));
    for name in ["wireguard_sent_bytes_total", "wireguard_received_bytes_total", "wireguard_latest_handshake_seconds"] {
        assert!(metrics.value(name, &[("public_key", &site.peer.keys.public)]) > 0.0, "{name}");
    }
    assert!(text.contains("adit_drops_total"), "{text}");
    assert!(!text.contains(&site.keys.private));
}

/// A reload, by SIGHUP or because the file has changed: what is the same goes on, what is new begins.
#[test]
fn a_reload_keeps_sessions_and_connections() {
    privileged!("curl");
    let site = Site::new(Implementation::Adit);
    let socks = format!("[Socks5]\nBindAddress = {SOCKS}\n");
    let sidecar = site.sidecar(&socks, SOCKS);
    let to = Destination::Address(site.at(Services::ECHO));
    let mut held = socks_connect(&site.left, address(SOCKS), to).expect("it answers").expect("it connects");
    echo(&mut held, b"before");
    let handshake = site.latest_handshake();
    // A second handshake would have another time.
    std::thread::sleep(Duration::from_millis(1100));

    sidecar.rewrite(&site.file(&format!("{socks}\n[http]\nBindAddress = {HTTP}\n")));
    sidecar.signal(SIGHUP);
    wait_until("the HTTP proxy is there", RELOAD_LIMIT, || listens(&site.left, address(HTTP)));
    echo(&mut held, b"after a signal");
    site.run(&format!("curl -sS --fail --proxy http://{HTTP} http://{}/", site.peer.inner_v4));

    // A mistake changes nothing, and is told with its place.
    sidecar.rewrite(&site.file(&format!("{socks}\n[http]\nBindAdress = {HTTP}\n")));
    sidecar.signal(SIGHUP);
    wait_until("the mistake is told", RELOAD_LIMIT, || sidecar.log().contains("BindAdress"));
    echo(&mut held, b"after a mistake");
    assert!(listens(&site.left, address(HTTP)));

    // Without a signal: what has gone from the file ends, what is new in it begins, at most some seconds later.
    let forward = format!("[TCPClientTunnel]\nBindAddress = {ECHO}\nTarget = {}\n", site.at(Services::ECHO));
    sidecar.rewrite(&site.file(&format!("{socks}\n{forward}")));
    wait_until("the forward is there", RELOAD_LIMIT, || listens(&site.left, address(ECHO)));
    wait_until("the HTTP proxy is gone", RELOAD_LIMIT, || !listens(&site.left, address(HTTP)));
    echo(&mut held, b"after a change");
    assert_eq!(site.latest_handshake(), handshake, "the session was kept");
}

#[test]
fn ping_tells_who_answers_and_why_others_do_not() {
    privileged!();
    let site = Site::new(Implementation::WireguardGo);
    let folder = folder_of_user();
    let ping = |file: &str, words: &str| {
        fs::write(folder.file("adit.conf"), file).expect("the scratch folder can be written");
        let script = format!("exec adit ping -c adit.conf {words}");
        let output = try_run_to_end(&mut unprivileged(&site.left, folder.path(), &script), COMMAND_LIMIT);
        let output = output.expect("ping ends");
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    // The services of the file have no part in it.
    let file = site.file_with(&format!("CheckAlive = {}", site.peer.inner_v6), "", PROXIES);
    let (ok, said) = ping(&file, "--count 2");
    let answers = said.matches(&format!("{} answered after ", site.peer.inner_v6)).count();
    assert!(ok && answers == 2, "{said}");
    let (ok, said) = ping(&file, &format!("--count 1 {} {SERVICE_NAME}", site.peer.inner_v4));
    assert!(ok && said.matches(" answered after ").count() == 2, "{said}");

    let stranger = file.replace(&site.keys.private, &Keys::generate().private);
    for (file, words, reason) in [
        (&file, "192.168.241.99", "the host behind it is not"),
        (&file, "198.51.100.1", "198.51.100.1 is in no peer's AllowedIPs"),
        (&stranger, "192.168.241.2", "does not answer the handshake at "),
        (&file, "no-such-name.internal", "no-such-name.internal: "),
    ] {
        let (ok, said) = ping(file, &format!("--count 1 -W 2 {words}"));
        assert!(!ok && said.contains(reason), "{words}: {said}");
    }
    let _sidecar = Sidecar::start(&site.left, &file, SOCKS);
    let (ok, said) = ping(&file, "");
    assert!(!ok && said.contains(&format!("TCP {SOCKS} is in use already")), "{said}");
}

/// The names that a namespace's host knows, for what `ip netns exec` starts there.
struct Hosts(PathBuf);

impl Hosts {
    fn of(namespace: &Namespace) -> Self {
        let folder = Path::new("/etc/netns").join(namespace.name());
        fs::create_dir_all(&folder).expect("root may make the folder");
        Self(folder)
    }

    /// Writes into the file that is there, since it is bound over /etc/hosts.
    fn set(&self, name: &str, address: IpAddr) {
        fs::write(self.0.join("hosts"), format!("{address} {name}\n")).expect("root may write there");
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A peer that has restarted where its name leads to now: it knows neither the session nor where the sidecar is, and is
/// found again without its help.
#[test]
fn a_name_is_resolved_again_when_the_peer_falls_silent() {
    privileged!("curl");
    const NAME: &str = "vpn.internal";
    let site = Site::new(Implementation::Adit);
    let hosts = Hosts::of(&site.left);
    hosts.set(NAME, Outer::V4.address(2));

    let numeric = format!("Endpoint = {}:", Outer::V4.address(2));
    let file = site.file(PROXIES);
    assert!(file.contains(&numeric));
    let _sidecar = Sidecar::start(&site.left, &file.replace(&numeric, &format!("Endpoint = {NAME}:")), SOCKS);
    let curl = format!("curl -sS --fail --max-time 5 --proxy socks5h://{SOCKS} http://{}/", site.peer.inner_v4);
    let is_reached = || {
        let output = try_run_to_end(site.left.command("sh").args(["-c", &curl]), COMMAND_LIMIT);
        output.is_ok_and(|output| output.status.success())
    };
    wait_until("the peer is reached", READY_LIMIT, is_reached);

    site.right.ip(&format!("address del {}/24 dev outer", Outer::V4.address(2)));
    site.right.ip(&format!("address add {}/24 dev outer", Outer::V4.address(9)));
    site.peer.daemon.set(&format!("peer {} remove", site.keys.public));
    site.add_sidecar();
    hosts.set(NAME, Outer::V4.address(9));
    let moved = Instant::now();
    wait_until("the peer is found again", NAME_LIMIT, is_reached);
    println!("found again after {:?}", moved.elapsed());
}

#[test]
fn wg_speaks_to_a_sidecar() {
    privileged!();
    let site = Site::new(Implementation::Adit);
    let name = testbed::unique_interface();
    let sections = format!("{PROXIES}\n[Uapi]\nSocket = {}/{name}.sock\n", testbed::FOLDER);
    let sidecar = site.sidecar(&sections, SOCKS);
    let to = Destination::Address(site.at(Services::ECHO));
    let mut stream = socks_connect(&site.left, address(SOCKS), to).expect("it answers").expect("it connects");
    echo(&mut stream, &[7; 1000]);

    // `wg` knows one folder, where the sidecar may not write.
    let known = socket_path(&name);
    fs::create_dir_all(known.parent().expect("a path has a parent")).expect("root may make the folder");
    std::os::unix::fs::symlink(sidecar.file(&format!("{name}.sock")), &known).expect("root may write there");
    let text = try_run_to_end(site.left.command("wg").args(["show", &name, "dump"]), COMMAND_LIMIT);
    let _ = fs::remove_file(&known);
    let output = text.expect("wg can be started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let dump = Dump::parse(&String::from_utf8_lossy(&output.stdout));
    assert_eq!(dump.public_key, site.keys.public);
    let peer = dump.peer(&site.peer.keys.public);
    assert_eq!(peer.endpoint, Some(format!("{}:{}", Outer::V4.address(2), site.peer.port)));
    assert!(peer.rx > 1000 && peer.tx > 1000 && peer.latest_handshake > 0, "{peer:?}");
}

/// It ends on SIGTERM, at once and well.
#[test]
fn it_ends_when_told() {
    privileged!();
    let site = Site::new(Implementation::Adit);
    let mut sidecar = site.sidecar(PROXIES, SOCKS);
    let to = Destination::Address(site.at(Services::ECHO));
    let mut held = socks_connect(&site.left, address(SOCKS), to).expect("it answers").expect("it connects");
    echo(&mut held, b"held");
    sidecar.signal(SIGTERM);
    let status = sidecar.wait(RELOAD_LIMIT).expect("it ends");
    assert!(status.success(), "{status}: {}", sidecar.log());
}

/// Every mistake has its place, and nothing starts. Needs no privileges.
#[test]
fn mistakes_are_told_with_their_place() {
    let scratch = Scratch::new();
    let key = Keys::generate();
    let good = format!(
        "[Interface]\nPrivateKey = {}\nAddress = 10.8.0.2/32\n[Peer]\nPublicKey = {}\nAllowedIPs = 10.8.0.0/16\n",
        key.private,
        Keys::generate().public
    );
    let check = |text: &str| {
        let file = scratch.write("adit.conf", text);
        let mut command = Command::new(Implementation::Adit.program());
        command.args(["proxy", "--check", "-c"]).arg(&file);
        let output = try_run_to_end(&mut command, COMMAND_LIMIT).expect("the program can be started");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains(&key.private), "a secret is shown: {said}");
        (output.status.code(), said.replace(&*file.to_string_lossy(), "FILE"))
    };
    assert_eq!(check(&good).0, Some(0));
    for (mistake, place) in [
        ("[Socks5]\nBindAdress = 127.0.0.1:1080\n", "FILE:8:1"),
        ("[Socks5]\nBindAddress = 127.0.0.1\n", "FILE:8:24"),
        ("[Sock5]\nBindAddress = 127.0.0.1:1080\n", "FILE:7:"),
        ("[TCPClientTunnel]\nBindAddress = 127.0.0.1:1\nTarget = nowhere\n", "FILE:9:17"),
        ("[TCPServerTunnel]\nListenPort = 65536\nTarget = a:1\n", "FILE:8:14"),
        ("[Socks5]\nBindAddress\n", "FILE:8:"),
    ] {
        let (code, said) = check(&(good.clone() + mistake));
        assert_eq!(code, Some(1), "{mistake:?}: {said}");
        assert!(said.contains(place), "{mistake:?}: {said:?} does not name {place}");
    }
    let mut absent = Command::new(Implementation::Adit.program());
    absent.args(["proxy", "-c"]).arg(scratch.file("absent.conf"));
    let output = try_run_to_end(&mut absent, COMMAND_LIMIT).expect("the program can be started");
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("absent.conf"));
}

// --- As it is shown and shipped -----------------------------------------------------------------

/// The block of commands in the README's section on the sidecar.
fn quick_start() -> String {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("there is one");
    let section = readme.split("\n## Sidecar\n").nth(1).expect("it has the section");
    let block = section.split("```sh\n").nth(1).and_then(|rest| rest.split("\n```").next());
    block.expect("the section has a block of commands").to_owned()
}

/// The README's quick start, as it stands there, by a user without privileges.
#[test]
fn the_quick_start_of_the_readme() {
    privileged!("curl", "python3");
    let ns = Namespace::new("readme");
    let folder = folder_of_user();
    let mut command = unprivileged(&ns, folder.path(), &quick_start());
    let output = try_run_to_end(&mut command, COMMAND_LIMIT).unwrap_or_else(|error| panic!("the quick start: {error}"));
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}{errors}", output.status);
    assert!(said.ends_with("Hello from the other side.\n"), "{said}\n{errors}");
    wait_until("all that it started has ended", COMMAND_LIMIT, || ns.pids().is_empty());
}

/// What `make demo` shows to a user without privileges; where the test itself has none, it is that user.
#[test]
fn the_demo_without_privileges() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo-unprivileged.sh");
    let said = if testbed::missing(&["ip", "setpriv"]).is_none() {
        let (ns, folder) = (Namespace::new("demo"), folder_of_user());
        ns.ip("link set lo up");
        folder.write("demo.sh", &fs::read_to_string(&script).expect("the script is there"));
        run_to_end(&mut unprivileged(&ns, folder.path(), "bash demo.sh bin/adit"), COMMAND_LIMIT)
    } else {
        run_to_end(Command::new(script).arg(Implementation::Adit.program()), COMMAND_LIMIT)
    };
    assert!(said.contains("\nHTTP/1.1 200 OK\r\nwireguard_sent_bytes_total{"), "{said}");
    assert!(said.ends_with("CapEff 0000000000000000\n"), "{said}");
}

/// The static program in a root that holds nothing but itself, its file, and what a container runtime puts there; the
/// endpoint is a name.
#[test]
fn the_static_program_serves_from_an_empty_root() {
    privileged!("curl");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut build = Command::new(root.join("scripts/static.sh"));
    let built = run_to_end(build.arg("dev").env_remove("STATIC_TARGET"), Duration::from_secs(1200));
    let site = Site::new(Implementation::Adit);
    let folder = folder_of_user();
    fs::create_dir(folder.file("etc")).expect("the scratch folder can be written");
    fs::copy(root.join(built.trim()), folder.file("adit")).expect("there is room for a copy");
    folder.write("etc/hosts", &format!("{} vpn.example.com\n", Outer::V4.address(2)));
    folder.write("etc/resolv.conf", "nameserver 127.0.0.1\n");
    let endpoint = format!("Endpoint = {}:", Outer::V4.address(2));
    let file = site.file(&format!("{PROXIES}\n{METRICS}"));
    folder.write("etc/adit.conf", &file.replace(&endpoint, "Endpoint = vpn.example.com:"));
    assert!(file.contains(&endpoint));

    let mut command = site.left.command("setpriv");
    command.args(["--no-new-privs", "chroot", "--userspec=65532:65532"]).arg(folder.path());
    command.args(["/adit", "proxy", "-c", "/etc/adit.conf"]);
    let scratch = Scratch::new();
    let sidecar = Process::spawn(command, scratch.file("log"));
    wait_until("it is ready", READY_LIMIT, || listens(&site.left, address(HEALTH)) && site.is_ready());
    let found = site.run(&format!("curl -sS --fail --proxy socks5h://{SOCKS} http://{SERVICE_NAME}/"));
    assert_eq!(found, format!("you asked for / at {SERVICE_NAME}\n"), "{}", sidecar.log());
}

/// Whoever is behind it, the peer's network sees the sidecar's address.
#[test]
fn connections_come_from_the_interface_s_address() {
    privileged!();
    let site = Site::new(Implementation::Adit);
    let _sidecar = site.sidecar(PROXIES, SOCKS);
    let inside = site.right.enter(|| TcpListener::bind((site.peer.inner_v4, 0))).expect("a port is free");
    let to = Destination::Address(inside.local_addr().expect("it is bound"));
    let _streams: Vec<TcpStream> = (0..3)
        .map(|_| {
            let stream = socks_connect(&site.left, address(SOCKS), to).expect("it answers").expect("it connects");
            let (_, from) = inside.accept().expect("it was connected");
            assert_eq!(from.ip(), IpAddr::from(INNER_V4));
            stream
        })
        .collect();
}
