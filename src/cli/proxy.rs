//! The sidecar as a program: its file checked, run, and read again when it changes.
//!
//! Mistakes in the file are printed as compilers print theirs, `file:line:column: …`, each on its line of standard error.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::arguments::ProxyArguments;
use super::logging::{self, LogForm, LogLevel};
use crate::proxy::config::{self, Config, Environment, LogFormat, Remark};
use crate::sys::process;

/// The file if the command line does not name it.
const CONFIG: &str = "ADIT_CONFIG";
/// How long the last lines may take to be written.
const FLUSH_LIMIT: Duration = Duration::from_millis(100);

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
            start_log(&path, &config, arguments.silent);
            for warning in &config.warnings {
                tracing::warn!("{warning}");
            }
            tracing::error!("This build can check a configuration, and not run it");
            logging::flush(FLUSH_LIMIT);
            ExitCode::FAILURE
        }
        Err(error) => {
            warn(&error.warnings);
            super::complain(&format!("{error}\n"))
        }
    }
}

/// Lines carry the name of the file, without its ending, where a daemon's carry the interface's.
fn start_log(path: &Path, config: &Config, silent: bool) {
    let level = match config.log.level {
        _ if silent => LogLevel::Silent,
        Some(config::LogLevel::Silent) => LogLevel::Silent,
        Some(config::LogLevel::Error) => LogLevel::Error,
        Some(config::LogLevel::Verbose) => LogLevel::Verbose,
        None => LogLevel::parse(std::env::var("LOG_LEVEL").ok().as_deref()),
    };
    let form = match config.log.format {
        LogFormat::Text => LogForm::Text,
        LogFormat::Json => LogForm::Json,
    };
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    if let Err(error) = logging::start(&name, level, form) {
        eprintln!("adit: nothing will be logged: {error}");
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
