//! Who waits for connections from peers, and the connections that wait to be accepted.
//!
//! Connections that a peer has asked for and not confirmed are not counted here: the stack bounds them, and lets go of the
//! oldest, so that a flood of requests does not keep others from being established.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use super::flow::Flow;
use super::wait::Wakers;

/// Connections of one listener that wait to be accepted; while there are so many, requests for more are not answered. A
/// quarter of Linux' `somaxconn`, and enough for a thousand peers that all come at once. Those that were half-open by
/// then may still add to it.
const BACKLOG_MAX: usize = 1024;

/// A listener.
pub(super) struct Listener {
    /// Where; the address may be unspecified.
    pub(super) local: SocketAddr,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    established: VecDeque<Arc<Flow>>,
    acceptors: Wakers,
    /// Nobody accepts any more, for this reason.
    closed: Option<io::ErrorKind>,
}

impl Listener {
    pub(super) fn new(local: SocketAddr) -> Arc<Self> {
        Arc::new(Self { local, pending: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more connection may wait to be accepted.
    pub(super) fn has_room(&self) -> bool {
        let pending = self.lock();
        pending.closed.is_none() && pending.established.len() < BACKLOG_MAX
    }

    /// Takes an established connection; false when nobody will accept it.
    pub(super) fn push(&self, flow: &Arc<Flow>) -> bool {
        let mut pending = self.lock();
        if pending.closed.is_some() {
            return false;
        }
        pending.established.push_back(Arc::clone(flow));
        let acceptors = pending.acceptors.take();
        drop(pending);
        acceptors.wake();
        true
    }

    /// Waits for a connection.
    pub(super) fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Arc<Flow>>> {
        let mut pending = self.lock();
        if let Some(flow) = pending.established.pop_front() {
            return Poll::Ready(Ok(flow));
        }
        if let Some(reason) = pending.closed {
            return Poll::Ready(Err(reason.into()));
        }
        pending.acceptors.register(context.waker());
        Poll::Pending
    }

    /// Ends it, and gives back the connections that nobody accepted.
    pub(super) fn close(&self, reason: io::ErrorKind) -> VecDeque<Arc<Flow>> {
        let mut pending = self.lock();
        pending.closed = Some(reason);
        let (established, acceptors) = (std::mem::take(&mut pending.established), pending.acceptors.take());
        drop(pending);
        acceptors.wake();
        established
    }
}
