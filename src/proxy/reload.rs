//! What has changed between two configurations: what the device is told, and which services end and begin.
//!
//! What has not changed is left alone: a peer keeps its session and the endpoint to which it may have roamed, a service
//! its listener and its connections.

use std::net::SocketAddr;

use super::config::{Config, Host, Peer, Service, Target};
use crate::device::config::{AllowedIpUpdate, PeerUpdate, Update};

/// What to tell a device that has `old`, or nothing yet, for it to have `new`. Endpoints that are names are left out.
pub fn update(old: Option<&Config>, new: &Config) -> Update {
    let interface = &new.interface;
    let before = old.map(|old| &old.interface);
    let port_changed = before.is_none_or(|before| before.listen_port != interface.listen_port);
    let mark_changed = before.is_none_or(|before| before.fwmark != interface.fwmark);
    let old_peer = |peer: &Peer| old?.peers.iter().find(|old| old.public_key == peer.public_key);
    Update {
        private_key: Some(Some(interface.private_key.clone())),
        listen_port: port_changed.then_some(interface.listen_port),
        fwmark: mark_changed.then_some(interface.fwmark),
        replace_peers: true,
        peers: new.peers.iter().map(|peer| peer_update(old_peer(peer), peer)).collect(),
    }
}

fn peer_update(old: Option<&Peer>, new: &Peer) -> PeerUpdate {
    let moved = old.is_none_or(|old| old.endpoint != new.endpoint);
    let allowed_ips = new.allowed_ips.iter().map(|&allowed_ip| AllowedIpUpdate { allowed_ip, remove: false });
    PeerUpdate {
        preshared_key: Some(new.preshared_key.clone().unwrap_or_default()),
        endpoint: new.endpoint.as_ref().filter(|_| moved).and_then(address),
        persistent_keepalive: Some(new.persistent_keepalive),
        replace_allowed_ips: true,
        allowed_ips: allowed_ips.collect(),
        ..PeerUpdate::new(new.public_key)
    }
}

/// The address that a target is, unless it is a name.
pub fn address(target: &Target) -> Option<SocketAddr> {
    match target.host {
        Host::Address(address) => Some(SocketAddr::new(address, target.port)),
        Host::Name(_) => None,
    }
}

/// Services that end and services that begin.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceChanges<'a> {
    /// Of the old ones, by their numbers.
    pub end: Vec<usize>,
    /// Of the new ones.
    pub begin: Vec<&'a Service>,
}

/// What is to end and to begin for `new` to run where `old` does. Those in both stay, wherever they stand in the file.
pub fn services<'a>(old: &[Service], new: &'a [Service]) -> ServiceChanges<'a> {
    // Each listens somewhere of its own, so none is there twice.
    let end = (0..old.len()).filter(|&number| !new.contains(&old[number])).collect();
    let begin = new.iter().filter(|service| !old.contains(service)).collect();
    ServiceChanges { end, begin }
}

/// What has changed that only a new start can change.
pub fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    let stdio =
        |config: &Config| config.services.iter().find(|service| matches!(service, Service::StdioTunnel(_))).cloned();
    [
        (old.interface.mtu != new.interface.mtu, "MTU"),
        (old.log != new.log, "[Log]"),
        (old.uapi != new.uapi, "[Uapi]"),
        (stdio(old) != stdio(new), "[STDIOTunnel]"),
    ]
    .into_iter()
    .filter_map(|(changed, what)| changed.then_some(what))
    .collect()
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::*;
    use crate::proxy::config::Environment;

    const PRIVATE: &str = "YAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    const PEER: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
    const OTHER: &str = "TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=";

    fn config(interface: &str, rest: &str) -> Config {
        let text = format!("[Interface]\nPrivateKey={PRIVATE}\nAddress=10.0.0.2\n{interface}\n{rest}");
        let read = |_: &Path| Err(io::ErrorKind::NotFound.into());
        Config::parse(&text, Path::new("a"), &Environment::default(), &read).unwrap()
    }

    #[test]
    fn the_first_update_says_everything() {
        let peers = format!("[Peer]\nPublicKey={PEER}\nEndpoint=192.0.2.1:1\nAllowedIPs=10.0.0.0/8\n");
        let update = update(None, &config("ListenPort=7\nFwMark=8", &peers));
        assert_eq!((update.listen_port, update.fwmark, update.replace_peers), (Some(7), Some(8), true));
        assert_eq!(update.private_key.unwrap().unwrap().to_base64().as_str(), PRIVATE);
        let [peer] = &update.peers[..] else { panic!() };
        assert_eq!(peer.endpoint, Some("192.0.2.1:1".parse().unwrap()));
        assert_eq!((peer.allowed_ips.len(), peer.persistent_keepalive), (1, Some(0)));
        // What the file no longer says is gone: ranges, and the preshared key.
        assert!(peer.replace_allowed_ips && peer.preshared_key == Some(Default::default()));
    }

    #[test]
    fn a_later_update_leaves_alone_what_has_not_changed() {
        let peer = |endpoint: &str| format!("[Peer]\nPublicKey={PEER}\nEndpoint={endpoint}\n");
        let other = format!("[Peer]\nPublicKey={OTHER}\nEndpoint=192.0.2.9:9\n");
        let old = config("ListenPort=7", &peer("192.0.2.1:1"));
        let check = |new: &Config, port: Option<u16>, endpoints: &[Option<&str>]| {
            let update = update(Some(&old), new);
            assert_eq!(update.listen_port, port);
            let found: Vec<_> = update.peers.iter().map(|peer| peer.endpoint.map(|it| it.to_string())).collect();
            let expected: Vec<_> = endpoints.iter().map(|it| it.map(str::to_owned)).collect();
            assert_eq!(found, expected);
        };
        check(&old, None, &[None]);
        check(&config("ListenPort=8", &peer("192.0.2.1:1")), Some(8), &[None]);
        check(&config("ListenPort=7", &peer("192.0.2.2:1")), None, &[Some("192.0.2.2:1")]);
        check(&config("ListenPort=7", &peer("name.example:1")), None, &[None]);
        check(&config("ListenPort=7", &(other + &peer("192.0.2.1:1"))), None, &[Some("192.0.2.9:9"), None]);
    }

    #[test]
    fn services_that_are_in_both_stay() {
        let of = |services: &str| config("", &format!("[Peer]\nPublicKey={PEER}\n{services}")).services;
        let (one, two) = ("[Socks5]\nBindAddress=:1\n", "[http]\nBindAddress=:2\n");
        let changed = "[Socks5]\nBindAddress=:1\nUsername=me\n";
        let check = |old: &str, new: &str, end: &[usize], begin: usize| {
            let new = of(new);
            let changes = services(&of(old), &new);
            assert_eq!((&changes.end[..], changes.begin.len()), (end, begin));
        };
        check(&format!("{one}{two}"), &format!("{two}{one}"), &[], 0);
        check(&format!("{one}{two}"), two, &[0], 0);
        check(one, &format!("{two}{one}"), &[], 1);
        check(&format!("{two}{one}"), &format!("{two}{changed}"), &[1], 1);
    }

    #[test]
    fn what_needs_a_new_start_is_said() {
        let peer = format!("[Peer]\nPublicKey={PEER}\n");
        let old = config("", &peer);
        assert_eq!(needs_restart(&old, &config("ListenPort=1", &peer)), Vec::<&str>::new());
        let new = config("MTU=1300", &format!("{peer}[Log]\nFormat=json\n[Uapi]\nSocket=/a/b.sock\n"));
        assert_eq!(needs_restart(&old, &new), ["MTU", "[Log]", "[Uapi]"]);
    }
}
