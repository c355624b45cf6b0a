//! The text protocol of `wg(8)`: how a device is configured and read over a socket.
//!
//! | file | what it does |
//! |---|---|
//! | [`set`] | text → [`Update`](crate::device::config::Update): pure, line by line, bounded |
//! | [`get`] | [`Snapshot`](crate::device::config::Snapshot) → text: pure, in chunks |
//! | `error` | what can be wrong with a request, and its errno |
//! | `conversation` | the operations of one connection: framing, replies |
//! | [`socket`] | the listening socket in the file system: made, taken over, watched, removed |
//! | `server` | the threads that serve it |
//!
//! wireguard-go's dialect is the reference; docs/uapi.md describes it for users and lists where adit differs.
//!
//! ```no_run
//! use std::sync::{Arc, mpsc};
//! use adit::uapi::{Configure, Listener, serve, socket};
//!
//! fn run(device: Arc<dyn Configure>) -> Result<(), Box<dyn std::error::Error>> {
//!     let listener = Listener::bind(socket::DIRECTORY, "wg0")?;
//!     let (sender, ended) = mpsc::channel();
//!     let server = serve(listener, device, move |why| drop(sender.send(why)))?;
//!     println!("nobody can reach the device any more: {}", ended.recv()?);
//!     server.stop();
//!     Ok(())
//! }
//! ```

mod conversation;
mod error;
pub mod get;
mod server;
pub mod set;
pub mod socket;

pub use crate::device::config::Configure;
pub use error::Error;
pub use server::{CONNECTIONS_MAX, Ended, Server, serve};
pub use socket::{ListenError, Listener};
