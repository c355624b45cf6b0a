//! Too many clients, clients that say nothing, and the end of a service.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use adit::proxy::config::{Host, Resolve, Service, Target, UdpProxyTunnel};
use adit::proxy::services::{Failure, HALF_OPEN_MAX, HANDSHAKE_TIMEOUT, Limits, RESOLVING_MAX, WAITING_BYTES_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::network::{Scripted, echo_after_end, eventually, run, run_with};
use super::{http, socks5};

/// Descriptors that this process may have, after asking for all that it is allowed.
fn descriptors() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call gets a pointer to a whole `rlimit` that lives until it returns.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above; the limit is only read.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// KiB of memory that this process has.
fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn ask_http(proxy: SocketAddr, target: SocketAddr) -> String {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn ask_socks5(proxy: SocketAddr, target: SocketAddr) -> u8 {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(&[5, 1, 0]).await.unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.unwrap();
    stream.write_all(&socks5::request(1, &target.ip().to_string(), target.port())).await.unwrap();
    socks5::reply(&mut stream).await.0
}

/// One after the other, since a process has only so many descriptors.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_half_open_clients_are_bounded_and_in_nobodys_way() {
    let target = echo_after_end().await;
    // One for each client, as many as the service keeps, and some for everything else.
    let wanted = 10_000;
    let possible = descriptors().saturating_sub(2 * HALF_OPEN_MAX + 1000).min(wanted);
    if possible < wanted {
        println!("scaled down to {possible} clients: the process may have no more descriptors");
    }
    for (service, is_socks5) in [(socks5::open(), true), (http::open(), false)] {
        let proxy = run(service, Scripted::default());
        let before = resident_kib();
        let mut silent = Vec::new();
        let mut slowest = Duration::ZERO;
        for number in 0..possible {
            let mut stream = TcpStream::connect(proxy.address).await.unwrap();
            // Half of them begin to say something.
            if number % 2 == 0 {
                let _ = stream.write_all(if is_socks5 { &[5] } else { b"GET" }).await;
            }
            silent.push(stream);
            if number % 2000 == 1999 {
                let begun = Instant::now();
                if is_socks5 {
                    assert_eq!(ask_socks5(proxy.address, target).await, 0);
                } else {
                    assert_eq!(ask_http(proxy.address, target).await, "HTTP/1.1 200");
                }
                slowest = slowest.max(begun.elapsed());
            }
            assert!(proxy.counters.figures().half_open <= 2 * HALF_OPEN_MAX as u64);
        }
        let all = possible as u64;
        eventually("all are accepted", || proxy.counters.figures().accepted >= all).await;
        let grown = resident_kib().saturating_sub(before);
        let evicted = proxy.counters.figures().failures(Failure::Evicted);
        println!("{possible} clients: {evicted} evicted, {grown} KiB more, the slowest other client {slowest:?}");
        assert!(slowest < HANDSHAKE_TIMEOUT, "{slowest:?}");
        assert!(evicted + HALF_OPEN_MAX as u64 + 100 >= all, "{evicted}");
        // The clients' own ends are in this process too: a few KiB each, beside those of the service.
        assert!(grown < 100 * 1024, "{grown} KiB");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_does_not_end_is_ended() {
    for service in [socks5::open(), http::open()] {
        let mut limits = Limits::default();
        limits.handshake_timeout = Duration::from_millis(200);
        let proxy = run_with(service, Scripted::default(), Resolve::default(), limits);
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        // A byte now and then does not help.
        for byte in [5, 3] {
            stream.write_all(&[byte]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        eventually("the counter", || {
            let figures = proxy.counters.figures();
            figures.failures(Failure::HandshakeTimeout) + figures.failures(Failure::Malformed) == 1
        })
        .await;
        eventually("nobody is left", || proxy.counters.figures().half_open == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_one_too_many_is_told_so() {
    let target = echo_after_end().await;
    let mut limits = Limits::default();
    limits.clients = 1;
    let check = async |service: Service| {
        let proxy = run_with(service.clone(), Scripted::default(), Resolve::default(), limits);
        let mut first = TcpStream::connect(proxy.address).await.unwrap();
        let mut greeting = [0; 2];
        if let Service::Socks5(_) = service {
            first.write_all(&[5, 1, 0]).await.unwrap();
            first.read_exact(&mut greeting).await.unwrap();
            first.write_all(&socks5::request(1, "127.0.0.1", target.port())).await.unwrap();
            assert_eq!(socks5::reply(&mut first).await.0, 0);
            assert_eq!(ask_socks5(proxy.address, target).await, 1);
        } else {
            first.write_all(format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            first.read_exact(&mut greeting).await.unwrap();
            assert_eq!(ask_http(proxy.address, target).await, "HTTP/1.1 503");
        }
        eventually("the counter", || proxy.counters.figures().failures(Failure::Full) == 1).await;
        drop(first);
        eventually("room", || proxy.counters.figures().served == 0).await;
        if let Service::Socks5(_) = service {
            assert_eq!(ask_socks5(proxy.address, target).await, 0);
        } else {
            assert_eq!(ask_http(proxy.address, target).await, "HTTP/1.1 200");
        }
    };
    check(socks5::open()).await;
    check(http::open()).await;
}

/// A client is let in once, however much it asks for.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_takes_one_place() {
    let mut limits = Limits::default();
    limits.clients = 1;
    let proxy = run_with(http::open(), Scripted::default(), Resolve::default(), limits);
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    for _ in 0..3 {
        stream.write_all(b"GET http://192.0.2.1/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 500];
        let length = stream.read(&mut answer).await.unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 502 "), "{}", String::from_utf8_lossy(&answer[..length]));
    }
}

/// Datagrams wait for a name that nobody answers for, each client's few of them; of all there are not many.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_over_all_clients_is_bounded() {
    let payload = 60_000;
    let clients = WAITING_BYTES_MAX / payload + 20;
    let mut limits = Limits::default();
    limits.clients = clients;
    let silent = Target { host: Host::Name("silent.test".into()), port: 9 };
    let bind = "127.0.0.1:0".parse().unwrap();
    let forward = UdpProxyTunnel { bind, target: silent, inactivity_timeout: Duration::ZERO };
    let forward = run_with(Service::UdpProxyTunnel(forward), Scripted::default(), Resolve::default(), limits);
    // Kept, since a port that is free again would be the next client's.
    let mut sockets = Vec::new();
    for number in 0..clients {
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(&vec![7; payload], forward.address).unwrap();
        sockets.push(client);
        eventually("a mapping", || forward.counters.figures().accepted == number as u64 + 1).await;
    }
    eventually("no room", || forward.counters.figures().failures(Failure::QueueFull) > 0).await;
    assert!(forward.counters.figures().failures(Failure::QueueFull) <= 21);

    let proxy = run_with(socks5::open(), Scripted::default(), Resolve::default(), limits);
    let mut associations = Vec::new();
    let datagram = [&[0, 0, 0, 3, 11][..], b"silent.test", &[0, 9], &vec![7; payload]].concat();
    for _ in 0..=clients / RESOLVING_MAX {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(&[&[5, 1, 0][..], &socks5::request(3, "0.0.0.0", 0)].concat()).await.unwrap();
        stream.read_exact(&mut [0; 2]).await.unwrap();
        let (code, bound) = socks5::reply(&mut stream).await;
        assert_eq!(code, 0);
        let client = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..RESOLVING_MAX {
            client.send_to(&datagram, bound).unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        associations.push(stream);
    }
    eventually("no room", || proxy.counters.figures().failures(Failure::QueueFull) > 0).await;
    // And none is lost for good.
    drop(associations);
    eventually("nobody is served", || proxy.counters.figures().served == 0).await;
}

/// As a reload does with a service that is no longer there.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_service_frees_its_port_and_ends_its_clients() {
    for service in [socks5::open(), http::open()] {
        let proxy = run(service, Scripted::default());
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        eventually("accepted", || proxy.counters.figures().half_open == 1).await;
        let (address, counters) = (proxy.address, proxy.counters.clone());
        drop(proxy);
        // An end or a reset, but no silence.
        let _ = client.read(&mut [0]).await;
        eventually("nobody is left", || counters.figures().half_open == 0).await;
        assert!(TcpStream::connect(address).await.is_err());
        assert!(std::net::TcpListener::bind(address).is_ok());
    }
}
