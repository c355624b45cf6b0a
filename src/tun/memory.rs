//! An interface that is no more than queues: for tests, and for programs that make and take inner packets themselves.
//!
//! [`MemoryTun::new`] gives the two ends: the [`Tun`] for the device, and a [`MemoryTunHandle`] that plays the system's
//! part. It sends and receives IP packets, and sets the link up and down. Towards the device there are as many queues as
//! it takes; a flow's packets are all in one of them, by a hash of its addresses and ports.
//!
//! Invariants:
//! - all queues are bounded; what does not fit is refused at once and nobody waits;
//! - dropping the handle deletes the interface.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::offload::SuperPacket;
use super::{Readiness, ReceiveError, Tun, TunEvent, TunEvents, TunQueue, TunReceiver, TunSender, Wake};
use crate::packet::{Buffers, PacketRef};

/// Packets that wait in one queue: about as many as a TUN of Linux queues (500), twice.
pub const QUEUE_MAX: usize = 1000;

/// Events that wait to be taken. When more happen, only the present state is told.
pub const EVENTS_MAX: usize = 16;

/// One queue towards the device.
#[derive(Default)]
struct Outbound {
    packets: VecDeque<Box<[u8]>>,
    wake: Option<Wake>,
}

#[derive(Default)]
struct State {
    /// One at least; all of them when the device has taken them.
    outbound: Vec<Outbound>,
    /// From the device.
    inbound: VecDeque<Box<[u8]>>,
    events: VecDeque<TunEvent>,
    up: bool,
    index: u32,
    mtu: usize,
    gone: bool,
    events_wake: Option<Wake>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Something has come from the device.
    arrived: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-done by a panic: each critical section changes one thing.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state as `change` says, and tells `event` if it is true that something changed.
    fn tell(&self, event: TunEvent, change: impl FnOnce(&mut State) -> bool) {
        let mut state = self.lock();
        if state.gone || !change(&mut state) {
            return;
        }
        if state.events.len() == EVENTS_MAX {
            state.events.clear();
            let link = if state.up { TunEvent::Up } else { TunEvent::Down };
            let now = [TunEvent::Index(state.index), TunEvent::Mtu(state.mtu), link];
            state.events.extend(now);
        }
        state.events.push_back(event);
        let mut wakes: Vec<Wake> = state.events_wake.iter().cloned().collect();
        if state.gone {
            wakes.extend(state.outbound.iter().filter_map(|queue| queue.wake.clone()));
        }
        drop(state);
        wakes.iter().for_each(|wake| wake());
    }
}

/// The device's end.
pub struct MemoryTun {
    shared: Arc<Shared>,
    name: String,
    queue_taken: bool,
    events_taken: bool,
}

/// The other end: what the system is to a real interface.
pub struct MemoryTunHandle(Arc<Shared>);

impl MemoryTun {
    /// An interface of this name and MTU, which is down.
    pub fn new(name: &str, mtu: usize) -> (Self, MemoryTunHandle) {
        let shared = Arc::<Shared>::default();
        {
            let mut state = shared.lock();
            state.mtu = mtu;
            state.outbound.push(Outbound::default());
            state.events.extend([TunEvent::Mtu(mtu), TunEvent::Down]);
        }
        let handle = MemoryTunHandle(Arc::clone(&shared));
        (Self { shared, name: name.to_owned(), queue_taken: false, events_taken: false }, handle)
    }
}

impl MemoryTunHandle {
    /// Gives the device one IP packet to send into the tunnel. False when the queue is full or the link is down, in which
    /// case the packet is dropped.
    pub fn send(&self, packet: &[u8]) -> bool {
        let mut state = self.0.lock();
        if !state.up {
            return false;
        }
        let place = place_of(packet, state.outbound.len());
        let queue = &mut state.outbound[place];
        if queue.packets.len() >= QUEUE_MAX {
            return false;
        }
        queue.packets.push_back(packet.into());
        let wake = queue.wake.clone();
        drop(state);
        if let Some(wake) = wake {
            wake();
        }
        true
    }

    /// Takes the next IP packet that came out of the tunnel, waiting for it no longer than `patience`.
    pub fn receive(&self, patience: Duration) -> Option<Box<[u8]>> {
        let end = Instant::now() + patience;
        let mut state = self.0.lock();
        loop {
            if let Some(packet) = state.inbound.pop_front() {
                return Some(packet);
            }
            let rest = end.checked_duration_since(Instant::now()).filter(|rest| !rest.is_zero())?;
            state = self.0.arrived.wait_timeout(state, rest).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sets the link up, or down.
    pub fn set_up(&self, up: bool) {
        let event = if up { TunEvent::Up } else { TunEvent::Down };
        self.0.tell(event, |state| std::mem::replace(&mut state.up, up) != up);
    }

    /// Sets the MTU, in bytes.
    pub fn set_mtu(&self, mtu: usize) {
        self.0.tell(TunEvent::Mtu(mtu), |state| std::mem::replace(&mut state.mtu, mtu) != mtu);
    }

    /// Sets the interface's index where the sockets are; 0, as at first, for none.
    pub fn set_index(&self, index: u32) {
        self.0.tell(TunEvent::Index(index), |state| std::mem::replace(&mut state.index, index) != index);
    }

    /// Tells that an address or a route of the system changed.
    pub fn change_routes(&self) {
        self.0.tell(TunEvent::Routes, |_| true);
    }
}

impl Drop for MemoryTunHandle {
    fn drop(&mut self) {
        self.0.tell(TunEvent::Deleted, |state| !std::mem::replace(&mut state.gone, true));
    }
}

impl Tun for MemoryTun {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn mtu(&self) -> usize {
        self.shared.lock().mtu
    }

    fn queues(&mut self, count: usize) -> io::Result<Vec<TunQueue>> {
        if std::mem::replace(&mut self.queue_taken, true) {
            return Err(io::Error::other("the queues were taken already"));
        }
        let count = count.max(1);
        let mut state = self.shared.lock();
        let waiting = std::mem::take(&mut state.outbound);
        state.outbound.resize_with(count, Outbound::default);
        for packet in waiting.into_iter().flat_map(|queue| queue.packets) {
            state.outbound[place_of(&packet, count)].packets.push_back(packet);
        }
        let queue = |place| TunQueue {
            receiver: Box::new(MemoryReceiver { shared: Arc::clone(&self.shared), place }),
            sender: Box::new(MemorySender(Arc::clone(&self.shared))),
        };
        Ok((0..count).map(queue).collect())
    }

    fn events(&mut self) -> io::Result<Box<dyn TunEvents>> {
        if std::mem::replace(&mut self.events_taken, true) {
            return Err(io::Error::other("the events were taken already"));
        }
        Ok(Box::new(MemoryEvents(Arc::clone(&self.shared))))
    }
}

/// The place, out of so many, of the queue that has the packets of this one's flow.
fn place_of(packet: &[u8], queues: usize) -> usize {
    /// TCP, UDP, UDP-Lite, SCTP and DCCP begin with the ports.
    const WITH_PORTS: [u8; 5] = [6, 17, 136, 132, 33];
    let (addresses, protocol, ports_at) = match packet {
        // Fragments have no ports, but for the first, which belongs to them.
        [0x40..=0x4f, ..] if packet.len() >= 20 => {
            let whole = packet[6] & 0x3f == 0 && packet[7] == 0;
            (&packet[12..20], packet[9], whole.then_some(usize::from(packet[0] & 0x0f) * 4))
        }
        [0x60..=0x6f, ..] if packet.len() >= 40 => (&packet[8..40], packet[6], Some(40)),
        _ => return 0,
    };
    let ports_at = ports_at.filter(|_| WITH_PORTS.contains(&protocol));
    let ports = ports_at.and_then(|at| packet.get(at..at + 4)).unwrap_or_default();
    // FNV-1a
    let hash = addresses
        .iter()
        .chain([&protocol])
        .chain(ports)
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    // Its upper bits are mixed better than its lower ones.
    (hash >> 32) as usize % queues
}

struct MemoryReceiver {
    shared: Arc<Shared>,
    place: usize,
}

impl TunReceiver for MemoryReceiver {
    fn readiness(&mut self, wake: Wake) -> Readiness {
        let mut state = self.shared.lock();
        let queue = &mut state.outbound[self.place];
        queue.wake = Some(Arc::clone(&wake));
        let early = !queue.packets.is_empty();
        drop(state);
        // What came before anybody could be told is told now.
        if early {
            wake();
        }
        Readiness::Wake
    }

    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        let mut state = self.shared.lock();
        let Some(packet) = state.outbound[self.place].packets.pop_front() else {
            return if state.gone { Err(ReceiveError::Gone(io::ErrorKind::NotFound.into())) } else { Ok(None) };
        };
        drop(state);
        // One that is too long is cut off, as a read from a real interface does, and malformed then.
        let len = packet.len().min(buffer.len());
        buffer[..len].copy_from_slice(&packet[..len]);
        Ok(Some(SuperPacket::plain(&buffer[..len])?))
    }
}

struct MemorySender(Arc<Shared>);

impl TunSender for MemorySender {
    fn send(&mut self, buffers: &Buffers, packets: &[PacketRef]) -> usize {
        let mut state = self.0.lock();
        let room = if state.up { QUEUE_MAX.saturating_sub(state.inbound.len()).min(packets.len()) } else { 0 };
        state.inbound.extend(packets[..room].iter().map(|&place| buffers.get(place).into()));
        drop(state);
        self.0.arrived.notify_all();
        packets.len() - room
    }
}

struct MemoryEvents(Arc<Shared>);

impl TunEvents for MemoryEvents {
    fn readiness(&mut self, wake: Wake) -> Readiness {
        self.0.lock().events_wake = Some(wake);
        Readiness::Wake
    }

    fn next(&mut self) -> io::Result<Option<TunEvent>> {
        Ok(self.0.lock().events.pop_front())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const PACKET: [u8; 20] = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];

    #[test]
    fn packets_both_ways() {
        let (mut tun, handle) = MemoryTun::new("mem0", 1420);
        let mut queue = tun.queues(1).unwrap().remove(0);
        assert!(tun.queues(1).is_err());
        let woken = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&woken);
        queue.receiver.readiness(Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        }));
        let mut buffer = [0; 100];
        assert!(!handle.send(&PACKET), "the link is down");
        handle.set_up(true);
        assert!(queue.receiver.receive(&mut buffer).unwrap().is_none());
        assert!(handle.send(&PACKET) && handle.send(&[1, 2, 3]));
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        assert_eq!(queue.receiver.receive(&mut buffer).unwrap().unwrap().bytes(), PACKET);
        assert!(matches!(queue.receiver.receive(&mut buffer), Err(ReceiveError::Malformed)));

        let mut buffers = Buffers::new(1);
        buffers.whole(0)[..20].copy_from_slice(&PACKET);
        let place = PacketRef { buffer: 0, start: 0, len: 20 };
        assert_eq!(queue.sender.send(&buffers, &vec![place; QUEUE_MAX + 3]), 3);
        for _ in 0..QUEUE_MAX {
            assert_eq!(*handle.receive(Duration::ZERO).unwrap(), PACKET);
        }
        assert!(handle.receive(Duration::from_millis(1)).is_none());

        drop(handle);
        assert_eq!(woken.load(Ordering::Relaxed), 3);
        assert!(matches!(queue.receiver.receive(&mut buffer), Err(ReceiveError::Gone(_))));
    }

    /// An IPv4 or IPv6 packet of a flow that differs in one thing from the others.
    fn packet_of(flow: usize) -> Vec<u8> {
        let mut packet = if flow.is_multiple_of(2) { PACKET.to_vec() } else { vec![0; 40] };
        if flow.is_multiple_of(2) {
            packet[12..16].copy_from_slice(&(flow as u32 / 8).to_be_bytes());
        } else {
            packet[..7].copy_from_slice(&[0x60, 0, 0, 0, 0, 8, 6]);
            packet[38..40].copy_from_slice(&(flow as u16 / 8).to_be_bytes());
        }
        packet.extend([0, flow as u8 % 8, 0, 80, 0, 0, 0, 0]);
        packet[3] = if packet[0] == 0x45 { 28 } else { 0 };
        packet
    }

    #[test]
    fn a_flow_has_one_queue() {
        const QUEUES: usize = 3;
        let (mut tun, handle) = MemoryTun::new("mem0", 1420);
        handle.set_up(true);
        assert!(handle.send(&packet_of(0)), "before the queues are taken");
        let mut queues = tun.queues(QUEUES).unwrap();
        let woken: Arc<Vec<AtomicUsize>> = Arc::new((0..QUEUES).map(|_| AtomicUsize::new(0)).collect());
        for (place, queue) in queues.iter_mut().enumerate() {
            let woken = Arc::clone(&woken);
            queue.receiver.readiness(Arc::new(move || _ = woken[place].fetch_add(1, Ordering::Relaxed)));
        }
        let woken = |place: usize| woken[place].swap(0, Ordering::Relaxed);
        let home: Vec<usize> = (0..QUEUES).filter(|&place| woken(place) == 1).collect();
        assert_eq!(home.len(), 1, "told of what came early");
        let mut buffer = [0; 100];
        assert_eq!(queues[home[0]].receiver.receive(&mut buffer).unwrap().unwrap().bytes(), packet_of(0));

        let mut shares = [0; QUEUES];
        for flow in 0..300 {
            let packet = packet_of(flow);
            let mut found = None;
            for _ in 0..2 {
                assert!(handle.send(&packet));
                for (place, queue) in queues.iter_mut().enumerate() {
                    let got = queue.receiver.receive(&mut buffer).unwrap().map(|packet| packet.bytes().to_vec());
                    assert_eq!(woken(place), usize::from(got.is_some()));
                    if let Some(got) = got {
                        assert_eq!(got, packet);
                        assert_eq!(*found.get_or_insert(place), place, "flow {flow} moved");
                        shares[place] += 1;
                    }
                }
            }
        }
        assert_eq!(shares.iter().sum::<usize>(), 600);
        assert!(shares.iter().all(|share| (100..300).contains(share)), "{shares:?}");
        drop(handle);
        for (place, queue) in queues.iter_mut().enumerate() {
            assert_eq!(woken(place), 1, "told of the end");
            assert!(matches!(queue.receiver.receive(&mut buffer), Err(ReceiveError::Gone(_))));
        }
    }

    #[test]
    fn all_fragments_of_a_packet_have_one_queue() {
        let mut first = packet_of(0);
        first[6] = 0x20;
        let mut second = first.clone();
        second[7] = 1;
        second[20..24].fill(0xff);
        assert_eq!(place_of(&first, 1000), place_of(&second, 1000));
        for len in 0..40 {
            place_of(&packet_of(0)[..len.min(28)], 7);
            place_of(&packet_of(1)[..len], 7);
        }
    }

    #[test]
    fn events_tell_the_state() {
        let (mut tun, handle) = MemoryTun::new("mem0", 1420);
        let mut events = tun.events().unwrap();
        let mut check = |expected: &[TunEvent]| {
            for &event in expected {
                assert_eq!(events.next().unwrap(), Some(event));
            }
            assert_eq!(events.next().unwrap(), None);
        };
        check(&[TunEvent::Mtu(1420), TunEvent::Down]);
        handle.set_up(true);
        handle.set_up(true);
        handle.set_mtu(1280);
        handle.set_index(7);
        check(&[TunEvent::Up, TunEvent::Mtu(1280), TunEvent::Index(7)]);
        for _ in 0..100 {
            handle.set_up(false);
            handle.set_up(true);
        }
        let mut last = None;
        while let Some(event) = events.next().unwrap() {
            last = Some(event);
        }
        assert_eq!(last, Some(TunEvent::Up));
        handle.change_routes();
        assert_eq!(events.next().unwrap(), Some(TunEvent::Routes));
        drop(handle);
        assert_eq!(events.next().unwrap(), Some(TunEvent::Deleted));
    }
}
