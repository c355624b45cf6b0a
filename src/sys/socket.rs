//! Socket options that no crate here has a function for: those that are one `int`, and the filter that steers a group of
//! sockets which share a port.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

/// An option of a socket: its level and its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SocketOption(libc::c_int, libc::c_int);

impl SocketOption {
    /// Tell which of our addresses an IPv4 datagram came to.
    pub(crate) const IP_PKTINFO: Self = Self(libc::IPPROTO_IP, libc::IP_PKTINFO);
    /// Tell an IPv4 datagram's TOS.
    pub(crate) const IP_RECVTOS: Self = Self(libc::IPPROTO_IP, libc::IP_RECVTOS);
    /// What to do about the path's MTU on IPv4.
    pub(crate) const IP_MTU_DISCOVER: Self = Self(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER);
    /// Tell which of our addresses an IPv6 datagram came to.
    pub(crate) const IPV6_RECVPKTINFO: Self = Self(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO);
    /// Tell an IPv6 datagram's traffic class.
    pub(crate) const IPV6_RECVTCLASS: Self = Self(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS);
    /// What to do about the path's MTU on IPv6.
    pub(crate) const IPV6_MTU_DISCOVER: Self = Self(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER);
    /// Only IPv6, no IPv4 in mapped addresses.
    pub(crate) const IPV6_V6ONLY: Self = Self(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY);
    /// Cut what is sent into datagrams of so many bytes.
    pub(crate) const UDP_SEGMENT: Self = Self(libc::SOL_UDP, libc::UDP_SEGMENT);
    /// Coalesce what is received.
    pub(crate) const UDP_GRO: Self = Self(libc::SOL_UDP, libc::UDP_GRO);
    /// The firewall mark.
    pub(crate) const SO_MARK: Self = Self(libc::SOL_SOCKET, libc::SO_MARK);
    /// Share the port with sockets of the same user that have this set, too.
    pub(crate) const SO_REUSEPORT: Self = Self(libc::SOL_SOCKET, libc::SO_REUSEPORT);
    /// Only what comes in by the interface of this index; none needs to have it.
    pub(crate) const SO_BINDTOIFINDEX: Self = Self(libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX);
    /// Room for what is received, within the system's limit.
    pub(crate) const SO_RCVBUF: Self = Self(libc::SOL_SOCKET, libc::SO_RCVBUF);
    /// Room for what is received, whatever the system's limit.
    pub(crate) const SO_RCVBUFFORCE: Self = Self(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE);
    /// Room for what is sent, within the system's limit.
    pub(crate) const SO_SNDBUF: Self = Self(libc::SOL_SOCKET, libc::SO_SNDBUF);
    /// Room for what is sent, whatever the system's limit.
    pub(crate) const SO_SNDBUFFORCE: Self = Self(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE);

    /// Have a loaded program, a descriptor, decide what is received.
    pub(crate) const SO_ATTACH_BPF: Self = Self(libc::SOL_SOCKET, libc::SO_ATTACH_BPF);

    /// Send without checksums: makes the kernel refuse UDP_SEGMENT with EINVAL.
    #[cfg(test)]
    pub(crate) const SO_NO_CHECK: Self = Self(libc::SOL_SOCKET, libc::SO_NO_CHECK);

    /// Sets the option.
    pub(crate) fn set(self, socket: BorrowedFd<'_>, value: libc::c_int) -> io::Result<()> {
        let len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: the value is an int of this frame, its length is said, and it is only read.
        let result = unsafe { libc::setsockopt(socket.as_raw_fd(), self.0, self.1, (&raw const value).cast(), len) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Its present value.
    pub(crate) fn get(self, socket: BorrowedFd<'_>) -> io::Result<libc::c_int> {
        let mut value: libc::c_int = 0;
        let mut len = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: `value` is an int of this frame and `len` its length; nothing keeps their addresses.
        let result =
            unsafe { libc::getsockopt(socket.as_raw_fd(), self.0, self.1, (&raw mut value).cast(), &raw mut len) };
        if result == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
    }
}

/// Ends a datagram socket's connection: it sends and receives as before, from its port and whatever address.
pub(crate) fn disconnect(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: a sockaddr is integers; all zeros is a valid one.
    let mut nobody: libc::sockaddr = unsafe { mem::zeroed() };
    nobody.sa_family = libc::AF_UNSPEC as libc::sa_family_t;
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address is of this frame, its length is said, and it is only read.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nobody, len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets and gets what sockets are asked for: the kernel, or in a test one that refuses some of it.
pub(crate) trait Options {
    /// Sets `option`.
    fn set(&self, option: SocketOption, socket: BorrowedFd<'_>, value: libc::c_int) -> io::Result<()>;

    /// The present value of `option`.
    fn get(&self, option: SocketOption, socket: BorrowedFd<'_>) -> io::Result<libc::c_int>;

    /// See [`steer_group`].
    fn steer(&self, socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()>;
}

/// The kernel that this runs on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel;

impl Options for Kernel {
    fn set(&self, option: SocketOption, socket: BorrowedFd<'_>, value: libc::c_int) -> io::Result<()> {
        option.set(socket, value)
    }

    fn get(&self, option: SocketOption, socket: BorrowedFd<'_>) -> io::Result<libc::c_int> {
        option.get(socket)
    }

    fn steer(&self, socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
        steer_group(socket, program)
    }
}

/// One instruction of classic BPF: code, jumps if true and if false, and a constant.
pub(crate) type Instruction = libc::sock_filter;

/// Has `program` decide which socket of the group that `socket` shares its port with gets a datagram: it is run on the
/// UDP payload, and returns the socket's place in the order of binding. Where there is no such place, or without a
/// program, a hash of the addresses decides. Fails where `socket` is in no such group.
fn steer_group(socket: BorrowedFd<'_>, program: &[Instruction]) -> io::Result<()> {
    let len = libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    // SAFETY: the value is a `sock_fprog` of this frame, its length is said, and it names as many instructions as the
    // slice has; the kernel copies them and writes to neither.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_set_is_got() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        assert_eq!(SocketOption::IP_PKTINFO.get(socket.as_fd()).unwrap(), 0);
        SocketOption::IP_PKTINFO.set(socket.as_fd(), 1).unwrap();
        assert_eq!(SocketOption::IP_PKTINFO.get(socket.as_fd()).unwrap(), 1);
        let error = SocketOption::IP_MTU_DISCOVER.set(socket.as_fd(), 99).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    }
}
