//! The pipeline: threads and queues around the protocol.
//!
//! | file | what |
//! |---|---|
//! | `builder` | puts a device together and starts its threads |
//! | `config` | the one vocabulary of change: `Update`, `Snapshot` |
//! | `apply` | carries an update out; takes a snapshot |
//! | `peer` | fast state for all threads, slow state behind a lock |
//! | `lookup` | receiver index → handshake or session |
//! | `batch` | the states a train of packets goes through |
//! | `send`, `receive` | the two roads of a packet |
//! | `control` | the slow path: handshakes, cookies, timers, the link |
//! | `workers` | which thread runs which stage, and who helps whom |
//! | `signal`, `inbox` | wakes a thread, and lets it sleep; whom control is to look at |
//! | `ordered`, `pool` | what is finished leaves in order; the memory for it |
//! | `spin` | whether to look again before sleeping |
//! | `precedence` | whether a worker goes before who woke it |
//! | `company` | whether a worker that looks shares its processor, and had better move to another one |
//! | `absence`, `pauses` | whether others that go first give the processor back; for how long to leave off what does not pay |
//! | `stretch` | whether a busy thread has its processor for itself |
//! | `events` | what happens to peers, told as it happens |
//! | `stats` | drops, counted by rule |
//! | `time` | the clocks
//! | `figures` | what the device tells of itself beside its peers, in numbers |
//!
//! A worker runs both roads inline, others help it under load; one control thread does everything that is rare. They
//! meet in [`Shared`]: tables that are swapped as a whole, atomics, and bounded queues.
//!
//! Locks, in the order in which they may be taken: configuration, tunnel, then the leaves (sockets, endpoint,
//! staged packets, replay window, index table). Workers take no lock of the first two; of a queue (see `send`,
//! `receive`) they may hold the entry while they wait for an exit, and take leaves under both.

mod absence;
mod apply;
mod batch;
mod builder;
mod company;
pub mod config;
mod control;
pub mod events;
mod figures;
mod inbox;
mod lookup;
mod ordered;
mod pauses;
mod peer;
mod pool;
mod precedence;
mod receive;
mod send;
mod signal;
mod spin;
mod stats;
mod stretch;
mod time;
mod watch;
mod workers;

pub use builder::{Builder, CloseReason, Device, THREADS_MAX, default_threads, queues_for};
pub use figures::Figures;
pub use spin::WINDOW_MAX as SPIN_MAX;
#[doc(hidden)]
pub use time::accelerate;

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_queue::{ArrayQueue, SegQueue};

use crate::proto::allowed_ips::AllowedIps;
use crate::proto::constants::HANDSHAKE_QUEUE_MAX;
use crate::proto::handshake::Identity;
use crate::proto::messages::{INITIATION_LEN, Message};
use crate::proto::rejected::Rejected;
use crate::proto::time::Instant;
use crate::proto::tunnel::Authenticated;
use crate::sync::lock;
use crate::udp::{Received, Sent, Source, Transmit, Udp, UdpReceiver, UdpSender};
use events::{Announcer, Event};
use inbox::Inbox;
use lookup::IndexTable;
use peer::{Endpoint, Peer, Wish};
use signal::Signal;
use stats::Drops;

/// How long a change of the sockets waits for the workers to let go of the old ones. They never wait for anybody, so
/// this is reached only when one is gone.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);

/// What all threads of a device share.
pub(crate) struct Shared {
    /// Cryptokey routing and the peers it names.
    pub(crate) routes: ArcSwap<Routes>,
    /// Receiver indices.
    pub(crate) indices: IndexTable,
    /// Our static keys; `None` until a private key is set.
    pub(crate) identity: ArcSwapOption<Identity>,
    /// Why what was dropped.
    pub(crate) drops: Drops,
    /// The interface's MTU, in bytes.
    pub(crate) mtu: AtomicUsize,
    /// The interface's index where the sockets are; 0 when it has none there.
    pub(crate) tun_index: AtomicU32,
    /// Bytes staged over all peers.
    pub(crate) staged_bytes: Arc<AtomicU64>,
    /// Handshake messages with a right mac1, for the control thread.
    pub(crate) handshakes: ArrayQueue<HandshakeDatagram>,
    /// Peers that the control thread is to look at.
    pub(crate) control: Inbox,
    /// The workers, by number.
    pub(crate) workers: Box<[Signal]>,
    /// Peers whose staged packets the first worker is to flush. Bounded by the number of peers: one is here only while
    /// its flag says so.
    pub(crate) flushes: SegQueue<Arc<Peer>>,
    /// What happens to peers.
    pub(crate) events: Announcer,
    /// The device ends.
    pub(crate) closing: AtomicBool,
    /// Queues of the interface, each of which has a worker and a part of the sockets.
    lanes: usize,
    udp: Arc<dyn Udp>,
    sockets: Mutex<Sockets>,
    sockets_released: Condvar,
    /// Counts the changes of `sockets`; written with them locked, so that whoever takes a queue knows
    /// which one it took.
    sockets_epoch: AtomicU64,
    config: Mutex<apply::Config>,
}

/// Which peer an inner address belongs to. Replaced as a whole by every change.
#[derive(Clone, Default)]
pub(crate) struct Routes {
    /// Address → slot.
    pub(crate) ips: AllowedIps,
    /// Slot → peer.
    pub(crate) peers: Vec<Option<Arc<Peer>>>,
}

impl Routes {
    /// The peer that a destination routes to.
    pub(crate) fn lookup(&self, destination: IpAddr) -> Option<&Arc<Peer>> {
        self.ips.lookup(destination).and_then(|slot| self.peers.get(slot as usize)?.as_ref())
    }
}

/// A handshake message on its way to the control thread.
pub(crate) struct HandshakeDatagram {
    bytes: [u8; INITIATION_LEN],
    len: u8,
    /// Its sender.
    pub(crate) from: SocketAddr,
    /// Where it came in.
    pub(crate) source: Option<Source>,
}

impl HandshakeDatagram {
    /// The message.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

/// A worker's part of the sockets.
pub(crate) struct UdpQueue {
    /// Not where there are more workers than the sockets have receivers.
    pub(crate) receiver: Option<Box<dyn UdpReceiver>>,
    pub(crate) sender: Box<dyn UdpSender>,
}

/// The sockets in use, and what of them is on its way to the workers.
#[derive(Default)]
struct Sockets {
    bound: Option<Arc<dyn crate::udp::UdpSocket>>,
    /// For each lane.
    for_workers: Vec<Option<UdpQueue>>,
    /// What the control thread sends with.
    sender: Option<Box<dyn UdpSender>>,
    /// For each lane, the epoch that its worker has taken its queue of.
    worker_epochs: Vec<u64>,
}

impl Shared {
    /// How many messages and packets this rule has dropped since the start, here and below.
    pub(crate) fn dropped(&self, reason: Rejected) -> u64 {
        let below = if reason == Rejected::BadMac1 { self.udp.dropped_by_mac1() } else { 0 };
        self.drops.get(reason) + below
    }

    /// Asks the control thread for something.
    pub(crate) fn wish(&self, peer: &Arc<Peer>, wish: Wish) {
        self.control.wish(peer, wish);
    }

    /// A peer was heard from: where, decides where it is answered. [WP 2.1]
    pub(crate) fn heard_from(&self, peer: &Peer, endpoint: Endpoint, proof: &Authenticated) {
        if peer.heard_from(endpoint, proof) {
            self.events.announce(|| Event::EndpointMoved { peer: peer.public_key, endpoint: endpoint.address });
        }
    }

    /// Asks the first worker to send what is staged.
    pub(crate) fn want_flush(&self, peer: &Arc<Peer>) {
        if peer.want_flush() {
            self.flushes.push(peer.clone());
            self.workers[0].wake();
        }
    }

    /// A timer of the peer was armed for `deadline`: tells the control thread if it would look later.
    pub(crate) fn schedule(&self, peer: &Arc<Peer>, deadline: Option<Instant>) {
        if deadline.is_some_and(|deadline| peer.is_before_appointment(deadline)) {
            self.wish(peer, Wish::TIMERS);
        }
    }

    /// Hands a handshake message to the control thread, if it can be somebody's: mac1 is right, and what
    /// it answers was asked. [WP 5.4.4]
    /// Here, before the queue, so that garbage never displaces a real handshake.
    pub(crate) fn enqueue_handshake(&self, datagram: &[u8], message: &Message<'_>, received: &Received) {
        if !matches!(message, Message::CookieReply(_)) {
            let identity = self.identity.load();
            let Some(identity) = identity.as_ref() else {
                return self.drops.count(Rejected::NoPrivateKey, 1);
            };
            if let Err(reason) = identity.check_mac1(datagram) {
                return self.drops.count(reason, 1);
            }
        }
        let answered = match message {
            Message::Response(response) => Some(response.receiver()),
            Message::CookieReply(reply) => Some(reply.receiver()),
            _ => None,
        };
        if answered.is_some_and(|index| self.indices.get(index).is_none()) {
            return self.drops.count(Rejected::UnknownIndex, 1);
        }
        let mut bytes = [0; INITIATION_LEN];
        bytes[..datagram.len()].copy_from_slice(datagram);
        let item = HandshakeDatagram { bytes, len: datagram.len() as u8, from: received.from, source: received.source };
        if self.handshakes.push(item).is_err() {
            self.drops.count(Rejected::QueueFull, 1);
        }
        self.control.signal.wake();
    }

    /// Publishes newly bound sockets, or that there are none, and waits until nobody uses the old ones: then their
    /// port is free, and nothing leaves from it any more.
    fn publish_sockets(&self, bound: Option<Arc<dyn crate::udp::UdpSocket>>) -> std::io::Result<()> {
        let mut for_workers: Vec<_> = (0..self.lanes).map(|_| None).collect();
        let mut sender = None;
        if let Some(socket) = &bound {
            let mut receivers = socket.receivers()?.into_iter();
            for queue in &mut for_workers {
                *queue = Some(UdpQueue { receiver: receivers.next(), sender: socket.sender()? });
            }
            sender = Some(socket.sender()?);
        }
        let mut sockets = lock(&self.sockets);
        let mut worker_epochs = std::mem::take(&mut sockets.worker_epochs);
        worker_epochs.resize(self.lanes, 0);
        *sockets = Sockets { bound, for_workers, sender, worker_epochs };
        self.sockets_epoch.fetch_add(1, Ordering::Release);
        self.workers[..self.lanes].iter().for_each(Signal::wake);
        let in_use = |sockets: &mut Sockets| {
            let old = sockets.worker_epochs.iter().any(|&epoch| self.sockets_changed(epoch));
            old && !self.closing.load(Ordering::Acquire)
        };
        let waited = self.sockets_released.wait_timeout_while(sockets, RELEASE_TIMEOUT, in_use);
        drop(waited);
        Ok(())
    }

    /// The device ends, and with it the workers: nobody has to wait for what they use.
    fn abandon_sockets(&self) {
        // Locked for a moment, so that whoever has just looked is waiting by now.
        drop(lock(&self.sockets));
        self.sockets_released.notify_all();
    }

    /// Sends one datagram from outside of the workers; without sockets it is refused.
    fn send_one(&self, transmit: Transmit<'_>) -> Sent {
        let mut sent = [Sent::default()];
        match &mut lock(&self.sockets).sender {
            Some(sender) => sender.send(&[transmit], &mut sent),
            None => sent[0].refused = 1,
        }
        sent[0]
    }

    /// The sockets in use.
    fn bound(&self) -> Option<Arc<dyn crate::udp::UdpSocket>> {
        lock(&self.sockets).bound.clone()
    }

    /// A worker's queue of the present sockets, for one who has dropped the old one and whose `seen` is
    /// not theirs.
    pub(crate) fn take_worker_queue(&self, number: usize, seen: &mut u64) -> Option<UdpQueue> {
        let mut sockets = lock(&self.sockets);
        *seen = self.sockets_epoch.load(Ordering::Acquire);
        sockets.worker_epochs[number] = *seen;
        self.sockets_released.notify_all();
        sockets.for_workers[number].take()
    }

    /// Whether a worker that knows `seen` has old sockets.
    pub(crate) fn sockets_changed(&self, seen: u64) -> bool {
        self.sockets_epoch.load(Ordering::Acquire) != seen
    }
}

const _: () = assert!(INITIATION_LEN <= u8::MAX as usize);
const _: () = assert!(HANDSHAKE_QUEUE_MAX > 0);
