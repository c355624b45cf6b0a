//! The system calls that may still be made: built from what the program was seen to make under every test, and from what
//! the C libraries and the runtime do besides when memory, threads and panics take a rarer path.
//!
//! The lists name calls for what they are needed; where an argument says which of a call's uses it is, [`conditional`]
//! looks at it.

use std::collections::BTreeMap;
use std::io;

use seccompiler::SeccompCmpArgLen::{Dword, Qword};
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::Role;
use crate::sys::seccomp;

/// A condition on an argument, counted from 0.
type Condition = (u8, SeccompCmpArgLen, SeccompCmpOp, u64);

/// Calls that are allowed whatever their arguments, with the reason at each group.
const CALLS: &[libc::c_long] = &[
    // Threads, what they wait with, and their end.
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_yield,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_restart_syscall,
    // Signals to itself, and the stack on which an overflow of the stack is reported.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    // Memory, but for what would make it executable.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Time, and chance.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    // Giving capabilities up.
    libc::SYS_capget,
    libc::SYS_capset,
    // What is open already.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pread64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    // Sockets: UDP, clients of the configuration, metrics, services; which of them, `socket` decides.
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    // The socket's file: whether it is still there, and its removal at the end.
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_unlinkat,
];

/// The same under the names that only this architecture still has.
#[cfg(target_arch = "x86_64")]
const CALLS_OLD: &[libc::c_long] = &[
    libc::SYS_poll,
    libc::SYS_epoll_wait,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_unlink,
    libc::SYS_time,
];
#[cfg(not(target_arch = "x86_64"))]
const CALLS_OLD: &[libc::c_long] = &[];

/// What the sidecar needs besides: the resolver's ways, links in the path of its file.
const CALLS_SIDECAR: &[libc::c_long] = &[
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fstatfs,
    libc::SYS_fadvise64,
    libc::SYS_getcwd,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
];
#[cfg(target_arch = "x86_64")]
const CALLS_SIDECAR_OLD: &[libc::c_long] = &[libc::SYS_readlink, libc::SYS_access];
#[cfg(not(target_arch = "x86_64"))]
const CALLS_SIDECAR_OLD: &[libc::c_long] = &[];

/// What a descriptor may be told or asked by ioctl(2): 32 bits, whatever type a C library has for them.
const IOCTLS: [u64; 11] = [
    // The interface: its name and flags, where it is, what may be in its packets.
    libc::TUNGETIFF as u32 as u64,
    TUNGETDEVNETNS,
    libc::TUNSETOFFLOAD as u32 as u64,
    libc::TUNSETVNETHDRSZ as u32 as u64,
    // Zones of addresses.
    libc::SIOCGIFINDEX as u32 as u64,
    libc::SIOCGIFNAME as u32 as u64,
    // Descriptors: not to wait, not to be handed on, how much there is to read.
    libc::FIONBIO as u32 as u64,
    libc::FIOCLEX as u32 as u64,
    libc::FIONREAD as u32 as u64,
    // Whether it is a terminal, and how wide.
    libc::TCGETS as u32 as u64,
    libc::TIOCGWINSZ as u32 as u64,
];
/// `_IO('T', 227)`.
const TUNGETDEVNETNS: u64 = 0x54e3;

/// What prctl(2) may do: name a thread or a piece of memory, and give capabilities up.
const PRCTLS: [libc::c_int; 4] = [libc::PR_SET_NAME, libc::PR_SET_VMA, libc::PR_CAPBSET_READ, libc::PR_CAPBSET_DROP];

/// For any of these values of the argument, of 32 bits.
fn any_of(argument: u8, values: impl IntoIterator<Item = u64>) -> Vec<Vec<Condition>> {
    values.into_iter().map(|value| vec![(argument, Dword, Eq, value)]).collect()
}

/// Calls that are allowed for some arguments: for those of one of the alternatives, each of which may name several.
fn conditional(role: Role) -> Vec<(libc::c_long, Vec<Vec<Condition>>)> {
    let own = u64::from(std::process::id());
    let thread = libc::CLONE_THREAD as u64;
    let exec = libc::PROT_EXEC as u64;
    let writing = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
    let families = match role {
        Role::Daemon => &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX][..],
        // The resolver asks the kernel which addresses the host has.
        Role::Sidecar => &[libc::AF_INET, libc::AF_INET6, libc::AF_UNIX, libc::AF_NETLINK],
    };
    let mut calls = vec![
        (libc::SYS_clone, vec![vec![(0, Qword, MaskedEq(thread), thread)]]),
        // How abort(3) ends the process.
        (libc::SYS_tgkill, any_of(0, [own])),
        (libc::SYS_mprotect, vec![vec![(2, Qword, MaskedEq(exec), 0)]]),
        (libc::SYS_ioctl, any_of(1, IOCTLS)),
        (libc::SYS_prctl, any_of(0, PRCTLS.map(|it| it as u64))),
        // What the workers run under; nothing that could keep others from running.
        (libc::SYS_sched_setscheduler, any_of(1, [libc::SCHED_OTHER, libc::SCHED_BATCH].map(|it| it as u64))),
        // Looking at a limit, not setting one.
        (libc::SYS_prlimit64, vec![vec![(2, Qword, Eq, 0)]]),
        (libc::SYS_socket, any_of(0, families.iter().map(|family| *family as u64))),
        (libc::SYS_socketpair, any_of(0, [libc::AF_UNIX as u64])),
    ];
    match role {
        Role::Daemon => calls.push((libc::SYS_mmap, vec![vec![(2, Qword, MaskedEq(exec), 0)]])),
        Role::Sidecar => {
            calls.push((libc::SYS_mmap, vec![vec![]]));
            calls.push((libc::SYS_openat, vec![vec![(2, Dword, MaskedEq(writing), 0)]]));
            #[cfg(target_arch = "x86_64")]
            calls.push((libc::SYS_open, vec![vec![(1, Dword, MaskedEq(writing), 0)]]));
        }
    }
    calls
}

/// Puts the filters into force for all threads.
pub(super) fn restrict(role: Role) -> io::Result<()> {
    let (calls, no_clone3) = compile(role).map_err(io::Error::other)?;
    seccomp::filter(&instructions(&no_clone3), false)?;
    seccomp::filter(&instructions(&calls), true)
}

/// The filters: of all calls, and of `clone3` alone.
fn compile(role: Role) -> Result<(BpfProgram, BpfProgram), seccompiler::BackendError> {
    let architecture: TargetArch = std::env::consts::ARCH.try_into()?;
    let refused = || SeccompAction::Errno(libc::ENOSYS as u32);
    let plain: &[&[libc::c_long]] = match role {
        Role::Daemon => &[CALLS, CALLS_OLD],
        Role::Sidecar => &[CALLS, CALLS_OLD, CALLS_SIDECAR, CALLS_SIDECAR_OLD],
    };
    let mut rules: BTreeMap<libc::c_long, Vec<SeccompRule>> =
        plain.concat().into_iter().map(|call| (call, Vec::new())).collect();
    for (call, alternatives) in conditional(role) {
        rules.insert(call, rules_of(alternatives)?);
    }
    // The other filter's.
    rules.insert(libc::SYS_clone3, Vec::new());
    let calls = SeccompFilter::new(rules, refused(), SeccompAction::Allow, architecture)?;
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    let no_clone3 = SeccompFilter::new(clone3, SeccompAction::Allow, refused(), architecture)?;
    Ok((calls.try_into()?, no_clone3.try_into()?))
}

/// Any of the alternatives; one without a condition is the call itself.
fn rules_of(alternatives: Vec<Vec<Condition>>) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let conditions = |alternative: Vec<Condition>| {
        let built =
            alternative.into_iter().map(|(argument, len, op, value)| SeccompCondition::new(argument, len, op, value));
        built.collect::<Result<Vec<_>, _>>().and_then(SeccompRule::new)
    };
    alternatives.into_iter().filter(|it| !it.is_empty()).map(conditions).collect()
}

fn instructions(program: &BpfProgram) -> Vec<libc::sock_filter> {
    program.iter().map(|it| libc::sock_filter { code: it.code, jt: it.jt, jf: it.jf, k: it.k }).collect()
}
