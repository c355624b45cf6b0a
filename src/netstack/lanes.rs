//! What waits to be taken by the device: flows that have something to send, and packets that are ready.
//!
//! Each queue of the interface is fed by a [`Lane`]. A flow is in its lane at most once, however much it has to send, and goes
//! to the end after each packet: all flows get their turn, and what they have to send waits in their own buffers, so that
//! no TCP segment is ever dropped here. Datagrams and echo replies have no such place to wait; they are packets in a bounded
//! queue, and dropped when it is full.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::flow::Flow;
use crate::packet::Wake;

/// Most queues that the interface has: more than a device of today has workers for.
const LANES_MAX: usize = 64;

/// Bytes of packets that wait in one lane: about 700 full packets, as a TUN of Linux queues 500.
const LANE_BYTES_MAX: usize = 1 << 20;

/// What a waiting packet counts for beyond its bytes, so that small ones are bounded, too.
const PACKET_OVERHEAD: usize = 64;

/// What the device is given next.
pub(super) enum Next {
    /// A flow to be asked.
    Flow(Arc<Flow>),
    /// A whole packet.
    Packet(Box<[u8]>),
}

#[derive(Default)]
struct Lane(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    flows: VecDeque<Arc<Flow>>,
    packets: VecDeque<Box<[u8]>>,
    packet_bytes: usize,
    /// A packet had its turn last.
    packet_was_last: bool,
    wake: Option<Wake>,
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.flows.is_empty() && self.packets.is_empty()
    }

    /// Whom to tell when something was added to what was empty before.
    fn wake_if(&self, was_empty: bool) -> Option<Wake> {
        self.wake.clone().filter(|_| was_empty)
    }
}

/// All lanes of a stack.
pub(super) struct Lanes {
    lanes: Box<[Lane]>,
    /// How many are in use.
    count: AtomicUsize,
}

impl Lanes {
    pub(super) fn new() -> Self {
        Self { lanes: (0..LANES_MAX).map(|_| Lane::default()).collect(), count: AtomicUsize::new(1) }
    }

    /// Uses `wanted` lanes from now on, or as many as there can be. Returns how many.
    pub(super) fn open(&self, wanted: usize) -> usize {
        let count = wanted.clamp(1, LANES_MAX);
        self.count.store(count, Ordering::Release);
        count
    }

    fn lane(&self, hash: u64) -> &Lane {
        // The upper bits of a hash are mixed best.
        &self.lanes[(hash >> 32) as usize % self.count.load(Ordering::Acquire)]
    }

    /// Lets a flow wait to be asked, unless it does already.
    pub(super) fn push_flow(&self, flow: &Arc<Flow>) {
        if flow.is_queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut waiting = self.lane(flow.hash).lock();
        let wake = waiting.wake_if(waiting.is_empty());
        waiting.flows.push_back(Arc::clone(flow));
        drop(waiting);
        if let Some(wake) = wake {
            wake();
        }
    }

    /// Lets a packet wait to be taken; false when there is no room for it.
    pub(super) fn push_packet(&self, hash: u64, packet: Box<[u8]>) -> bool {
        let cost = packet.len() + PACKET_OVERHEAD;
        let mut waiting = self.lane(hash).lock();
        if waiting.packet_bytes + cost > LANE_BYTES_MAX {
            return false;
        }
        let wake = waiting.wake_if(waiting.is_empty());
        waiting.packet_bytes += cost;
        waiting.packets.push_back(packet);
        drop(waiting);
        if let Some(wake) = wake {
            wake();
        }
        true
    }

    /// What has its turn in lane `number`: flows and packets alternate while there are both.
    pub(super) fn pop(&self, number: usize) -> Option<Next> {
        let mut waiting = self.lanes[number].lock();
        let packet_first = !waiting.packet_was_last || waiting.flows.is_empty();
        if packet_first && let Some(packet) = waiting.packets.pop_front() {
            waiting.packet_bytes -= packet.len() + PACKET_OVERHEAD;
            waiting.packet_was_last = true;
            return Some(Next::Packet(packet));
        }
        waiting.packet_was_last = false;
        let flow = waiting.flows.pop_front()?;
        drop(waiting);
        // Before it is asked: what it gets from now on puts it in the lane again.
        flow.is_queued.store(false, Ordering::Release);
        Some(Next::Flow(flow))
    }

    /// Sets how the device learns that lane `number` is not empty any more, and tells it at once if it is not now.
    pub(super) fn set_wake(&self, number: usize, wake: Wake) {
        let mut waiting = self.lanes[number].lock();
        waiting.wake = Some(Arc::clone(&wake));
        let early = !waiting.is_empty();
        drop(waiting);
        if early {
            wake();
        }
    }

    /// Forgets everything that waits: nobody will take it.
    pub(super) fn clear(&self) {
        for lane in &self.lanes {
            let waiting = std::mem::take(&mut *lane.lock());
            drop(waiting);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_bounded_and_told_of_once() {
        let lanes = Lanes::new();
        let told = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&told);
        assert!(lanes.push_packet(0, Box::new([1])));
        lanes.set_wake(0, Arc::new(move || _ = count.fetch_add(1, Ordering::Relaxed)));
        assert_eq!(told.load(Ordering::Relaxed), 1, "told of what came early");
        let mut taken = 1;
        while lanes.push_packet(0, vec![0; 1000].into()) {
            taken += 1;
        }
        assert_eq!(taken, 1 + (LANE_BYTES_MAX - 1 - PACKET_OVERHEAD) / (1000 + PACKET_OVERHEAD));
        assert_eq!(told.load(Ordering::Relaxed), 1, "it was not empty");
        for _ in 0..taken {
            assert!(matches!(lanes.pop(0), Some(Next::Packet(_))));
        }
        assert!(lanes.pop(0).is_none());
        assert!(lanes.push_packet(0, Box::new([1])));
        assert_eq!(told.load(Ordering::Relaxed), 2);
    }
}
