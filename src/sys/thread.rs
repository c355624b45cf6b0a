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

/// Lets the calling thread run on this processor only, counted from 0. [sched_setaffinity(2)]
///
/// # Errors
/// `InvalidInput` when there is no such processor, or the process may not use it.
pub(crate) fn pin(processor: usize) -> io::Result<()> {
    if processor >= libc::CPU_SETSIZE as usize {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: a `cpu_set_t` is an array of integers, for which zero is valid.
    let mut set = unsafe { MaybeUninit::<libc::cpu_set_t>::zeroed().assume_init() };
    // SAFETY: the processor is below CPU_SETSIZE, so its bit lies within the set.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: the pointer and the size are those of a set that lives until the call returns; 0 is this thread.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
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
}
