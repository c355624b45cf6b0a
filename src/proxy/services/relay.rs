//! Carries bytes between two connections until both have said all that they had to say.
//!
//! Each direction ends by itself: the end of what one side sends is passed on (FIN) after its last byte, while the
//! other side may go on for as long as it likes. A connection that breaks is passed on as well, as a reset, since an
//! end in its place would make half a file look like a whole one.
//!
//! Buffers belong to nobody for longer than they hold bytes: a direction takes one when there may be something to
//! read, fills it for as long as there is, and gives it back when all is written. A thousand idle connections have
//! none, and a busy one has [`BUFFER_BYTES`] for each direction that waits for its reader.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

use super::counters::Counters;
use super::network::Connection;

/// Bytes in one buffer: what one system call moves. Larger ones bring no more, smaller ones cost throughput.
pub const BUFFER_BYTES: usize = 64 * 1024;
/// Buffers kept for the next one who needs one: enough for as many busy connections as there are processors.
const SPARE_MAX: usize = 32;
/// Buffers that one direction fills and empties before others get their turn.
const TURN_BUFFERS: usize = 16;

/// The buffers that all connections share.
#[derive(Debug, Clone, Default)]
pub(super) struct Buffers(Arc<Mutex<Vec<Box<[u8]>>>>);

impl Buffers {
    /// A buffer of [`BUFFER_BYTES`], with anything in it.
    pub(super) fn take(&self) -> Box<[u8]> {
        let spare = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
    }

    pub(super) fn give(&self, buffer: Box<[u8]>) {
        let mut spare = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE_MAX {
            spare.push(buffer);
        }
    }
}

/// Where one direction is.
///
/// ```text
/// Reading ⇄ Writing → Ending → Ended
/// ```
enum State {
    /// Nothing is held; `unflushed` if the writer may hold something.
    Reading { unflushed: bool },
    /// `buffer[from..to]` is still to be written.
    Writing { buffer: Box<[u8]>, from: usize, to: usize, then: Then },
    /// All is written, and the end is being passed on.
    Ending,
    /// Nothing more will come.
    Ended,
}

/// What follows the bytes that were read.
enum Then {
    /// Perhaps more.
    More,
    /// The end.
    End,
    /// The sender is gone. Said once only, so it is kept until what came before is written.
    Broken(io::Error),
}

/// Why a direction is over without an end.
enum Broken {
    /// The side that sends is gone: what it has sent is not all.
    Reader(io::Error),
    /// The side that receives takes no more. What it sends may still be worth having.
    Writer(io::Error),
}

struct Direction<'a> {
    state: State,
    buffers: &'a Buffers,
    counters: &'a Counters,
    count: fn(&Counters, usize),
}

impl Direction<'_> {
    fn is_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// Moves what can be moved now. `Ready` when this direction is over; `moved` tells whether anything was.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut reader: Pin<&mut impl AsyncRead>,
        mut writer: Pin<&mut impl AsyncWrite>,
        moved: &mut bool,
    ) -> Poll<Result<(), Broken>> {
        let mut turn = 0;
        loop {
            match &mut self.state {
                State::Reading { unflushed } => {
                    if turn == TURN_BUFFERS {
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    turn += 1;
                    let mut buffer = self.buffers.take();
                    match fill(cx, reader.as_mut(), &mut buffer) {
                        Poll::Pending => {
                            self.buffers.give(buffer);
                            if *unflushed {
                                ready!(writer.as_mut().poll_flush(cx)).map_err(Broken::Writer)?;
                                *unflushed = false;
                            }
                            return Poll::Pending;
                        }
                        Poll::Ready(Err(error)) => {
                            self.buffers.give(buffer);
                            return Poll::Ready(Err(Broken::Reader(error)));
                        }
                        Poll::Ready(Ok((bytes, then))) => {
                            *moved = true;
                            self.state = State::Writing { buffer, from: 0, to: bytes, then };
                        }
                    }
                }
                State::Writing { buffer, from, to, .. } => {
                    while from < to {
                        let written = ready!(writer.as_mut().poll_write(cx, &buffer[*from..*to]));
                        let written = match written {
                            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                            result => result,
                        };
                        let written = written.map_err(Broken::Writer)?;
                        *from += written;
                        *moved = true;
                        (self.count)(self.counters, written);
                    }
                    let State::Writing { buffer, then, .. } =
                        std::mem::replace(&mut self.state, State::Reading { unflushed: true })
                    else {
                        continue;
                    };
                    self.buffers.give(buffer);
                    match then {
                        Then::More => {}
                        Then::End => self.state = State::Ending,
                        Then::Broken(error) => return Poll::Ready(Err(Broken::Reader(error))),
                    }
                }
                State::Ending => {
                    ready!(writer.as_mut().poll_shutdown(cx)).map_err(Broken::Writer)?;
                    *moved = true;
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// This direction is over without an end that could be passed on.
    fn abandon(&mut self) {
        if let State::Writing { buffer, .. } = std::mem::replace(&mut self.state, State::Ended) {
            self.buffers.give(buffer);
        }
    }
}

/// Reads until the buffer is full, the end comes, or nothing more is there now. `Pending` only if nothing was read.
fn fill(
    cx: &mut Context<'_>,
    mut reader: Pin<&mut impl AsyncRead>,
    buffer: &mut [u8],
) -> Poll<io::Result<(usize, Then)>> {
    let mut bytes = 0;
    while bytes < buffer.len() {
        let mut rest = ReadBuf::new(&mut buffer[bytes..]);
        match reader.as_mut().poll_read(cx, &mut rest) {
            Poll::Pending if bytes == 0 => return Poll::Pending,
            Poll::Pending => break,
            Poll::Ready(Err(error)) if bytes == 0 => return Poll::Ready(Err(error)),
            Poll::Ready(Err(error)) => return Poll::Ready(Ok((bytes, Then::Broken(error)))),
            Poll::Ready(Ok(())) if rest.filled().is_empty() => return Poll::Ready(Ok((bytes, Then::End))),
            Poll::Ready(Ok(())) => bytes += rest.filled().len(),
        }
    }
    Poll::Ready(Ok((bytes, Then::More)))
}

/// Carries bytes between `client` and `target` until both directions are over, or nothing was carried for `idle`.
///
/// # Errors
/// Why the connection broke, if it did not end; `TimedOut` after `idle`. Then the side that is still there has been
/// told by a reset.
pub(super) async fn relay(
    mut client: impl Connection,
    mut target: impl Connection,
    idle: Option<Duration>,
    buffers: &Buffers,
    counters: &Counters,
) -> io::Result<()> {
    let result = carry(&mut client, &mut target, idle, buffers, counters).await;
    if result.is_err() {
        client.reset_on_drop();
        target.reset_on_drop();
    }
    result
}

/// As [`relay`], for two ends that need not be connections: what they are told of a failure is the caller's part.
pub(super) async fn carry(
    client: &mut (impl AsyncRead + AsyncWrite + Unpin),
    target: &mut (impl AsyncRead + AsyncWrite + Unpin),
    idle: Option<Duration>,
    buffers: &Buffers,
    counters: &Counters,
) -> io::Result<()> {
    let direction = |count| Direction { state: State::Reading { unflushed: false }, buffers, counters, count };
    let (mut sent, mut received) = (direction(Counters::sent), direction(Counters::received));
    let mut broken = None;
    let mut patience = pin!(idle.map(sleep));
    poll_fn(|cx| {
        let mut moved = false;
        // The side that takes no more ends one direction; the other one shows what it has left to say.
        for (direction, outbound) in [(&mut sent, true), (&mut received, false)] {
            let (client, target) = (Pin::new(&mut *client), Pin::new(&mut *target));
            let polled = if outbound {
                direction.poll(cx, client, target, &mut moved)
            } else {
                direction.poll(cx, target, client, &mut moved)
            };
            match polled {
                Poll::Ready(Err(Broken::Reader(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Err(Broken::Writer(error))) => {
                    direction.abandon();
                    broken.get_or_insert(error);
                }
                Poll::Ready(Ok(())) | Poll::Pending => {}
            }
        }
        if sent.is_ended() && received.is_ended() {
            return Poll::Ready(broken.take().map_or(Ok(()), Err));
        }
        if let (Some(mut patience), Some(idle)) = (patience.as_mut().as_pin_mut(), idle) {
            if moved {
                Sleep::reset(patience.as_mut(), Instant::now() + idle);
            }
            ready!(patience.poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn spare(buffers: &Buffers) -> usize {
        buffers.0.lock().unwrap().len()
    }

    /// The far ends of two connections that are relayed, and the relay.
    fn relayed(
        idle: Option<Duration>,
    ) -> (tokio::io::DuplexStream, tokio::io::DuplexStream, Buffers, tokio::task::JoinHandle<io::Result<()>>) {
        let ((client, mut near_client), (target, mut near_target)) = (duplex(100), duplex(100));
        let buffers = Buffers::default();
        let shared = buffers.clone();
        let task = tokio::spawn(async move {
            carry(&mut near_client, &mut near_target, idle, &shared, &Counters::default()).await
        });
        (client, target, buffers, task)
    }

    #[tokio::test]
    async fn who_is_idle_holds_no_buffer() {
        let (mut client, mut target, buffers, _task) = relayed(None);
        let mut byte = [0];
        for _ in 0..3 {
            client.write_all(&[7]).await.unwrap();
            target.read_exact(&mut byte).await.unwrap();
        }
        tokio::task::yield_now().await;
        assert_eq!(spare(&buffers), 1, "one for both directions, and it lies in the pool");
    }

    #[tokio::test]
    async fn what_the_other_side_still_says_arrives() {
        let (mut client, target, _buffers, task) = relayed(None);
        // The target takes nothing more, but has something to say.
        let (mut target_reads, mut target_writes) = tokio::io::split(target);
        target_writes.write_all(b"last words").await.unwrap();
        target_writes.shutdown().await.unwrap();
        let mut words = String::new();
        client.read_to_string(&mut words).await.unwrap();
        assert_eq!(words, "last words");
        // And the client may go on.
        client.write_all(b"still here").await.unwrap();
        client.shutdown().await.unwrap();
        words.clear();
        target_reads.read_to_string(&mut words).await.unwrap();
        assert_eq!(words, "still here");
        task.await.unwrap().unwrap();
    }

    /// A connection that says something, and then has no end but this error; it takes nothing.
    struct Half {
        words: &'static [u8],
        then: Option<io::ErrorKind>,
    }

    impl AsyncRead for Half {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            match (std::mem::take(&mut self.words), self.then) {
                ([], Some(kind)) => return Poll::Ready(Err(kind.into())),
                (words, _) => to.put_slice(words),
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Half {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// What the client has of a target that is no whole connection, and what the relay says of it.
    async fn heard_from(mut target: Half) -> (String, io::ErrorKind) {
        let (mut client, mut near_client) = duplex(100);
        client.write_all(b"request").await.unwrap();
        let (buffers, counters) = (Buffers::default(), Counters::default());
        let carried = carry(&mut near_client, &mut target, Some(Duration::from_secs(9)), &buffers, &counters).await;
        drop(near_client);
        let mut words = String::new();
        client.read_to_string(&mut words).await.unwrap();
        (words, carried.unwrap_err().kind())
    }

    #[tokio::test]
    async fn who_takes_nothing_is_still_heard() {
        let target = Half { words: b"413 too large", then: None };
        assert_eq!(heard_from(target).await, ("413 too large".to_owned(), io::ErrorKind::BrokenPipe));
    }

    #[tokio::test]
    async fn what_came_before_a_break_arrives_and_is_not_taken_for_all() {
        let target = Half { words: b"half", then: Some(io::ErrorKind::ConnectionReset) };
        assert_eq!(heard_from(target).await, ("half".to_owned(), io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn silence_ends_what_has_a_limit() {
        let (mut client, mut target, _buffers, task) = relayed(Some(Duration::from_millis(100)));
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(40)).await;
            client.write_all(&[7]).await.unwrap();
            target.read_exact(&mut [0]).await.unwrap();
        }
        assert!(!task.is_finished());
        assert_eq!(task.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
