//! A raw client of the UAPI socket, for what Debian's `wg` cannot say.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// An answer takes no longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Where the socket of an interface lies.
pub fn socket_path(interface: &str) -> PathBuf {
    Path::new("/var/run/wireguard").join(format!("{interface}.sock"))
}

/// Whether a daemon answers on the socket of an interface.
pub fn answers(interface: &str) -> bool {
    UnixStream::connect(socket_path(interface))
        .ok()
        .and_then(|stream| Client { stream }.try_request("get=1\n\n"))
        .is_some_and(|answer| answer.ends_with("errno=0\n\n"))
}

/// One connection.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects to the daemon of an interface.
    #[track_caller]
    pub fn connect(interface: &str) -> Self {
        let path = socket_path(interface);
        let stream = UnixStream::connect(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { stream }
    }

    /// Sends a request, which ends with an empty line, and gives the whole answer.
    #[track_caller]
    pub fn request(&mut self, text: &str) -> String {
        self.try_request(text).unwrap_or_else(|| panic!("no answer to {text:?}"))
    }

    /// Sends a set request of these lines and gives its errno.
    #[track_caller]
    pub fn set(&mut self, lines: &str) -> i32 {
        let answer = self.request(&format!("set=1\n{}\n\n", lines.trim_end()));
        let errno = answer.strip_prefix("errno=").and_then(|rest| rest.trim_end().parse().ok());
        errno.unwrap_or_else(|| panic!("{answer:?} is no answer to a set"))
    }

    /// Asks for the configuration.
    #[track_caller]
    pub fn get(&mut self) -> String {
        self.request("get=1\n\n")
    }

    fn try_request(&mut self, text: &str) -> Option<String> {
        self.stream.set_read_timeout(Some(ANSWER_LIMIT)).ok()?;
        self.stream.write_all(text.as_bytes()).ok()?;
        let mut answer = Vec::new();
        let mut chunk = [0; 65_536];
        while !answer.ends_with(b"\n\n") {
            match self.stream.read(&mut chunk).ok()? {
                0 => return None,
                len => answer.extend_from_slice(&chunk[..len]),
            }
        }
        String::from_utf8(answer).ok()
    }
}
