//! TCP connections and listeners as their users hold them: the blocking types, after the manner of `std::net`.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use super::flow::{Flow, Settled};
use super::listener::Listener;
use super::stack::Stack;
use super::wait::block_on_poll;

/// A connection in somebody's hand: closed in order when dropped.
pub(super) struct Connection {
    stack: Arc<Stack>,
    flow: Arc<Flow>,
    is_reset_on_drop: AtomicBool,
}

impl Connection {
    /// Begins to connect; [`Connection::poll_connected`] is to follow.
    pub(super) fn connect(stack: &Arc<Stack>, remote: SocketAddr) -> io::Result<Self> {
        Ok(Self::new(stack, stack.connect(remote)?))
    }

    fn new(stack: &Arc<Stack>, flow: Arc<Flow>) -> Self {
        Self { stack: Arc::clone(stack), flow, is_reset_on_drop: AtomicBool::new(false) }
    }

    pub(super) fn abort(&self) {
        self.follow(self.flow.fail(io::ErrorKind::ConnectionAborted, self.stack.timers.now()));
    }

    pub(super) fn reset_on_drop(&self) {
        self.is_reset_on_drop.store(true, Ordering::Relaxed);
    }

    fn follow(&self, settled: Settled) {
        self.stack.follow(&self.flow, settled);
    }

    pub(super) fn poll_connected(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.flow.poll_connected(context)
    }

    pub(super) fn poll_read(&self, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let (result, settled) = self.flow.poll_read(context, buffer, self.stack.timers.now());
        settled.into_iter().for_each(|settled| self.follow(settled));
        result
    }

    pub(super) fn poll_write(&self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let (result, settled) = self.flow.poll_write(context, bytes, self.stack.timers.now());
        settled.into_iter().for_each(|settled| self.follow(settled));
        result
    }

    pub(super) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let now = self.stack.timers.now();
        if matches!(how, Shutdown::Read | Shutdown::Both) {
            self.follow(self.flow.shutdown_read(now));
        }
        if matches!(how, Shutdown::Write | Shutdown::Both) {
            self.follow(self.flow.shutdown_write(now)?);
        }
        Ok(())
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.flow.key.local
    }

    pub(super) fn peer(&self) -> SocketAddr {
        self.flow.key.remote
    }

    pub(super) fn set_nodelay(&self, nodelay: bool) {
        self.flow.set_nodelay(nodelay);
    }

    pub(super) fn is_nodelay(&self) -> bool {
        self.flow.is_nodelay()
    }

    pub(super) fn set_keepalive(&self, interval: Option<Duration>) -> io::Result<()> {
        if interval.is_some_and(|interval| interval.is_zero()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.follow(self.flow.set_keepalive(interval, self.stack.timers.now()));
        Ok(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if *self.is_reset_on_drop.get_mut() {
            self.abort();
        }
        self.follow(self.flow.release(self.stack.timers.now()));
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TcpStream").field("local", &self.local()).field("peer", &self.peer()).finish()
    }
}

/// A listener in somebody's hand.
pub(super) struct Listening {
    stack: Arc<Stack>,
    listener: Arc<Listener>,
}

impl Listening {
    pub(super) fn new(stack: &Arc<Stack>, local: SocketAddr) -> io::Result<Self> {
        Ok(Self { stack: Arc::clone(stack), listener: stack.listen(local)? })
    }

    pub(super) fn local(&self) -> SocketAddr {
        self.listener.local
    }

    pub(super) fn poll_accept(&self, context: &mut Context<'_>) -> Poll<io::Result<Connection>> {
        let flow = ready!(self.listener.poll_accept(context))?;
        Poll::Ready(Ok(Connection::new(&self.stack, flow)))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stack.unlisten(&self.listener, io::ErrorKind::ConnectionAborted);
    }
}

impl std::fmt::Debug for Listening {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TcpListener").field(&self.local()).finish()
    }
}

/// Sets a time limit as std does: none is for ever, and no time at all a mistake.
pub(super) fn set_timeout(timeout: &Mutex<Option<Duration>>, value: Option<Duration>) -> io::Result<()> {
    if value.is_some_and(|value| value.is_zero()) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a time limit has to be longer than nothing"));
    }
    *timeout.lock().unwrap_or_else(PoisonError::into_inner) = value;
    Ok(())
}

#[derive(Debug, Default)]
struct Timeouts {
    read: Mutex<Option<Duration>>,
    write: Mutex<Option<Duration>>,
}

/// A TCP connection through the tunnel, after the manner of [`std::net::TcpStream`].
///
/// When the last clone is dropped the connection is closed in order: what was written is still sent. If something has
/// arrived that was never read, it is reset instead, as Linux does.
///
/// Reading and writing fail with [`io::ErrorKind::ConnectionReset`] when the peer reset the connection,
/// [`io::ErrorKind::TimedOut`] when it is silent for 15 minutes while something is unacknowledged,
/// [`io::ErrorKind::NetworkDown`] when the device has ended, and [`io::ErrorKind::BrokenPipe`] when this side was
/// shut down for writing.
#[derive(Debug, Clone)]
pub struct TcpStream {
    connection: Arc<Connection>,
    timeouts: Arc<Timeouts>,
}

impl TcpStream {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection: Arc::new(connection), timeouts: Arc::default() }
    }

    /// The other end.
    ///
    /// # Errors
    /// None.
    pub fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.connection.peer())
    }

    /// This end.
    ///
    /// # Errors
    /// None.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.connection.local())
    }

    /// Another handle of the same connection, as `clone` gives.
    ///
    /// # Errors
    /// None.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(self.clone())
    }

    /// Ends one direction, or both. After [`Shutdown::Write`] the peer reads the end once it has read what was sent before.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotConnected`], or why the connection ended, when it has.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        self.connection.shutdown(how)
    }

    /// Ends the connection at once: the peer is sent a reset, what was written and not sent yet is lost, and reading and
    /// writing fail with [`io::ErrorKind::ConnectionAborted`] here.
    pub fn abort(&self) {
        self.connection.abort();
    }

    /// Has the connection end by [`TcpStream::abort`] instead of in order when the last clone is dropped: for whoever passes
    /// bytes on and has to tell that they are not all.
    pub fn reset_on_drop(&self) {
        self.connection.reset_on_drop();
    }

    /// How long one read waits; `None`, as at first, for as long as it takes. It fails with
    /// [`io::ErrorKind::WouldBlock`] then.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for no time at all.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        set_timeout(&self.timeouts.read, timeout)
    }

    /// How long one write waits, in the same manner.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for no time at all.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        set_timeout(&self.timeouts.write, timeout)
    }

    /// With `true` small writes are sent at once, instead of waiting for more while something is unacknowledged.
    ///
    /// # Errors
    /// None.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.connection.set_nodelay(nodelay);
        Ok(())
    }

    /// Whether small writes are sent at once.
    ///
    /// # Errors
    /// None.
    pub fn nodelay(&self) -> io::Result<bool> {
        Ok(self.connection.is_nodelay())
    }

    /// Asks the peer for a sign of life when the connection was quiet for `interval`; after five that it did not
    /// answer the connection ends. `None`, as at first, never asks.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for no time at all.
    pub fn set_keepalive(&self, interval: Option<Duration>) -> io::Result<()> {
        self.connection.set_keepalive(interval)
    }

    fn wait<T>(
        timeout: &Mutex<Option<Duration>>,
        poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> io::Result<T> {
        let timeout = *timeout.lock().unwrap_or_else(PoisonError::into_inner);
        block_on_poll(timeout.map(|timeout| Instant::now() + timeout), poll)
            .unwrap_or(Err(io::ErrorKind::WouldBlock.into()))
    }

    /// What the asynchronous stream is made of; `None` while there are clones.
    #[cfg(feature = "tokio")]
    pub(super) fn into_connection(self) -> Option<Connection> {
        Arc::into_inner(self.connection)
    }
}

impl Read for &TcpStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        TcpStream::wait(&self.timeouts.read, |context| self.connection.poll_read(context, buffer))
    }
}

impl Write for &TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        TcpStream::wait(&self.timeouts.write, |context| self.connection.poll_write(context, bytes))
    }

    /// Does nothing, as nothing is held back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for TcpStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&*self).read(buffer)
    }
}

impl Write for TcpStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self).write(bytes)
    }

    /// Does nothing, as nothing is held back.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Accepts TCP connections through the tunnel, after the manner of [`std::net::TcpListener`].
///
/// Up to 1024 connections wait to be accepted; peers that ask for more are not answered, and try again. When it is dropped
/// those that nobody accepted are reset.
#[derive(Debug)]
pub struct TcpListener {
    listening: Listening,
}

impl TcpListener {
    pub(super) fn new(listening: Listening) -> Self {
        Self { listening }
    }

    /// Waits for a connection, and returns it with the address of its other end.
    ///
    /// # Errors
    /// [`io::ErrorKind::NetworkDown`] when the device has ended.
    pub fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        let connection = block_on_poll(None, |context| self.listening.poll_accept(context)).expect("no deadline")?;
        let peer = connection.peer();
        Ok((TcpStream::new(connection), peer))
    }

    /// Where it listens; the address may be unspecified, the port never is.
    ///
    /// # Errors
    /// None.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.listening.local())
    }

    /// What the asynchronous listener is made of.
    #[cfg(feature = "tokio")]
    pub(super) fn into_listening(self) -> Listening {
        self.listening
    }
}
