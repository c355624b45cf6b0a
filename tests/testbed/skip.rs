//! What was skipped, and why: printed, and appended to the file that `ADIT_SKIPS` names.
//!
//! `make test` sets the variable, prints the list with its count at the end, and CI fails when it is not empty.

use std::any::type_name_of_val;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::sys;

/// Says that the test `name` did not run, and why.
pub fn skip(name: &str, reason: &str) {
    let line = format!("SKIPPED: {name}: {reason}\n");
    print!("{line}");
    if let Some(path) = std::env::var_os("ADIT_SKIPS") {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        // One write, so that lines of parallel tests do not mix.
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("ADIT_SKIPS names a file that can be written");
    }
}

/// Why a privileged test cannot run here; `None` if it can.
pub fn missing(tools: &[&str]) -> Option<String> {
    if sys::effective_user() != 0 {
        return Some("needs root (network namespaces and TUN devices)".to_owned());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Some("needs /dev/net/tun".to_owned());
    }
    let absent: Vec<&str> = tools.iter().copied().filter(|tool| find_program(tool).is_none()).collect();
    (!absent.is_empty()).then(|| format!("not installed: {} (scripts/install-tools.sh)", absent.join(", ")))
}

/// Where a program lies: in `PATH`, in cargo's folder of installed programs, or where only root looks.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cargo = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .map(|home| home.join("bin"));
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .chain(cargo)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// The name of the test function that `closure` was written in.
pub fn name_of<T>(closure: &T) -> &'static str {
    type_name_of_val(closure).trim_end_matches("::{{closure}}")
}
