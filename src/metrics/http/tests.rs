//! The server over real sockets of the loopback: paths, methods, garbage, those who hold connections, and the end.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpStream};
use std::sync::Mutex;
use std::time::Instant;

use super::*;
use crate::device::Figures;
use crate::device::config::{PeerSnapshot, Snapshot};
use crate::key::PublicKey;

const PATIENCE: Duration = Duration::from_secs(20);

/// A site that says what it is told to.
#[derive(Default)]
struct Told {
    peers: usize,
    dead: Option<&'static str>,
    unready: Mutex<Vec<String>>,
    gone: bool,
}

impl Site for Told {
    fn is_alive(&self) -> Result<(), String> {
        self.dead.map_or(Ok(()), |reason| Err(reason.to_owned()))
    }

    fn is_ready(&self) -> Result<(), Vec<String>> {
        let reasons = self.unready.lock().unwrap().clone();
        if reasons.is_empty() { Ok(()) } else { Err(reasons) }
    }

    fn metrics(&self) -> Option<Exposition> {
        let peer = |n: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&n.to_le_bytes());
            PeerSnapshot {
                public_key: PublicKey::from_bytes(key),
                preshared_key: Default::default(),
                endpoint: None,
                last_handshake: None,
                rx_bytes: 1,
                tx_bytes: 2,
                persistent_keepalive: 0,
                allowed_ips: Vec::new(),
            }
        };
        let snapshot = Snapshot { peers: (0..self.peers).map(peer).collect(), ..Snapshot::default() };
        (!self.gone).then(|| Exposition::new("wg0", &snapshot, Figures::default()))
    }
}

fn start(site: Told) -> Server {
    serve(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(), Arc::new(site)).unwrap()
}

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends these bytes and reads until the end.
fn exchange(server: &Server, request: &str) -> String {
    let mut stream = connect(server);
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The status, and the body where it is not in pieces.
fn ask(server: &Server, method: &str, path: &str) -> (u16, String) {
    let answer = exchange(server, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n"));
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.to_lowercase().contains("connection: close"), "{head}");
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[test]
fn paths_and_methods() {
    let server = start(Told::default());
    let check = |method, path, status, body: &str| {
        assert_eq!(ask(&server, method, path), (status, body.to_owned()), "{method} {path}");
    };
    check("GET", "/livez", 200, "ok\n");
    check("GET", "/readyz", 200, "ok\n");
    check("GET", "/readyz?verbose", 200, "ok\n");
    check("HEAD", "/livez", 200, "");
    check("HEAD", "/readyz", 200, "");
    check("HEAD", "/metrics", 200, "");
    check("GET", "/", 404, "there are /metrics, /livez and /readyz\n");
    check("GET", "/metrics/", 404, "there are /metrics, /livez and /readyz\n");
    check("POST", "/metrics", 405, "by GET or HEAD only\n");
    check("DELETE", "/livez", 405, "by GET or HEAD only\n");
    check("POST", "/", 404, "there are /metrics, /livez and /readyz\n");
}

#[test]
fn bad_news() {
    let site =
        Told { dead: Some("it has ended"), unready: Mutex::new(vec!["a".into(), "b".into()]), ..Told::default() };
    let server = start(site);
    assert_eq!(ask(&server, "GET", "/livez"), (503, "it has ended\n".into()));
    assert_eq!(ask(&server, "GET", "/readyz"), (503, "a\nb\n".into()));
    assert_eq!(ask(&server, "HEAD", "/readyz"), (503, String::new()));
}

#[test]
fn garbage_is_answered_or_cut_off() {
    let server = start(Told::default());
    for garbage in ["\0\0\0\0\r\n\r\n", "GET\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let answer = exchange(&server, garbage);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    let long = format!("GET /livez HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(2 * HEAD_BYTES_MAX));
    let mut stream = connect(&server);
    // It may be closed before all is sent.
    let _ = stream.write_all(long.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(ask(&server, "GET", "/livez").0, 200);
}

#[test]
fn the_text_is_whole_or_visibly_not() {
    let server = start(Told { peers: 5000, ..Told::default() });
    let answer = exchange(&server, "GET /metrics HTTP/1.0\r\n\r\n");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(exposition::CONTENT_TYPE), "{head}");
    assert!(body.ends_with("# EOF\n"), "{} bytes", body.len());
    assert_eq!(body.matches("wireguard_sent_bytes_total{").count(), 5000);
    assert!(body.len() > 10 * CHUNK_BYTES);

    let server = start(Told { gone: true, ..Told::default() });
    let mut stream = connect(&server);
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(!answer.ends_with("0\r\n\r\n"), "the last piece is missing: {answer}");
}

#[test]
fn a_client_that_closes_its_side_is_answered() {
    let server = start(Told::default());
    let mut stream = connect(&server);
    stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok\n"), "{answer}");
}

#[test]
fn those_who_hold_connections_keep_nobody_out() {
    let server = start(Told { peers: 20_000, ..Told::default() });
    // Readers that do not read, and writers that do not write.
    let mut held: Vec<_> = (0..3 * CONNECTIONS_MAX).map(|_| connect(&server)).collect();
    for stream in held.iter_mut().step_by(2) {
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    let begun = Instant::now();
    assert_eq!(ask(&server, "GET", "/livez").0, 200);
    assert_eq!(ask(&server, "GET", "/readyz").0, 200);
    assert!(begun.elapsed() < HEAD_LIMIT, "{:?}", begun.elapsed());
    // The first of them was ended for the later ones.
    let mut rest = Vec::new();
    let ended = held[1].read_to_end(&mut rest);
    assert!(rest.is_empty() && begun.elapsed() < HEAD_LIMIT, "{ended:?} after {:?}", begun.elapsed());
    let begun = Instant::now();
    drop(server);
    assert!(begun.elapsed() < Duration::from_secs(2), "the end waits for nobody: {:?}", begun.elapsed());
}

#[test]
fn a_request_that_does_not_come_ends_the_connection() {
    let server = start(Told::default());
    let mut stream = connect(&server);
    stream.write_all(b"GET /livez HT").unwrap();
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!(begun.elapsed() < HEAD_LIMIT * 2, "{:?}", begun.elapsed());
}

#[test]
fn nothing_is_left_of_a_server() {
    let server = start(Told::default());
    let address = server.address();
    assert_eq!(ask(&server, "GET", "/livez").0, 200);
    drop(server);
    assert!(TcpStream::connect(address).is_err());
    drop(TcpListener::bind(address).unwrap());
}
