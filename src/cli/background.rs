//! Into the background, without a moment at which the interface is not there.
//!
//! The process that was started makes the TUN device and the listening socket, then starts this
//! program again in a session of its own and hands both over as descriptors, so nobody looks
//! anything up by name (by then the interface may have been renamed or moved to another namespace).
//! It waits until the new process says that it serves, and only then ends: whoever started it finds
//! an interface and a socket that answers.
//!
//! | descriptor | variable | what |
//! |---|---|---|
//! | 3 | `WG_TUN_FD` | the TUN device |
//! | 4 | `WG_UAPI_FD` | the listening socket |
//! | 5 | `ADIT_READY_FD` | a socket for the answer: `+` for serving, `-` and a line for a failure |
//!
//! Either side may die at any moment. If the new process does, the answer ends short and the waiting
//! one fails; if the waiting one does, the answer cannot be given and the new process ends.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::environment;
use crate::sys::process;

/// How long the new process may take until it serves. It has only to start threads; a machine that
/// is swapping may need seconds.
const READY_LIMIT: Duration = Duration::from_secs(20);
/// How long a process whose answer has ended may take to be gone.
const EXIT_LIMIT: Duration = Duration::from_secs(1);
/// Bytes of an answer: one line of the log.
const ANSWER_MAX: u64 = 2048;

/// First byte of the answer: it serves.
const SERVING: u8 = b'+';
/// First byte of the answer: it failed, and the rest says why.
const FAILED: u8 = b'-';

/// Goes on in a new process, which runs the same program with the same `words` (the first is the
/// program's name), and returns when that serves. `Err` says, as a text for people, why it does not.
///
/// `stderr` says whether the new process keeps standard error.
pub(super) fn go_on(words: &[OsString], tun: BorrowedFd<'_>, uapi: BorrowedFd<'_>, stderr: bool) -> Result<(), String> {
    let mut command = Command::new("/proc/self/exe");
    let (name, arguments) = words.split_first().ok_or("The program has no name")?;
    command.arg0(name).args(arguments);
    start(command, tun, uapi, stderr)
}

fn start(mut command: Command, tun: BorrowedFd<'_>, uapi: BorrowedFd<'_>, stderr: bool) -> Result<(), String> {
    let failed = |error: io::Error| format!("Going into the background failed: {error}");
    let (answer, theirs) = UnixStream::pair().map_err(failed)?;
    command
        .env(environment::TUN_FD, "3")
        .env(environment::UAPI_FD, "4")
        .env(environment::READY_FD, "5")
        .env(environment::FOREGROUND, "1")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(if stderr { Stdio::inherit() } else { Stdio::null() });
    let mut child = process::spawn_in_session(&mut command, &[tun, uapi, theirs.as_fd()]).map_err(failed)?;
    // The child has its own now, and the answer must end when it dies.
    drop((command, theirs));
    let result = await_answer(&answer, &mut child);
    if result.is_err() {
        // It must not come alive later, behind the back of whoever was told of the failure.
        let _ = child.kill();
        let _ = child.wait();
    }
    result
}

fn await_answer(answer: &UnixStream, child: &mut Child) -> Result<(), String> {
    let deadline = Instant::now() + READY_LIMIT;
    let mut bytes = Vec::new();
    // Each read is bounded by the time that is left, and the answer by its length.
    while bytes.first() != Some(&SERVING) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(format!("The background process did not answer within {} s", READY_LIMIT.as_secs()));
        }
        let mut some = [0; 256];
        let read = answer.set_read_timeout(Some(left)).and_then(|()| answer.take(ANSWER_MAX).read(&mut some));
        match read {
            Ok(0) => break,
            Ok(len) if bytes.len() as u64 <= ANSWER_MAX => bytes.extend_from_slice(&some[..len]),
            Ok(_) => break,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
            Err(error) => return Err(format!("The background process cannot be heard: {error}")),
        }
    }
    match bytes.split_first() {
        Some((&SERVING, _)) => Ok(()),
        Some((&FAILED, reason)) => Err(String::from_utf8_lossy(reason).trim_end().to_owned()),
        _ => Err(format!("The background process ended before it served{}", how_it_ended(child))),
    }
}

fn how_it_ended(child: &mut Child) -> String {
    let deadline = Instant::now() + EXIT_LIMIT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return format!(" ({status})"),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            _ => return String::new(),
        }
    }
}

/// The new process's side: tells the one that waits how it went. Without one, there is nobody to tell.
pub(super) struct Answer(Option<UnixStream>);

impl Answer {
    /// Takes the socket that `ADIT_READY_FD` named, if it did.
    pub(super) fn new(socket: Option<OwnedFd>) -> Self {
        Self(socket.map(UnixStream::from))
    }

    /// Whether somebody waits for the answer.
    pub(super) fn is_awaited(&self) -> bool {
        self.0.is_some()
    }

    /// It serves. Fails when whoever waited for that has gone: then nobody wants the interface.
    pub(super) fn serving(self) -> io::Result<()> {
        match self.0 {
            Some(mut socket) => socket.write_all(&[SERVING]),
            None => Ok(()),
        }
    }

    /// It failed, for this reason.
    pub(super) fn failed(self, reason: &str) {
        if let Some(mut socket) = self.0 {
            // If the other side has gone, so has the interest.
            let _ = socket.write_all(format!("{}{reason}\n", char::from(FAILED)).as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(script: &str, expected: Result<(), &str>) {
        let (tun, tun_far) = UnixStream::pair().unwrap();
        let (uapi, _uapi_far) = UnixStream::pair().unwrap();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let result = start(command, tun.as_fd(), uapi.as_fd(), false);
        assert_eq!(result, expected.map_err(str::to_owned), "{script}");
        drop(tun);
        let mut said = String::new();
        tun_far.take(100).read_to_string(&mut said).unwrap();
        if expected.is_ok() {
            assert_eq!(said, "3 4 5 1 /\n");
        }
    }

    #[test]
    fn hand_over() {
        let variables = "echo $WG_TUN_FD $WG_UAPI_FD $ADIT_READY_FD $WG_PROCESS_FOREGROUND $PWD >&3; ";
        check(&format!("{variables} printf + >&5"), Ok(()));
        check(&format!("{variables} sleep 0.2; printf + >&5; exec 5>&-; sleep 0.2"), Ok(()));
        check("printf -- '-It failed\\n' >&5", Err("It failed"));
        check("printf -- - >&5; sleep 0.1; echo It failed >&5; exit 1", Err("It failed"));
        check("exit 3", Err("The background process ended before it served (exit status: 3)"));
        check("kill -9 $$", Err("The background process ended before it served (signal: 9 (SIGKILL))"));
        check("exec cat /dev/zero >&5", Err("The background process ended before it served"));
    }

    #[test]
    fn nobody_waits() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        let answer = Answer::new(Some(near.into()));
        assert!(answer.is_awaited());
        assert!(answer.serving().is_err());
        assert!(!Answer::new(None).is_awaited());
        assert!(Answer::new(None).serving().is_ok());
    }
}
