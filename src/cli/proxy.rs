//! The sidecar as a program: its file checked, run, and read again when it changes.
//!
//! Mistakes in the file are printed as compilers print theirs, `file:line:column: …`, each on its line of standard error.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::arguments::ProxyArguments;
use crate::proxy::config::{Config, Environment, Remark};
use crate::sys::process;

/// The file if the command line does not name it.
const CONFIG: &str = "ADIT_CONFIG";

/// Checks the file, or runs what it says.
pub(super) fn main(arguments: ProxyArguments) -> ExitCode {
    // Keys pass through this memory. What cannot be forbidden costs nothing else.
    let _ = process::set_dumpable(false);
    let variable = std::env::var_os(CONFIG).filter(|value| !value.is_empty()).map(PathBuf::from);
    let Some(path) = arguments.config.clone().or(variable) else {
        return super::complain(&format!(
            "adit: there is no configuration: name its file with --config, or by the variable {CONFIG}\n"
        ));
    };
    let environment = Environment::new(std::env::vars_os());
    match Config::load(&path, &environment) {
        Ok(config) if arguments.check => {
            warn(&config.warnings);
            say_ok(&path)
        }
        Ok(config) => {
            warn(&config.warnings);
            super::complain("adit: this build can check a configuration, and not yet run it\n")
        }
        Err(error) => {
            warn(&error.warnings);
            super::complain(&format!("{error}\n"))
        }
    }
}

fn say_ok(path: &Path) -> ExitCode {
    match writeln!(std::io::stdout(), "{}: ok", path.display()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => super::complain(&format!("adit: {error}\n")),
    }
}

fn warn(warnings: &[Remark]) {
    for warning in warnings {
        let Remark { place, what, why, next, .. } = warning;
        eprintln!("{place}: warning: {what}: {why}; {next}");
    }
}
