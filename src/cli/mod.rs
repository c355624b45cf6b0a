//! The daemon: what the command line and the environment ask for, and the life of the process.
//!
//! | file | what |
//! |---|---|
//! | `arguments` | the command line |
//! | `environment` | the variables |
//! | `daemon` | one interface from its making to its end |
//! | `background` | going on as another process |
//! | `notify` | telling the service manager |
//! | `logging` | lines on standard error |
//! | `memory` | whether the limits on memory leave room for a start |
//! | `metrics` | whether and where metrics are served |
//! | `workers` | the settings of the device's workers |
//! | `sandbox` | what the process can still do once it serves |
//! | `keys` | `genkey`, `genpsk`, `pubkey` |
//! | `proxy` | the sidecar: `proxy` |
//! | `ping` | whether a host inside a sidecar's tunnel answers: `ping` |
//! | `watch` | files that change while the sidecar runs |

mod arguments;
mod background;
mod daemon;
mod environment;
mod keys;
mod logging;
mod memory;
mod metrics;
mod notify;
#[cfg(feature = "proxy")]
mod ping;
#[cfg(feature = "proxy")]
mod proxy;
mod sandbox;
#[cfg(feature = "proxy")]
mod watch;
mod workers;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::process::ExitCode;

pub use arguments::command;

use crate::sys::process;
use arguments::Invocation;

/// Runs the program.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let program = words.first().map_or(OsStr::new("adit"), OsString::as_os_str);
    match arguments::parse(program, words.get(1..).unwrap_or_default()) {
        Invocation::Daemon(arguments) => daemon::main(arguments, &words),
        Invocation::Key(command) => {
            // Keys pass through this memory. What cannot be forbidden costs nothing else.
            let _ = process::set_dumpable(false);
            match keys::run(command) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => complain(&format!("{}: {error}\n", program.to_string_lossy())),
            }
        }
        #[cfg(feature = "proxy")]
        Invocation::Proxy(arguments) => proxy::main(arguments),
        #[cfg(feature = "proxy")]
        Invocation::Ping(arguments) => ping::main(arguments),
        Invocation::Print(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => complain(&format!("{}: {error}\n", program.to_string_lossy())),
        },
        Invocation::Wrong(text) => complain(&text),
    }
}

fn complain(text: &str) -> ExitCode {
    // Where standard error is closed, the exit status has to say it.
    let _ = std::io::stderr().write_all(text.as_bytes());
    ExitCode::FAILURE
}

/// What `--version` prints: the version on a line like wireguard-go's, then how it was built.
fn version() -> String {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let aead = if cfg!(feature = "ring") { "ring" } else { "chacha20poly1305" };
    format!(
        "adit v{}\n\nUserspace WireGuard daemon for {}-{}.\nBuild: {profile}, packet AEAD by {aead}.\n",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
    )
}
