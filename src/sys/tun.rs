//! What a TUN's file descriptor can be asked and told (linux/if_tun.h).

use std::ffi::{CStr, c_int, c_short, c_uint};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The device that makes TUN interfaces.
pub(crate) const DRIVER: &str = "/dev/net/tun";

/// What TUNGETIFF tells: see [`interface`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its present name, in the namespace where it is.
    pub(crate) name: String,
    /// IFF_TUN, IFF_NO_PI, IFF_VNET_HDR and so on.
    pub(crate) flags: c_int,
}

/// Takes over the descriptor that `owner` owned.
pub(crate) fn take(owner: impl IntoRawFd) -> OwnedFd {
    let fd = owner.into_raw_fd();
    // SAFETY: `IntoRawFd` hands its open descriptor over to the caller, who is now its only owner.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// What the data path asks of a TUN's descriptor: the kernel, or in a test something that refuses.
pub(crate) trait Descriptor: Send + Sync {
    /// Reads one packet, and its header before it, into `buffer`.
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes one packet, and its header before it, which lie in `parts`. Takes it as a whole or not at all.
    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()>;

    /// Says which offloads (TUN_F_*) the reader can deal with. Fails with EINVAL for one that the kernel lacks.
    fn set_offload(&self, offloads: c_uint) -> io::Result<()>;

    /// Sets how many bytes the virtio header before each packet has.
    fn set_vnet_header_len(&self, len: c_int) -> io::Result<()>;
}

impl Descriptor for File {
    fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(self, buffer)?)
    }

    fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        match parts {
            // The system takes less time to see that there is one.
            [whole] => rustix::io::write(self, whole),
            _ => rustix::io::writev(self, parts),
        }?;
        Ok(())
    }

    fn set_offload(&self, offloads: c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        check(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
    }

    fn set_vnet_header_len(&self, len: c_int) -> io::Result<()> {
        // SAFETY: TUNSETVNETHDRSZ reads one `int` through its argument, which is one and outlives the call.
        check(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
    }
}

/// A descriptor, which does not block, of the interface `name`: one more queue, if that has several. Without such an
/// interface one is made, unless IFF_TUN_EXCL is among `flags` (IFF_*): then there must be none, and `name` may hold
/// one `%d`. Fails with EBUSY for one that there is or that is in use, and with EINVAL for one of another kind.
pub(crate) fn attach(name: &str, flags: c_int) -> io::Result<OwnedFd> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DRIVER)?;
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = flags as c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq` through its argument, which is one and outlives the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(file.into())
}

/// Sets the MTU, in bytes, of the interface `name` in this network namespace.
pub(crate) fn set_mtu(name: &str, mtu: c_int) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu;
    // Any socket of the namespace will do.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").or_else(|_| std::net::UdpSocket::bind("[::1]:0"))?;
    // SAFETY: SIOCSIFMTU reads one `ifreq` through its argument, which is one and outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw mut request) })
}

/// An `ifreq` of this name and zeros.
fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is a C struct of integers and a union of such; all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as _;
    }
    Ok(request)
}

/// The interface behind `tun`. Fails with EBADFD when it was deleted.
pub(crate) fn interface(tun: BorrowedFd<'_>) -> io::Result<Interface> {
    // SAFETY: `ifreq` is a C struct of integers and a union of such; all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq` through its argument, which is one and outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    let name = request.ifr_name.map(|byte| byte as u8);
    let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    // SAFETY: `ifru_flags` is an integer, any bytes are a value of it, and TUNGETIFF filled it.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(Interface { name: name.to_string_lossy().into_owned(), flags: c_int::from(flags) })
}

/// The network namespace in which the interface behind `tun` is now. Needs CAP_NET_ADMIN there, and Linux 5.2.
pub(crate) fn network_namespace(tun: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: TUNGETDEVNETNS takes no argument.
    let fd = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETDEVNETNS, 0) };
    check(fd)?;
    // SAFETY: the call succeeded, so that `fd` is a new open descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes reads and writes return instead of waiting.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    check(flags)?;
    // SAFETY: F_SETFL takes its argument by value.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
