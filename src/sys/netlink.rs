//! A NETLINK_ROUTE socket (netlink(7), rtnetlink(7)): datagrams out and in. What they say is for others to parse.

use std::ffi::c_int;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// A socket towards the kernel's routing subsystem, in the network namespace in which it was opened. Never blocks.
#[derive(Debug)]
pub(crate) struct Netlink(OwnedFd);

/// One datagram from the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Datagram {
    /// Bytes of it, at the start of the buffer.
    pub(crate) len: usize,
    /// The id, in the socket's namespace, of the other namespace that it is about.
    pub(crate) namespace: Option<i32>,
}

impl Netlink {
    /// Opens a socket that is a member of the multicast groups in the mask `groups` (RTMGRP_*).
    pub(crate) fn open(groups: u32) -> io::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes its arguments by value.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE) };
        check(fd as isize)?;
        // SAFETY: the call succeeded, so that `fd` is a new open descriptor that nobody else knows.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: `sockaddr_nl` is a C struct of integers; all zeros is a value of it.
        let mut address: libc::sockaddr_nl = unsafe { zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        address.nl_groups = groups;
        let len = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: the pointer is to a `sockaddr_nl` of `len` bytes, which is read during the call only.
        check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) } as isize)?;
        Ok(Self(fd))
    }

    /// Hears of all namespaces that have an id in the socket's own. Needs CAP_NET_BROADCAST.
    pub(crate) fn listen_to_all_namespaces(&self) -> io::Result<()> {
        let one: c_int = 1;
        let len = size_of::<c_int>() as libc::socklen_t;
        let (socket, option) = (self.0.as_raw_fd(), libc::NETLINK_LISTEN_ALL_NSID);
        // SAFETY: the pointer is to an `int` of `len` bytes, which is read during the call only.
        let result = unsafe { libc::setsockopt(socket, libc::SOL_NETLINK, option, (&raw const one).cast(), len) };
        check(result as isize).map(drop)
    }

    /// Sends one datagram to the kernel.
    pub(crate) fn send(&self, datagram: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and length are a slice's. An unconnected netlink socket sends to the kernel.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), datagram.as_ptr().cast(), datagram.len(), 0) };
        check(sent).map(drop)
    }

    /// Receives one datagram; what did not come from the kernel is skipped. Fails with `WouldBlock` when there is
    /// none, and with ENOBUFS when some were lost.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<Datagram> {
        loop {
            // SAFETY: `sockaddr_nl` is a C struct of integers; all zeros is a value of it.
            let mut from: libc::sockaddr_nl = unsafe { zeroed() };
            let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            // One control message with an `int` takes 24 bytes; aligned as `cmsghdr` has to be.
            let mut control = [0u64; 8];
            // SAFETY: `msghdr` is a C struct of integers and pointers; all zeros is a value of it.
            let mut message: libc::msghdr = unsafe { zeroed() };
            message.msg_name = (&raw mut from).cast();
            message.msg_namelen = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = size_of_val(&control) as _;
            // SAFETY: all pointers in `message` are to live objects of the lengths given beside them.
            let len = check(unsafe { libc::recvmsg(self.0.as_raw_fd(), &raw mut message, 0) })?;
            if from.nl_pid != 0 {
                continue;
            }
            return Ok(Datagram { len: len.min(buffer.len()), namespace: namespace(&message) });
        }
    }
}

/// The namespace id among the control messages of a received message.
fn namespace(message: &libc::msghdr) -> Option<i32> {
    // SAFETY: `message` was filled by recvmsg, so that its control buffer holds whole control messages.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: not null, hence a control message header inside the control buffer, which is aligned for it.
        let control = unsafe { *header };
        if control.cmsg_level == libc::SOL_NETLINK && control.cmsg_type == libc::NETLINK_LISTEN_ALL_NSID {
            // SAFETY: the data of a control message lies right behind its header.
            let data = unsafe { libc::CMSG_DATA(header) };
            // SAFETY: this kind of control message carries an `int`; it may lie unaligned.
            return Some(unsafe { data.cast::<c_int>().read_unaligned() });
        }
        // SAFETY: `header` is a control message header of this message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
