//! `CheckAlive`: which addresses are behind which peer, and the pings to them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::config::{Config, Peer};
use super::health::{Health, Pings, Required};
use crate::device::config::AllowedIp;
use crate::netstack::tokio::Net;

/// The peers that must be reachable for the sidecar to be ready, each with the addresses behind it that are to answer.
/// A peer with such an address is one of them, whatever else is said of it.
pub(super) fn required(config: &Config) -> Vec<Required> {
    let interface = &config.interface;
    let place = |address| place_behind(&config.peers, address);
    let required = config.peers.iter().enumerate().filter_map(|(number, peer)| {
        let behind = interface.check_alive.iter().copied().filter(|&address| place(address) == Some(number));
        let addresses: Vec<IpAddr> = behind.collect();
        let pings = (!addresses.is_empty()).then_some(Pings { addresses, interval: interface.check_alive_interval });
        (peer.required || pings.is_some()).then_some(Required { public_key: peer.public_key, pings })
    });
    required.collect()
}

/// Addresses of `CheckAlive` that no peer is there for: they never answer.
pub(super) fn unreachable(config: &Config) -> impl Iterator<Item = IpAddr> {
    let addresses = config.interface.check_alive.iter().copied();
    addresses.filter(|&address| place_behind(&config.peers, address).is_none())
}

/// Which of the peers what is sent to the address goes to: the one with the longest prefix, of several the last.
pub(crate) fn place_behind(peers: &[Peer], address: IpAddr) -> Option<usize> {
    let prefixes = peers.iter().enumerate().flat_map(|(number, peer)| {
        peer.allowed_ips.iter().filter(move |prefix| contains(prefix, address)).map(move |it| (it.prefix_len, number))
    });
    prefixes.max().map(|(_, number)| number)
}

fn contains(prefix: &AllowedIp, address: IpAddr) -> bool {
    prefix.address.is_ipv4() == address.is_ipv4()
        && AllowedIp { address, prefix_len: prefix.prefix_len }.masked() == prefix.masked()
}

/// Pings each address of `CheckAlive` at its interval, and tells `health` of the answers, until the set is dropped.
pub(super) fn start(config: &Config, net: &Net, health: &Arc<Health>) -> JoinSet<()> {
    let interval = config.interface.check_alive_interval;
    let mut pings = JoinSet::new();
    for &address in &config.interface.check_alive {
        pings.spawn(ping(net.clone(), Arc::clone(health), address, interval));
    }
    pings
}

async fn ping(net: Net, health: Arc<Health>, address: IpAddr, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match net.ping(address, interval).await {
            Ok(_) => health.pinged(address),
            Err(error) => tracing::debug!("CheckAlive: {address} does not answer: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::proxy::config::Environment;

    fn config(check_alive: &str, peers: &[(&str, &str)]) -> Config {
        let private = "YAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
        let keys = ["xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=", "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0="];
        let mut text = format!("[Interface]\nPrivateKey={private}\nAddress=10.0.0.2,fd00::2\n{check_alive}\n");
        for ((allowed_ips, more), key) in peers.iter().zip(keys) {
            text += &format!("[Peer]\nPublicKey={key}\nAllowedIPs={allowed_ips}\n{more}\n");
        }
        let read = |_: &Path| Err(io::ErrorKind::NotFound.into());
        Config::parse(&text, Path::new("a"), &Environment::default(), &read).unwrap()
    }

    /// For each required peer by its place in the file, how many addresses are to answer.
    #[track_caller]
    fn check(config: &Config, expected: &[(usize, usize)], unreached: usize) {
        let place = |it: &Required| config.peers.iter().position(|peer| peer.public_key == it.public_key).unwrap();
        let count = |it: &Required| it.pings.as_ref().map_or(0, |pings| pings.addresses.len());
        let found: Vec<_> = required(config).iter().map(|it| (place(it), count(it))).collect();
        assert_eq!((&found[..], unreachable(config).count()), (expected, unreached));
    }

    #[test]
    fn addresses_belong_to_the_peer_that_they_are_routed_to() {
        let (there, comes) = ("Endpoint=192.0.2.1:1", "");
        check(&config("", &[("10.0.0.0/8", there), ("10.1.0.0/16", comes)]), &[(0, 0)], 0);
        let alive = "CheckAlive=10.1.0.1,10.2.0.1,10.1.0.9,192.168.0.1";
        check(&config(alive, &[("10.0.0.0/8", there), ("10.1.0.0/16", comes)]), &[(0, 1), (1, 2)], 1);
        check(&config("CheckAlive=fd00::1", &[("0.0.0.0/0", there), ("::/0", there)]), &[(0, 0), (1, 1)], 0);
    }
}
