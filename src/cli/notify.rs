//! Tells a service manager how the daemon is doing: sd_notify(3), which is one datagram to the
//! socket that `NOTIFY_SOCKET` names.
//!
//! A manager that does not listen is no reason to fail: nothing here can.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;

/// The way to the service manager, if there is one.
pub(super) struct Notifier(Option<SocketAddr>);

impl Notifier {
    /// Takes the value of `NOTIFY_SOCKET`: a path, or `@` and the name of an abstract socket.
    pub(super) fn new(socket: Option<&OsStr>) -> Self {
        Self(socket.and_then(|socket| match socket.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name).ok(),
            [b'/', ..] => SocketAddr::from_pathname(socket).ok(),
            _ => None,
        }))
    }

    /// The daemon serves. The process is named because the one that serves need not be the one
    /// that the manager started.
    pub(super) fn ready(&self, interface: &str) {
        self.tell(&format!("READY=1\nMAINPID={}\nSTATUS=Serving {interface}\n", process::id()));
    }

    /// The daemon is about to end.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1\n");
    }

    fn tell(&self, state: &str) {
        if let Some(manager) = &self.0
            && let Err(error) = send(manager, state.as_bytes())
        {
            tracing::debug!("The service manager could not be notified: {error}");
        }
    }
}

fn send(manager: &SocketAddr, state: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    // A manager that is not reading must not hold the daemon up.
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state, manager).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_socket_hear_it() {
        let directory = std::env::temp_dir().join(format!("adit-notify-{}", process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("socket");
        let name = format!("adit-notify-test-{}", process::id());
        let listeners = [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str().to_owned()),
            (
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
                format!("@{name}").into(),
            ),
        ];
        for (listener, variable) in listeners {
            let notifier = Notifier::new(Some(&variable));
            notifier.ready("wg0");
            notifier.stopping();
            let mut buffer = [0; 200];
            let len = listener.recv(&mut buffer).unwrap();
            let expected = format!("READY=1\nMAINPID={}\nSTATUS=Serving wg0\n", process::id());
            assert_eq!(std::str::from_utf8(&buffer[..len]).unwrap(), expected);
            let len = listener.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], b"STOPPING=1\n");
        }
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn no_manager_or_a_deaf_one_is_no_failure() {
        for socket in [None, Some("relative"), Some(""), Some("/nonexistent/socket"), Some("@")] {
            Notifier::new(socket.map(OsStr::new)).ready("wg0");
        }
    }
}
