//! The edge towards outer datagrams.
//!
//! [`Udp`] binds; a [`UdpSocket`] is one bound port on both address families, shared by all threads; a
//! [`UdpReceiver`] and a [`UdpSender`] move datagrams through it, each for one thread at a time.

mod connections;
mod filter;
pub mod linux;
pub mod lossy;
pub mod memory;
mod socket;
mod spare;
mod steering;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::packet::Buffers;
pub use crate::packet::{Readiness, Wake};

/// Datagrams handed over in one piece: the kernel's limit for UDP_SEGMENT before 6.9 (128 since).
const SEGMENTS_MAX: usize = 64;

/// Bytes in one datagram, or in one piece of several: what an IPv4 packet has room for after its
/// header and UDP's ...
const DATAGRAM_V4_MAX: usize = 65_535 - 20 - 8;
/// ... and an IPv6 packet, whose length field does not count its own header.
const DATAGRAM_V6_MAX: usize = 65_535 - 8;

/// The address of ours that a datagram came in on, so that answers leave from it (sticky source).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Our address.
    pub ip: IpAddr,
    /// The interface's index; 0 for any.
    pub ifindex: u32,
}

/// Some equal-sized datagrams from one sender, as the system coalesced them.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Which of the [`Buffers`] they lie in, from its start.
    pub buffer: u32,
    /// Bytes in all.
    pub len: u32,
    /// Bytes of each; the last may be shorter. Equal to `len` for a single one.
    pub segment: u32,
    /// Their sender.
    pub from: SocketAddr,
    /// Where they came in.
    pub source: Option<Source>,
    /// The outer header's two ECN bits.
    pub ecn: u8,
}

/// Some equal-sized datagrams to one receiver.
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// Their receiver.
    pub to: SocketAddr,
    /// Where they are to leave from; `None` lets the routing decide.
    pub source: Option<Source>,
    /// The outer header's TOS or traffic class byte: DSCP and ECN.
    pub tos: u8,
    /// Bytes of each; the last may be shorter.
    pub segment: usize,
    /// All of them, one after the other.
    pub data: &'a [u8],
    /// Whether to try to hand them over in one piece. False where that was refused lately.
    pub offload: bool,
}

/// What became of a [`Transmit`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes handed to the system.
    pub bytes: usize,
    /// Datagrams that the system refused; they are lost.
    pub refused: usize,
    /// The source was no longer ours: sent without it, and it should be forgotten.
    pub source_lost: bool,
    /// Handing over in one piece does not work towards this receiver (its path's MTU is too small):
    /// sent singly.
    pub offload_refused: bool,
}

/// What binds sockets.
pub trait Udp: Send + Sync {
    /// Binds `port` (0 for any) on both families, the mark set; a family that the system does not
    /// have is left out. Fails with `AddrInUse` when anybody else has the port on either family.
    /// `receivers` (at least 1) is how many the device has a use for.
    fn bind(&self, port: u16, fwmark: u32, receivers: usize) -> io::Result<Arc<dyn UdpSocket>>;

    /// Tells the key that the mac1 of initiations and responses is made with [WP 5.4.4]: from now on those that have another
    /// one may be dropped, on every socket bound here, before anybody receives them. `None`: nothing may.
    fn expect_mac1(&self, _mac1_key: Option<&[u8; 32]>) {}

    /// How many handshake messages were dropped so, since the start.
    fn dropped_by_mac1(&self) -> u64 {
        0
    }
}

/// One bound port on both address families.
pub trait UdpSocket: Send + Sync {
    /// The port.
    fn port(&self) -> u16;

    /// Sets the mark of what is sent from now on.
    fn set_fwmark(&self, fwmark: u32) -> io::Result<()>;

    /// Takes the receivers: at least one, and at most as many as were asked for. Called once.
    ///
    /// Where there are several, a response, cookie reply or data message comes to the one at the place
    /// `(index & 0xff) % receivers`, `index` being the receiver index in it; all else (initiations, what is too
    /// short, no message of ours) comes to the first. Datagrams that the system coalesced all come to where the
    /// first of them belongs.
    fn receivers(&self) -> io::Result<Vec<Box<dyn UdpReceiver>>>;

    /// A way to send. There may be any number.
    fn sender(&self) -> io::Result<Box<dyn UdpSender>>;
}

/// Takes datagrams in. Dropping all receivers, all senders and the socket closes the port.
pub trait UdpReceiver: Send {
    /// How to wait until [`UdpReceiver::receive`] may succeed again: one for each address family.
    fn readiness(&mut self, wake: Wake) -> Vec<Readiness>;

    /// The source at this place of [`UdpReceiver::readiness`] has become ready. A hint: with it, `receive` need
    /// not ask the others.
    fn ready(&mut self, _source: usize) {}

    /// Receives into the front of as many of `buffers` as there is something for, one entry of
    /// `received` (cleared first, never grown beyond its capacity) for each. False when it need not be asked
    /// before a source is ready again. Errors that concern single datagrams (an ICMP error that came
    /// back) are swallowed; what is returned concerns the socket.
    fn receive(&mut self, buffers: &mut Buffers, received: &mut Vec<Received>) -> io::Result<bool>;
}

/// Sends datagrams.
pub trait UdpSender: Send {
    /// Sends, in order, and says for each what became of it (`sent` is as long as `transmits`).
    fn send(&mut self, transmits: &[Transmit<'_>], sent: &mut [Sent]);
}
