//! Outer datagrams in memory: a network without a system, for tests and for embedding.
//!
//! A [`MemoryNetwork`] joins any number of hosts ([`MemoryUdp`]), each with one address of either
//! family or both. A datagram is in its receiver's queue when `send` returns, so with one thread
//! everything that happens is the same each time. What a socket cannot take (its queue is full, as a
//! kernel's would be) or nobody listens for is lost without a word, as on a real network.
//!
//! As the kernel's sockets do, one `receive` joins equal-sized datagrams of one sender. Of several receivers of one port
//! each has a queue of its own.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::socket::SOCKET_BUFFER_LEN;
use super::steering::{RECEIVERS_MAX, place_of};
use super::{
    DATAGRAM_V6_MAX, Readiness, Received, SEGMENTS_MAX, Sent, Source, Transmit, Udp, UdpReceiver, UdpSender, UdpSocket,
    Wake,
};
use crate::packet::Buffers;

/// Bytes waiting in one receiver's queue: as much as the kernel is asked for.
const QUEUE_BYTES_MAX: usize = SOCKET_BUFFER_LEN as usize;

/// What one waiting datagram counts for beyond its bytes, so that empty ones are bounded, too.
const DATAGRAM_OVERHEAD: usize = 256;

/// The first port that is given to those who ask for any; the last is 65,535.
const EPHEMERAL_PORT_MIN: u16 = 49_152;

/// The index of the one interface that each host has.
const IFINDEX: u32 = 1;

/// What waits at one port: a queue for each receiver.
type Inboxes = Arc<[Inbox]>;

/// A network whose hosts all reach each other at once.
#[derive(Clone, Default)]
pub struct MemoryNetwork(Arc<Mutex<HashMap<SocketAddr, Inboxes>>>);

impl MemoryNetwork {
    /// An empty network.
    pub fn new() -> Self {
        Self::default()
    }

    /// A host at the given addresses: at most one of each family counts, the first.
    pub fn host(&self, addresses: &[IpAddr]) -> MemoryUdp {
        let v4 = addresses.iter().copied().find(IpAddr::is_ipv4);
        let v6 = addresses.iter().copied().find(IpAddr::is_ipv6);
        MemoryUdp { network: self.clone(), v4, v6 }
    }

    fn inboxes(&self) -> MutexGuard<'_, HashMap<SocketAddr, Inboxes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for MemoryNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.inboxes().keys()).finish()
    }
}

/// One host of a [`MemoryNetwork`].
#[derive(Debug, Clone)]
pub struct MemoryUdp {
    network: MemoryNetwork,
    v4: Option<IpAddr>,
    v6: Option<IpAddr>,
}

impl Udp for MemoryUdp {
    /// The mark is taken and means nothing here.
    fn bind(&self, port: u16, _fwmark: u32, receivers: usize) -> io::Result<Arc<dyn UdpSocket>> {
        let mut inboxes = self.network.inboxes();
        let addresses = [self.v4, self.v6];
        let is_free =
            |port: &u16| addresses.into_iter().flatten().all(|ip| !inboxes.contains_key(&SocketAddr::new(ip, *port)));
        let port = if port == 0 { (EPHEMERAL_PORT_MIN..=u16::MAX).find(is_free) } else { Some(port).filter(is_free) };
        let port = port.ok_or(io::ErrorKind::AddrInUse)?;
        let own: Inboxes = (0..receivers.clamp(1, RECEIVERS_MAX)).map(|_| Inbox::default()).collect();
        for ip in addresses.into_iter().flatten() {
            inboxes.insert(SocketAddr::new(ip, port), Arc::clone(&own));
        }
        drop(inboxes);
        let bound = Arc::new(Bound { host: self.clone(), port, inboxes: own });
        Ok(Arc::new(MemorySocket { bound, taken: AtomicBool::new(false) }))
    }
}

/// What waits for one receiver.
#[derive(Default)]
struct Inbox(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    wake: Option<Wake>,
}

struct Datagram {
    from: SocketAddr,
    to: IpAddr,
    ecn: u8,
    bytes: Box<[u8]>,
}

impl Inbox {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a datagram in if there is room, and tells the receiver.
    fn push(&self, datagram: Datagram) {
        let mut waiting = self.waiting();
        let cost = datagram.bytes.len() + DATAGRAM_OVERHEAD;
        if waiting.bytes + cost > QUEUE_BYTES_MAX {
            return;
        }
        waiting.bytes += cost;
        waiting.datagrams.push_back(datagram);
        let wake = waiting.wake.clone();
        // Whoever is woken may receive at once, on this thread.
        drop(waiting);
        if let Some(wake) = wake {
            wake();
        }
    }
}

impl Waiting {
    /// Moves the next datagram into `buffer`, and those after it that the kernel would join to it.
    fn pop(&mut self, buffer: &mut [u8]) -> Option<Received> {
        let first = self.pop_datagram()?;
        let segment = first.bytes.len();
        buffer[..segment].copy_from_slice(&first.bytes);
        let mut len = segment;
        let mut segments = 1;
        while let Some(next) = self.datagrams.front() {
            let size = next.bytes.len();
            let same = next.from == first.from && next.to == first.to && next.ecn == first.ecn;
            if !same || size == 0 || size > segment || segments == SEGMENTS_MAX || len + size > buffer.len() {
                break;
            }
            buffer[len..][..size].copy_from_slice(&next.bytes);
            len += size;
            segments += 1;
            self.pop_datagram();
            if size < segment {
                break;
            }
        }
        Some(Received {
            buffer: 0,
            len: len as u32,
            segment: segment as u32,
            from: first.from,
            source: Some(Source { ip: first.to, ifindex: IFINDEX }),
            ecn: first.ecn,
        })
    }

    fn pop_datagram(&mut self) -> Option<Datagram> {
        let datagram = self.datagrams.pop_front()?;
        self.bytes -= datagram.bytes.len() + DATAGRAM_OVERHEAD;
        Some(datagram)
    }
}

/// A port in use; it is free again when the socket and all its queues are gone.
struct Bound {
    host: MemoryUdp,
    port: u16,
    inboxes: Inboxes,
}

impl Drop for Bound {
    fn drop(&mut self) {
        let mut inboxes = self.host.network.inboxes();
        for ip in [self.host.v4, self.host.v6].into_iter().flatten() {
            inboxes.remove(&SocketAddr::new(ip, self.port));
        }
    }
}

struct MemorySocket {
    bound: Arc<Bound>,
    taken: AtomicBool,
}

impl UdpSocket for MemorySocket {
    fn port(&self) -> u16 {
        self.bound.port
    }

    fn set_fwmark(&self, _fwmark: u32) -> io::Result<()> {
        Ok(())
    }

    fn receivers(&self) -> io::Result<Vec<Box<dyn UdpReceiver>>> {
        if self.taken.swap(true, Ordering::Relaxed) {
            return Err(io::Error::other("the receivers were taken already"));
        }
        let receiver =
            |place| Box::new(MemoryReceiver { bound: Arc::clone(&self.bound), place }) as Box<dyn UdpReceiver>;
        Ok((0..self.bound.inboxes.len()).map(receiver).collect())
    }

    fn sender(&self) -> io::Result<Box<dyn UdpSender>> {
        Ok(Box::new(MemorySender(Arc::clone(&self.bound))))
    }
}

struct MemoryReceiver {
    bound: Arc<Bound>,
    place: usize,
}

impl MemoryReceiver {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.bound.inboxes[self.place].waiting()
    }
}

impl UdpReceiver for MemoryReceiver {
    fn readiness(&mut self, wake: Wake) -> Vec<Readiness> {
        let mut waiting = self.waiting();
        waiting.wake = Some(Arc::clone(&wake));
        let early = !waiting.datagrams.is_empty();
        drop(waiting);
        // What came before anybody could be told is told now.
        if early {
            wake();
        }
        vec![Readiness::Wake]
    }

    fn receive(&mut self, buffers: &mut Buffers, received: &mut Vec<Received>) -> io::Result<bool> {
        received.clear();
        let mut waiting = self.waiting();
        let room = received.capacity();
        for (index, buffer) in buffers.all().iter_mut().take(room).enumerate() {
            let Some(train) = waiting.pop(buffer) else { break };
            received.push(Received { buffer: index as u32, ..train });
        }
        Ok(!received.is_empty())
    }
}

struct MemorySender(Arc<Bound>);

impl UdpSender for MemorySender {
    fn send(&mut self, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        assert_eq!(transmits.len(), sent.len());
        let host = &self.0.host;
        for (transmit, sent) in transmits.iter().zip(sent) {
            *sent = Sent::default();
            let own = if transmit.to.is_ipv6() { host.v6 } else { host.v4 };
            let Some(own) = own else {
                sent.refused = transmit.data.len().div_ceil(transmit.segment);
                continue;
            };
            sent.source_lost = transmit.source.is_some_and(|source| source.ip != own);
            let inboxes = host.network.inboxes().get(&transmit.to).cloned();
            for bytes in transmit.data.chunks(transmit.segment) {
                if bytes.len() > DATAGRAM_V6_MAX {
                    sent.refused += 1;
                    continue;
                }
                sent.bytes += bytes.len();
                if let Some(inboxes) = &inboxes {
                    let inbox = &inboxes[place_of(bytes, inboxes.len())];
                    let from = SocketAddr::new(own, self.0.port);
                    inbox.push(Datagram { from, to: transmit.to.ip(), ecn: transmit.tos & 0b11, bytes: bytes.into() });
                }
            }
        }
    }
}

impl Drop for MemoryReceiver {
    /// Whoever was to be woken may own this receiver: let go of each other.
    fn drop(&mut self) {
        self.waiting().wake = None;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    const A: &str = "192.0.2.1";
    const B: &str = "192.0.2.2";
    const B6: &str = "2001:db8::2";

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn transmit(to: SocketAddr, segment: usize, data: &[u8]) -> Transmit<'_> {
        Transmit { to, source: None, tos: 2, segment, data, offload: true }
    }

    fn receive(receiver: &mut dyn UdpReceiver, capacity: usize) -> (Buffers, Vec<Received>) {
        let (mut buffers, mut received) = (Buffers::new(capacity), Vec::with_capacity(capacity));
        receiver.receive(&mut buffers, &mut received).unwrap();
        (buffers, received)
    }

    #[test]
    fn a_train_arrives_joined_from_its_sender() {
        let network = MemoryNetwork::new();
        let a = network.host(&[ip(A)]).bind(1, 0, 1).unwrap();
        let b = network.host(&[ip(B), ip(B6)]).bind(2, 0, 1).unwrap();
        let (mut a, mut b) = (a.sender().unwrap(), b.receivers().unwrap().remove(0));
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        assert_eq!(b.readiness(Arc::new(move || _ = counter.fetch_add(1, Ordering::Relaxed))), [Readiness::Wake]);

        let data: Vec<u8> = (0..=255).collect();
        let to = SocketAddr::new(ip(B), 2);
        let mut sent = [Sent::default(); 3];
        let nowhere = SocketAddr::new(ip("192.0.2.9"), 2);
        let v6 = SocketAddr::new(ip(B6), 2);
        a.send(&[transmit(to, 100, &data), transmit(nowhere, 100, &data), transmit(v6, 100, &data)], &mut sent);
        assert_eq!(sent.map(|sent| (sent.bytes, sent.refused)), [(256, 0), (256, 0), (0, 3)]);
        assert_eq!(woken.load(Ordering::Relaxed), 3);
        let early = Arc::clone(&woken);
        b.readiness(Arc::new(move || _ = early.fetch_add(10, Ordering::Relaxed)));
        assert_eq!(woken.load(Ordering::Relaxed), 13);

        let (mut buffers, received) = receive(&mut *b, 4);
        let [train] = received[..] else { panic!("{received:?}") };
        assert_eq!((train.len, train.segment, train.ecn), (256, 100, 2));
        assert_eq!(train.from, SocketAddr::new(ip(A), 1));
        assert_eq!(train.source, Some(Source { ip: ip(B), ifindex: IFINDEX }));
        assert_eq!(&buffers.whole(train.buffer)[..256], data);
        assert_eq!(receive(&mut *b, 4).1.len(), 0);
    }

    #[test]
    fn messages_are_steered_by_their_receiver_index() {
        for count in [1, 2, 3] {
            let network = MemoryNetwork::new();
            let a = network.host(&[ip(A)]).bind(1, 0, 1).unwrap();
            let b = network.host(&[ip(B)]).bind(2, 0, count).unwrap();
            let (mut a, mut receivers) = (a.sender().unwrap(), b.receivers().unwrap());
            assert_eq!(receivers.len(), count);
            let woken: Arc<Vec<AtomicUsize>> = Arc::new((0..count).map(|_| AtomicUsize::new(0)).collect());
            for (place, receiver) in receivers.iter_mut().enumerate() {
                let woken = Arc::clone(&woken);
                receiver.readiness(Arc::new(move || _ = woken[place].fetch_add(1, Ordering::Relaxed)));
            }
            for row in super::super::steering::tests::rows(count) {
                a.send(&[transmit(SocketAddr::new(ip(B), 2), 2000, &row.message)], &mut [Sent::default()]);
                for (place, receiver) in receivers.iter_mut().enumerate() {
                    let expected = usize::from(place == row.place);
                    assert_eq!(woken[place].swap(0, Ordering::Relaxed), expected, "{row:?}");
                    assert_eq!(receive(&mut **receiver, 1).1.len(), expected, "{row:?}");
                }
            }
        }
        assert_eq!(MemoryNetwork::new().host(&[ip(A)]).bind(1, 0, 0).unwrap().receivers().unwrap().len(), 1);
    }

    #[test]
    fn ports_are_exclusive_and_freed() {
        let network = MemoryNetwork::new();
        let host = network.host(&[ip(A)]);
        let first = host.bind(0, 0, 1).unwrap();
        assert_eq!(first.port(), EPHEMERAL_PORT_MIN);
        assert_eq!(host.bind(0, 0, 1).unwrap().port(), EPHEMERAL_PORT_MIN + 1);
        assert_eq!(host.bind(first.port(), 0, 1).err().unwrap().kind(), io::ErrorKind::AddrInUse);
        assert!(network.host(&[ip(B)]).bind(first.port(), 0, 1).is_ok());
        let sender = first.sender().unwrap();
        drop(first);
        assert!(host.bind(EPHEMERAL_PORT_MIN, 0, 1).is_err());
        drop(sender);
        assert!(host.bind(EPHEMERAL_PORT_MIN, 0, 1).is_ok());
    }

    #[test]
    fn a_queue_that_nobody_empties_is_bounded() {
        let network = MemoryNetwork::new();
        let a = network.host(&[ip(A)]).bind(1, 0, 1).unwrap();
        let b = network.host(&[ip(B)]).bind(2, 0, 1).unwrap();
        let data = vec![0; 65_000];
        let mut sender = a.sender().unwrap();
        for _ in 0..1000 {
            sender.send(&[transmit(SocketAddr::new(ip(B), 2), 1000, &data)], &mut [Sent::default()]);
        }
        let mut waiting = 0;
        let mut receiver = b.receivers().unwrap().remove(0);
        loop {
            let (_, received) = receive(&mut *receiver, 8);
            if received.is_empty() {
                break;
            }
            waiting += received.iter().map(|train| train.len as usize).sum::<usize>();
        }
        assert!((QUEUE_BYTES_MAX / 2..=QUEUE_BYTES_MAX).contains(&waiting), "{waiting}");
    }
}
