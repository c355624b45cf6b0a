//! Where packets lie while the pipeline works on them, and how a worker learns that there are more.
//!
//! Receive buffers are made once, when a worker starts, and never grow: [`Buffers`] owns them and a
//! [`PacketRef`] names a place in one of them. A stage hands on places instead of slices, so that
//! lists of packets can be kept and reused from one batch to the next without allocating.

use std::os::fd::RawFd;
use std::sync::Arc;

/// Bytes in one receive buffer: the most that one UDP_GRO receive or one TUN read can fill.
pub const BUFFER_LEN: usize = 65_535;

/// Bytes before a packet that was read, for what the system puts there: enough for the header of a TUN, and the packet
/// begins at a multiple of 16.
pub(crate) const READ_HEADROOM: usize = 16;

/// Bytes that a TUN is read into: the longest packet, and what some systems put before it.
pub const READ_BUFFER_LEN: usize = READ_HEADROOM + BUFFER_LEN;

/// A run of bytes in one of a worker's [`Buffers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketRef {
    /// Which buffer.
    pub buffer: u32,
    /// Its first byte there.
    pub start: u32,
    /// How many bytes.
    pub len: u32,
}

/// A worker's receive buffers: a fixed number of [`BUFFER_LEN`] bytes each.
#[derive(Debug)]
pub struct Buffers(Box<[Box<[u8]>]>);

impl Buffers {
    /// Makes `count` buffers, zeroed. The pages behind them are touched only when used.
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| vec![0; BUFFER_LEN].into_boxed_slice()).collect())
    }

    /// How many buffers there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The whole of one buffer.
    ///
    /// # Panics
    /// When there is no such buffer: a programmer's error.
    pub fn whole(&mut self, buffer: u32) -> &mut [u8] {
        &mut self.0[buffer as usize]
    }

    /// All buffers, for an edge that fills several at once.
    pub fn all(&mut self) -> &mut [Box<[u8]>] {
        &mut self.0
    }

    /// The bytes that `place` names.
    ///
    /// # Panics
    /// When `place` lies outside: a programmer's error.
    pub fn get(&self, place: PacketRef) -> &[u8] {
        &self.0[place.buffer as usize][place.start as usize..][..place.len as usize]
    }

    /// The bytes that `place` names, to be changed.
    ///
    /// # Panics
    /// When `place` lies outside: a programmer's error.
    pub fn get_mut(&mut self, place: PacketRef) -> &mut [u8] {
        &mut self.0[place.buffer as usize][place.start as usize..][..place.len as usize]
    }
}

/// Tells a worker that a source which has no file descriptor can be tried again.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// How to learn that a source which said "would block" can be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// It has become readable (edge-triggered).
    Fd(RawFd),
    /// The source calls the [`Wake`] that it was given.
    Wake,
}
