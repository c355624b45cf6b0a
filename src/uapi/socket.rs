//! The listening socket in the file system: made, taken over from another process, watched, removed.
//!
//! - Its mode is 0600 from its first moment, whatever the umask is: the mode is given to the socket before it is
//!   bound, so that no umask, which is the whole process's, has to be changed.
//! - A socket file that nobody listens on any more is replaced; one that answers is [`ListenError::InUse`].
//! - It is removed when the [`Listener`] is dropped, but only if the file there is still this socket's.
//! - `rm` of the file is the documented way to stop a daemon, so a [`Watch`] tells when it went or was replaced. It
//!   watches this file alone: all daemons share a directory, and none is woken by another's coming and going.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::sys::inotify::Inotify;

/// Where `wg(8)` and every other client look for `<interface>.sock`.
pub const DIRECTORY: &str = "/var/run/wireguard";
/// Clients that may wait to be accepted; the system may allow fewer (net.core.somaxconn).
const BACKLOG: i32 = 4096;
/// As wireguard-go makes it: names may be read, sockets protect themselves.
const DIRECTORY_MODE: u32 = 0o755;
/// To read the private key, or to change the device, one must own it.
const SOCKET_MODE: u32 = 0o600;

/// Why there is no socket to listen on.
#[derive(Debug)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody answers at this path: another daemon serves the interface.
    InUse(PathBuf),
    /// The interface's name cannot be a file's.
    InterfaceName(OsString),
    /// The descriptor that was handed over is no listening Unix socket.
    NotListening,
    /// The system refused.
    System {
        /// What was to be done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

impl std::fmt::Display for ListenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InUse(path) => write!(f, "the socket {} is in use", path.display()),
            Self::InterfaceName(name) => write!(f, "{name:?} is no name for an interface"),
            Self::NotListening => f.write_str("the inherited descriptor is no listening Unix socket"),
            Self::System { operation, path, .. } => write!(f, "cannot {operation} {}", path.display()),
        }
    }
}

impl std::error::Error for ListenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// Which file a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::symlink_metadata(path)?;
        Ok(Self { device: metadata.dev(), inode: metadata.ino() })
    }
}

/// A listening socket. Dropping it removes its file.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// The file that this socket made. `None` once it is no longer ours to remove.
    file: Option<FileId>,
}

impl Listener {
    /// Makes `<directory>/<interface>.sock`, and the directory if it is missing, and listens.
    pub fn bind(directory: impl AsRef<Path>, interface: impl Into<OsString>) -> Result<Self, ListenError> {
        let directory = directory.as_ref();
        let path = socket_path(directory, interface.into())?;
        let system = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| ListenError::System { operation, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(directory)
            .map_err(system("make the directory", directory))?;
        let socket = match bind_privately(&path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if somebody_answers(&path).map_err(system("probe", &path))? {
                    return Err(ListenError::InUse(path));
                }
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(system("remove the stale socket", &path)(error));
                    }
                    _ => bind_privately(&path),
                }
            }
            result => result,
        };
        let socket = socket.map_err(system("bind", &path))?;
        let file = FileId::of(&path).map_err(system("find", &path))?;
        Ok(Self { socket, path, file: Some(file) })
    }

    /// Takes over a socket that another process bound, and that listens already.
    ///
    /// Its own path counts; where it has none, `<directory>/<interface>.sock` names it, but is neither
    /// watched nor removed.
    pub fn inherit(
        fd: OwnedFd,
        directory: impl AsRef<Path>,
        interface: impl Into<OsString>,
    ) -> Result<Self, ListenError> {
        let socket = Socket::from(fd);
        let is_unix = socket.domain().is_ok_and(|domain| domain == Domain::UNIX);
        if !is_unix || !socket.is_listener().unwrap_or(false) {
            return Err(ListenError::NotListening);
        }
        let mut path = socket_path(directory.as_ref(), interface.into())?;
        let bound = socket.local_addr().ok().and_then(|address| address.as_pathname().map(Path::to_owned));
        let prepared = socket.set_cloexec(true).and_then(|()| socket.set_nonblocking(true));
        if let Err(source) = prepared {
            return Err(ListenError::System { operation: "prepare", path, source });
        }
        let file = match bound {
            Some(bound) => {
                path = bound;
                // A path that leads nowhere now was removed before we came: an impossible file says so to the watch.
                Some(FileId::of(&path).unwrap_or(FileId { device: 0, inode: 0 }))
            }
            None => None,
        };
        Ok(Self { socket: UnixListener::from(OwnedFd::from(socket)), path, file })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Hands the socket to another process, and with it the duty to remove the file.
    pub fn into_fd(mut self) -> io::Result<OwnedFd> {
        let fd = self.socket.as_fd().try_clone_to_owned()?;
        self.file = None;
        Ok(fd)
    }

    /// The next client; `WouldBlock` when none waits.
    pub(super) fn accept(&self) -> io::Result<UnixStream> {
        self.socket.accept().map(|(stream, _)| stream)
    }

    /// Starts to watch the file, if the socket has one.
    pub(super) fn watch(&self) -> io::Result<Option<Watch>> {
        let Some(file) = self.file else { return Ok(None) };
        let directory = match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let inotify = Inotify::new()?;
        match inotify.watch_file(&self.path).and_then(|()| inotify.watch_place_of_folder(directory)) {
            // It went before we came, as the first look will tell.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
        Ok(Some(Watch { inotify, path: self.path.clone(), file }))
    }

    /// The file is somebody else's by now, or gone.
    pub(super) fn disown(&mut self) {
        self.file = None;
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if self.file.is_some() && FileId::of(&self.path).ok() == self.file {
            // If it cannot be removed, the next daemon finds that nobody answers, and replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Tells when the socket's file went away.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: Inotify,
    path: PathBuf,
    file: FileId,
}

impl Watch {
    /// Whether the file was removed, moved or replaced. Never blocks.
    pub(super) fn is_gone(&mut self) -> io::Result<bool> {
        self.inotify.drain()?;
        // The inode tells: the socket holds it as long as it is open, so no other file can get its number.
        Ok(FileId::of(&self.path).ok() != Some(self.file))
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.inotify.as_raw_fd()
    }
}

fn socket_path(directory: &Path, interface: OsString) -> Result<PathBuf, ListenError> {
    let bytes = interface.as_bytes();
    if bytes.is_empty() || bytes.iter().any(|&byte| byte == b'/' || byte == 0) {
        return Err(ListenError::InterfaceName(interface));
    }
    let mut file_name = interface;
    file_name.push(".sock");
    Ok(directory.join(file_name))
}

/// [UAPI] S-50: the socket's own mode is what `bind` gives to the file, less the umask.
fn bind_privately(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    let as_file = File::from(OwnedFd::from(socket));
    as_file.set_permissions(Permissions::from_mode(SOCKET_MODE))?;
    let socket = Socket::from(OwnedFd::from(as_file));
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // A umask can have taken even the owner's bits.
    let listening =
        fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE)).and_then(|()| socket.listen(BACKLOG));
    if let Err(error) = listening {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(UnixListener::from(OwnedFd::from(socket)))
}

/// Whether a process listens at `path`. One whose backlog is full does.
fn somebody_answers(path: &Path) -> io::Result<bool> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&SockAddr::unix(path)?) {
        Ok(()) => Ok(true),
        Err(error) => Ok(error.kind() == io::ErrorKind::WouldBlock),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that is gone after the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("adit-uapi-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn made_privately_and_removed() {
        let scratch = Scratch::new("made");
        let directory = scratch.0.join("deeper");
        let listener = Listener::bind(&directory, "wg0").unwrap();
        let path = directory.join("wg0.sock");
        assert_eq!(listener.path(), path);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
        assert!(matches!(Listener::bind(&directory, "wg0"), Err(ListenError::InUse(used)) if used == path));
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn f_14_a_stale_socket_is_replaced() {
        let scratch = Scratch::new("stale");
        let directory = scratch.0.join("run");
        fs::create_dir_all(&directory).unwrap();
        drop(UnixListener::bind(directory.join("wg0.sock")).unwrap());
        assert!(directory.join("wg0.sock").exists());
        let listener = Listener::bind(&directory, "wg0").unwrap();
        assert!(somebody_answers(listener.path()).unwrap());
    }

    #[test]
    fn another_ones_file_is_left_alone() {
        let scratch = Scratch::new("other");
        let directory = scratch.0.join("run");
        let listener = Listener::bind(&directory, "wg0").unwrap();
        let path = listener.path().to_owned();
        let other = directory.join("other.sock");
        let _other = UnixListener::bind(&other).unwrap();
        fs::rename(&other, &path).unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn handed_over_and_inherited() {
        let scratch = Scratch::new("inherit");
        let directory = scratch.0.join("run");
        let fd = Listener::bind(&directory, "wg0").unwrap().into_fd().unwrap();
        let path = directory.join("wg0.sock");
        assert!(path.exists(), "the file goes with the descriptor");
        let listener = Listener::inherit(fd, "/elsewhere", "wg0").unwrap();
        assert_eq!(listener.path(), path);
        drop(listener);
        assert!(!path.exists());
        let (one, _two) = UnixStream::pair().unwrap();
        assert!(matches!(Listener::inherit(one.into(), &directory, "wg0"), Err(ListenError::NotListening)));
        let file = File::open("/dev/null").unwrap();
        assert!(matches!(Listener::inherit(file.into(), &directory, "wg0"), Err(ListenError::NotListening)));
    }

    #[test]
    fn removed_moved_and_replaced_are_seen() {
        let scratch = Scratch::new("watch");
        let directory = scratch.0.join("run");
        let path = directory.join("wg0.sock");
        let check = |what: &str, change: &dyn Fn()| {
            let listener = Listener::bind(&directory, "wg0").unwrap();
            let mut watch = listener.watch().unwrap().unwrap();
            fs::write(directory.join("something-else"), b"").unwrap();
            assert!(!watch.is_gone().unwrap(), "before: {what}");
            change();
            assert!(watch.is_gone().unwrap(), "after: {what}");
        };
        check("removed", &|| fs::remove_file(&path).unwrap());
        check("moved", &|| fs::rename(&path, directory.join("moved")).unwrap());
        check("replaced", &|| fs::rename(directory.join("something-else"), &path).unwrap());
        check("removed and made again", &|| {
            fs::remove_file(&path).unwrap();
            drop(UnixListener::bind(&path).unwrap());
        });
        check("its directory moved", &|| {
            let elsewhere = scratch.0.join("moved");
            let _ = fs::remove_dir_all(&elsewhere);
            fs::rename(&directory, &elsewhere).unwrap();
        });
    }

    #[test]
    fn names_that_no_file_has() {
        for name in ["", "a/b", "/", "a\0b"] {
            assert!(matches!(Listener::bind("/nowhere", name), Err(ListenError::InterfaceName(_))), "{name:?}");
        }
        let long = "x".repeat(200);
        assert!(matches!(Listener::bind(&Scratch::new("long").0, long), Err(ListenError::System { .. })));
    }
}
