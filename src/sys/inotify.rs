//! inotify(7): to be told when a file goes from its place, without looking.
//!
//! What is watched is the file itself, not the folder's entries: nobody is woken by what happens to the files beside it.
//! The descriptor does not block and is readable when there is something to [`drain`](Inotify::drain). What happened is
//! not told: only a look at the path says what is there now.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Room for a burst of events; those of a file have 16 bytes and no name, those in a folder up to 272.
const BUFFER_LEN: usize = 4096;

/// An inotify instance.
#[derive(Debug)]
pub(crate) struct Inotify {
    file: File,
}

impl Inotify {
    /// A new instance that does not block and is not inherited.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: takes flags alone.
        let fd = unsafe { libc::inotify_init1(libc::IN_NONBLOCK | libc::IN_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just made, is open, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { file: File::from(fd) })
    }

    /// Watches the file at `path` (a symbolic link is one itself), whatever name it gets later: whether it is moved, or
    /// one of its names removed, also by another file taking its place. Changes of its mode, owner or times come along.
    pub(crate) fn watch_file(&self, path: &Path) -> io::Result<()> {
        // The end of a name changes the count of links, an attribute. The end of the file itself comes only when nobody
        // has it open any more.
        self.watch(path, libc::IN_ATTRIB | libc::IN_DELETE_SELF | libc::IN_MOVE_SELF | libc::IN_DONT_FOLLOW)
    }

    /// Watches whether the folder at `path` is moved; nothing in it.
    pub(crate) fn watch_place_of_folder(&self, path: &Path) -> io::Result<()> {
        self.watch(path, libc::IN_MOVE_SELF | libc::IN_ONLYDIR)
    }

    /// Watches which names there are in the folder at `path`, and what is written to their files by the time that they are
    /// closed: an editor's new version, a file that another takes the place of, a symbolic link that leads elsewhere.
    #[cfg(all(feature = "daemon", feature = "proxy"))]
    pub(crate) fn watch_folder(&self, path: &Path) -> io::Result<()> {
        let names = libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO;
        let itself = libc::IN_DELETE_SELF | libc::IN_MOVE_SELF;
        self.watch(path, names | itself | libc::IN_CLOSE_WRITE | libc::IN_ONLYDIR)
    }

    fn watch(&self, path: &Path, mask: u32) -> io::Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        // SAFETY: the descriptor is open as long as `self`; `path` is NUL-terminated and outlives the call.
        let watch = unsafe { libc::inotify_add_watch(self.file.as_raw_fd(), path.as_ptr(), mask) };
        if watch < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Takes every waiting event; whether there was one.
    pub(crate) fn drain(&mut self) -> io::Result<bool> {
        let mut buffer = [0_u8; BUFFER_LEN];
        let mut any = false;
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(any),
                Ok(_) => any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(any),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// For those who wait by other means.
impl From<Inotify> for OwnedFd {
    fn from(inotify: Inotify) -> Self {
        inotify.file.into()
    }
}

impl AsRawFd for Inotify {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_file_is_seen_to_go_and_its_neighbours_are_not() {
        let folder = std::env::temp_dir().join(format!("adit-inotify-{}", std::process::id()));
        let path = folder.join("a");
        let check = |what: &str, expected: bool, change: &dyn Fn()| {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, b"").unwrap();
            // Open, as a bound socket is.
            let _open = File::open(&path).unwrap();
            let mut inotify = Inotify::new().unwrap();
            inotify.watch_file(&path).unwrap();
            inotify.watch_place_of_folder(&folder).unwrap();
            assert!(!inotify.drain().unwrap(), "before: {what}");
            change();
            assert_eq!(inotify.drain().unwrap(), expected, "after: {what}");
            fs::remove_dir_all(&folder).unwrap();
        };
        let other = folder.join("b");
        check("neighbours", false, &|| {
            fs::write(&other, b"").unwrap();
            fs::rename(&other, folder.join("c")).unwrap();
            fs::remove_file(folder.join("c")).unwrap();
        });
        check("removed", true, &|| fs::remove_file(&path).unwrap());
        check("moved", true, &|| fs::rename(&path, &other).unwrap());
        check("replaced", true, &|| {
            fs::write(&other, b"").unwrap();
            fs::rename(&other, &path).unwrap();
        });
        check("with its folder", true, &|| {
            let elsewhere = folder.with_extension("moved");
            fs::rename(&folder, &elsewhere).unwrap();
            fs::rename(&elsewhere, &folder).unwrap();
        });
        #[cfg(all(feature = "daemon", feature = "proxy"))]
        folders_are_seen_to_change(&folder);
        let nothing = Inotify::new().unwrap().watch_file(&path);
        assert_eq!(nothing.map_err(|error| error.kind()), Err(io::ErrorKind::NotFound));
    }
    #[cfg(all(feature = "daemon", feature = "proxy"))]
    fn folders_are_seen_to_change(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let mut inotify = Inotify::new().unwrap();
        inotify.watch_folder(folder).unwrap();
        let mut check = |what: &str, expected: bool, change: &dyn Fn()| {
            change();
            assert_eq!(inotify.drain().unwrap(), expected, "{what}");
        };
        let (path, other) = (folder.join("a"), folder.join("b"));
        check("written", true, &|| fs::write(&path, b"1").unwrap());
        check("read", false, &|| drop(fs::read(&path).unwrap()));
        check("written again", true, &|| fs::write(&path, b"2").unwrap());
        check("a link", true, &|| std::os::unix::fs::symlink("a", &other).unwrap());
        check("replaced", true, &|| fs::rename(&path, &other).unwrap());
        check("removed", true, &|| fs::remove_file(&other).unwrap());
        fs::remove_dir_all(folder).unwrap();
    }
}
