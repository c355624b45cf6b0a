//! The state that a stack's edge, its connections and its users share, and what keeps it together: who has which
//! address and port, and what is done once a flow has said what it needs next.
//!
//! Locks are taken one at a time, but for the table of flows, under which that of TIME-WAIT may be taken: none is held while
//! a flow, a lane or the timers are locked.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};
use std::time::Instant;

use arc_swap::ArcSwap;

use super::config::{Config, Counters, MTU_FEWEST, MTU_FEWEST_IPV6, MTU_MOST, Stats, count};
use super::echo::Echoes;
use super::flow::{Due, Flow, FlowKey, Parameters, Settled};
use super::fragments::{self, Reassembly};
use super::headers;
use super::lanes::Lanes;
use super::listener::Listener;
use super::path_mtu::{Paths, believable};
use super::time_wait::TimeWaits;
use super::timers::Timers;
use super::udp::Socket as UdpSocket;
use crate::{icmp, ip};

/// Ports that are given to those who ask for any: Linux' `ip_local_port_range`.
const EPHEMERAL_PORTS: RangeInclusive<u16> = 32_768..=60_999;

/// Connections over all listeners that peers asked for and have not confirmed; the oldest goes first, without a word, so
/// that a flood of requests never keeps out a client that confirms its own within this many. Linux' `tcp_max_syn_backlog`.
const HALF_OPEN_MAX: usize = 1024;

/// Everything of one stack.
pub(super) struct Stack {
    /// What the device's end is called.
    pub(super) name: String,
    pub(super) mtu: usize,
    tcp_buffer: usize,
    connections_max: usize,
    addresses: ArcSwap<Vec<(IpAddr, u8)>>,
    pub(super) names: ArcSwap<Names>,
    hasher: RandomState,
    flows: RwLock<HashMap<FlowKey, Arc<Flow>>>,
    time_waits: Mutex<TimeWaits>,
    listeners: RwLock<HashMap<SocketAddr, Arc<Listener>>>,
    /// In the order in which they were asked for; some of them are not half-open any more.
    half_open: Mutex<VecDeque<Weak<Flow>>>,
    udp: RwLock<HashMap<SocketAddr, Arc<UdpSocket>>>,
    pub(super) echoes: Echoes,
    pub(super) lanes: Lanes,
    pub(super) timers: Arc<Timers>,
    pub(super) counters: Counters,
    paths: Mutex<Paths>,
    icmp_limiter: Mutex<icmp::Limiter>,
    reassembly: Mutex<Reassembly>,
    is_gone: AtomicBool,
}

/// How names are resolved.
#[derive(Debug, Clone, Default)]
pub(super) struct Names {
    pub(super) servers: Vec<SocketAddr>,
    pub(super) search: Vec<String>,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that nobody can foresee.
pub(super) fn random() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::from)
}

/// The same address without what only a system's interface gives a meaning to.
pub(super) fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip(), address.port())
}

fn unspecified_like(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

/// Whether `address` is in the network of `(network, prefix_len)`.
fn contains((network, prefix_len): (IpAddr, u8), address: IpAddr) -> bool {
    let same_upper = |a: u128, b: u128, bits: u32| (a ^ b).checked_shr(bits - u32::from(prefix_len)).unwrap_or(0) == 0;
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            same_upper(u32::from(network).into(), u32::from(address).into(), Ipv4Addr::BITS)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => same_upper(network.into(), address.into(), Ipv6Addr::BITS),
        _ => false,
    }
}

fn within(what: &str, value: usize, range: RangeInclusive<usize>) -> io::Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let text = format!("{what} is {value}, not from {} to {}", range.start(), range.end());
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Whether a stack may have these addresses, and this MTU with them.
fn check_addresses(addresses: &[(IpAddr, u8)], mtu: usize) -> io::Result<()> {
    let has_ipv6 = addresses.iter().any(|(address, _)| address.is_ipv6());
    within("the MTU", mtu, if has_ipv6 { MTU_FEWEST_IPV6 } else { MTU_FEWEST }..=MTU_MOST)?;
    for (address, prefix_len) in addresses {
        let bits = if address.is_ipv4() { Ipv4Addr::BITS } else { Ipv6Addr::BITS };
        if u32::from(*prefix_len) > bits || address.is_unspecified() || address.is_multicast() {
            let text = format!("{address}/{prefix_len} is no address of a host");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
    }
    Ok(())
}

impl Stack {
    pub(super) fn new(config: Config) -> io::Result<Arc<Self>> {
        check_addresses(&config.addresses, config.mtu)?;
        within("a TCP buffer", config.tcp_buffer, 4096..=1 << 30)?;
        Ok(Arc::new(Self {
            name: config.name,
            mtu: config.mtu,
            tcp_buffer: config.tcp_buffer,
            connections_max: config.connections_max,
            addresses: ArcSwap::from_pointee(config.addresses),
            names: ArcSwap::from_pointee(Names { servers: config.dns, search: config.search }),
            hasher: RandomState::new(),
            flows: RwLock::default(),
            time_waits: Mutex::default(),
            listeners: RwLock::default(),
            half_open: Mutex::default(),
            udp: RwLock::default(),
            echoes: Echoes::default(),
            lanes: Lanes::new(),
            timers: Arc::new(Timers::new()),
            counters: Counters::default(),
            paths: Mutex::default(),
            icmp_limiter: Mutex::default(),
            reassembly: Mutex::default(),
            is_gone: AtomicBool::new(false),
        }))
    }

    // --- Addresses and ports -----------------------------------------------------------------

    pub(super) fn set_addresses(&self, addresses: Vec<(IpAddr, u8)>) -> io::Result<()> {
        check_addresses(&addresses, self.mtu)?;
        self.addresses.store(Arc::new(addresses));
        let lost: Vec<_> =
            read(&self.flows).values().filter(|flow| !self.has_address(flow.key.local.ip())).cloned().collect();
        for flow in lost {
            self.follow(&flow, flow.fail(io::ErrorKind::ConnectionAborted, self.timers.now()));
        }
        Ok(())
    }

    pub(super) fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.load().iter().any(|(own, _)| *own == address)
    }

    /// The address that packets to `destination` are sent from: the one with the longest prefix that covers it, or the first
    /// of its family.
    pub(super) fn source_for(&self, destination: IpAddr) -> io::Result<IpAddr> {
        let addresses = self.addresses.load();
        let family = || addresses.iter().filter(|(own, _)| own.is_ipv4() == destination.is_ipv4());
        let covering = family().filter(|network| contains(**network, destination)).max_by_key(|(_, len)| *len);
        covering.or_else(|| family().next()).map(|(own, _)| *own).ok_or(io::ErrorKind::NetworkUnreachable.into())
    }

    /// Fails once the interface is gone.
    pub(super) fn check_up(&self) -> io::Result<()> {
        if self.is_gone.load(Ordering::Acquire) { Err(io::ErrorKind::NetworkDown.into()) } else { Ok(()) }
    }

    /// Fails if nobody can have a socket at `address`.
    fn check_local(&self, address: SocketAddr) -> io::Result<()> {
        self.check_up()?;
        if address.ip().is_unspecified() || self.has_address(address.ip()) {
            Ok(())
        } else {
            Err(io::ErrorKind::AddrNotAvailable.into())
        }
    }

    /// The first port at which `take` succeeds: the wanted one, or any of the ephemeral ones from a random one on.
    fn take_port<T>(wanted: u16, mut take: impl FnMut(u16) -> Option<T>) -> io::Result<T> {
        if wanted != 0 {
            return take(wanted).ok_or(io::ErrorKind::AddrInUse.into());
        }
        let (first, count) = (*EPHEMERAL_PORTS.start(), EPHEMERAL_PORTS.len() as u64);
        let start = random()? % count;
        (0..count)
            .map(|offset| first + ((start + offset) % count) as u16)
            .find_map(take)
            .ok_or(io::ErrorKind::AddrNotAvailable.into())
    }

    // --- TCP ---------------------------------------------------------------------------------

    fn parameters(&self, remote: IpAddr) -> io::Result<Parameters> {
        Ok(Parameters { mtu: self.mtu_to(remote), buffer: self.tcp_buffer, seed: random()? })
    }

    /// Begins to connect.
    pub(super) fn connect(&self, remote: SocketAddr) -> io::Result<Arc<Flow>> {
        self.check_up()?;
        let remote = plain(remote);
        if remote.port() == 0 || remote.ip().is_unspecified() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{remote} is nowhere to connect to")));
        }
        if remote.ip().is_multicast() {
            return Err(io::ErrorKind::NetworkUnreachable.into());
        }
        let source = self.source_for(remote.ip())?;
        let parameters = self.parameters(remote.ip())?;
        let now = self.timers.now();
        let flow = {
            let mut flows = write(&self.flows);
            if flows.len() >= self.connections_max {
                return Err(too_many_connections());
            }
            let mut time_waits = lock(&self.time_waits);
            let key = Self::take_port(0, |port| {
                let key = FlowKey { local: SocketAddr::new(source, port), remote };
                let is_taken = flows.contains_key(&key)
                    || time_waits.contains(&key, Instant::now())
                    || self.listener(key.local).is_some();
                (!is_taken).then_some(key)
            })?;
            let flow = Flow::connect(key, self.hasher.hash_one(key), &parameters, now);
            flows.insert(key, Arc::clone(&flow));
            flow
        };
        count(&self.counters.tcp_connects);
        self.lanes.push_flow(&flow);
        Ok(flow)
    }

    pub(super) fn listen(&self, local: SocketAddr) -> io::Result<Arc<Listener>> {
        let local = plain(local);
        self.check_local(local)?;
        let mut listeners = write(&self.listeners);
        let listener = Self::take_port(local.port(), |port| {
            let is_taken = listeners.keys().any(|other| overlap(*other, SocketAddr::new(local.ip(), port)));
            (!is_taken).then(|| Listener::new(SocketAddr::new(local.ip(), port)))
        })?;
        listeners.insert(listener.local, Arc::clone(&listener));
        Ok(listener)
    }

    /// Ends a listener; connections that nobody accepted are reset.
    pub(super) fn unlisten(&self, listener: &Arc<Listener>, reason: io::ErrorKind) {
        let mut listeners = write(&self.listeners);
        if listeners.get(&listener.local).is_some_and(|other| Arc::ptr_eq(other, listener)) {
            listeners.remove(&listener.local);
        }
        drop(listeners);
        for flow in listener.close(reason) {
            self.follow(&flow, flow.fail(io::ErrorKind::ConnectionAborted, self.timers.now()));
        }
    }

    fn listener(&self, local: SocketAddr) -> Option<Arc<Listener>> {
        let listeners = read(&self.listeners);
        let anywhere = SocketAddr::new(unspecified_like(local.ip()), local.port());
        listeners.get(&local).or_else(|| listeners.get(&anywhere)).cloned()
    }

    /// The connection between these, if there is one.
    pub(super) fn flow(&self, key: &FlowKey) -> Option<Arc<Flow>> {
        read(&self.flows).get(key).cloned()
    }

    /// Makes room for a connection that a peer asks for. The error tells whether somebody listens.
    pub(super) fn accept(&self, key: FlowKey) -> Result<Arc<Flow>, NotAccepted> {
        let listener = self.listener(key.local).ok_or(NotAccepted::Refused)?;
        if !listener.has_room() {
            return Err(NotAccepted::Overflow);
        }
        let parameters = self.parameters(key.remote.ip()).map_err(|_| NotAccepted::Overflow)?;
        let now = self.timers.now();
        let flow = {
            let mut flows = write(&self.flows);
            if let Some(flow) = flows.get(&key) {
                return Ok(Arc::clone(flow));
            }
            if flows.len() >= self.connections_max {
                return Err(NotAccepted::Overflow);
            }
            lock(&self.time_waits).remove(&key);
            let flow = Flow::accept(key, self.hasher.hash_one(key), &parameters, listener, now);
            flows.insert(key, Arc::clone(&flow));
            flow
        };
        let mut half_open = lock(&self.half_open);
        half_open.push_back(Arc::downgrade(&flow));
        let evicted = if half_open.len() > HALF_OPEN_MAX { half_open.pop_front() } else { None };
        drop(half_open);
        if let Some(evicted) = evicted.and_then(|flow| flow.upgrade())
            && evicted.forget_half_open()
        {
            count(&self.counters.tcp_overflows);
            self.remove(&evicted);
        }
        Ok(flow)
    }

    /// What answers a segment of a connection in TIME-WAIT; `None` when it is in none.
    pub(super) fn time_wait_answer(&self, key: &FlowKey) -> Option<Box<[u8]>> {
        lock(&self.time_waits).answer(key, Instant::now())
    }

    /// Does what a flow needs next.
    pub(super) fn follow(&self, flow: &Arc<Flow>, mut settled: Settled) {
        settled.wake();
        if let Some(listener) = settled.accepted.take() {
            count(&self.counters.tcp_accepts);
            if !listener.push(flow) {
                settled = flow.fail(io::ErrorKind::ConnectionAborted, self.timers.now());
            }
        }
        match settled.due {
            Due::Now => self.lanes.push_flow(flow),
            Due::At(at) => self.timers.schedule(flow, at),
            Due::Never => {}
            Due::Ended => self.remove(flow),
            Due::TimeWait(answer) => {
                self.remove(flow);
                lock(&self.time_waits).insert(flow.key, answer, Instant::now());
            }
        }
    }

    fn remove(&self, flow: &Arc<Flow>) {
        let mut flows = write(&self.flows);
        if flows.get(&flow.key).is_some_and(|other| Arc::ptr_eq(other, flow)) {
            flows.remove(&flow.key);
        }
        drop(flows);
        self.timers.forget(flow);
    }

    // --- Datagrams and other packets ---------------------------------------------------------

    pub(super) fn bind_udp(&self, local: SocketAddr) -> io::Result<Arc<UdpSocket>> {
        let local = plain(local);
        self.check_local(local)?;
        let mut sockets = write(&self.udp);
        let socket = Self::take_port(local.port(), |port| {
            let local = SocketAddr::new(local.ip(), port);
            let is_taken = sockets.contains_key(&local)
                || sockets.contains_key(&SocketAddr::new(unspecified_like(local.ip()), port))
                || local.ip().is_unspecified() && sockets.keys().any(|other| overlap(*other, local));
            (!is_taken).then(|| UdpSocket::new(local))
        })?;
        sockets.insert(socket.local, Arc::clone(&socket));
        Ok(socket)
    }

    pub(super) fn unbind_udp(&self, socket: &UdpSocket) {
        write(&self.udp).remove(&socket.local);
    }

    /// The socket that datagrams for `local` go to.
    pub(super) fn udp_socket(&self, local: SocketAddr) -> Option<Arc<UdpSocket>> {
        let sockets = read(&self.udp);
        let anywhere = SocketAddr::new(unspecified_like(local.ip()), local.port());
        sockets.get(&local).or_else(|| sockets.get(&anywhere)).cloned()
    }

    /// Sends a whole packet, or drops it when there is no room. `flow` is what it belongs to: the packets of one
    /// leave in order.
    pub(super) fn send_packet(&self, flow: u64, packet: Vec<u8>) {
        if !self.lanes.push_packet(flow, packet.into()) {
            count(&self.counters.outbound_dropped);
        }
    }

    /// The longest packets that `destination` is sent.
    pub(super) fn mtu_to(&self, destination: IpAddr) -> usize {
        lock(&self.paths).get(destination, Instant::now()).map_or(self.mtu, |mtu| mtu.min(self.mtu))
    }

    /// A router has no room for packets to `destination` that are longer than `claimed`, and quoted one that was sent. Returns
    /// how long they may be; `None` when that is nothing new.
    pub(super) fn learn_mtu(&self, destination: IpAddr, claimed: usize) -> Option<usize> {
        let mtu = believable(destination, claimed).filter(|mtu| *mtu < self.mtu_to(destination))?;
        lock(&self.paths).learn(destination, mtu, Instant::now());
        Some(mtu)
    }

    /// Sends a whole packet in as many fragments as it takes.
    pub(super) fn send_in_fragments(&self, flow: u64, packet: &[u8], mtu: usize) -> io::Result<()> {
        fragments::cut(packet, mtu, random()? as u32).for_each(|fragment| self.send_packet(flow, fragment));
        Ok(())
    }

    /// Takes a fragment, and gives the packet that it completes.
    pub(super) fn reassemble(&self, fragment: &[u8]) -> Option<Vec<u8>> {
        let (packet, given_up) = lock(&self.reassembly).add(fragment, Instant::now());
        self.counters.fragments_dropped.fetch_add(given_up, Ordering::Relaxed);
        packet
    }

    /// Tells the sender of a datagram that nobody has its port, unless that was said often of late.
    pub(super) fn refuse_datagram(&self, packet: &[u8], local: SocketAddr, remote: SocketAddr) {
        count(&self.counters.udp_refused);
        let now = self.timers.now().total_micros().unsigned_abs() * 1000;
        if lock(&self.icmp_limiter).allow(now)
            && let Some(error) = icmp::port_unreachable(packet)
        {
            self.send_packet(self.flow_of(local, remote), error.to_vec());
        }
    }

    /// What packets between these two ends have in common, so that they leave in order.
    pub(super) fn flow_of(&self, local: SocketAddr, remote: SocketAddr) -> u64 {
        self.hasher.hash_one(FlowKey { local, remote })
    }

    /// Refuses a TCP segment (RFC 9293 §3.10.7.1): `packet` is whole, with its TCP header at `offset`.
    pub(super) fn reset(&self, key: &FlowKey, packet: &[u8], offset: usize) {
        count(&self.counters.tcp_refused);
        let segment = &packet[offset..];
        let field = |at: usize| u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
        let (flags, header_len) = (segment[13], usize::from(segment[12] >> 4) * 4);
        let mut sequence = 0;
        let (mut acknowledgement, mut answer) = (0, headers::TCP_RST);
        if flags & headers::TCP_ACK != 0 {
            sequence = field(8);
        } else {
            let controls = u32::from(flags & headers::TCP_SYN != 0) + u32::from(flags & headers::TCP_FIN != 0);
            let payload = segment.len().saturating_sub(header_len) as u32;
            acknowledgement = field(4).wrapping_add(payload).wrapping_add(controls);
            answer |= headers::TCP_ACK;
        }
        let mut reset = headers::begin(key.local.ip(), key.remote.ip(), ip::TCP, headers::TCP_HEADER_LEN);
        let offset = reset.len();
        reset.extend(key.local.port().to_be_bytes());
        reset.extend(key.remote.port().to_be_bytes());
        reset.extend(sequence.to_be_bytes());
        reset.extend(acknowledgement.to_be_bytes());
        reset.extend([0x50, answer, 0, 0, 0, 0, 0, 0]);
        headers::complete(&mut reset, offset, ip::TCP);
        self.send_packet(self.hasher.hash_one(key), reset);
    }

    // --- The whole ---------------------------------------------------------------------------

    pub(super) fn stats(&self) -> Stats {
        Stats {
            tcp_open: read(&self.flows).len(),
            tcp_time_wait: lock(&self.time_waits).len(),
            ..self.counters.stats()
        }
    }

    /// The interface is gone: everything that waits is told.
    pub(super) fn close(&self) {
        if self.is_gone.swap(true, Ordering::AcqRel) {
            return;
        }
        let down = io::ErrorKind::NetworkDown;
        let listeners: Vec<_> = write(&self.listeners).drain().map(|(_, listener)| listener).collect();
        listeners.iter().for_each(|listener| self.unlisten(listener, down));
        let flows: Vec<_> = write(&self.flows).drain().map(|(_, flow)| flow).collect();
        for flow in flows {
            flow.fail(down, self.timers.now()).wake();
        }
        let sockets: Vec<_> = write(&self.udp).drain().map(|(_, socket)| socket).collect();
        sockets.iter().for_each(|socket| socket.close(down));
        lock(&self.half_open).clear();
        self.lanes.clear();
        self.timers.close();
    }
}

/// Why no connection was made for a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotAccepted {
    /// Nobody listens.
    Refused,
    /// There is no room.
    Overflow,
}

fn too_many_connections() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "the stack has as many TCP connections as it may have")
}

/// Whether two sockets cannot have these addresses at the same time.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let (a, b) = (one.ip(), other.ip());
    one.port() == other.port() && a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(addresses: &[(&str, u8)]) -> Arc<Stack> {
        let addresses = addresses.iter().map(|(address, len)| (address.parse().unwrap(), *len)).collect();
        Stack::new(Config::new(addresses)).unwrap()
    }

    #[test]
    fn sources() {
        let stack = stack(&[("10.0.0.1", 24), ("10.0.1.1", 24), ("10.0.1.9", 32), ("fd00::1", 64), ("fd01::1", 0)]);
        let check = |destination: &str, expected: Option<&str>| {
            let found = stack.source_for(destination.parse().unwrap()).ok().map(|source| source.to_string());
            assert_eq!(found.as_deref(), expected, "{destination}");
        };
        check("10.0.0.7", Some("10.0.0.1"));
        check("10.0.1.7", Some("10.0.1.1"));
        check("10.0.1.9", Some("10.0.1.9"));
        check("8.8.8.8", Some("10.0.0.1"));
        check("fd00::7", Some("fd00::1"));
        check("2001:db8::1", Some("fd01::1"));
        stack.set_addresses(vec![("10.0.0.1".parse().unwrap(), 24)]).unwrap();
        check("fd00::7", None);
        assert_eq!(stack.source_for("::1".parse().unwrap()).unwrap_err().kind(), io::ErrorKind::NetworkUnreachable);
    }

    #[test]
    fn configurations_that_make_no_sense() {
        let check = |change: fn(&mut Config)| {
            let mut config = Config::new(vec![(Ipv4Addr::new(10, 0, 0, 1).into(), 24)]);
            change(&mut config);
            assert_eq!(Stack::new(config).err().map(|error| error.kind()), Some(io::ErrorKind::InvalidInput));
        };
        check(|config| config.mtu = 575);
        check(|config| config.mtu = 65_476);
        check(|config| {
            config.mtu = 1279;
            config.addresses.push((Ipv6Addr::LOCALHOST.into(), 128));
        });
        check(|config| config.tcp_buffer = 0);
        check(|config| config.tcp_buffer = (1 << 30) + 1);
        check(|config| config.addresses[0].1 = 33);
        check(|config| config.addresses[0].0 = Ipv6Addr::UNSPECIFIED.into());
    }

    #[test]
    fn an_ipv6_address_needs_the_mtu_for_it() {
        let stack_with = |mtu: usize| {
            let mut config = Config::new(vec![(Ipv4Addr::new(10, 0, 0, 1).into(), 24)]);
            config.mtu = mtu;
            Stack::new(config).unwrap()
        };
        let set = |mtu: usize| stack_with(mtu).set_addresses(vec![(Ipv6Addr::LOCALHOST.into(), 128)]);
        assert_eq!(set(1279).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        set(1280).unwrap();
        stack_with(576);
        stack_with(65_475);
    }

    #[test]
    fn ports_are_taken_once() {
        let stack = stack(&[("10.0.0.1", 24), ("10.0.0.2", 24), ("fd00::1", 64)]);
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let kind = |result: io::Result<Arc<Listener>>| result.err().map(|error| error.kind());
        let first = stack.listen(at("10.0.0.1:80")).unwrap();
        assert_eq!(kind(stack.listen(at("10.0.0.1:80"))), Some(io::ErrorKind::AddrInUse));
        assert_eq!(kind(stack.listen(at("0.0.0.0:80"))), Some(io::ErrorKind::AddrInUse));
        assert_eq!(kind(stack.listen(at("10.0.0.3:80"))), Some(io::ErrorKind::AddrNotAvailable));
        assert_eq!(kind(stack.listen(at("10.0.0.2:80"))), None);
        assert_eq!(kind(stack.listen(at("[::]:80"))), None);
        stack.unlisten(&first, io::ErrorKind::ConnectionAborted);
        assert_eq!(kind(stack.listen(at("10.0.0.1:80"))), None);

        let any = stack.bind_udp(at("10.0.0.1:0")).unwrap();
        assert!(EPHEMERAL_PORTS.contains(&any.local.port()));
        assert!(stack.bind_udp(any.local).is_err());
        assert!(stack.bind_udp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), any.local.port())).is_err());
        stack.unbind_udp(&any);
        assert!(stack.bind_udp(any.local).is_ok());
    }
}
