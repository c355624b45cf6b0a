//! The process itself: file descriptors handed over by number, a copy of itself in the background,
//! and what others may see of its memory.

#![cfg(feature = "daemon")]

use std::ffi::{CStr, c_uint};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

/// The first descriptor that is not one of the standard three.
pub(crate) const FIRST_HANDED: RawFd = 3;

/// Allows or forbids core dumps of this process and reading its memory by processes with the same
/// user but without the capability SYS_PTRACE. Executing a program resets it.
pub(crate) fn set_dumpable(dumpable: bool) -> io::Result<()> {
    // SAFETY: this operation takes a number and touches no memory.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, libc::c_ulong::from(dumpable), 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Names the calling thread; for the main thread that is the process's name as `ps` and `pkill`
/// know it. The kernel keeps the first 15 bytes.
pub(crate) fn set_name(name: &CStr) -> io::Result<()> {
    // SAFETY: `name` ends with NUL and lives during the call, which copies at most 16 bytes of it.
    match unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How much address space this process may have (`RLIMIT_AS`), in bytes; `None` where nothing limits it.
pub(crate) fn address_space_limit() -> io::Result<Option<u64>> {
    limit(libc::RLIMIT_AS)
}

/// How much memory of its own this process may have (`RLIMIT_DATA`), likewise.
pub(crate) fn data_limit() -> io::Result<Option<u64>> {
    limit(libc::RLIMIT_DATA)
}

fn limit(resource: libc::__rlimit_resource_t) -> io::Result<Option<u64>> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live structure of the type that is written.
    match unsafe { libc::getrlimit(resource, &mut limit) } {
        0 => Ok((limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets this process have as many descriptors open as it may (`RLIMIT_NOFILE`): the usual 1024 are no bound that anybody
/// chose, but the reach of select(2), which nothing here calls. Gives how many that is.
#[cfg(feature = "proxy")]
pub(crate) fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live structure of the type that is written.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a live structure of the type that is read.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
        0 => Ok(limit.rlim_cur),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes over the descriptor of this number, which whoever started the program left open for it, and
/// keeps it from programs that are executed later.
///
/// Fails with `EBADF` for a number that is not open, and for the standard three, which belong to the
/// runtime. To be called once for each number, before anything else is opened.
pub(crate) fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    if number < FIRST_HANDED {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: works on a number and touches no memory; a number that is not open gives EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    if unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open (checked above) and nobody else in this process owns it: it was there when
    // the program was started, as the caller promises.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn duplicate_at_or_above(fd: BorrowedFd<'_>, lowest: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: works on numbers and touches no memory.
    let number = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, lowest) };
    if number < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fcntl has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Starts `command` in a session of its own, with `handed` as its descriptors 3, 4, … and no others
/// beyond the standard three. `command` must be used for nothing else afterwards.
pub(crate) fn spawn_in_session(command: &mut Command, handed: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let end = FIRST_HANDED + RawFd::try_from(handed.len()).map_err(io::Error::other)?;
    // The target numbers must be taken in this process while it starts the other, by anything:
    // else the pipe by which `Command` learns of a failed exec could lie where they go.
    let mut reserved = Vec::new();
    if let Some(&any) = handed.first() {
        loop {
            let place = duplicate_at_or_above(any, FIRST_HANDED)?;
            if place.as_raw_fd() >= end {
                break;
            }
            reserved.push(place);
        }
    }
    let sources = handed.iter().map(|&fd| duplicate_at_or_above(fd, end)).collect::<io::Result<Vec<_>>>()?;
    let moves: Vec<(RawFd, RawFd)> = sources.iter().map(AsRawFd::as_raw_fd).zip(FIRST_HANDED..).collect();
    let in_child = move || {
        // SAFETY: touches no memory. It fails only for the leader of a process group, which a
        // process that has just been forked is not.
        if unsafe { libc::setsid() } < 0 {
            return Err(io::Error::last_os_error());
        }
        for &(source, target) in &moves {
            // SAFETY: works on numbers. All sources lie beyond all targets, so none is overwritten.
            if unsafe { libc::dup2(source, target) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // What a script happened to have open (a lock, say) is not for the daemon to hold. Kernels
        // before 5.11 refuse this; then it stays open, as with any other program.
        // SAFETY: works on numbers: marks descriptors, closes none before exec.
        unsafe {
            libc::syscall(libc::SYS_close_range, end as c_uint, c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as c_uint);
        }
        Ok(())
    };
    // SAFETY: between fork and exec `in_child` makes only system calls that are safe there: it takes
    // no lock and allocates nothing.
    unsafe { command.pre_exec(in_child) };
    let child = command.spawn();
    drop(reserved);
    drop(sources);
    child
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::process::Stdio;

    #[test]
    fn descriptors_arrive_in_order_and_no_others_do() {
        let (mut third, third_far) = UnixStream::pair().unwrap();
        let (mut fourth, fourth_far) = UnixStream::pair().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "echo three >&3; echo four >&4; ls /proc/self/fd | wc -l; ps -o sid= -p $$; echo $$"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // Handed over in the reverse of the order in which they were opened.
        let child = spawn_in_session(&mut command, &[fourth_far.as_fd(), third_far.as_fd()]).unwrap();
        let output = child.wait_with_output().unwrap();
        drop((third_far, fourth_far));
        let (mut three, mut four) = (String::new(), String::new());
        fourth.read_to_string(&mut three).unwrap();
        third.read_to_string(&mut four).unwrap();
        assert_eq!((three.as_str(), four.as_str()), ("three\n", "four\n"));
        let text = String::from_utf8(output.stdout).unwrap();
        let mut words = text.split_whitespace();
        // The standard three, the handed two, and the directory that ls reads.
        assert_eq!(words.next(), Some("6"), "{text}");
        if let (Some(session), Some(process)) = (words.next(), words.next()) {
            assert_eq!(session, process, "not in a session of its own");
        }
    }

    #[test]
    fn a_program_that_is_missing_is_an_error() {
        let (near, _far) = UnixStream::pair().unwrap();
        let error = spawn_in_session(&mut Command::new("/nonexistent/program"), &[near.as_fd(); 3]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[cfg(feature = "proxy")]
    #[test]
    fn as_many_descriptors_as_are_allowed() {
        let many = raise_open_files().unwrap();
        assert_eq!(raise_open_files().unwrap(), many, "there is no more to have");
    }

    #[test]
    fn adopting_needs_an_open_descriptor_beyond_the_standard_three() {
        for number in [-1, 0, 1, 2, 1 << 30] {
            assert_eq!(adopt(number).unwrap_err().raw_os_error(), Some(libc::EBADF), "{number}");
        }
        let (near, mut far) = UnixStream::pair().unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(near);
        let mut adopted = UnixStream::from(adopt(number).unwrap());
        adopted.write_all(b"x").unwrap();
        drop(adopted);
        let mut text = String::new();
        far.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }
}
