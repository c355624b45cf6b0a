//! Traffic with a known outcome: ping, iperf3, and a TCP transfer whose bytes are compared.

use std::fmt::Display;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::namespace::Namespace;
use super::process::{Process, Scratch, run_to_end, try_run_to_end};
use super::wait_until;

/// A connection through a tunnel is made within this, handshakes and their retries included.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);
/// No single read or write of a transfer stalls longer.
const STALL_LIMIT: Duration = Duration::from_secs(10);
/// Longer than any ping or iperf3 run here.
const RUN_LIMIT: Duration = Duration::from_secs(120);

/// What ping found.
#[derive(Debug, Clone)]
pub struct Ping {
    pub transmitted: u32,
    pub received: u32,
    pub text: String,
}

impl Ping {
    /// The round-trip time, in milliseconds, that this share of the answers did not exceed; infinite without answers.
    pub fn quantile(&self, share: f64) -> f64 {
        let after = |line: &str| line.split_once("time=")?.1.split_whitespace().next()?.parse::<f64>().ok();
        let mut times: Vec<f64> = self.text.lines().filter_map(after).collect();
        times.sort_by(f64::total_cmp);
        let at = (times.len() as f64 * share) as usize;
        times.get(at.min(times.len().saturating_sub(1))).copied().unwrap_or(f64::INFINITY)
    }
}

/// Pings `count` times and fails the test unless every answer comes.
#[track_caller]
pub fn ping(from: &Namespace, to: impl Display, count: u32) {
    let ping = ping_with(from, &format!("-c {count} -i 0.05 -W 5 {to}"));
    assert!(ping.received == count, "ping from {} to {to}:\n{}", from.name(), ping.text);
}

/// Pings with these words.
#[track_caller]
pub fn ping_with(from: &Namespace, words: &str) -> Ping {
    let mut command = from.command("ping");
    command.arg("-n").args(words.split_whitespace());
    let output = try_run_to_end(&mut command, RUN_LIMIT).unwrap_or_else(|error| panic!("ping {words}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let before = |what: &str| {
        let words: Vec<&str> = text.split_whitespace().collect();
        let at = words.windows(2).position(|pair| pair[1].trim_end_matches(',') == what);
        at.and_then(|at| words[at].parse().ok())
    };
    let counts = text.replace("packets transmitted", "transmitted");
    let transmitted = counts.split_once(" transmitted").and_then(|(left, _)| left.rsplit(char::is_whitespace).next());
    let transmitted = transmitted.and_then(|number| number.parse().ok()).unwrap_or(0);
    Ping { transmitted, received: before("received").unwrap_or(0), text }
}

/// What iperf3 found.
#[derive(Debug, Clone)]
pub struct Iperf {
    /// Bytes that the receiver got.
    pub received: u64,
    /// Of what the receiver got.
    pub bits_per_second: f64,
    /// UDP only.
    pub lost_percent: f64,
}

/// Runs iperf3 from one namespace to an address in the other, the client with these words.
#[track_caller]
pub fn iperf(from: &Namespace, to: &Namespace, address: IpAddr, words: &str) -> Iperf {
    let scratch = Scratch::new();
    let mut server = to.command("iperf3");
    server.args(["-s", "-1", "--forceflush", "-B", &address.to_string()]);
    let server = Process::spawn(server, scratch.file("server"));
    wait_until("iperf3 listens", CONNECT_LIMIT, || server.log().contains("listening"));
    let mut client = from.command("iperf3");
    client.args(["-J", "-c", &address.to_string(), "--connect-timeout", "10000"]).args(words.split_whitespace());
    let text = run_to_end(&mut client, RUN_LIMIT);
    let json: serde_json::Value = serde_json::from_str(&text).expect("iperf3 -J prints JSON");
    let end = &json["end"];
    // UDP results have one sum, which since 3.13 stands beside a `sum_received`.
    let sum = if end["sum_received"]["bytes"].is_u64() { &end["sum_received"] } else { &end["sum"] };
    let lost_percent = end["sum"]["lost_percent"].as_f64().unwrap_or(0.0);
    let bytes = sum["bytes"].as_f64().expect("iperf3 counts bytes");
    Iperf {
        received: (bytes * (1.0 - lost_percent / 100.0)) as u64,
        bits_per_second: sum["bits_per_second"].as_f64().expect("iperf3 tells the rate") * (1.0 - lost_percent / 100.0),
        lost_percent,
    }
}

/// Listens for TCP on an address of the namespace, on a port of the system's choice.
#[track_caller]
pub fn listen(namespace: &Namespace, address: IpAddr) -> TcpListener {
    namespace.enter(|| TcpListener::bind((address, 0))).unwrap_or_else(|error| panic!("bind {address}: {error}"))
}

/// Sends `len` bytes over TCP to an address in the namespace `to` and as many back, and compares them.
#[track_caller]
pub fn transfer(from: &Namespace, to: &Namespace, address: IpAddr, len: usize) {
    let listener = listen(to, address);
    let to = listener.local_addr().expect("a bound socket has an address");
    let sent: Vec<u8> = (0..len as u32).flat_map(u32::to_le_bytes).take(len).collect();
    let returned = std::thread::scope(|scope| {
        let server = scope.spawn(|| echo(&listener));
        let client = connect(from, to).and_then(|mut stream| {
            let mut writer = stream.try_clone()?;
            let sending = scope.spawn({
                let sent = &sent;
                move || writer.write_all(sent).and_then(|()| writer.shutdown(std::net::Shutdown::Write))
            });
            let mut returned = Vec::with_capacity(len);
            stream.read_to_end(&mut returned)?;
            sending.join().expect("sending does not panic")?;
            Ok(returned)
        });
        if client.is_err() {
            // Wakes the server if it still waits for its connection.
            let _ = listener.set_nonblocking(true);
        }
        let client = client.unwrap_or_else(|error| panic!("TCP to {to}: {error}"));
        server.join().expect("echoing does not panic").unwrap_or_else(|error| panic!("TCP at {to}: {error}"));
        client
    });
    assert!(returned == sent, "TCP to {to}: {} bytes sent, {} returned, not the same", sent.len(), returned.len());
}

fn connect(from: &Namespace, to: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = from.enter(|| TcpStream::connect_timeout(&to, CONNECT_LIMIT))?;
    stream.set_read_timeout(Some(STALL_LIMIT))?;
    stream.set_write_timeout(Some(STALL_LIMIT))?;
    Ok(stream)
}

/// Returns to the first client what it sends.
fn echo(listener: &TcpListener) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let deadline = std::time::Instant::now() + CONNECT_LIMIT;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && std::time::Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(error),
        }
    };
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(STALL_LIMIT))?;
    stream.set_write_timeout(Some(STALL_LIMIT))?;
    let mut back = stream.try_clone()?;
    std::io::copy(&mut stream, &mut back)?;
    back.shutdown(std::net::Shutdown::Write)
}
