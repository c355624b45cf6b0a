//! What the process can still do once it serves: what it was made for, and as little else as the kernel can withhold.
//!
//! | means | what goes |
//! |---|---|
//! | `no_new_privs` | privileges of an executed program |
//! | Landlock | files, but for those in [`Files`]; signals to others; for the daemon TCP connections |
//! | seccomp | system calls, but for those in `calls` |
//!
//! Each is best effort: where the kernel lacks one, the others are in force, the program works all the same, and the log
//! says so at `verbose`. They are put into force before the threads that touch what strangers send are started, and
//! nothing lifts them.
//!
//! A call that is not on the list fails with ENOSYS, as it would on a kernel that does not have it: a C library that
//! tries something new falls back to what is on the list, which killing the process or another error would not let it do.
//! Whoever runs code of theirs in this process gets no program, no process and no file by it; and the kernel's log says
//! what was tried ([0014](../../docs/decisions/0014-sandbox.md)).
//!
//! - No process, ever: a thread is the only thing that can be cloned. `clone3`, whose arguments a filter cannot see, is
//!   refused without a word in the log, since every C library tries it first.
//! - No memory is made executable by the daemon. The sidecar may: the system's resolver loads its modules.
//! - Nothing is opened by the daemon. The sidecar opens for reading only.

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
mod calls;

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, PathFdError, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};

use crate::sys::seccomp;

/// The newest of Landlock that the rules were written for: what later kernels can withhold besides was not thought of here.
const LANDLOCK: ABI = ABI::V7;

/// Where the system's resolver looks: its settings, the sockets and files of its services, and its modules.
const RESOLVER: [&str; 8] = ["/etc", "/run", "/var/run", "/usr", "/lib", "/lib64", "/nix/store", "/gnu/store"];

/// For whom it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// An interface, its port, its socket.
    Daemon,
    /// Besides: files that are read again, names that are resolved, connections of TCP.
    Sidecar,
}

/// What is left of the file system. Folders that do not exist are left out.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Folders below which everything may be read.
    pub(super) read: Vec<PathBuf>,
    /// Folders in which a file may be removed: where the socket is.
    pub(super) remove: Vec<PathBuf>,
}

/// Puts it into force for all threads, for good. To be called while the log's is the only other thread.
pub(super) fn enter(role: Role, mut files: Files) {
    if role == Role::Sidecar {
        files.read.extend(RESOLVER.map(PathBuf::from));
    }
    if let Err(error) = seccomp::forbid_new_privileges() {
        tracing::debug!("Sandbox: executed programs could get privileges: {error}");
    }
    match restrict_files(role, &files) {
        Ok(RulesetStatus::FullyEnforced) => tracing::debug!("Sandbox: files are restricted"),
        Ok(RulesetStatus::PartiallyEnforced) => {
            tracing::debug!("Sandbox: files are restricted as far as this kernel's Landlock can");
        }
        Ok(RulesetStatus::NotEnforced) => tracing::debug!("Sandbox: files are not restricted: no Landlock here"),
        Err(error) => tracing::debug!("Sandbox: files are not restricted: {error}"),
    }
    match restrict_calls(role) {
        Ok(()) => tracing::debug!("Sandbox: system calls are restricted"),
        Err(error) => tracing::debug!("Sandbox: system calls are not restricted: {error}"),
    }
}

/// Takes all files from the calling thread, which is started before the others: Landlock is a thread's own and what it
/// starts. What cannot be taken, it keeps.
pub(super) fn close_files() {
    // Of which `enter` tells for all.
    let _ = restrict_files(Role::Daemon, &Files::default());
}

fn restrict_files(role: Role, files: &Files) -> Result<RulesetStatus, Box<dyn Error>> {
    let mut rules = Ruleset::default().handle_access(AccessFs::from_all(LANDLOCK))?.scope(Scope::Signal)?;
    if role == Role::Daemon {
        rules = rules.handle_access(AccessNet::from_all(LANDLOCK))?;
    }
    let mut rules = rules.create()?;
    // Running a program is not reading it.
    let read = AccessFs::ReadFile | AccessFs::ReadDir;
    for (folders, access) in [(&files.read, read), (&files.remove, AccessFs::RemoveFile.into())] {
        for folder in folders {
            rules = allow(rules, folder, access)?;
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}

fn allow(
    rules: landlock::RulesetCreated,
    folder: &Path,
    access: BitFlags<AccessFs>,
) -> Result<landlock::RulesetCreated, Box<dyn Error>> {
    match PathFd::new(folder) {
        Ok(folder) => Ok(rules.add_rule(PathBeneath::new(folder, access))?),
        // It may be there, and would be closed to us: a socket could not be removed at the end.
        Err(PathFdError::OpenCall { source, .. }) if is_shortage(&source) => Err(source.into()),
        // What is not there needs no rule.
        Err(_) => Ok(rules),
    }
}

/// Whether the process or the system has no descriptor left, or no memory for one.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

fn restrict_calls(role: Role) -> io::Result<()> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"))]
    return calls::restrict(role);
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
    return Err(io::Error::other(format!("the list for {} calls is not written", std::env::consts::ARCH)));
}

#[cfg(test)]
mod tests;
