//! Many datagrams in one system call: `recvmmsg` and `sendmmsg` over arrays that are made once; `recvmsg` and `send` for one.
//!
//! The arrays point at each other (a header at its name, its control buffer and its one vector), so
//! they live behind raw pointers and never move. What is set for each call is only what the kernel
//! changes (the lengths that it reports back) and where the bytes lie.
//!
//! - No pointer to a caller's bytes is used after the call that it was given to.
//! - Nothing is allocated after `new`.

use std::io;
use std::mem;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use rustix::net::SendFlags;

use super::cmsg::{CONTROL_LEN, Control, Inbound, Outbound};

/// An array that the kernel is pointed at: it does not move, and no reference into it outlives a
/// method of its owner.
struct Fixed<T>(NonNull<[T]>);

impl<T: Copy> Fixed<T> {
    fn new(value: T, len: usize) -> Self {
        Self(NonNull::from(Box::leak(vec![value; len].into_boxed_slice())))
    }

    /// Where item `index` lies, as long as `self` lives.
    fn at(&mut self, index: usize) -> *mut T {
        assert!(index < self.0.len());
        // SAFETY: `index` is within the allocation, by the assertion.
        unsafe { self.0.as_ptr().cast::<T>().add(index) }
    }

    fn items(&self) -> &[T] {
        // SAFETY: the allocation is initialised, lives as long as `self`, and is written only by
        // methods that borrow the owner of `self` mutably.
        unsafe { self.0.as_ref() }
    }

    fn items_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `items`; `&mut self` excludes any other reference.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Fixed<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak` in `new` and is given back once, here.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A socket address as the kernel lays it out: `sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
struct Name([u8; NAME_LEN]);

const NAME_LEN: usize = size_of::<libc::sockaddr_in6>();
const NAME_V4_LEN: usize = size_of::<libc::sockaddr_in>();
const FAMILY_LEN: usize = size_of::<libc::sa_family_t>();

impl Name {
    const EMPTY: Self = Self([0; NAME_LEN]);

    /// Writes `address`; returns how many bytes of the name count.
    fn write(&mut self, address: SocketAddr) -> usize {
        let bytes = &mut self.0;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..FAMILY_LEN].copy_from_slice(&(libc::AF_INET as libc::sa_family_t).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                bytes[8..NAME_V4_LEN].fill(0);
                NAME_V4_LEN
            }
            SocketAddr::V6(v6) => {
                bytes[..FAMILY_LEN].copy_from_slice(&(libc::AF_INET6 as libc::sa_family_t).to_ne_bytes());
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                NAME_LEN
            }
        }
    }

    /// The address in the first `len` bytes, if it is one of IPv4 or IPv6. The flow label is left
    /// out: it names a flow of the sender's, not a place to answer to.
    fn read(&self, len: usize) -> Option<SocketAddr> {
        let bytes = self.0.get(..len)?;
        let family = libc::sa_family_t::from_ne_bytes(*bytes.first_chunk()?);
        let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
        match i32::from(family) {
            libc::AF_INET => {
                let ip: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
                Some(SocketAddrV4::new(Ipv4Addr::from(ip), port).into())
            }
            libc::AF_INET6 => {
                let ip: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
                let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
                Some(SocketAddrV6::new(Ipv6Addr::from(ip), port, 0, scope).into())
            }
            _ => None,
        }
    }
}

/// Headers, and all that they point at.
struct Messages {
    headers: Fixed<libc::mmsghdr>,
    vectors: Fixed<libc::iovec>,
    names: Fixed<Name>,
    controls: Fixed<Control>,
}

// SAFETY: the pointers in the headers lead to allocations that `Messages` alone owns, and those in
// the vectors are used only by the call that set them, so nothing ties them to a thread.
unsafe impl Send for Messages {}

impl Messages {
    fn new(count: usize) -> Self {
        // SAFETY: a mmsghdr is integers and pointers; all zeros is a valid one, without any bytes.
        let header: libc::mmsghdr = unsafe { mem::zeroed() };
        let vector = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
        let mut messages = Self {
            headers: Fixed::new(header, count),
            vectors: Fixed::new(vector, count),
            names: Fixed::new(Name::EMPTY, count),
            controls: Fixed::new(Control::EMPTY, count),
        };
        for (index, header) in messages.headers.items_mut().iter_mut().enumerate() {
            header.msg_hdr.msg_name = messages.names.at(index).cast();
            header.msg_hdr.msg_iov = messages.vectors.at(index);
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = messages.controls.at(index).cast();
        }
        messages
    }

    fn count(&self) -> usize {
        self.headers.items().len()
    }
}

/// One received message: a datagram, or several of equal size that the kernel coalesced.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message {
    /// Bytes in all.
    pub(crate) len: usize,
    /// It or what came beside it did not fit: not to be used.
    pub(crate) truncated: bool,
    /// The sender.
    pub(crate) from: Option<SocketAddr>,
    /// What came beside it.
    pub(crate) control: Inbound,
}

/// Receives many messages in one call: the kernel's `recvmmsg`, or in a test something that makes it fail.
pub(crate) trait ReceiveMany: Send {
    /// Receives one message into each of `buffers` from the front on, without waiting; returns how
    /// many came (at least 1).
    fn receive(&mut self, socket: BorrowedFd<'_>, buffers: &mut [Box<[u8]>]) -> io::Result<usize>;

    /// What the last call received as its message number `index`.
    fn message(&self, index: usize) -> Message;
}

/// Sends many messages in one call: the kernel's `sendmmsg`, or in a test something that makes it fail.
pub(crate) trait SendMany: Send {
    /// Sends, without waiting, as many as fit of what `datagrams` gives; returns how many the kernel
    /// took, from the front on (0 only when there was none). An error concerns the first.
    fn send<'a>(&mut self, socket: BorrowedFd<'_>, datagrams: impl Iterator<Item = Datagrams<'a>>)
    -> io::Result<usize>;

    /// Sends, without waiting, one datagram to whom `socket` is connected.
    fn send_one(&mut self, socket: BorrowedFd<'_>, datagram: &[u8]) -> io::Result<()>;
}

/// The arrays to receive with.
pub(crate) struct ReceiveArray {
    messages: Messages,
    /// How many of the headers the kernel may have changed since they were made ready.
    used: usize,
}

impl ReceiveArray {
    /// Arrays for up to `count` messages in one call.
    pub(crate) fn new(count: usize) -> Self {
        Self { messages: Messages::new(count), used: count }
    }
}

impl ReceiveMany for ReceiveArray {
    fn receive(&mut self, socket: BorrowedFd<'_>, buffers: &mut [Box<[u8]>]) -> io::Result<usize> {
        let count = buffers.len().min(self.messages.count());
        for header in &mut self.messages.headers.items_mut()[..self.used] {
            header.msg_hdr.msg_namelen = NAME_LEN as libc::socklen_t;
            header.msg_hdr.msg_controllen = CONTROL_LEN as _;
        }
        for (vector, buffer) in self.messages.vectors.items_mut().iter_mut().zip(&mut buffers[..count]) {
            vector.iov_len = buffer.len();
            vector.iov_base = buffer.as_mut_ptr().cast();
        }
        let received = if count == 1 {
            let first = self.messages.headers.at(0);
            // SAFETY: a mmsghdr begins with its msghdr; this one points at its own name, control buffer and vector in arrays that `self` owns, with their true
            // lengths set, and the vector was just pointed at a buffer that is borrowed mutably for this call.
            let len = unsafe { libc::recvmsg(socket.as_raw_fd(), first.cast(), libc::MSG_DONTWAIT) };
            u32::try_from(len).map(|len| {
                self.messages.headers.items_mut()[0].msg_len = len;
                1
            })
        } else {
            let headers = self.messages.headers.0.as_ptr().cast::<libc::mmsghdr>();
            // SAFETY:
            // - `headers` has at least `count` items, each pointing at its own name, control buffer and
            //   vector in arrays that `self` owns, with their true lengths set;
            // - the first `count` vectors were just pointed at `count` different buffers that are
            //   borrowed mutably for this call;
            // - no timeout is given.
            let received = unsafe {
                libc::recvmmsg(socket.as_raw_fd(), headers, count as _, libc::MSG_DONTWAIT as _, ptr::null_mut())
            };
            usize::try_from(received)
        };
        let received = received.map_err(|_| io::Error::last_os_error());
        // Even a call that failed may have touched the first.
        self.used = *received.as_ref().unwrap_or(&1);
        received
    }

    fn message(&self, index: usize) -> Message {
        let header = &self.messages.headers.items()[..self.used][index];
        #[allow(clippy::unnecessary_cast, reason = "size_t with glibc, socklen_t with musl")]
        let control_len = (header.msg_hdr.msg_controllen as usize).min(CONTROL_LEN);
        Message {
            len: header.msg_len as usize,
            truncated: header.msg_hdr.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
            from: self.messages.names.items()[index].read(header.msg_hdr.msg_namelen as usize),
            control: Inbound::parse(&self.messages.controls.items()[index].0[..control_len]),
        }
    }
}

/// One message to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Datagrams<'a> {
    /// The receiver; `None` for the one that the socket is connected to.
    pub(crate) to: Option<SocketAddr>,
    /// Which family's control messages these are.
    pub(crate) ipv6: bool,
    /// What the kernel is told beside the bytes.
    pub(crate) control: Outbound,
    /// The bytes.
    pub(crate) data: &'a [u8],
}

/// The arrays to send with.
pub(crate) struct SendArray(Messages);

impl SendArray {
    /// Arrays for up to `count` messages in one call.
    pub(crate) fn new(count: usize) -> Self {
        Self(Messages::new(count))
    }
}

impl SendMany for SendArray {
    fn send<'a>(
        &mut self,
        socket: BorrowedFd<'_>,
        datagrams: impl Iterator<Item = Datagrams<'a>>,
    ) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        let mut count = 0;
        for (index, datagram) in datagrams.take(self.0.count()).enumerate() {
            let name = &mut self.0.names.items_mut()[index];
            let name_len = datagram.to.map_or(0, |to| name.write(to));
            let control = &mut self.0.controls.items_mut()[index];
            let control_len = datagram.control.write(control, datagram.ipv6);
            let vector = &mut self.0.vectors.items_mut()[index];
            vector.iov_base = datagram.data.as_ptr().cast_mut().cast();
            vector.iov_len = datagram.data.len();
            let header = &mut self.0.headers.items_mut()[index].msg_hdr;
            header.msg_namelen = name_len as libc::socklen_t;
            header.msg_controllen = control_len as _;
            count = index + 1;
        }
        if count == 0 {
            return Ok(0);
        }
        let headers = self.0.headers.0.as_ptr().cast::<libc::mmsghdr>();
        // SAFETY:
        // - `headers` has at least `count` items, each pointing at its own name, control buffer and
        //   vector in arrays that `self` owns, with lengths within them;
        // - the first `count` vectors were just pointed at bytes borrowed for 'a, which outlives
        //   this call, and sending only reads them.
        let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), headers, count as _, flags as _) };
        usize::try_from(sent).map_err(|_| io::Error::last_os_error())
    }

    fn send_one(&mut self, socket: BorrowedFd<'_>, datagram: &[u8]) -> io::Result<()> {
        rustix::net::send(socket, datagram, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_written() {
        let addresses: [SocketAddr; 3] = [
            "192.0.2.1:51820".parse().unwrap(),
            "[2001:db8::1]:1".parse().unwrap(),
            SocketAddrV6::new("fe80::1".parse().unwrap(), 65535, 0, 7).into(),
        ];
        for address in addresses {
            let mut name = Name([0xff; NAME_LEN]);
            let len = name.write(address);
            assert_eq!(name.read(len), Some(address));
            assert_eq!(name.read(len - 1).is_none(), address.is_ipv6(), "sockaddr_in ends with padding");
            assert_eq!(name.read(3), None);
        }
        assert_eq!(Name::EMPTY.read(NAME_LEN), None);
    }
}
