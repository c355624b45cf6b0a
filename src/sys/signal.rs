//! Signals as something to wait for instead of something that interrupts.
//!
//! The signals of interest are blocked before any thread is started (threads inherit that), so they
//! stay pending until one thread asks for them. No handler is ever installed. A signal that whoever
//! started the program has set to be ignored (as `nohup` does with SIGHUP) stays ignored.

#![cfg(feature = "daemon")]

use std::io;
use std::mem::MaybeUninit;

/// Some signals.
#[derive(Clone, Copy)]
pub(crate) struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks `signals` in the calling thread and all that it starts from now on, and gives the way
    /// to wait for them.
    pub(crate) fn block(signals: &[libc::c_int]) -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `set` has room for a sigset_t, which sigemptyset fills in wholly; it cannot fail.
        unsafe { libc::sigemptyset(set.as_mut_ptr()) };
        // SAFETY: sigemptyset has initialised it.
        let mut set = unsafe { set.assume_init() };
        for &signal in signals {
            // SAFETY: `set` is an initialised sigset_t that lives during the call.
            if unsafe { libc::sigaddset(&mut set, signal) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        // SAFETY: `set` is an initialised sigset_t; a null third argument asks for no old mask.
        match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) } {
            0 => Ok(Self(set)),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Waits for the next of them and takes it.
    pub(crate) fn wait(&self) -> io::Result<libc::c_int> {
        loop {
            let mut signal = 0;
            // SAFETY: `self.0` is an initialised sigset_t and `signal` a live int.
            match unsafe { libc::sigwait(&self.0, &mut signal) } {
                0 => return Ok(signal),
                libc::EINTR => {}
                error => return Err(io::Error::from_raw_os_error(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_waited_for() {
        std::thread::spawn(|| {
            let signals = Signals::block(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
            // SAFETY: sends a signal to the calling thread, which has it blocked.
            assert_eq!(unsafe { libc::raise(libc::SIGUSR2) }, 0);
            assert_eq!(signals.wait().unwrap(), libc::SIGUSR2);
        })
        .join()
        .unwrap();
    }
}
