//! Fuzz body (Z-02): right messages of all four types, altered, into both ends of a live session. Only what was sent is
//! delivered, each packet once; who alters does not become the endpoint; and the session goes on.
//!
//! The sender index of a handshake message and its mac2 are not under the AEAD, nor is the receiver index of a cookie reply,
//! and the key of mac1 is public: who sits on the path can change them, and costs the two a handshake. That is the
//! protocol's, so the body tells such a message from a forged one.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use adit::key::PrivateKey;
use adit::proto::cookie::CookieJar;
use adit::proto::messages::{INITIATION_LEN, MACS_LEN, RESPONSE_LEN};
use adit::proto::peer::{Outcome, Peer, datagram_len};
use adit::proto::time::{Instant, Now, UnixTime};

use crate::input::Input;
use crate::input::rng::TestRng;

/// Steps of one input.
const STEPS_MAX: usize = 64;
/// Bytes of the longest inner packet.
const PACKET_MAX: usize = 200;
/// In which an undisturbed network carries a packet each way: a handshake that was lost is repeated after 5 s and a third
/// more, and once more where a cookie is asked for.
const PATIENCE: Duration = Duration::from_secs(12);
/// The same where a handshake was spoilt: the one end first has to notice that nothing comes back, which takes 15 s.
const PATIENCE_SPOILT: Duration = Duration::from_secs(40);

/// Both ends, and what is between them.
struct Pair {
    peers: [Peer; 2],
    /// What each sends from.
    addresses: [SocketAddr; 2],
    rng: TestRng,
    now: Now,
    /// Everything that was ever sent: to whom, and the bytes.
    air: Vec<(usize, Vec<u8>)>,
    /// What of it has not been handed over by the network.
    under_way: BTreeSet<usize>,
    /// Inner packets that were sent to each and have not come.
    expected: [BTreeSet<Vec<u8>>; 2],
    packets: u32,
}

impl Pair {
    fn new() -> Self {
        let keys = [1, 2].map(|number| PrivateKey::from_bytes([number; 32]));
        let addresses = [1, 2].map(|number| SocketAddr::from(([192, 0, 2, number], 51820)));
        let mut peers = [0, 1].map(|side| Peer::new(keys[side].clone(), keys[1 - side].public_key()));
        for (side, peer) in peers.iter_mut().enumerate() {
            peer.set_endpoint(addresses[1 - side]);
        }
        let now = Now { instant: Instant::from_nanos(1_000_000_000), unix: UnixTime(Duration::from_secs(1 << 30)) };
        Self {
            peers,
            addresses,
            rng: TestRng(7),
            now,
            air: Vec::new(),
            under_way: BTreeSet::new(),
            expected: [BTreeSet::new(), BTreeSet::new()],
            packets: 0,
        }
    }

    fn put(&mut self, to: usize, datagram: Vec<u8>) {
        self.under_way.insert(self.air.len());
        self.air.push((to, datagram));
    }

    /// A packet that there was none like.
    fn send(&mut self, from: usize, len: usize) {
        let len = 24 + len % (PACKET_MAX - 24);
        let mut packet = vec![from as u8; len];
        packet[..20].copy_from_slice(&[0x45, 0, 0, len as u8, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        packet[20..24].copy_from_slice(&self.packets.to_be_bytes());
        self.packets += 1;
        let mut out = [0; datagram_len(PACKET_MAX)];
        let outcome = self.peers[from].encapsulate(&packet, &mut out, self.now, &mut self.rng);
        self.expected[1 - from].insert(packet);
        if let Ok(Outcome::Send(datagram)) = outcome {
            let bytes = datagram.bytes.to_vec();
            self.put(1 - from, bytes);
        }
        self.transmit(from);
    }

    fn transmit(&mut self, from: usize) {
        let mut out = [0; datagram_len(PACKET_MAX)];
        while let Some(datagram) = self.peers[from].poll_transmit(&mut out, self.now, &mut self.rng) {
            let bytes = datagram.bytes.to_vec();
            self.put(1 - from, bytes);
        }
    }

    /// A datagram arrives. Whether it was taken.
    fn arrive(&mut self, at: usize, from: SocketAddr, mut datagram: Vec<u8>) -> bool {
        let mut out = [0; datagram_len(PACKET_MAX)];
        let is_taken = match self.peers[at].decapsulate(from, &mut datagram, &mut out, self.now, &mut self.rng) {
            Ok(Outcome::Send(answer)) => {
                let bytes = answer.bytes.to_vec();
                let is_taken = bytes[0] != 3;
                // An answer to whoever asked; the other end gets it if it was that one.
                if answer.to == self.addresses[1 - at] {
                    self.put(1 - at, bytes);
                }
                is_taken
            }
            Ok(Outcome::Deliver(packet)) => {
                assert!(self.expected[at].remove(packet.bytes), "never sent, or delivered before");
                true
            }
            Ok(Outcome::Done) => true,
            Err(_) => false,
        };
        self.transmit(at);
        is_taken
    }

    fn pass(&mut self, time: Duration) {
        self.now.instant = self.now.instant + time;
        self.now.unix.0 += time;
        for side in 0..2 {
            self.peers[side].handle_timeout(self.now);
            self.transmit(side);
        }
    }

    /// Hands over all that is under way.
    fn settle(&mut self) {
        while let Some(number) = self.under_way.pop_first() {
            let (to, datagram) = self.air[number].clone();
            self.arrive(to, self.addresses[1 - to], datagram);
        }
    }
}

/// Whether an altered message is one that the AEAD says nothing against.
fn is_as_authentic(original: &[u8], altered: &[u8]) -> bool {
    if altered.len() != original.len() || altered[..4] != original[..4] {
        return false;
    }
    let authenticated = match (original[0], original.len()) {
        (1, INITIATION_LEN) => 8..INITIATION_LEN - MACS_LEN,
        (2, RESPONSE_LEN) => 8..RESPONSE_LEN - MACS_LEN,
        (3, len) => 8..len,
        (_, len) => 0..len,
    };
    altered[authenticated.clone()] == original[authenticated]
}

/// Steps: a byte of what to do, and what that needs.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut pair = Pair::new();
    pair.send(0, 0);
    pair.settle();
    pair.send(1, 0);
    pair.settle();
    assert_eq!(pair.expected, [BTreeSet::new(), BTreeSet::new()], "a session");
    let mut is_spoilt = false;
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        let side = usize::from(step >> 7);
        match step & 7 {
            0 => pair.send(side, usize::from(input.byte())),
            1 => {
                pair.peers[side].initiate(pair.now.instant);
                pair.transmit(side);
            }
            2 => pair.pass(Duration::from_millis(u64::from(input.word()) * 4)),
            3 => {
                let number = input.below(pair.air.len());
                if pair.under_way.remove(&number) {
                    let (to, datagram) = pair.air[number].clone();
                    pair.arrive(to, pair.addresses[1 - to], datagram);
                }
            }
            4 => pair.settle(),
            _ => {
                let (to, original) = pair.air[input.below(pair.air.len())].clone();
                let mut altered = original.clone();
                input.mutate(&mut altered);
                if step & 8 != 0 && matches!(altered.len(), INITIATION_LEN | RESPONSE_LEN) {
                    let public = pair.peers[1 - to].public_key();
                    CookieJar::new().add_macs(&public, &mut altered, pair.now.instant);
                }
                let at = if step & 16 != 0 { 1 - to } else { to };
                let attacker = SocketAddr::from(([198, 51, 100, 1], 666));
                let is_authentic = is_as_authentic(&original, &altered);
                let before = (pair.peers[at].endpoint(), pair.peers[at].rx_bytes());
                let from = if is_authentic { pair.addresses[1 - at] } else { attacker };
                let is_taken = pair.arrive(at, from, altered);
                if !is_authentic {
                    assert!(!is_taken, "an altered message was taken");
                    assert_eq!((pair.peers[at].endpoint(), pair.peers[at].rx_bytes()), before);
                }
                is_spoilt |= is_authentic && is_taken;
            }
        }
    }
    // The session goes on, or there is a new one soon.
    let patience = if is_spoilt { PATIENCE_SPOILT } else { PATIENCE };
    let step = Duration::from_millis(500);
    let mut waited = Duration::ZERO;
    loop {
        let before = pair.expected.clone();
        pair.send(0, 1);
        pair.send(1, 1);
        let sent = [0, 1].map(|side| &pair.expected[side] - &before[side]);
        pair.settle();
        if (0..2).all(|side| pair.expected[side].is_disjoint(&sent[side])) {
            break;
        }
        assert!(waited < patience, "no packet comes through any more");
        waited += step;
        pair.pass(step);
    }
}
