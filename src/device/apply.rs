//! Carries an [`Update`] out, and takes a [`Snapshot`].
//!
//! What can fail comes first (sockets), so that a refused update has changed nothing. Routes are
//! changed in a copy and published as one, so that no packet meets a table in between; a peer whose
//! configuration stays the same keeps its session, its staged packets and its endpoint. Peers that go end
//! after that, so that a packet which was on its way to one finds a table without it.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::config::{AllowedIp, ApplyError, PeerSnapshot, PeerUpdate, Snapshot, Update};
use super::events::Event;
use super::peer::{Peer, Wish};
use super::{Routes, Shared};
use crate::key::{PresharedKey, PrivateKey, PublicKey};
use crate::proto::cookie::mac1_key;
use crate::proto::crypto::wipe_stack;
use crate::proto::handshake::Identity;
use crate::proto::tunnel::{Tunnel, TunnelEvent};
use crate::sync::lock;

/// What was configured; what follows from it is elsewhere in [`Shared`].
#[derive(Default)]
pub(crate) struct Config {
    private_key: Option<PrivateKey>,
    /// As asked for: 0 lets the system choose.
    requested_port: u16,
    /// As last bound, or as asked for before the first time.
    port: u16,
    fwmark: u32,
    up: bool,
    peers: HashMap<PublicKey, Arc<Peer>>,
    free_slots: Vec<u32>,
    peers_added: u64,
}

/// An update half-way: routes are copied when first changed.
struct Change<'a> {
    shared: &'a Shared,
    config: &'a mut Config,
    routes: Option<Routes>,
    /// To end once the routes are published.
    removed: Vec<Arc<Peer>>,
}

impl Shared {
    /// Changes the device. See [`super::Device::apply`].
    pub(crate) fn apply(&self, update: Update) -> Result<(), ApplyError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(ApplyError::Closed);
        }
        let mut config = lock(&self.config);
        let Update { private_key, listen_port, fwmark, replace_peers, peers } = update;
        self.apply_sockets(&mut config, listen_port, fwmark)?;
        // Keys are borrowed from here on: what is moved leaves a copy behind that nobody wipes.
        let mut change = Change { shared: self, config: &mut config, routes: None, removed: Vec::new() };
        if let Some(private_key) = private_key {
            change.set_private_key(private_key);
        }
        let touched = change.set_peers(replace_peers, &peers);
        if let Some(routes) = change.routes {
            self.routes.store(Arc::new(routes));
        }
        change.removed.iter().for_each(|peer| self.end(peer));
        if config.up {
            for peer in touched.iter().filter(|peer| peer.has_staged()) {
                self.want_flush(peer);
            }
        }
        wipe_stack();
        Ok(())
    }

    /// The same port and mark as before change nothing, unless the port is still to be had. [UAPI]
    fn apply_sockets(&self, config: &mut Config, port: Option<u16>, mark: Option<u32>) -> Result<(), ApplyError> {
        let missing = config.up && self.bound().is_none();
        let port = port.filter(|&port| missing || (port != config.requested_port && port != config.port));
        let mark = mark.filter(|&mark| mark != config.fwmark);
        if let Some(port) = port {
            if config.up {
                self.bind(config, port, mark.unwrap_or(config.fwmark)).map_err(ApplyError::ListenPort)?;
            } else {
                config.port = port;
            }
            config.requested_port = port;
        } else if let (Some(mark), Some(socket)) = (mark, self.bound()) {
            socket.set_fwmark(mark).map_err(ApplyError::Fwmark)?;
        }
        if let Some(mark) = mark {
            config.fwmark = mark;
            // [KERNEL-STICKY] Another mark may mean another route.
            config.peers.values().for_each(|peer| peer.clear_source());
        }
        Ok(())
    }

    fn bind(&self, config: &mut Config, port: u16, fwmark: u32) -> io::Result<()> {
        let socket = self.udp.bind(port, fwmark, self.lanes)?;
        let bound = socket.port();
        self.publish_sockets(Some(socket))?;
        tracing::debug!("UDP bind has been updated: port {bound}");
        config.port = bound;
        config.peers.values().for_each(|peer| peer.clear_source());
        Ok(())
    }

    /// The link came up: binds the sockets. False if they were bound already.
    pub(crate) fn link_up(&self) -> io::Result<bool> {
        let mut config = lock(&self.config);
        config.up = true;
        if self.bound().is_some() {
            return Ok(false);
        }
        let (port, fwmark) = (config.port, config.fwmark);
        self.bind(&mut config, port, fwmark)?;
        Ok(true)
    }

    /// The link went down: closes the sockets. False if it was down already.
    pub(crate) fn link_down(&self) -> io::Result<bool> {
        let mut config = lock(&self.config);
        let was_up = std::mem::replace(&mut config.up, false);
        if self.bound().is_some() {
            self.publish_sockets(None)?;
        }
        Ok(was_up)
    }

    /// The peer of that name.
    pub(crate) fn peer_by_key(&self, key: &PublicKey) -> Option<Arc<Peer>> {
        lock(&self.config).peers.get(key).cloned()
    }

    /// What the device is and has done. See [`super::Device::snapshot`].
    pub(crate) fn snapshot(&self) -> Snapshot {
        let config = lock(&self.config);
        let routes = self.routes.load_full();
        let mut peers: Vec<_> = config.peers.values().cloned().collect();
        let (private_key, fwmark) = (config.private_key.clone(), config.fwmark);
        // A port that could not be bound is shown as none: the conflict is there for all to see.
        let listen_port = if config.up && self.bound().is_none() { 0 } else { config.port };
        drop(config);
        peers.sort_unstable_by_key(|peer| peer.added);
        Snapshot {
            private_key,
            listen_port,
            fwmark,
            peers: peers.iter().map(|peer| peer_snapshot(peer, &routes)).collect(),
        }
    }

    /// Carries out what a tunnel asks for and needs no sockets; the rest becomes a wish.
    pub(crate) fn settle(&self, peer: &Arc<Peer>, tunnel: &Tunnel, event: TunnelEvent) {
        match event {
            TunnelEvent::ReleaseIndex(index) => self.indices.release(index),
            TunnelEvent::CurrentChanged => {
                let current = tunnel.current();
                peer.sending.store(current.cloned());
                let (peer, up) = (peer.public_key, current.is_some());
                self.events.announce(|| if up { Event::SessionUp { peer } } else { Event::SessionDown { peer } });
            }
            TunnelEvent::HandshakeFailed => {
                self.events.announce(|| Event::HandshakeFailed { peer: peer.public_key });
            }
            TunnelEvent::PurgeStaged => {
                let purged = peer.take_staged().len() as u64;
                self.drops.count(crate::proto::rejected::Rejected::StagedDropped, purged);
            }
            TunnelEvent::ClearSource => peer.clear_source(),
            TunnelEvent::SendStaged => self.want_flush(peer),
            TunnelEvent::SendInitiation { .. } => self.wish(peer, Wish::HANDSHAKE),
            TunnelEvent::SendKeepalive => self.wish(peer, Wish::KEEPALIVE),
        }
    }

    /// Ends a peer that no route leads to any more.
    fn end(&self, peer: &Arc<Peer>) {
        self.configure_tunnel(peer, |tunnel| {
            peer.mark_removed();
            tunnel.clear();
        });
        self.wish(peer, Wish::REMOVED);
    }

    /// Takes one step with a peer's tunnel, outside of the control thread.
    fn configure_tunnel(&self, peer: &Arc<Peer>, step: impl FnOnce(&mut Tunnel)) {
        let mut tunnel = peer.tunnel();
        step(&mut tunnel);
        while let Some(event) = tunnel.poll_event() {
            self.settle(peer, &tunnel, event);
        }
    }
}

impl Change<'_> {
    fn routes(&mut self) -> &mut Routes {
        self.routes.get_or_insert_with(|| (**self.shared.routes.load()).clone())
    }

    /// [WP 5.4] [UAPI] The peer that is ourselves goes; the others keep what they receive on, and
    /// send nothing more before a new handshake.
    fn set_private_key(&mut self, key: Option<PrivateKey>) {
        if key == self.config.private_key {
            return;
        }
        let identity = key.clone().map(|key| Arc::new(Identity::new(key)));
        self.config.private_key = key;
        let own = identity.as_ref().map(|identity| identity.public_key());
        if let Some(own) = &own {
            self.remove(own);
        }
        // In between nothing is dropped below, whichever of the two keys it is for.
        self.shared.udp.expect_mac1(None);
        self.shared.identity.store(identity);
        self.shared.udp.expect_mac1(own.as_ref().map(mac1_key).as_ref());
        for peer in self.config.peers.values() {
            self.shared.configure_tunnel(peer, Tunnel::identity_changed);
        }
    }

    /// Returns the peers that the list named and that are there now.
    fn set_peers(&mut self, replace: bool, updates: &[PeerUpdate]) -> Vec<Arc<Peer>> {
        let own = self.shared.identity.load().as_ref().map(|identity| identity.public_key());
        let mut named = HashSet::new();
        if replace {
            let kept = kept_by(updates);
            let gone: Vec<_> = self.config.peers.keys().filter(|key| !kept.contains(*key)).copied().collect();
            gone.iter().for_each(|key| self.remove(key));
        }
        let mut touched = Vec::new();
        for update in updates {
            let key = update.public_key;
            if Some(key) == own {
                continue;
            }
            if update.remove {
                self.remove(&key);
                continue;
            }
            // With `replace`, a peer begins anew where the list first names it: what its section
            // leaves out takes its default, but session and endpoint live on.
            let anew = replace && !named.contains(&key);
            if update.update_only && (anew || !self.config.peers.contains_key(&key)) {
                continue;
            }
            if anew {
                named.insert(key);
            }
            touched.push(self.set_peer(update, anew));
        }
        touched
    }

    fn set_peer(&mut self, update: &PeerUpdate, anew: bool) -> Arc<Peer> {
        let up = self.config.up;
        let peer = match self.config.peers.get(&update.public_key) {
            Some(peer) => peer.clone(),
            None => self.add(update.public_key),
        };
        let no_key = PresharedKey::default();
        if let Some(key) = update.preshared_key.as_ref().or(anew.then_some(&no_key)) {
            self.shared.configure_tunnel(&peer, |tunnel| tunnel.set_preshared_key(key.clone()));
        }
        if let Some(address) = update.endpoint
            && peer.configure_endpoint(address)
        {
            self.shared.configure_tunnel(&peer, Tunnel::allow_initiation_now);
        }
        if let Some(interval) = update.persistent_keepalive.or(anew.then_some(0)) {
            let switched_on = peer.timers.set_persistent_keepalive(interval);
            if up && switched_on {
                self.shared.wish(&peer, Wish::KEEPALIVE);
            }
        }
        let replace_ips = update.replace_allowed_ips || anew;
        if !update.allowed_ips.is_empty() || (replace_ips && self.routes().ips.iter_owner(peer.slot).next().is_some()) {
            let ips = &mut self.routes().ips;
            if replace_ips {
                ips.remove_owner(peer.slot);
            }
            for change in &update.allowed_ips {
                let AllowedIp { address, prefix_len } = change.allowed_ip;
                if change.remove {
                    ips.remove(address, prefix_len, peer.slot);
                } else {
                    ips.insert(address, prefix_len, peer.slot);
                }
            }
        }
        peer
    }

    fn add(&mut self, key: PublicKey) -> Arc<Peer> {
        let free = self.config.free_slots.pop();
        let added = self.config.peers_added;
        self.config.peers_added += 1;
        let staged_bytes = self.shared.staged_bytes.clone();
        let peers = &mut self.routes().peers;
        let slot = free.unwrap_or(peers.len() as u32);
        let peer = Arc::new(Peer::new(slot, added, key, staged_bytes));
        match peers.get_mut(slot as usize) {
            Some(place) => *place = Some(peer.clone()),
            None => peers.push(Some(peer.clone())),
        }
        self.config.peers.insert(key, peer.clone());
        peer
    }

    fn remove(&mut self, key: &PublicKey) {
        let Some(peer) = self.config.peers.remove(key) else { return };
        let routes = self.routes();
        routes.ips.remove_owner(peer.slot);
        routes.peers[peer.slot as usize] = None;
        self.config.free_slots.push(peer.slot);
        self.removed.push(peer);
    }
}

/// The peers that there are after a list which replaces all: those that a section makes and none
/// after it removes.
fn kept_by(updates: &[PeerUpdate]) -> HashSet<PublicKey> {
    let mut kept = HashSet::new();
    for update in updates {
        if update.remove {
            kept.remove(&update.public_key);
        } else if !update.update_only {
            kept.insert(update.public_key);
        }
    }
    kept
}

fn peer_snapshot(peer: &Peer, routes: &Routes) -> PeerSnapshot {
    PeerSnapshot {
        public_key: peer.public_key,
        preshared_key: peer.tunnel().preshared_key().clone(),
        endpoint: peer.endpoint().map(|endpoint| endpoint.address),
        last_handshake: peer.timers.last_handshake().map(|time| time.0),
        rx_bytes: peer.rx_bytes.load(Ordering::Relaxed),
        tx_bytes: peer.tx_bytes.load(Ordering::Relaxed),
        persistent_keepalive: peer.timers.persistent_keepalive(),
        allowed_ips: routes
            .ips
            .iter_owner(peer.slot)
            .map(|(address, prefix_len)| AllowedIp { address, prefix_len })
            .collect(),
    }
}
