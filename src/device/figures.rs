//! What a device tells of itself beside its peers, in numbers: the other half of a [`Snapshot`](super::config::Snapshot).
//!
//! Everything here is read from what the threads keep for their own use. Nothing is counted for it on the road of a
//! packet, and no lock is taken that this road takes: only that of the index table, for the length of one read.

use std::sync::atomic::Ordering;

use super::Shared;
use super::peer::STAGED_BYTES_MAX;
use super::time::now;
use crate::proto::constants::HANDSHAKE_QUEUE_MAX;
use crate::proto::rejected::Rejected;

/// What a device has dropped, holds and waits for. The numbers are read one after the other while the device goes on,
/// so they need not add up to the last unit.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Figures {
    /// Messages and packets dropped since the start, by [`Rejected::index`]; see [`Figures::drops`].
    pub drops: [u64; Rejected::COUNT],
    /// Peers.
    pub peers: usize,
    /// Peers with a session that packets may be sent in now.
    pub sessions: usize,
    /// Peers whose path lately refused several datagrams in one call (`UDP_SEGMENT`), so that they are sent one by one.
    pub unsegmented_peers: usize,
    /// Receiver indices in use: one for each handshake under way and each session that may still receive.
    pub receiver_indices: usize,
    /// Peers with packets that wait for a session.
    pub staged_peers: usize,
    /// Bytes of packets that wait for a session, over all peers.
    pub staged_bytes: u64,
    /// The most that `staged_bytes` may be; beyond it packets are dropped as [`Rejected::StagedDropped`].
    pub staged_bytes_max: u64,
    /// Handshake messages that wait for the control thread.
    pub handshakes_queued: usize,
    /// The most that `handshakes_queued` may be; beyond it messages are dropped as [`Rejected::QueueFull`].
    pub handshakes_queued_max: usize,
    /// Whether the UDP port is bound: not while the link is down, nor while the port is not to be had.
    pub is_bound: bool,
    /// The interface's MTU, in bytes.
    pub mtu: usize,
    /// Workers.
    pub workers: usize,
    /// Queues of the interface, each with a worker of its own.
    pub queues: usize,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            drops: [0; Rejected::COUNT],
            peers: 0,
            sessions: 0,
            unsegmented_peers: 0,
            receiver_indices: 0,
            staged_peers: 0,
            staged_bytes: 0,
            staged_bytes_max: STAGED_BYTES_MAX as u64,
            handshakes_queued: 0,
            handshakes_queued_max: HANDSHAKE_QUEUE_MAX,
            is_bound: false,
            mtu: 0,
            workers: 0,
            queues: 0,
        }
    }
}

impl Figures {
    /// How many messages and packets this rule has dropped since the start.
    pub fn drops(&self, reason: Rejected) -> u64 {
        self.drops[reason.index()]
    }

    /// The present ones.
    pub(crate) fn of(shared: &Shared) -> Self {
        let now = now();
        let routes = shared.routes.load_full();
        let mut figures = Self {
            drops: Rejected::ALL.map(|reason| shared.dropped(reason)),
            receiver_indices: shared.indices.len(),
            staged_bytes: shared.staged_bytes.load(Ordering::Relaxed),
            handshakes_queued: shared.handshakes.len(),
            is_bound: shared.bound().is_some(),
            mtu: shared.mtu.load(Ordering::Relaxed),
            workers: shared.workers.len(),
            queues: shared.lanes,
            ..Self::default()
        };
        for peer in routes.peers.iter().flatten() {
            figures.peers += 1;
            figures.sessions += usize::from(peer.sending.load().as_ref().is_some_and(|keypair| keypair.may_send(now)));
            figures.unsegmented_peers += usize::from(!peer.takes_offload(now));
            figures.staged_peers += usize::from(peer.has_staged());
        }
        figures
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::device::Device;
    use crate::device::config::{PeerUpdate, Update};
    use crate::key::PublicKey;
    use crate::tun::memory::MemoryTun;
    use crate::udp::memory::MemoryNetwork;

    #[test]
    fn a_new_device() {
        let (tun, system) = MemoryTun::new("figures", 1420);
        let host = MemoryNetwork::new().host(&[Ipv4Addr::LOCALHOST.into()]);
        let mut device = Device::builder(tun, host).threads(2).start().unwrap();
        let peers = vec![PeerUpdate::new(PublicKey::from_bytes([7; 32]))];
        device.apply(Update { peers, ..Update::default() }).unwrap();
        let figures = device.figures();
        assert_eq!((figures.peers, figures.sessions, figures.receiver_indices), (1, 0, 0));
        assert_eq!((figures.staged_peers, figures.staged_bytes, figures.handshakes_queued), (0, 0, 0));
        assert_eq!((figures.workers, figures.queues, figures.mtu, figures.is_bound), (2, 1, 1420, false));
        assert_eq!(figures.drops(Rejected::BadTag), 0);
        system.set_up(true);
        while device.snapshot().listen_port == 0 {
            std::thread::yield_now();
        }
        assert!(device.figures().is_bound && device.is_running());
        device.close();
        assert!(!device.is_running());
    }
}
