//! SOCKS5: replies, passwords, connections and datagrams.

use std::net::SocketAddr;
use std::time::Duration;

use adit::proxy::config::{Resolve, ResolveStrategy, Secret, Service, Socks5};
use adit::proxy::services::{Failure, Limits, RESOLVING_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::network::{Running, Scripted, any, datagram_echo, echo_after_end, eventually, run, run_with};

pub(crate) fn open() -> Service {
    Service::Socks5(Socks5 { bind: any(), username: None, password: None })
}

fn closed() -> Service {
    let password = Some(Secret::new("geheim".into()));
    Service::Socks5(Socks5 { bind: any(), username: Some("nutzer".into()), password })
}

/// The bytes of a request for an address in text.
pub(crate) fn request(command: u8, host: &str, port: u16) -> Vec<u8> {
    let mut bytes = vec![5, command, 0];
    match host.parse() {
        Ok(std::net::IpAddr::V4(ip)) => bytes.extend([&[1][..], &ip.octets()].concat()),
        Ok(std::net::IpAddr::V6(ip)) => bytes.extend([&[4][..], &ip.octets()].concat()),
        Err(_) => bytes.extend([&[3, u8::try_from(host.len()).unwrap()][..], host.as_bytes()].concat()),
    }
    bytes.extend(port.to_be_bytes());
    bytes
}

/// Reads a reply: its code, and the address in it.
pub(crate) async fn reply(stream: &mut TcpStream) -> (u8, SocketAddr) {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!((head[0], head[2]), (5, 0));
    let ip = match head[3] {
        1 => {
            let mut ip = [0; 4];
            stream.read_exact(&mut ip).await.unwrap();
            ip.into()
        }
        4 => {
            let mut ip = [0; 16];
            stream.read_exact(&mut ip).await.unwrap();
            std::net::IpAddr::from(ip)
        }
        kind => panic!("address of kind {kind}"),
    };
    (head[1], SocketAddr::new(ip, stream.read_u16().await.unwrap()))
}

/// A client that was let in without a password.
async fn greeted(proxy: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(&[5, 1, 0]).await.unwrap();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [5, 0]);
    stream
}

async fn asked(proxy: &Running, request: &[u8]) -> (TcpStream, u8, SocketAddr) {
    let mut stream = greeted(proxy.address).await;
    stream.write_all(request).await.unwrap();
    let (code, bound) = reply(&mut stream).await;
    (stream, code, bound)
}

/// [RFC 1928 §6]
#[tokio::test(flavor = "multi_thread")]
async fn failures_have_their_codes() {
    let names: &[(&str, &[&str])] =
        &[("refused.test", &["192.0.2.3", "192.0.2.1", "192.0.2.3"]), ("six.test", &["2001:db8::1"])];
    let proxy = run(open(), Scripted::with_names(names));
    let check = async |bytes: Vec<u8>, expected: u8, failure: Failure| {
        let before = proxy.counters.figures().failures(failure);
        // What a client sends ahead must not cost it the reply.
        let ahead = [bytes.as_slice(), &[b'x'; 5000]].concat();
        let (mut stream, code, _) = asked(&proxy, &ahead).await;
        assert_eq!(code, expected, "{bytes:?}");
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "{bytes:?}: the end");
        eventually("the counter", || proxy.counters.figures().failures(failure) == before + 1).await;
    };
    check(request(1, "192.0.2.1", 80), 5, Failure::Refused).await;
    check(request(1, "192.0.2.2", 80), 4, Failure::HostUnreachable).await;
    check(request(1, "192.0.2.3", 80), 3, Failure::NetworkUnreachable).await;
    check(request(1, "192.0.2.4", 80), 4, Failure::TimedOut).await;
    check(request(1, "192.0.2.5", 80), 2, Failure::NotAllowed).await;
    check(request(1, "127.0.0.1", 0), 2, Failure::NotAllowed).await;
    check(request(1, "unknown.test", 80), 4, Failure::NameNotResolved).await;
    check(request(1, "not a name", 80), 4, Failure::NameNotResolved).await;
    // Of several addresses, the one that came furthest tells.
    check(request(1, "refused.test", 80), 5, Failure::Refused).await;
    // BIND, and what nobody knows.
    check(request(2, "127.0.0.1", 80), 7, Failure::UnsupportedCommand).await;
    check(request(9, "127.0.0.1", 80), 7, Failure::UnsupportedCommand).await;
    check(vec![5, 1, 0, 2, 0, 0, 0, 0, 0, 80], 8, Failure::UnsupportedAddress).await;

    // A port at which nobody listens, refused by the system itself.
    let nobody = TcpListener::bind(any()).await.unwrap().local_addr().unwrap();
    check(request(1, "127.0.0.1", nobody.port()), 5, Failure::Refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_socks5_is_closed() {
    let proxy = run(open(), Scripted::default());
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[4, 1, 0, 80, 127, 0, 0, 1, 0], &[0; 40]] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [0; 0], "{bytes:?}");
    }
    eventually("the counter", || proxy.counters.figures().failures(Failure::Malformed) == 3).await;
}

/// [RFC 1928 §3], [RFC 1929 §2]
#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_asked_for_and_checked() {
    let target = echo_after_end().await;
    let proxy = run(closed(), Scripted::default());
    let given = |username: &str, password: &str| {
        let length = |text: &str| vec![u8::try_from(text.len()).unwrap()];
        [&[1][..], &length(username), username.as_bytes(), &length(password), password.as_bytes()].concat()
    };
    let method = async |offer: &[u8]| {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(offer).await.unwrap();
        let mut answer = [0; 2];
        stream.read_exact(&mut answer).await.unwrap();
        (stream, answer)
    };
    let (mut stream, answer) = method(&[5, 1, 0]).await;
    assert_eq!(answer, [5, 0xff], "without a password");
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);

    for (username, password) in [("nutzer", "falsch"), ("anderer", "geheim"), ("nutzer", ""), ("", "")] {
        let (mut stream, answer) = method(&[5, 2, 0, 2]).await;
        assert_eq!(answer, [5, 2]);
        stream.write_all(&given(username, password)).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, [1, 1], "{username}:{password}");
    }
    let (mut stream, answer) = method(&[5, 2, 0, 2]).await;
    assert_eq!(answer, [5, 2]);
    // All at once, as some clients do.
    let ahead = [given("nutzer", "geheim"), request(1, "127.0.0.1", target.port()), b"hello".to_vec()].concat();
    stream.write_all(&ahead).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [1, 0]);
    assert_eq!(reply(&mut stream).await.0, 0);
    let mut echo = String::new();
    stream.read_to_string(&mut echo).await.unwrap();
    assert_eq!(echo, "hello");
    eventually("the counter", || proxy.counters.figures().failures(Failure::Unauthenticated) == 5).await;
}

/// The client ends first and gets everything nevertheless.
#[tokio::test(flavor = "multi_thread")]
async fn each_direction_ends_by_itself_and_nothing_is_lost() {
    let target = echo_after_end().await;
    let proxy = run(open(), Scripted::with_names(&[("here.test", &["127.0.0.1"])]));
    let payload: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    for host in ["127.0.0.1", "here.test"] {
        let (mut stream, code, bound) = asked(&proxy, &request(1, host, target.port())).await;
        assert_eq!((code, bound.ip().to_string().as_str()), (0, "127.0.0.1"));
        let (mut read, mut write) = stream.split();
        let send = async {
            write.write_all(&payload).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut echo = Vec::new();
        let (_, received) = tokio::join!(send, read.read_to_end(&mut echo));
        assert_eq!(received.unwrap(), payload.len());
        assert!(echo == payload);
    }
    let figures = proxy.counters.figures();
    assert_eq!((figures.accepted, figures.sent_bytes, figures.received_bytes), (2, 10_000_000, 10_000_000));
    eventually("nobody is served", || proxy.counters.figures().served == 0).await;
}

/// A target that breaks off in the middle looks broken to the client, and not complete.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_passed_on_after_what_came_before() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let proxy = run(open(), Scripted::default());
    let port = listener.local_addr().unwrap().port();
    let (mut stream, code, _) = asked(&proxy, &request(1, "127.0.0.1", port)).await;
    assert_eq!(code, 0);
    let (mut inside, _) = listener.accept().await.unwrap();
    inside.write_all(b"half").await.unwrap();
    let mut half = [0; 4];
    stream.read_exact(&mut half).await.unwrap();
    inside.set_zero_linger().unwrap();
    drop(inside);
    assert_eq!(stream.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    eventually("the counter", || proxy.counters.figures().failures(Failure::Broken) == 1).await;
}

/// And a client that breaks off looks broken to the target.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_passed_on_to_the_target() {
    let listener = TcpListener::bind(any()).await.unwrap();
    let proxy = run(open(), Scripted::default());
    let (stream, code, _) = asked(&proxy, &request(1, "127.0.0.1", listener.local_addr().unwrap().port())).await;
    assert_eq!(code, 0);
    let (mut inside, _) = listener.accept().await.unwrap();
    stream.set_zero_linger().unwrap();
    drop(stream);
    assert_eq!(inside.read(&mut [0]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_tried_in_order_and_by_family() {
    let target = echo_after_end().await;
    let names: &[(&str, &[&str])] =
        &[("both.test", &["127.0.0.1", "2001:db8::1"]), ("second.test", &["192.0.2.4", "127.0.0.1"])];
    let check = async |strategy, host: &str, expected: u8| {
        let mut limits = Limits::default();
        limits.connect_timeout = Duration::from_secs(5);
        let proxy = run_with(open(), Scripted::with_names(names), Resolve { strategy }, limits);
        let (_stream, code, _) = asked(&proxy, &request(1, host, target.port())).await;
        assert_eq!(code, expected, "{strategy:?} {host}");
    };
    // There is no route to the IPv6 address, so the next one is tried.
    check(ResolveStrategy::Auto, "both.test", 0).await;
    check(ResolveStrategy::Ipv4, "both.test", 0).await;
    check(ResolveStrategy::Ipv6, "second.test", 4).await;
    // The first is silent and gets its part of the time only.
    check(ResolveStrategy::Auto, "second.test", 0).await;
}

/// A client of an association: its TCP connection, its socket, and where to send to.
async fn associated(proxy: &Running) -> (TcpStream, UdpSocket, SocketAddr) {
    let (stream, code, bound) = asked(proxy, &request(3, "0.0.0.0", 0)).await;
    assert_eq!((code, bound.ip().to_string().as_str()), (0, "127.0.0.1"));
    (stream, UdpSocket::bind(any()).await.unwrap(), bound)
}

fn datagram(host: &str, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = request(0, host, port);
    bytes[..3].copy_from_slice(&[0, 0, 0]);
    bytes.extend_from_slice(payload);
    bytes
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65536];
    let received = timeout(Duration::from_secs(10), socket.recv_from(&mut buffer)).await;
    let (length, _) = received.expect("a datagram comes").unwrap();
    buffer.truncate(length);
    buffer
}

/// [RFC 1928 §7]
#[tokio::test(flavor = "multi_thread")]
async fn datagrams_go_out_and_come_back() {
    let target = datagram_echo().await;
    let proxy = run(open(), Scripted::with_names(&[("echo.test", &["2001:db8::1", "127.0.0.1"])]));
    let (stream, socket, bound) = associated(&proxy).await;
    let expected = |payload: &[u8]| datagram("127.0.0.1", target.port(), payload);

    for payload in [&b"one"[..], &[], &[7; 1400], &[8; 20_000]] {
        socket.send_to(&datagram("127.0.0.1", target.port(), payload), bound).await.unwrap();
        assert_eq!(receive(&socket).await, expected(payload));
    }
    // A name, twice: resolved, then remembered. The answer names the address.
    for payload in [b"two", b"3rd"] {
        socket.send_to(&datagram("echo.test", target.port(), payload), bound).await.unwrap();
        assert_eq!(receive(&socket).await, expected(payload));
    }
    let figures = proxy.counters.figures();
    assert_eq!((figures.sent_datagrams, figures.received_datagrams), (6, 6));

    // What is dropped leaves no trace but its counter.
    let dropped = [
        ([&[0, 0, 1][..], &datagram("127.0.0.1", target.port(), b"part")[3..]].concat(), Failure::Fragment),
        (datagram("unknown.test", 53, b"?"), Failure::NameNotResolved),
        (vec![0, 0, 0], Failure::Malformed),
        (vec![0, 0, 0, 77, 1, 2, 3], Failure::UnsupportedAddress),
    ];
    for (bytes, failure) in dropped {
        socket.send_to(&bytes, bound).await.unwrap();
        eventually(failure.label(), || proxy.counters.figures().failures(failure) == 1).await;
    }
    // Somebody else, although on the same host.
    let other = UdpSocket::bind(any()).await.unwrap();
    other.send_to(&datagram("127.0.0.1", target.port(), b"mine"), bound).await.unwrap();
    eventually("foreign", || proxy.counters.figures().failures(Failure::ForeignSource) == 1).await;
    socket.send_to(&datagram("127.0.0.1", target.port(), b"still here"), bound).await.unwrap();
    assert_eq!(receive(&socket).await, expected(b"still here"));

    // The association ends with its TCP connection.
    drop(stream);
    eventually("the end", || proxy.counters.figures().served == 0).await;
    let again = UdpSocket::bind(bound).await;
    assert!(again.is_ok(), "its port is free again");
}

/// Another address is nobody's client, even with the first datagram; and names that nobody answers for hold few datagrams.
#[tokio::test(flavor = "multi_thread")]
async fn an_association_is_for_one_address_and_waits_for_few_names() {
    let proxy = run_with(open(), Scripted::default(), Resolve::default(), Limits::default());
    let (_stream, socket, bound) = associated(&proxy).await;
    let other = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    other.send_to(&datagram("127.0.0.1", 9, b"mine"), bound).await.unwrap();
    eventually("foreign", || proxy.counters.figures().failures(Failure::ForeignSource) == 1).await;
    for _ in 0..=RESOLVING_MAX {
        socket.send_to(&datagram("silent.test", 9, b"?"), bound).await.unwrap();
    }
    eventually("one too many", || proxy.counters.figures().failures(Failure::QueueFull) == 1).await;
}

/// A client that names its port is served at no other.
#[tokio::test(flavor = "multi_thread")]
async fn the_port_of_the_request_counts() {
    let target = datagram_echo().await;
    let proxy = run(open(), Scripted::default());
    let socket = UdpSocket::bind(any()).await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let (_stream, code, bound) = asked(&proxy, &request(3, "127.0.0.1", port)).await;
    assert_eq!(code, 0);
    let other = UdpSocket::bind(any()).await.unwrap();
    other.send_to(&datagram("127.0.0.1", target.port(), b"first"), bound).await.unwrap();
    eventually("foreign", || proxy.counters.figures().failures(Failure::ForeignSource) == 1).await;
    socket.send_to(&datagram("127.0.0.1", target.port(), b"second"), bound).await.unwrap();
    assert_eq!(receive(&socket).await, datagram("127.0.0.1", target.port(), b"second"));
}
