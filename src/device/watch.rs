//! What a worker waits for: packets from the TUN, datagrams from the sockets, and being signalled.
//!
//! Nearly all that comes, comes from the TUN and from one of the sockets, the *near* one. Those two are waited for by
//! poll(2), and all other sources stand behind one descriptor of epoll(7) beside them. What epoll watches costs the system
//! something for each packet that arrives, whether anybody waits or not, and twice more when it is asked; what poll waits for
//! costs something only while somebody sleeps, but for each source. A socket that has something more often than the near one
//! takes its place.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

use crate::sys::poll::{self, Poll, Ready, Token, Trigger};
use crate::tun::Readiness;

/// The thread was signalled.
pub(super) const WAKER: Token = Token(0);
/// The sockets' first token; each has its own.
const FIRST_SOCKET: usize = 1;

/// Others asked for in one call; what is left is told of by the next one.
const OTHERS_MAX: usize = 8;

/// So often another socket has something, and the near one nothing, before one takes the other's place: that takes two
/// system calls.
const NEARER: u32 = 8;

/// After a packet that went out, where an answer comes in: others go first before one guess in so many. Who sends it is
/// elsewhere, or nearly always, and letting others go first takes the system as long as asking a source.
const OTHERS_FIRST_EVERY: u32 = 8;

/// How often a guess is about more than what is expected.
#[derive(Debug, Clone, Copy)]
struct Habit {
    /// Of the guesses after a packet this one is about both near sources.
    both_at: u32,
    /// One guess in so many is about all sources.
    all_every: u32,
}

/// Where the next packet came from the expected source [`STEADY_FROM`] times in a row: it mostly has something by the first guess,
/// and to ask others before holds it up. What comes from elsewhere waits for as many looks at most, each about a microsecond.
const STEADY: Habit = Habit { both_at: 2, all_every: 16 };

/// Where it did not, as with bursts: what is left of one may come from the other source at any time.
const UNSTEADY: Habit = Habit { both_at: 1, all_every: 4 };

/// More packets than a burst has that one datagram of a program makes, but for the longest.
const STEADY_FROM: u32 = 8;

/// Where something comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Tun,
    /// The one at this place.
    Socket(usize),
}

/// What came after packets of one direction.
struct Next {
    /// Whether it went out, the last time.
    out: bool,
    /// How often in a row that was the same, up to [`STEADY_FROM`].
    same: u32,
}

impl Next {
    fn came(&mut self, out: bool) {
        self.same = if self.out == out { (self.same + 1).min(STEADY_FROM) } else { 0 };
        self.out = out;
    }

    fn is_steady(&self) -> bool {
        self.same == STEADY_FROM
    }

    fn habit(&self) -> Habit {
        if self.is_steady() { STEADY } else { UNSTEADY }
    }
}

/// What one worker waits for.
pub(super) struct Watch {
    /// All but the TUN and the near socket.
    others: Poll,
    ready: Ready,
    tun: Option<RawFd>,
    sockets: Vec<Readiness>,
    /// Which socket is the near one.
    near: usize,
    /// How often in a row another one had something.
    passed: u32,
    /// Whether a packet went out last.
    last_out: bool,
    /// After one that came in, and after one that went out.
    next: [Next; 2],
    /// Guesses since a packet moved.
    guesses: u32,
    /// Guesses since one was about all sources.
    partial: u32,
}

impl Watch {
    /// `others` has the worker's waker.
    pub(super) fn new(others: Poll) -> Self {
        Self {
            others,
            ready: Ready::with_capacity(OTHERS_MAX),
            tun: None,
            sockets: Vec::new(),
            near: 0,
            passed: 0,
            last_out: false,
            next: [true, false].map(|out| Next { out, same: 0 }),
            guesses: 0,
            partial: 0,
        }
    }

    /// From now on the TUN is waited for. One that has no descriptor wakes the thread itself, and so do such sockets.
    pub(super) fn set_tun(&mut self, tun: Readiness) {
        self.tun = descriptor(tun);
    }

    /// From now on these sockets are waited for, and not those before; to be called while those are open.
    pub(super) fn set_sockets(&mut self, sockets: Vec<Readiness>) -> io::Result<()> {
        for (place, before) in mem::take(&mut self.sockets).into_iter().enumerate() {
            if place != self.near
                && let Some(fd) = descriptor(before)
            {
                self.others.remove(fd)?;
            }
        }
        (self.near, self.passed) = (0, 0);
        for (place, &socket) in sockets.iter().enumerate().skip(1) {
            self.watch(place, socket)?;
        }
        self.sockets = sockets;
        Ok(())
    }

    /// Waits until something comes, for as long as said, and tells which sources have something.
    pub(super) fn wait(&mut self, timeout: Option<Duration>, mut tell: impl FnMut(Source)) -> io::Result<()> {
        let fds = [self.tun, self.descriptor(self.near), Some(self.others.as_fd().as_raw_fd())];
        let [tun, near, others] = poll::wait_for(fds, timeout)?;
        if tun {
            tell(Source::Tun);
        }
        if near {
            self.passed = 0;
            tell(Source::Socket(self.near));
        }
        if others { self.ask_others(!near, tell) } else { Ok(()) }
    }

    /// A packet, or several, went out last; or came in.
    pub(super) fn moved(&mut self, out: bool) {
        self.next[usize::from(self.last_out)].came(out);
        (self.last_out, self.guesses) = (out, 0);
    }

    /// Whether a packet that goes out is likely to follow one that came in: the last time one did, and the TUN can be asked.
    pub(super) fn expects_answer(&self) -> bool {
        self.expects_out(false)
    }

    /// Whether others are to go first before the next guess: who is to have what came, or to send what is expected, may be
    /// waiting for this very processor.
    pub(super) fn others_go_first(&self) -> bool {
        !self.awaits_answer() || self.guesses % OTHERS_FIRST_EVERY == OTHERS_FIRST_EVERY - 1
    }

    /// Whether a packet went out, and one is to come in, as it has for some time: who sends that is elsewhere.
    pub(super) fn awaits_answer(&self) -> bool {
        self.last_out && !self.next[1].out && self.next[1].is_steady()
    }

    fn expects_out(&self, after_out: bool) -> bool {
        self.tun.is_some() && self.next[usize::from(after_out)].out
    }

    /// Tells where the next packet is likely to come from, without asking the system: from where it came after such a one the
    /// last time. Right after a packet, or a moment later where that is always the same, it tells of the TUN and the near socket,
    /// as more may have come at once; and so it does now and then, however much comes from where it is expected, and asks for
    /// the others.
    pub(super) fn guess(&mut self, mut tell: impl FnMut(Source)) -> io::Result<()> {
        self.guesses = self.guesses.saturating_add(1);
        self.partial += 1;
        let out = self.expects_out(self.last_out);
        let habit = self.next[usize::from(self.last_out)].habit();
        let all = self.partial >= habit.all_every;
        let both = self.guesses == habit.both_at || all;
        if self.tun.is_some() && (out || both) {
            tell(Source::Tun);
        }
        if self.descriptor(self.near).is_some() && (!out || both) {
            tell(Source::Socket(self.near));
        }
        if all {
            self.partial = 0;
            self.ask_others(true, tell)
        } else {
            Ok(())
        }
    }

    /// Tells which of the sources that are not near have something. `passes`: the near one
    /// has nothing, as far as is known.
    fn ask_others(&mut self, passes: bool, mut tell: impl FnMut(Source)) -> io::Result<()> {
        self.others.wait(&mut self.ready, Some(Duration::ZERO))?;
        let mut last = None;
        for token in self.ready.tokens().filter(|&token| token != WAKER) {
            let place = token.0 - FIRST_SOCKET;
            tell(Source::Socket(place));
            last = Some(place);
        }
        let Some(place) = last.filter(|_| passes) else { return Ok(()) };
        self.passed += 1;
        if self.passed >= NEARER { self.bring_near(place) } else { Ok(()) }
    }

    /// The socket at `place` becomes the near one.
    fn bring_near(&mut self, place: usize) -> io::Result<()> {
        if let Some(&before) = self.sockets.get(self.near) {
            self.watch(self.near, before)?;
        }
        if let Some(fd) = self.descriptor(place) {
            self.others.remove(fd)?;
        }
        (self.near, self.passed) = (place, 0);
        Ok(())
    }

    fn watch(&self, place: usize, socket: Readiness) -> io::Result<()> {
        descriptor(socket).map_or(Ok(()), |fd| self.others.add(fd, Token(FIRST_SOCKET + place), Trigger::Level))
    }

    fn descriptor(&self, place: usize) -> Option<RawFd> {
        self.sockets.get(place).copied().and_then(descriptor)
    }
}

fn descriptor(readiness: Readiness) -> Option<RawFd> {
    match readiness {
        Readiness::Fd(fd) => Some(fd),
        Readiness::Wake => None,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    const NOW: Option<Duration> = Some(Duration::ZERO);
    /// Long before it a source is told of that has something.
    const SOON: Option<Duration> = Some(Duration::from_secs(2));

    /// Both ends of what stands for the TUN and for `SOCKETS` sockets.
    struct Ends {
        far: Vec<UnixStream>,
        near: Vec<UnixStream>,
    }

    const SOCKETS: usize = 3;

    impl Ends {
        fn new() -> Self {
            let (far, near) = (0..=SOCKETS).map(|_| UnixStream::pair().unwrap()).unzip();
            Self { far, near }
        }

        fn tun(&self) -> Readiness {
            Readiness::Fd(self.near[SOCKETS].as_raw_fd())
        }

        fn sockets(&self) -> Vec<Readiness> {
            self.near[..SOCKETS].iter().map(|end| Readiness::Fd(end.as_raw_fd())).collect()
        }

        fn put(&mut self, end: usize) {
            self.far[end].write_all(&[0]).unwrap();
        }

        fn take(&mut self, end: usize) {
            self.near[end].read_exact(&mut [0]).unwrap();
        }
    }

    fn watch(ends: &Ends) -> Watch {
        let mut watch = Watch::new(Poll::new().unwrap());
        watch.set_tun(ends.tun());
        watch.set_sockets(ends.sockets()).unwrap();
        watch
    }

    fn wait(watch: &mut Watch, timeout: Option<Duration>) -> Vec<Source> {
        let mut told = Vec::new();
        watch.wait(timeout, |source| told.push(source)).unwrap();
        told
    }

    #[test]
    fn every_source_is_told_of_as_long_as_it_has_something() {
        let mut ends = Ends::new();
        let mut watch = watch(&ends);
        assert_eq!(wait(&mut watch, NOW), []);
        for end in 0..=SOCKETS {
            let source = if end == SOCKETS { Source::Tun } else { Source::Socket(end) };
            ends.put(end);
            for _ in 0..3 {
                assert_eq!(wait(&mut watch, SOON), [source]);
            }
            ends.take(end);
            assert_eq!(wait(&mut watch, NOW), []);
        }
        (0..=SOCKETS).for_each(|end| ends.put(end));
        let mut told = wait(&mut watch, SOON);
        told.sort_by_key(|source| match source {
            Source::Socket(place) => *place,
            Source::Tun => SOCKETS,
        });
        assert_eq!(told, [Source::Socket(0), Source::Socket(1), Source::Socket(2), Source::Tun]);
    }

    #[test]
    fn who_signals_ends_the_waiting_and_is_no_source() {
        let ends = Ends::new();
        let poll = Poll::new().unwrap();
        let waker = poll.waker(WAKER).unwrap();
        let mut watch = Watch::new(poll);
        watch.set_sockets(ends.sockets()).unwrap();
        waker.wake().unwrap();
        assert_eq!(wait(&mut watch, SOON), []);
        assert_eq!(wait(&mut watch, NOW), [], "it was told of");
    }

    #[test]
    fn a_socket_that_has_something_more_often_becomes_the_near_one() {
        let mut ends = Ends::new();
        let mut watch = watch(&ends);
        ends.put(2);
        for _ in 1..NEARER {
            wait(&mut watch, SOON);
        }
        // The near one has something now and then: it stays.
        ends.put(0);
        wait(&mut watch, SOON);
        ends.take(0);
        for _ in 1..NEARER {
            assert_eq!(wait(&mut watch, SOON), [Source::Socket(2)]);
        }
        assert_eq!(watch.near, 0);
        assert_eq!(wait(&mut watch, SOON), [Source::Socket(2)]);
        assert_eq!(watch.near, 2);
        assert_eq!(wait(&mut watch, SOON), [Source::Socket(2)]);
        ends.take(2);
        for end in [0, 1] {
            ends.put(end);
            assert_eq!(wait(&mut watch, SOON), [Source::Socket(end)], "nobody is lost");
            ends.take(end);
        }
    }

    #[test]
    fn sockets_of_before_are_forgotten_and_may_come_again() {
        let mut ends = Ends::new();
        let mut watch = watch(&ends);
        ends.put(1);
        (0..NEARER).for_each(|_| assert_eq!(wait(&mut watch, SOON), [Source::Socket(1)]));
        assert_eq!(watch.near, 1);
        watch.set_sockets(Vec::new()).unwrap();
        (0..SOCKETS).for_each(|end| ends.put(end));
        assert_eq!(wait(&mut watch, NOW), []);
        watch.set_sockets(ends.sockets()).unwrap();
        assert_eq!(wait(&mut watch, SOON).len(), SOCKETS);
    }

    #[test]
    fn others_go_first_but_for_most_guesses_at_an_answer() {
        let ends = Ends::new();
        let mut watch = watch(&ends);
        let mut goes_first = |out: bool| {
            watch.moved(out);
            let each = |_| {
                let goes_first = watch.others_go_first();
                watch.guess(|_| ()).unwrap();
                goes_first
            };
            (1..=3 * OTHERS_FIRST_EVERY).map(each).collect::<Vec<_>>()
        };
        let always = vec![true; 3 * OTHERS_FIRST_EVERY as usize];
        // Not known yet; then questions and answers; then a stream, in which more goes out.
        for _ in 0..STEADY_FROM {
            assert_eq!(goes_first(true), always);
            assert_eq!(goes_first(false), always);
        }
        let seldom: Vec<_> = (1..=3 * OTHERS_FIRST_EVERY).map(|guess| guess % OTHERS_FIRST_EVERY == 0).collect();
        assert_eq!(goes_first(true), seldom);
        for _ in 0..2 {
            assert_eq!(goes_first(false), always, "whoever it is for may be waiting");
        }
        assert_eq!(goes_first(true), seldom);
        for _ in 0..=STEADY_FROM {
            assert_eq!(goes_first(true), always, "whoever sends more may be waiting");
        }
    }

    fn guesses(watch: &mut Watch, count: u32) -> Vec<Vec<Source>> {
        let guess = |_| {
            let mut told = Vec::new();
            watch.guess(|source| told.push(source)).unwrap();
            told
        };
        (0..count).map(guess).collect()
    }

    #[test]
    fn a_guess_is_what_came_next_the_last_time_and_now_and_then_all() {
        let mut ends = Ends::new();
        let mut watch = watch(&ends);
        ends.put(1);
        let (tun, near) = (Source::Tun, Source::Socket(0));
        let all = [tun, near, Source::Socket(1)];
        // Question and answer, then a burst on the way out, then one on the way in.
        for _ in 0..STEADY_FROM {
            watch.moved(true);
            watch.moved(false);
        }
        let moves = [
            (true, near, STEADY),
            (false, tun, STEADY),
            (true, near, STEADY),
            (true, tun, UNSTEADY),
            (true, tun, UNSTEADY),
            (false, tun, STEADY),
            (false, near, UNSTEADY),
        ];
        for (out, next, habit) in moves {
            watch.moved(out);
            assert!(out || watch.expects_answer() == (next == tun), "after {out}");
            let mut expected = vec![vec![next]; habit.all_every as usize];
            expected[habit.both_at as usize - 1] = vec![tun, near]; // More may have come at once.
            expected[habit.all_every as usize - 1] = all.to_vec();
            assert_eq!(guesses(&mut watch, habit.all_every), expected, "after {out}");
        }
    }

    #[test]
    fn others_are_told_of_however_much_the_near_ones_have() {
        let mut ends = Ends::new();
        let mut watch = watch(&ends);
        ends.put(1);
        for out in [true, false, false] {
            let mut told = Vec::new();
            for _ in 0..STEADY.all_every {
                watch.moved(out);
                told.extend(guesses(&mut watch, 1).concat());
            }
            assert!(told.contains(&Source::Socket(1)), "{told:?}");
        }
    }

    /// A packet that is expected from a TUN that wakes by itself keeps nobody from asking the socket.
    #[test]
    fn beside_a_tun_that_wakes_by_itself_every_guess_is_the_socket() {
        let ends = Ends::new();
        let mut watch = watch(&ends);
        watch.set_tun(Readiness::Wake);
        for _ in 0..=STEADY_FROM {
            watch.moved(true);
            watch.moved(false);
        }
        assert_eq!(guesses(&mut watch, STEADY.all_every), vec![vec![Source::Socket(0)]; STEADY.all_every as usize]);
    }

    #[test]
    fn what_wakes_by_itself_is_not_waited_for() {
        let mut watch = Watch::new(Poll::new().unwrap());
        watch.set_tun(Readiness::Wake);
        watch.set_sockets(vec![Readiness::Wake; 2]).unwrap();
        assert_eq!(wait(&mut watch, NOW), []);
        assert!(guesses(&mut watch, 2 * STEADY.all_every).concat().is_empty());
        assert!(!watch.expects_answer());
        watch.set_sockets(Vec::new()).unwrap();
    }
}
