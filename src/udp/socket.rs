//! One port on both address families: how the two sockets are made.
//!
//! - Neither `SO_REUSEADDR` nor `SO_REUSEPORT`: whoever has the port already makes binding fail with
//!   `AddrInUse`, instead of sharing it in silence.
//! - The IPv6 socket is `IPV6_V6ONLY`, so IPv4 never appears as mapped addresses, and each family has
//!   its own options.
//! - An address family that this system does not have is left out, as long as the other is there.
//! - What the kernel offers beyond plain datagrams (coalescing, segmentation, large buffers) is asked
//!   for and done without where it is refused; what correctness needs (PKTINFO, TOS) is required.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::socket::SocketOption;

/// Bytes of room asked for in each direction: what wireguard-go asks for. At 10 Gbit/s it holds about
/// 5 ms, longer than a worker is ever away from its socket.
pub(super) const SOCKET_BUFFER_LEN: i32 = 7 << 20;

/// How often a port that the system chose for IPv4 may turn out to be taken on IPv6. Each attempt is
/// another random port, so on a system with half of its ports taken all fail once in 2^32 times.
const BIND_ATTEMPTS_MAX: usize = 32;

/// One family's socket.
#[derive(Debug)]
pub(super) struct FamilySocket {
    fd: OwnedFd,
    /// Whether UDP_SEGMENT has not been refused yet by this socket as a whole.
    segmentation: AtomicBool,
}

impl FamilySocket {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn segmentation(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }

    pub(super) fn disable_segmentation(&self) {
        self.segmentation.store(false, Ordering::Relaxed);
    }

    fn bind(address: SocketAddr, fwmark: u32) -> io::Result<(Self, u16)> {
        let socket =
            Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
        let fd = socket.as_fd();
        if address.is_ipv4() {
            SocketOption::IP_PKTINFO.set(fd, 1)?;
            SocketOption::IP_RECVTOS.set(fd, 1)?;
            // [KERNEL-DF] The kernel's outer IPv4 header never carries DF, and a datagram larger than
            // the path is fragmented, here or by a router: a tunnel whose path shrinks gets slow, not
            // dead. IP_PMTUDISC_DONT is exactly that, while the learnt path MTU still counts.
            SocketOption::IP_MTU_DISCOVER.set(fd, libc::IP_PMTUDISC_DONT)?;
        } else {
            SocketOption::IPV6_V6ONLY.set(fd, 1)?;
            SocketOption::IPV6_RECVPKTINFO.set(fd, 1)?;
            SocketOption::IPV6_RECVTCLASS.set(fd, 1)?;
            // IPv6 routers do not fragment. WANT fragments here, to the path MTU that they report.
            SocketOption::IPV6_MTU_DISCOVER.set(fd, libc::IPV6_PMTUDISC_WANT)?;
        }
        if fwmark != 0 {
            SocketOption::SO_MARK.set(fd, fwmark.cast_signed())?;
        }
        for (force, plain) in [
            (SocketOption::SO_RCVBUFFORCE, SocketOption::SO_RCVBUF),
            (SocketOption::SO_SNDBUFFORCE, SocketOption::SO_SNDBUF),
        ] {
            // Only a privileged process may exceed the system's limit; what it grants instead will do.
            if force.set(fd, SOCKET_BUFFER_LEN).is_err() {
                let _ = plain.set(fd, SOCKET_BUFFER_LEN);
            }
        }
        // Refused by kernels before 5.0, which then simply do not coalesce.
        let _ = SocketOption::UDP_GRO.set(fd, 1);
        let segmentation = SocketOption::UDP_SEGMENT.get(fd).is_ok();
        socket.bind(&address.into())?;
        let port = socket.local_addr()?.as_socket().map_or(0, |address| address.port());
        Ok((Self { fd: socket.into(), segmentation: AtomicBool::new(segmentation) }, port))
    }
}

/// Both families' sockets on one port; at least one of them is there.
#[derive(Debug)]
pub(super) struct SocketPair {
    pub(super) v4: Option<FamilySocket>,
    pub(super) v6: Option<FamilySocket>,
    pub(super) port: u16,
    fwmark: AtomicU32,
}

impl SocketPair {
    /// Binds `port`, or one that is free on both families if it is 0.
    pub(super) fn bind(port: u16, fwmark: u32) -> io::Result<Self> {
        let attempts = if port == 0 { BIND_ATTEMPTS_MAX } else { 1 };
        let mut last = io::ErrorKind::AddrInUse.into();
        for _ in 0..attempts {
            match Self::bind_once(port, fwmark) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
                result => return result,
            }
        }
        Err(last)
    }

    fn bind_once(port: u16, fwmark: u32) -> io::Result<Self> {
        let v4 = present(FamilySocket::bind((Ipv4Addr::UNSPECIFIED, port).into(), fwmark))?;
        let v6_port = v4.as_ref().map_or(port, |(_, port)| *port);
        let v6 = present(FamilySocket::bind((Ipv6Addr::UNSPECIFIED, v6_port).into(), fwmark))?;
        let bound = v4.as_ref().or(v6.as_ref()).map(|(_, port)| *port);
        let Some(port) = bound else {
            return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
        };
        let fwmark = AtomicU32::new(fwmark);
        Ok(Self { v4: v4.map(|(socket, _)| socket), v6: v6.map(|(socket, _)| socket), port, fwmark })
    }

    pub(super) fn family(&self, ipv6: bool) -> Option<&FamilySocket> {
        if ipv6 { self.v6.as_ref() } else { self.v4.as_ref() }
    }

    /// Sets the mark on both, or on none.
    pub(super) fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        // Clearing a mark that is not there must not need the privilege to set one.
        let before = self.fwmark.swap(fwmark, Ordering::Relaxed);
        if before == fwmark {
            return Ok(());
        }
        let sockets = [&self.v4, &self.v6].into_iter().flatten();
        for socket in sockets.clone() {
            if let Err(error) = SocketOption::SO_MARK.set(socket.fd(), fwmark.cast_signed()) {
                for socket in sockets {
                    let _ = SocketOption::SO_MARK.set(socket.fd(), before.cast_signed());
                }
                self.fwmark.store(before, Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Turns the errors that say "there is no such address family here" into `None`: it is not compiled
/// in or is forbidden to this process, or has no wildcard address to bind.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(socket) => Ok(Some(socket)),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::EADDRNOTAVAIL) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn an_address_family_that_is_absent_is_no_error() {
        for errno in [libc::EAFNOSUPPORT, libc::EPROTONOSUPPORT, libc::EADDRNOTAVAIL] {
            assert!(present::<()>(Err(io::Error::from_raw_os_error(errno))).unwrap().is_none());
        }
        for errno in [libc::EADDRINUSE, libc::EACCES, libc::EPERM, libc::EMFILE] {
            assert!(present::<()>(Err(io::Error::from_raw_os_error(errno))).is_err());
        }
        assert!(present(Ok(())).unwrap().is_some());
    }

    /// "SO_REUSEADDR shares a port": ours is not shared, whatever the others ask for.
    #[test]
    fn a_port_is_not_shared() {
        let pair = SocketPair::bind(0, 0).unwrap();
        for domain in [Domain::IPV4, Domain::IPV6] {
            let other = Socket::new(domain, Type::DGRAM, None).unwrap();
            other.set_reuse_address(true).unwrap();
            other.set_reuse_port(true).unwrap();
            let any: IpAddr =
                if domain == Domain::IPV4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let error = other.bind(&SocketAddr::new(any, pair.port).into()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::AddrInUse);

            other.bind(&SocketAddr::new(any, 0).into()).unwrap();
            let taken = other.local_addr().unwrap().as_socket().unwrap().port();
            assert_eq!(SocketPair::bind(taken, 0).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }

    #[test]
    fn the_buffers_are_as_large_as_the_system_grants() {
        let pair = SocketPair::bind(0, 0).unwrap();
        let plain = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        plain.set_recv_buffer_size(SOCKET_BUFFER_LEN as usize).unwrap();
        let granted = plain.recv_buffer_size().unwrap() as i32;
        for socket in [&pair.v4, &pair.v6].into_iter().flatten() {
            assert!(SocketOption::SO_RCVBUF.get(socket.fd()).unwrap() >= granted);
            assert!(SocketOption::SO_SNDBUF.get(socket.fd()).unwrap() >= granted.min(2 * SOCKET_BUFFER_LEN));
        }
    }
}
