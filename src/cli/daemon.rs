//! One interface, from its making to its end.
//!
//! ```text
//! TUN device ─▶ UAPI socket ─┬─ background ─▶ another process goes on from here; end when it serves
//!                            └─ foreground ─▶ port of the metrics, if they are wanted ─▶ capabilities ─▶ sandbox ─▶ device
//!                                                              end ◀─ wait ◀─ "serving" ◀─ servers ◀─┘
//! ```
//!
//! - Both edges exist before anybody is told of either, and the one who started the program is told
//!   last: what follows it in a script finds an interface and a socket that answers.
//! - Whatever fails is undone by dropping what was made: nothing is left behind.
//! - The end comes by SIGTERM, SIGINT or SIGHUP, by removing the socket, or by deleting the interface,
//!   and takes no longer than [`END_LIMIT`], whatever hangs.
//! - Threads have only the capabilities in [`KEPT`]: the others are given up before threads start,
//!   and after everything was opened that needed them. The same holds for [`sandbox`].

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::arguments::DaemonArguments;
use super::background::{self, Answer};
use super::environment::{self, Environment, EnvironmentError, Numbers};
use super::logging::{self, LogForm, LogLevel};
use super::memory::{Need, Shortage};
use super::metrics;
use super::notify::Notifier;
use super::sandbox::{self, Files, Role};
use super::workers::{List, Workers};
use crate::device::{CloseReason, Device};
use crate::metrics::Server as MetricsServer;
use crate::sys::capabilities::{self, Capabilities};
use crate::sys::process;
use crate::sys::signal::Signals;
use crate::sys::thread::allowed_processors;
use crate::tun::Tun;
use crate::tun::linux::{LinuxTun, OpenError};
use crate::uapi::{Ended, ListenError, Listener, Server, serve, socket};
use crate::udp::linux::{FilteredUdp, LinuxUdp};

/// How long the end may take: promised is a second, and the log wants some of it.
const END_LIMIT: Duration = Duration::from_millis(800);
/// How long to wait for whoever has the name or the socket: as long as the end of a daemon may take.
/// `ip link del wg0`, or even `kill -9`, is done before the daemon is, and the next command may be us.
const PREDECESSOR_LIMIT: Duration = Duration::from_secs(1);
/// How long to wait before looking again whether it has gone.
const PREDECESSOR_PAUSE: Duration = Duration::from_millis(10);
/// How long the last lines may take to be written.
const FLUSH_LIMIT: Duration = Duration::from_millis(100);

/// What the running daemon needs: NET_ADMIN to set marks on sockets and buffers beyond the system's
/// limits whenever the port is bound again, and NET_BIND_SERVICE when that is a low port.
const KEPT: Capabilities = capabilities::NET_ADMIN.union(capabilities::NET_BIND_SERVICE);

/// Signals that end the daemon. SIGHUP is the end of the terminal that a foreground process has.
const ENDING_SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP];

/// Why there is no interface, or no longer one.
#[derive(Debug)]
enum Failure {
    Environment(EnvironmentError),
    Memory(Shortage),
    /// `source` is the option or variable that named it.
    Processor {
        source: &'static str,
        processor: usize,
        allowed: Vec<usize>,
    },
    Processors {
        source: &'static str,
        error: io::Error,
    },
    Descriptor {
        variable: &'static str,
        number: RawFd,
        error: io::Error,
    },
    Tun(OpenError),
    Uapi(ListenError),
    Serve(io::Error),
    Metrics {
        address: SocketAddr,
        error: io::Error,
    },
    Signals(io::Error),
    Start(io::Error),
    Background(String),
    Device(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Environment(error) => write!(f, "{error}"),
            Self::Memory(shortage) => write!(f, "{shortage}"),
            Self::Processor { source, processor, allowed } => write!(
                f,
                "{source} names processor {processor}, which does not exist or may not be used: name some of {}",
                List(allowed)
            ),
            Self::Processors { source, error } => {
                write!(f, "{source} cannot be used: which processors there are is not known: {error}; leave it out")
            }
            Self::Descriptor { variable, number, error } => {
                write!(f, "{variable}={number} cannot be used: {error}; hand an open descriptor over, or unset it")
            }
            Self::Tun(error @ OpenError::NameTaken(name)) => {
                write!(
                    f,
                    "Failed to create TUN device: {error}: choose another name, or end what has it (ip link del {name})"
                )
            }
            Self::Tun(error @ OpenError::NotPermitted(_)) => write!(
                f,
                "Failed to create TUN device: {}; run it as root, or with CAP_NET_ADMIN and access to /dev/net/tun",
                Chain(error)
            ),
            Self::Tun(error) => write!(f, "Failed to create TUN device: {}", Chain(error)),
            Self::Uapi(error @ ListenError::InUse(path)) => {
                write!(
                    f,
                    "Failed to open UAPI socket: {error}: end the daemon that answers there (rm {})",
                    path.display()
                )
            }
            Self::Uapi(error) => write!(f, "Failed to open UAPI socket: {}", Chain(error)),
            Self::Serve(error) => write!(f, "Failed to listen on UAPI socket: {error}"),
            Self::Metrics { address, error } => write!(
                f,
                "Failed to serve metrics on {address}: {error}; give another address or port, or none \
                 (--metrics, {})",
                environment::METRICS
            ),
            Self::Signals(error) => write!(f, "Failed to set up signals: {error}"),
            Self::Start(error) => write!(f, "Failed to start the device: {error}"),
            Self::Background(reason) => f.write_str(reason),
            Self::Device(reason) => write!(f, "The device failed: {reason}"),
        }
    }
}

/// An error with all that led to it, in one line.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.0.to_string();
        let mut source = self.0.source();
        while let Some(error) = source {
            // Some errors already say their source.
            let text = error.to_string();
            if !line.ends_with(&text) {
                line += ": ";
                line += &text;
            }
            source = error.source();
        }
        f.write_str(&line)
    }
}

/// Why a daemon ends.
enum End {
    Signal(libc::c_int),
    Uapi(Ended),
    Device(CloseReason),
}

/// How to serve, as the command line and the environment say together.
struct Settings {
    interface: String,
    foreground: bool,
    level: LogLevel,
    format: LogForm,
    /// Somebody asked for log lines, so a background process keeps standard error.
    wants_log: bool,
    dumpable: bool,
    sandboxed: bool,
    notify_socket: Option<OsString>,
}

/// What was handed over by number.
#[derive(Default)]
struct Handed {
    tun: Option<OwnedFd>,
    uapi: Option<OwnedFd>,
    ready: Option<OwnedFd>,
}

impl Handed {
    /// Before anything is opened: a number that is not open must not have become something of ours.
    fn adopt(numbers: Result<Numbers, EnvironmentError>) -> Result<Self, Failure> {
        let numbers = numbers.map_err(Failure::Environment)?;
        let adopt = |variable, number: Option<RawFd>| match number.map(|number| (number, process::adopt(number))) {
            None => Ok(None),
            Some((_, Ok(fd))) => Ok(Some(fd)),
            Some((number, Err(error))) => Err(Failure::Descriptor { variable, number, error }),
        };
        Ok(Self {
            tun: adopt(environment::TUN_FD, numbers.tun)?,
            uapi: adopt(environment::UAPI_FD, numbers.uapi)?,
            ready: adopt(environment::READY_FD, numbers.ready)?,
        })
    }
}

/// Where metrics are served: what the command line says before the environment.
fn choose_metrics(argument: Option<SocketAddr>, environment: &Environment) -> Result<Option<SocketAddr>, Failure> {
    match argument {
        None => environment.metrics.clone().map_err(Failure::Environment),
        given => Ok(given),
    }
}

/// How the log is written, likewise; what cannot be understood is told as text.
fn choose_format(argument: Option<LogForm>, environment: &Environment) -> (LogForm, Result<(), Failure>) {
    match (argument, &environment.log_format) {
        (Some(format), _) => (format, Ok(())),
        (None, Ok(format)) => (format.unwrap_or_default(), Ok(())),
        (None, Err(error)) => (LogForm::Text, Err(Failure::Environment(error.clone()))),
    }
}

/// What is chosen of the device and what surrounds it.
struct Choices {
    workers: Workers,
    /// Whether the kernel is to check mac1, too.
    mac1_filter: bool,
    metrics: Option<SocketAddr>,
}

/// The workers' settings, the command line's before the environment's.
fn choose_workers(arguments: Workers, environment: &Environment) -> Result<Workers, Failure> {
    let asked = |error: &EnvironmentError| Failure::Environment(error.clone());
    let threads = match arguments.threads {
        None => *environment.threads.as_ref().map_err(asked)?,
        given => given,
    };
    let spin = match arguments.spin {
        None => *environment.spin.as_ref().map_err(asked)?,
        given => given,
    };
    let (source, processors) = match arguments.processors {
        None => (environment::CPUS, environment.processors.clone().map_err(Failure::Environment)?),
        given => ("--cpus", given),
    };
    if let Some(processors) = &processors {
        let allowed = allowed_processors().map_err(|error| Failure::Processors { source, error })?;
        if let Some(&processor) = processors.iter().find(|processor| !allowed.contains(processor)) {
            return Err(Failure::Processor { source, processor, allowed });
        }
    }
    Ok(Workers { threads, spin, processors })
}

/// Serves an interface, here or in the background. `words` is the whole command line.
pub(super) fn main(arguments: DaemonArguments, words: &[OsString]) -> ExitCode {
    let environment = Environment::read(|name| std::env::var_os(name));
    let (format, format_is_known) = choose_format(arguments.log_format, &environment);
    let sandboxed = environment.sandbox.clone().map_err(Failure::Environment);
    // What cannot be understood ends the program before it matters.
    let is_sandboxed = !matches!(sandboxed, Ok(Some(false)));
    let choices = format_is_known.and_then(|()| {
        sandboxed?;
        let mac1_filter = environment.mac1_filter.clone().map_err(Failure::Environment)?.unwrap_or(true);
        let metrics = choose_metrics(arguments.metrics, &environment)?;
        let workers = choose_workers(arguments.workers, &environment)?;
        Need::of_daemon(workers.count()).check().map_err(Failure::Memory)?;
        Ok(Choices { workers, mac1_filter, metrics })
    });
    let handed = Handed::adopt(environment.numbers);
    let asked_level = arguments.log_level.or(environment.log_level);
    let level = LogLevel::parse(asked_level.as_deref());
    let settings = Settings {
        interface: arguments.interface,
        foreground: arguments.foreground || environment.foreground,
        level,
        format,
        wants_log: asked_level.is_some() && level != LogLevel::Silent,
        dumpable: arguments.dumpable || environment.dumpable,
        sandboxed: is_sandboxed,
        notify_socket: environment.notify_socket,
    };
    let result = match (handed, choices) {
        (Ok(Handed { tun, uapi, ready }), Ok(choices)) if settings.foreground => {
            in_foreground(&settings, choices, tun, uapi, Answer::new(ready))
        }
        (Ok(Handed { tun, uapi, ready: _ }), Ok(choices)) => {
            start_log(&settings);
            in_background(&settings, choices.workers.queues(), tun, uapi, words)
                .map_err(|failure| (failure, Answer::new(None)))
        }
        // The log would need some for its thread: this one line is written by whoever waits for the answer, or here.
        (Ok(handed), Err(failure @ Failure::Memory(_))) => {
            let answer = Answer::new(handed.ready);
            if !answer.is_awaited() {
                return super::complain(&format!("adit: {failure}\n"));
            }
            Err((failure, answer))
        }
        (Ok(handed), Err(failure)) => {
            start_log(&settings);
            Err((failure, Answer::new(handed.ready)))
        }
        (Err(failure), _) => {
            start_log(&settings);
            Err((failure, Answer::new(None)))
        }
    };
    let status = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((failure, answer)) => {
            // One line: whoever waits for the answer prints it.
            if answer.is_awaited() {
                answer.failed(&failure.to_string());
            } else {
                tracing::error!("{failure}");
            }
            ExitCode::FAILURE
        }
    };
    logging::flush(FLUSH_LIMIT);
    status
}

fn start_log(settings: &Settings) {
    if let Err(error) = logging::start(&settings.interface, settings.level, settings.format, settings.sandboxed) {
        eprintln!("adit: nothing will be logged: {error}");
    }
}

/// The two edges, made or taken over.
struct Edges {
    tun: LinuxTun,
    listener: Listener,
}

impl Edges {
    fn open(interface: &str, queues: usize, tun: Option<OwnedFd>, uapi: Option<OwnedFd>) -> Result<Self, Failure> {
        let patience = Instant::now() + PREDECESSOR_LIMIT;
        let tun = match tun {
            Some(fd) => LinuxTun::from_fd(fd),
            None => repeated(
                patience,
                || LinuxTun::create(interface, queues),
                |error| matches!(error, OpenError::NameTaken(_)),
            ),
        };
        let tun = tun.map_err(Failure::Tun)?;
        // The name as it came to be: the system may have chosen it.
        let name = tun.name();
        logging::set_interface(&name);
        let listener = match uapi {
            Some(fd) => Listener::inherit(fd, socket::DIRECTORY, &name),
            None => repeated(
                patience,
                || Listener::bind(socket::DIRECTORY, &name),
                |error| matches!(error, ListenError::InUse(_)),
            ),
        };
        let listener = listener.map_err(Failure::Uapi)?;
        Ok(Self { tun, listener })
    }

    /// What they need of the file system from now on: the socket is removed at the end.
    fn files(&self) -> Files {
        let folder = self.listener.path().parent().map(Path::to_owned);
        Files { remove: folder.into_iter().collect(), ..Files::default() }
    }
}

/// Tries until it works, fails for good, or `patience` is over.
fn repeated<T, E>(
    patience: Instant,
    attempt: impl Fn() -> Result<T, E>,
    may_pass: impl Fn(&E) -> bool,
) -> Result<T, E> {
    loop {
        match attempt() {
            Err(error) if may_pass(&error) && Instant::now() < patience => thread::sleep(PREDECESSOR_PAUSE),
            result => return result,
        }
    }
}

/// Makes the edges and has another process serve them. Dropping the edges closes the device (which
/// ends it, unless the other process has it) and removes the socket.
fn in_background(
    settings: &Settings,
    queues: usize,
    tun: Option<OwnedFd>,
    uapi: Option<OwnedFd>,
    words: &[OsString],
) -> Result<(), Failure> {
    let Edges { tun, listener } = Edges::open(&settings.interface, queues, tun, uapi)?;
    background::go_on(words, tun.fd(), listener.as_fd(), settings.wants_log).map_err(Failure::Background)?;
    // The socket's file is the other process's from here on.
    drop(listener.into_fd());
    Ok(())
}

/// Serves until the end. A failure before the answer was given comes with the answer.
fn in_foreground(
    settings: &Settings,
    Choices { workers, mac1_filter, metrics }: Choices,
    tun: Option<OwnedFd>,
    uapi: Option<OwnedFd>,
    answer: Answer,
) -> Result<(), (Failure, Answer)> {
    // Before the first thread, so that it holds for all.
    let signals = Signals::block(&ENDING_SIGNALS);
    start_log(settings);
    if answer.is_awaited()
        && let Err(error) = process::set_name(c"adit")
    {
        tracing::debug!("The process keeps the name of its link: {error}");
    }
    if settings.dumpable {
        open_memory();
    } else {
        close_memory();
    }
    let started = signals.map_err(Failure::Signals).and_then(|signals| {
        let mut edges = Edges::open(&settings.interface, workers.queues(), tun, uapi)?;
        let metrics = metrics.map(listen).transpose()?;
        tracing::info!("Starting adit version {}", env!("CARGO_PKG_VERSION"));
        // The last look at a file.
        let workers = Workers { threads: Some(workers.count()), ..workers };
        edges.tun.attach_queues(workers.queues());
        let udp = if mac1_filter { filtered_udp() } else { None };
        give_up_capabilities();
        if settings.sandboxed {
            sandbox::enter(Role::Daemon, edges.files());
        }
        Daemon::start(edges, udp, workers, metrics, signals)
    });
    match started {
        Ok(daemon) => daemon
            .run(answer, &Notifier::new(settings.notify_socket.as_deref()))
            .map_err(|failure| (failure, Answer::new(None))),
        Err(failure) => Err((failure, answer)),
    }
}

/// Sockets on which the kernel checks mac1, if they can be had: what is lost without them is speed under a flood.
fn filtered_udp() -> Option<FilteredUdp> {
    match FilteredUdp::new() {
        Ok(udp) => {
            tracing::debug!("The kernel checks mac1, too");
            Some(udp)
        }
        Err(error) => {
            tracing::debug!("The kernel does not check mac1: {error}");
            None
        }
    }
}

/// The port that metrics are to be served on, with the address that was asked for.
fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Failure> {
    let patience = Instant::now() + PREDECESSOR_LIMIT;
    let in_use = |error: &io::Error| error.kind() == io::ErrorKind::AddrInUse;
    let listener = repeated(patience, || TcpListener::bind(address), in_use);
    listener.map(|listener| (listener, address)).map_err(|error| Failure::Metrics { address, error })
}

/// A device that is served.
struct Daemon {
    name: String,
    device: Arc<Device>,
    server: Server,
    metrics: Option<MetricsServer>,
    ends: Receiver<End>,
}

impl Daemon {
    fn start(
        edges: Edges,
        udp: Option<FilteredUdp>,
        workers: Workers,
        metrics: Option<(TcpListener, SocketAddr)>,
        signals: Signals,
    ) -> Result<Self, Failure> {
        let Edges { tun, listener } = edges;
        let name = tun.name();
        let (end, ends) = channel();
        // What any of the three sends is refused only when the end has come already.
        let (on_close, on_ended) = (end.clone(), end.clone());
        let builder = match udp {
            Some(udp) => Device::builder(tun, udp),
            None => Device::builder(tun, LinuxUdp),
        };
        let builder = builder.on_close(move |reason| drop(on_close.send(End::Device(reason.clone()))));
        let device = workers.build(builder).start().map_err(Failure::Start)?;
        let device = Arc::new(device);
        tracing::info!("Device started");
        let server = serve(listener, device.clone(), move |ended| drop(on_ended.send(End::Uapi(ended))))
            .map_err(Failure::Serve)?;
        tracing::info!("UAPI listener started");
        let metrics = metrics
            .map(|(listener, address)| {
                metrics::start(listener, &device).map_err(|error| Failure::Metrics { address, error })
            })
            .transpose()?;
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                if let Ok(signal) = signals.wait() {
                    drop(end.send(End::Signal(signal)));
                }
            })
            .map_err(Failure::Signals)?;
        Ok(Self { name, device, server, metrics, ends })
    }

    fn run(self, answer: Answer, notifier: &Notifier) -> Result<(), Failure> {
        let Self { name, device, server, metrics, ends } = self;
        let end = match answer.serving() {
            Ok(()) => {
                notifier.ready(&name);
                // All who could send have gone only if the device and the server went without a word.
                ends.recv().unwrap_or_else(|_| End::Device(CloseReason::Failed("its threads are gone".to_owned())))
            }
            // Whoever started us has gone: as if they had ended us.
            Err(_) => End::Signal(libc::SIGTERM),
        };
        let result = verdict(end);
        notifier.stopping();
        exit_at_the_latest(if result.is_ok() { 0 } else { 1 });
        tracing::info!("Device closing");
        drop(metrics);
        server.stop();
        drop(device);
        tracing::info!("Shutting down");
        result
    }
}

/// Whether an end is a good one.
fn verdict(end: End) -> Result<(), Failure> {
    match end {
        End::Signal(signal) => {
            tracing::info!("Ending on signal {signal}");
            Ok(())
        }
        End::Uapi(Ended::Removed) | End::Device(CloseReason::Requested) => Ok(()),
        End::Device(CloseReason::TunDeleted) => {
            tracing::info!("Ending: the interface was deleted");
            Ok(())
        }
        End::Device(CloseReason::Failed(reason)) => Err(Failure::Device(reason)),
        End::Uapi(ended) => Err(Failure::Device(ended.to_string())),
    }
}

/// Ends the process with this status when [`END_LIMIT`] is over, if it still runs then.
pub(super) fn exit_at_the_latest(status: i32) {
    let exit = move || {
        thread::sleep(END_LIMIT);
        tracing::error!("The end took too long and was cut short");
        logging::flush(FLUSH_LIMIT);
        std::process::exit(status);
    };
    if let Err(error) = thread::Builder::new().name("end".to_owned()).spawn(exit) {
        tracing::debug!("Nothing limits how long the end takes: {error}");
    }
}

/// Lets debuggers and core dumps see this process's memory, which the kernel may have closed to them at its start.
fn open_memory() {
    if let Err(error) = process::set_dumpable(true) {
        tracing::warn!("The process's memory could not be opened to debuggers: {error}");
    }
}

/// Keeps this process's memory, which has keys in it, from core dumps and from debuggers. Where that is not possible, it
/// says so.
pub(super) fn close_memory() {
    // First, since the files of a process that is not dumpable belong to root. It is for whoever makes a core all the same,
    // as root may: there is no memory in it. Without /proc only that is lost.
    if let Err(error) = std::fs::write("/proc/self/coredump_filter", "0") {
        tracing::debug!("The process's memory would be in a core made by root: {error}");
    }
    if let Err(error) = process::set_dumpable(false) {
        tracing::warn!("The process's memory could not be closed to debuggers: {error}");
    }
}

/// Keeps [`KEPT`] only. Where that is not possible, the daemon works all the same, and says so.
fn give_up_capabilities() {
    match capabilities::bound_to(KEPT) {
        Ok(()) => {}
        // Usual in a container, and for a user who was given just the capabilities that are needed.
        Err(error) => tracing::debug!("The bounding set stays as it is: {error}"),
    }
    if let Err(error) = capabilities::keep_only(KEPT) {
        tracing::warn!("Capabilities that are not needed could not be given up: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [F-21] What a thread's panic makes of the device and of its server ends the daemon as a failure, with a line.
    #[test]
    fn f_21_a_failure_inside_is_a_failure_of_the_daemon() {
        let device = End::Device(CloseReason::Failed("internal error: one is none".to_owned()));
        let check = |end, expected: &str| assert_eq!(verdict(end).unwrap_err().to_string(), expected);
        check(device, "The device failed: internal error: one is none");
        check(End::Uapi(Ended::Panicked), "The device failed: a thread of the UAPI panicked");
        for good in [End::Signal(libc::SIGTERM), End::Uapi(Ended::Removed), End::Device(CloseReason::TunDeleted)] {
            assert!(verdict(good).is_ok());
        }
    }
}
