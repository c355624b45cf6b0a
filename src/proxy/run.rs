//! A sidecar from its start to its end.
//!
//! ```text
//! ports of the host ─▶ stack ─▶ device ─▶ keys, peers ─▶ services' ports ─▶ everything runs
//!                                                    ▲                          │ ended() says why
//!                                        reload() ───┘            close() ◀─────┘
//! ```
//!
//! **Start it within a tokio runtime, wait for [`Sidecar::ended`], hand it each new configuration by
//! [`Sidecar::reload`], and [`close`](Sidecar::close) it.**
//!
//! - What the first configuration wants and cannot be had is an error of the start, and nothing is left behind. Of a later
//!   one it is logged, everything else is done, and the next reload tries again.
//! - The device has threads of its own, and so have the HTTP server and the one of `wg(8)`; the runtime carries the bytes
//!   of the services, and the pings and names of this module.
//! - It ends by itself when the device does, when the UAPI socket is removed, when standard input and output have been
//!   carried, and when a service panics: it is never half alive.
//! - Setting a mark takes a capability that a sidecar usually lacks; without it there is none, and a warning.
//!
//! No signal, no environment: whoever runs it has those.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use super::config::{Config, Interface, Service};
use super::health::{Families, Health};
use super::names::Names;
use super::reload;
use super::services::{Bound, Counters, Failure, Limits, Services, network};
use super::tunnel::Tunnel;
use super::{figures, pings};
use crate::device::config::{ApplyError, Snapshot, Update};
use crate::device::{CloseReason, Device, default_threads};
use crate::metrics;
use crate::netstack::tokio::Net;
use crate::netstack::{self, Netstack};
use crate::uapi::{self, Ended, ListenError, Listener};
use crate::udp::linux::LinuxUdp;

/// The port of DNS servers (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;
/// How long a device may take to have a port at all, before it is told which: one round of its control thread.
const BOUND_WITHIN: Duration = Duration::from_secs(2);
/// How often to look meanwhile.
const BOUND_LOOK: Duration = Duration::from_millis(2);
/// How long the services wait for the endpoints that are names: as long as a resolver waits for its first server
/// (resolv.conf(5), `timeout`).
const NAMES_WITHIN: Duration = Duration::from_secs(5);
/// How long the ends of connections may take to leave, once nobody uses them: an end within a second is promised.
const LAST_SEGMENTS: Duration = Duration::from_millis(100);

/// Why a sidecar could not be started. Says what could not be had, why, and what to change.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The address of `[Metrics]` cannot be listened on.
    Metrics {
        /// Which.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The socket of `[Uapi]` cannot be made.
    Uapi {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: ListenError,
    },
    /// The socket of `[Uapi]` cannot be served.
    Serve(io::Error),
    /// The stack or the device cannot be made.
    Device(io::Error),
    /// No UDP port can be bound outside the tunnel, or not `ListenPort`.
    ListenPort {
        /// 0 for none at all.
        port: u16,
        /// What the system said, as far as that is known.
        source: Option<io::Error>,
    },
    /// The device does not take the configuration.
    Apply(ApplyError),
    /// A service cannot listen.
    Service {
        /// Its section and place.
        name: String,
        /// What the system, or the stack, said.
        source: io::Error,
    },
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metrics { address, source } => {
                write!(f, "[Metrics] cannot be served on {address}: {source}; give another BindAddress, or none")
            }
            Self::Uapi { path, source } => {
                write!(f, "[Uapi] cannot be served on {}: {source}", path.display())?;
                if let Some(reason) = std::error::Error::source(source) {
                    write!(f, ": {reason}")?;
                }
                f.write_str("; name a Socket in a folder that this user may write to, or remove the section")
            }
            Self::Serve(source) => write!(f, "[Uapi] cannot be served: {source}; remove the section"),
            Self::Device(source) => write!(f, "the tunnel cannot be started: {source}; allow the process more"),
            Self::ListenPort { port: 0, source } => {
                f.write_str("no UDP port can be bound")?;
                if let Some(reason) = source {
                    write!(f, ": {reason}")?;
                }
                f.write_str("; see whether the process may open sockets")
            }
            Self::ListenPort { port, source } => {
                write!(f, "ListenPort {port} cannot be bound")?;
                if let Some(reason) = source {
                    write!(f, ": {reason}")?;
                }
                f.write_str("; give another, or none to let the system choose")
            }
            Self::Apply(source) => {
                write!(f, "[Interface] and [Peer] cannot be put into force: {source}")?;
                if let Some(reason) = std::error::Error::source(source) {
                    write!(f, ": {reason}")?;
                }
                f.write_str("; give fewer peers or allowed IPs")
            }
            Self::Service { name, source } => {
                write!(f, "{name} cannot listen: {source}; give another address or port, or end what has this one")
            }
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Metrics { source, .. } | Self::Service { source, .. } => Some(source),
            Self::Serve(source) | Self::Device(source) => Some(source),
            Self::ListenPort { source, .. } => source.as_ref().map(|source| source as _),
            Self::Uapi { source, .. } => Some(source),
            Self::Apply(source) => Some(source),
        }
    }
}

/// Why a sidecar ended by itself.
#[derive(Debug)]
#[non_exhaustive]
pub enum End {
    /// Standard input and output were carried to their end, or not.
    Stdio(Result<(), Failure>),
    /// The UAPI socket was removed, or cannot be served any more.
    Uapi(Ended),
    /// The device ended.
    Device(CloseReason),
    /// A service panicked: this one.
    Panicked(String),
}

/// A service that runs.
struct Running {
    description: Service,
    /// As in `Shown`.
    name: String,
    task: JoinHandle<()>,
}

/// The names and counters of the services that run, for metrics.
type Shown = Arc<Mutex<Vec<(String, Arc<Counters>)>>>;

fn lock(shown: &Shown) -> std::sync::MutexGuard<'_, Vec<(String, Arc<Counters>)>> {
    // Each change leaves it whole.
    shown.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running sidecar.
pub struct Sidecar {
    /// What is in force.
    config: Config,
    /// Where metrics are served if the configuration does not say.
    info: Option<SocketAddr>,
    device: Arc<Device>,
    tunnel: Tunnel,
    services: Services<Tunnel>,
    running: Vec<Running>,
    shown: Shown,
    health: Arc<Health>,
    names: Arc<Names>,
    pings: JoinSet<()>,
    /// Asks for the addresses of names.
    background: JoinSet<()>,
    /// Looks after the health while somebody may ask for it: for that it makes handshakes, which an idle tunnel would not.
    looking: JoinSet<()>,
    metrics: Option<(SocketAddr, metrics::Server)>,
    uapi: Option<uapi::Server>,
    end: UnboundedSender<End>,
    ends: UnboundedReceiver<End>,
}

/// What [`Sidecar::prepare`] has found and made.
#[derive(Debug)]
pub struct Prepared {
    /// Of `[Uapi]`.
    pub socket: Option<Listener>,
    threads: usize,
}

impl fmt::Debug for Sidecar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecar").field("services", &self.running.len()).finish_non_exhaustive()
    }
}

impl Sidecar {
    /// Does what needs files, apart from the rest: afterwards only those of the configuration and of the resolver are.
    ///
    /// # Errors
    /// [`StartError::Uapi`].
    pub fn prepare(config: &Config) -> Result<Prepared, StartError> {
        let socket = config.uapi.as_deref().map(bind_socket).transpose()?;
        Ok(Prepared { socket, threads: default_threads() })
    }

    /// Starts what `config` says, for which it was prepared. `info` is where metrics are served if it has no `[Metrics]`.
    ///
    /// # Errors
    /// [`StartError`]; nothing runs then.
    pub async fn start(config: Config, info: Option<SocketAddr>, prepared: Prepared) -> Result<Self, StartError> {
        let Prepared { socket, threads } = prepared;
        let (end, ends) = unbounded_channel();
        // The ports of the host first: what is wrong with them is known at once.
        let metrics = config.metrics.or(info).map(listen).transpose()?;
        let (device, tunnel) = start_device(&config, threads, &end)?;
        wait_until_bound(&device).await?;
        configure(&device, reload::update(None, &config)).map_err(|error| match error {
            ApplyError::ListenPort(source) => {
                StartError::ListenPort { port: config.interface.listen_port, source: Some(source) }
            }
            error => StartError::Apply(error),
        })?;

        let shown = Shown::default();
        let health = Arc::new(Health::new(&device, families(&shown, &tunnel)));
        let names = Names::new(&device);
        let services = Services::new(tunnel.clone(), config.resolve, Limits::default());
        let mut sidecar = Self {
            info,
            device,
            tunnel,
            services,
            running: Vec::new(),
            shown,
            health,
            names,
            pings: JoinSet::new(),
            background: JoinSet::new(),
            looking: JoinSet::new(),
            metrics: None,
            uapi: None,
            end,
            ends,
            config,
        };
        // Without an endpoint the first connections would be told that there is no way.
        sidecar.names.set_peers(&sidecar.config.peers);
        sidecar.names.ask_first(NAMES_WITHIN).await;
        for service in &sidecar.config.services.clone() {
            sidecar.begin(service).map_err(|source| StartError::Service { name: name(service, &[]), source })?;
        }
        if let Some(listener) = socket {
            let end = sidecar.end.clone();
            let ended = move |reason| drop(end.send(End::Uapi(reason)));
            sidecar.uapi = Some(uapi::serve(listener, sidecar.device.clone(), ended).map_err(StartError::Serve)?);
        }
        if let Some((address, listener)) = metrics {
            sidecar.show(address, listener)?;
        }
        sidecar.watch_peers();
        let names = Arc::clone(&sidecar.names);
        sidecar.background.spawn(names.follow());
        tracing::info!("The sidecar runs with {} services", sidecar.running.len());
        Ok(sidecar)
    }

    /// Waits until it ends by itself. May be dropped and called again.
    pub async fn ended(&mut self) -> End {
        match self.ends.recv().await {
            Some(end) => end,
            // Never: `self` has a sender, too.
            None => std::future::pending().await,
        }
    }

    /// The network inside the tunnel.
    pub fn net(&self) -> &Net {
        self.tunnel.net()
    }

    /// What its device is and has done.
    pub fn snapshot(&self) -> Snapshot {
        self.device.snapshot()
    }

    /// Puts `new` into force. What has not changed is left alone, what cannot be done is logged.
    pub async fn reload(&mut self, new: Config) {
        let mut new = new;
        for what in reload::needs_restart(&self.config, &new) {
            tracing::warn!("{what} has changed: the change needs a new start, and is passed over until then");
        }
        // So that the next one is compared with what is in force.
        (new.interface.mtu, new.log, new.uapi) = (self.config.interface.mtu, self.config.log, self.config.uapi.take());

        if let Err(error) = configure(&self.device, reload::update(Some(&self.config), &new)) {
            let reason = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            tracing::error!("Of [Interface] and [Peer] not everything could be changed: {error}{reason}");
            if matches!(error, ApplyError::ListenPort(_)) {
                new.interface.listen_port = self.config.interface.listen_port;
            }
        }
        let (before, now) = (&self.config.interface, &new.interface);
        if before.addresses != now.addresses
            && let Err(error) = self.tunnel.net().blocking().set_addresses(now.addresses.clone())
        {
            tracing::error!("Address could not be changed: {error}");
            new.interface.addresses = before.addresses.clone();
        }
        self.tunnel.set_dns(resolvers(&new.interface), new.interface.search.clone());

        self.services.set_resolve(new.resolve);
        let wanted = std::mem::take(&mut new.services);
        self.config = new;
        self.change_services(&wanted).await;
        // What runs is what the next one is compared with, so that a failed one is tried again.
        self.config.services = self.running.iter().map(|running| running.description.clone()).collect();
        self.change_metrics();
        self.watch_peers();
        tracing::info!("The configuration was read again, and is in force");
    }

    /// Ends services that are not wanted any more, and begins what is missing.
    async fn change_services(&mut self, wanted: &[Service]) {
        let is_stdio = |service: &Service| matches!(service, Service::StdioTunnel(_));
        let old: Vec<Service> = self.running.iter().map(|running| running.description.clone()).collect();
        let gone = reload::services(&old, wanted).end;
        let mut place = 0;
        let (kept, ending): (Vec<_>, Vec<_>) = std::mem::take(&mut self.running).into_iter().partition(|running| {
            let ends = gone.contains(&place);
            place += 1;
            is_stdio(&running.description) || !ends
        });
        self.running = kept;
        for running in ending {
            running.task.abort();
            // Its port is free when the task is gone.
            let _ = running.task.await;
            lock(&self.shown).retain(|(name, _)| *name != running.name);
            tracing::info!("{} ended", running.name);
        }
        let running: Vec<Service> = self.running.iter().map(|running| running.description.clone()).collect();
        for service in reload::services(&running, wanted).begin {
            if is_stdio(service) {
                continue;
            }
            if let Err(source) = self.begin(service) {
                tracing::error!("{}", StartError::Service { name: name(service, &[]), source });
            }
        }
    }

    /// Serves metrics where it is said now.
    fn change_metrics(&mut self) {
        let wanted = self.config.metrics.or(self.info);
        let present = self.metrics.as_ref().map(|(address, _)| *address);
        if wanted == present {
            return;
        }
        let changed = match wanted {
            None => {
                self.metrics = None;
                Ok(())
            }
            Some(address) => listen(address).and_then(|(address, listener)| self.show(address, listener)),
        };
        if let Err(error) = changed {
            tracing::error!("{error}; it stays as it was");
        }
    }

    fn show(&mut self, address: SocketAddr, listener: TcpListener) -> Result<(), StartError> {
        let server = metrics::serve(listener, self.health.clone());
        let server = server.map_err(|source| StartError::Metrics { address, source })?;
        tracing::info!("Metrics are served on http://{}/metrics", server.address());
        self.metrics = Some((address, server));
        Ok(())
    }

    /// Takes note of whom to watch: by handshakes, by pings, by their names.
    fn watch_peers(&mut self) {
        for address in pings::unreachable(&self.config) {
            tracing::warn!("CheckAlive {address} is in no peer's AllowedIPs: it is not asked; add it to one");
        }
        self.health.require(pings::required(&self.config));
        self.names.set_peers(&self.config.peers);
        self.looking = JoinSet::new();
        if self.metrics.is_some() {
            let health = Arc::clone(&self.health);
            self.looking.spawn(async move { health.watch().await });
        }
        // Those of before end here.
        self.pings = pings::start(&self.config, self.tunnel.net(), &self.health);
    }

    /// Takes the ports of a service, and serves.
    fn begin(&mut self, service: &Service) -> io::Result<()> {
        let bound = self.services.bind(service)?;
        let name = name(service, bound.local_addrs());
        tracing::info!("{name} listens");
        lock(&self.shown).push((name.clone(), bound.counters()));
        let task =
            tokio::spawn(carry(bound, matches!(service, Service::StdioTunnel(_)), name.clone(), self.end.clone()));
        self.running.push(Running { description: service.clone(), name, task });
        Ok(())
    }

    /// Ends it in order: first who comes to it, then what they had open, then the tunnel.
    pub async fn close(self) {
        let Self { device, tunnel, running, mut pings, mut background, mut looking, metrics, uapi, .. } = self;
        for running in running {
            running.task.abort();
            let _ = running.task.await;
        }
        pings.shutdown().await;
        background.shutdown().await;
        looking.shutdown().await;
        // The stack has ends of connections to send, and the peers to acknowledge them.
        let deadline = Instant::now() + LAST_SEGMENTS;
        while tunnel.net().stats().tcp_open > 0 && Instant::now() < deadline {
            tokio::time::sleep(BOUND_LOOK).await;
        }
        drop(metrics);
        drop(uapi);
        drop(device);
    }
}

/// Serves, and tells the end: of standard input and output, and of a service that panics.
async fn carry(bound: Bound, is_stdio: bool, name: String, end: UnboundedSender<End>) {
    let alarm = Alarm { name, end };
    let result = bound.run().await;
    if is_stdio {
        // Refused only when the sidecar has ended.
        let _ = alarm.end.send(End::Stdio(result));
    }
}

/// Tells of a panic of the service that it is dropped with.
struct Alarm {
    name: String,
    end: UnboundedSender<End>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.end.send(End::Panicked(std::mem::take(&mut self.name)));
        }
    }
}

fn listen(address: SocketAddr) -> Result<(SocketAddr, TcpListener), StartError> {
    let listener = network::listener(address).map_err(|source| StartError::Metrics { address, source })?;
    Ok((address, listener))
}

fn bind_socket(path: &Path) -> Result<Listener, StartError> {
    // The configuration has made sure of both.
    let (folder, name) = (path.parent().unwrap_or(Path::new("/")), path.file_stem().unwrap_or_default());
    Listener::bind(folder, name).map_err(|source| StartError::Uapi { path: path.to_owned(), source })
}

/// A stack, and a device on it that has neither key nor port yet.
fn start_device(
    config: &Config,
    threads: usize,
    end: &UnboundedSender<End>,
) -> Result<(Arc<Device>, Tunnel), StartError> {
    let interface = &config.interface;
    let mut stack = netstack::Config::new(interface.addresses.clone());
    // As in the log.
    if let Some(name) = config.files.first().and_then(|file| file.file_stem()) {
        stack.name = name.to_string_lossy().into_owned();
    }
    stack.mtu = interface.mtu;
    stack.dns = resolvers(interface);
    stack.search = interface.search.clone();
    let (tun, net) = Netstack::pair(stack).map_err(StartError::Device)?;
    let end = end.clone();
    let device = Device::builder(tun, LinuxUdp)
        .threads(threads)
        .on_close(move |reason| drop(end.send(End::Device(reason.clone()))))
        .start()
        .map_err(StartError::Device)?;
    Ok((Arc::new(device), Tunnel::new(net.into())))
}

fn resolvers(interface: &Interface) -> Vec<SocketAddr> {
    interface.dns.iter().map(|&server| SocketAddr::new(server, DNS_PORT)).collect()
}

/// A device binds a port when it learns that its link is up. Only from then on is a port that it cannot have an error.
async fn wait_until_bound(device: &Device) -> Result<(), StartError> {
    let deadline = Instant::now() + BOUND_WITHIN;
    while !device.figures().is_bound {
        if Instant::now() > deadline {
            return Err(StartError::ListenPort { port: 0, source: None });
        }
        tokio::time::sleep(BOUND_LOOK).await;
    }
    Ok(())
}

/// Makes the change in parts, so that what cannot be had of one does not keep out the others: the mark last, and without
/// it where it is not permitted.
fn configure(device: &Device, mut update: Update) -> Result<(), ApplyError> {
    let port = Update { listen_port: update.listen_port.take(), ..Update::default() };
    let mark = Update { fwmark: update.fwmark.take(), ..Update::default() };
    device.apply(update)?;
    let outcome = device.apply(port);
    if mark.fwmark.is_some()
        && let Err(error) = device.apply(mark)
    {
        let reason = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
        tracing::warn!("FwMark has no effect: {error}{reason}; it needs CAP_NET_ADMIN");
    }
    outcome
}

fn families(shown: &Shown, tunnel: &Tunnel) -> Families {
    let (shown, net) = (Arc::clone(shown), tunnel.net().clone());
    Box::new(move || {
        let services: Vec<_> = lock(&shown).iter().map(|(name, it)| (name.clone(), it.figures())).collect();
        let mut families = figures::of_services(&services);
        families.extend(figures::of_netstack(&net.stats()));
        families
    })
}

/// What a service is called in the log and in metrics: its section and where it listens, which no other one has. What the
/// system chose of it stands in `addresses`.
fn name(service: &Service, addresses: &[SocketAddr]) -> String {
    let at = |bind: SocketAddr| addresses.first().copied().unwrap_or(bind);
    match service {
        Service::Socks5(it) => format!("Socks5 {}", at(it.bind)),
        Service::Http(it) => format!("http {}", at(it.bind)),
        Service::TcpClientTunnel(it) => format!("TCPClientTunnel {}", at(it.bind)),
        Service::TcpServerTunnel(it) => format!("TCPServerTunnel {}", it.listen_port),
        Service::UdpProxyTunnel(it) => format!("UDPProxyTunnel {}", at(it.bind)),
        Service::UdpServerTunnel(it) => format!("UDPServerTunnel {}", it.listen_port),
        Service::StdioTunnel(_) => "STDIOTunnel".to_owned(),
        Service::Dns(it) => format!("Dns {}", at(it.bind)),
    }
}
