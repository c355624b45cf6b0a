//! The usual two ends: a namespace each, a veth pair as the outer network, a daemon each, a tunnel between them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::capture::Capture;
use super::daemon::{Daemon, Implementation, unique_interface};
use super::keys::{Keys, random_key};
use super::namespace::{Namespace, veth};
use super::traffic::{ping, transfer};

/// The outer interface of either end.
pub const OUTER: &str = "outer";

/// The address family of the endpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outer {
    V4,
    V6,
}

impl Outer {
    /// The outer address of end number `n`.
    pub fn address(self, n: u8) -> IpAddr {
        match self {
            Self::V4 => Ipv4Addr::new(10, 0, 0, n).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n.into()).into(),
        }
    }
}

/// Who knows the other's endpoint, and so can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initiator {
    Left,
    Right,
    Both,
}

/// How a [`Pair`] is made.
#[derive(Debug, Clone)]
pub struct PairOptions {
    pub left: Implementation,
    pub right: Implementation,
    pub outer: Outer,
    pub initiator: Initiator,
    pub psk: bool,
    /// Both tunnel interfaces' MTU; what the daemon chooses if `None`.
    pub inner_mtu: Option<u32>,
    /// The veth pair's MTU; the system's 1500 if `None`.
    pub outer_mtu: Option<u32>,
    /// The worker threads of either daemon (`ADIT_THREADS`); what the daemon chooses if `None`.
    pub threads: Option<usize>,
    /// Watches that nothing leaves in plaintext and nothing arrives sealed. Costs two captures.
    pub wiretap: bool,
}

impl Default for PairOptions {
    fn default() -> Self {
        Self {
            left: Implementation::Adit,
            right: Implementation::Adit,
            outer: Outer::V4,
            initiator: Initiator::Left,
            psk: false,
            inner_mtu: None,
            outer_mtu: None,
            threads: None,
            wiretap: true,
        }
    }
}

/// One end of a tunnel: a daemon with a key, a port and inner addresses.
#[derive(Debug)]
pub struct Node {
    pub daemon: Daemon,
    pub ns: Namespace,
    pub keys: Keys,
    pub port: u16,
    pub inner_v4: Ipv4Addr,
    pub inner_v6: Ipv6Addr,
}

impl Node {
    /// Starts a daemon as end number `n`, gives it a key, a port and its inner addresses, and brings it up.
    #[track_caller]
    pub fn start(ns: &Namespace, implementation: Implementation, n: u8) -> Self {
        Self::start_with(ns, implementation, n, None)
    }

    /// The same with this number of worker threads.
    #[track_caller]
    pub fn start_with(ns: &Namespace, implementation: Implementation, n: u8, threads: Option<usize>) -> Self {
        let daemon = Self::start_daemon(ns, implementation, threads);
        let node = Self {
            daemon,
            ns: ns.clone(),
            keys: Keys::generate(),
            port: 51_820 + u16::from(n),
            inner_v4: Ipv4Addr::new(192, 168, 241, n),
            inner_v6: Ipv6Addr::new(0xfd00, 0x241, 0, 0, 0, 0, 0, n.into()),
        };
        node.bring_up(&node.interface_section());
        node
    }

    #[track_caller]
    fn start_daemon(ns: &Namespace, implementation: Implementation, threads: Option<usize>) -> Daemon {
        let threads = threads.map(|threads| threads.to_string());
        let environment = threads.iter().map(|threads| ("ADIT_THREADS", threads.as_str())).collect::<Vec<_>>();
        Daemon::start_with(ns, implementation, &unique_interface(), &environment)
    }

    /// Gives its daemon this configuration and its inner addresses, and brings it up.
    #[track_caller]
    pub fn bring_up(&self, configuration: &str) {
        self.daemon.setconf(configuration);
        self.daemon.ip(&format!("address add {}/24 dev DEV", self.inner_v4));
        self.daemon.ip(&format!("address add {}/64 dev DEV nodad", self.inner_v6));
        self.daemon.ip("link set DEV up");
    }

    /// Kills the daemon and starts another in its place, with this configuration and the same addresses.
    #[track_caller]
    pub fn restart(&mut self, configuration: &str) {
        self.daemon.kill();
        self.daemon = Self::start_daemon(&self.ns, Implementation::Adit, None);
        self.bring_up(configuration);
    }

    /// Its `[Interface]` section.
    pub fn interface_section(&self) -> String {
        format!("[Interface]\nPrivateKey = {}\nListenPort = {}\n", self.keys.private, self.port)
    }

    /// Its `[Peer]` section in the other's configuration, with these further lines.
    pub fn peer_section(&self, endpoint: Option<SocketAddr>, further: &str) -> String {
        let endpoint = endpoint.map(|endpoint| format!("Endpoint = {endpoint}\n")).unwrap_or_default();
        format!(
            "[Peer]\nPublicKey = {}\nAllowedIPs = {}/32, {}/128\n{endpoint}{further}\n",
            self.keys.public, self.inner_v4, self.inner_v6
        )
    }

    /// Adds the other as a peer, with these further lines.
    #[track_caller]
    pub fn add_peer(&self, other: &Self, endpoint: Option<SocketAddr>, further: &str) {
        self.daemon.addconf(&other.peer_section(endpoint, further));
    }

    /// What the daemon says of the peer `other`.
    #[track_caller]
    pub fn peer(&self, other: &Self) -> super::DumpedPeer {
        self.daemon.dump().peer(&other.keys.public).clone()
    }

    /// Pings an address three times.
    #[track_caller]
    pub fn ping(&self, to: impl std::fmt::Display) {
        ping(&self.ns, to, 3);
    }
}

/// Two nodes and the tunnel between them. When dropped, the wiretap is looked through.
#[derive(Debug)]
pub struct Pair {
    pub left: Node,
    pub right: Node,
    pub options: PairOptions,
    pub psk: Option<String>,
    wiretap: Option<[(&'static str, Capture); 2]>,
}

impl Pair {
    /// Two ends of the program under test, outer IPv4, no preshared key, the left one initiates.
    #[track_caller]
    pub fn new() -> Self {
        Self::with(PairOptions::default())
    }

    /// Makes both ends and configures them with `wg setconf`; no packet has passed yet.
    #[track_caller]
    pub fn with(options: PairOptions) -> Self {
        let (left, right) = (Namespace::new("left"), Namespace::new("right"));
        veth(&left, OUTER, &right, OUTER);
        for (ns, n) in [(&left, 1), (&right, 2)] {
            ns.ip(&format!("address add {}/24 dev {OUTER}", Outer::V4.address(n)));
            ns.ip(&format!("address add {}/64 dev {OUTER} nodad", Outer::V6.address(n)));
            if let Some(mtu) = options.outer_mtu {
                ns.ip(&format!("link set {OUTER} mtu {mtu}"));
            }
        }
        let left = Node::start_with(&left, options.left, 1, options.threads);
        let right = Node::start_with(&right, options.right, 2, options.threads);
        let mut pair = Self { left, right, psk: options.psk.then(random_key), options, wiretap: None };
        let (left_conf, right_conf) = pair.configurations();
        if let Some(mtu) = pair.options.inner_mtu {
            pair.left.daemon.ip(&format!("link set DEV mtu {mtu}"));
            pair.right.daemon.ip(&format!("link set DEV mtu {mtu}"));
        }
        if pair.options.wiretap {
            pair.wiretap = Some(pair.tap());
        }
        pair.left.daemon.setconf(&left_conf);
        pair.right.daemon.setconf(&right_conf);
        pair
    }

    /// The configurations of the left and of the right end, as `wg setconf` takes them.
    pub fn configurations(&self) -> (String, String) {
        let psk = self.psk.as_ref().map(|key| format!("PresharedKey = {key}\n")).unwrap_or_default();
        let knows = |initiator: Initiator| [initiator, Initiator::Both].contains(&self.options.initiator);
        let to_right = knows(Initiator::Left).then(|| self.right_endpoint());
        let to_left = knows(Initiator::Right).then(|| self.left_endpoint());
        (
            self.left.interface_section() + &self.right.peer_section(to_right, &psk),
            self.right.interface_section() + &self.left.peer_section(to_left, &psk),
        )
    }

    /// Where the left end is reached.
    pub fn left_endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.options.outer.address(1), self.left.port)
    }

    /// Where the right end is reached.
    pub fn right_endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.options.outer.address(2), self.right.port)
    }

    /// A further namespace, joined to the left one by an outer network of its own: `10.0.N.0/24`, the left end at 1, the
    /// new one at `n`.
    #[track_caller]
    pub fn join(&self, role: &str, n: u8) -> Namespace {
        let namespace = Namespace::new(role);
        let name = format!("{OUTER}{n}");
        veth(&self.left.ns, &name, &namespace, OUTER);
        self.left.ns.ip(&format!("address add 10.0.{n}.1/24 dev {name}"));
        namespace.ip(&format!("address add 10.0.{n}.{n}/24 dev {OUTER}"));
        namespace
    }

    /// Where the left end is reached from the namespace that `join` made with `n`.
    pub fn left_endpoint_from(&self, n: u8) -> SocketAddr {
        SocketAddr::new(Ipv4Addr::new(10, 0, n, 1).into(), self.left.port)
    }

    /// Brings the session up by pings in both directions, the initiator's first.
    #[track_caller]
    pub fn ping_both_ways(&self) {
        let (first, second) = match self.options.initiator {
            Initiator::Left | Initiator::Both => (&self.left, &self.right),
            Initiator::Right => (&self.right, &self.left),
        };
        first.ping(second.inner_v4);
        second.ping(first.inner_v4);
        first.ping(second.inner_v6);
        second.ping(first.inner_v6);
    }

    /// Moves `len` bytes over TCP there and back, begun by either end.
    #[track_caller]
    pub fn transfer_both_ways(&self, len: usize) {
        transfer(&self.left.ns, &self.right.ns, self.right.inner_v4.into(), len);
        transfer(&self.right.ns, &self.left.ns, self.left.inner_v6.into(), len);
    }

    /// On the outer wire only WireGuard's four messages may pass, and on the tunnel interface none of them.
    fn tap(&self) -> [(&'static str, Capture); 2] {
        let ports = format!("(udp port {} or udp port {})", self.left.port, self.right.port);
        // Fragments after the first have no UDP header to look at: what they belong to has been looked at.
        let message_v4 = "(ip and udp[8] >= 1 and udp[8] <= 4 and udp[9:2] = 0 and udp[11] = 0)";
        let message_v6 = "(ip6[6] = 17 and ip6[48] >= 1 and ip6[48] <= 4 and ip6[49:2] = 0 and ip6[51] = 0)";
        let fragment = "(ip[6:2] & 0x1fff != 0) or (ip6 and ip6[6] = 44)";
        // An ICMP error repeats the datagram that it is about: one of the outer network's.
        let refused = "(icmp[0] = 3 and icmp[17] = 17 and icmp[20:2] = 0x0a00)";
        let harmless = format!("arp or icmp6 or igmp or (ip6 and ip6[6] = 0) or {refused}");
        let on_the_wire = format!("not ({harmless} or {fragment} or ({ports} and ({message_v4} or {message_v6})))");
        [
            ("plaintext on the outer wire", Capture::start(&self.left.ns, OUTER, &on_the_wire)),
            ("ciphertext on the tunnel interface", {
                Capture::start(&self.left.ns, self.left.daemon.interface(), &ports)
            }),
        ]
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for (what, capture) in self.wiretap.take().into_iter().flatten() {
            let frames = capture.stop();
            assert!(frames.is_empty(), "{what}: {} packets, the first {:02x?}", frames.len(), frames[0].bytes);
        }
    }
}
