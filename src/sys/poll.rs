//! Waiting for several file descriptors at once (epoll; poll for a few), and ending somebody's waiting (eventfd).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::ptr;
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

impl AsFd for Poll {
    /// Readable while a source is ready.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of the descriptors that there are has something to read, or will never have, for `timeout` at most or
/// without end; says which. A signal ends the waiting, too, with none. A number that is no open descriptor has
/// something at once: whoever reads learns what is wrong.
pub(crate) fn wait_for<const N: usize>(fds: [Option<RawFd>; N], timeout: Option<Duration>) -> io::Result<[bool; N]> {
    // The system passes over negative numbers.
    let mut fds = fds.map(|fd| libc::pollfd { fd: fd.unwrap_or(-1), events: libc::POLLIN, revents: 0 });
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    });
    let until = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `fds` are `N` items, which the call reads and writes; `until` is null or leads to a timespec that outlives the
    // call; no mask of signals is given.
    let result = unsafe { libc::ppoll(fds.as_mut_ptr(), N as libc::nfds_t, until, ptr::null()) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok([false; N]) } else { Err(error) };
    }
    Ok(fds.map(|fd| fd.revents != 0))
}

/// Who is ready.
pub(crate) struct Ready(Vec<epoll::Event>);

// SAFETY: what epoll gives back beside an event is the number that `Poll::add` gave it, never a pointer.
unsafe impl Send for Ready {}

impl Ready {
    /// Room for so many at once; others are told of by the next call.
    pub(crate) fn with_capacity(count: usize) -> Self {
        Self(Vec::with_capacity(count))
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
    fn a_few_are_waited_for_as_long_as_they_have_something() {
        let ((mut far, mut near), (far_end, end)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
        let poll = Poll::new().unwrap();
        let waker = poll.waker(Token(0)).unwrap();
        let fds = [Some(near.as_raw_fd()), None, Some(end.as_raw_fd()), Some(poll.as_fd().as_raw_fd())];
        assert_eq!(wait_for(fds, NOW).unwrap(), [false; 4]);
        far.write_all(b"a").unwrap();
        for _ in 0..2 {
            assert_eq!(wait_for(fds, None).unwrap(), [true, false, false, false]);
        }
        near.read_exact(&mut [0]).unwrap();
        waker.wake().unwrap();
        assert_eq!(wait_for(fds, None).unwrap(), [false, false, false, true]);
        assert_eq!(tokens(&poll, NOW), [Token(0)]);
        drop(far_end);
        assert_eq!(wait_for(fds, None).unwrap(), [false, false, true, false], "it is at its end");
        let start = std::time::Instant::now();
        let timeout = Duration::from_micros(1500);
        assert_eq!(wait_for([None], Some(timeout)).unwrap(), [false]);
        assert!(start.elapsed() >= timeout);
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
