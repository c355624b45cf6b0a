//! Which thread runs which stage.
//!
//! One worker owns the TUN's queue and the sockets' receiving queue and runs both roads inline: the
//! thread that reads a packet also seals and sends it, so no packet waits for a thread to wake up.
//! It takes turns: some reads from the TUN, one batch from the sockets, until both have nothing
//! more, and only then sleeps. It never waits for a lock that is held for long, and never for the
//! control thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};

use super::builder::CloseReason;
use super::receive::Receiver;
use super::send::{Edges, Sender};
use super::{Shared, UdpQueue, now};
use crate::tun::{Readiness, TunQueue, Wake};

/// The inbox has something, or a source without a file descriptor became ready.
pub(crate) const WAKER: Token = Token(0);
const TUN: Token = Token(1);
/// The sockets' first token; each has its own.
const FIRST_UDP: usize = 2;

/// Peers flushed before the worker turns to packets again.
const FLUSHES_PER_TURN: usize = 64;
/// Events taken from one poll; there are never more sources than this.
pub(crate) const EVENTS_MAX: usize = 8;

/// A thread that moves packets.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    poll: Poll,
    tun: TunQueue,
    udp: Option<UdpQueue>,
    udp_fds: Vec<Readiness>,
    epoch: u64,
    sender: Sender,
    receiver: Receiver,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, poll: Poll, tun: TunQueue) -> Self {
        let sender = Sender::new(shared.clone());
        let receiver = Receiver::new(shared.clone());
        Self { shared, poll, tun, udp: None, udp_fds: Vec::new(), epoch: 0, sender, receiver }
    }

    /// Runs until the device closes, and says why it did.
    pub(crate) fn run(mut self) -> io::Result<CloseReason> {
        let readiness = self.tun.receiver.readiness(wake(&self.shared));
        register(&self.poll, readiness, TUN)?;
        let mut events = Events::with_capacity(EVENTS_MAX);
        let mut tun_ready = true;
        let mut udp_ready = true;
        loop {
            self.shared.worker.acknowledge();
            if self.shared.closing.load(Ordering::Acquire) {
                return Ok(CloseReason::Requested);
            }
            if self.shared.sockets_changed(self.epoch) {
                self.change_sockets()?;
                udp_ready = true;
            }
            self.flush_wanted();
            while (tun_ready || udp_ready) && !self.shared.worker.is_signalled() {
                let now = now();
                let mut edges = Edges { tun: &mut self.tun, udp: self.udp.as_mut() };
                if tun_ready {
                    match self.sender.run(&mut edges, now) {
                        Ok(more) => tun_ready = more,
                        Err(error) => {
                            tracing::debug!("The TUN is gone: {error}");
                            return Ok(CloseReason::TunDeleted);
                        }
                    }
                }
                if udp_ready {
                    udp_ready = self.receiver.run(&mut edges, now).unwrap_or_else(|error| {
                        tracing::error!("Failed to receive from the UDP sockets: {error}");
                        false
                    });
                }
            }
            let wait = if tun_ready || udp_ready || self.shared.worker.is_signalled() {
                Some(std::time::Duration::ZERO)
            } else {
                None
            };
            if let Err(error) = self.poll.poll(&mut events, wait)
                && error.kind() != io::ErrorKind::Interrupted
            {
                return Err(error);
            }
            for event in &events {
                match event.token() {
                    WAKER => (tun_ready, udp_ready) = (true, true),
                    TUN => tun_ready = true,
                    Token(udp) => {
                        udp_ready = true;
                        self.udp.iter_mut().for_each(|queue| queue.receiver.ready(udp - FIRST_UDP));
                    }
                }
            }
        }
    }

    /// Drops the old queue before it takes the new one: its port may be wanted again.
    fn change_sockets(&mut self) -> io::Result<()> {
        for readiness in self.udp_fds.drain(..) {
            if let Readiness::Fd(fd) = readiness {
                self.poll.registry().deregister(&mut SourceFd(&fd))?;
            }
        }
        self.udp = None;
        self.udp = self.shared.take_worker_queue(&mut self.epoch);
        if let Some(udp) = &mut self.udp {
            self.udp_fds = udp.receiver.readiness(wake(&self.shared));
            for (source, &readiness) in self.udp_fds.iter().enumerate() {
                register(&self.poll, readiness, Token(FIRST_UDP + source))?;
            }
        }
        Ok(())
    }

    fn flush_wanted(&mut self) {
        for _ in 0..FLUSHES_PER_TURN {
            let Some(peer) = self.shared.worker.pop() else { return };
            if peer.take_flush() {
                let mut edges = Edges { tun: &mut self.tun, udp: self.udp.as_mut() };
                self.sender.flush(&mut edges, &peer, now());
            }
        }
        self.shared.worker.wake();
    }
}

fn wake(shared: &Arc<Shared>) -> Wake {
    let shared = Arc::downgrade(shared);
    Arc::new(move || {
        if let Some(shared) = shared.upgrade() {
            shared.worker.wake();
        }
    })
}

/// Registers a source that has a file descriptor, for edges; others wake through the inbox.
pub(crate) fn register(poll: &Poll, readiness: Readiness, token: Token) -> io::Result<()> {
    match readiness {
        Readiness::Fd(fd) => poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE),
        Readiness::Wake => Ok(()),
    }
}
