//! A bad network on top of any other: loss, duplication, reordering and corruption by a seed.
//!
//! [`LossyUdp`] wraps a [`Udp`] and mistreats what is sent through it, one datagram at a time; what is
//! received is left alone, so wrap both ends for both directions. The same seed and the same sends
//! give the same faults.
//!
//! A reordered datagram is held back until a few later ones have passed it. When nothing is sent any
//! more it stays held, which is a loss, as it would be to the receiver.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Sent, Source, Transmit, Udp, UdpReceiver, UdpSender, UdpSocket};

/// How many later datagrams may pass a reordered one.
const PASSED_BY_MAX: u64 = 8;

/// Datagrams that one queue holds back at once; more are sent in order instead.
const HELD_MAX: usize = 64;

/// How often each fault befalls a datagram, in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    /// It vanishes.
    pub loss: u16,
    /// It is sent twice.
    pub duplication: u16,
    /// Up to eight later ones are sent before it.
    pub reordering: u16,
    /// One of its bits is flipped.
    pub corruption: u16,
}

/// Binds sockets that mistreat what they send. Clones share their faults and their seed.
#[derive(Debug, Clone)]
pub struct LossyUdp<U> {
    inner: U,
    faults: Arc<Mutex<Faults>>,
    /// The seed of the next queue's dice.
    seed: Arc<AtomicU64>,
}

impl<U> LossyUdp<U> {
    /// Adds `faults`, drawn from `seed`, to what `inner` binds.
    pub fn new(inner: U, faults: Faults, seed: u64) -> Self {
        Self { inner, faults: Arc::new(Mutex::new(faults)), seed: Arc::new(AtomicU64::new(seed)) }
    }

    /// Changes the faults of all queues from now on: how a test lets the network heal.
    pub fn set_faults(&self, faults: Faults) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }
}

impl<U: Udp> Udp for LossyUdp<U> {
    fn bind(&self, port: u16, fwmark: u32, receivers: usize) -> io::Result<Arc<dyn UdpSocket>> {
        let inner = self.inner.bind(port, fwmark, receivers)?;
        Ok(Arc::new(LossySocket { inner, faults: Arc::clone(&self.faults), seed: Arc::clone(&self.seed) }))
    }

    fn expect_mac1(&self, mac1_key: Option<&[u8; 32]>) {
        self.inner.expect_mac1(mac1_key);
    }

    fn dropped_by_mac1(&self) -> u64 {
        self.inner.dropped_by_mac1()
    }
}

struct LossySocket {
    inner: Arc<dyn UdpSocket>,
    faults: Arc<Mutex<Faults>>,
    seed: Arc<AtomicU64>,
}

impl UdpSocket for LossySocket {
    fn port(&self) -> u16 {
        self.inner.port()
    }

    fn set_fwmark(&self, fwmark: u32) -> io::Result<()> {
        self.inner.set_fwmark(fwmark)
    }

    fn receivers(&self) -> io::Result<Vec<Box<dyn UdpReceiver>>> {
        self.inner.receivers()
    }

    fn sender(&self) -> io::Result<Box<dyn UdpSender>> {
        Ok(Box::new(LossySender {
            inner: self.inner.sender()?,
            faults: Arc::clone(&self.faults),
            dice: Dice(self.seed.fetch_add(1, Ordering::Relaxed)),
            held: VecDeque::new(),
        }))
    }
}

struct LossySender {
    inner: Box<dyn UdpSender>,
    faults: Arc<Mutex<Faults>>,
    dice: Dice,
    held: VecDeque<Held>,
}

/// A datagram that others may pass.
struct Held {
    /// How many still may.
    passed_by: u64,
    to: SocketAddr,
    source: Option<Source>,
    tos: u8,
    bytes: Vec<u8>,
}

impl UdpSender for LossySender {
    /// What vanishes here counts as sent: a sender does not learn of a network's faults.
    fn send(&mut self, transmits: &[Transmit<'_>], sent: &mut [Sent]) {
        assert_eq!(transmits.len(), sent.len());
        let faults = *self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        for (transmit, sent) in transmits.iter().zip(sent) {
            *sent = Sent::default();
            for datagram in transmit.data.chunks(transmit.segment) {
                self.send_one(&Transmit { data: datagram, ..*transmit }, faults, sent);
            }
        }
    }
}

impl LossySender {
    fn send_one(&mut self, datagram: &Transmit<'_>, faults: Faults, sent: &mut Sent) {
        let [lost, twice, late, broken] =
            [faults.loss, faults.duplication, faults.reordering, faults.corruption].map(|odds| self.dice.hits(odds));
        if lost {
            sent.bytes += datagram.data.len();
            return;
        }
        let mut bytes = datagram.data.to_vec();
        if broken && !bytes.is_empty() {
            let bit = self.dice.below(bytes.len() as u64 * 8) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        for _ in 0..1 + usize::from(twice) {
            if late && self.held.len() < HELD_MAX {
                // Its own sending counts down, too, so one more.
                let passed_by = 2 + self.dice.below(PASSED_BY_MAX);
                let Transmit { to, source, tos, .. } = *datagram;
                self.held.push_back(Held { passed_by, to, source, tos, bytes: bytes.clone() });
            } else {
                let mut one = [Sent::default()];
                self.inner.send(&[Transmit { data: &bytes, ..*datagram }], &mut one);
                sent.refused += one[0].refused;
                sent.source_lost |= one[0].source_lost;
            }
        }
        sent.bytes += datagram.data.len();
        self.release_held();
    }

    /// One more datagram has been sent: those that enough have passed follow it.
    fn release_held(&mut self) {
        self.held.iter_mut().for_each(|held| held.passed_by = held.passed_by.saturating_sub(1));
        while let Some(held) = self.held.pop_front_if(|held| held.passed_by == 0) {
            let Held { to, source, tos, bytes, .. } = held;
            let late = Transmit { to, source, tos, segment: bytes.len().max(1), data: &bytes, offload: false };
            self.inner.send(&[late], &mut [Sent::default()]);
        }
    }
}

/// SplitMix64: every seed is good, and equal seeds fall equally everywhere.
#[derive(Debug)]
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn hits(&mut self, thousandths: u16) -> bool {
        self.below(1000) < u64::from(thousandths)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::memory::MemoryNetwork;
    use super::*;
    use crate::packet::Buffers;

    const COUNT: u32 = 4000;

    /// Sends numbered datagrams through the faults; returns what arrives.
    fn carry(faults: Faults, seed: u64) -> Vec<Vec<u8>> {
        let network = MemoryNetwork::new();
        let [a, b] = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
        let sender = LossyUdp::new(network.host(&[a]), faults, seed).bind(1, 0, 1).unwrap();
        let receiver = network.host(&[b]).bind(1, 0, 1).unwrap();
        let (mut sender, mut receiver) = (sender.sender().unwrap(), receiver.receivers().unwrap().remove(0));
        for first in (0..COUNT).step_by(4) {
            let data: Vec<u8> = (first..first + 4).flat_map(u32::to_be_bytes).collect();
            let train = Transmit { to: (b, 1).into(), source: None, tos: 0, segment: 4, data: &data, offload: true };
            let mut sent = [Sent::default()];
            sender.send(&[train], &mut sent);
            assert_eq!((sent[0].bytes, sent[0].refused), (16, 0));
        }
        let (mut buffers, mut received) = (Buffers::new(4), Vec::with_capacity(4));
        let mut datagrams = Vec::new();
        loop {
            receiver.receive(&mut buffers, &mut received).unwrap();
            if received.is_empty() {
                return datagrams;
            }
            for train in &received {
                let bytes = &buffers.whole(train.buffer)[..train.len as usize];
                datagrams.extend(bytes.chunks(4).map(<[u8]>::to_vec));
            }
        }
    }

    fn numbers(datagrams: &[Vec<u8>]) -> Vec<u32> {
        datagrams.iter().map(|bytes| u32::from_be_bytes(bytes[..].try_into().unwrap())).collect()
    }

    #[test]
    fn without_faults_nothing_happens() {
        assert_eq!(numbers(&carry(Faults::default(), 1)), (0..COUNT).collect::<Vec<_>>());
    }

    #[test]
    fn each_fault_comes_about_as_often_as_asked_for() {
        let lost = carry(Faults { loss: 300, ..Faults::default() }, 2);
        assert!((2600..3000).contains(&lost.len()), "{}", lost.len());

        let twice = carry(Faults { duplication: 300, ..Faults::default() }, 3);
        assert!((5000..5400).contains(&twice.len()), "{}", twice.len());

        let broken = numbers(&carry(Faults { corruption: 300, ..Faults::default() }, 4));
        let changed = (0..COUNT).zip(&broken).filter(|(sent, got)| sent != *got);
        assert!(changed.clone().all(|(sent, got)| (sent ^ got).count_ones() == 1));
        assert!((1000..1400).contains(&changed.count()));

        let late = numbers(&carry(Faults { reordering: 100, ..Faults::default() }, 5));
        let distance = late.iter().zip(0..COUNT).map(|(number, place)| number.abs_diff(place)).max().unwrap();
        assert!((1..=4 * PASSED_BY_MAX as u32).contains(&distance), "{distance}");
        let mut sorted = late.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), late.len());
        assert!(COUNT as usize - late.len() <= HELD_MAX);
    }

    #[test]
    fn one_seed_gives_one_story() {
        let faults = Faults { loss: 100, duplication: 100, reordering: 100, corruption: 100 };
        assert_eq!(carry(faults, 7), carry(faults, 7));
        assert_ne!(carry(faults, 7), carry(faults, 8));
    }

    #[test]
    fn a_network_heals() {
        let network = MemoryNetwork::new();
        let udp = LossyUdp::new(network.host(&[[192, 0, 2, 1].into()]), Faults { loss: 1000, ..Faults::default() }, 1);
        let socket = udp.bind(1, 0, 1).unwrap();
        let (mut sender, mut receiver) = (socket.sender().unwrap(), socket.receivers().unwrap().remove(0));
        let (mut buffers, mut received) = (Buffers::new(1), Vec::with_capacity(1));
        let to = ([192, 0, 2, 1], 1).into();
        let datagram = Transmit { to, source: None, tos: 0, segment: 1, data: b"x", offload: true };
        for (faults, arrived) in [(None, 0), (Some(Faults::default()), 1)] {
            if let Some(faults) = faults {
                udp.set_faults(faults);
            }
            sender.send(&[datagram], &mut [Sent::default()]);
            receiver.receive(&mut buffers, &mut received).unwrap();
            assert_eq!(received.len(), arrived);
        }
    }
}
