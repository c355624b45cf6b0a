//! Endpoints that are names: when to resolve them, and which of their addresses to take.
//!
//! ```text
//!          first answer                 silent
//! unknown ─────────────▶ known ◀──────────────────▶ asked again, later and later
//!    ▲ │                         an answer, or heard
//!    └─┘ no answer: asked again, later and later
//! ```
//!
//! - A peer is silent when something was sent to it and nothing came back: for [`SILENCE`] without a session, for
//!   [`SILENCE_IN_SESSION`] with one, since the device itself first tries another handshake then.
//! - An answer in which the present address is missing moves the endpoint to the first of the answer; one in which it is
//!   moves it to the next, since a peer may be reachable at one of its addresses only. A peer that is not silent is never
//!   moved: it may have roamed.
//! - A name that cannot be resolved is asked for again, and never a reason to end.
//!
//! No clock, no resolver: [`Watch::look`] says what is to be resolved, [`Watch::answer`] takes what came of it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::config::{Host, Peer, Target};
use crate::device::config::{PeerSnapshot, PeerUpdate, Snapshot};
use crate::key::PublicKey;

/// How often to look: fine enough for [`SILENCE`].
pub const LOOK_INTERVAL: Duration = Duration::from_secs(3);
/// After so long without an answer to a handshake that is wanted, the name is asked for again.
pub const SILENCE: Duration = Duration::from_secs(15);
/// The same while there is a session: it takes the device 15 s to want another handshake.
pub const SILENCE_IN_SESSION: Duration = Duration::from_secs(30);
/// Age of a handshake beyond which there is no session to send by (REJECT_AFTER_TIME).
const SESSION_AGE_MAX: Duration = Duration::from_secs(180);
/// Pause after the first question; it doubles with each.
const PAUSE_MIN: Duration = Duration::from_secs(2);
/// The longest pause between two questions: a record's usual time to live.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// The peers whose endpoints are names.
#[derive(Debug, Default)]
pub struct Watch {
    named: HashMap<PublicKey, Named>,
}

#[derive(Debug)]
struct Named {
    target: Target,
    /// There was an answer, so the peer has an endpoint.
    known: bool,
    /// As last seen.
    tx_bytes: u64,
    rx_bytes: u64,
    /// Since when something was sent and nothing came.
    unanswered: Option<Instant>,
    /// A question is under way.
    asking: bool,
    /// The next question is not before this.
    not_before: Option<Instant>,
    pause: Duration,
}

impl Named {
    fn new(target: Target) -> Self {
        Self {
            target,
            known: false,
            tx_bytes: 0,
            rx_bytes: 0,
            unanswered: None,
            asking: false,
            not_before: None,
            pause: PAUSE_MIN,
        }
    }

    /// Takes note of what was sent and received, and says whether the peer is silent.
    fn is_silent(&mut self, peer: &PeerSnapshot, since_1970: Duration, now: Instant) -> bool {
        if peer.rx_bytes != self.rx_bytes {
            self.unanswered = None;
            self.pause = PAUSE_MIN;
            self.not_before = None;
        } else if peer.tx_bytes != self.tx_bytes {
            self.unanswered.get_or_insert(now);
        }
        (self.tx_bytes, self.rx_bytes) = (peer.tx_bytes, peer.rx_bytes);
        let age = peer.last_handshake.map(|handshake| since_1970.saturating_sub(handshake));
        let patience = if age.is_some_and(|age| age < SESSION_AGE_MAX) { SILENCE_IN_SESSION } else { SILENCE };
        self.unanswered.is_some_and(|since| now.saturating_duration_since(since) >= patience)
    }
}

/// A name to resolve for a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// Whose endpoint it is.
    pub peer: PublicKey,
    /// The name and the port.
    pub target: Target,
}

impl Watch {
    /// From now on these peers count. What is known of those that stay is kept; others are asked for at the next look.
    pub fn set_peers(&mut self, peers: &[Peer]) {
        let mut before = std::mem::take(&mut self.named);
        for peer in peers {
            let Some(target @ Target { host: Host::Name(_), .. }) = &peer.endpoint else { continue };
            let kept = before.remove(&peer.public_key).filter(|named| named.target == *target);
            self.named.insert(peer.public_key, kept.unwrap_or_else(|| Named::new(target.clone())));
        }
    }

    /// Whether no endpoint is a name, so that there is nothing to look at.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// What is to be resolved now. `since_1970` is the wall clock, as handshakes are told by it. Each question is to be
    /// answered by [`answer`](Self::answer); until then it is not asked again.
    pub fn look(&mut self, snapshot: &Snapshot, since_1970: Duration, now: Instant) -> Vec<Question> {
        let mut questions = Vec::new();
        for peer in &snapshot.peers {
            let Some(named) = self.named.get_mut(&peer.public_key) else { continue };
            let silent = named.is_silent(peer, since_1970, now);
            let due = named.not_before.is_none_or(|time| now >= time);
            if named.asking || !due || (named.known && !silent) {
                continue;
            }
            named.asking = true;
            named.not_before = Some(now + named.pause);
            named.pause = (named.pause * 2).min(PAUSE_MAX);
            questions.push(Question { peer: peer.public_key, target: named.target.clone() });
        }
        questions
    }

    /// Takes the addresses that a question was answered with, in the resolver's order; none if it was not. Gives the
    /// change of the peer, if there is one to make.
    pub fn answer(&mut self, question: &Question, addresses: &[SocketAddr], snapshot: &Snapshot) -> Option<PeerUpdate> {
        let named = self.named.get_mut(&question.peer).filter(|named| named.target == question.target)?;
        named.asking = false;
        let peer = snapshot.peers.iter().find(|peer| peer.public_key == question.peer)?;
        if named.known && peer.rx_bytes != named.rx_bytes {
            // It was heard meanwhile.
            return None;
        }
        let next = match addresses.iter().position(|address| Some(*address) == peer.endpoint) {
            Some(at) if named.known => addresses.get(at + 1).or(addresses.first()),
            Some(_) => None,
            None => addresses.first(),
        };
        named.known |= !addresses.is_empty();
        let endpoint = *next.filter(|next| Some(**next) != peer.endpoint)?;
        // The new address has its own time to answer.
        named.unanswered = None;
        Some(PeerUpdate { update_only: true, endpoint: Some(endpoint), ..PeerUpdate::new(question.peer) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::PresharedKey;

    const WALL: Duration = Duration::from_secs(1_000_000);
    const KEY: PublicKey = PublicKey::from_bytes([7; 32]);

    struct World {
        watch: Watch,
        peer: PeerSnapshot,
        start: Instant,
    }

    impl World {
        fn new() -> Self {
            let target = Target { host: Host::Name("a.example".into()), port: 1 };
            let mut watch = Watch::default();
            watch.set_peers(&[peer(target)]);
            let peer = PeerSnapshot {
                public_key: KEY,
                preshared_key: PresharedKey::default(),
                endpoint: None,
                last_handshake: None,
                rx_bytes: 0,
                tx_bytes: 0,
                persistent_keepalive: 0,
                allowed_ips: Vec::new(),
            };
            Self { watch, peer, start: Instant::now() }
        }

        fn snapshot(&self) -> Snapshot {
            Snapshot { peers: vec![self.peer.clone()], ..Snapshot::default() }
        }

        /// Whether there is a question, so many seconds after the start.
        fn asks(&mut self, seconds: u64) -> Option<Question> {
            let after = Duration::from_secs(seconds);
            self.watch.look(&self.snapshot(), WALL + after, self.start + after).pop()
        }

        /// Answers, and moves the endpoint as it is said.
        fn answer(&mut self, question: &Question, addresses: &[&str]) -> Option<String> {
            let addresses: Vec<_> = addresses.iter().map(|address| address.parse().unwrap()).collect();
            let update = self.watch.answer(question, &addresses, &self.snapshot())?;
            assert!(update.update_only, "a peer that was removed meanwhile does not come back");
            self.peer.endpoint = update.endpoint;
            update.endpoint.map(|endpoint| endpoint.to_string())
        }
    }

    fn peer(target: Target) -> Peer {
        Peer {
            public_key: KEY,
            preshared_key: None,
            allowed_ips: Vec::new(),
            endpoint: Some(target),
            persistent_keepalive: 0,
            required: true,
        }
    }

    #[test]
    fn a_name_is_asked_for_until_there_is_an_answer_later_and_later() {
        let mut world = World::new();
        let mut asked = Vec::new();
        for second in 0..200 {
            if let Some(question) = world.asks(second) {
                asked.push(second);
                assert_eq!(world.answer(&question, &[]), None);
            }
        }
        assert_eq!(asked, [0, 2, 6, 14, 30, 62, 122, 182]);
        let question = world.asks(300).unwrap();
        assert_eq!(world.asks(900), None, "one question at a time");
        assert_eq!(world.answer(&question, &["192.0.2.1:1"]).as_deref(), Some("192.0.2.1:1"));
        assert_eq!(world.asks(1000), None, "nothing was sent that could be answered");
    }

    #[test]
    fn a_silent_peer_is_asked_for_and_moved_to_another_address() {
        let mut world = World::new();
        let question = world.asks(0).unwrap();
        world.answer(&question, &["192.0.2.1:1", "192.0.2.2:1"]);
        world.peer.tx_bytes = 148;
        assert_eq!((world.asks(3), world.asks(17)), (None, None));
        let question = world.asks(18).unwrap();
        assert_eq!(world.answer(&question, &["192.0.2.1:1", "192.0.2.2:1"]).as_deref(), Some("192.0.2.2:1"));
        world.peer.tx_bytes += 148;
        assert_eq!((world.asks(20), world.asks(34)), (None, None));
        let question = world.asks(35).unwrap();
        assert_eq!(world.answer(&question, &["198.51.100.1:1"]).as_deref(), Some("198.51.100.1:1"), "the name moved");
        // It answers; then in a session, more patience.
        world.peer.rx_bytes += 92;
        world.peer.last_handshake = Some(WALL + Duration::from_secs(36));
        assert_eq!(world.asks(36), None);
        world.peer.tx_bytes += 32;
        assert_eq!((world.asks(40), world.asks(69)), (None, None));
        let question = world.asks(70).unwrap();
        assert_eq!(world.answer(&question, &["198.51.100.1:1"]), None, "nothing has changed");
        world.peer.rx_bytes += 32;
        world.peer.endpoint = Some("203.0.113.9:9".parse().unwrap());
        assert_eq!(world.asks(1000), None, "a peer that is heard may be where it likes");
    }

    #[test]
    fn an_answer_that_comes_too_late_moves_nothing() {
        let mut world = World::new();
        let question = world.asks(0).unwrap();
        world.answer(&question, &["192.0.2.1:1"]);
        world.peer.tx_bytes = 148;
        world.asks(1);
        let question = world.asks(16).unwrap();
        world.peer.rx_bytes = 92;
        assert_eq!(world.answer(&question, &["192.0.2.2:1"]), None, "it was heard meanwhile");
        world.watch.set_peers(&[peer(Target { host: Host::Name("b.example".into()), port: 1 })]);
        assert_eq!(world.answer(&question, &["192.0.2.2:1"]), None, "it has another name");
        let question = world.asks(17).unwrap();
        assert_eq!(question.target.to_string(), "b.example:1");
        assert_eq!(world.answer(&question, &["192.0.2.3:1"]).as_deref(), Some("192.0.2.3:1"));
        world.watch.set_peers(&[]);
        world.peer.tx_bytes += 1;
        assert_eq!((world.asks(18), world.asks(100)), (None, None));
    }
}
