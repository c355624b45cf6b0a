//! One port on both address families: how the sockets are made.
//!
//! - Whoever has the port already makes binding fail with `AddrInUse`, instead of sharing it in silence; and nobody
//!   gets it afterwards. `SO_REUSEADDR` is never set, `SO_REUSEPORT` only behind [fences](Fence).
//! - The IPv6 socket is `IPV6_V6ONLY`, so IPv4 never appears as mapped addresses, and each family has
//!   its own options.
//! - An address family that this system does not have is left out, as long as the other is there.
//! - What the kernel offers beyond plain datagrams (coalescing, segmentation, large buffers, several receivers) is asked
//!   for and done without where it is refused; what correctness needs (PKTINFO, TOS) is required.
//!
//! # Several receivers
//! Each has a pair of sockets of its own. The sockets of one family share the port as a group (`SO_REUSEPORT`), in which
//! a [program](super::steering) chooses the one that gets a datagram. Such a group is open: any program of the same
//! user that sets the option may join, replace the program, or take an address of the port for itself, and nobody
//! learns of the conflict. Unsetting the option on the members would close the group, but end the steering, too.
//!
//! So the group stands between two [fences](Fence): sockets on the same port and address that never receive anything,
//! and without the option, so whoever wants the port is refused for their sake. In this order:
//!
//! 1. A plain socket is bound, which fails if anybody has the port. It becomes the first fence: bound to an interface
//!    that does not exist, and opened, that is, with the option.
//! 2. The members are bound, and the program attached.
//! 3. The second fence is bound, open. The kernel refuses a port on account of the first conflicting socket that it
//!    finds, and looks at the newest first for IPv4, at the oldest first for IPv6; hence one at each end.
//! 4. Both fences are closed, and a stranger's way in is tried once, in case another kernel does otherwise.
//!
//! A port with one receiver is a group all the same, for the [spare](SPARES) sockets: members that the program never
//! chooses, so that none of them receives anything before it is connected. The kernel prefers a connected socket to the
//! program's choice (since 5.4; before, the pair goes on receiving everything).
//!
//! What remains: between 1 and 4, for some microseconds, the port can be had by a program of the same user that sets
//! the option; and for ever by one that sets it and binds itself to an interface, too. Two devices exclude each other
//! always, as both begin with a plain socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

use super::spare::Spare;
use super::steering::{self, RECEIVERS_MAX};
use crate::sys::socket::{Options, SocketOption};

/// Bytes of room asked for in each direction: what wireguard-go asks for. At 10 Gbit/s it holds about
/// 5 ms, longer than a worker is ever away from its socket.
pub(super) const SOCKET_BUFFER_LEN: i32 = 7 << 20;

/// How often a port that the system chose for IPv4 may turn out to be taken on IPv6. Each attempt is
/// another random port, so on a system with half of its ports taken all fail once in 2^32 times.
const BIND_ATTEMPTS_MAX: usize = 32;

/// Spare sockets of each family beside a single pair: a client has one or two peers with much to say; of a server's
/// many peers each would have one too rarely.
pub(super) const SPARES: usize = 2;

/// The index of no interface: the kernel counts them up from 1.
const NO_INTERFACE: i32 = i32::MAX;

/// One family's socket.
#[derive(Debug)]
pub(super) struct FamilySocket {
    fd: OwnedFd,
    ipv6: bool,
    /// Whether UDP_SEGMENT has not been refused yet by this socket as a whole.
    segmentation: AtomicBool,
}

impl FamilySocket {
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(super) fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    pub(super) fn segmentation(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }

    pub(super) fn disable_segmentation(&self) {
        self.segmentation.store(false, Ordering::Relaxed);
    }

    /// Binds one; `shared`: as a member of a group.
    fn bind(address: SocketAddr, fwmark: u32, shared: bool, options: &impl Options) -> io::Result<(Self, u16)> {
        let socket = unbound(address, options)?;
        let fd = socket.as_fd();
        if address.is_ipv4() {
            options.set(SocketOption::IP_PKTINFO, fd, 1)?;
            options.set(SocketOption::IP_RECVTOS, fd, 1)?;
            // [KERNEL-DF] The kernel's outer IPv4 header never carries DF, and a datagram larger than
            // the path is fragmented, here or by a router: a tunnel whose path shrinks gets slow, not
            // dead. IP_PMTUDISC_DONT is exactly that, while the learnt path MTU still counts.
            options.set(SocketOption::IP_MTU_DISCOVER, fd, libc::IP_PMTUDISC_DONT)?;
        } else {
            options.set(SocketOption::IPV6_RECVPKTINFO, fd, 1)?;
            options.set(SocketOption::IPV6_RECVTCLASS, fd, 1)?;
            // IPv6 routers do not fragment. WANT fragments here, to the path MTU that they report.
            options.set(SocketOption::IPV6_MTU_DISCOVER, fd, libc::IPV6_PMTUDISC_WANT)?;
        }
        if fwmark != 0 {
            options.set(SocketOption::SO_MARK, fd, fwmark.cast_signed())?;
        }
        for (force, plain) in [
            (SocketOption::SO_RCVBUFFORCE, SocketOption::SO_RCVBUF),
            (SocketOption::SO_SNDBUFFORCE, SocketOption::SO_SNDBUF),
        ] {
            // Only a privileged process may exceed the system's limit; what it grants instead will do.
            if options.set(force, fd, SOCKET_BUFFER_LEN).is_err() {
                let _ = options.set(plain, fd, SOCKET_BUFFER_LEN);
            }
        }
        // Refused by kernels before 5.0, which then simply do not coalesce.
        let _ = options.set(SocketOption::UDP_GRO, fd, 1);
        let segmentation = options.get(SocketOption::UDP_SEGMENT, fd).is_ok();
        if shared {
            options.set(SocketOption::SO_REUSEPORT, fd, 1)?;
        }
        let port = bind(&socket, address)?;
        let (fd, ipv6) = (socket.into(), address.is_ipv6());
        Ok((Self { fd, ipv6, segmentation: AtomicBool::new(segmentation) }, port))
    }
}

/// A new socket of the family of `address`.
fn unbound(address: SocketAddr, options: &impl Options) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    if address.is_ipv6() {
        options.set(SocketOption::IPV6_V6ONLY, socket.as_fd(), 1)?;
    }
    Ok(socket)
}

/// Binds `socket`, and returns the port.
fn bind(socket: &Socket, address: SocketAddr) -> io::Result<u16> {
    socket.bind(&address.into())?;
    Ok(socket.local_addr()?.as_socket().map_or(0, |address| address.port()))
}

/// A socket that holds the port against others and receives nothing.
#[derive(Debug)]
struct Fence(Socket);

impl Fence {
    /// Binds the first, which nobody else may hinder; it is neither open nor closed to datagrams yet.
    fn bind_first(address: SocketAddr, options: &impl Options) -> io::Result<(Self, u16)> {
        let socket = unbound(address, options)?;
        let port = bind(&socket, address)?;
        Ok((Self(socket), port))
    }

    /// Binds the second while the first and the members are there.
    fn bind_second(address: SocketAddr, options: &impl Options) -> io::Result<Self> {
        let fence = Self(unbound(address, options)?);
        fence.open(options)?;
        bind(&fence.0, address)?;
        Ok(fence)
    }

    /// Lets members share the port from now on, and receives nothing any more.
    fn open(&self, options: &impl Options) -> io::Result<()> {
        options.set(SocketOption::SO_BINDTOIFINDEX, self.0.as_fd(), NO_INTERFACE)?;
        options.set(SocketOption::SO_REUSEPORT, self.0.as_fd(), 1)
    }

    /// Lets nobody share the port any more.
    fn close(&self, options: &impl Options) -> io::Result<()> {
        options.set(SocketOption::SO_REUSEPORT, self.0.as_fd(), 0)
    }
}

/// Both families' sockets of one receiver; at least one of them is there.
#[derive(Debug, Default)]
pub(super) struct SocketPair {
    pub(super) v4: Option<FamilySocket>,
    pub(super) v6: Option<FamilySocket>,
}

impl SocketPair {
    pub(super) fn family(&self, ipv6: bool) -> Option<&FamilySocket> {
        if ipv6 { self.v6.as_ref() } else { self.v4.as_ref() }
    }

    pub(super) fn sockets(&self) -> impl Iterator<Item = &FamilySocket> + Clone {
        [&self.v4, &self.v6].into_iter().flatten()
    }
}

/// All sockets of one port. Dropping it frees the port.
#[derive(Debug)]
pub(super) struct SocketGroup {
    /// One pair for each receiver.
    pub(super) pairs: Box<[SocketPair]>,
    /// Sockets of either family that may be connected, and receive nothing before; none where there are several pairs.
    pub(super) spares: Box<[Spare]>,
    pub(super) port: u16,
    fwmark: AtomicU32,
    /// What holds strangers off a group.
    _fences: Box<[Fence]>,
}

impl SocketGroup {
    /// Binds `port`, or one that is free on both families if it is 0, for so many receivers if that can be had, and
    /// for one otherwise.
    pub(super) fn bind(port: u16, fwmark: u32, receivers: usize, options: &impl Options) -> io::Result<Self> {
        let fences = on_both_families(port, |address| Fence::bind_first(address, options))?;
        match Self::between_fences(fences, fwmark, receivers.min(RECEIVERS_MAX), options) {
            Ok(group) => return Ok(group),
            Err(error) => tracing::debug!(%error, "one pair of sockets, and no group of them"),
        }
        let OnBoth { v4, v6, port } =
            on_both_families(port, |address| FamilySocket::bind(address, fwmark, false, options))?;
        let (pairs, spares, fences) = (Box::new([SocketPair { v4, v6 }]), Box::default(), Box::default());
        Ok(Self { pairs, spares, port, fwmark: AtomicU32::new(fwmark), _fences: fences })
    }

    fn between_fences(first: OnBoth<Fence>, fwmark: u32, receivers: usize, options: &impl Options) -> io::Result<Self> {
        let port = first.port;
        let mut pairs: Box<[SocketPair]> = (0..receivers).map(|_| SocketPair::default()).collect();
        let (mut spares, mut fences) = (Vec::new(), Vec::with_capacity(4));
        for (family, address) in
            [(first.v4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)), (first.v6, Ipv6Addr::UNSPECIFIED.into())]
        {
            let Some(first) = family else { continue };
            let (members, both) = form_group(first, (address, port).into(), fwmark, receivers, options)?;
            fences.extend(both);
            let mut members = members.into_iter();
            for (pair, member) in pairs.iter_mut().zip(&mut members) {
                *(if address.is_ipv4() { &mut pair.v4 } else { &mut pair.v6 }) = Some(member);
            }
            spares.extend(members.map(Spare::new));
        }
        Ok(Self { pairs, spares: spares.into(), port, fwmark: AtomicU32::new(fwmark), _fences: fences.into() })
    }

    /// The same with its pair alone.
    #[cfg(test)]
    pub(super) fn without_spares(self) -> Self {
        Self { spares: Box::default(), ..self }
    }

    /// All of them that send or receive.
    pub(super) fn sockets(&self) -> impl Iterator<Item = &FamilySocket> + Clone {
        self.pairs.iter().flat_map(SocketPair::sockets).chain(self.spares.iter().map(|spare| &spare.socket))
    }

    /// The mark of what is sent.
    pub(super) fn fwmark(&self) -> u32 {
        self.fwmark.load(Ordering::Relaxed)
    }

    /// Sets the mark on all sockets, or on none.
    pub(super) fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        // Clearing a mark that is not there must not need the privilege to set one.
        let before = self.fwmark.swap(fwmark, Ordering::Relaxed);
        if before == fwmark {
            return Ok(());
        }
        let sockets = self.sockets();
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

/// Binds one family's members behind its `first` fence: one for each receiver, and if that is one, spares after it.
/// Returns them with the fences.
fn form_group(
    first: Fence,
    address: SocketAddr,
    fwmark: u32,
    receivers: usize,
    options: &impl Options,
) -> io::Result<(Vec<FamilySocket>, [Fence; 2])> {
    let program = steering::program(receivers as u32);
    let count = if receivers == 1 { 1 + SPARES } else { receivers };
    let mut members = Vec::with_capacity(count);
    first.open(options)?;
    for place in 0..count {
        let (member, _) = FamilySocket::bind(address, fwmark, true, options)?;
        if place == 0 {
            options.steer(member.fd(), &program)?;
        }
        members.push(member);
    }
    let second = Fence::bind_second(address, options)?;
    first.close(options)?;
    second.close(options)?;
    let stranger = unbound(address, options)?;
    options.set(SocketOption::SO_REUSEPORT, stranger.as_fd(), 1)?;
    match bind(&stranger, address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Ok((members, [first, second])),
        _ => Err(io::Error::other("anybody could join the sockets that share the port")),
    }
}

/// What was bound on both families; one of the two is there at least.
struct OnBoth<T> {
    v4: Option<T>,
    v6: Option<T>,
    port: u16,
}

/// Binds with `bind` on both families: to `port`, or to one that is free on both if it is 0.
fn on_both_families<T>(port: u16, bind: impl Fn(SocketAddr) -> io::Result<(T, u16)>) -> io::Result<OnBoth<T>> {
    let attempts = if port == 0 { BIND_ATTEMPTS_MAX } else { 1 };
    let once = || -> io::Result<OnBoth<T>> {
        let v4 = present(bind((Ipv4Addr::UNSPECIFIED, port).into()))?;
        let v6_port = v4.as_ref().map_or(port, |(_, port)| *port);
        let v6 = present(bind((Ipv6Addr::UNSPECIFIED, v6_port).into()))?;
        let bound = v4.as_ref().or(v6.as_ref()).map(|(_, port)| *port);
        let port = bound.ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))?;
        Ok(OnBoth { v4: v4.map(|(bound, _)| bound), v6: v6.map(|(bound, _)| bound), port })
    };
    let mut last = io::ErrorKind::AddrInUse.into();
    for _ in 0..attempts {
        match once() {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            result => return result,
        }
    }
    Err(last)
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
    use crate::sys::socket::Kernel;

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

    /// A socket of somebody who would share any port.
    fn stranger(domain: Domain) -> Socket {
        let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket
    }

    /// "SO_REUSEADDR shares a port": ours is not shared, whatever the others ask for.
    #[test]
    fn a_port_is_not_shared() {
        for receivers in [1, 2, 3, RECEIVERS_MAX] {
            let group = SocketGroup::bind(0, 0, receivers, &Kernel).unwrap();
            assert_eq!(group.pairs.len(), receivers);
            for ip in ["0.0.0.0", "127.0.0.1", "127.0.0.9", "::", "::1"] {
                let ip: IpAddr = ip.parse().unwrap();
                let domain = Domain::for_address(SocketAddr::new(ip, 0));
                for v6_only in if ip.is_ipv6() { &[true, false][..] } else { &[false] } {
                    let other = stranger(domain);
                    if ip.is_ipv6() {
                        other.set_only_v6(*v6_only).unwrap();
                    }
                    let error = other.bind(&SocketAddr::new(ip, group.port).into()).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{ip} beside {receivers}");
                    let other = Socket::new(domain, Type::DGRAM, None).unwrap();
                    let error = other.bind(&SocketAddr::new(ip, group.port).into()).unwrap_err();
                    assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{ip} beside {receivers}, plain");
                }

                let other = stranger(domain);
                other.bind(&SocketAddr::new(ip, 0).into()).unwrap();
                let taken = other.local_addr().unwrap().as_socket().unwrap().port();
                let error = SocketGroup::bind(taken, 0, receivers, &Kernel).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{receivers} after {ip}");
            }
            for again in [1, 2] {
                let error = SocketGroup::bind(group.port, 0, again, &Kernel).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            }
            let port = group.port;
            drop(group);
            assert_eq!(SocketGroup::bind(port, 0, receivers, &Kernel).unwrap().port, port, "free again");
        }
    }

    /// A port that is free on one family alone is not taken when any will do, and another one is tried.
    #[test]
    fn v4_port_taken_on_v6() {
        let strangers = std::cell::RefCell::new(Vec::new());
        let bound = on_both_families(0, |address| {
            let socket = unbound(address, &Kernel)?;
            let port = bind(&socket, address)?;
            if address.is_ipv4() && strangers.borrow().len() < 5 {
                let stranger = unbound((std::net::Ipv6Addr::UNSPECIFIED, port).into(), &Kernel)?;
                bind(&stranger, (std::net::Ipv6Addr::UNSPECIFIED, port).into())?;
                strangers.borrow_mut().push(stranger);
            }
            Ok((socket, port))
        })
        .unwrap();
        assert_eq!(strangers.borrow().len(), 5);
        let port = |socket: &Option<Socket>| socket.as_ref().unwrap().local_addr().unwrap().as_socket().unwrap().port();
        assert_eq!((port(&bound.v4), port(&bound.v6)), (bound.port, bound.port));
    }

    #[test]
    fn there_are_no_more_receivers_than_can_be_told_apart() {
        assert_eq!(SocketGroup::bind(0, 0, 1000, &Kernel).unwrap().pairs.len(), RECEIVERS_MAX);
    }

    #[test]
    fn the_buffers_are_as_large_as_the_system_grants() {
        let group = SocketGroup::bind(0, 0, 1, &Kernel).unwrap();
        let plain = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        plain.set_recv_buffer_size(SOCKET_BUFFER_LEN as usize).unwrap();
        let granted = plain.recv_buffer_size().unwrap() as i32;
        for socket in group.pairs[0].sockets() {
            assert!(SocketOption::SO_RCVBUF.get(socket.fd()).unwrap() >= granted);
            assert!(SocketOption::SO_SNDBUF.get(socket.fd()).unwrap() >= granted.min(2 * SOCKET_BUFFER_LEN));
        }
    }
}
