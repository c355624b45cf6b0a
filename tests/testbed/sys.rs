//! The system calls that std lacks: entering a network namespace, sending a signal, a large receive buffer, and a system
//! that lacks an address family.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

pub const SIGHUP: i32 = libc::SIGHUP;
pub const SIGINT: i32 = libc::SIGINT;
pub const SIGKILL: i32 = libc::SIGKILL;
pub const SIGTERM: i32 = libc::SIGTERM;

/// Moves the calling thread, and nothing else, into the network namespace that `namespace` is an open handle of.
pub fn enter_network_namespace(namespace: &File) -> io::Result<()> {
    // SAFETY: setns takes no pointers; the descriptor is open for as long as `namespace` is borrowed.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Kills a process and all of its group, as far as they are there.
pub fn kill_group(leader: u32) {
    let group = -i32::try_from(leader).expect("process ids are below 2^22");
    // SAFETY: kill takes no pointers.
    unsafe { libc::kill(group, libc::SIGKILL) };
}

/// Sends `signal` to the process `pid`.
pub fn send_signal(pid: u32, signal: i32) -> io::Result<()> {
    let pid = i32::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: kill takes no pointers.
    let result = unsafe { libc::kill(pid, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives a socket a receive buffer of this many bytes, beyond what the system lets everybody have.
pub fn force_receive_buffer(socket: &UdpSocket, len: libc::c_int) -> io::Result<()> {
    // SAFETY: the option's value is an int that outlives the call; the descriptor is open as long as `socket` is borrowed.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const len).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets this process, and those that it starts from now on, have as many open files as the hard limit says; gives how many.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is valid for a write of the structure.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is valid for a read of the structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// What `command` starts will get no UDP socket of the address family `family`, as if the system did not have it.
pub fn refuse_udp(command: &mut Command, family: libc::c_int) {
    // Where `seccomp_data` has the call's number, and the lower halves of two arguments of socket(2).
    const NUMBER: u32 = 0;
    const FAMILY: u32 = 16;
    const PROTOCOL: u32 = 32;
    let load = |k| libc::sock_filter { code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, jt: 0, jf: 0, k };
    let skip_unless =
        |k, jf| libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf, k };
    let answer = |k| libc::sock_filter { code: (libc::BPF_RET | libc::BPF_K) as u16, jt: 0, jf: 0, k };
    let program = [
        load(NUMBER),
        skip_unless(libc::SYS_socket as u32, 5),
        load(FAMILY),
        skip_unless(family as u32, 3),
        load(PROTOCOL),
        skip_unless(libc::IPPROTO_UDP as u32, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let filter = move || {
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: the pointer is to a `sock_fprog` that names as many instructions as there are; they are only read.
        let result = unsafe {
            libc::prctl(libc::PR_SET_SECCOMP, libc::c_ulong::from(libc::SECCOMP_MODE_FILTER), &raw const program)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes one system call, and takes no lock and no memory.
    unsafe { command.pre_exec(filter) };
}

/// The caller's effective user id.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// From now on `SIGUSR1` interrupts system calls of this process, which are not taken up again, and does nothing else.
pub fn interrupt_by_sigusr1() -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: all zeros is a valid `sigaction`: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: the pointer is valid for a read of the structure, and the handler does nothing that a handler must not do.
    let result = unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends `SIGUSR1` to one thread of this process. An error if there is no such thread any more.
pub fn interrupt_thread(thread: i32) -> io::Result<()> {
    let process = i32::try_from(std::process::id()).map_err(io::Error::other)?;
    // SAFETY: tgkill takes no pointers, and reaches no other process.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, process, thread, libc::SIGUSR1) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
