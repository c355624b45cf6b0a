//! The daemon's metrics: where they are served if that was asked for, and the server in its place among the daemon's threads.
//!
//! Nothing is opened or started unless an address was given. The socket is bound with the capabilities that the program
//! was started with; whoever serves on it has none.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread;

use crate::device::Device;
use crate::metrics::{DeviceSite, Server, serve};
use crate::sys::capabilities::{self, Capabilities};

/// Reads an address to serve on. Fails with what to give instead.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "give an address and a port such as 127.0.0.1:9586 or [::1]:9586".to_owned())
}

/// Serves the metrics of `device` on `listener`, from a thread without capabilities.
pub(super) fn start(listener: TcpListener, device: &Arc<Device>) -> io::Result<Server> {
    let site = DeviceSite { device: Arc::downgrade(device) };
    let without_capabilities = || {
        // Refused only to those who have nothing to give up. Threads have what the one has that starts them.
        let _ = capabilities::bound_to(Capabilities::NONE);
        let _ = capabilities::keep_only(Capabilities::NONE);
        serve(listener, Arc::new(site))
    };
    let started = thread::scope(|scope| scope.spawn(without_capabilities).join());
    let server = started.unwrap_or_else(|_| Err(io::Error::other("the thread that was to start it panicked")))?;
    tracing::info!("Metrics are served on http://{}/metrics", server.address());
    Ok(server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in ["127.0.0.1:9586", "[::1]:9586", "0.0.0.0:0"] {
            assert_eq!(address(text).unwrap().to_string(), text);
        }
        for text in ["", "9586", ":9586", "localhost:9586", "127.0.0.1", "::1:9586", "127.0.0.1:65536", "127.0.0.1:1 "]
        {
            let expected = "give an address and a port such as 127.0.0.1:9586 or [::1]:9586";
            assert_eq!(address(text), Err(expected.to_owned()), "{text}");
        }
    }
}
