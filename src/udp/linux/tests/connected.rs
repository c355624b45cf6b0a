//! Spare sockets: who gets one, and that it makes no difference to what is sent and received.

use std::net::Ipv4Addr;

use socket2::SockRef;

use super::*;

/// More than enough trains for a connection.
const MANY: usize = 40;

/// A sender over a port of its own, and what it is connected to.
struct Spares {
    group: Arc<SocketGroup>,
    sender: LinuxSender,
}

impl Spares {
    fn new() -> Self {
        let group = Arc::new(SocketGroup::bind(0, 0, 1, &Kernel).unwrap());
        let member = Member { group: Arc::clone(&group), place: 0 };
        let sender = LinuxSender::with(member, group.spares.len(), SendArray::new(SEND_BATCH_MAX));
        Self { group, sender }
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
        let peer = |socket: &FamilySocket| SockRef::from(&socket.fd()).peer_addr().ok()?.as_socket();
        self.group.spares.iter().filter_map(peer).collect()
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
        assert_eq!(numbers(&mut b, 15 + MANY, (ip, a.group.port).into()), sent);
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
    // The kernel would send from 127.0.0.1.
    a.send(b.at(V4), Some(Ipv4Addr::new(127, 0, 0, 2).into()), MANY);
    assert_eq!(a.connected(), []);
    assert_eq!(b.receive(2 * MANY).len(), 2 * MANY);
    // Nobody has more than the others.
    let mut ends = [(); 3].map(|()| End::new());
    for _ in 0..MANY {
        ends.iter().for_each(|end| a.send(end.at(V4), Some(V4), 1));
    }
    assert_eq!(a.connected(), []);
    assert!(ends.iter_mut().all(|end| end.receive(MANY).len() == MANY));
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
    assert!(a.sender.connections.find(&a.group, destination).is_some());
    if a.group.set_fwmark(7).is_err() {
        return println!("SKIPPED: another_mark_is_another_destination: needs CAP_NET_ADMIN");
    }
    assert!(a.sender.connections.find(&a.group, destination).is_none());
    a.send(b.at(V4), Some(V4), MANY);
    assert!(a.sender.connections.find(&a.group, destination).is_some());
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
