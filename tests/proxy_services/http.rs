//! HTTP: CONNECT, plain requests, passwords, and what is refused.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit::proxy::config::{Certificate, Http, Resolve, Secret, Service};
use adit::proxy::services::{Failure, Limits};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, version};
use tokio_rustls::{TlsConnector, rustls};

use super::network::{Scripted, any, echo_after_end, eventually, run, run_with};

pub(crate) fn open() -> Service {
    Service::Http(Http { bind: any(), username: None, password: None, certificate: None })
}

/// One message: its first line, its headers in lower case, its body.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    line: String,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Message {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|header| header.strip_prefix(&format!("{name}: ")))
    }
}

/// Reads one message with a length, in chunks, or without a body.
async fn read(stream: &mut BufReader<impl AsyncRead + Unpin>) -> Message {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        assert_ne!(stream.read_line(&mut line).await.unwrap(), 0, "an end after {lines:?}");
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let first = lines.remove(0);
    let headers = lines.iter().map(|header| {
        let (name, value) = header.split_once(':').unwrap();
        format!("{}: {}", name.to_lowercase(), value.trim())
    });
    let mut message = Message { line: first, headers: headers.collect(), body: Vec::new() };
    if let Some(length) = message.header("content-length") {
        message.body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut message.body).await.unwrap();
    } else if message.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut size = String::new();
            stream.read_line(&mut size).await.unwrap();
            let mut chunk = vec![0; usize::from_str_radix(size.trim(), 16).unwrap() + 2];
            stream.read_exact(&mut chunk).await.unwrap();
            chunk.truncate(chunk.len() - 2);
            if chunk.is_empty() {
                break;
            }
            message.body.extend(chunk);
        }
    }
    message
}

/// A server that answers a request by what it received of it: line and headers as a body, or for POST the body itself
/// in chunks. It keeps its connections.
async fn origin() -> SocketAddr {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut connections = 0;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            connections += 1;
            let number = connections;
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                while !stream.fill_buf().await.unwrap_or_default().is_empty() {
                    let message = read(&mut stream).await;
                    let common = format!(
                        "HTTP/1.1 200 OK\r\nConnection: x-hop\r\nX-Hop: 1\r\nProxy-Authenticate: Basic\r\nX-Number: {number}\r\n"
                    );
                    let answer = if message.line.starts_with("POST") {
                        let mut answer = format!("{common}Transfer-Encoding: chunked\r\n\r\n").into_bytes();
                        for chunk in message.body.chunks(40_000) {
                            answer.extend(format!("{:x}\r\n", chunk.len()).bytes());
                            answer.extend(chunk);
                            answer.extend(b"\r\n");
                        }
                        answer.extend(b"0\r\n\r\n");
                        answer
                    } else {
                        let body = [&[message.line][..], &message.headers].concat().join("\n");
                        format!("{common}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
                    };
                    stream.get_mut().write_all(&answer).await.unwrap();
                }
            });
        }
    });
    address
}

async fn connected(proxy: SocketAddr) -> BufReader<TcpStream> {
    BufReader::new(TcpStream::connect(proxy).await.unwrap())
}

async fn ask(stream: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>, request: &str) -> Message {
    stream.get_mut().write_all(request.as_bytes()).await.unwrap();
    read(stream).await
}

/// [RFC 9110 §4.2.4, §7.6.1], [RFC 9112 §3.2.2]
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_request_is_sent_on_without_what_is_for_the_hop() {
    let origin = origin().await;
    let proxy = run(open(), Scripted::with_names(&[("here.test", &["127.0.0.1"])]));
    let mut stream = connected(proxy.address).await;
    let request = format!(
        "GET http://me:secret@here.test:{}/a?b=c HTTP/1.1\r\nHost: elsewhere\r\nProxy-Connection: keep-alive\r\n\
         Connection: x-private, close-not, host\r\nConnection: \u{e4}, x-other\r\nX-Other: 1\r\nX-Private: 1\r\nX-Public: 2\r\nTE: gzip\r\nUpgrade: h2c\r\n\
         Proxy-Authorization: Basic AAAA\r\nKeep-Alive: 5\r\n\r\n",
        origin.port()
    );
    let answer = ask(&mut stream, &request).await;
    assert_eq!(answer.line, "HTTP/1.1 200 OK");
    assert_eq!((answer.header("x-hop"), answer.header("via")), (None, Some("1.1 adit")));
    assert_eq!(answer.header("proxy-authenticate"), None, "the client knows one proxy");
    let body = String::from_utf8(answer.body).unwrap();
    let mut lines: Vec<_> = body.lines().collect();
    assert_eq!(lines.remove(0), "GET /a?b=c HTTP/1.1");
    lines.sort_unstable();
    let host = format!("host: here.test:{}", origin.port());
    assert_eq!(lines, [host.as_str(), "via: 1.1 adit", "x-public: 2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_kept_on_both_sides() {
    let (one, two) = (origin().await, origin().await);
    let proxy = run(open(), Scripted::default());
    let mut stream = connected(proxy.address).await;
    let get = |origin: SocketAddr, path: &str| format!("GET http://{origin}/{path} HTTP/1.1\r\nHost: x\r\n\r\n");
    // Pipelined: all are answered, in order.
    let pipelined = [get(one, "1"), get(one, "2"), get(two, "3"), get(one, "4")].concat();
    stream.get_mut().write_all(pipelined.as_bytes()).await.unwrap();
    let mut numbers = Vec::new();
    for path in 1..=4 {
        let answer = read(&mut stream).await;
        assert!(answer.body.starts_with(format!("GET /{path} ").as_bytes()), "{answer:?}");
        numbers.push(answer.header("x-number").unwrap().to_owned());
    }
    assert_eq!(numbers, ["1", "1", "1", "2"], "the last one's target had been left for another");
    assert_eq!(proxy.counters.figures().accepted, 1);
}

/// A kept connection that its server has closed is no reason to fail.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_was_closed_is_made_again() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            read(&mut stream).await;
            // It promises to keep the connection, and does not.
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    });
    let proxy = run(open(), Scripted::default());
    let mut stream = connected(proxy.address).await;
    for _ in 0..5 {
        let answer = ask(&mut stream, &format!("GET http://{address}/ HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!((answer.line.as_str(), answer.body.as_slice()), ("HTTP/1.1 200 OK", &b"ok"[..]));
    }
}

/// It may also be closed while the next request is on its way: what may be asked twice is. [RFC 9110 §9.2.2]
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_met_the_end_of_its_connection_is_sent_again() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            read(&mut stream).await;
            stream.get_mut().write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            // The next one is read, and not answered.
            let _ = stream.fill_buf().await;
        }
    });
    let proxy = run(open(), Scripted::default());
    let mut stream = connected(proxy.address).await;
    for (verb, status) in [("GET", "200"), ("GET", "200"), ("POST", "502")] {
        let request = format!("{verb} http://{address}/ HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.get_mut().write_all(request.as_bytes()).await.unwrap();
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line.split(' ').nth(1), Some(status), "{verb}");
        while !matches!(line.as_str(), "\r\n") {
            line.clear();
            stream.read_line(&mut line).await.unwrap();
        }
        if verb == "GET" {
            stream.read_exact(&mut [0; 2]).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_any_size_stream_through() {
    let origin = origin().await;
    let proxy = run(open(), Scripted::default());
    let body: Vec<u8> = (0..6_000_000u32).map(|i| (i % 249) as u8).collect();
    let check = async |framing: &str, framed: &[u8]| {
        let stream = TcpStream::connect(proxy.address).await.unwrap();
        let (read_half, mut write_half) = stream.into_split();
        let head = format!("POST http://{origin}/ HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n");
        let framed = framed.to_vec();
        let sending = tokio::spawn(async move {
            write_half.write_all(head.as_bytes()).await.unwrap();
            write_half.write_all(&framed).await.unwrap();
            write_half
        });
        let stream = read_half;
        let write_half = sending.await.unwrap();
        let mut stream = BufReader::new(stream.reunite(write_half).unwrap());
        let answer = read(&mut stream).await;
        assert_eq!(answer.line, "HTTP/1.1 200 OK");
        assert!(answer.body == body, "{framing}");
    };
    check(&format!("Content-Length: {}", body.len()), &body).await;
    let mut chunked = Vec::new();
    for chunk in body.chunks(70_000) {
        chunked.extend(format!("{:x}\r\n", chunk.len()).bytes());
        chunked.extend(chunk);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    check("Transfer-Encoding: chunked", &chunked).await;
}

/// [RFC 9110 §9.3.6]
#[tokio::test(flavor = "multi_thread")]
async fn connect_joins_two_connections() {
    let target = echo_after_end().await;
    let proxy = run(open(), Scripted::with_names(&[("here.test", &["127.0.0.1"])]));
    for host in ["127.0.0.1", "here.test"] {
        let mut stream = connected(proxy.address).await;
        // With bytes ahead of the answer.
        let request = format!("CONNECT {host}:{} HTTP/1.1\r\nHost: x\r\n\r\nahead, ", target.port());
        stream.get_mut().write_all(request.as_bytes()).await.unwrap();
        let answer = read(&mut stream).await;
        assert_eq!(answer.line, "HTTP/1.1 200 OK");
        assert_eq!((answer.header("content-length"), answer.header("transfer-encoding")), (None, None));
        stream.get_mut().write_all(b"and after").await.unwrap();
        stream.get_mut().shutdown().await.unwrap();
        let mut echo = String::new();
        stream.read_to_string(&mut echo).await.unwrap();
        assert_eq!(echo, "ahead, and after");
    }
    eventually("nobody is served", || proxy.counters.figures().served == 0).await;
    assert_eq!(proxy.counters.figures().sent_bytes, 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_status() {
    let proxy = run(open(), Scripted::default());
    let nobody = TcpListener::bind(any()).await.unwrap().local_addr().unwrap();
    let check = async |request: &str, status: u16, text: &str| {
        let mut stream = connected(proxy.address).await;
        let answer = ask(&mut stream, &format!("{request} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.line.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {}", answer.line);
        assert_eq!(String::from_utf8_lossy(&answer.body).trim_end(), text, "{request}");
        // The connection is good for another request.
        let again = ask(&mut stream, "GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
        assert!(again.line.starts_with("HTTP/1.1 400 "), "{request}: {}", again.line);
    };
    for verb in ["CONNECT ", "GET http://"] {
        check(&format!("{verb}192.0.2.1:80"), 502, "the target refuses the connection").await;
        check(&format!("{verb}{nobody}"), 502, "the target refuses the connection").await;
        check(&format!("{verb}192.0.2.2:80"), 502, "the host is unreachable").await;
        check(&format!("{verb}192.0.2.3:80"), 502, "the network is unreachable").await;
        check(&format!("{verb}192.0.2.4:80"), 504, "the target does not answer").await;
        check(&format!("{verb}192.0.2.5:80"), 403, "the destination is not allowed").await;
        check(&format!("{verb}unknown.test:80"), 502, "the name does not resolve").await;
    }
    check("GET /", 400, "not a request of this protocol").await;
    check("GET https://127.0.0.1/", 400, "not a request of this protocol").await;
    check("CONNECT 127.0.0.1", 400, "not a request of this protocol").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_http_is_refused() {
    let proxy = run(open(), Scripted::default());
    let long = format!("GET http://127.0.0.1/ HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let both =
        "POST http://192.0.2.1/ HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: gzip\r\n\r\nhello";
    for (request, expected) in [("\u{5}\u{1}\u{0}\r\n\r\n", "400"), (long.as_str(), "431"), (both, "400")] {
        let mut stream = connected(proxy.address).await;
        // It may close on what it does not want to read.
        let _ = stream.get_mut().write_all(request.as_bytes()).await;
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        assert_eq!(line.split(' ').nth(1), Some(expected), "{line}");
    }
    eventually("the counter", || proxy.counters.figures().failures(Failure::Malformed) == 3).await;
}

/// [RFC 7617 §2]
#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for_and_checked() {
    let origin = origin().await;
    let password = Some(Secret::new("geheim".into()));
    let proxy = run(
        Service::Http(Http { bind: any(), username: Some("nutzer".into()), password, certificate: None }),
        Scripted::default(),
    );
    let mut stream = connected(proxy.address).await;
    let request = |verb: &str, authorization: &str| format!("{verb} HTTP/1.1\r\nHost: x\r\n{authorization}\r\n");
    let (get, connect) = (format!("GET http://{origin}/"), format!("CONNECT {origin}"));
    // nutzer:falsch, nutzer, :geheim, and what is no base64.
    let wrong = ["", "Basic bnV0emVyOmZhbHNjaA==", "Basic bnV0emVy", "Basic OmdlaGVpbQ==", "Basic !", "Bearer abc"];
    for verb in [&get, &connect] {
        for value in wrong {
            let header = if value.is_empty() { String::new() } else { format!("Proxy-Authorization: {value}\r\n") };
            let answer = ask(&mut stream, &request(verb, &header)).await;
            assert_eq!(answer.line, "HTTP/1.1 407 Proxy Authentication Required", "{value}");
            assert_eq!(answer.header("proxy-authenticate"), Some("Basic realm=\"adit\", charset=\"UTF-8\""));
        }
    }
    assert_eq!(proxy.counters.figures().half_open, 1);
    // On the same connection, as a client does that was asked.
    let right = "Proxy-Authorization: basic bnV0emVyOmdlaGVpbQ==\r\n";
    let answer = ask(&mut stream, &request(&get, right)).await;
    assert_eq!(answer.line, "HTTP/1.1 200 OK");
    assert!(!String::from_utf8_lossy(&answer.body).contains("authorization"));
    assert_eq!((proxy.counters.figures().half_open, proxy.counters.figures().served), (0, 1));
    let answer = ask(&mut stream, &request(&connect, right)).await;
    assert_eq!(answer.line, "HTTP/1.1 200 OK");
}

/// HTTP/1.0, as simple clients speak it: the end of the connection is the end of the body.
#[tokio::test(flavor = "multi_thread")]
async fn old_clients_are_served() {
    let origin = origin().await;
    let proxy = run(open(), Scripted::default());
    let mut stream = connected(proxy.address).await;
    let request = format!("POST http://{origin}/ HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello");
    stream.get_mut().write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n") && answer.ends_with("\r\n\r\nhello"), "{answer}");
}

/// What an origin reads of one request, as it stands, and its answer, as it stands.
async fn raw_origin(answer: &'static [u8]) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind(any()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (seen, requests) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let message = read(&mut stream).await;
            let body = String::from_utf8_lossy(&message.body).into_owned();
            seen.send([&[message.line][..], &message.headers, &[body]].concat().join("\n")).unwrap();
            stream.get_mut().write_all(answer).await.unwrap();
        }
    });
    (address, requests)
}

/// A body is a body, whatever the method.
#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_a_get_is_sent_on() {
    let (origin, mut requests) = raw_origin(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let proxy = run(open(), Scripted::default());
    for framed in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        let mut stream = connected(proxy.address).await;
        let answer = ask(&mut stream, &format!("GET http://{origin}/ HTTP/1.1\r\nHost: x\r\n{framed}")).await;
        assert_eq!(answer.line, "HTTP/1.1 200 OK");
        let request = requests.recv().await.unwrap();
        assert!(request.ends_with("\nhello"), "{framed}: {request}");
    }
}

/// [RFC 9112 §6.3]: who says both means the chunks.
#[tokio::test(flavor = "multi_thread")]
async fn a_length_beside_chunks_is_not_sent_on() {
    const BOTH: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let (origin, mut requests) = raw_origin(BOTH).await;
    let proxy = run(open(), Scripted::default());
    for lengths in [["Content-Length: 3\r\n", ""], ["", "Content-Length: 3\r\n"]] {
        let mut stream = connected(proxy.address).await;
        let [before, after] = lengths;
        let request = format!(
            "POST http://{origin}/ HTTP/1.1\r\nHost: x\r\n{before}Transfer-Encoding: chunked\r\n{after}\r\n5\r\nhello\r\n0\r\n\r\n"
        );
        let answer = ask(&mut stream, &request).await;
        assert_eq!((answer.header("content-length"), answer.body.as_slice()), (None, &b"hello"[..]));
        let request = requests.recv().await.unwrap();
        assert!(request.ends_with("\nhello") && !request.contains("content-length"), "{request}");
    }
}

/// As `nc -X connect` and ncat ask; and with a length, which means nothing here. [RFC 9110 §9.3.6]
#[tokio::test(flavor = "multi_thread")]
async fn connect_is_understood_as_old_clients_say_it() {
    let target = echo_after_end().await;
    let proxy = run(open(), Scripted::default());
    for (rest, echoed) in [
        (" HTTP/1.0\r\n\r\n", "after"),
        (" HTTP/1.0\r\n\r\nahead, ", "ahead, after"),
        (" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "after"),
        (" HTTP/1.1\r\nHost: x\r\nProxy-Connection: keep-alive\r\nContent-Length: 0\r\n\r\n", "after"),
    ] {
        let mut stream = connected(proxy.address).await;
        let answer = ask(&mut stream, &format!("CONNECT {target}{rest}")).await;
        assert_eq!(answer.line.split(' ').nth(1), Some("200"), "{rest:?}: {answer:?}");
        stream.get_mut().write_all(b"after").await.unwrap();
        stream.get_mut().shutdown().await.unwrap();
        let mut echo = String::new();
        stream.read_to_string(&mut echo).await.unwrap();
        assert_eq!(echo, echoed, "{rest:?}");
    }
}

/// What a CONNECT has behind its head is for the target: a body in between would be neither's.
#[tokio::test(flavor = "multi_thread")]
async fn connect_has_no_body() {
    let target = echo_after_end().await;
    let proxy = run(open(), Scripted::default());
    for framed in ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"] {
        let mut stream = connected(proxy.address).await;
        let answer = ask(&mut stream, &format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n{framed}")).await;
        assert_eq!(answer.line, "HTTP/1.1 400 Bad Request", "{framed}");
    }
    assert_eq!(proxy.counters.figures().sent_bytes, 0);
}

/// A port that is none is not taken for the usual one.
#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_none_leads_nowhere() {
    let proxy = run(open(), Scripted::default());
    for target in ["127.0.0.1:99999", "127.0.0.1:080000", "127.0.0.1:-1", "127.0.0.1:+80", "me@[::1]:99999"] {
        let mut stream = connected(proxy.address).await;
        let answer = ask(&mut stream, &format!("GET http://{target}/ HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.line.starts_with("HTTP/1.1 400 "), "{target}: {}", answer.line);
    }
}

const CHAIN: &[u8] = include_bytes!("../certificates/proxy.crt");
const KEY: &[u8] = include_bytes!("../certificates/proxy.key");

fn open_with_tls() -> Service {
    let certificate = Certificate::from_pem(CHAIN, KEY).unwrap();
    Service::Http(Http { bind: any(), username: None, password: None, certificate: Some(certificate) })
}

/// Speaks TLS of this version with the proxy, which shows the certificate that is expected.
async fn connected_by_tls(
    proxy: SocketAddr,
    version: &'static rustls::SupportedProtocolVersion,
    alpn: &[&str],
) -> io::Result<BufReader<TlsStream<TcpStream>>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CHAIN).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from("proxy.test").unwrap();
    let stream = TcpStream::connect(proxy).await.unwrap();
    Ok(BufReader::new(TlsConnector::from(Arc::new(config)).connect(name, stream).await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_speak_tls_are_served_as_others_are() {
    let origin = origin().await;
    let echo = echo_after_end().await;
    let proxy = run(open_with_tls(), Scripted::default());
    for (version, alpn) in [(&version::TLS13, &["h2", "http/1.1"][..]), (&version::TLS12, &[])] {
        let mut stream = connected_by_tls(proxy.address, version, alpn).await.unwrap();
        let chosen = stream.get_ref().get_ref().1.alpn_protocol();
        assert_eq!(chosen, alpn.last().map(|name| name.as_bytes()));
        let answer = ask(&mut stream, &format!("GET http://{origin}/ HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert_eq!((answer.line.as_str(), answer.header("via")), ("HTTP/1.1 200 OK", Some("1.1 adit")));
        let connect = format!("CONNECT {echo} HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(ask(&mut stream, &connect).await.line, "HTTP/1.1 200 OK");
        // More than any buffer holds, and then an end of one direction only.
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8 ^ (number >> 8) as u8).collect();
        stream.get_mut().write_all(&bytes).await.unwrap();
        stream.get_mut().shutdown().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert!(back == bytes, "{} bytes came back of {}", back.len(), bytes.len());
    }
    assert_eq!(proxy.counters.figures().failures(Failure::Malformed), 0);
    eventually("the end", || proxy.counters.figures().served == 0).await;
}

/// Half a message must not look like a whole one: [RFC 8446 §6.1].
#[tokio::test(flavor = "multi_thread")]
async fn an_end_without_a_word_of_tls_is_passed_on_as_a_reset() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let target = listener.local_addr().unwrap();
    let proxy = run(open_with_tls(), Scripted::default());
    let mut stream = connected_by_tls(proxy.address, &version::TLS13, &[]).await.unwrap();
    let connect = format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(ask(&mut stream, &connect).await.line, "HTTP/1.1 200 OK");
    let (mut accepted, _) = listener.accept().await.unwrap();
    stream.get_mut().write_all(b"half").await.unwrap();
    let mut half = [0; 4];
    accepted.read_exact(&mut half).await.unwrap();
    let (mut tcp, _tls) = stream.into_inner().into_inner();
    tcp.shutdown().await.unwrap();
    let error = accepted.read(&mut half).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_tls_is_not_served_where_it_is_spoken() {
    let mut limits = Limits::default();
    limits.handshake_timeout = Duration::from_millis(300);
    let proxy = run_with(open_with_tls(), Scripted::default(), Resolve::default(), limits);
    // Not a word of HTTP for who does not speak it, nor a certificate for who speaks another protocol inside.
    let mut plain = TcpStream::connect(proxy.address).await.unwrap();
    plain.write_all(b"GET http://192.0.2.1/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut said = Vec::new();
    let _ = plain.read_to_end(&mut said).await;
    assert!(!String::from_utf8_lossy(&said).contains("HTTP"), "{said:?}");
    eventually("the counter", || proxy.counters.figures().failures(Failure::Malformed) == 1).await;
    assert!(connected_by_tls(proxy.address, &version::TLS13, &["h2"]).await.is_err());
    eventually("the counter", || proxy.counters.figures().failures(Failure::Malformed) == 2).await;
    // Who says nothing, before TLS or in the middle of it, stays half-open for its time only.
    let _silent = TcpStream::connect(proxy.address).await.unwrap();
    let mut halting = TcpStream::connect(proxy.address).await.unwrap();
    halting.write_all(&[0x16, 3, 1, 0x40, 0]).await.unwrap();
    eventually("both", || proxy.counters.figures().half_open == 2).await;
    eventually("their time", || proxy.counters.figures().failures(Failure::HandshakeTimeout) == 2).await;
    assert_eq!(proxy.counters.figures().half_open, 0);
}
