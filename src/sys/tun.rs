//! What a TUN's file descriptor can be asked and told (linux/if_tun.h).

use std::ffi::{CStr, CString, c_int, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

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

/// Says which offloads (TUN_F_*) the reader of `tun` can deal with. Fails with EINVAL for one that the kernel lacks.
pub(crate) fn set_offload(tun: BorrowedFd<'_>, offloads: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads)) })
}

/// Sets how many bytes the virtio header before each packet has.
pub(crate) fn set_vnet_header_len(tun: BorrowedFd<'_>, len: c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one `int` through its argument, which is one and outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const len) })
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

/// Whether an interface of any kind has this name.
pub(crate) fn exists(name: &str) -> bool {
    let Ok(name) = CString::new(name) else { return false };
    // SAFETY: the pointer is to a C string that outlives the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
