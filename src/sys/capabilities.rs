//! The calling thread's capabilities (capabilities(7)): read them, and give up those not needed.
//!
//! - Capabilities belong to a thread; a new thread has those of its creator. So giving up comes
//!   before threads are started, or each thread does it for itself.
//! - Only ever takes away: nothing here can raise a capability.
//! - A socket remembers the capabilities that it was opened with: what the kernel checks against
//!   the opener (events from all namespaces on a netlink socket) goes on working afterwards.

#![cfg(feature = "daemon")]

use std::fmt;
use std::io;

/// A set of capabilities: bit n stands for the capability of number n.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Capabilities(u64);

/// Sockets on ports below 1024.
pub(crate) const NET_BIND_SERVICE: Capabilities = Capabilities(1 << 10);
/// Administering the network: marks on sockets, buffers beyond the limits, links and addresses.
pub(crate) const NET_ADMIN: Capabilities = Capabilities(1 << 12);

impl Capabilities {
    /// None.
    pub(crate) const NONE: Self = Self(0);

    /// Those in either.
    pub(crate) const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Those in both.
    pub(crate) const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// What the calling thread holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Held {
    /// What is in force.
    pub(crate) effective: Capabilities,
    /// What could be put into force.
    pub(crate) permitted: Capabilities,
    /// What an executed program could inherit.
    pub(crate) inheritable: Capabilities,
}

/// The kernel's struct of capget(2): the version and whose they are (0: the calling thread).
#[repr(C)]
struct Header {
    version: u32,
    pid: libc::c_int,
}

/// The kernel's struct of capget(2); version 3 takes two, for the low and the high 32 bits.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`: sets of 64 bits.
const VERSION_3: u32 = 0x2008_0522;

fn joined(low: u32, high: u32) -> Capabilities {
    Capabilities(u64::from(low) | (u64::from(high) << 32))
}

/// Reads what the calling thread holds.
pub(crate) fn held() -> io::Result<Held> {
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut halves = [Half::default(); 2];
    // SAFETY: version 3 reads and writes one header and writes two halves; both live during the call.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, halves.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let [low, high] = halves;
    Ok(Held {
        effective: joined(low.effective, high.effective),
        permitted: joined(low.permitted, high.permitted),
        inheritable: joined(low.inheritable, high.inheritable),
    })
}

/// Gives up, for the calling thread, all capabilities that are not in `keep`; nothing stays
/// inheritable, so nothing stays ambient either.
pub(crate) fn keep_only(keep: Capabilities) -> io::Result<()> {
    let held = held()?;
    let effective = held.effective.intersection(keep).0;
    let permitted = held.permitted.intersection(keep).0;
    // The low and the high 32 bits.
    let halves = [0, 32].map(|shift| Half {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: 0,
    });
    let mut header = Header { version: VERSION_3, pid: 0 };
    // SAFETY: version 3 reads and writes one header and reads two halves; both live during the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, halves.as_ptr()) };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes all capabilities that are not in `keep` out of the calling thread's bounding set, so that
/// no executed program can get them back. Needs the capability SETPCAP.
pub(crate) fn bound_to(keep: Capabilities) -> io::Result<()> {
    for number in 0..u64::BITS {
        // SAFETY: this operation takes a number and touches no memory.
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, libc::c_ulong::from(number), 0, 0, 0) } {
            1 if keep.0 & (1 << number) == 0 => {}
            1 | 0 => continue,
            // The kernel has no capability of this number, so none beyond it.
            _ => break,
        }
        // SAFETY: this operation takes a number and touches no memory.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn giving_up_is_for_this_thread_and_keeps_what_it_should() {
        let before = held().unwrap();
        std::thread::spawn(move || {
            keep_only(NET_ADMIN).unwrap();
            let after = held().unwrap();
            assert_eq!(after.permitted, before.permitted.intersection(NET_ADMIN));
            assert_eq!(after.effective, before.effective.intersection(NET_ADMIN));
            assert_eq!(after.inheritable, Capabilities::NONE);
            keep_only(Capabilities::NONE).unwrap();
            assert_eq!(held().unwrap().permitted, Capabilities::NONE);
            let refused = bound_to(Capabilities::NONE).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        })
        .join()
        .unwrap();
        assert_eq!(held().unwrap(), before);
    }
}
