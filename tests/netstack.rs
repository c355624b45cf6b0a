//! Two devices in one process, a stack behind each, and what goes between them: no root, no TUN, no socket.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use adit::device::Device;
use adit::device::config::{AllowedIp, AllowedIpUpdate, PeerUpdate, Update};
use adit::key::PrivateKey;
use adit::netstack::{Config, MTU_FEWEST, MTU_FEWEST_IPV6, MTU_MOST, Net, Netstack, TcpStream};
use adit::udp::Udp;
use adit::udp::lossy::{Faults, LossyUdp};
use adit::udp::memory::MemoryNetwork;

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);
const PORT: u16 = 51820;

/// A device with a stack behind it.
struct Host {
    device: Device,
    net: Net,
}

fn v4(host: u8) -> IpAddr {
    Ipv4Addr::new(10, 0, 0, host).into()
}

fn v6(host: u8) -> IpAddr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, host.into()).into()
}

fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}

fn outer(host: u8) -> SocketAddr {
    (Ipv4Addr::new(192, 0, 2, host), PORT).into()
}

fn key(host: u8) -> PrivateKey {
    PrivateKey::from_bytes([host; 32])
}

fn config(host: u8) -> Config {
    Config::new(vec![(v4(host), 24), (v6(host), 64)])
}

/// Host `number`, whose one peer is `peer`.
fn host(udp: impl Udp + 'static, number: u8, peer: u8, config: Config) -> Host {
    let (tun, net) = Netstack::pair(config).expect("a sensible configuration");
    let device = Device::builder(tun, udp).start().expect("threads start");
    eventually(|| device.snapshot().listen_port != 0);
    let allowed =
        |address, prefix_len| AllowedIpUpdate { allowed_ip: AllowedIp { address, prefix_len }, remove: false };
    let update = Update {
        private_key: Some(Some(key(number))),
        listen_port: Some(PORT),
        peers: vec![PeerUpdate {
            endpoint: Some(outer(peer)),
            allowed_ips: vec![allowed(v4(peer), 32), allowed(v6(peer), 128)],
            ..PeerUpdate::new(key(peer).public_key())
        }],
        ..Update::default()
    };
    device.apply(update).expect("a sensible update");
    Host { device, net }
}

fn pair_with(change: impl Fn(&mut Config)) -> (Host, Host) {
    let network = MemoryNetwork::new();
    let host = |number, peer| {
        let mut config = config(number);
        change(&mut config);
        host(network.host(&[outer(number).ip()]), number, peer, config)
    };
    (host(1, 2), host(2, 1))
}

fn pair() -> (Host, Host) {
    pair_with(|_| ())
}

fn eventually(mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < PATIENCE, "it did not come about in {PATIENCE:?}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Bytes that tell if some are missing or changed places.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|number| (number.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}

fn kind<T>(result: io::Result<T>) -> ErrorKind {
    result.err().expect("it fails").kind()
}

/// Sends back what it reads, until the end of it.
fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            len => stream.write_all(&buffer[..len])?,
        }
    }
}

/// Accepts `count` connections on `net` and serves each from a thread of its own.
fn serve(net: &Net, at: SocketAddr, count: usize, each: fn(TcpStream) -> io::Result<()>) -> thread::JoinHandle<()> {
    let listener = net.listen_tcp(at).expect("a free port");
    thread::spawn(move || {
        let serving: Vec<_> = (0..count)
            .map(|_| {
                let (stream, _) = listener.accept().expect("a connection comes");
                thread::spawn(move || each(stream))
            })
            .collect();
        for thread in serving {
            thread.join().expect("no panic").expect("served");
        }
    })
}

/// Sends `sent` through an echo and checks what comes back.
fn check_echo(stream: &TcpStream, sent: &[u8]) {
    thread::scope(|scope| {
        scope.spawn(|| {
            (&mut &*stream).write_all(sent).expect("written");
            stream.shutdown(Shutdown::Write).expect("shut down");
        });
        let mut received = Vec::new();
        (&mut &*stream).read_to_end(&mut received).expect("read");
        assert!(received == sent, "{} bytes of {} came back right", received.len(), sent.len());
    });
}

#[test]
fn megabytes_both_ways_and_half_closed() {
    let (one, two) = pair();
    for (host, address) in [v4(2), v6(2)].into_iter().enumerate() {
        let server = serve(&two.net, at(address, 7), 1, echo);
        let stream = one.net.connect_tcp(at(address, 7), PATIENCE).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), at(address, 7));
        assert_eq!(stream.local_addr().unwrap().ip(), [v4(1), v6(1)][host]);
        check_echo(&stream, &pattern(8 << 20));
        server.join().unwrap();
        // Writes of every small length.
        let server = serve(&two.net, at(address, 7), 1, echo);
        let mut stream = one.net.connect_tcp(at(address, 7), PATIENCE).unwrap();
        stream.set_nodelay(true).unwrap();
        for len in 1..50 {
            let (sent, mut received) = (pattern(len), vec![0; len]);
            stream.write_all(&sent).unwrap();
            stream.read_exact(&mut received).unwrap();
            assert_eq!(received, sent);
        }
        drop(stream);
        server.join().unwrap();
    }
    let stats = two.net.stats();
    assert_eq!((stats.tcp_accepts, stats.inbound_dropped, stats.outbound_dropped), (4, 0, 0), "{stats:?}");
    eventually(|| one.net.stats().tcp_open == 0 && two.net.stats().tcp_open == 0);
    assert_eq!(one.net.stats().tcp_time_wait + two.net.stats().tcp_time_wait, 4);
    assert_eq!(one.device.snapshot().peers.len(), 1);
}

#[test]
fn connections_fail_as_the_systems_do() {
    let (one, _two) = pair();
    assert_eq!(kind(one.net.connect_tcp(at(v4(2), 9), PATIENCE)), ErrorKind::ConnectionRefused);
    assert_eq!(kind(one.net.connect_tcp(at(v6(2), 9), PATIENCE)), ErrorKind::ConnectionRefused);
    // No peer has it: the device says so.
    assert_eq!(kind(one.net.connect_tcp(at(v4(3), 9), PATIENCE)), ErrorKind::HostUnreachable);
    assert_eq!(kind(one.net.connect_tcp(at(v6(3), 9), PATIENCE)), ErrorKind::HostUnreachable);
    assert_eq!(kind(one.net.ping(v4(3), PATIENCE)), ErrorKind::HostUnreachable);
    assert_eq!(kind(one.net.connect_tcp(at(v4(2), 0), PATIENCE)), ErrorKind::InvalidInput);
    one.net.set_addresses(vec![(v4(1), 24)]).unwrap();
    assert_eq!(kind(one.net.connect_tcp(at(v6(2), 9), PATIENCE)), ErrorKind::NetworkUnreachable);
    assert_eq!(kind(one.net.listen_tcp(at(v6(1), 9))), ErrorKind::AddrNotAvailable);
    eventually(|| one.net.stats().tcp_open == 0);
}

#[test]
fn waiting_ends_in_time() {
    let network = MemoryNetwork::new();
    // The peer does not exist.
    let one = host(network.host(&[outer(1).ip()]), 1, 2, config(1));
    for _ in 0..2 {
        let start = Instant::now();
        assert_eq!(kind(one.net.connect_tcp(at(v4(2), 7), SHORT)), ErrorKind::TimedOut);
        assert_eq!(kind(one.net.ping(v4(2), SHORT)), ErrorKind::TimedOut);
        assert!((2 * SHORT..PATIENCE).contains(&start.elapsed()));
    }
    let socket = one.net.bind_udp(at(v4(1), 0)).unwrap();
    socket.set_read_timeout(Some(SHORT)).unwrap();
    assert_eq!(kind(socket.recv_from(&mut [0; 10])), ErrorKind::WouldBlock);
    assert_eq!(kind(socket.set_read_timeout(Some(Duration::ZERO))), ErrorKind::InvalidInput);

    let (one, two) = pair();
    let listener = two.net.listen_tcp(at(v4(2), 7)).unwrap();
    let mut stream = one.net.connect_tcp(at(v4(2), 7), PATIENCE).unwrap();
    stream.set_read_timeout(Some(SHORT)).unwrap();
    assert_eq!(kind(stream.read(&mut [0; 10])), ErrorKind::WouldBlock);
    stream.set_write_timeout(Some(SHORT)).unwrap();
    // Nobody reads: the buffers of both ends fill up.
    let mut written = 0;
    let failure = loop {
        match stream.write(&[0; 1 << 16]) {
            Ok(len) => written += len,
            Err(error) => break error.kind(),
        }
    };
    assert_eq!(failure, ErrorKind::WouldBlock);
    assert!((256 << 10..2 << 20).contains(&written), "{written}");
    drop(listener);
    eventually(|| kind(stream.read(&mut [0; 10])) == ErrorKind::ConnectionReset);
}

#[test]
fn a_connection_that_is_dropped_is_closed_in_order_or_reset() {
    let (one, two) = pair();
    let listener = two.net.listen_tcp(at(v4(2), 7)).unwrap();
    let mut first = one.net.connect_tcp(at(v4(2), 7), PATIENCE).unwrap();
    let (mut accepted, from) = listener.accept().unwrap();
    assert_eq!(from, first.local_addr().unwrap());
    first.write_all(b"last words").unwrap();
    drop(first);
    let mut text = String::new();
    accepted.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    drop(accepted);
    eventually(|| one.net.stats().tcp_open == 0 && two.net.stats().tcp_open == 0);

    let mut second = one.net.connect_tcp(at(v4(2), 7), PATIENCE).unwrap();
    let (mut accepted, _) = listener.accept().unwrap();
    accepted.write_all(b"never read").unwrap();
    let mut one_byte = [0];
    second.read_exact(&mut one_byte).unwrap();
    drop(second);
    eventually(|| match accepted.write(&[0]) {
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    });
    eventually(|| one.net.stats().tcp_open == 0 && two.net.stats().tcp_open == 0);
}

/// Loss, duplication and reordering of outer datagrams lose nothing of a connection.
#[test]
fn f_17_a_bad_network() {
    let network = MemoryNetwork::new();
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7);
    println!("SEED={seed}");
    let udp = |number| LossyUdp::new(network.host(&[outer(number).ip()]), Faults::default(), seed + u64::from(number));
    let (udp_one, udp_two) = (udp(1), udp(2));
    let (one, two) = (host(udp_one.clone(), 1, 2, config(1)), host(udp_two.clone(), 2, 1, config(2)));
    one.net.ping(v4(2), PATIENCE).unwrap();
    let faults = Faults { loss: 10, duplication: 10, reordering: 20, ..Faults::default() };
    udp_one.set_faults(faults);
    udp_two.set_faults(faults);
    let server = serve(&two.net, at(v4(2), 7), 4, echo);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let stream = one.net.connect_tcp(at(v4(2), 7), PATIENCE).unwrap();
                check_echo(&stream, &pattern(300_000));
            });
        }
    });
    server.join().unwrap();
}

#[test]
fn a_connection_that_is_aborted_is_reset() {
    let (one, two) = pair();
    let listener = two.net.listen_tcp(at(v4(2), 7)).unwrap();
    for is_dropped in [false, true] {
        let mut first = one.net.connect_tcp(at(v4(2), 7), PATIENCE).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        if is_dropped {
            first.reset_on_drop();
            drop(first);
        } else {
            first.abort();
            assert_eq!(kind(first.write(&[0])), ErrorKind::ConnectionAborted);
            assert_eq!(kind(first.read(&mut [0])), ErrorKind::ConnectionAborted);
        }
        assert_eq!(kind(accepted.read(&mut [0])), ErrorKind::ConnectionReset);
        drop(accepted);
    }
    eventually(|| one.net.stats().tcp_open == 0 && two.net.stats().tcp_open == 0);
    assert_eq!(one.net.stats().tcp_time_wait + two.net.stats().tcp_time_wait, 0);
}

/// A server on every address answers from the one that was asked: an answer from another is not taken for one.
#[test]
fn answers_come_from_the_address_that_was_asked() {
    const OTHER: u8 = 9;
    // Both belong to the second host, and the first one's peer may have either.
    let network = MemoryNetwork::new();
    let one = host(network.host(&[outer(1).ip()]), 1, 2, config(1));
    let mut two_config = config(2);
    two_config.addresses.push((v4(OTHER), 32));
    let two = host(network.host(&[outer(2).ip()]), 2, 1, two_config);
    let allowed_ip = AllowedIp { address: v4(OTHER), prefix_len: 32 };
    let more = PeerUpdate {
        allowed_ips: vec![AllowedIpUpdate { allowed_ip, remove: false }],
        ..PeerUpdate::new(key(2).public_key())
    };
    one.device.apply(Update { peers: vec![more], ..Update::default() }).unwrap();

    let server = two.net.bind_udp(at(Ipv4Addr::UNSPECIFIED.into(), 53)).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    for asked in [v4(2), v4(OTHER)] {
        let client = one.net.bind_udp(at(v4(1), 0)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect(at(asked, 53)).unwrap();
        client.send(b"question").unwrap();
        let mut buffer = [0; 20];
        let (len, from, to) = server.recv_from_to(&mut buffer).unwrap();
        assert_eq!((&buffer[..len], from, to), (&b"question"[..], client.local_addr().unwrap(), asked));
        server.send_from(to, b"answer", from).unwrap();
        let len = client.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"answer");
    }
    assert_eq!(kind(server.send_from(v4(1), b"", at(v4(1), 53))), ErrorKind::AddrNotAvailable);
    let bound = two.net.bind_udp(at(v4(2), 0)).unwrap();
    assert_eq!(kind(bound.send_from(v4(OTHER), b"", at(v4(1), 53))), ErrorKind::AddrNotAvailable);
}

#[test]
fn datagrams_and_echoes() {
    let (one, two) = pair();
    for (own, peer) in [(v4(1), v4(2)), (v6(1), v6(2))] {
        assert!(one.net.ping(peer, PATIENCE).unwrap() < PATIENCE);
        let client = one.net.bind_udp(at(own, 0)).unwrap();
        let anywhere = if own.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let server = two.net.bind_udp(at(anywhere, 53)).unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        for len in [0, 1, 500, 1372, 1393, 5000, 65_507] {
            let sent = pattern(len);
            assert_eq!(client.send_to(&sent, at(peer, 53)).unwrap(), len);
            let mut buffer = vec![0; 70_000];
            let (received, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..received], from), (&sent[..], client.local_addr().unwrap()));
            server.send_to(&buffer[..received], from).unwrap();
            let (received, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..received], from), (&sent[..], at(peer, 53)));
        }
        assert_eq!(
            kind(client.send_to(&[0], at(if own.is_ipv4() { v6(2) } else { v4(2) }, 53))),
            ErrorKind::InvalidInput
        );
    }
    assert_eq!(one.net.stats().inbound_dropped + two.net.stats().inbound_dropped, 0);
}

/// Every MTU that is taken carries: the least, which IPv6 cannot have, and the most.
#[test]
fn the_least_and_the_largest_mtu() {
    for (mtu, has_ipv6) in [(MTU_FEWEST, false), (MTU_FEWEST_IPV6, true), (MTU_MOST, true)] {
        let (one, two) = pair_with(|config| {
            config.mtu = mtu;
            config.addresses.retain(|(address, _)| has_ipv6 || address.is_ipv4());
        });
        let addresses = [v4(2), v6(2)];
        for address in addresses.into_iter().filter(|address| has_ipv6 || address.is_ipv4()) {
            let served = serve(&two.net, at(address, 7), 1, echo);
            check_echo(&one.net.connect_tcp(at(address, 7), PATIENCE).unwrap(), &pattern(1_000_000));
            served.join().unwrap();
            assert!(one.net.ping(address, PATIENCE).is_ok());
        }
        let both = one.net.set_addresses(config(1).addresses);
        assert_eq!(both.map_err(|error| error.kind()), if has_ipv6 { Ok(()) } else { Err(ErrorKind::InvalidInput) });
    }
    let refused = |mtu, addresses| {
        let mut config = config(1);
        (config.mtu, config.addresses) = (mtu, addresses);
        kind(Netstack::pair(config))
    };
    assert_eq!(refused(MTU_FEWEST - 1, vec![(v4(1), 24)]), ErrorKind::InvalidInput);
    assert_eq!(refused(MTU_FEWEST_IPV6 - 1, vec![(v4(1), 24), (v6(1), 64)]), ErrorKind::InvalidInput);
    assert_eq!(refused(MTU_MOST + 1, vec![(v4(1), 24)]), ErrorKind::InvalidInput);
}

#[test]
fn a_thousand_connections_at_once() {
    const CONNECTIONS: usize = 1000;
    const BYTES: usize = 20_000;
    let (one, two) = pair();
    let listener = two.net.listen_tcp(at(v4(2), 7)).unwrap();
    let net = one.net.clone();
    let clients = thread::spawn(move || {
        let streams: Vec<_> = (0..CONNECTIONS).map(|_| net.connect_tcp(at(v4(2), 7), PATIENCE).unwrap()).collect();
        assert_eq!(net.stats().tcp_open, CONNECTIONS);
        let sent = pattern(BYTES);
        for mut stream in &streams {
            stream.write_all(&sent).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
        }
        for mut stream in streams {
            let mut received = Vec::new();
            stream.read_to_end(&mut received).unwrap();
            assert!(received == sent);
        }
    });
    let accepted: Vec<_> = (0..CONNECTIONS).map(|_| listener.accept().unwrap().0).collect();
    for stream in accepted {
        echo(stream).unwrap();
    }
    clients.join().unwrap();
    eventually(|| one.net.stats().tcp_open == 0 && two.net.stats().tcp_open == 0);
    assert_eq!(two.net.stats().tcp_overflows, 0);
}

#[test]
fn bounds_hold() {
    let (one, two) = pair_with(|config| config.connections_max = 10);
    let listener = two.net.listen_tcp(at(v4(2), 7)).unwrap();
    let streams: Vec<_> = (0..10).map(|_| one.net.connect_tcp(at(v4(2), 7), PATIENCE).unwrap()).collect();
    assert_eq!(kind(one.net.connect_tcp(at(v4(2), 7), PATIENCE)), ErrorKind::QuotaExceeded);
    drop(streams);
    // Nobody accepted them: they are reset.
    drop(listener);
    eventually(|| one.net.stats().tcp_open == 0 && two.net.stats().tcp_open == 0);
    let listener = two.net.listen_tcp(at(v4(2), 7)).unwrap();
    one.net.connect_tcp(at(v4(2), 7), PATIENCE).unwrap();
    drop(listener);
}

/// A name server on `net`: `www.example.` has addresses of both families, `alias.example.` leads there, `big.example.`
/// is only told by TCP, `mute.example.` never; there are no other names.
fn serve_names(net: &Net, own: IpAddr) {
    use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};
    use hickory_proto::rr::{Name, RData, Record, RecordType};

    fn answer(question: &[u8], is_datagram: bool) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).expect("a message");
        let query = question.queries[0].clone();
        let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
        answer.add_query(query.clone());
        let www = Name::from_ascii("www.example.").expect("a name");
        let address = match query.query_type() {
            RecordType::A => RData::A(A(Ipv4Addr::new(192, 0, 2, 80))),
            _ => RData::AAAA(AAAA(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x80))),
        };
        match query.name().to_string().as_str() {
            "www.example." => _ = answer.add_answer(Record::from_rdata(www, 60, address)),
            "alias.example." => {
                let alias = RData::CNAME(CNAME(www.clone()));
                answer.add_answer(Record::from_rdata(query.name().clone(), 60, alias));
                answer.add_answer(Record::from_rdata(www, 60, address));
            }
            "big.example." if is_datagram => answer.metadata.truncation = true,
            "big.example." => _ = answer.add_answer(Record::from_rdata(query.name().clone(), 60, address)),
            "mute.example." => return None,
            _ => answer.metadata.response_code = ResponseCode::NXDomain,
        }
        Some(answer.to_vec().expect("a message"))
    }

    let socket = net.bind_udp(at(own, 53)).expect("a free port");
    thread::spawn(move || {
        let mut buffer = [0; 2000];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            if let Some(answer) = answer(&buffer[..len], true) {
                // First what somebody else guesses.
                let mut wrong = answer.clone();
                wrong[0] ^= 1;
                socket.send_to(&wrong, from).expect("sent");
                socket.send_to(&answer, from).expect("sent");
            }
        }
    });
    let listener = net.listen_tcp(at(own, 53)).expect("a free port");
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut len = [0; 2];
            stream.read_exact(&mut len).expect("a length");
            let mut question = vec![0; u16::from_be_bytes(len).into()];
            stream.read_exact(&mut question).expect("a question");
            let answer = answer(&question, false).expect("an answer");
            stream.write_all(&(answer.len() as u16).to_be_bytes()).expect("written");
            stream.write_all(&answer).expect("written");
        }
    });
}

#[test]
fn names() {
    let (one, two) = pair();
    assert_eq!(kind(one.net.resolve("www.example")), ErrorKind::Unsupported);
    serve_names(&two.net, v4(2));
    one.net.set_dns(vec![at(v4(2), 53)], vec!["example".into()]);
    let own: [IpAddr; 2] = ["2001:db8::80".parse().unwrap(), "192.0.2.80".parse().unwrap()];
    for name in ["www.example", "www", "WWW.Example.", "alias.example", "big.example"] {
        assert_eq!(one.net.resolve(name).unwrap(), own, "{name}");
    }
    assert_eq!(kind(one.net.resolve("nobody.example")), ErrorKind::NotFound);
    assert_eq!(kind(one.net.resolve("a..b")), ErrorKind::InvalidInput);
    assert_eq!(one.net.resolve("10.1.2.3").unwrap(), [IpAddr::from([10, 1, 2, 3])]);
    assert_eq!(one.net.resolve("[::1]").unwrap(), [IpAddr::from(Ipv6Addr::LOCALHOST)]);
    one.net.set_addresses(vec![(v4(1), 24)]).unwrap();
    assert_eq!(one.net.resolve("www").unwrap(), own[1..], "only what can be reached");
    let start = Instant::now();
    assert_eq!(kind(one.net.resolve("mute.example")), ErrorKind::TimedOut);
    assert!(start.elapsed() < Duration::from_secs(10));
    // Where nobody is, the next one is asked.
    one.net.set_dns(vec![at(v4(3), 53), at(v4(2), 53)], Vec::new());
    assert_eq!(one.net.resolve("www.example").unwrap(), own[1..]);
}

#[cfg(feature = "tokio")]
#[test]
fn the_same_for_tokio() {
    use ::tokio::io::{AsyncReadExt, AsyncWriteExt, copy, split};
    use adit::netstack::tokio;

    let (one, two) = pair();
    serve_names(&two.net, v4(2));
    one.net.set_dns(vec![at(v4(2), 53)], Vec::new());
    let (client, server) = (tokio::Net::from(one.net.clone()), tokio::Net::from(two.net.clone()));
    let runtime = ::tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let listener = server.listen_tcp(at(v4(2), 7)).unwrap();
        ::tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                ::tokio::spawn(async move {
                    let (mut reader, mut writer) = split(stream);
                    copy(&mut reader, &mut writer).await.unwrap();
                    writer.shutdown().await.unwrap();
                });
            }
        });
        let clients: Vec<_> = (0..20)
            .map(|_| {
                let client = client.clone();
                ::tokio::spawn(async move {
                    let stream = client.connect_tcp(at(v4(2), 7)).await.unwrap();
                    let (mut reader, mut writer) = split(stream);
                    let sent = pattern(200_000);
                    let expected = sent.clone();
                    ::tokio::spawn(async move {
                        writer.write_all(&sent).await.unwrap();
                        writer.shutdown().await.unwrap();
                    });
                    let mut received = Vec::new();
                    reader.read_to_end(&mut received).await.unwrap();
                    assert!(received == expected);
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        assert_eq!(kind(client.connect_tcp(at(v4(2), 9)).await), ErrorKind::ConnectionRefused);
        assert!(client.ping(v6(2), PATIENCE).await.unwrap() < PATIENCE);
        assert_eq!(client.resolve("www.example").await.unwrap().len(), 2);

        let (one, two) = (client.bind_udp(at(v4(1), 0)).unwrap(), server.bind_udp(at(v4(2), 9)).unwrap());
        one.send_to(b"datagram", two.local_addr().unwrap()).await.unwrap();
        let mut buffer = [0; 100];
        let (len, from) = two.recv_from(&mut buffer).await.unwrap();
        assert_eq!((&buffer[..len], from), (&b"datagram"[..], one.local_addr().unwrap()));

        // What is given up leaves nothing behind.
        let connecting = client.connect_tcp(at(v4(2), 7));
        drop(Box::pin(connecting));
        let waiting = ::tokio::spawn(async move { one.recv_from(&mut [0; 10]).await.map(|_| ()) });
        waiting.abort();
        assert!(waiting.await.is_err());
    });
    eventually(|| one.net.stats().tcp_open == 0 && two.net.stats().tcp_open == 0);
}

/// When the device ends, everything that waits learns of it.
#[test]
fn the_end_of_the_device() {
    let (one, two) = pair();
    let listener = two.net.listen_tcp(at(v4(2), 7)).unwrap();
    let mut stream = one.net.connect_tcp(at(v4(2), 7), PATIENCE).unwrap();
    let accepting = one.net.listen_tcp(at(v4(1), 8)).unwrap();
    let socket = one.net.bind_udp(at(v4(1), 0)).unwrap();
    let net = one.net.clone();
    thread::scope(|scope| {
        let reading = scope.spawn(|| kind(stream.read(&mut [0])));
        let accepting = scope.spawn(|| kind(accepting.accept()));
        let receiving = scope.spawn(|| kind(socket.recv_from(&mut [0])));
        let connecting = scope.spawn(|| kind(net.ping(v4(9), PATIENCE)));
        thread::sleep(SHORT);
        drop(one);
        for waiting in [reading, accepting, receiving] {
            assert_eq!(waiting.join().unwrap(), ErrorKind::NetworkDown);
        }
        connecting.join().unwrap();
    });
    assert_eq!(kind(net.connect_tcp(at(v4(2), 7), PATIENCE)), ErrorKind::NetworkDown);
    assert_eq!(kind(stream.write(&[0])), ErrorKind::NetworkDown);
    drop(listener);
}
