//! Whether a sidecar is ready: whether each peer that it is there for can be reached now.
//!
//! [`Readiness`] judges by what it is told and by the time that is passed in; it asks nobody and waits for nothing.
//! [`Health`] tells it: it looks at a device, asks for the handshakes that the judgement wants, and is the
//! [`Site`] that the HTTP server shows.
//!
//! # The rule
//! A required peer is judged by the strictest of what is configured for it:
//!
//! | configured | the peer is reachable while | lost at the latest after |
//! |---|---|---|
//! | `CheckAlive` with an address behind it | each such address has answered a ping within [`Pings::patience`] | 18 s, with an interval up to 16 s |
//! | a persistent keepalive | its last handshake is younger than [`FRESH`], and something authentic came from it within [`SILENCE`], or comes, or a new handshake completes, within [`ANSWER_WATCHED`] after asking for one | 20 s |
//! | neither | its last handshake is younger than [`FRESH`], or a new one completes within [`ANSWER`] after asking for it | [`FRESH`] + [`ANSWER`] |
//!
//! A keepalive that we send is not answered: WireGuard answers data alone. So our own interval says that the tunnel is
//! meant to be up at all times, and not that anything will be heard. What counts as a sign of life is any authentic
//! message from the peer, its own keepalives among them, as its received bytes grow by them; a peer that is silent is
//! asked for a handshake, which it answers in one round trip if it is there. An idle tunnel with a keepalive
//! therefore makes a handshake about every ten seconds, and one with traffic none beyond the usual.
//!
//! # A peer's standing
//! ```text
//!          first handshake             no longer fresh: ask
//!   New ───────────────────▶ Reachable ────────────────────▶ Asked
//!    │ asks again each ANSWER    ▲  ▲   a sign of life          │ nothing within the answer's time
//!    └───────────────────────────┘  └───────────────────────────┤
//!                                   └──────────── Lost ◀────────┘
//!                                     asks again each ANSWER
//! ```
//! A clock that is set forward, and a machine that wakes up, make a handshake old before its time: then the peer is asked
//! for another one, which it has time to answer. `Reachable` and `Asked` are ready, `New` and `Lost` are not. `Lost` ends by itself, with the first handshake that
//! completes, whoever began it.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::device::Device;
use crate::device::config::PeerSnapshot;
use crate::key::PublicKey;
use crate::metrics::{Exposition, Family, Site};

/// A handshake is fresh for so long: REJECT_AFTER_TIME of the protocol, after which its session is no use.
pub const FRESH: Duration = Duration::from_secs(180);
/// How long a handshake that was asked for may take where nothing says that the peer is meant to be there at all times:
/// three attempts, 5 s apart.
pub const ANSWER: Duration = Duration::from_secs(15);
/// How long a watched peer may be silent before it is asked for a handshake: two looks. A busy peer is never asked.
pub const SILENCE: Duration = LOOK_EVERY.saturating_mul(2);
/// How long a handshake with a watched peer may take: two attempts, 5 s apart.
pub const ANSWER_WATCHED: Duration = Duration::from_secs(8);
/// How often a watched peer is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// However late it is, others have their turn between two looks.
const LOOK_PAUSE_MIN: Duration = Duration::from_millis(100);
/// What the disappearance of a watched peer may take to be noticed.
const NOTICED_WITHIN: Duration = Duration::from_secs(20);
/// What is granted to an answered ping beyond its interval.
const PING_SLACK: Duration = Duration::from_secs(2);
/// Up to this, a ping's interval may pass twice, so that one lost ping loses nothing.
const TWICE_UP_TO: Duration = Duration::from_secs(16);

// The peer may vanish just after a look: the first look then still finds bytes that it sent before.
const _: () = assert!(
    LOOK_EVERY.as_secs() + SILENCE.as_secs() + ANSWER_WATCHED.as_secs() <= NOTICED_WITHIN.as_secs(),
    "a disappearance is noticed in time"
);

/// The pings of `CheckAlive` to the addresses behind one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pings {
    /// The addresses; all must answer.
    pub addresses: Vec<IpAddr>,
    /// How often each is pinged.
    pub interval: Duration,
}

impl Pings {
    /// How old the last answer may be: twice the interval, but not more than 16 s if the interval is not; and two
    /// seconds.
    pub fn patience(&self) -> Duration {
        (self.interval * 2).min(TWICE_UP_TO).max(self.interval) + PING_SLACK
    }
}

/// A peer that must be reachable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Required {
    /// Which.
    pub public_key: PublicKey,
    /// The pings to what lies behind it, if there are any: then they alone decide.
    pub pings: Option<Pings>,
}

/// Why a sidecar is not ready. Prints as one line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The device has no such peer.
    NotConfigured(PublicKey),
    /// There was no handshake with the peer yet.
    NoHandshake(PublicKey),
    /// The peer does not answer handshakes; the last one was so long ago.
    NoAnswer(PublicKey, Duration),
    /// An address has not answered a ping for so long; `None` if it never has.
    NoPong(IpAddr, Option<Duration>),
    /// The device has ended.
    Ended,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConfigured(peer) => write!(f, "peer {peer}: is not configured"),
            Self::NoHandshake(peer) => write!(f, "peer {peer}: no handshake has completed yet"),
            Self::NoAnswer(peer, age) => {
                write!(f, "peer {peer}: does not answer; its last handshake was {} s ago", age.as_secs())
            }
            Self::NoPong(address, Some(age)) => {
                write!(f, "address {address}: has not answered a ping for {} s", age.as_secs())
            }
            Self::NoPong(address, None) => write!(f, "address {address}: has never answered a ping"),
            Self::Ended => f.write_str("the device has ended"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    New { asked: Option<Instant> },
    Reachable,
    Asked { since: Instant },
    Lost { asked: Instant },
}

/// What is known of a required peer.
#[derive(Debug)]
struct Watched {
    required: Required,
    configured: bool,
    watched: bool,
    standing: Standing,
    /// As the device last told it.
    handshake: Option<Duration>,
    rx_bytes: u64,
    /// When the last handshake completed, on the clock that nobody sets.
    handshake_at: Option<Instant>,
    /// When the peer was last heard of; not later than it was.
    heard_at: Option<Instant>,
    /// When it was last looked at.
    looked_at: Option<Instant>,
}

impl Watched {
    fn new(required: Required) -> Self {
        Self {
            required,
            configured: false,
            watched: false,
            standing: Standing::New { asked: None },
            handshake: None,
            rx_bytes: 0,
            handshake_at: None,
            heard_at: None,
            looked_at: None,
        }
    }

    /// Takes in what the device says. `unix_now` is the present time as the device's clock of handshakes tells it.
    fn look(&mut self, peer: Option<&PeerSnapshot>, unix_now: Duration, now: Instant) {
        self.configured = peer.is_some();
        let Some(peer) = peer else {
            let required = self.required.clone();
            *self = Self::new(required);
            return;
        };
        if peer.rx_bytes < self.rx_bytes || peer.last_handshake.is_none() {
            // Removed and made anew in the meantime.
            (self.handshake, self.handshake_at, self.heard_at) = (None, None, None);
        } else if peer.rx_bytes > self.rx_bytes {
            // At some time since the last look; a first look cannot tell that it was lately.
            self.heard_at = self.looked_at.or(self.heard_at);
        }
        if let Some(handshake) = peer.last_handshake {
            // The wall clock goes on while the machine sleeps, so it counts; where it was set back it does not.
            let known = self.handshake_at.filter(|_| self.handshake == Some(handshake));
            let at = now.checked_sub(unix_now.saturating_sub(handshake)).unwrap_or(now);
            self.handshake_at = Some(known.map_or(at, |known| known.min(at)));
            if known.is_none() {
                self.heard_at = self.heard_at.max(self.handshake_at);
            }
        }
        self.handshake = peer.last_handshake;
        self.rx_bytes = peer.rx_bytes;
        self.watched = peer.persistent_keepalive != 0;
        self.looked_at = Some(now);
    }

    fn age(&self, now: Instant) -> Option<Duration> {
        self.handshake_at.map(|at| now.saturating_duration_since(at))
    }

    fn is_fresh(&self, now: Instant) -> bool {
        let silence = self.heard_at.map(|at| now.saturating_duration_since(at));
        self.age(now).is_some_and(|age| age < FRESH) && (!self.watched || silence.is_some_and(|age| age < SILENCE))
    }

    fn answer(&self) -> Duration {
        if self.watched { ANSWER_WATCHED } else { ANSWER }
    }

    /// Moves the standing on; true if a handshake is to be asked for.
    fn step(&mut self, now: Instant) -> bool {
        let over = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        let (standing, ask) = match self.standing {
            _ if self.is_fresh(now) => (Standing::Reachable, false),
            Standing::New { asked } if asked.is_none_or(|at| over(at, ANSWER)) => {
                (Standing::New { asked: Some(now) }, true)
            }
            Standing::Reachable => (Standing::Asked { since: now }, true),
            Standing::Asked { since } if over(since, self.answer()) => (Standing::Lost { asked: now }, true),
            Standing::Lost { asked } if over(asked, ANSWER) => (Standing::Lost { asked: now }, true),
            unchanged => (unchanged, false),
        };
        self.standing = standing;
        ask && self.configured
    }

    /// When it is to be looked at again, if nobody asks before.
    fn next_look(&self, now: Instant) -> Instant {
        let due = match self.standing {
            _ if self.watched => self.looked_at.map(|at| at + LOOK_EVERY),
            Standing::Reachable => self.handshake_at.map(|at| at + FRESH),
            Standing::New { asked } => asked.map(|at| at + ANSWER),
            Standing::Asked { since: at } | Standing::Lost { asked: at } => Some(at + ANSWER),
        };
        due.unwrap_or(now + ANSWER)
    }

    fn reason(&self, now: Instant) -> Option<Reason> {
        let peer = self.required.public_key;
        match self.standing {
            _ if !self.configured => Some(Reason::NotConfigured(peer)),
            Standing::Reachable | Standing::Asked { .. } => None,
            Standing::New { .. } | Standing::Lost { .. } => {
                Some(self.age(now).map_or(Reason::NoHandshake(peer), |age| Reason::NoAnswer(peer, age)))
            }
        }
    }
}

/// Judges whether the required peers are reachable. See the [module](self) for the rule.
#[derive(Debug, Default)]
pub struct Readiness {
    peers: Vec<Watched>,
    /// When each pinged address last answered.
    answered: HashMap<IpAddr, Instant>,
}

impl Readiness {
    /// Of these peers. Without any it is always ready.
    pub fn new(required: impl IntoIterator<Item = Required>) -> Self {
        Self { peers: required.into_iter().map(Watched::new).collect(), answered: HashMap::new() }
    }

    /// From now on these peers are required. What is known of those that were before stays known.
    pub fn require(&mut self, required: impl IntoIterator<Item = Required>) {
        let mut known = std::mem::take(&mut self.peers);
        let place = |known: &[Watched], key| known.iter().position(|peer| peer.required.public_key == key);
        for required in required {
            let peer = match place(&known, required.public_key) {
                Some(place) => Watched { required, ..known.swap_remove(place) },
                None => Watched::new(required),
            };
            self.peers.push(peer);
        }
        let pinged =
            |address: &IpAddr| self.peers.iter().any(|peer| pings(peer).is_some_and(|p| p.addresses.contains(address)));
        self.answered.retain(|address, _| pinged(address));
    }

    /// A ping to this address was answered.
    pub fn pinged(&mut self, address: IpAddr, now: Instant) {
        if self.peers.iter().any(|peer| pings(peer).is_some_and(|pings| pings.addresses.contains(&address))) {
            self.answered.insert(address, now);
        }
    }

    /// Takes in what the device says of its peers at `now`, which is `unix_now` since 1970 on the clock that handshakes
    /// are told by. Returns the peers that a handshake is to be started with.
    pub fn look(&mut self, peers: &[PeerSnapshot], unix_now: Duration, now: Instant) -> Vec<PublicKey> {
        let mut ask = Vec::new();
        for watched in &mut self.peers {
            let key = watched.required.public_key;
            watched.look(peers.iter().find(|peer| peer.public_key == key), unix_now, now);
            if watched.required.pings.is_none() && watched.step(now) {
                ask.push(key);
            }
        }
        ask
    }

    /// When to look again at the latest; `None` if time alone changes nothing.
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        self.peers.iter().filter(|peer| peer.required.pings.is_none()).map(|peer| peer.next_look(now)).min()
    }

    /// Why it is not ready, as of the last look; nothing when it is.
    pub fn reasons(&self, now: Instant) -> Vec<Reason> {
        let mut reasons = Vec::new();
        for peer in &self.peers {
            let Some(pings) = pings(peer).filter(|_| peer.configured) else {
                reasons.extend(peer.reason(now));
                continue;
            };
            for &address in &pings.addresses {
                let age = self.answered.get(&address).map(|&at| now.saturating_duration_since(at));
                if age.is_none_or(|age| age > pings.patience()) {
                    reasons.push(Reason::NoPong(address, age));
                }
            }
        }
        reasons
    }
}

fn pings(peer: &Watched) -> Option<&Pings> {
    peer.required.pings.as_ref()
}

/// Figures of the sidecar beside its device's.
pub type Families = Box<dyn Fn() -> Vec<Family> + Send + Sync>;

/// The health of a sidecar: what its HTTP server shows.
pub struct Health {
    device: Weak<Device>,
    readiness: Mutex<Readiness>,
    families: Families,
}

impl Health {
    /// The health of that device, with nothing required yet.
    pub fn new(device: &Arc<Device>, families: Families) -> Self {
        Self { device: Arc::downgrade(device), readiness: Mutex::default(), families }
    }

    /// From now on these peers are required.
    pub fn require(&self, required: impl IntoIterator<Item = Required>) {
        self.readiness().require(required);
    }

    /// A ping to this address was answered just now.
    pub fn pinged(&self, address: IpAddr) {
        self.readiness().pinged(address, Instant::now());
    }

    /// Looks at the device, and starts the handshakes that are wanted. Returns when to look again at the latest.
    ///
    /// # Errors
    /// [`Reason::Ended`] when there is nothing more to look at.
    pub fn look(&self) -> Result<Option<Instant>, Reason> {
        let device = self.device.upgrade().filter(|device| device.is_running()).ok_or(Reason::Ended)?;
        let snapshot = device.snapshot();
        // A clock before 1970 makes every handshake young, until it is set.
        let unix_now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = Instant::now();
        let mut readiness = self.readiness();
        let ask = readiness.look(&snapshot.peers, unix_now, now);
        let next = readiness.next_look(now);
        drop(readiness);
        ask.iter().for_each(|peer| device.start_handshake(peer));
        Ok(next)
    }

    /// Looks whenever it is time to, for as long as the device runs. Nothing is lost when this is dropped.
    pub async fn watch(&self) {
        while let Ok(next) = self.look() {
            // Peers may become required at any time; without any there is nothing to be late for.
            let next = next.unwrap_or_else(|| Instant::now() + ANSWER);
            tokio::time::sleep_until(next.max(Instant::now() + LOOK_PAUSE_MIN).into()).await;
        }
    }

    fn readiness(&self) -> MutexGuard<'_, Readiness> {
        // Each look leaves it whole, whatever happened to the one before.
        self.readiness.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Site for Health {
    fn is_alive(&self) -> Result<(), String> {
        let device = self.device.upgrade().filter(|device| device.is_running());
        device.map(drop).ok_or_else(|| Reason::Ended.to_string())
    }

    fn is_ready(&self) -> Result<(), Vec<String>> {
        self.look().map_err(|reason| vec![reason.to_string()])?;
        let reasons = self.readiness().reasons(Instant::now());
        if reasons.is_empty() { Ok(()) } else { Err(reasons.iter().map(Reason::to_string).collect()) }
    }

    fn metrics(&self) -> Option<Exposition> {
        let device = self.device.upgrade()?;
        let exposition = Exposition::new(&device.name(), &device.snapshot(), device.figures());
        Some(exposition.with((self.families)()))
    }
}

#[cfg(test)]
mod tests;
