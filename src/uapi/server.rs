//! The threads that serve the socket: one that accepts, and one for each connection.
//!
//! ```text
//! uapi ──accept──▶ uapi-client (at most CONNECTIONS_MAX) ──▶ Configure
//!   ▲ listener, inotify, waker: asleep until one of them has something
//! ```
//!
//! - A thread blocks only on its own client; a client that stalls blocks nobody else.
//! - Beyond [`CONNECTIONS_MAX`] connections, clients wait in the socket's backlog until one ends.
//! - A client that does not read its reply for [`WRITE_PATIENCE`] is left; one that does not write may stay.
//! - [`Server::stop`] shuts every connection down, so that stalled ones end at once.
//! - When the socket's file goes, or a thread panics, the [`Server`] stops serving and says so once.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::conversation::converse;
use super::socket::{Listener, Watch};
use crate::device::config::Configure;
use crate::sys::poll::{Poll, Ready, Token, Trigger, Waker};

/// Connections served at once: far beyond what tools open, and little memory.
pub const CONNECTIONS_MAX: usize = 128;
/// Stack of each thread: what a request needs lies on the heap.
const STACK_BYTES: usize = 256 * 1024;
/// How long a reply may find no reader. Without this, one that never reads would keep its snapshot for ever.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Pause after the system had no descriptor or memory for a connection: it stays in the backlog meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long `stop` waits for a set that is being applied. A daemon is to be gone within a second.
const STOP_PATIENCE: Duration = Duration::from_millis(500);

const LISTENER: Token = Token(0);
const WATCH: Token = Token(1);
const WAKER: Token = Token(2);

/// Why a [`Server`] stopped serving by itself.
#[derive(Debug)]
#[non_exhaustive]
pub enum Ended {
    /// The socket's file was removed, moved or replaced: the documented way to stop a daemon.
    Removed,
    /// A thread panicked, so what it was changing is in doubt.
    Panicked,
    /// The system no longer lets the socket be served.
    Failed(io::Error),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Removed => f.write_str("the UAPI socket was removed"),
            Self::Panicked => f.write_str("a thread of the UAPI panicked"),
            Self::Failed(error) => write!(f, "the UAPI socket can no longer be served: {error}"),
        }
    }
}

/// Serves `device` on `listener` by threads of its own, until the returned [`Server`] is stopped or dropped.
///
/// `ended` is called at most once, on one of those threads, when serving ended by itself. It is to
/// tell the owner, not to do the work: it must not block, and must not stop the server.
pub fn serve(
    listener: Listener,
    device: Arc<dyn Configure>,
    ended: impl FnOnce(Ended) + Send + 'static,
) -> io::Result<Server> {
    let poll = Poll::new()?;
    let waker = poll.waker(WAKER)?;
    poll.add(listener.as_raw_fd(), LISTENER, Trigger::Edge)?;
    // inotify instances are scarce (fs.inotify.max_user_instances); without one the device still works.
    let watch = listener.watch().unwrap_or_else(|error| {
        tracing::warn!(target: "uapi", %error, "cannot watch the socket: its removal will go unnoticed");
        None
    });
    if let Some(watch) = &watch {
        poll.add(watch.as_raw_fd(), WATCH, Trigger::Edge)?;
    }
    let shared = Arc::new(Shared {
        device,
        waker,
        sets: Mutex::new(()),
        stopping: AtomicBool::new(false),
        connections: Mutex::default(),
        all_ended: Condvar::new(),
        ended: Mutex::new(Some(Box::new(ended))),
    });
    let acceptor = Acceptor { poll, listener, watch, shared: Arc::clone(&shared), is_short: false };
    let thread = thread::Builder::new().name("uapi".into()).stack_size(STACK_BYTES).spawn(move || acceptor.run())?;
    Ok(Server { shared, thread: Some(thread) })
}

/// A socket that is being served. Dropping it stops it.
pub struct Server {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Removes the socket, ends every connection and waits for the threads, but no longer than half
    /// a second for a set that is being applied.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop();
        if let Some(thread) = self.thread.take() {
            // That it panicked was reported by its guard.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("connections", &self.shared.lock_connections().open.len())
            .finish_non_exhaustive()
    }
}

/// What the threads have in common.
struct Shared {
    device: Arc<dyn Configure>,
    waker: Waker,
    /// Held while a set is applied.
    sets: Mutex<()>,
    stopping: AtomicBool,
    connections: Mutex<Connections>,
    all_ended: Condvar,
    /// Taken by the first reason to end.
    ended: Mutex<Option<TellOwner>>,
}

type TellOwner = Box<dyn FnOnce(Ended) + Send>;

#[derive(Default)]
struct Connections {
    next_id: u64,
    open: HashMap<u64, Arc<UnixStream>>,
}

impl Shared {
    fn lock_connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // Fails only if the acceptor's poll is gone, and the acceptor with it.
        let _ = self.waker.wake();
    }

    /// Ends serving, and tells the owner if nobody has yet.
    fn end(&self, why: Ended) {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended {
            tracing::info!(target: "uapi", "{why}");
            ended(why);
        }
        self.stop();
    }
}

/// The thread `uapi`.
struct Acceptor {
    poll: Poll,
    listener: Listener,
    watch: Option<Watch>,
    shared: Arc<Shared>,
    /// The last client could not be accepted, for want of something that the system may have again.
    is_short: bool,
}

impl Acceptor {
    fn run(mut self) {
        let _guard = PanicGuard(&Arc::clone(&self.shared));
        if let Err(why) = self.accept_until_stopped() {
            if matches!(why, Ended::Removed) {
                self.listener.disown();
            }
            self.shared.end(why);
        }
        // New clients are refused from here on, and the file is gone.
        drop(self.listener);
        let mut connections = self.shared.lock_connections();
        for stream in connections.open.values() {
            // Fails if the client has left, which is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
        connections = self
            .shared
            .all_ended
            .wait_timeout_while(connections, STOP_PATIENCE, |connections| !connections.open.is_empty())
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        if !connections.open.is_empty() {
            tracing::warn!(target: "uapi", left = connections.open.len(), "stopped while a set was being applied");
        }
    }

    fn accept_until_stopped(&mut self) -> Result<(), Ended> {
        let mut ready = Ready::with_capacity(4);
        // The first round looks at what came before the watch and the poll were there.
        let mut pause = Some(Duration::ZERO);
        loop {
            self.poll.wait(&mut ready, pause).map_err(Ended::Failed)?;
            if self.shared.stopping.load(Ordering::Acquire) {
                return Ok(());
            }
            if let Some(watch) = &mut self.watch
                && watch.is_gone().map_err(Ended::Failed)?
            {
                return Err(Ended::Removed);
            }
            pause = self.accept_waiting()?;
        }
    }

    /// Accepts who waits, as far as there is room. Says when to try again; `None`: when something happens.
    fn accept_waiting(&mut self) -> Result<Option<Duration>, Ended> {
        // No more in one round, so that a flood does not hide a stop or a removal.
        for _ in 0..CONNECTIONS_MAX {
            if self.shared.lock_connections().open.len() >= CONNECTIONS_MAX {
                // The end of a connection wakes us.
                return Ok(None);
            }
            match self.listener.accept() {
                Ok(stream) => {
                    self.is_short = false;
                    self.start(stream);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ if is_shortage(&error) => {
                        // Said once, and not ten times a second for as long as it lasts.
                        if !std::mem::replace(&mut self.is_short, true) {
                            tracing::warn!(target: "uapi", %error, "cannot accept a connection now");
                        }
                        return Ok(Some(ACCEPT_PAUSE));
                    }
                    _ => return Err(Ended::Failed(error)),
                },
            }
        }
        Ok(Some(Duration::ZERO))
    }

    /// Gives a connection its thread. If there can be none, the connection is closed.
    fn start(&self, stream: UnixStream) {
        let stream = Arc::new(stream);
        let id = {
            let mut connections = self.shared.lock_connections();
            let id = connections.next_id;
            connections.next_id += 1;
            connections.open.insert(id, Arc::clone(&stream));
            id
        };
        let connection = Connection { shared: Arc::clone(&self.shared), id, stream };
        let thread = thread::Builder::new().name("uapi-client".into()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(move || connection.run()) {
            tracing::warn!(target: "uapi", %error, "cannot serve a connection");
        }
    }
}

/// A thread `uapi-client`. Dropping it closes the connection and makes room for another.
struct Connection {
    shared: Arc<Shared>,
    id: u64,
    stream: Arc<UnixStream>,
}

impl Connection {
    fn run(self) {
        let _guard = PanicGuard(&self.shared);
        let stream = &*self.stream;
        let result = stream
            .set_write_timeout(Some(WRITE_PATIENCE))
            .and_then(|()| converse(stream, stream, &*self.shared.device, &self.shared.sets));
        if let Err(error) = result {
            tracing::debug!(target: "uapi", %error, "connection lost");
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut connections = self.shared.lock_connections();
        let was_full = connections.open.len() >= CONNECTIONS_MAX;
        connections.open.remove(&self.id);
        if connections.open.is_empty() {
            self.shared.all_ended.notify_all();
        }
        drop(connections);
        if was_full {
            // Fails only if the acceptor is gone.
            let _ = self.shared.waker.wake();
        }
    }
}

/// F-21: a thread that panics ends the serving, instead of leaving a device of which nobody knows the state.
struct PanicGuard<'a>(&'a Arc<Shared>);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.end(Ended::Panicked);
        }
    }
}

/// F-05: the system has no room now, but may have again.
fn is_shortage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
