//! Forwards to one target: TCP both ways, UDP, and the DNS.

use std::net::SocketAddr;
use std::time::Duration;

use adit::proxy::config::{
    Dns, Host, Resolve, ResolveStrategy, Service, Target, TcpClientTunnel, TcpServerTunnel, UdpProxyTunnel,
    UdpServerTunnel,
};
use adit::proxy::services::{Failure, Limits, Services};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::network::{Scripted, any, datagram_echo, echo_after_end, eventually, run, run_with, target};

pub(crate) async fn round_trip(address: SocketAddr, payload: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(payload).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut echo = Vec::new();
    stream.read_to_end(&mut echo).await.unwrap();
    assert!(echo == payload, "{} bytes of {}", echo.len(), payload.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_leads_into_the_tunnel_and_out_of_it() {
    let echo = echo_after_end().await;
    let inbound = TcpClientTunnel { bind: any(), target: target(echo) };
    // A free port, by asking for one and giving it back.
    let listen_port = TcpListener::bind(any()).await.unwrap().local_addr().unwrap().port();
    let outbound = TcpServerTunnel { listen_port, target: target(echo) };
    for service in [Service::TcpClientTunnel(inbound), Service::TcpServerTunnel(outbound)] {
        let forward = run(service, Scripted::default());
        for size in [0, 1, 100_000, 3_000_000] {
            round_trip(forward.address, &vec![7; size]).await;
        }
        assert_eq!(forward.counters.figures().accepted, 4);
        assert_eq!(forward.counters.figures().sent_bytes, 3_100_001);
        eventually("nobody is served", || forward.counters.figures().served == 0).await;
    }
}

/// A forward has no words for a failure, but a reset is none to be mistaken for an answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_cannot_be_reached_resets() {
    let tunnel = TcpClientTunnel { bind: any(), target: target("192.0.2.1:80".parse().unwrap()) };
    let forward = run(Service::TcpClientTunnel(tunnel), Scripted::default());
    // The reset can be there before the client has seen that it was accepted.
    let outcome = match TcpStream::connect(forward.address).await {
        Ok(mut stream) => stream.read(&mut [0]).await,
        Err(error) => Err(error),
    };
    assert_eq!(outcome.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    eventually("the counter", || forward.counters.figures().failures(Failure::Refused) == 1).await;
}

/// Which addresses of a name count may change while a service runs: it goes on, with what it has.
#[tokio::test(flavor = "multi_thread")]
async fn the_way_to_resolve_changes_while_a_service_runs() {
    let echo = echo_after_end().await;
    let target = Target { host: Host::Name("echo.test".into()), port: echo.port() };
    let resolve = |strategy| Resolve { strategy };
    let network = Scripted::with_names(&[("echo.test", &["127.0.0.1"])]);
    let services = Services::new(network, resolve(ResolveStrategy::Ipv4), Limits::default());
    let bound = services.bind(&Service::TcpClientTunnel(TcpClientTunnel { bind: any(), target })).unwrap();
    let (address, counters) = (bound.local_addrs()[0], bound.counters());
    let running = tokio::spawn(bound.run());
    let mut held = TcpStream::connect(address).await.unwrap();
    held.write_all(b"held").await.unwrap();
    // Which is after its name was resolved.
    eventually("it is carried", || counters.figures().sent_bytes == 4).await;

    services.set_resolve(resolve(ResolveStrategy::Ipv6));
    // The reset can be there before the client has seen that it was accepted.
    if let Ok(mut refused) = TcpStream::connect(address).await {
        assert!(refused.read(&mut [0]).await.is_err());
    }
    eventually("the counter", || counters.figures().failures(Failure::NameNotResolved) == 1).await;
    services.set_resolve(resolve(ResolveStrategy::Auto));
    round_trip(address, b"again").await;

    held.shutdown().await.unwrap();
    let mut back = Vec::new();
    held.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, b"held");
    running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_be_served_waits_for_a_place() {
    let echo = echo_after_end().await;
    let tunnel = Service::TcpClientTunnel(TcpClientTunnel { bind: any(), target: target(echo) });
    let mut limits = Limits::default();
    limits.clients = 2;
    let forward = run_with(tunnel, Scripted::default(), Resolve::default(), limits);
    let first = TcpStream::connect(forward.address).await.unwrap();
    let second = TcpStream::connect(forward.address).await.unwrap();
    eventually("both are served", || forward.counters.figures().served == 2).await;
    let address = forward.address;
    let third = tokio::spawn(async move { round_trip(address, b"patience").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!third.is_finished());
    assert_eq!(forward.counters.figures().accepted, 2);
    drop(first);
    timeout(Duration::from_secs(10), third).await.expect("its turn comes").unwrap();
    drop(second);
}

async fn exchange(socket: &UdpSocket, payload: &[u8]) -> Vec<u8> {
    socket.send(payload).await.unwrap();
    let mut buffer = vec![0; 65536];
    let length = timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.expect("an answer").unwrap();
    buffer.truncate(length);
    buffer
}

async fn client(address: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind(any()).await.unwrap();
    socket.connect(address).await.unwrap();
    socket
}

#[tokio::test(flavor = "multi_thread")]
async fn each_client_of_a_udp_forward_has_its_own_way() {
    let target = target(datagram_echo().await);
    let inactivity_timeout = Duration::from_millis(200);
    let inbound = UdpProxyTunnel { bind: any(), target: target.clone(), inactivity_timeout };
    // A free port, by asking for one and giving it back.
    let listen_port = UdpSocket::bind(any()).await.unwrap().local_addr().unwrap().port();
    let outbound = UdpServerTunnel { listen_port, target, inactivity_timeout };
    for service in [Service::UdpProxyTunnel(inbound), Service::UdpServerTunnel(outbound)] {
        let forward = run(service, Scripted::default());
        let (one, two) = (client(forward.address).await, client(forward.address).await);
        for round in 0..3 {
            assert_eq!(exchange(&one, &[1, round]).await, [1, round]);
            assert_eq!(exchange(&two, &[2, round]).await, [2, round]);
        }
        assert_eq!(exchange(&one, &[]).await, [0; 0]);
        assert_eq!(exchange(&one, &[9; 9000]).await, [9; 9000]);
        // Two, unless the machine took longer than a client is remembered.
        assert!(forward.counters.figures().accepted >= 2);
        // Forgotten, and known again.
        let before = forward.counters.figures().accepted;
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(exchange(&one, b"again").await, b"again");
        assert_eq!(forward.counters.figures().accepted, before + 1);
        assert_eq!(forward.counters.figures().sent_datagrams, 9);
    }
}

/// Whoever else inside the tunnel finds the port of a mapping does not reach its client.
#[tokio::test(flavor = "multi_thread")]
async fn only_the_targets_answers_come_back() {
    let (inside, stranger) = (UdpSocket::bind(any()).await.unwrap(), UdpSocket::bind(any()).await.unwrap());
    let target = target(inside.local_addr().unwrap());
    let tunnel = UdpProxyTunnel { bind: any(), target, inactivity_timeout: Duration::ZERO };
    let forward = run(Service::UdpProxyTunnel(tunnel), Scripted::default());
    let client = client(forward.address).await;
    client.send(b"question").await.unwrap();
    let (_, mut mapping) = inside.recv_from(&mut [0; 20]).await.unwrap();
    mapping.set_ip([127, 0, 0, 1].into());
    stranger.send_to(b"forged", mapping).await.unwrap();
    eventually("foreign", || forward.counters.figures().failures(Failure::ForeignSource) == 1).await;
    inside.send_to(b"answer", mapping).await.unwrap();
    let mut buffer = [0; 20];
    let length = timeout(Duration::from_secs(10), client.recv(&mut buffer)).await.expect("an answer").unwrap();
    assert_eq!(&buffer[..length], b"answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_idle_makes_room_in_a_udp_forward() {
    let target = target(datagram_echo().await);
    let tunnel = UdpProxyTunnel { bind: any(), target, inactivity_timeout: Duration::ZERO };
    let mut limits = Limits::default();
    limits.clients = 2;
    let forward = run_with(Service::UdpProxyTunnel(tunnel), Scripted::default(), Resolve::default(), limits);
    let clients = [client(forward.address).await, client(forward.address).await, client(forward.address).await];
    for (number, client) in (0..).zip(&clients) {
        assert_eq!(exchange(client, &[number]).await, [number]);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(forward.counters.figures().failures(Failure::Evicted), 1);
    // The second one kept its place, the first one gets the third one's.
    assert_eq!(exchange(&clients[1], b"2").await, b"2");
    assert_eq!(forward.counters.figures().accepted, 3);
    assert_eq!(exchange(&clients[0], b"1").await, b"1");
    assert_eq!(forward.counters.figures().accepted, 4);
}

/// A query for one name, with an id.
fn query(id: u16) -> Vec<u8> {
    [&id.to_be_bytes()[..], b"\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01a\x04test\x00\x00\x01\x00\x01"].concat()
}

fn answer(mut query: Vec<u8>) -> Vec<u8> {
    query[2] |= 0x80;
    query.extend(b"an answer of ours");
    query
}

/// A server that answers over UDP and TCP, the former in the reverse order of every two queries.
async fn server() -> SocketAddr {
    // A port that is free for TCP may be taken for UDP.
    let (listener, address, socket) = loop {
        let listener = TcpListener::bind(any()).await.unwrap();
        let address = listener.local_addr().unwrap();
        if let Ok(socket) = UdpSocket::bind(address).await {
            break (listener, address, socket);
        }
    };
    tokio::spawn(async move {
        let mut buffer = [0; 600];
        loop {
            let mut waiting = Vec::new();
            for _ in 0..2 {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                waiting.push((answer(buffer[..length].to_vec()), from));
            }
            for (answer, from) in waiting.into_iter().rev() {
                // Somebody who does not know the id, first.
                socket.send_to(&[&[0xff, 0xff][..], &answer[2..]].concat(), from).await.unwrap();
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut query = vec![0; length.into()];
                    stream.read_exact(&mut query).await.unwrap();
                    let answer = answer(query);
                    stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_reach_the_tunnels_servers_unchanged() {
    // The first one is silent.
    let silent = UdpSocket::bind(any()).await.unwrap();
    let network = Scripted { resolvers: vec![server().await], ..Scripted::default() };
    let dns = run(Service::Dns(Dns { bind: any() }), network.clone());
    let (one, two) = (client(dns.address).await, client(dns.address).await);
    // The same id from two clients.
    let (first, second) = (query(7), query(7));
    let answers = tokio::join!(exchange(&one, &first), exchange(&two, &second));
    assert_eq!(answers, (answer(query(7)), answer(query(7))));

    let mut stream = TcpStream::connect(dns.address).await.unwrap();
    let mut asked = Vec::new();
    for id in [1, 2, 3] {
        asked.extend(u16::try_from(query(id).len()).unwrap().to_be_bytes());
        asked.extend(query(id));
    }
    stream.write_all(&asked).await.unwrap();
    for id in [1, 2, 3] {
        let mut answered = vec![0; stream.read_u16().await.unwrap().into()];
        stream.read_exact(&mut answered).await.unwrap();
        assert_eq!(answered, answer(query(id)));
    }
    assert_eq!(dns.counters.figures().failures(Failure::ForeignSource), 2);

    // An answer and a fragment of a query are no queries.
    for bytes in [&answer(query(1))[..], &[1, 2, 3]] {
        one.send(bytes).await.unwrap();
    }
    eventually("both", || dns.counters.figures().failures(Failure::Malformed) == 2).await;

    let resolvers = vec![silent.local_addr().unwrap(), network.resolvers[0]];
    let dns = run(Service::Dns(Dns { bind: any() }), Scripted { resolvers, ..Scripted::default() });
    let (one, two) = (client(dns.address).await, client(dns.address).await);
    let answers = tokio::join!(exchange(&one, &first), exchange(&two, &second));
    assert_eq!(answers, (answer(query(7)), answer(query(7))), "by the second server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_that_nobody_answers_fails() {
    let dns = run(Service::Dns(Dns { bind: any() }), Scripted::default());
    let failed = exchange(&client(dns.address).await, &query(7)).await;
    assert_eq!((failed[0..2].to_vec(), failed[3] & 0x0f, failed.len()), (vec![0, 7], 2, query(7).len()));
}
