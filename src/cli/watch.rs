//! Tells when one of some files has changed, however that was done: written in place, replaced by another as editors do, or
//! by a symbolic link on the way that leads elsewhere, as Kubernetes does (`..data` in a volume).
//!
//! The folders of the files are watched, and of what they lead to; what happened is only a reason to look whether a file is
//! another one, or another one's worth. Without inotify, whose instances are scarce, a look every [`POLL`] does.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::unix::pipe::Receiver;

use crate::sys::inotify::Inotify;

/// How long to wait for what belongs together: a volume of files, or a file written piece by piece.
const SETTLE: Duration = Duration::from_millis(100);
/// How often to look where nobody tells.
const POLL: Duration = Duration::from_secs(2);

/// Room for a burst of events, which have up to 272 bytes each.
const EVENTS_BYTES: usize = 4096;

/// What is seen of a file without reading it; `None` when there is none.
type Stamp = Option<(u64, u64, i64, i64, u64)>;

fn stamp(path: &Path) -> Stamp {
    let it = fs::metadata(path).ok()?;
    Some((it.dev(), it.ino(), it.mtime(), it.mtime_nsec(), it.size()))
}

/// Some files, as they were last seen.
pub(super) struct FileWatch {
    files: Vec<(PathBuf, Stamp)>,
    /// An inotify instance: like a pipe in all that is asked of it here, to be readable and read.
    inotify: Option<Receiver>,
    /// Something has happened since the files were looked at.
    is_stirred: bool,
}

impl FileWatch {
    /// Watches these files from now on. Must be called within a tokio runtime.
    pub(super) fn new<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Self {
        let files: Vec<_> = files.into_iter().map(|path| (path.clone(), stamp(path))).collect();
        let inotify = watch_folders(&files).and_then(|inotify| Receiver::from_owned_fd_unchecked(inotify.into()));
        let inotify = inotify.inspect_err(|error| {
            tracing::debug!("The configuration is looked at every {} s: no inotify: {error}", POLL.as_secs());
        });
        Self { files, inotify: inotify.ok(), is_stirred: false }
    }

    /// The files.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.iter().map(|(path, _)| path)
    }

    /// Waits until one of the files is not what it was. May be dropped and called again.
    pub(super) async fn changed(&mut self) {
        loop {
            if !self.is_stirred {
                self.stirred().await;
                self.is_stirred = true;
            }
            tokio::time::sleep(SETTLE).await;
            self.is_stirred = false;
            let now: Vec<Stamp> = self.files.iter().map(|(path, _)| stamp(path)).collect();
            if now.iter().ne(self.files.iter().map(|(_, before)| before)) {
                // A link may lead to another folder now.
                let files: Vec<PathBuf> = self.files.drain(..).map(|(path, _)| path).collect();
                *self = Self::new(&files);
                return;
            }
        }
    }

    /// Waits until something has happened in one of the folders.
    async fn stirred(&mut self) {
        let Some(inotify) = &self.inotify else {
            return tokio::time::sleep(POLL).await;
        };
        while inotify.readable().await.is_ok() {
            match inotify.try_read(&mut [0; EVENTS_BYTES]) {
                Ok(_) => return,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
        // It will not work again.
        self.inotify = None;
    }
}

fn watch_folders(files: &[(PathBuf, Stamp)]) -> io::Result<Inotify> {
    let inotify = Inotify::new()?;
    let mut folders = BTreeSet::new();
    for (path, _) in files {
        let resolved = fs::canonicalize(path).ok();
        for path in std::iter::once(path).chain(&resolved) {
            let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
            folders.insert(folder.unwrap_or(Path::new(".")).to_owned());
        }
    }
    folders.iter().try_for_each(|folder| inotify.watch_folder(folder))?;
    Ok(inotify)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    async fn check(watch: &mut FileWatch, what: &str, expected: bool, change: &dyn Fn()) {
        change();
        let changed = tokio::time::timeout(Duration::from_secs(if expected { 20 } else { 1 }), watch.changed()).await;
        assert_eq!(changed.is_ok(), expected, "{what}");
    }

    #[tokio::test]
    async fn changes_are_seen_however_they_are_made() {
        let folder = std::env::temp_dir().join(format!("adit-watch-{}", std::process::id()));
        // As kubelet lays a volume out.
        for version in ["1", "2"] {
            fs::create_dir_all(folder.join(version)).unwrap();
            fs::write(folder.join(version).join("a.conf"), version).unwrap();
        }
        symlink("1", folder.join("..data")).unwrap();
        let (path, plain) = (folder.join("a.conf"), folder.join("b.conf"));
        symlink("..data/a.conf", &path).unwrap();
        fs::write(&plain, "1").unwrap();
        let mut watch = FileWatch::new(&[path.clone(), plain.clone()]);
        assert!(watch.inotify.is_some());
        let other = folder.join("other");
        check(&mut watch, "a neighbour", false, &|| fs::write(&other, "").unwrap()).await;
        check(&mut watch, "the same, in place", true, &|| fs::write(&plain, "another").unwrap()).await;
        check(&mut watch, "renamed over", true, &|| fs::rename(&other, &plain).unwrap()).await;
        check(&mut watch, "a volume", true, &|| {
            symlink("2", folder.join("..new")).unwrap();
            fs::rename(folder.join("..new"), folder.join("..data")).unwrap();
        })
        .await;
        check(&mut watch, "in the new volume", true, &|| fs::write(folder.join("2/a.conf"), "longer").unwrap()).await;
        check(&mut watch, "removed", true, &|| fs::remove_file(&plain).unwrap()).await;
        check(&mut watch, "made", true, &|| fs::write(&plain, "").unwrap()).await;
        watch.inotify = None;
        check(&mut watch, "without inotify", true, &|| fs::write(&plain, "polled").unwrap()).await;
        fs::remove_dir_all(&folder).unwrap();
    }
}
