//! What the system knows about the calling thread, and where it may run.

use std::io;
use std::mem::MaybeUninit;

/// Nanoseconds of processor time that the calling thread has used. [clock_gettime(2)]
pub(crate) fn processor_nanos() -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the pointer is to a whole `timespec`, which lives until the call returns.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, time.as_mut_ptr()) };
    // SAFETY: all bytes are initialised, by `zeroed` or by the kernel, and all patterns are valid integers.
    let time = unsafe { time.assume_init() };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Processors that a mask has room for: those that the kernel can be built for.
pub(crate) const PROCESSORS_MAX: usize = SETS * SET_LEN;

/// Processors of one set of libc's.
const SET_LEN: usize = libc::CPU_SETSIZE as usize;

/// Sets in a mask. The kernel refuses to write into a mask that has no room for all processors it may ever have.
const SETS: usize = 8;

/// One bit for each processor.
type Mask = [libc::cpu_set_t; SETS];

fn no_processors() -> Mask {
    // SAFETY: a `cpu_set_t` is an array of integers, for which zero is valid.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// Where the calling thread may run. [sched_getaffinity(2)]
fn allowed() -> io::Result<Mask> {
    let mut mask = no_processors();
    // SAFETY: the pointer and the size are those of a mask that lives until the call returns; 0 is this thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<Mask>(), mask.as_mut_ptr()) };
    if result == 0 { Ok(mask) } else { Err(io::Error::last_os_error()) }
}

/// Lets the calling thread run there only. [sched_setaffinity(2)]
fn allow(mask: &Mask) -> io::Result<()> {
    // SAFETY: the pointer and the size are those of a mask that lives until the call returns; 0 is this thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<Mask>(), mask.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The processors on which the calling thread may run, counted from 0, in ascending order. [sched_getaffinity(2)]
///
/// # Errors
/// What the system says; a sandbox may forbid the call.
#[cfg(any(feature = "daemon", test))]
pub(crate) fn allowed_processors() -> io::Result<Vec<usize>> {
    let mask = allowed()?;
    // SAFETY: what remains of the division is below CPU_SETSIZE, so its bit lies within the set.
    let is_allowed = |processor| unsafe { libc::CPU_ISSET(processor % SET_LEN, &mask[processor / SET_LEN]) };
    Ok((0..PROCESSORS_MAX).filter(|&processor| is_allowed(processor)).collect())
}

/// Moves the calling thread to another one of the processors on which it may run; it may run on all of them afterwards, as before.
/// Where the system lets it run on more later, that is not for this thread any more: who asks for a set keeps to it.
///
/// # Errors
/// `InvalidInput` where there is no other one; what the system says, as a sandbox may forbid the calls.
pub(crate) fn change_processor() -> io::Result<()> {
    let before = allowed()?;
    // SAFETY: the call takes nothing and touches no memory of ours.
    let here = usize::try_from(unsafe { libc::sched_getcpu() }).map_err(|_| io::Error::last_os_error())?;
    if here >= PROCESSORS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut others = before;
    // SAFETY: what remains of the division is below CPU_SETSIZE, so its bit lies within the set.
    unsafe { libc::CPU_CLR(here % SET_LEN, &mut others[here / SET_LEN]) };
    allow(&others)?;
    allow(&before)
}

/// Lets the calling thread run on this processor only, counted from 0. [sched_setaffinity(2)]
///
/// # Errors
/// `InvalidInput` when there is no such processor, or the process may not use it.
pub(crate) fn pin(processor: usize) -> io::Result<()> {
    if processor >= PROCESSORS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut mask = no_processors();
    // SAFETY: what remains of the division is below CPU_SETSIZE, so its bit lies within the set.
    unsafe { libc::CPU_SET(processor % SET_LEN, &mut mask[processor / SET_LEN]) };
    allow(&mask)
}

/// How the system chooses among threads that want a processor. [sched(7)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// SCHED_OTHER, the usual one.
    Other,
    /// SCHED_BATCH: the same, but a thread that wakes up does not take the processor from another one.
    Batch,
}

impl Policy {
    const ALL: [Self; 2] = [Self::Other, Self::Batch];

    fn number(self) -> libc::c_int {
        match self {
            Self::Other => libc::SCHED_OTHER,
            Self::Batch => libc::SCHED_BATCH,
        }
    }
}

/// The calling thread's policy; `None` if it is another one, or a sandbox does not tell. [sched_getscheduler(2)]
pub(crate) fn policy() -> Option<Policy> {
    // By number: musl's function of that name tells nothing.
    // SAFETY: the call takes one integer; 0 is this thread.
    let number = unsafe { libc::syscall(libc::SYS_sched_getscheduler, 0) };
    Policy::ALL.into_iter().find(|policy| libc::c_long::from(policy.number()) == number)
}

/// Changes the calling thread's policy; its nice value stays. [sched_setscheduler(2)]
///
/// # Errors
/// What the system says; a sandbox may forbid the call.
pub(crate) fn set_policy(policy: Policy) -> io::Result<()> {
    /// The kernel's `struct sched_param`.
    #[repr(C)]
    struct Parameters {
        priority: libc::c_int,
    }
    let none = Parameters { priority: 0 };
    // By number: musl's function of that name does nothing.
    // SAFETY: the call takes two integers, of which 0 is this thread, and reads one `sched_param` through its pointer, which
    // lives until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy.number(), &raw const none) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_runs_under_the_policy_that_it_was_given() {
        let policies = || {
            let before = policy();
            Policy::ALL.into_iter().rev().for_each(|next| {
                set_policy(next).unwrap();
                assert_eq!(policy(), Some(next));
            });
            before
        };
        assert_eq!(std::thread::spawn(policies).join().unwrap(), policy());
    }

    #[test]
    fn a_thread_that_shares_its_processor_has_less_of_its_time() {
        std::thread::spawn(|| {
            pin(allowed_processors().unwrap()[0]).unwrap();
            let busy = || {
                let (start, used) = (std::time::Instant::now(), processor_nanos());
                while start.elapsed().as_millis() < 300 {}
                processor_nanos() - used
            };
            // The other inherits the processor.
            let other = std::thread::spawn(busy);
            let own = busy();
            let other = other.join().unwrap();
            assert!(own > 0 && other > 0 && own + other < 450_000_000, "{own} and {other}");
        })
        .join()
        .unwrap();
        assert_eq!(pin(usize::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_thread_that_changes_its_processor_may_run_where_it_could_before() {
        std::thread::spawn(|| {
            let allowed = allowed_processors().unwrap();
            // SAFETY: the call takes nothing and touches no memory of ours.
            let here = || unsafe { libc::sched_getcpu() };
            // The system may move it, too: mostly it does not.
            let moves = (0..100).filter(|_| {
                let before = here();
                let changed = change_processor().is_ok();
                changed && here() != before
            });
            assert_eq!(moves.count() > 50, allowed.len() > 1);
            assert_eq!(allowed_processors().unwrap(), allowed);
            pin(allowed[0]).unwrap();
            assert_eq!(change_processor().unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert_eq!(allowed_processors().unwrap(), allowed[..1]);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_thread_may_run_where_it_was_pinned() {
        std::thread::spawn(|| {
            let allowed = allowed_processors().unwrap();
            assert!(allowed.is_sorted() && !allowed.is_empty());
            for processor in allowed {
                pin(processor).unwrap();
                assert_eq!(allowed_processors().unwrap(), [processor]);
            }
            assert_eq!(pin(PROCESSORS_MAX - 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        })
        .join()
        .unwrap();
    }
}
