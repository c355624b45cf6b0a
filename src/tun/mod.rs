//! The edge towards inner packets: a network interface, or anything that behaves like one.
//!
//! A [`Tun`] is the interface as a whole: its name, its MTU, its link state. A [`TunQueue`] moves packets; its two
//! directions are separate, so that one thread can read while another writes.

mod link;
pub mod linux;
pub mod memory;
pub mod offload;

use std::io;

use crate::packet::{Buffers, PacketRef};
pub use crate::packet::{Readiness, Wake};
use offload::SuperPacket;

/// What happened to the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum TunEvent {
    /// The link is administratively up.
    Up,
    /// The link is administratively down.
    Down,
    /// The MTU is now this many bytes.
    Mtu(usize),
    /// The interface's index where the sockets are; 0 while it is in another network namespace. Told
    /// before [`TunEvent::Up`]; an interface that never tells one has none.
    Index(u32),
    /// An address or a route of the system changed: learnt source addresses may be wrong now.
    Routes,
    /// The interface is gone: the device has to end.
    Deleted,
}

/// An interface as a whole.
pub trait Tun: Send {
    /// Its present name.
    fn name(&self) -> String;

    /// Its MTU in bytes when last read; later changes come as [`TunEvent::Mtu`].
    fn mtu(&self) -> usize;

    /// Takes the queues: at least one, and at most `count`, which is what the device has a use for. The packets of
    /// one flow come out of one queue; once the flow's packets are written through another one, they may come out of
    /// that. Called once.
    fn queues(&mut self, count: usize) -> io::Result<Vec<TunQueue>>;

    /// Takes the source of events. Called once. The first events tell the present link state.
    fn events(&mut self) -> io::Result<Box<dyn TunEvents>>;
}

/// What happens to an interface, as it happens.
pub trait TunEvents: Send {
    /// How to wait for the next event. Called once, before [`TunEvents::next`].
    fn readiness(&mut self, wake: Wake) -> Readiness;

    /// The next event, or `None` when there is none now.
    fn next(&mut self) -> io::Result<Option<TunEvent>>;
}

/// Why nothing could be read.
#[derive(Debug)]
#[non_exhaustive]
pub enum ReceiveError {
    /// What was read is no IP packet, or its offload header contradicts it. It is dropped; the next may be fine.
    Malformed,
    /// Nothing will ever be read again: the interface is gone.
    Gone(io::Error),
}

impl std::fmt::Display for ReceiveError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed => f.write_str("the TUN gave no IP packet, or an inconsistent offload header"),
            Self::Gone(_) => f.write_str("the TUN is gone"),
        }
    }
}

impl std::error::Error for ReceiveError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Malformed => None,
            Self::Gone(error) => Some(error),
        }
    }
}

impl From<offload::Malformed> for ReceiveError {
    fn from(offload::Malformed: offload::Malformed) -> Self {
        Self::Malformed
    }
}

/// One queue of an interface.
pub struct TunQueue {
    /// Its outbound direction, from the system to the device.
    pub receiver: Box<dyn TunReceiver>,
    /// Its inbound direction, from the device to the system.
    pub sender: Box<dyn TunSender>,
}

/// Reads the inner packets that the system sends.
pub trait TunReceiver: Send {
    /// How to wait until [`TunReceiver::receive`] may succeed again. Called once, before it.
    fn readiness(&mut self, wake: Wake) -> Readiness;

    /// Reads one packet, or several that the system left in one, into `buffer` (at least
    /// [`crate::packet::READ_BUFFER_LEN`] bytes). `Ok(None)` when there is none now.
    fn receive<'a>(&mut self, buffer: &'a mut [u8]) -> Result<Option<SuperPacket<'a>>, ReceiveError>;
}

/// Writes the inner packets that the system receives.
pub trait TunSender: Send {
    /// Writes packets, those of one flow in the given order. What the interface refuses is dropped:
    /// returns how many of the packets were.
    fn send(&mut self, buffers: &Buffers, packets: &[PacketRef]) -> usize;
}
