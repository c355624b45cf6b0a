//! inotify(7): to be told when a directory's entries come and go, without looking.
//!
//! Only what a watch on one directory needs. The descriptor does not block and is readable when
//! there is something to [`drain`](Inotify::drain).

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Room for a burst of events; one takes at most 16 bytes and a name of 256.
const BUFFER_LEN: usize = 4096;
/// `struct inotify_event` without its name: wd, mask, cookie, len, four bytes each.
const HEADER_LEN: usize = 16;

/// What happened to the watched directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change<'a> {
    /// The entry of that name was made, removed, moved away or replaced.
    Entry(&'a OsStr),
    /// The directory itself went or was moved, or events were lost: anything may have happened.
    Anything,
}

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

    /// Watches the entries of `directory`, and the directory itself.
    pub(crate) fn watch_directory(&self, directory: &Path) -> io::Result<()> {
        let path = CString::new(directory.as_os_str().as_bytes())?;
        let mask = libc::IN_CREATE
            | libc::IN_DELETE
            | libc::IN_MOVED_FROM
            | libc::IN_MOVED_TO
            | libc::IN_DELETE_SELF
            | libc::IN_MOVE_SELF
            | libc::IN_ONLYDIR;
        // SAFETY: the descriptor is open as long as `self`; `path` is NUL-terminated and outlives the call.
        let watch = unsafe { libc::inotify_add_watch(self.file.as_raw_fd(), path.as_ptr(), mask) };
        if watch < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Hands every waiting change to `each`.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Change<'_>)) -> io::Result<()> {
        let mut buffer = [0_u8; BUFFER_LEN];
        loop {
            match self.file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(len) => parse(&buffer[..len], &mut each),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl AsRawFd for Inotify {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Takes whole events off the front of `events`; each is a header and a NUL-padded name.
fn parse(mut events: &[u8], each: &mut impl FnMut(Change<'_>)) {
    while let Some((header, rest)) = events.split_at_checked(HEADER_LEN) {
        let word = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (mask, name_len) = (word(4), word(12));
        let Some((name, rest)) = rest.split_at_checked(name_len as usize) else { return };
        events = rest;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        if end == 0 {
            each(Change::Anything);
        } else if mask & (libc::IN_CREATE | libc::IN_DELETE | libc::IN_MOVED_FROM | libc::IN_MOVED_TO) != 0 {
            each(Change::Entry(OsStr::from_bytes(&name[..end])));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_the_directory_itself_are_seen() {
        let directory = std::env::temp_dir().join(format!("adit-inotify-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let mut inotify = Inotify::new().unwrap();
        inotify.watch_directory(&directory).unwrap();
        let changes = |inotify: &mut Inotify| {
            let mut seen = Vec::new();
            inotify
                .drain(|change| {
                    seen.push(match change {
                        Change::Entry(name) => name.to_str().unwrap().to_owned(),
                        Change::Anything => "*".to_owned(),
                    });
                })
                .unwrap();
            seen
        };
        assert!(changes(&mut inotify).is_empty());
        std::fs::write(directory.join("a"), b"").unwrap();
        std::fs::rename(directory.join("a"), directory.join("a-longer-name")).unwrap();
        std::fs::remove_file(directory.join("a-longer-name")).unwrap();
        assert_eq!(changes(&mut inotify), ["a", "a", "a-longer-name", "a-longer-name"]);
        std::fs::remove_dir(&directory).unwrap();
        assert!(changes(&mut inotify).contains(&"*".to_owned()));
        assert!(inotify.watch_directory(&directory).is_err());
    }
}
