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

/// How to learn that a source has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// This descriptor is readable then, and as long as there is something: what is left in the source is told of, too, so
    /// one that keeps packets where the system does not see them wakes by itself.
    Fd(RawFd),
    /// The source calls the [`Wake`] that it was given.
    Wake,
}

/// Packets in a row that are taken without asking for more: so many of a flood are dealt with singly before it is noticed.
const LONE_MAX: u32 = 8;

/// Bytes of a packet that is worth dealing with singly; it is bulk that is longer.
const LONE_LEN_MAX: usize = 2048;

/// Whether packets come one by one from a source that tells as long as it has something.
///
/// Asking such a source whether there is another packet costs a system call, and that the next waiting tells costs nothing.
/// So where the last packet came alone, the next one is taken, and the source is left.
#[derive(Debug, Default)]
pub(crate) struct Lone {
    /// The last one came alone.
    last: bool,
    /// So many were taken since the source was asked for more.
    in_a_row: u32,
    /// Packets taken since it had no more.
    count: usize,
}

impl Lone {
    /// Whether the next packet is likely to come alone.
    pub(crate) fn is_expected(&self) -> bool {
        self.count == 0 && self.last && self.in_a_row < LONE_MAX
    }

    /// Whether to leave the source after the packet that was expected, of `len` bytes.
    pub(crate) fn leaves(&mut self, len: usize) -> bool {
        let leaves = len <= LONE_LEN_MAX;
        self.in_a_row += u32::from(leaves);
        leaves
    }

    /// The source gave `count` packets, and is asked for more.
    pub(crate) fn took(&mut self, count: usize) {
        self.count += count;
    }

    /// It has no more. That it has nothing when it is asked early says nothing about what comes.
    pub(crate) fn ended(&mut self) {
        if self.count != 0 {
            *self = Self { last: self.count == 1, in_a_row: 0, count: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_alone_is_expected_to_for_some_time() {
        let mut lone = Lone::default();
        assert!(!lone.is_expected(), "nothing is known yet");
        lone.took(0);
        lone.ended();
        assert!(!lone.is_expected(), "nor is it by asking early");
        for _ in 0..3 {
            lone.took(1);
            lone.ended();
            for packet in 0..LONE_MAX {
                assert!(lone.is_expected(), "packet {packet}");
                assert!(!lone.leaves(LONE_LEN_MAX + 1), "it is bulk");
                assert!(lone.leaves(LONE_LEN_MAX));
                lone.took(0);
                lone.ended();
            }
            assert!(!lone.is_expected(), "a flood must be noticed");
        }
        lone.took(1);
        assert!(!lone.is_expected(), "there may be more");
        lone.took(1);
        lone.ended();
        assert!(!lone.is_expected());
    }
}
