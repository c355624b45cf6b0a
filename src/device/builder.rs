//! Puts a device together, starts its threads, and ends them.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use arc_swap::{ArcSwap, ArcSwapOption};
use crossbeam_queue::ArrayQueue;
use mio::{Poll, Waker};

use super::config::{ApplyError, Configure, Snapshot, Update};
use super::control::Control;
use super::lookup::IndexTable;
use super::stats::Drops;
use super::workers::{WAKER, Worker};
use super::{Inbox, Routes, Shared, Sockets, lock};
use crate::proto::constants::HANDSHAKE_QUEUE_MAX;
use crate::proto::rejected::Rejected;
use crate::tun::Tun;
use crate::udp::Udp;

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
}

impl Builder {
    /// Calls this once when the device ends, from one of its threads. It must not block.
    pub fn on_close(mut self, on_close: impl FnOnce(&CloseReason) + Send + 'static) -> Self {
        self.on_close = Some(Box::new(on_close));
        self
    }

    /// Starts the device's threads: one worker, one for control. It has no key and no peers yet, and
    /// binds its port when the link comes up.
    ///
    /// # Errors
    /// What the system says when threads, or what they wait with, cannot be made.
    pub fn start(self) -> io::Result<Device> {
        let Self { mut tun, udp, on_close } = self;
        let worker_poll = Poll::new()?;
        let control_poll = Poll::new()?;
        let shared = Arc::new(Shared {
            routes: ArcSwap::from_pointee(Routes::default()),
            indices: IndexTable::new(),
            identity: ArcSwapOption::empty(),
            drops: Drops::default(),
            mtu: AtomicUsize::new(tun.mtu()),
            tun_index: AtomicU32::new(0),
            staged_bytes: Arc::new(AtomicU64::new(0)),
            handshakes: ArrayQueue::new(HANDSHAKE_QUEUE_MAX),
            control: Inbox::new(Waker::new(control_poll.registry(), WAKER)?),
            worker: Inbox::new(Waker::new(worker_poll.registry(), WAKER)?),
            closing: false.into(),
            udp,
            sockets: Mutex::new(Sockets::default()),
            sockets_released: Condvar::new(),
            sockets_epoch: AtomicU64::new(0),
            config: Mutex::default(),
        });
        let queue = tun.queues(1)?.into_iter().next().ok_or(io::ErrorKind::Unsupported)?;
        let worker = Worker::new(shared.clone(), worker_poll, queue);
        let control = Control::new(shared.clone(), control_poll, tun.events()?);
        let closed = Arc::new(Closed { state: Mutex::new((None, on_close)), changed: Condvar::new() });
        // From here on the device exists: if the second thread cannot start, dropping it ends the first.
        let mut device = Device { shared, closed, threads: Vec::new(), tun: Mutex::new(tun) };
        device.spawn("adit-worker", || worker.run())?;
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
        shared.worker.wake();
        shared.control.wake();
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
        Builder { tun: Box::new(tun), udp: Arc::new(udp), on_close: None }
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

    /// How many messages and packets this rule has dropped since the start.
    pub fn drops(&self, reason: Rejected) -> u64 {
        self.shared.drops.get(reason)
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
