//! An interface that is no more than two queues: for tests, and for programs that make and take inner packets themselves.
//!
//! [`MemoryTun::new`] gives the two ends: the [`Tun`] for the device, and a [`MemoryTunHandle`] that plays the system's
//! part. It sends and receives IP packets, and sets the link up and down.
//!
//! Invariants:
//! - both queues are bounded; what does not fit is refused at once and nobody waits;
//! - dropping the handle deletes the interface.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::offload::SuperPacket;
use super::{Readiness, ReceiveError, Tun, TunEvent, TunEvents, TunQueue, TunReceiver, TunSender, Wake};
use crate::packet::{Buffers, PacketRef};

/// Packets that wait in one direction: about as many as a TUN of Linux queues (500), twice.
pub const QUEUE_MAX: usize = 1000;

/// Events that wait to be taken. When more happen, only the present state is told.
pub const EVENTS_MAX: usize = 16;

#[derive(Default)]
struct State {
    /// Towards the device.
    outbound: VecDeque<Box<[u8]>>,
    /// From the device.
    inbound: VecDeque<Box<[u8]>>,
    events: VecDeque<TunEvent>,
    up: bool,
    index: u32,
    mtu: usize,
    gone: bool,
    queue_wake: Option<Wake>,
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
        let wakes = [state.events_wake.clone(), state.queue_wake.clone().filter(|_| state.gone)];
        drop(state);
        wakes.iter().flatten().for_each(|wake| wake());
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
        if !state.up || state.outbound.len() >= QUEUE_MAX {
            return false;
        }
        state.outbound.push_back(packet.into());
        let wake = state.queue_wake.clone();
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

    fn queues(&mut self, _count: usize) -> io::Result<Vec<TunQueue>> {
        if std::mem::replace(&mut self.queue_taken, true) {
            return Err(io::Error::other("the queues were taken already"));
        }
        let (receiver, sender) = (MemoryReceiver(Arc::clone(&self.shared)), MemorySender(Arc::clone(&self.shared)));
        Ok(vec![TunQueue { receiver: Box::new(receiver), sender: Box::new(sender) }])
    }

    fn events(&mut self) -> io::Result<Box<dyn TunEvents>> {
        if std::mem::replace(&mut self.events_taken, true) {
            return Err(io::Error::other("the events were taken already"));
        }
        Ok(Box::new(MemoryEvents(Arc::clone(&self.shared))))
    }
}

struct MemoryReceiver(Arc<Shared>);

impl TunReceiver for MemoryReceiver {
    fn readiness(&mut self, wake: Wake) -> Readiness {
        self.0.lock().queue_wake = Some(wake);
        Readiness::Wake
    }

    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Option<SuperPacket<'a>>, ReceiveError> {
        let mut state = self.0.lock();
        let Some(packet) = state.outbound.pop_front() else {
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
