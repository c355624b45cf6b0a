//! seccomp(2): which system calls the process may still make, decided by a program of classic BPF.
//!
//! - Only ever takes away: a filter stays until the process ends, and a later one can only forbid more.
//! - A filter is for all threads, those that run already included.

#![cfg(feature = "daemon")]

use std::io;

use super::socket::Instruction;

/// Forbids that an executed program gets privileges that the process does not have (set-user-id, file capabilities). For
/// the calling thread and all that it starts, for good; without it the kernel takes a filter only from the privileged.
pub(crate) fn forbid_new_privileges() -> io::Result<()> {
    // SAFETY: this operation takes numbers and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has `program` decide over each system call of every thread of the process from now on. `logged`: the kernel's log tells
/// which calls it refused. The threads must be subject to the same filters until now.
///
/// # Errors
/// ENOSYS or EINVAL where the kernel has no such filters, EINVAL also for a program that is none.
pub(crate) fn filter(program: &[Instruction], logged: bool) -> io::Result<()> {
    let len = libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len, filter: program.as_ptr().cast_mut() };
    let flags = libc::SECCOMP_FILTER_FLAG_TSYNC | if logged { libc::SECCOMP_FILTER_FLAG_LOG } else { 0 };
    let mode = libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER);
    // SAFETY: the pointer is to a `sock_fprog` of this frame that names as many instructions as the slice has; the kernel
    // copies them and writes to neither.
    match unsafe { libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program) } {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} has another filter"))),
    }
}

/// Makes a system call that is expected to be refused: none of these arguments makes one do anything.
#[cfg(test)]
pub(crate) fn attempt(call: libc::c_long, [first, second, third]: [libc::c_long; 3]) -> io::Result<()> {
    // SAFETY: pointers among the arguments are null, which the kernel refuses to follow; numbers among them name no
    // process, descriptor or mapping of the caller's.
    match unsafe { libc::syscall(call, first, second, third, 0, 0, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}
