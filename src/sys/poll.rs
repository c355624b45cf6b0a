//! Waiting for several file descriptors at once (epoll), and ending somebody's waiting (eventfd).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::{Errno, write};

/// What a source is known by to whoever waits for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) usize);

/// How often it is told that there is something to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// Whenever something comes: whoever is told reads until there is nothing more.
    Edge,
    /// As long as there is something: who reads a part is told of the rest. Costs the system a look at the source in the
    /// next waiting.
    Level,
}

/// Sources that are waited for.
#[derive(Debug)]
pub(crate) struct Poll(OwnedFd);

impl Poll {
    /// Without any source.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(epoll::CreateFlags::CLOEXEC)?))
    }

    /// From now on `fd`'s having something to read ends the waiting. Whoever closes the descriptor ends that, once there is
    /// no other one of the same open file.
    pub(crate) fn add(&self, fd: RawFd, token: Token, trigger: Trigger) -> io::Result<()> {
        let edge = if trigger == Trigger::Edge { libc::EPOLLET } else { 0 };
        self.change(libc::EPOLL_CTL_ADD, fd, libc::EPOLLIN | edge, token)
    }

    /// `fd` is no source any more.
    pub(crate) fn remove(&self, fd: RawFd) -> io::Result<()> {
        self.change(libc::EPOLL_CTL_DEL, fd, 0, Token(0))
    }

    fn change(&self, change: libc::c_int, fd: RawFd, events: libc::c_int, token: Token) -> io::Result<()> {
        let mut event = libc::epoll_event { events: events as u32, u64: token.0 as u64 };
        // SAFETY: the call reads one `epoll_event` through its last argument, which is one and outlives the call. A number that
        // is no open descriptor is refused.
        let result = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), change, fd, &raw mut event) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// A way to end the waiting from any thread: `token` is then ready.
    pub(crate) fn waker(&self, token: Token) -> io::Result<Waker> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Each call is an edge, so nobody has to read what was written.
        self.add(fd.as_raw_fd(), token, Trigger::Edge)?;
        Ok(Waker(fd))
    }

    /// Waits until a source is ready, for `timeout` at most (rounded up to milliseconds) or without end, and replaces what is
    /// in `ready`. A signal ends the waiting, too, with none.
    pub(crate) fn wait(&self, ready: &mut Ready, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| {
            let millis = timeout
                .as_secs()
                .saturating_mul(1000)
                .saturating_add(timeout.subsec_nanos().div_ceil(1_000_000).into());
            // What is longer than the system can count is waited for in pieces.
            let millis = millis.min(i32::MAX as u64) as i64;
            Timespec { tv_sec: millis / 1000, tv_nsec: millis % 1000 * 1_000_000 }
        });
        ready.0.clear();
        match epoll::wait(&self.0, spare_capacity(&mut ready.0), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Who is ready.
pub(crate) struct Ready(Vec<epoll::Event>);

impl Ready {
    /// Room for so many at once; others are told of by the next call.
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = Token> {
        self.0.iter().map(|event| Token(event.data.u64() as usize))
    }
}

/// Ends the waiting at one [`Poll`].
#[derive(Debug)]
pub(crate) struct Waker(OwnedFd);

impl Waker {
    /// Ends it now, or the next time that somebody waits.
    pub(crate) fn wake(&self) -> io::Result<()> {
        match write(self.0.as_fd(), &1u64.to_ne_bytes()) {
            // It was called 2^64 - 2 times: the counter is full, and was woken by.
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    const NOW: Option<Duration> = Some(Duration::ZERO);

    fn tokens(poll: &Poll, timeout: Option<Duration>) -> Vec<Token> {
        let mut ready = Ready::with_capacity(4);
        poll.wait(&mut ready, timeout).unwrap();
        assert_eq!(ready.is_empty(), ready.tokens().next().is_none());
        ready.tokens().collect()
    }

    #[test]
    fn an_edge_is_told_once_and_a_level_as_long_as_it_lasts() {
        let poll = Poll::new().unwrap();
        let ((mut edge_far, mut edge), (mut level_far, mut level)) =
            (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        poll.add(edge.as_raw_fd(), Token(3), Trigger::Edge).unwrap();
        poll.add(level.as_raw_fd(), Token(4), Trigger::Level).unwrap();
        assert_eq!(tokens(&poll, NOW), []);
        edge_far.write_all(b"ab").unwrap();
        level_far.write_all(b"ab").unwrap();
        assert_eq!(tokens(&poll, None), [Token(3), Token(4)]);
        for stream in [&mut edge, &mut level] {
            stream.read_exact(&mut [0]).unwrap();
        }
        assert_eq!(tokens(&poll, NOW), [Token(4)]);
        edge_far.write_all(b"c").unwrap();
        level.read_exact(&mut [0]).unwrap();
        assert_eq!(tokens(&poll, NOW), [Token(3)]);
        edge_far.write_all(b"d").unwrap();
        poll.remove(edge.as_raw_fd()).unwrap();
        assert_eq!(tokens(&poll, NOW), []);
        assert_eq!(poll.remove(edge.as_raw_fd()).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn each_call_of_a_waker_ends_one_waiting_at_least() {
        let poll = Poll::new().unwrap();
        let waker = poll.waker(Token(0)).unwrap();
        assert_eq!(tokens(&poll, NOW), []);
        for _ in 0..3 {
            waker.wake().unwrap();
            waker.wake().unwrap();
            assert_eq!(tokens(&poll, None), [Token(0)]);
            assert_eq!(tokens(&poll, NOW), []);
        }
    }

    #[test]
    fn the_waiting_ends_in_time_and_never_early() {
        let poll = Poll::new().unwrap();
        for timeout in [Duration::from_nanos(1), Duration::from_micros(1500), Duration::from_millis(3)] {
            let start = std::time::Instant::now();
            assert_eq!(tokens(&poll, Some(timeout)), []);
            assert!(start.elapsed() >= timeout);
        }
    }
}
