//! What a stack is made from, and what it counts.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};

/// Fewest bytes of an MTU: what every IPv4 host takes (RFC 791 §3.1).
pub const MTU_FEWEST: usize = 576;

/// The same for a stack with an IPv6 address: what every IPv6 link must carry (RFC 8200 §5).
pub const MTU_FEWEST_IPV6: usize = 1280;

/// Most bytes of an MTU: with the 32 bytes that WireGuard adds, a packet fills the largest UDP datagram that IPv4 carries.
pub const MTU_MOST: usize = 65_507 - 32;

/// What a stack is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Config {
    /// What its end for the device is called, in figures and in the log; `netstack` unless set.
    pub name: String,
    /// Its own addresses, each with the prefix length of its network. The first of a family is what connections are made
    /// from, unless another one's network contains the destination.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Bytes in a packet, 1280 to 65,475, without IPv6 from 576; 1420 unless set, which is what the kernel's WireGuard takes.
    pub mtu: usize,
    /// Who is asked for the addresses of names, in this order; reached through the tunnel.
    pub dns: Vec<SocketAddr>,
    /// Domains that are appended to a name that has no dot in it.
    pub search: Vec<String>,
    /// TCP connections at the same time, those included that are being established or closed; 16,384 unless set.
    pub connections_max: usize,
    /// Bytes in each of a TCP connection's two buffers, from 4096 to 1 GiB; 256 KiB unless set. It bounds what is under way
    /// and with it the throughput, to this many bytes in a round trip. An idle connection takes about 10 KiB of memory, one whose
    /// buffers were used all of both; where the allocator clears memory that it gives out again, as glibc's does, so does
    /// a connection that follows others. `connections_max` times twice this is the bound.
    pub tcp_buffer: usize,
}

impl Config {
    /// The defaults, with these addresses and prefix lengths, no DNS server and no domain.
    pub fn new(addresses: Vec<(IpAddr, u8)>) -> Self {
        Self {
            name: "netstack".to_owned(),
            addresses,
            mtu: 1420,
            dns: Vec::new(),
            search: Vec::new(),
            connections_max: 16_384,
            tcp_buffer: 256 << 10,
        }
    }
}

/// What a stack has done and what it has now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// TCP connections that there are now, in any state but TIME-WAIT.
    pub tcp_open: usize,
    /// TCP connections in TIME-WAIT.
    pub tcp_time_wait: usize,
    /// TCP connections that were asked for by this side.
    pub tcp_connects: u64,
    /// TCP connections that were accepted from a peer.
    pub tcp_accepts: u64,
    /// TCP segments to where nobody listens, which were answered with a reset.
    pub tcp_refused: u64,
    /// Connections asked for by a peer that were dropped because a bound was reached: `connections_max`, a listener's
    /// backlog, or the half-open ones that the stack keeps.
    pub tcp_overflows: u64,
    /// UDP datagrams to a port that nobody has.
    pub udp_refused: u64,
    /// UDP datagrams that their socket had no room for.
    pub udp_overflows: u64,
    /// Fragments that never became a packet: some were missing, they overlapped, or there was no room for them.
    pub fragments_dropped: u64,
    /// Packets of ours that the interface had no room for; never TCP data.
    pub outbound_dropped: u64,
    /// Packets that were malformed, had a wrong checksum, or were for another address.
    pub inbound_dropped: u64,
}

/// The counters behind [`Stats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) tcp_connects: AtomicU64,
    pub(super) tcp_accepts: AtomicU64,
    pub(super) tcp_refused: AtomicU64,
    pub(super) tcp_overflows: AtomicU64,
    pub(super) udp_refused: AtomicU64,
    pub(super) udp_overflows: AtomicU64,
    pub(super) fragments_dropped: AtomicU64,
    pub(super) outbound_dropped: AtomicU64,
    pub(super) inbound_dropped: AtomicU64,
}

/// One more.
pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub(super) fn stats(&self) -> Stats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            tcp_open: 0,
            tcp_time_wait: 0,
            tcp_connects: read(&self.tcp_connects),
            tcp_accepts: read(&self.tcp_accepts),
            tcp_refused: read(&self.tcp_refused),
            tcp_overflows: read(&self.tcp_overflows),
            udp_refused: read(&self.udp_refused),
            udp_overflows: read(&self.udp_overflows),
            fragments_dropped: read(&self.fragments_dropped),
            outbound_dropped: read(&self.outbound_dropped),
            inbound_dropped: read(&self.inbound_dropped),
        }
    }
}
