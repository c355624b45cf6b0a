//! Engines against a model, over a network that is an adversary's: whatever it loses, delays, repeats, reorders, alters or
//! invents from what it has seen, and whatever befalls the engines, each packet is delivered at most once, only to whom it
//! was sent, and as of who sent it. No counter is used twice, indices do not pile up; when the network is well again
//! packets get through, and then there is silence.
//!
//! The steps are proptest's, which shrinks a run that fails to the few that matter. The environment says how many runs:
//! `ADIT_MODEL_RUNS=100000 cargo test --test model`, which is `make model`.
#![allow(clippy::unwrap_used)]

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use adit::key::PresharedKey;
use adit::proto::constants::{NEW_HANDSHAKE_TIMEOUT, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT};
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};

#[path = "simulation/world.rs"]
#[allow(dead_code)]
mod world;

use world::{KIND_DATA, Network, World};

/// How many runs, when the environment does not say.
const RUNS: (&str, u32) = ("ADIT_MODEL_RUNS", 300);
const ENGINES: usize = 3;
const STEPS_MIN: usize = 200;
const STEPS_MAX: usize = 260;
/// Indices of one peer: three keypairs, and a handshake under way.
const INDICES_MAX: usize = 4;
/// Of what has arrived, how much the adversary remembers.
const MEMORY: usize = 64;
/// After the network is well: the longest that an end sends without an answer before it begins a handshake, and a
/// handshake that is repeated, for a cookie once more; each with its jitter.
const PATIENCE: Duration =
    Duration::from_millis(NEW_HANDSHAKE_TIMEOUT.as_millis() as u64 + 4 * (REKEY_TIMEOUT.as_millis() as u64 + 500));

#[derive(Debug, Clone)]
enum Step {
    /// From an engine to one of its peers.
    Send {
        from: usize,
        peer: usize,
    },
    Keepalive {
        from: usize,
        peer: usize,
    },
    Wait {
        millis: u64,
    },
    Network {
        delay: u8,
        spread: u8,
        loss: u8,
        duplication: u8,
        corruption: u8,
        down: bool,
        only_data: bool,
    },
    Heal,
    UnderLoad {
        engine: usize,
        is: bool,
    },
    ControlDelay {
        engine: usize,
        millis: u8,
    },
    Restart {
        engine: usize,
    },
    /// At one end, or at both.
    Preshared {
        engine: usize,
        peer: usize,
        byte: u8,
        both: bool,
    },
    WallClockBack {
        secs: u16,
    },
    /// A copy of what is or was under way; with a bit of it flipped.
    Again {
        which: prop::sample::Index,
        delay: u8,
        bit: Option<prop::sample::Index>,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let engine = || 0..ENGINES;
    let peer = || 0..ENGINES - 1;
    // Moments as well as minutes.
    let millis = (0..18_u32, 0..1000_u64).prop_map(|(power, part)| ((1000 + part) << power) / 1000);
    prop_oneof![
        10 => (engine(), peer()).prop_map(|(from, peer)| Step::Send { from, peer }),
        1 => (engine(), peer()).prop_map(|(from, peer)| Step::Keepalive { from, peer }),
        8 => millis.prop_map(|millis| Step::Wait { millis }),
        1 => (any::<(u8, u8, u8, u8, u8)>(), any::<(bool, bool)>()).prop_map(|(chances, (down, only_data))| {
            let (delay, spread, loss, duplication, corruption) = chances;
            Step::Network { delay, spread, loss, duplication, corruption, down, only_data }
        }),
        1 => Just(Step::Heal),
        1 => (engine(), any::<bool>()).prop_map(|(engine, is)| Step::UnderLoad { engine, is }),
        1 => (engine(), any::<u8>()).prop_map(|(engine, millis)| Step::ControlDelay { engine, millis }),
        1 => engine().prop_map(|engine| Step::Restart { engine }),
        1 => (engine(), peer(), 0..2_u8, any::<bool>())
            .prop_map(|(engine, peer, byte, both)| Step::Preshared { engine, peer, byte, both }),
        1 => any::<u16>().prop_map(|secs| Step::WallClockBack { secs }),
        6 => (any::<prop::sample::Index>(), any::<u8>(), any::<Option<prop::sample::Index>>())
            .prop_map(|(which, delay, bit)| Step::Again { which, delay, bit }),
    ]
}

/// An engine's peers are the others in their order.
fn other(engine: usize, peer: usize) -> usize {
    peer + usize::from(peer >= engine)
}

/// As which of its peers an engine knows another.
fn peer_of(engine: usize, known: usize) -> usize {
    known - usize::from(known > engine)
}

/// What the world should be like.
struct Model {
    world: World,
    /// Of each packet that was sent, from whom and to whom.
    sent: HashMap<u64, (usize, usize)>,
    /// How much of what each engine delivered was looked at, and the numbers.
    looked_at: [usize; ENGINES],
    delivered: HashSet<u64>,
}

impl Model {
    fn new(seed: u64) -> Self {
        let mut world = World::new(ENGINES, seed);
        (world.recording, world.transmitted) = (Some(Vec::new()), Some(Vec::new()));
        Self { world, sent: HashMap::new(), looked_at: [0; ENGINES], delivered: HashSet::new() }
    }

    fn send(&mut self, from: usize, peer: usize) -> u64 {
        let number = self.world.send(from, peer);
        self.sent.insert(number, (from, other(from, peer)));
        number
    }

    fn set_preshared(&mut self, engine: usize, peer: usize, byte: u8) {
        self.world.act(engine, |engine, _| {
            engine.peers[peer].tunnel.set_preshared_key(PresharedKey::from_bytes([byte; 32]));
        });
    }

    fn take(&mut self, step: &Step) {
        match *step {
            Step::Send { from, peer } => _ = self.send(from, peer),
            Step::Keepalive { from, peer } => self.world.act(from, |engine, now| engine.send_keepalive(peer, now)),
            Step::Wait { millis } => self.world.run(Duration::from_millis(millis)),
            Step::Network { delay, spread, loss, duplication, corruption, down, only_data } => {
                self.world.network = Network {
                    delay: Duration::from_millis(delay.into()),
                    spread: Duration::from_millis(u64::from(spread) * 8),
                    loss: u32::from(loss) * 2,
                    duplication: u32::from(duplication) * 2,
                    corruption: u32::from(corruption) * 2,
                    down,
                    only_data,
                };
            }
            Step::Heal => self.world.network = Network::GOOD,
            Step::UnderLoad { engine, is } => self.world.engines[engine].under_load = is,
            Step::ControlDelay { engine, millis } => {
                self.world.engines[engine].control_delay = Duration::from_millis(millis.into());
            }
            Step::Restart { engine } => self.world.act(engine, |engine, _| engine.restart()),
            Step::Preshared { engine, peer, byte, both } => {
                self.set_preshared(engine, peer, byte);
                if both {
                    let there = other(engine, peer);
                    self.set_preshared(there, peer_of(there, engine), byte);
                }
            }
            Step::WallClockBack { secs } => self.world.wall_clock_back = Duration::from_secs(secs.into()),
            Step::Again { which, delay, bit } => {
                let mut known = self.world.under_way();
                known.extend(self.world.recording.iter().flatten().rev().take(MEMORY).cloned());
                if known.is_empty() {
                    return;
                }
                let (from, to, mut datagram) = known.swap_remove(which.index(known.len()));
                if let Some(bit) = bit {
                    let bit = bit.index(8 * datagram.len());
                    datagram[bit / 8] ^= 1 << (bit % 8);
                }
                self.world.inject(from, to, datagram, Duration::from_millis(delay.into()));
            }
        }
    }

    fn check(&mut self) {
        for (number, engine) in self.world.engines.iter().enumerate() {
            for &(peer, packet) in &engine.delivered[self.looked_at[number]..] {
                assert!(self.delivered.insert(packet), "packet {packet} was delivered twice");
                let sent = self.sent.get(&packet);
                assert_eq!(sent, Some(&(other(number, peer), number)), "packet {packet}: from whom, to whom");
            }
            self.looked_at[number] = engine.delivered.len();
            let indices = engine.indices();
            assert!(indices <= INDICES_MAX * engine.peers.len(), "{indices} indices");
        }
    }

    /// All is well again, and both ends agree.
    fn heal(&mut self) {
        self.world.network = Network::GOOD;
        for engine in 0..ENGINES {
            self.world.engines[engine].under_load = false;
            self.world.engines[engine].control_delay = Duration::ZERO;
            for peer in 0..ENGINES - 1 {
                self.set_preshared(engine, peer, 0);
            }
        }
        // Both ends restarted with a clock that goes back would be taken for replays of themselves until it has caught up.
        self.world.wall_clock_back = Duration::ZERO;
        let healed = self.world.elapsed();
        for from in 0..ENGINES {
            for peer in 0..ENGINES - 1 {
                let to = other(from, peer);
                loop {
                    let number = self.send(from, peer);
                    let arrives = |world: &World| world.delivered(to, number);
                    if self.world.run_until(Duration::from_millis(500), arrives).is_some() {
                        break;
                    }
                    let took = self.world.elapsed() - healed;
                    assert!(took < 2 * PATIENCE, "packets of {from} to {to} do not get through in {took:?}");
                }
            }
        }
        self.check();
    }

    fn fall_silent(&mut self) {
        // What is answered was answered, and nobody has anything to say.
        self.world.run(2 * REKEY_ATTEMPT_TIME);
        let quiet = self.world.elapsed();
        self.world.run(20 * REKEY_ATTEMPT_TIME);
        assert!(self.world.sent.iter().all(|datagram| datagram.at <= quiet), "an idle tunnel is silent");
        self.check();
    }

    /// A key has one index at its receiver, so that an index and a counter name one packet.
    fn check_counters(&self) {
        let mut used = HashSet::new();
        for (_, to, datagram) in self.world.transmitted.iter().flatten().filter(|(_, _, d)| d[0] == KIND_DATA) {
            assert!(used.insert((*to, &datagram[4..16])), "a counter is used for one packet only");
        }
    }
}

#[test]
fn z_09_engines_keep_their_promises_over_an_adversarial_network() {
    let (name, default) = RUNS;
    let cases = std::env::var(name).map_or(default, |value| value.parse().unwrap());
    let persistence = FileFailurePersistence::Direct("proptest-regressions/model.txt");
    let config = Config { cases, failure_persistence: Some(Box::new(persistence)), ..Config::default() };
    let steps = prop::collection::vec(step(), STEPS_MIN..=STEPS_MAX);
    let result = TestRunner::new(config).run(&(any::<u64>(), steps), |(seed, steps)| {
        let mut model = Model::new(seed);
        for step in &steps {
            model.take(step);
            model.check();
        }
        model.heal();
        model.fall_silent();
        model.check_counters();
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}
