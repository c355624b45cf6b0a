//! The Linux sockets on the loopback interface, and the decisions about refusals as tables.

mod connected;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as PlainSocket};
use std::time::{Duration, Instant};

use super::super::socket::{SPARES, SocketPair};
use super::super::steering;
use super::*;
use crate::sys::socket::SocketOption;

pub(super) const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(super) const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// One bound socket with its receiver and a sender.
pub(super) struct End {
    pub(super) socket: Arc<dyn UdpSocket>,
    pub(super) receiver: Box<dyn UdpReceiver>,
    sender: Box<dyn UdpSender>,
    buffers: Buffers,
    received: Vec<Received>,
}

impl End {
    pub(super) fn new() -> Self {
        let socket = LinuxUdp.bind(0, 0, 1).unwrap();
        let (receiver, sender) = (socket.receivers().unwrap().remove(0), socket.sender().unwrap());
        Self { socket, receiver, sender, buffers: Buffers::new(8), received: Vec::with_capacity(8) }
    }

    pub(super) fn at(&self, ip: IpAddr) -> SocketAddr {
        (ip, self.socket.port()).into()
    }

    pub(super) fn send(&mut self, transmits: &[Transmit<'_>]) -> Vec<Sent> {
        // Whatever was there before must be overwritten.
        let mut sent = vec![Sent { bytes: 1, refused: 1, source_lost: true, offload_refused: true }; transmits.len()];
        self.sender.send(transmits, &mut sent);
        sent
    }

    /// Receives until `count` datagrams have come, or gives up after some seconds.
    pub(super) fn receive(&mut self, count: usize) -> Vec<(Received, Vec<u8>)> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let mut datagrams = Vec::new();
        while datagrams.len() < count && Instant::now() < deadline {
            self.receiver.receive(&mut self.buffers, &mut self.received).unwrap();
            for &received in &self.received {
                let bytes = &self.buffers.whole(received.buffer)[..received.len as usize];
                datagrams.extend(bytes.chunks(received.segment as usize).map(|bytes| (received, bytes.to_vec())));
            }
            if self.received.is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        datagrams
    }
}

/// A sender whose sockets were changed, without spares.
fn sender(change: impl FnOnce(&mut SocketPair)) -> LinuxSender {
    let mut group = SocketGroup::bind(0, 0, 1, &Kernel).unwrap().without_spares();
    change(&mut group.pairs[0]);
    LinuxSender::with(Member { group: Arc::new(group), place: 0 }, 0, SendArray::new(SEND_BATCH_MAX))
}

fn transmit(to: SocketAddr, segment: usize, data: &[u8]) -> Transmit<'_> {
    Transmit { to, source: None, tos: 0, segment, data, offload: true }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn counts(sent: &Sent) -> (usize, usize) {
    (sent.bytes, sent.refused)
}

#[test]
fn both_families_share_one_port() {
    let mut a = End::new();
    let mut b = End::new();
    for ip in [V4, V6] {
        let sent = a.send(&[transmit(b.at(ip), 5, b"hello")]);
        assert_eq!(sent, [Sent { bytes: 5, ..Sent::default() }]);
        let datagrams = b.receive(1);
        let (received, bytes) = &datagrams[0];
        assert_eq!(bytes, b"hello");
        assert_eq!(received.from, a.at(ip), "and never an IPv4-mapped address");
        assert_eq!(received.source.map(|source| source.ip), Some(ip));
        assert_ne!(received.source.unwrap().ifindex, 0);
    }
    assert_eq!(b.receiver.readiness(Arc::new(|| ())).len(), 2 + 2 * SPARES);
}

#[test]
fn s_45_a_train_arrives_whole_and_in_order() {
    for offload in [true, false] {
        for ip in [V4, V6] {
            let (mut a, mut b) = (End::new(), End::new());
            // More than one message can carry, by segments and by bytes, and a short last one.
            for (segment, len) in [(1000, 64 * 1000 + 1), (100, 150 * 100 + 50), (1452, 1452 * 45), (9000, 80_000)] {
                let data = pattern(len);
                let train = Transmit { offload, ..transmit(b.at(ip), segment, &data) };
                assert_eq!(a.send(&[train]), [Sent { bytes: len, ..Sent::default() }]);
                let datagrams = b.receive(len.div_ceil(segment));
                assert_eq!(
                    datagrams.iter().map(|(_, bytes)| &bytes[..]).collect::<Vec<_>>(),
                    data.chunks(segment).collect::<Vec<_>>()
                );
            }
        }
    }
}

#[test]
fn many_trains_to_both_families_go_in_one_call() {
    let (mut a, mut b) = (End::new(), End::new());
    let data = pattern(4000);
    let transmits: Vec<_> =
        (0..20).map(|i| transmit(b.at(if i % 3 == 0 { V6 } else { V4 }), 1000, &data[..1000 + i * 100])).collect();
    let sent = a.send(&transmits);
    for (sent, transmit) in sent.iter().zip(&transmits) {
        assert_eq!(counts(sent), (transmit.data.len(), 0));
    }
    let expected: usize = transmits.iter().map(|transmit| transmit.data.len().div_ceil(1000)).sum();
    assert_eq!(b.receive(expected).len(), expected);
}

/// [KERNEL-ECN] The outer header's bits are carried both ways.
#[test]
fn ecn_bits_are_sent_and_seen() {
    let (mut a, mut b) = (End::new(), End::new());
    for ip in [V4, V6] {
        for (tos, ecn) in [(0, 0), (1, 1), (2, 2), (3, 3), (0x88, 0), (0x8b, 3)] {
            let data = pattern(300);
            a.send(&[Transmit { tos, ..transmit(b.at(ip), 100, &data) }]);
            assert!(b.receive(3).iter().all(|(received, _)| received.ecn == ecn), "TOS {tos:#x} to {ip}");
        }
    }
}

/// [KERNEL-STICKY] An answer leaves from the address that was hit.
#[test]
fn the_source_is_honoured_and_given_up_when_it_is_not_ours() {
    let (mut a, mut b) = (End::new(), End::new());
    let second = IpAddr::from([127, 0, 0, 2]);
    let data = pattern(2500);
    let source = Some(Source { ip: second, ifindex: 1 });
    let sent = a.send(&[Transmit { source, ..transmit(b.at(V4), 1000, &data) }]);
    assert_eq!(sent, [Sent { bytes: 2500, ..Sent::default() }]);
    assert!(b.receive(3).iter().all(|(received, _)| received.from.ip() == second));

    for (to, lost) in [(V4, "192.0.2.77"), (V6, "2001:db8::77")] {
        let source = Some(Source { ip: lost.parse().unwrap(), ifindex: 0 });
        let train = Transmit { source, ..transmit(b.at(to), 1000, &data) };
        let sent = a.send(&[train, train]);
        assert_eq!(sent, [Sent { bytes: 2500, source_lost: true, ..Sent::default() }; 2]);
        assert!(b.receive(6).iter().all(|(received, _)| received.from.ip() == to));
    }

    // One of the other family cannot be meant, and is not lost either.
    let sent = a.send(&[Transmit { source, ..transmit(b.at(V6), 1000, &data) }]);
    assert_eq!(sent, [Sent { bytes: 2500, ..Sent::default() }]);
    assert_eq!(b.receive(3).len(), 3);
}

/// oversized_datagram_kills_the_receiver, and the other things that strangers may send.
#[test]
fn s_45_odd_datagrams_do_no_harm() {
    let (mut a, mut b) = (End::new(), End::new());
    let stranger = PlainSocket::bind("127.0.0.1:0").unwrap();
    let largest = vec![7; 65_507];
    // More empty ones than there are buffers: they must not look like "nothing there".
    for _ in 0..100 {
        stranger.send_to(&[], b.at(V4)).unwrap();
    }
    stranger.send_to(&largest, b.at(V4)).unwrap();
    stranger.send_to(&[1], b.at(V4)).unwrap();
    b.receiver.receive(&mut b.buffers, &mut b.received).unwrap();
    assert_eq!(b.received.len(), 2);
    assert_eq!((b.received[0].len, b.received[0].segment), (65_507, 65_507));
    assert_eq!(b.received[1].len, 1);
    // And one that no buffer of the system can carry is refused without hurting the next.
    let sent = a.send(&[transmit(b.at(V4), 65_508, &[0; 65_508]), transmit(b.at(V4), 2, b"ok")]);
    assert_eq!([counts(&sent[0]), counts(&sent[1])], [(0, 1), (2, 0)]);
    assert_eq!(b.receive(1)[0].1, b"ok");
}

#[test]
fn the_capacity_bounds_a_batch() {
    let (mut a, mut b) = (End::new(), End::new());
    b.received = Vec::with_capacity(3);
    for i in 0..5 {
        a.send(&[transmit(b.at(V4), 10, &[i; 10]), transmit(b.at(V6), 10, &[i; 10])]);
    }
    let capacity = b.received.capacity();
    let mut seen = Vec::new();
    while seen.len() < 10 {
        b.receiver.receive(&mut b.buffers, &mut b.received).unwrap();
        assert!((1..=capacity).contains(&b.received.len()));
        assert_eq!(b.received.capacity(), capacity);
        seen.extend(b.received.iter().map(|received| received.from.is_ipv6()));
    }
    assert!(seen[..capacity].iter().any(|v6| *v6) != seen[capacity..2 * capacity].iter().any(|v6| *v6), "in turns");
}

#[test]
fn a_closed_port_does_not_disturb_the_others() {
    let (mut a, mut b) = (End::new(), End::new());
    let closed = {
        let socket = LinuxUdp.bind(0, 0, 1).unwrap();
        SocketAddr::from((V4, socket.port()))
    };
    for _ in 0..10 {
        a.send(&[transmit(closed, 1, b"x")]);
        let sent = a.send(&[transmit(b.at(V4), 1, b"y")]);
        assert_eq!(counts(&sent[0]), (1, 0));
        assert_eq!(b.receive(1)[0].1, b"y");
        a.receiver.receive(&mut a.buffers, &mut a.received).unwrap();
        assert!(a.received.is_empty());
    }
}

#[test]
fn where_nothing_can_be_sent_nothing_is() {
    let mut a = End::new();
    let data = pattern(3000);
    let mut b = End::new();
    for nowhere in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0"] {
        let sent = a.send(&[transmit(nowhere.parse().unwrap(), 1000, &data), transmit(b.at(V4), 1, b"z")]);
        assert_eq!([counts(&sent[0]), counts(&sent[1])], [(0, 3), (1, 0)], "{nowhere}");
        assert_eq!(b.receive(1)[0].1, b"z");
    }
    assert_eq!(a.send(&[]), []);
    assert_eq!(a.send(&[transmit(b.at(V4), 1, &[])]), [Sent::default()]);
}

#[test]
fn a_port_in_use_is_said_so_on_either_family() {
    for holder in ["0.0.0.0:0", "[::]:0", "127.0.0.1:0", "[::1]:0"] {
        let holder = PlainSocket::bind(holder).unwrap();
        let error = LinuxUdp.bind(holder.local_addr().unwrap().port(), 0, 1).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    }
    let first = LinuxUdp.bind(0, 0, 1).unwrap();
    assert_eq!(LinuxUdp.bind(first.port(), 0, 1).err().unwrap().kind(), io::ErrorKind::AddrInUse);
    let port = first.port();
    let sender = first.sender().unwrap();
    drop(first);
    assert!(LinuxUdp.bind(port, 0, 1).is_err(), "a sender keeps the port");
    drop(sender);
    assert_eq!(LinuxUdp.bind(port, 0, 1).unwrap().port(), port);
}

#[test]
fn the_receivers_are_taken_once_and_all_senders_send() {
    let (a, mut b) = (End::new(), End::new());
    assert!(a.socket.receivers().is_err());
    let mut second = a.socket.sender().unwrap();
    second.send(&[transmit(b.at(V4), 1, b"s")], &mut [Sent::default()]);
    assert_eq!(b.receive(1)[0].0.from, a.at(V4));
}

/// Segments refused for their own sake, with EINVAL as a lost source is: the right one is blamed.
#[test]
fn refused_segments_do_not_cost_the_source() {
    let mut sender = sender(|pair| SocketOption::SO_NO_CHECK.set(pair.v4.as_ref().unwrap().fd(), 1).unwrap());
    let mut b = End::new();
    let data = pattern(2500);
    let ours = Some(Source { ip: [127, 0, 0, 2].into(), ifindex: 0 });
    let lost = Some(Source { ip: [192, 0, 2, 77].into(), ifindex: 0 });
    for (source, from, source_lost) in
        [(None, [127, 0, 0, 1], false), (ours, [127, 0, 0, 2], false), (lost, [127, 0, 0, 1], true)]
    {
        let train = Transmit { source, ..transmit(b.at(V4), 1000, &data) };
        let mut sent = [Sent::default(); 2];
        sender.send(&[train, train], &mut sent);
        assert_eq!(sent, [Sent { bytes: 2500, offload_refused: true, source_lost, refused: 0 }; 2]);
        let datagrams = b.receive(6);
        assert_eq!(datagrams.len(), 6);
        assert!(datagrams.iter().all(|(received, _)| received.from.ip() == IpAddr::from(from)));
    }
}

/// F-04: segmentation that the kernel refuses for good is no fault of any receiver.
#[test]
fn without_segmentation_trains_go_singly() {
    let mut sender = sender(|pair| pair.sockets().for_each(FamilySocket::disable_segmentation));
    let mut b = End::new();
    let data = pattern(100_050);
    for ip in [V4, V6] {
        let mut sent = [Sent::default()];
        sender.send(&[transmit(b.at(ip), 1000, &data)], &mut sent);
        assert_eq!(sent, [Sent { bytes: data.len(), ..Sent::default() }]);
        let datagrams: Vec<_> = b.receive(101).into_iter().map(|(_, bytes)| bytes).collect();
        assert_eq!(datagrams.concat(), data);
    }
}

/// F-10: a datagram for a family that is not there is lost; those around it are not.
#[test]
fn a_family_that_is_absent_loses_only_its_own() {
    let mut sender = sender(|pair| pair.v6 = None);
    let member = Member { group: Arc::clone(&sender.member.group), place: 0 };
    assert_eq!(LinuxReceiver::new(member).readiness(Arc::new(|| ())).len(), 1);
    let mut b = End::new();
    let data = pattern(2500);
    let mut sent = [Sent::default(); 3];
    sender.send(&[V4, V6, V4].map(|ip| transmit(b.at(ip), 1000, &data)), &mut sent);
    assert_eq!(sent.each_ref().map(counts), [(2500, 0), (0, 3), (2500, 0)]);
    assert_eq!(b.receive(6).len(), 6);
}

#[test]
fn every_refusal_leads_on_or_gives_up() {
    use Manner::*;
    use Verdict::*;
    let rows = [
        // errno, manner, source, segments, verdict
        (libc::EIO, Full, false, true, SegmentationOff),
        (libc::EIO, Singly, false, false, LoseRest),
        (libc::ENOPROTOOPT, Full, true, true, SegmentationOff),
        (libc::EMSGSIZE, Full, true, true, Again(Singly)),
        (libc::EMSGSIZE, WithoutSource, true, true, Again(SinglyWithoutSource)),
        (libc::EMSGSIZE, Singly, true, false, LoseMessage),
        (libc::EINVAL, Full, true, true, Again(WithoutSource)),
        (libc::EINVAL, Full, false, true, Again(Singly)),
        (libc::EINVAL, Full, true, false, Again(WithoutSource)),
        (libc::EINVAL, Full, false, false, LoseRest),
        (libc::EINVAL, WithoutSource, true, true, Again(Singly)),
        (libc::EINVAL, WithoutSource, true, false, LoseRest),
        (libc::EINVAL, Singly, true, false, Again(SinglyWithoutSource)),
        (libc::EINVAL, Singly, false, false, LoseRest),
        (libc::EINVAL, SinglyWithoutSource, true, false, LoseRest),
        (libc::ENETUNREACH, Full, true, true, Again(WithoutSource)),
        (libc::ENETUNREACH, Singly, true, false, Again(SinglyWithoutSource)),
        (libc::ENETUNREACH, WithoutSource, true, true, LoseRest),
        (libc::ENETUNREACH, Full, false, true, LoseRest),
        (libc::EADDRNOTAVAIL, Full, true, false, Again(WithoutSource)),
        (libc::ENODEV, Full, true, false, Again(WithoutSource)),
        (libc::ENETDOWN, Full, false, true, LoseRest),
        (libc::EPERM, Full, true, true, LoseMessage),
        (libc::EAGAIN, Full, true, true, LoseMessage),
        (libc::ENOBUFS, Full, true, true, LoseMessage),
        (libc::EACCES, Full, true, true, LoseRest),
    ];
    for (errno, manner, source, segments, verdict) in rows {
        let decided = after_refusal(errno, manner, source, segments, false);
        assert_eq!(decided, verdict, "{errno} {manner:?} {source} {segments}");
        // What is wrong with a connection is nothing against the source.
        let verdict = match verdict {
            Again(next) if errno != libc::EMSGSIZE || !next.has_source() => EndConnection,
            LoseRest => EndConnection,
            _ => verdict,
        };
        if manner.has_source() {
            let decided = after_refusal(errno, manner, source, segments, true);
            assert_eq!(decided, verdict, "{errno} {manner:?} {source} {segments}, connected");
        }
    }
    // Whatever the kernel says, no manner is tried twice.
    for errno in 0..200 {
        for manner in [Full, WithoutSource, Singly, SinglyWithoutSource] {
            for (source, segments) in [(false, false), (false, true), (true, false), (true, true)] {
                let segments = segments && manner.has_offload();
                if let Again(next) = after_refusal(errno, manner, source, segments, false) {
                    assert!(next > manner, "{errno} {manner:?}");
                }
            }
        }
    }
}

/// Each message comes to the receiver that its receiver index names, and to no other.
#[test]
fn messages_are_steered_by_their_receiver_index() {
    for count in [2, 3, 5] {
        let socket = LinuxUdp.bind(0, 0, count).unwrap();
        let mut receivers = socket.receivers().unwrap();
        assert_eq!(receivers.len(), count);
        let (mut buffers, mut received) = (Buffers::new(8), Vec::with_capacity(8));
        let mut arrived = |bytes: &[u8], place: usize| -> Option<Received> {
            let mut found = None;
            for (index, receiver) in receivers.iter_mut().enumerate() {
                receiver.receive(&mut buffers, &mut received).unwrap();
                for received in &received {
                    assert_eq!(index, place, "{bytes:02x?}");
                    assert_eq!(&buffers.whole(received.buffer)[..received.len as usize], bytes);
                    assert!(found.replace(*received).is_none(), "doubled");
                }
            }
            found
        };
        for (from, to) in [("127.0.0.1:0", V4), ("[::1]:0", V6)] {
            let from = PlainSocket::bind(from).unwrap();
            from.connect((to, socket.port())).unwrap();
            for row in steering::tests::rows(count) {
                from.send(&row.message).unwrap();
                let received = arrived(&row.message, row.place).unwrap_or_else(|| panic!("{row:?} to {to} is lost"));
                assert_eq!(received.from, from.local_addr().unwrap());
                assert_eq!(received.source.map(|source| source.ip), Some(to), "each member tells it");
            }
        }
    }
}

/// All pairs of sockets send from the one port, coalesce, and hear of changes of the mark.
#[test]
fn all_members_of_a_group_are_alike() {
    let socket = LinuxUdp.bind(0, 0, 3).unwrap();
    let mut senders: Vec<_> = (0..4).map(|_| socket.sender().unwrap()).collect();
    let mut b = End::new();
    let data = pattern(2500);
    for (number, sender) in senders.iter_mut().enumerate() {
        for ip in [V4, V6] {
            let mut sent = [Sent::default()];
            sender.send(&[transmit(b.at(ip), 1000, &data)], &mut sent);
            assert_eq!(sent, [Sent { bytes: 2500, ..Sent::default() }], "sender {number} to {ip}");
            let datagrams = b.receive(3);
            assert_eq!(datagrams.len(), 3);
            assert!(datagrams.iter().all(|(received, _)| received.from == SocketAddr::from((ip, socket.port()))));
        }
    }
    let mut receivers = socket.receivers().unwrap();
    let (mut buffers, mut received) = (Buffers::new(8), Vec::with_capacity(8));
    for (place, receiver) in receivers.iter_mut().enumerate() {
        for ip in [V4, V6] {
            let mut data = pattern(2500);
            data[..8].copy_from_slice(&[4, 0, 0, 0, place as u8, 0, 0, 0]);
            b.send(&[transmit((ip, socket.port()).into(), 1000, &data)]);
            receiver.receive(&mut buffers, &mut received).unwrap();
            assert_eq!((received.len(), received[0].len, received[0].segment), (1, 2500, 1000), "{place} by {ip}");
        }
    }
    let port = socket.port();
    drop((socket, receivers));
    assert!(LinuxUdp.bind(port, 0, 1).is_err(), "a sender keeps the port");
    drop(senders);
    assert_eq!(LinuxUdp.bind(port, 0, 3).unwrap().port(), port);
}
