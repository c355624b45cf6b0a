//! A bad network between two programs: a relay for UDP that loses, doubles, delays, reorders and spoils what passes, by
//! a seed.
//!
//! ```text
//! client ⇄ near socket │ far socket ⇄ server
//! ```
//! What comes in at the near socket leaves from the far one, and what the server answers goes to whoever was heard last
//! at the near socket. Each direction has a thread, dice and a queue of its own; what happens to the n-th datagram of a
//! direction depends on the seed alone.
//!
//! No dependencies but std: the benchmark compiles this file with plain `rustc`, the tests include it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a thread with nothing to do looks whether it is still wanted.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The shortest time that a socket can be asked to wait.
const WAIT_MIN: Duration = Duration::from_micros(100);
/// The largest UDP payload.
const DATAGRAM_MAX: usize = 65_535;
/// Datagrams that wait in one direction; more are lost, as in any router.
const WAITING_MAX: usize = 4096;
/// A reordered datagram is late by up to this, beyond the delay of all.
const LATE_MAX: Duration = Duration::from_millis(10);

/// What befalls the datagrams of either direction. Odds are in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trouble {
    /// It vanishes.
    pub loss: u64,
    /// It is carried twice.
    pub duplication: u64,
    /// It comes up to 10 ms late, so that others overtake it.
    pub reordering: u64,
    /// One of its bits is flipped.
    pub corruption: u64,
    /// Every datagram takes so long.
    pub delay: Duration,
}

/// What a relay has done so far, both directions together.
#[derive(Debug, Default)]
pub struct Counts {
    /// Datagrams that came in.
    pub received: AtomicU64,
    pub lost: AtomicU64,
    pub doubled: AtomicU64,
    pub reordered: AtomicU64,
    pub spoilt: AtomicU64,
}

/// A running relay; ends when dropped.
#[derive(Debug)]
pub struct Relay {
    trouble: Arc<Mutex<Trouble>>,
    counts: Arc<Counts>,
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Carries datagrams between who sends to `near` and the server `to`, which hears from `far`.
    ///
    /// # Errors
    /// When a socket cannot be duplicated.
    pub fn start(near: UdpSocket, far: UdpSocket, to: SocketAddr, trouble: Trouble, seed: u64) -> io::Result<Self> {
        let trouble = Arc::new(Mutex::new(trouble));
        let mut relay = Self { trouble, counts: Arc::default(), ended: Arc::default(), threads: Vec::new() };
        let client = Arc::new(Mutex::new(None));
        let (back, heard) = (near.try_clone()?, Arc::clone(&client));
        let out = far.try_clone()?;
        let there = relay.direction(near, seed, move |datagram, from| {
            if let Some(from) = from {
                *heard.lock().unwrap_or_else(PoisonError::into_inner) = Some(from);
            } else {
                // What the network does not take is lost.
                let _ = out.send_to(datagram, to);
            }
        });
        let and_back = relay.direction(far, !seed, move |datagram, from| {
            let client = *client.lock().unwrap_or_else(PoisonError::into_inner);
            if let (None, Some(client)) = (from, client) {
                let _ = back.send_to(datagram, client);
            }
        });
        relay.threads = vec![there, and_back];
        Ok(relay)
    }

    /// Changes what befalls datagrams from now on: how a network heals.
    #[allow(dead_code, reason = "the benchmark's networks stay as they are")]
    pub fn set(&self, trouble: Trouble) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// What it has done so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// One direction. `pass` is told of each datagram's sender when it comes, and given its bytes when it is to go on.
    fn direction(
        &self,
        from: UdpSocket,
        seed: u64,
        mut pass: impl FnMut(&[u8], Option<SocketAddr>) + Send + 'static,
    ) -> JoinHandle<()> {
        let (trouble, counts, ended) = (Arc::clone(&self.trouble), Arc::clone(&self.counts), Arc::clone(&self.ended));
        std::thread::spawn(move || {
            let mut dice = Dice(seed);
            let mut waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>> = BinaryHeap::new();
            let (mut buffer, mut number) = (vec![0; DATAGRAM_MAX], 0);
            while !ended.load(Ordering::Relaxed) {
                while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
                    if let Some(Reverse((_, _, datagram))) = waiting.pop() {
                        pass(&datagram, None);
                    }
                }
                let next = waiting.peek().map(|Reverse((due, ..))| due.saturating_duration_since(Instant::now()));
                let wait = next.unwrap_or(LOOK_INTERVAL).clamp(WAIT_MIN, LOOK_INTERVAL);
                if from.set_read_timeout(Some(wait)).is_err() {
                    return;
                }
                // An error is the end of the wait, or an ICMP message about something sent earlier.
                let Ok((len, sender)) = from.recv_from(&mut buffer) else { continue };
                counts.received.fetch_add(1, Ordering::Relaxed);
                pass(&[], Some(sender));
                let now = Instant::now();
                let trouble = *trouble.lock().unwrap_or_else(PoisonError::into_inner);
                for (due, datagram) in dice.judge(&trouble, &counts, &buffer[..len]) {
                    if waiting.len() < WAITING_MAX {
                        waiting.push(Reverse((now + due, number, datagram)));
                        number += 1;
                    }
                }
            }
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that panicked has nothing left to end.
            let _ = thread.join();
        }
    }
}

/// SplitMix64: every seed is good, and equal seeds fall equally everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    /// What becomes of one datagram: when each of its copies goes on, and how it looks then.
    fn judge(&mut self, trouble: &Trouble, counts: &Counts, datagram: &[u8]) -> Vec<(Duration, Vec<u8>)> {
        // All dice are thrown for each datagram, so that its fate does not depend on that of those before it.
        let mut hits = |odds: u64, count: &AtomicU64| {
            let hit = self.below(1000) < odds;
            count.fetch_add(u64::from(hit), Ordering::Relaxed);
            hit
        };
        let lost = hits(trouble.loss, &counts.lost);
        let twice = hits(trouble.duplication, &counts.doubled);
        let late = hits(trouble.reordering, &counts.reordered);
        let spoilt = hits(trouble.corruption, &counts.spoilt);
        let (bit, lateness) = (self.below(u64::MAX), self.below(LATE_MAX.as_micros() as u64));
        if lost {
            return Vec::new();
        }
        let mut bytes = datagram.to_vec();
        if spoilt && !bytes.is_empty() {
            let bit = (bit % (bytes.len() as u64 * 8)) as usize;
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        let due = trouble.delay + if late { Duration::from_micros(lateness) } else { Duration::ZERO };
        let copies = 1 + usize::from(twice);
        vec![(due, bytes); copies]
    }
}
