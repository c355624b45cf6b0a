//! A network of engines in virtual time: the whole protocol, and nothing real.
//!
//! An [`Engine`] is the smallest device that can be: it does by hand, in order and at once, what the
//! pipeline does on threads. A [`World`] owns engines, the datagrams that are under way between them,
//! the clock and the dice. Time passes only from one thing that happens to the next.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use adit::key::{PresharedKey, PrivateKey, PublicKey};
use adit::proto::constants::STAGED_PACKETS_MAX;
use adit::proto::cookie::CookieChecker;
use adit::proto::crypto::Opening;
use adit::proto::handshake::Identity;
use adit::proto::keypair::Keypair;
use adit::proto::messages::{self, DATA_HEADER_LEN, DATA_OVERHEAD, Message};
use adit::proto::rejected::Rejected;
use adit::proto::replay::ReplayWindow;
use adit::proto::time::{Instant, Now, UnixTime};
use adit::proto::tunnel::{Tunnel, TunnelEvent};
use rand_core::Rng;

#[path = "rng.rs"]
#[allow(clippy::duplicate_mod, reason = "where engines are fuzzed, their world and the bytes both roll dice")]
pub(crate) mod rng;

use rng::TestRng;

/// The message types, as they stand in the first byte.
pub(crate) const KIND_INITIATION: u8 = 1;
pub(crate) const KIND_RESPONSE: u8 = 2;
pub(crate) const KIND_COOKIE_REPLY: u8 = 3;
pub(crate) const KIND_DATA: u8 = 4;

/// What an index of ours names.
enum Named {
    Handshake(usize),
    Keypair(usize, Arc<Keypair>, Box<ReplayWindow>),
}

/// A peer as an engine sees it.
pub(crate) struct Peer {
    pub(crate) tunnel: Tunnel,
    pub(crate) endpoint: Option<SocketAddr>,
    /// What the data path sends on: the tunnel's current keypair, and for as long as the control
    /// thread has not looked, one that was shown to be the peer's too.
    sending: Option<Arc<Keypair>>,
    /// The index that is to be confirmed, and when the control thread gets to it.
    to_confirm: Option<(Instant, u32)>,
    /// Packets that wait for a session; empty ones are keepalives.
    pub(crate) staged: VecDeque<Vec<u8>>,
}

/// A device without threads.
pub(crate) struct Engine {
    pub(crate) identity: Identity,
    pub(crate) address: SocketAddr,
    pub(crate) peers: Vec<Peer>,
    /// Handshake messages without a valid mac2 are answered by a cookie.
    pub(crate) under_load: bool,
    /// How long the control thread takes to get to what the data path wishes.
    pub(crate) control_delay: Duration,
    /// What came out of the tunnels: which peer's, and the number that it began with.
    pub(crate) delivered: Vec<(usize, u64)>,
    pub(crate) rejected: BTreeMap<Rejected, u64>,
    /// How many handshakes this side has completed.
    pub(crate) handshakes: u64,
    indices: HashMap<u32, Named>,
    checker: CookieChecker,
    rng: TestRng,
    outbox: Vec<(SocketAddr, Vec<u8>)>,
}

impl Engine {
    fn new(private: PrivateKey, address: SocketAddr, now: Now, mut rng: TestRng) -> Self {
        let identity = Identity::new(private);
        let checker = CookieChecker::new(&identity.public_key(), now.instant, &mut rng);
        Self {
            identity,
            address,
            peers: Vec::new(),
            under_load: false,
            control_delay: Duration::ZERO,
            delivered: Vec::new(),
            rejected: BTreeMap::new(),
            handshakes: 0,
            indices: HashMap::new(),
            checker,
            rng,
            outbox: Vec::new(),
        }
    }

    /// How many indices are in use.
    pub(crate) fn indices(&self) -> usize {
        self.indices.len()
    }

    pub(crate) fn add_peer(&mut self, key: PublicKey, preshared: PresharedKey, endpoint: Option<SocketAddr>) -> usize {
        let tunnel = Tunnel::new(key, preshared);
        self.peers.push(Peer { tunnel, endpoint, sending: None, to_confirm: None, staged: VecDeque::new() });
        self.peers.len() - 1
    }

    /// Takes another private key, as the device does.
    pub(crate) fn set_private_key(&mut self, private: PrivateKey, now: Now) {
        self.identity = Identity::new(private);
        self.checker = CookieChecker::new(&self.identity.public_key(), now.instant, &mut self.rng);
        for peer in 0..self.peers.len() {
            self.peers[peer].tunnel.identity_changed();
            self.drain(peer, now);
        }
    }

    /// Loses all that a process has in memory; the configuration comes back.
    pub(crate) fn restart(&mut self) {
        self.indices.clear();
        for peer in &mut self.peers {
            let preshared = PresharedKey::from_bytes(*peer.tunnel.preshared_key().as_bytes());
            peer.tunnel = Tunnel::new(peer.tunnel.remote_static(), preshared);
            (peer.sending, peer.to_confirm) = (None, None);
            peer.staged.clear();
        }
    }

    /// Sends a packet to a peer, once there is a session.
    pub(crate) fn send(&mut self, peer: usize, packet: Vec<u8>, now: Now) {
        assert!(!packet.is_empty(), "an empty packet is a keepalive");
        let staged = &mut self.peers[peer].staged;
        if staged.len() == STAGED_PACKETS_MAX {
            staged.pop_front();
        }
        staged.push_back(packet);
        self.flush(peer, now);
        self.drain(peer, now);
    }

    pub(crate) fn send_keepalive(&mut self, peer: usize, now: Now) {
        self.queue_keepalive(peer, now);
        self.drain(peer, now);
    }

    fn queue_keepalive(&mut self, peer: usize, now: Now) {
        if self.peers[peer].staged.is_empty() {
            self.peers[peer].staged.push_back(Vec::new());
        }
        self.flush(peer, now);
    }

    /// Numbers, seals and transmits what is staged, or wants a handshake.
    fn flush(&mut self, peer: usize, now: Now) {
        let instant = now.instant;
        while let Some(packet) = self.peers[peer].staged.pop_front() {
            let sending = self.peers[peer].sending.clone();
            let numbered = sending.and_then(|keypair| Some((keypair.number(1, instant).ok()?, keypair)));
            let Some((counter, keypair)) = numbered else {
                self.peers[peer].staged.push_front(packet);
                self.initiate(peer, false, now);
                return;
            };
            let mut datagram = vec![0; DATA_OVERHEAD + packet.len().next_multiple_of(16)];
            messages::write_data_header(&mut datagram, keypair.remote_index(), counter);
            datagram[DATA_HEADER_LEN..][..packet.len()].copy_from_slice(&packet);
            let stride = datagram.len();
            keypair.seal_train(counter, &mut datagram, stride);
            let timers = self.peers[peer].tunnel.timers().clone();
            timers.any_authenticated_packet_traversal(instant);
            timers.any_authenticated_packet_sent(instant);
            self.transmit(peer, datagram);
            if !packet.is_empty() {
                timers.data_sent(instant, &mut self.rng);
            }
            if keypair.needs_rekey_on_send(instant) {
                self.initiate(peer, false, now);
            }
        }
    }

    fn transmit(&mut self, peer: usize, datagram: Vec<u8>) {
        if let Some(endpoint) = self.peers[peer].endpoint {
            self.outbox.push((endpoint, datagram));
        }
    }

    fn reserve_index(&mut self) -> u32 {
        loop {
            let index = self.rng.next_u32();
            if !self.indices.contains_key(&index) {
                return index;
            }
        }
    }

    fn initiate(&mut self, peer: usize, retry: bool, now: Now) {
        let index = self.reserve_index();
        let tunnel = &mut self.peers[peer].tunnel;
        match tunnel.create_initiation(&self.identity, index, retry, now, &mut self.rng) {
            Ok(message) => {
                self.indices.insert(index, Named::Handshake(peer));
                self.transmit(peer, message.to_vec());
            }
            Err(rejected) => self.count(rejected),
        }
    }

    fn count(&mut self, rejected: Rejected) {
        *self.rejected.entry(rejected).or_default() += 1;
    }

    /// Acts on everything that a tunnel has to tell.
    fn drain(&mut self, peer: usize, now: Now) {
        while let Some(event) = self.peers[peer].tunnel.poll_event() {
            match event {
                TunnelEvent::ReleaseIndex(index) => {
                    assert!(self.indices.remove(&index).is_some(), "index {index} was released twice");
                }
                TunnelEvent::CurrentChanged => {
                    self.peers[peer].sending = self.peers[peer].tunnel.current().cloned();
                    self.handshakes += u64::from(self.peers[peer].tunnel.current().is_some());
                }
                TunnelEvent::SendStaged => self.flush(peer, now),
                TunnelEvent::SendInitiation { retry } => self.initiate(peer, retry, now),
                TunnelEvent::SendKeepalive => self.queue_keepalive(peer, now),
                TunnelEvent::PurgeStaged => self.peers[peer].staged.clear(),
                TunnelEvent::ClearSource | TunnelEvent::HandshakeFailed => {}
                other => panic!("{other:?} is unknown here"),
            }
        }
    }

    /// Takes one datagram from the network.
    pub(crate) fn receive(&mut self, from: SocketAddr, datagram: Vec<u8>, now: Now) {
        if let Err(rejected) = self.try_receive(from, datagram, now) {
            self.count(rejected);
        }
    }

    fn try_receive(&mut self, from: SocketAddr, mut datagram: Vec<u8>, now: Now) -> Result<(), Rejected> {
        let peer = match messages::parse(&datagram)? {
            Message::Initiation(message) => {
                self.admit(message.as_bytes(), message.mac1(), message.sender(), from, now)?;
                let opened = self.identity.open_initiation(&message)?;
                let claimed = opened.remote_static();
                let is_claimed = |peer: &Peer| peer.tunnel.remote_static() == claimed;
                let peer = self.peers.iter().position(is_claimed).ok_or(Rejected::UnknownPeer)?;
                let index = self.reserve_index();
                let tunnel = &mut self.peers[peer].tunnel;
                let _proof = tunnel.consume_initiation(&self.identity, opened, now.instant)?;
                self.peers[peer].endpoint = Some(from);
                let tunnel = &mut self.peers[peer].tunnel;
                let (response, keypair) = tunnel.create_response(&self.identity, index, now, &mut self.rng)?;
                self.indices.insert(index, Named::Keypair(peer, keypair, Box::default()));
                self.transmit(peer, response.to_vec());
                peer
            }
            Message::Response(message) => {
                self.admit(message.as_bytes(), message.mac1(), message.sender(), from, now)?;
                let Some(&Named::Handshake(peer)) = self.indices.get(&message.receiver()) else {
                    return Err(Rejected::UnknownIndex);
                };
                let tunnel = &mut self.peers[peer].tunnel;
                let (_proof, keypair) = tunnel.consume_response(&self.identity, &message, now)?;
                self.indices.insert(message.receiver(), Named::Keypair(peer, keypair, Box::default()));
                self.peers[peer].endpoint = Some(from);
                peer
            }
            Message::CookieReply(message) => {
                let peer = match self.indices.get(&message.receiver()) {
                    Some(&Named::Handshake(peer) | &Named::Keypair(peer, ..)) => peer,
                    None => return Err(Rejected::UnknownIndex),
                };
                self.peers[peer].tunnel.consume_cookie_reply(&message, now.instant)?;
                peer
            }
            Message::Data(header) => self.receive_data(header.receiver, header.counter, from, &mut datagram, now)?,
        };
        self.drain(peer, now);
        Ok(())
    }

    /// What every handshake message goes through before it costs anything.
    fn admit(
        &mut self,
        message: &[u8],
        mac1: &[u8; 16],
        sender: u32,
        from: SocketAddr,
        now: Now,
    ) -> Result<(), Rejected> {
        self.identity.check_mac1(message)?;
        if self.under_load && !self.checker.check_mac2(message, from, now.instant, &mut self.rng) {
            let reply = self.checker.create_reply(mac1, sender, from, now.instant, &mut self.rng);
            self.outbox.push((from, reply.to_vec()));
            return Err(Rejected::CookieRequired);
        }
        Ok(())
    }

    fn receive_data(
        &mut self,
        receiver: u32,
        counter: u64,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Now,
    ) -> Result<usize, Rejected> {
        let Some(Named::Keypair(peer, keypair, window)) = self.indices.get_mut(&receiver) else {
            return Err(Rejected::UnknownIndex);
        };
        let (peer, keypair) = (*peer, keypair.clone());
        keypair.may_receive(now.instant)?;
        let len = (datagram.len() - DATA_HEADER_LEN) as u32;
        let mut opening = [Opening::new(counter, DATA_HEADER_LEN as u32, len)];
        keypair.open_train(datagram, &mut opening);
        let _proof = window.accept(&opening[0])?;
        self.peers[peer].endpoint = Some(from);
        let timers = self.peers[peer].tunnel.timers().clone();
        if keypair.is_unconfirmed() {
            let due = now.instant + self.control_delay;
            let Peer { sending, to_confirm, .. } = &mut self.peers[peer];
            *sending = Some(keypair.clone());
            *to_confirm = Some((to_confirm.map_or(due, |(due, _)| due), receiver));
            self.confirm(peer, now);
        }
        if keypair.needs_rekey_on_receive(now.instant) && timers.take_lastminute_handshake() {
            self.initiate(peer, false, now);
        }
        timers.any_authenticated_packet_received(now.instant);
        timers.any_authenticated_packet_traversal(now.instant);
        let packet = &datagram[DATA_HEADER_LEN..DATA_HEADER_LEN + len as usize - 16];
        if let Some(number) = packet.first_chunk() {
            timers.data_received(now.instant);
            self.delivered.push((peer, u64::from_le_bytes(*number)));
        }
        Ok(peer)
    }

    /// What the control thread does about data on an unconfirmed keypair, once it gets to it.
    fn confirm(&mut self, peer: usize, now: Now) {
        let Peer { tunnel, sending, to_confirm, .. } = &mut self.peers[peer];
        let Some((_, index)) = to_confirm.take_if(|&mut (due, _)| due <= now.instant) else { return };
        if !tunnel.confirm(index, now) {
            *sending = tunnel.current().cloned();
        }
        self.drain(peer, now);
    }

    fn handle_timeout(&mut self, now: Now) {
        for peer in 0..self.peers.len() {
            self.confirm(peer, now);
            if self.peers[peer].tunnel.poll_timeout().is_some_and(|due| due <= now.instant) {
                self.peers[peer].tunnel.handle_timeout(now.instant);
                self.drain(peer, now);
            }
        }
    }

    /// When this engine next has something to do by itself; `None` for never.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let dues = |peer: &Peer| [peer.tunnel.poll_timeout(), peer.to_confirm.map(|(due, _)| due)];
        self.peers.iter().flat_map(dues).flatten().min()
    }
}

/// What the network does to datagrams. Chances are per mille.
#[derive(Clone, Copy)]
pub(crate) struct Network {
    pub(crate) delay: Duration,
    /// Added to the delay, at random for each datagram: above the gap between two, they overtake.
    pub(crate) spread: Duration,
    pub(crate) loss: u32,
    pub(crate) duplication: u32,
    pub(crate) corruption: u32,
    /// Nothing arrives.
    pub(crate) down: bool,
    /// No handshake message and no cookie reply arrives.
    pub(crate) only_data: bool,
}

impl Network {
    /// 25 ms each way, and nothing goes wrong.
    pub(crate) const GOOD: Self = Self {
        delay: Duration::from_millis(25),
        spread: Duration::ZERO,
        loss: 0,
        duplication: 0,
        corruption: 0,
        down: false,
        only_data: false,
    };
}

/// A datagram that was sent, whether it arrived or not.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// Since the world began.
    pub(crate) at: Duration,
    pub(crate) from: usize,
    pub(crate) len: usize,
    /// The message type.
    pub(crate) kind: u8,
}

/// Engines, the network between them, and time.
pub(crate) struct World {
    pub(crate) engines: Vec<Engine>,
    pub(crate) network: Network,
    pub(crate) rng: TestRng,
    /// Every datagram that any engine sent.
    pub(crate) sent: Vec<Sent>,
    /// Keeps a copy of every datagram that arrived, for replaying it.
    pub(crate) recording: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
    /// The same of every datagram as it was sent, before the network had it.
    pub(crate) transmitted: Option<Vec<(SocketAddr, SocketAddr, Vec<u8>)>>,
    /// How far the wall clock was put back.
    pub(crate) wall_clock_back: Duration,
    /// How far the wall clock was put forward.
    pub(crate) wall_clock_ahead: Duration,
    /// An engine whose machine is suspended: what comes is lost, and its timers wait.
    pub(crate) suspended: Option<usize>,
    /// From this datagram on, counted in the order of sending, those whose bit is set are lost.
    pub(crate) lost: (usize, u32),
    now: Duration,
    /// By arrival, and by a running number.
    under_way: BTreeMap<(Duration, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    datagrams: u64,
    next_packet: u64,
}

impl World {
    /// `engines` devices, each of which has all others as peers in their order, with endpoints.
    pub(crate) fn new(engines: usize, seed: u64) -> Self {
        let mut world = Self {
            engines: Vec::new(),
            network: Network::GOOD,
            rng: TestRng(seed),
            sent: Vec::new(),
            recording: None,
            transmitted: None,
            wall_clock_back: Duration::ZERO,
            wall_clock_ahead: Duration::ZERO,
            suspended: None,
            lost: (0, 0),
            now: Duration::ZERO,
            under_way: BTreeMap::new(),
            datagrams: 0,
            next_packet: 0,
        };
        for number in 0..engines {
            let private = PrivateKey::generate(&mut world.rng);
            let address = SocketAddr::from(([10, 0, 0, number as u8 + 1], 51820));
            let rng = TestRng(world.rng.next_u64());
            world.engines.push(Engine::new(private, address, world.now(), rng));
        }
        let names: Vec<_> = world.engines.iter().map(|engine| (engine.identity.public_key(), engine.address)).collect();
        for (number, engine) in world.engines.iter_mut().enumerate() {
            for (other, &(key, address)) in names.iter().enumerate() {
                if other != number {
                    engine.add_peer(key, PresharedKey::default(), Some(address));
                }
            }
        }
        world
    }

    /// Both clocks. Neither begins at zero.
    pub(crate) fn now(&self) -> Now {
        Now {
            instant: Instant::from_nanos(1_000_000_000) + self.now,
            unix: UnixTime(
                Duration::from_secs(1_700_000_000) + self.now + self.wall_clock_ahead - self.wall_clock_back,
            ),
        }
    }

    /// Time since the world began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.now
    }

    /// A packet with a number that no other has.
    pub(crate) fn packet(&mut self, len: usize) -> (u64, Vec<u8>) {
        let number = self.next_packet;
        self.next_packet += 1;
        let mut packet = number.to_le_bytes().to_vec();
        packet.resize(len.max(8), 0);
        (number, packet)
    }

    /// Sends one packet of its own number from an engine to one of its peers.
    pub(crate) fn send(&mut self, from: usize, peer: usize) -> u64 {
        let (number, packet) = self.packet(100);
        let now = self.now();
        self.engines[from].send(peer, packet, now);
        self.collect();
        number
    }

    /// Lets an engine do something at this moment.
    pub(crate) fn act<R>(&mut self, engine: usize, action: impl FnOnce(&mut Engine, Now) -> R) -> R {
        let now = self.now();
        let result = action(&mut self.engines[engine], now);
        self.collect();
        result
    }

    /// Puts a datagram on its way, as it is.
    pub(crate) fn inject(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>, delay: Duration) {
        self.datagrams += 1;
        self.under_way.insert((self.now + delay, self.datagrams), (from, to, datagram));
    }

    /// Copies of all that is under way: from, to, bytes.
    pub(crate) fn under_way(&self) -> Vec<(SocketAddr, SocketAddr, Vec<u8>)> {
        self.under_way.values().cloned().collect()
    }

    /// Takes what the engines want to send to the network.
    fn collect(&mut self) {
        for from in 0..self.engines.len() {
            let address = self.engines[from].address;
            for (to, datagram) in std::mem::take(&mut self.engines[from].outbox) {
                self.sent.push(Sent { at: self.now, from, len: datagram.len(), kind: datagram[0] });
                if let Some(transmitted) = &mut self.transmitted {
                    transmitted.push((address, to, datagram.clone()));
                }
                let (first, lost) = self.lost;
                let number = self.sent.len().wrapping_sub(1 + first) as u32;
                if lost.checked_shr(number).is_some_and(|lost| lost & 1 != 0) {
                    continue;
                }
                let copies = 1 + usize::from(self.rng.per_mille(self.network.duplication));
                for _ in 0..copies {
                    self.carry(address, to, datagram.clone());
                }
            }
        }
    }

    fn carry(&mut self, from: SocketAddr, to: SocketAddr, mut datagram: Vec<u8>) {
        let Network { delay, spread, loss, corruption, down, only_data, .. } = self.network;
        if down || (only_data && datagram[0] != KIND_DATA) || self.rng.per_mille(loss) {
            return;
        }
        if self.rng.per_mille(corruption) {
            let position = self.rng.next_u64() as usize % datagram.len();
            datagram[position] ^= 1 << (self.rng.next_u32() % 8);
        }
        let spread = Duration::from_nanos(self.rng.next_u64() % (spread.as_nanos() as u64 + 1));
        self.inject(from, to, datagram, delay + spread);
    }

    /// Goes on to the next thing that happens, not beyond `end`. Returns whether there was one.
    fn step(&mut self, end: Duration) -> bool {
        let start = self.now().instant;
        let arrival = self.under_way.keys().next().map(|&(at, _)| at);
        let suspended = self.suspended;
        let awake = |number: usize| suspended != Some(number);
        let timeouts = (0..).zip(&self.engines).filter(|(number, _)| awake(*number));
        let timeouts = timeouts.filter_map(|(_, engine)| engine.poll_timeout());
        let timeout = timeouts.min().map(|due| self.now + due.since(start));
        let Some(next) = [arrival, timeout].into_iter().flatten().min().filter(|&next| next <= end) else {
            self.now = self.now.max(end);
            return false;
        };
        self.now = next;
        let now = self.now();
        if arrival == Some(next) {
            let (_, (from, to, datagram)) = self.under_way.pop_first().expect("one arrives");
            if let Some(recording) = &mut self.recording {
                recording.push((from, to, datagram.clone()));
            }
            let mut engines = (0..).zip(&mut self.engines);
            if let Some((_, engine)) = engines.find(|(number, engine)| engine.address == to && awake(*number)) {
                engine.receive(from, datagram, now);
            }
        } else {
            let engines = (0..).zip(&mut self.engines).filter(|(number, _)| awake(*number));
            engines.for_each(|(_, engine)| engine.handle_timeout(now));
        }
        self.collect();
        true
    }

    /// Lets time pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step(end) {}
    }

    /// Lets time pass until `done`, at most `limit`. Returns how long it took.
    pub(crate) fn run_until(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) -> Option<Duration> {
        let start = self.now;
        while !done(self) {
            if !self.step(start + limit) {
                return None;
            }
        }
        Some(self.now - start)
    }

    /// Both sides of the first two engines send a packet in every `period` for `time`.
    /// Returns the numbers: of the first engine's, of the second's.
    pub(crate) fn chat(&mut self, time: Duration, period: Duration) -> (Vec<u64>, Vec<u64>) {
        let (end, mut sent) = (self.now + time, (Vec::new(), Vec::new()));
        while self.now < end {
            sent.0.push(self.send(0, 0));
            sent.1.push(self.send(1, 0));
            self.run(period.min(end - self.now));
        }
        sent
    }

    /// Datagrams of a type that were sent since a moment.
    pub(crate) fn sent_since(&self, since: Duration, kind: u8) -> impl Iterator<Item = &Sent> {
        self.sent.iter().filter(move |sent| sent.at >= since && sent.kind == kind)
    }

    /// The first two engines send on the same session, of which exactly one of them is the initiator.
    pub(crate) fn settled(&self) -> bool {
        let current = |engine: usize| self.engines[engine].peers[0].tunnel.current();
        let (Some(a), Some(b)) = (current(0), current(1)) else { return false };
        a.local_index() == b.remote_index()
            && b.local_index() == a.remote_index()
            && a.is_initiator() != b.is_initiator()
    }

    /// Whether an engine got the packet of this number.
    pub(crate) fn delivered(&self, engine: usize, number: u64) -> bool {
        self.engines[engine].delivered.iter().any(|&(_, delivered)| delivered == number)
    }
}
