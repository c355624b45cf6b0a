//! The sidecar as a program: its file checked, run, and read again when it changes.
//!
//! Mistakes in the file are printed as compilers print theirs, `file:line:column: …`, each on its line of standard error.
//! While the sidecar runs they are logged, and what was in force stays so.
//!
//! It ends on SIGTERM and SIGINT, whoever is connected, and by itself as `crate::proxy::run` says.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::arguments::ProxyArguments;
use super::daemon::{close_memory, exit_at_the_latest};
use super::environment;
use super::logging::{self, LogForm, LogLevel};
use super::memory::Need;
use super::sandbox::{self, Files, Role};
use super::watch::FileWatch;
use crate::device::{CloseReason, default_threads};
use crate::proxy::config::{self, Config, Environment, LogFormat, Remark};
use crate::proxy::run::{End, Prepared, Sidecar};
use crate::sys::process;
use crate::uapi::{Ended, Listener};

/// The file if the command line does not name it.
const CONFIG: &str = "ADIT_CONFIG";
/// How long the last lines may take to be written.
const FLUSH_LIMIT: Duration = Duration::from_millis(100);
/// Threads that carry the bytes of services, at most: all that they do is copy between a socket and the stack, and the
/// processors have the device's workers to run, too, which encrypt.
const WORKERS_MAX: usize = 4;
/// Threads that may wait for the system at the same time: for its resolver, and for standard input and output.
const WAITING_THREADS_MAX: usize = 64;

/// Checks the file, or runs what it says.
pub(super) fn main(arguments: ProxyArguments) -> ExitCode {
    // Keys pass through this memory.
    close_memory();
    let (path, environment, config) = match load(arguments.config) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    if arguments.check {
        warn(&config.warnings);
        return say_ok(&path);
    }
    if let Err(shortage) = Need::of_sidecar(default_threads(), service_threads()).check() {
        return super::complain(&format!("adit: {shortage}\n"));
    }
    let settings = environment::Environment::read(|name| std::env::var_os(name));
    let sandboxed = settings.sandbox.as_ref().is_ok_and(|it| it.unwrap_or(true));
    start_log(&path, &config, arguments.silent, sandboxed);
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let result = run(&path, &environment, config, arguments.info, settings);
    if let Err(reason) = &result {
        tracing::error!("{reason}");
    }
    logging::flush(FLUSH_LIMIT);
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The file that is named, or else the variable's; the environment that overrides it, and what it says. Mistakes are told.
pub(super) fn load(named: Option<PathBuf>) -> Result<(PathBuf, Environment, Config), ExitCode> {
    let variable = std::env::var_os(CONFIG).filter(|value| !value.is_empty()).map(PathBuf::from);
    let Some(path) = named.or(variable) else {
        return Err(super::complain(&format!(
            "adit: there is no configuration: name its file with --config, or by the variable {CONFIG}\n"
        )));
    };
    let environment = Environment::new(std::env::vars_os());
    match Config::load(&path, &environment) {
        Ok(config) => Ok((path, environment, config)),
        Err(error) => {
            warn(&error.warnings);
            Err(super::complain(&format!("{error}\n")))
        }
    }
}

/// How many threads carry the bytes of services.
fn service_threads() -> usize {
    thread::available_parallelism().map_or(1, |count| count.get().min(WORKERS_MAX))
}

/// Runs the sidecar to its end. Fails with what to tell.
fn run(
    path: &Path,
    environment: &Environment,
    config: Config,
    info: Option<SocketAddr>,
    settings: environment::Environment,
) -> Result<(), String> {
    let sandboxed = settings.sandbox.map_err(|it| it.to_string())?.unwrap_or(true);
    let info = match info {
        None => settings.metrics.map_err(|it| it.to_string())?,
        given => given,
    };
    let (runtime, prepared) = runtime(&config, sandboxed)?;
    let result = runtime.block_on(serve(path, environment, config, info, prepared));
    // What waits for the system, such as a read of standard input, is not waited for.
    runtime.shutdown_background();
    result
}

/// Does what a sidecar needs of the system, goes into the sandbox, and gives the threads that it runs on.
pub(super) fn runtime(config: &Config, sandboxed: bool) -> Result<(Runtime, Prepared), String> {
    let prepared = Sidecar::prepare(config).map_err(|error| error.to_string())?;
    if let Err(error) = process::raise_open_files() {
        tracing::warn!("There may be no more open files than before, which bounds the connections: {error}");
    }
    let files = files(config, prepared.socket.as_ref());
    let workers = service_threads();
    if sandboxed {
        sandbox::enter(Role::Sidecar, files);
    }
    let runtime = Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(WAITING_THREADS_MAX)
        .thread_name("services")
        .enable_all()
        .build()
        .map_err(|error| format!("the sidecar's threads cannot be started: {error}; allow the process more"))?;
    Ok((runtime, prepared))
}

/// The folders that what it was configured by lies in, by their names and by those that links lead to, and that of its socket.
fn files(config: &Config, socket: Option<&Listener>) -> Files {
    let links = config.files.iter().filter_map(|file| file.canonicalize().ok());
    let folder =
        |path: &Path| path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    Files {
        read: config.files.iter().map(|file| folder(file)).chain(links.map(|file| folder(&file))).collect(),
        remove: socket.into_iter().map(|socket| folder(socket.path())).collect(),
    }
}

/// The signals that the sidecar listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Self, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("signals cannot be listened to: {error}"));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }
}

async fn serve(
    path: &Path,
    environment: &Environment,
    config: Config,
    info: Option<SocketAddr>,
    prepared: Prepared,
) -> Result<(), String> {
    // Before anything that takes its time: a signal that comes meanwhile is not lost.
    let mut signals = Signals::new()?;
    let mut watch = FileWatch::new(&config.files);
    let mut sidecar = Sidecar::start(config, info, prepared).await.map_err(|error| error.to_string())?;
    let result = loop {
        let signalled = tokio::select! {
            end = sidecar.ended() => break verdict(end),
            _ = signals.terminate.recv() => break ended_on("SIGTERM"),
            _ = signals.interrupt.recv() => break ended_on("SIGINT"),
            _ = signals.hang_up.recv() => true,
            () = watch.changed() => false,
        };
        tracing::info!("Reading {} again: {}", path.display(), if signalled { "SIGHUP" } else { "it has changed" });
        if signalled {
            // What has changed until now is read now.
            watch = FileWatch::new(watch.files());
        }
        match Config::load(path, environment) {
            Ok(new) => {
                new.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                if !watch.files().eq(new.files.iter()) {
                    watch = FileWatch::new(&new.files);
                }
                sidecar.reload(new).await;
            }
            Err(error) => {
                error.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                error.to_string().lines().for_each(|line| tracing::error!("{line}"));
                tracing::error!("What was in force stays so; correct {}", path.display());
            }
        }
    };
    exit_at_the_latest(if result.is_ok() { 0 } else { 1 });
    sidecar.close().await;
    tracing::info!("Shutting down");
    result
}

fn ended_on(signal: &str) -> Result<(), String> {
    tracing::info!("Ending on {signal}");
    Ok(())
}

/// Whether an end is a good one.
fn verdict(end: End) -> Result<(), String> {
    match end {
        End::Stdio(Ok(())) | End::Uapi(Ended::Removed) | End::Device(CloseReason::Requested) => Ok(()),
        End::Stdio(Err(failure)) => Err(format!("[STDIOTunnel] ended: {failure}; see whether its Target is reachable")),
        End::Uapi(ended) => Err(ended.to_string()),
        End::Device(CloseReason::TunDeleted) => Err("the tunnel's stack has ended".to_owned()),
        End::Device(CloseReason::Failed(reason)) => Err(format!("the device failed: {reason}")),
        End::Panicked(name) => Err(format!("{name} failed: internal error, of which the lines before this one tell")),
    }
}

/// Lines carry the name of the file, without its ending, where a daemon's carry the interface's.
pub(super) fn start_log(path: &Path, config: &Config, silent: bool, sandboxed: bool) {
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
    if let Err(error) = logging::start(&name, level, form, sandboxed) {
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
