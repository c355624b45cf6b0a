//! Spare sockets: who gets one, and that it makes no difference to what is sent and received.

use std::net::Ipv4Addr;

use socket2::SockRef;

use super::*;

/// More than enough trains for a connection.
const MANY: usize = 40;

/// A receiver and a sender over a port of their own, and what it is connected to.
struct Spares {
    group: Arc<SocketGroup>,
    sender: LinuxSender,
    receiver: LinuxReceiver,
    buffers: Buffers,
}

impl Spares {
    fn new() -> Self {
        let group = Arc::new(SocketGroup::bind(0, 0, 1, &Kernel).unwrap());
        let member = || Member { group: Arc::clone(&group), place: 0 };
        let sender = LinuxSender::with(member(), group.spares.len(), SendArray::new(SEND_BATCH_MAX));
        Self { sender, receiver: LinuxReceiver::new(member()), group, buffers: Buffers::new(8) }
    }

    fn at(&self, ip: IpAddr) -> SocketAddr {
        (ip, self.group.port).into()
    }

    /// Sends `count` datagrams one by one; all of them leave.
    fn send(&mut self, to: SocketAddr, source: Option<IpAddr>, count: usize) {
        for number in 0..count {
            let source = source.map(|ip| Source { ip, ifindex: 1 });
            let train = Transmit { to, source, tos: 0, segment: 8, data: &number.to_be_bytes(), offload: true };
            let mut sent = [Sent::default()];
            self.sender.send(&[train], &mut sent);
            assert_eq!(sent, [Sent { bytes: 8, ..Sent::default() }]);
        }
    }

    /// Whom its spares are connected to.
    fn connected(&self) -> Vec<SocketAddr> {
        let peer = |spare: &Spare| SockRef::from(&spare.socket.fd()).peer_addr().ok()?.as_socket();
        self.group.spares.iter().filter_map(peer).collect()
    }

    /// One call; the numbers that came, and whether there may be more.
    fn receive(&mut self) -> (Vec<usize>, bool) {
        let mut received = Vec::with_capacity(8);
        let more = self.receiver.receive(&mut self.buffers, &mut received).unwrap();
        let number = |it: &Received| usize::from_be_bytes(*self.buffers.whole(it.buffer).first_chunk().unwrap());
        (received.iter().map(number).collect(), more)
    }

    /// All that is there. Nobody asks the system for its word here, so each socket may have something.
    fn receive_all(&mut self) -> Vec<usize> {
        self.receiver.ready = self.receiver.all;
        let mut numbers = Vec::new();
        loop {
            let (more_numbers, more) = self.receive();
            numbers.extend(more_numbers);
            if !more {
                return numbers;
            }
        }
    }
}

/// Sends numbers one by one.
fn send_numbers(from: &mut End, to: SocketAddr, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let train = Transmit { to, source: None, tos: 0, segment: 8, data: &number.to_be_bytes(), offload: true };
        assert_eq!(from.send(&[train]), [Sent { bytes: 8, ..Sent::default() }]);
    }
}

/// Numbers, in the order in which they came, all from one port of one address.
fn numbers(end: &mut End, count: usize, from: SocketAddr) -> Vec<usize> {
    let datagrams = end.receive(count);
    assert!(datagrams.iter().all(|(received, _)| received.from == from));
    datagrams.iter().map(|(_, bytes)| usize::from_be_bytes(*bytes.first_chunk().unwrap())).collect()
}

/// The destination cannot tell by which socket a datagram left, and none is lost, doubled or overtaken by the change.
#[test]
fn who_is_sent_much_gets_a_socket() {
    for ip in [V4, V6] {
        let (mut a, mut b) = (Spares::new(), End::new());
        a.send(b.at(ip), Some(ip), 15);
        assert_eq!(a.connected(), []);
        a.send(b.at(ip), Some(ip), MANY);
        assert_eq!(a.connected(), [b.at(ip)]);
        let sent: Vec<_> = (0..15).chain(0..MANY).collect();
        assert_eq!(numbers(&mut b, 15 + MANY, a.at(ip)), sent);
    }
}

/// Answers, what others send, and what comes to another address of ours: all of it is received.
#[test]
fn everybody_is_still_heard() {
    for ip in [V4, V6] {
        let (mut a, mut b, mut stranger) = (End::new(), End::new(), End::new());
        let to = b.at(ip);
        let source = Some(Source { ip, ifindex: 1 });
        for _ in 0..MANY {
            let train = Transmit { to, source, tos: 0, segment: 1, data: b"x", offload: true };
            assert_eq!(a.send(&[train]), [Sent { bytes: 1, ..Sent::default() }]);
        }
        assert_eq!(b.receive(MANY).len(), MANY);
        let mut texts = Vec::new();
        let mut places = vec![a.at(ip)];
        places.extend(ip.is_ipv4().then(|| a.at(Ipv4Addr::new(127, 0, 0, 2).into())));
        for (end, text) in [(&mut b, "answer"), (&mut stranger, "letter")] {
            for &to in &places {
                let train = Transmit { to, source: None, tos: 1, segment: 6, data: text.as_bytes(), offload: true };
                end.send(&[train]);
                texts.push((text.as_bytes().to_vec(), to.ip()));
            }
        }
        let mut heard: Vec<_> = a
            .receive(texts.len())
            .into_iter()
            .map(|(received, bytes)| {
                assert_eq!(received.ecn, 1);
                (bytes, received.source.unwrap().ip)
            })
            .collect();
        heard.sort();
        texts.sort();
        assert_eq!(heard, texts);
        assert_eq!(a.receiver.readiness(Arc::new(|| ())).len(), 2 + 2 * SPARES);
    }
}

/// Trains of many segments, marked by routers, to several destinations in one call.
#[test]
fn trains_go_by_connected_sockets() {
    let (mut a, mut b, mut c) = (Spares::new(), End::new(), End::new());
    a.send(b.at(V4), Some(V4), MANY);
    b.receive(MANY);
    assert_eq!(a.connected(), [b.at(V4)]);
    let data: Vec<u8> = (0..10_050u32).map(|number| number as u8).collect();
    let source = Some(Source { ip: V4, ifindex: 1 });
    let to = [b.at(V4), b.at(V4), c.at(V4), b.at(V4), c.at(V6)];
    let train = |to| Transmit { to, source, tos: 3, segment: 100, data: &data, offload: true };
    let mut sent = [Sent::default(); 5];
    a.sender.send(&to.map(train), &mut sent);
    assert_eq!(sent, [Sent { bytes: data.len(), ..Sent::default() }; 5]);
    for (end, trains) in [(&mut b, 3), (&mut c, 2)] {
        let datagrams = end.receive(trains * 101);
        assert!(datagrams.iter().all(|(received, _)| received.ecn == 3));
        let bytes: Vec<u8> = datagrams.into_iter().flat_map(|(_, bytes)| bytes).collect();
        assert_eq!(bytes, data.repeat(trains));
    }
}

#[test]
fn who_cannot_be_connected_to_is_not() {
    let (mut a, mut b) = (Spares::new(), End::new());
    // Where the routing decides, it may decide otherwise the next time.
    a.send(b.at(V4), None, MANY);
    assert_eq!(a.connected(), []);
    // The kernel would send from 127.0.0.1.
    let destination = Destination { to: b.at(V4), source: Ipv4Addr::new(127, 0, 0, 2).into() };
    a.send(destination.to, Some(destination.source), MANY);
    assert!(a.sender.connections.find(&a.group, destination, true).is_none());
    assert_eq!(b.receive(2 * MANY).len(), 2 * MANY);
    // Nobody has more than the others.
    let mut ends = [(); 3].map(|()| End::new());
    for _ in 0..MANY {
        ends.iter().for_each(|end| a.send(end.at(V4), Some(V4), 1));
    }
    assert!(!a.connected().iter().any(|to| ends.iter().any(|end| end.at(V4) == *to)));
    assert!(ends.iter_mut().all(|end| end.receive(MANY).len() == MANY));
}

/// What comes before a spare is connected is received before what comes afterwards, however much of it waits, and whoever's
/// turn it is.
#[test]
fn the_order_outlives_a_connection() {
    for ip in [V4, V6] {
        for turn in 0..2 + 2 * SPARES {
            let (mut a, mut b) = (Spares::new(), End::new());
            a.receiver.first = turn as u32;
            send_numbers(&mut b, a.at(ip), 0..100);
            a.send(b.at(ip), Some(ip), MANY);
            assert_eq!(a.connected(), [b.at(ip)]);
            send_numbers(&mut b, a.at(ip), 100..200);
            assert!(a.group.spares.iter().any(Spare::has_something));
            assert_eq!(a.receive_all(), Vec::from_iter(0..200), "{ip}, turn {turn}");
            assert!(!a.group.spares.iter().any(Spare::is_pair_first));
        }
    }
}

/// Also where the pair was empty when the spare was connected, and is filled before the spare is read.
#[test]
fn a_spare_waits_until_it_has_something() {
    let (mut a, mut b, mut stranger) = (Spares::new(), End::new(), End::new());
    a.send(b.at(V4), Some(V4), MANY);
    for number in 0..20 {
        send_numbers(&mut stranger, a.at(V4), number..number + 1);
        assert_eq!(a.receive_all(), [number]);
    }
    assert!(a.group.spares.iter().any(Spare::is_pair_first));
    send_numbers(&mut stranger, a.at(V4), 0..100);
    send_numbers(&mut b, a.at(V4), 100..200);
    assert_eq!(a.receive_all(), Vec::from_iter(0..200));
    assert!(!a.group.spares.iter().any(Spare::is_pair_first));
}

/// A spare with something in it goes to nobody else: what its peer sends next would come to the pair, and be read first.
#[test]
fn the_order_outlives_the_end_of_a_connection() {
    let (mut a, mut b) = (Spares::new(), End::new());
    let mut others = [(); SPARES].map(|()| End::new());
    a.send(b.at(V4), Some(V4), MANY);
    send_numbers(&mut b, a.at(V4), 0..100);
    a.sender.connections.end(0);
    others.iter().for_each(|other| a.send(other.at(V4), Some(V4), MANY));
    assert_eq!(a.connected(), [b.at(V4), others[0].at(V4)]);
    send_numbers(&mut b, a.at(V4), 100..200);
    assert_eq!(a.receive_all(), Vec::from_iter(0..200));
    a.send(others[1].at(V4), Some(V4), MANY);
    assert_eq!(a.connected(), [others[1].at(V4), others[0].at(V4)]);
    // Of the two that are connected one sends nothing, and holds nobody up.
    send_numbers(&mut b, a.at(V4), 200..300);
    send_numbers(&mut others[1], a.at(V4), 300..400);
    assert_eq!(a.receive_all(), Vec::from_iter(200..400));
}

/// Strangers who fill the pair without end hold a peer up by what its buffer can hold, and not twice.
#[test]
fn a_flood_does_not_hold_up_who_was_connected() {
    let (mut a, mut b, mut stranger) = (Spares::new(), End::new(), End::new());
    a.send(b.at(V4), Some(V4), MANY);
    let mut calls_until = |mark: usize| {
        send_numbers(&mut b, a.at(V4), mark..mark + 1);
        let mut calls = 1;
        a.receiver.ready = a.receiver.all;
        loop {
            send_numbers(&mut stranger, a.at(V4), 0..9);
            let (numbers, more) = a.receive();
            assert!(more);
            if numbers.contains(&mark) {
                return calls;
            }
            calls += 1;
        }
    };
    let first = calls_until(100);
    assert!((100..=BUFFERED_MAX / 8 + 6).contains(&first), "{first} calls");
    assert!(calls_until(101) <= 6, "it takes turns with the pair");
}

/// What leaves in trains is no reason for a connection.
#[test]
fn bulk_connects_nothing() {
    let (mut a, mut b) = (Spares::new(), End::new());
    let source = Some(Source { ip: V4, ifindex: 1 });
    let (to, sent) = (b.at(V4), Sent { bytes: 16, ..Sent::default() });
    let train = Transmit { to, source, tos: 0, segment: 8, data: &[7; 16], offload: true };
    for _ in 0..MANY {
        let mut both = [Sent::default(); 3];
        a.sender.send(&[train], &mut both[..1]);
        a.sender.send(&[Transmit { segment: 16, ..train }; 2], &mut both[1..]);
        assert_eq!(both, [sent; 3]);
        a.send(to, Some(V4), 15);
    }
    assert_eq!(a.connected(), []);
    assert_eq!(b.receive(MANY * 19).len(), MANY * 19);
}

/// A spare goes to somebody else only when it has not been used for long.
#[test]
fn spares_go_to_who_uses_them() {
    let mut a = Spares::new();
    let mut ends = [(); SPARES + 1].map(|()| End::new());
    let mut send = |a: &mut Spares, end: usize, count: usize| {
        for _ in 0..count / MANY {
            a.send(ends[end].at(V4), Some(V4), MANY);
            assert_eq!(ends[end].receive(MANY).len(), MANY);
        }
        ends[end].at(V4)
    };
    let addresses: Vec<_> = (0..=SPARES).map(|end| send(&mut a, end, MANY)).collect();
    assert_eq!(a.connected(), addresses[..SPARES], "who comes late waits");
    send(&mut a, SPARES, 800);
    assert_eq!(a.connected(), addresses[..SPARES], "in use lately");
    send(&mut a, 0, MANY);
    send(&mut a, SPARES, 800);
    assert_eq!(a.connected(), [addresses[0], addresses[SPARES]], "the idle one's");
}

/// With another mark there may be another way: no old connection is used.
#[test]
fn another_mark_is_another_destination() {
    let (mut a, mut b) = (Spares::new(), End::new());
    a.send(b.at(V4), Some(V4), MANY);
    let destination = Destination { to: b.at(V4), source: V4 };
    assert!(a.sender.connections.find(&a.group, destination, false).is_some());
    if a.group.set_fwmark(7).is_err() {
        return println!("SKIPPED: another_mark_is_another_destination: needs CAP_NET_ADMIN");
    }
    assert!(a.sender.connections.find(&a.group, destination, false).is_none());
    a.send(b.at(V4), Some(V4), MANY);
    assert!(a.sender.connections.find(&a.group, destination, false).is_some());
    assert_eq!(b.receive(2 * MANY).len(), 2 * MANY);
}

/// A port where nobody listens answers each datagram, which a connected socket is told: that is no reason to lose the next.
#[test]
fn a_closed_port_costs_a_connected_socket_nothing() {
    let (mut a, b) = (Spares::new(), End::new());
    let to = b.at(V4);
    a.send(to, Some(V4), MANY);
    drop(b);
    a.send(to, Some(V4), MANY);
    assert_eq!(a.connected(), [to]);
}
