//! Who waits for connections from peers, and the connections that wait to be accepted.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use super::flow::Flow;
use super::wait::Wakers;

/// Connections of one listener that are being established or wait to be accepted; more are not answered. A quarter of
/// Linux' `somaxconn`, and enough for a thousand peers that all come at once.
const BACKLOG_MAX: usize = 1024;

/// A listener.
pub(super) struct Listener {
    /// Where; the address may be unspecified.
    pub(super) local: SocketAddr,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    half_open: usize,
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

    /// Makes room for a connection that is being established; false when there is none.
    pub(super) fn reserve(&self) -> bool {
        let mut pending = self.lock();
        let has_room = pending.closed.is_none() && pending.half_open + pending.established.len() < BACKLOG_MAX;
        pending.half_open += usize::from(has_room);
        has_room
    }

    /// A connection that room was made for is established, or never will be.
    pub(super) fn release(&self) {
        let mut pending = self.lock();
        pending.half_open = pending.half_open.saturating_sub(1);
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
