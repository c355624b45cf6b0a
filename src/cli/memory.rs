//! Whether the limits on the process's memory leave room for a start.
//!
//! Where they do not, an allocation fails somewhere on the way, and the allocator ends the program with a line that says
//! nothing of a limit. So the limits are looked at before anything is made, and a start is refused in words.
//!
//! What a start takes is what the program has mapped by then, and what follows: stacks of threads, and the buffers, all of
//! which are made at the start. Measured as VmData of release builds on x86-64 with the GNU C library, 2026-11-22: a daemon
//! with 1, 2 and 16 workers has 13.0, 17.8 and 85.9 MB; a sidecar on 1 and 2 processors 14.8 and 21.8 MB.

use std::fmt;

use crate::sys::process;

const MIB: u64 = 1 << 20;
/// What does not depend on the number of threads: the heap, and the stacks (2 MiB each) of the threads of which there is
/// one: control, log, configuration socket, signals, metrics, the end. Measured: 8 MiB, without metrics and the end.
const FIXED: u64 = 12 * MIB;
/// A worker's stack and batches. Measured: 4.7 MiB.
const PER_WORKER: u64 = 5 * MIB;
/// A thread that carries the bytes of a sidecar's services. Measured: 2.1 MiB.
#[cfg(feature = "proxy")]
const PER_SERVICE_THREAD: u64 = 3 * MIB;

/// What a start needs beyond what is there already.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    bytes: u64,
    /// How it would be less.
    advice: &'static str,
}

impl Need {
    /// A daemon with so many workers.
    pub(super) fn of_daemon(workers: usize) -> Self {
        Self { bytes: FIXED + PER_WORKER * workers as u64, advice: "choose fewer workers (--threads, ADIT_THREADS)" }
    }

    /// A sidecar with so many workers, and so many threads for its services.
    #[cfg(feature = "proxy")]
    pub(super) fn of_sidecar(workers: usize, services: usize) -> Self {
        let bytes = FIXED + PER_WORKER * workers as u64 + PER_SERVICE_THREAD * services as u64;
        Self { bytes, advice: "let it use fewer processors (taskset)" }
    }

    /// Fails with the first limit that leaves less.
    pub(super) fn check(self) -> Result<(), Shortage> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = [
            ("address space", "RLIMIT_AS, ulimit -v", process::address_space_limit(), "VmSize:"),
            ("data", "RLIMIT_DATA, ulimit -d", process::data_limit(), "VmData:"),
        ];
        for (what, name, limit, field) in limits {
            // A limit that cannot be asked for is none that one would meet.
            let Ok(Some(limit)) = limit else { continue };
            let needed = in_use(&status, field) + self.bytes;
            if limit < needed {
                return Err(Shortage { what, name, limit, needed, advice: self.advice });
            }
        }
        Ok(())
    }
}

/// Bytes that a field of `/proc/self/status` says; 0 where it is not known.
fn in_use(status: &str, field: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// A limit that leaves too little memory.
#[derive(Debug, Clone)]
pub(super) struct Shortage {
    what: &'static str,
    name: &'static str,
    limit: u64,
    needed: u64,
    advice: &'static str,
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, name, limit, needed, advice } = self;
        let (limit, needed) = (limit / MIB, needed.div_ceil(MIB));
        write!(
            f,
            "Too little memory to start: the process may have {limit} MiB of {what} ({name}) and needs {needed} MiB; \
             raise the limit, or {advice}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_status() {
        let status = "Name:\tadit\nVmPeak:\t   19700 kB\nVmSize:\t   19696 kB\nVmData:\t   12424 kB\nThreads:\t6\n";
        assert_eq!(in_use(status, "VmSize:"), 19_696 * 1024);
        assert_eq!(in_use(status, "VmData:"), 12_424 * 1024);
        for unknown in [in_use(status, "VmLck:"), in_use("", "VmSize:"), in_use("VmSize:\tmuch\n", "VmSize:")] {
            assert_eq!(unknown, 0);
        }
    }

    #[test]
    fn a_shortage_says_what_there_is_what_is_needed_and_what_to_do() {
        let (what, name, advice) = ("data", "RLIMIT_DATA, ulimit -d", Need::of_daemon(1).advice);
        let shortage = Shortage { what, name, limit: 10 * MIB + 5, needed: 17 * MIB + 1, advice };
        assert_eq!(
            shortage.to_string(),
            "Too little memory to start: the process may have 10 MiB of data (RLIMIT_DATA, ulimit -d) and needs 18 MiB; \
             raise the limit, or choose fewer workers (--threads, ADIT_THREADS)"
        );
    }
}
