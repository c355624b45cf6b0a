//! UDP: sockets found by their local address and port, without smoltcp.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::headers;
use super::stack::{Stack, plain};
use super::wait::{Wakers, block_on_poll};
use crate::ip;

/// Bytes of datagrams that wait in one socket to be received: twice Linux' `rmem_default`, as a wake-up takes longer here.
const SOCKET_BYTES_MAX: usize = 425_984;

/// What a waiting datagram counts for beyond its bytes, so that empty ones are bounded, too.
const DATAGRAM_OVERHEAD: usize = 128;

/// A socket, without its user.
pub(super) struct Socket {
    /// Where it receives; the address may be unspecified.
    pub(super) local: SocketAddr,
    received: Mutex<Received>,
    sent: Mutex<Destinations>,
}

/// Whom a socket sends to.
#[derive(Default)]
struct Destinations {
    /// The only one, if it is connected.
    peer: Option<SocketAddr>,
    last: Option<SocketAddr>,
}

/// A datagram that came.
struct Datagram {
    from: SocketAddr,
    /// Which of the stack's addresses it was sent to.
    to: IpAddr,
    bytes: Box<[u8]>,
}

#[derive(Default)]
struct Received {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
    receivers: Wakers,
    /// What an ICMP error says of the one whom the socket is connected to.
    error: Option<io::ErrorKind>,
    /// Nothing comes any more, for this reason.
    closed: Option<io::ErrorKind>,
}

impl Socket {
    pub(super) fn new(local: SocketAddr) -> Arc<Self> {
        Arc::new(Self { local, received: Mutex::default(), sent: Mutex::default() })
    }

    fn destinations(&self) -> MutexGuard<'_, Destinations> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it sends to `remote`, as far as is remembered: an ICMP error that quotes something else is not believed.
    pub(super) fn sends_to(&self, remote: SocketAddr) -> bool {
        let destinations = self.destinations();
        destinations.peer.or(destinations.last) == Some(remote)
    }

    /// Tells whoever receives that datagrams to `remote` do not get there, if that is whom it is connected to: as with
    /// Linux, one who sends to many is not told, since it could not say which datagram is meant.
    pub(super) fn tell(&self, remote: SocketAddr, reason: io::ErrorKind) {
        if self.destinations().peer != Some(remote) {
            return;
        }
        let mut received = self.lock();
        received.error = Some(reason);
        let receivers = received.receivers.take();
        drop(received);
        receivers.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a datagram in that was sent to the stack's address `to`; false when there is no room for it.
    pub(super) fn push(&self, from: SocketAddr, to: IpAddr, datagram: &[u8]) -> bool {
        if self.destinations().peer.is_some_and(|peer| peer != from) {
            // Not for a socket that is connected to somebody else; that is no lack of room.
            return true;
        }
        let cost = datagram.len() + DATAGRAM_OVERHEAD;
        let mut received = self.lock();
        if received.bytes + cost > SOCKET_BYTES_MAX {
            return false;
        }
        received.bytes += cost;
        received.datagrams.push_back(Datagram { from, to, bytes: datagram.into() });
        let receivers = received.receivers.take();
        drop(received);
        receivers.wake();
        true
    }

    /// Tells the receivers that nothing will come any more.
    pub(super) fn close(&self, reason: io::ErrorKind) {
        let mut received = self.lock();
        received.closed = Some(reason);
        let receivers = received.receivers.take();
        drop(received);
        receivers.wake();
    }

    fn poll_receive(&self, context: &mut Context<'_>) -> Poll<io::Result<Datagram>> {
        let mut received = self.lock();
        if let Some(error) = received.error.take() {
            return Poll::Ready(Err(error.into()));
        }
        if let Some(datagram) = received.datagrams.pop_front() {
            received.bytes -= datagram.bytes.len() + DATAGRAM_OVERHEAD;
            return Poll::Ready(Ok(datagram));
        }
        if let Some(reason) = received.closed {
            return Poll::Ready(Err(reason.into()));
        }
        received.receivers.register(context.waker());
        Poll::Pending
    }
}

/// A socket in use; unbound when dropped.
pub(super) struct Bound {
    stack: Arc<Stack>,
    socket: Arc<Socket>,
}

impl Bound {
    pub(super) fn new(stack: &Arc<Stack>, local: SocketAddr) -> io::Result<Self> {
        Ok(Self { stack: Arc::clone(stack), socket: stack.bind_udp(local)? })
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.socket.local
    }

    /// Sends a datagram. As with any UDP, it may be lost without a word: here when the interface has no room for it.
    pub(super) fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.send_from(self.socket.local.ip(), datagram, to)
    }

    /// The same from `own`, one of the stack's addresses; from the one that suits `to` if it is unspecified.
    pub(super) fn send_from(&self, own: IpAddr, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.stack.check_up()?;
        let to = plain(to);
        let bound = self.socket.local.ip();
        if own != bound && !(bound.is_unspecified() && self.stack.has_address(own)) {
            let text = format!("{own} is no address of this socket");
            return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, text));
        }
        if own.is_ipv4() != to.is_ipv4() || to.ip().is_unspecified() || to.port() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{to} cannot be sent to from {own}")));
        }
        let source = if own.is_unspecified() { self.stack.source_for(to.ip())? } else { own };
        let udp_len = headers::UDP_HEADER_LEN + datagram.len();
        // The length field of IPv4 counts the header, too.
        let overhead = if source.is_ipv4() { headers::ip_header_len(source) } else { 0 };
        if overhead + udp_len > usize::from(u16::MAX) {
            let text = format!("{} bytes do not fit a datagram", datagram.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        self.socket.destinations().last = Some(to);
        let source = SocketAddr::new(source, self.socket.local.port());
        let (flow, packet, mtu) =
            (self.stack.flow_of(source, to), packet(source, to, datagram), self.stack.mtu_to(to.ip()));
        if packet.len() > mtu {
            self.stack.send_in_fragments(flow, &packet, mtu)?;
        } else {
            self.stack.send_packet(flow, packet);
        }
        Ok(datagram.len())
    }

    pub(super) fn connect(&self, to: SocketAddr) -> io::Result<()> {
        let (to, own) = (plain(to), self.socket.local.ip());
        if own.is_ipv4() != to.is_ipv4() || to.ip().is_unspecified() || to.port() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{to} cannot be sent to from {own}")));
        }
        self.socket.destinations().peer = Some(to);
        Ok(())
    }

    pub(super) fn peer(&self) -> io::Result<SocketAddr> {
        self.socket.destinations().peer.ok_or(io::ErrorKind::NotConnected.into())
    }

    /// Waits for a datagram: its length, its sender, and which of the stack's addresses it was sent to. What does not fit
    /// `buffer` is cut off.
    pub(super) fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr, IpAddr)>> {
        self.socket.poll_receive(context).map_ok(|Datagram { from, to, bytes }| {
            let len = bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&bytes[..len]);
            (len, from, to)
        })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        self.stack.unbind_udp(&self.socket);
    }
}

/// An IP packet with a datagram in it.
fn packet(source: SocketAddr, destination: SocketAddr, datagram: &[u8]) -> Vec<u8> {
    let udp_len = headers::UDP_HEADER_LEN + datagram.len();
    let mut packet = headers::begin(source.ip(), destination.ip(), ip::UDP, udp_len);
    let offset = packet.len();
    packet.extend(source.port().to_be_bytes());
    packet.extend(destination.port().to_be_bytes());
    packet.extend((udp_len as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(datagram);
    headers::complete(&mut packet, offset, ip::UDP);
    packet
}

/// A UDP socket through the tunnel, after the manner of [`std::net::UdpSocket`].
///
/// One that is bound to an unspecified address receives what comes to any address of its family, IPv4 or IPv6, not of both.
#[derive(Debug)]
pub struct UdpSocket {
    bound: Bound,
    read_timeout: Mutex<Option<Duration>>,
}

impl UdpSocket {
    pub(super) fn new(bound: Bound) -> Self {
        Self { bound, read_timeout: Mutex::default() }
    }

    /// Sends a datagram and returns its length in bytes. Never waits: it is dropped, and counted in
    /// [`crate::netstack::Stats::outbound_dropped`], while the device is not able to take it. What is longer than a packet may
    /// be goes as fragments.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when `to` is of another family, or the datagram longer than 65,507 bytes over IPv4,
    /// 65,527 over IPv6;
    /// [`io::ErrorKind::NetworkUnreachable`] when the stack has no address of that family;
    /// [`io::ErrorKind::NetworkDown`] when the device has ended.
    pub fn send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.bound.send_to(datagram, to)
    }

    /// Waits for a datagram, and returns its length in bytes and its sender. What does not fit `buffer` is cut off.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when none came in the time set; [`io::ErrorKind::NetworkDown`] when the device has
    /// ended; on a connected socket also, once for each, what an ICMP error says of its peer:
    /// [`io::ErrorKind::ConnectionRefused`] when nobody has that port, [`io::ErrorKind::HostUnreachable`] or
    /// [`io::ErrorKind::NetworkUnreachable`].
    pub fn recv_from(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.recv_from_to(buffer).map(|(len, from, _)| (len, from))
    }

    /// [`UdpSocket::recv_from`], which also returns to which of the stack's addresses the datagram was sent: an answer comes
    /// from there ([`UdpSocket::send_from`]), or it is not taken for one.
    ///
    /// # Errors
    /// As [`UdpSocket::recv_from`].
    pub fn recv_from_to(&self, buffer: &mut [u8]) -> io::Result<(usize, SocketAddr, IpAddr)> {
        let deadline = self.read_timeout()?.map(|timeout| Instant::now() + timeout);
        block_on_poll(deadline, |context| self.bound.poll_recv(context, buffer))
            .unwrap_or(Err(io::ErrorKind::WouldBlock.into()))
    }

    /// [`UdpSocket::send_to`], from `own`, one of the stack's addresses.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrNotAvailable`] when the stack does not have `own`, or the socket is bound to another address;
    /// and those of [`UdpSocket::send_to`].
    pub fn send_from(&self, own: IpAddr, datagram: &[u8], to: SocketAddr) -> io::Result<usize> {
        self.bound.send_from(own, datagram, to)
    }

    /// Has [`UdpSocket::send`] send to `to`; from then on datagrams of others are not received, and ICMP errors about it are
    /// told by [`UdpSocket::recv_from`].
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] when `to` is of another family, or names no host and port.
    pub fn connect(&self, to: SocketAddr) -> io::Result<()> {
        self.bound.connect(to)
    }

    /// Whom it is connected to.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`].
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.bound.peer()
    }

    /// [`UdpSocket::send_to`] whom it is connected to.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`], and those of [`UdpSocket::send_to`].
    pub fn send(&self, datagram: &[u8]) -> io::Result<usize> {
        self.bound.send_to(datagram, self.bound.peer()?)
    }

    /// [`UdpSocket::recv_from`], without the sender.
    ///
    /// # Errors
    /// As [`UdpSocket::recv_from`].
    pub fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.recv_from(buffer).map(|(len, _)| len)
    }

    /// Where it is bound; the address may be unspecified, the port never is.
    ///
    /// # Errors
    /// None.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.bound.local())
    }

    /// How long [`UdpSocket::recv_from`] waits; `None`, as at first, for as long as it takes.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for no time at all, as in [`std::net::UdpSocket::set_read_timeout`].
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        super::tcp::set_timeout(&self.read_timeout, timeout)
    }

    /// How long [`UdpSocket::recv_from`] waits.
    ///
    /// # Errors
    /// None.
    pub fn read_timeout(&self) -> io::Result<Option<Duration>> {
        Ok(*self.read_timeout.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the asynchronous socket is made of.
    #[cfg(feature = "tokio")]
    pub(super) fn into_bound(self) -> Bound {
        self.bound
    }
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("UdpSocket").field(&self.local()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Waker;

    #[test]
    fn what_waits_is_bounded_and_cut_off_to_fit() {
        let local: SocketAddr = "10.0.0.1:53".parse().unwrap();
        let socket = Socket::new(local);
        let mut taken = 0;
        while socket.push(local, local.ip(), &[7; 1000]) {
            taken += 1;
        }
        assert_eq!(taken, SOCKET_BYTES_MAX / (1000 + DATAGRAM_OVERHEAD));
        let mut context = Context::from_waker(Waker::noop());
        for _ in 0..taken {
            assert!(socket.poll_receive(&mut context).is_ready());
        }
        assert!(socket.poll_receive(&mut context).is_pending());
        assert!(socket.push(local, local.ip(), &[]));
        socket.close(io::ErrorKind::NetworkDown);
        assert!(matches!(socket.poll_receive(&mut context), Poll::Ready(Ok(_))), "what came is still received");
        assert!(matches!(socket.poll_receive(&mut context), Poll::Ready(Err(_))));
    }
}
