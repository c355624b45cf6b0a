//! What the system knows about the calling thread, and where it may run.

use std::io;
use std::mem::MaybeUninit;

/// How often the calling thread was pushed off its processor for another one. [getrusage(2)]
pub(crate) fn involuntary_switches() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a whole `rusage`, which lives until the call returns.
    unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    // SAFETY: all bytes are initialised, by `zeroed` or by the kernel, and all patterns are valid integers.
    let usage = unsafe { usage.assume_init() };
    usage.ru_nivcsw.try_into().unwrap_or(0)
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

/// The processors on which the calling thread may run, counted from 0, in ascending order. [sched_getaffinity(2)]
///
/// # Errors
/// What the system says; a sandbox may forbid the call.
pub(crate) fn allowed_processors() -> io::Result<Vec<usize>> {
    let mut mask = no_processors();
    // SAFETY: the pointer and the size are those of a mask that lives until the call returns; 0 is this thread.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<Mask>(), mask.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: what remains of the division is below CPU_SETSIZE, so its bit lies within the set.
    let is_allowed = |processor| unsafe { libc::CPU_ISSET(processor % SET_LEN, &mask[processor / SET_LEN]) };
    Ok((0..PROCESSORS_MAX).filter(|&processor| is_allowed(processor)).collect())
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
    // SAFETY: the pointer and the size are those of a mask that lives until the call returns; 0 is this thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<Mask>(), mask.as_ptr()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_shares_its_processor_is_pushed_off() {
        std::thread::spawn(|| {
            pin(0).unwrap();
            let before = involuntary_switches();
            let busy = || {
                let start = std::time::Instant::now();
                while start.elapsed().as_millis() < 200 {}
            };
            // The other inherits the processor.
            let other = std::thread::spawn(busy);
            busy();
            other.join().unwrap();
            assert!(involuntary_switches() > before);
        })
        .join()
        .unwrap();
        assert_eq!(pin(usize::MAX).unwrap_err().kind(), io::ErrorKind::InvalidInput);
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
