//! Puts a device together, starts its threads, and ends them.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_queue::{ArrayQueue, SegQueue};

use super::config::{ApplyError, Configure, Snapshot, Update};
use super::control::Control;
use super::events::{Announcer, Events};
use super::figures::Figures;
use super::inbox::Inbox;
use super::lookup::IndexTable;
use super::peer::Wish;
use super::signal::Signal;
use super::stats::Drops;
use super::watch::WAKER;
use super::workers::{Crew, Worker};
use super::{Routes, Shared, Sockets, spin};
use crate::key::PublicKey;
use crate::proto::constants::HANDSHAKE_QUEUE_MAX;
use crate::proto::rejected::Rejected;
use crate::sync::lock;
use crate::sys::poll::Poll;
use crate::sys::thread as sys_thread;
use crate::tun::Tun;
use crate::udp::Udp;

/// Workers that share one queue of the interface: with so few, dividing the flows costs more than sharing.
const SHARED_QUEUE_MAX: usize = 2;

/// How many workers a device has if nothing else is said: as many as the process may use processors at once,
/// [`THREADS_MAX`] at most.
pub fn default_threads() -> usize {
    thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX))
}

/// How many queues of the interface a device of so many workers has a use for.
pub fn queues_for(threads: usize) -> usize {
    if threads > SHARED_QUEUE_MAX { threads } else { 1 }
}

/// Why a device ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// [`Device::close`] was called, or the device dropped.
    Requested,
    /// The interface was deleted.
    TunDeleted,
    /// A thread could not go on: what it said. Nothing is sent or received any more.
    Failed(String),
}

type OnClose = Box<dyn FnOnce(&CloseReason) + Send>;

/// What a device is made of.
pub struct Builder {
    tun: Box<dyn Tun>,
    udp: Arc<dyn Udp>,
    on_close: Option<OnClose>,
    threads: Option<usize>,
    spin: Duration,
    processors: Vec<usize>,
}

/// Workers, at most: each has a queue of the interface and a socket, and memory for its batches.
pub const THREADS_MAX: usize = 16;

impl Builder {
    /// How many workers there are: 1 to [`THREADS_MAX`]. Without it, as many as the process may use processors at
    /// once, [`THREADS_MAX`] at most. One does all the work while it can; up to two share one queue of the interface,
    /// more have one each.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads.clamp(1, THREADS_MAX));
        self
    }

    /// How long a worker looks for more before it sleeps, at most [`SPIN_MAX`](super::SPIN_MAX); zero for not at all.
    /// It does so only while it pays, and never wastes more than a quarter of one processor. Without it, 100 µs.
    pub fn spin(mut self, window: Duration) -> Self {
        self.spin = window;
        self
    }

    /// Pins the workers to processors, counted from 0: the first to the first of these and so on, and again from the
    /// front when there are more workers. Without it they run where the system puts them.
    pub fn processors(mut self, processors: Vec<usize>) -> Self {
        self.processors = processors;
        self
    }

    /// Calls this once when the device ends, from one of its threads. It must not block.
    pub fn on_close(mut self, on_close: impl FnOnce(&CloseReason) + Send + 'static) -> Self {
        self.on_close = Some(Box::new(on_close));
        self
    }

    /// Starts the device's threads: the workers, and one for control. It has no key and no peers yet, and
    /// binds its port when the link comes up.
    ///
    /// # Errors
    /// What the system says when threads, or what they wait with, cannot be made. A processor that does not exist ends
    /// the device with [`CloseReason::Failed`].
    pub fn start(self) -> io::Result<Device> {
        let Self { mut tun, udp, on_close, threads, spin, processors } = self;
        // Asked only now: the answer is in files, which a process may have closed to itself.
        let threads = threads.unwrap_or_else(default_threads);
        let polls: Vec<_> = (0..threads).map(|_| Poll::new()).collect::<io::Result<_>>()?;
        let control_poll = Poll::new()?;
        let signal = |poll: &Poll| io::Result::Ok(Signal::new(poll.waker(WAKER)?));
        let mut queues = tun.queues(queues_for(threads))?;
        queues.truncate(threads);
        if queues.is_empty() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let shared = Arc::new(Shared {
            routes: ArcSwap::from_pointee(Routes::default()),
            indices: IndexTable::new(queues.len()),
            identity: ArcSwapOption::empty(),
            drops: Drops::default(),
            mtu: AtomicUsize::new(tun.mtu()),
            tun_index: AtomicU32::new(0),
            staged_bytes: Arc::new(AtomicU64::new(0)),
            handshakes: ArrayQueue::new(HANDSHAKE_QUEUE_MAX),
            control: Inbox::new(signal(&control_poll)?),
            workers: polls.iter().map(signal).collect::<io::Result<_>>()?,
            flushes: SegQueue::new(),
            events: Announcer::default(),
            closing: false.into(),
            lanes: queues.len(),
            udp,
            sockets: Mutex::new(Sockets::default()),
            sockets_released: Condvar::new(),
            sockets_epoch: AtomicU64::new(0),
            config: Mutex::default(),
        });
        let crew = Arc::new(Crew::new(shared.clone(), queues));
        let control = Control::new(shared.clone(), control_poll, tun.events()?);
        let closed = Arc::new(Closed { state: Mutex::new((None, on_close)), changed: Condvar::new() });
        // From here on the device exists: if a later thread cannot start, dropping it ends the earlier ones.
        let mut device = Device { shared, closed, threads: Vec::new(), tun: Mutex::new(tun) };
        for (number, poll) in polls.into_iter().enumerate() {
            let worker = Worker::new(crew.clone(), number, poll, spin);
            let processor = processors.get(number % processors.len().max(1)).copied();
            device.spawn(&format!("adit-worker-{number}"), move || {
                processor.map_or(Ok(()), sys_thread::pin)?;
                worker.run()
            })?;
        }
        device.spawn("adit-control", || control.run())?;
        Ok(device)
    }
}

/// Whether a device has ended, and why.
struct Closed {
    state: Mutex<(Option<CloseReason>, Option<OnClose>)>,
    changed: Condvar,
}

impl Closed {
    /// Ends the device's threads. The first reason counts: it is written down before any thread is told.
    fn close(&self, shared: &Shared, reason: CloseReason) {
        let mut state = lock(&self.state);
        if state.0.is_some() {
            return;
        }
        state.0 = Some(reason.clone());
        shared.closing.store(true, Ordering::Release);
        shared.workers.iter().for_each(Signal::wake);
        shared.control.signal.wake();
        shared.abandon_sockets();
        shared.events.close();
        let on_close = state.1.take();
        drop(state);
        self.changed.notify_all();
        if let Some(on_close) = on_close {
            on_close(&reason);
        }
    }
}

/// A running WireGuard device. Dropping it ends it.
pub struct Device {
    shared: Arc<Shared>,
    closed: Arc<Closed>,
    threads: Vec<JoinHandle<()>>,
    /// Kept for its name, and so that the interface lives as long as the device.
    tun: Mutex<Box<dyn Tun>>,
}

impl Device {
    /// A device on these edges, to be started.
    pub fn builder(tun: impl Tun + 'static, udp: impl Udp + 'static) -> Builder {
        Builder {
            tun: Box::new(tun),
            udp: Arc::new(udp),
            on_close: None,
            threads: None,
            spin: spin::WINDOW,
            processors: Vec::new(),
        }
    }

    /// The interface's present name.
    pub fn name(&self) -> String {
        lock(&self.tun).name()
    }

    /// Changes the device: as a whole, or not at all. What already holds is left alone, so applying
    /// the same twice loses no packet.
    ///
    /// # Errors
    /// [`ApplyError`]; nothing was changed then.
    pub fn apply(&self, update: Update) -> Result<(), ApplyError> {
        self.shared.apply(update)
    }

    /// What the device is and has done.
    pub fn snapshot(&self) -> Snapshot {
        self.shared.snapshot()
    }

    /// What happens to the peers from now on. Every call gives another queue.
    pub fn events(&self) -> Events {
        self.shared.events.listen()
    }

    /// How many messages and packets this rule has dropped since the start.
    pub fn drops(&self, reason: Rejected) -> u64 {
        self.shared.dropped(reason)
    }

    /// Starts a handshake with a peer, although nothing waits to be sent: to learn whether it is there. Nothing happens
    /// where one was started less than 5 s ago (REKEY_TIMEOUT), and where the peer or its endpoint is not known. Without an
    /// answer it is repeated, as any handshake is, for 90 s.
    pub fn start_handshake(&self, peer: &PublicKey) {
        if let Some(peer) = self.shared.peer_by_key(peer) {
            self.shared.wish(&peer, Wish::HANDSHAKE);
        }
    }

    /// What the device has dropped, holds and waits for, in numbers. Takes time in proportion to the peers, and
    /// nothing from the threads that carry packets.
    pub fn figures(&self) -> Figures {
        Figures::of(&self.shared)
    }

    /// Whether the device's threads run: false from the moment on at which [`Device::wait`] has an answer. Never waits.
    pub fn is_running(&self) -> bool {
        !self.shared.closing.load(Ordering::Acquire)
    }

    /// Waits until the device has ended, and says why.
    pub fn wait(&self) -> CloseReason {
        let mut state = lock(&self.closed.state);
        loop {
            if let Some(reason) = &state.0 {
                return reason.clone();
            }
            state = self.closed.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Ends the device: its threads stop, its sockets close. Takes no longer than the packet in hand.
    pub fn close(&mut self) {
        self.closed.close(&self.shared, CloseReason::Requested);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread of the device panicked while it ended");
            }
        }
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() -> io::Result<CloseReason> + Send + 'static) -> io::Result<()> {
        let shared = self.shared.clone();
        let closed = self.closed.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            // Whatever ends one thread ends the device: it is never half alive.
            let reason = match catch_unwind(AssertUnwindSafe(run)) {
                Ok(Ok(reason)) => reason,
                Ok(Err(error)) => CloseReason::Failed(error.to_string()),
                Err(panic) => CloseReason::Failed(panic_text(panic.as_ref())),
            };
            closed.close(&shared, reason);
        })?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Configure for Device {
    fn apply(&self, update: Update) -> Result<(), ApplyError> {
        Self::apply(self, update)
    }

    fn snapshot(&self) -> Snapshot {
        Self::snapshot(self)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.close();
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("internal error: {}", text.unwrap_or("a thread panicked"))
}
