//! What a service has done: counters that anybody may read while it runs.
//!
//! Each is an atomic of its own and only grows, but for the two gauges; readers see each number as it is, not all at
//! one instant.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::failure::Failure;

/// The counters of one service.
#[derive(Debug, Default)]
pub struct Counters {
    accepted: AtomicU64,
    /// Counted by the guards of `clients.rs`.
    pub(super) half_open: AtomicU64,
    pub(super) served: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    sent_datagrams: AtomicU64,
    received_datagrams: AtomicU64,
    failures: [AtomicU64; Failure::ALL.len()],
}

/// What [`Counters::figures`] read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Figures {
    /// Connections accepted since the start; for UDP, clients that got a mapping; for DNS, queries too.
    pub accepted: u64,
    /// Clients in a handshake now.
    pub half_open: u64,
    /// Clients that are served now, handshake behind them.
    pub served: u64,
    /// Bytes of payload from the client to the target, of connections and datagrams.
    pub sent_bytes: u64,
    /// Bytes of payload from the target to the client.
    pub received_bytes: u64,
    /// Datagrams from the client to the target.
    pub sent_datagrams: u64,
    /// Datagrams from the target to the client.
    pub received_datagrams: u64,
    /// How often each reason was met, in the order of [`Failure::ALL`].
    pub failures: [u64; Failure::ALL.len()],
}

impl Figures {
    /// How often `failure` was met.
    pub fn failures(&self, failure: Failure) -> u64 {
        self.failures[failure.index()]
    }
}

impl Counters {
    /// All numbers as they are now.
    pub fn figures(&self) -> Figures {
        Figures {
            accepted: self.accepted.load(Relaxed),
            half_open: self.half_open.load(Relaxed),
            served: self.served.load(Relaxed),
            sent_bytes: self.sent_bytes.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            sent_datagrams: self.sent_datagrams.load(Relaxed),
            received_datagrams: self.received_datagrams.load(Relaxed),
            failures: std::array::from_fn(|index| self.failures[index].load(Relaxed)),
        }
    }

    pub(super) fn accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(super) fn failed(&self, failure: Failure) {
        self.failures[failure.index()].fetch_add(1, Relaxed);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.sent_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(super) fn sent_datagram(&self, bytes: usize) {
        self.sent_datagrams.fetch_add(1, Relaxed);
        self.sent(bytes);
    }

    pub(super) fn received_datagram(&self, bytes: usize) {
        self.received_datagrams.fetch_add(1, Relaxed);
        self.received(bytes);
    }
}
