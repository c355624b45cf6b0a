//! `adit ping`: whether a host inside the tunnel answers, and if it does not, how far the asking came.
//!
//! It makes the tunnel of a sidecar's file, without the services, asks, and ends. It is for before a sidecar is started, or
//! instead of one that does not become ready: beside one that runs by the same file each would take the peer's session from
//! the other, so it refuses where a place that the file listens at is taken.

use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::arguments::PingArguments;
use super::daemon::close_memory;
use super::environment::Environment;
use super::proxy::{load, runtime, start_log};
use crate::device::config::Snapshot;
use crate::proxy::config::{Config, Peer, ResolveStrategy, Service};
use crate::proxy::pings::place_behind;
use crate::proxy::run::Sidecar;

/// Between two pings of one host, as ping(8) has it.
const INTERVAL: Duration = Duration::from_secs(1);

/// Asks the hosts that are named, or those of `CheckAlive`.
pub(super) fn main(arguments: PingArguments) -> ExitCode {
    // Keys pass through this memory.
    close_memory();
    let (path, _, mut config) = match load(arguments.config) {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let mut hosts = arguments.hosts;
    if hosts.is_empty() {
        hosts = config.interface.check_alive.iter().map(ToString::to_string).collect();
    }
    if hosts.is_empty() {
        return super::complain("adit: nobody to ask: name a host, or have CheckAlive in the file\n");
    }
    if let Some(place) = taken(&config) {
        return super::complain(&format!(
            "adit: {place} is in use already: if a sidecar runs by this file, ask its /readyz, or end it first, since two with \
             one key take the peer's session from each other\n"
        ));
    }
    config.services.clear();
    (config.metrics, config.uapi) = (None, None);
    let sandboxed = match Environment::read(|name| std::env::var_os(name)).sandbox {
        Ok(sandbox) => sandbox.unwrap_or(true),
        Err(error) => return super::complain(&format!("adit: {error}\n")),
    };
    start_log(&path, &config, false, sandboxed);
    let answered = runtime(&config, sandboxed).and_then(|(runtime, prepared)| {
        let asking = async {
            let sidecar = Sidecar::start(config.clone(), None, prepared).await.map_err(|error| error.to_string())?;
            let mut answered = true;
            for host in &hosts {
                answered &= ask(&sidecar, &config, host, arguments.count, arguments.timeout).await?;
            }
            sidecar.close().await;
            Ok(answered)
        };
        let answered = runtime.block_on(asking);
        runtime.shutdown_background();
        answered
    });
    match answered {
        Ok(true) => ExitCode::SUCCESS,
        // Which was told.
        Ok(false) => ExitCode::FAILURE,
        Err(reason) => super::complain(&format!("adit: {reason}\n")),
    }
}

/// A place that the file listens at, which somebody else has.
fn taken(config: &Config) -> Option<String> {
    let is_taken = |result: io::Result<()>| result.is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
    let tcp = |at: SocketAddr| is_taken(TcpListener::bind(at).map(drop)).then(|| format!("TCP {at}"));
    let udp = |at: SocketAddr| is_taken(UdpSocket::bind(at).map(drop)).then(|| format!("UDP {at}"));
    let of_services = config.services.iter().find_map(|service| match service {
        Service::Socks5(it) => tcp(it.bind),
        Service::Http(it) => tcp(it.bind),
        Service::TcpClientTunnel(it) => tcp(it.bind),
        Service::Dns(it) => tcp(it.bind),
        Service::UdpProxyTunnel(it) => udp(it.bind),
        Service::TcpServerTunnel(_) | Service::UdpServerTunnel(_) | Service::StdioTunnel(_) => None,
    });
    let of_metrics = || config.metrics.and_then(tcp);
    let of_uapi =
        || config.uapi.as_ref().filter(|path| UnixStream::connect(path).is_ok()).map(|path| path.display().to_string());
    of_services.or_else(of_metrics).or_else(of_uapi)
}

/// Pings one host, and tells of each answer and, if there was none, of the reason. Fails with what could not be written.
async fn ask(sidecar: &Sidecar, config: &Config, host: &str, count: u32, timeout: Duration) -> Result<bool, String> {
    let say = |line: String| writeln!(io::stdout(), "{line}").map_err(|error| format!("standard output: {error}"));
    let address = match resolve(sidecar, config, host).await {
        Ok(address) => address,
        Err(error) => {
            say(format!("{host}: {error}"))?;
            return Ok(false);
        }
    };
    let mut answers = 0;
    for number in 1..=count {
        let next = Instant::now() + INTERVAL;
        match sidecar.net().ping(address, timeout).await {
            Ok(took) => {
                answers += 1;
                say(format!("{address} answered after {:.1} ms", took.as_secs_f64() * 1e3))?;
            }
            Err(error) => say(format!("{address} did not answer: {error}"))?,
        }
        if number < count {
            sleep_until(next).await;
        }
    }
    if answers == 0 {
        say(why_not(&config.peers, &sidecar.snapshot(), address))?;
    }
    Ok(answers > 0)
}

/// The first address of a host that [Resolve] wants.
async fn resolve(sidecar: &Sidecar, config: &Config, host: &str) -> io::Result<IpAddr> {
    if let Ok(address) = host.parse() {
        return Ok(address);
    }
    let found = sidecar.net().resolve(host).await?;
    let wanted = found.into_iter().find(|address| match config.resolve.strategy {
        ResolveStrategy::Auto => true,
        ResolveStrategy::Ipv4 => address.is_ipv4(),
        ResolveStrategy::Ipv6 => address.is_ipv6(),
    });
    wanted.ok_or_else(|| ErrorKind::NotFound.into())
}

/// How far the asking came, and what to look at.
fn why_not(peers: &[Peer], snapshot: &Snapshot, address: IpAddr) -> String {
    let Some(place) = place_behind(peers, address) else {
        return format!("{address} is in no peer's AllowedIPs: add it to the one that it is behind");
    };
    let peer = &peers[place];
    let key = peer.public_key;
    let state = snapshot.peers.iter().find(|state| state.public_key == key);
    if state.is_some_and(|state| state.last_handshake.is_some()) {
        return format!(
            "the peer {key} is there, the host behind it is not: see whether the peer's AllowedIPs have this side's Address, \
             and whether it lets pings through"
        );
    }
    match (state.and_then(|state| state.endpoint), &peer.endpoint) {
        (Some(endpoint), _) => format!(
            "the peer {key} does not answer the handshake at {endpoint}: see whether each side has the other's key, and whether \
             UDP gets there and back"
        ),
        (None, Some(name)) => {
            format!("the endpoint {name} of the peer {key} is not known: see whether the name resolves")
        }
        (None, None) => format!("the peer {key} has no Endpoint, and did not call: give it one"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::device::config::PeerSnapshot;
    use crate::proxy::config::Environment;

    fn config(more: &str) -> Config {
        let text = format!(
            "[Interface]\nPrivateKey=YAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\nAddress=10.0.0.2\n\
             [Peer]\nPublicKey=xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\nAllowedIPs=10.0.0.0/8\n{more}"
        );
        let read = |_: &Path| Err(ErrorKind::NotFound.into());
        Config::parse(&text, Path::new("a"), &Environment::default(), &read).unwrap()
    }

    #[test]
    fn what_is_taken_is_named() {
        let (tcp, udp) = (TcpListener::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let (tcp, udp) = (tcp.local_addr().map(|at| (tcp, at)).unwrap(), udp.local_addr().map(|at| (udp, at)).unwrap());
        for section in ["Socks5", "http", "Metrics"] {
            let config = config(&format!("[{section}]\nBindAddress={}\n", tcp.1));
            assert_eq!(taken(&config), Some(format!("TCP {}", tcp.1)), "{section}");
        }
        let forward = config(&format!("[UDPProxyTunnel]\nBindAddress={}\nTarget=10.0.0.1:1\n", udp.1));
        assert_eq!(taken(&forward), Some(format!("UDP {}", udp.1)));
        assert_eq!(
            taken(&config("[Socks5]\nBindAddress=127.0.0.1:0\n[TCPServerTunnel]\nListenPort=1\nTarget=a:1\n")),
            None
        );
        drop((tcp.0, udp.0));
    }

    #[test]
    fn the_reason_says_how_far_it_came() {
        let check = |more: &str, address: &str, endpoint: Option<&str>, handshake: Option<Duration>, words: &str| {
            let config = config(more);
            let state = PeerSnapshot {
                public_key: config.peers[0].public_key,
                preshared_key: Default::default(),
                endpoint: endpoint.map(|it| it.parse().unwrap()),
                last_handshake: handshake,
                rx_bytes: 0,
                tx_bytes: 0,
                persistent_keepalive: 0,
                allowed_ips: Vec::new(),
            };
            let snapshot = Snapshot { peers: vec![state], ..Snapshot::default() };
            let said = why_not(&config.peers, &snapshot, address.parse().unwrap());
            assert!(said.contains(words), "{said:?} does not say {words:?}");
        };
        check("", "192.0.2.1", None, None, "no peer's AllowedIPs");
        check("", "10.0.0.1", None, None, "has no Endpoint");
        check("Endpoint=vpn.example.org:1\n", "10.0.0.1", None, None, "vpn.example.org:1");
        check("", "10.0.0.1", Some("192.0.2.1:1"), None, "does not answer the handshake at 192.0.2.1:1");
        check("", "10.0.0.1", Some("192.0.2.1:1"), Some(Duration::ZERO), "the host behind it is not");
    }
}
