//! Peers that the control thread is to look at, and the way to wake it.

use std::sync::Arc;

use super::peer::{Peer, Wish};
use super::signal::Signal;
use crate::sync::SegQueue;

/// Peers that the control thread is to look at, each at most once, and the way to wake it.
pub(crate) struct Inbox {
    /// Bounded by the number of peers: one is here only while its wishes say so.
    peers: SegQueue<Arc<Peer>>,
    pub(crate) signal: Signal,
}

impl Inbox {
    pub(crate) fn new(signal: Signal) -> Self {
        Self { peers: SegQueue::new(), signal }
    }

    /// Asks the control thread for something. It sees what was done before.
    pub(crate) fn wish(&self, peer: &Arc<Peer>, wish: Wish) {
        if peer.wish(wish) {
            self.peers.push(peer.clone());
            self.signal.wake();
        }
    }

    /// The next peer to look at.
    pub(crate) fn pop(&self) -> Option<Arc<Peer>> {
        self.peers.pop()
    }
}
