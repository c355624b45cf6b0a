//! Fuzz body (Z-09): two engines in virtual time, and a network that is the fuzzer's: it loses, delays, repeats, reorders,
//! alters, and lets engines restart. Each packet is delivered at most once and only to whom it was sent, no nonce is used
//! twice, indices do not pile up; when the network is well again packets get through, and then there is silence.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use adit::proto::constants::{NEW_HANDSHAKE_TIMEOUT, REKEY_ATTEMPT_TIME, REKEY_TIMEOUT, REKEY_TIMEOUT_JITTER_MAX};

#[path = "../simulation/world.rs"]
#[allow(dead_code)]
mod world;
use crate::input::Input;
use world::{KIND_DATA, Network, World};

/// Steps of one input.
const STEPS_MAX: usize = 48;
/// Indices of one peer: three keypairs, and a handshake under way.
const INDICES_MAX: usize = 4;
/// After the network is well: the longest that an end sends without an answer before it begins a handshake, and a
/// handshake that is repeated, for a cookie once more.
const PATIENCE: Duration =
    Duration::from_millis(NEW_HANDSHAKE_TIMEOUT.as_millis() as u64 + 3 * (REKEY_TIMEOUT.as_millis() as u64 + 1000));
const _: () = assert!(REKEY_TIMEOUT_JITTER_MAX.as_millis() < 1000);

/// Steps: a byte of what to do, and what that needs.
pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut world = World::new(2, u64::from(input.byte()));
    (world.recording, world.transmitted) = (Some(Vec::new()), Some(Vec::new()));
    let mut sent = [BTreeSet::new(), BTreeSet::new()];
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        let side = usize::from(step >> 7);
        match step & 15 {
            0..=3 => {
                sent[1 - side].insert(world.send(side, 0));
            }
            4..=6 => world.run(Duration::from_millis(u64::from(input.byte()))),
            7 => world.run(Duration::from_millis(u64::from(input.word()) * 4)),
            8 => {
                world.network = Network {
                    delay: Duration::from_millis(u64::from(input.byte())),
                    spread: Duration::from_millis(u64::from(input.byte()) * 8),
                    loss: u32::from(input.byte()) * 2,
                    duplication: u32::from(input.byte()) * 2,
                    down: step & 0x10 != 0,
                    only_data: step & 0x20 != 0,
                    ..Network::GOOD
                };
            }
            9 => world.network = Network::GOOD,
            10 => world.engines[side].under_load = step & 0x10 != 0,
            11 => world.engines[side].control_delay = Duration::from_millis(u64::from(input.byte())),
            12 => {
                world.act(side, |engine, _| engine.restart());
            }
            13 => world.act(side, |engine, now| engine.send_keepalive(0, now)),
            // A copy of what is or was under way, as it was or altered, to whom it was sent.
            _ => {
                let mut known = world.under_way();
                known.extend(world.recording.iter().flatten().rev().take(64).cloned());
                let at = input.below(known.len());
                let Some((from, to, mut datagram)) = known.into_iter().nth(at) else { continue };
                if step & 0x10 != 0 {
                    input.mutate(&mut datagram);
                }
                let delay = Duration::from_millis(u64::from(input.byte()));
                world.inject(from, to, datagram, delay);
            }
        }
        check(&world, &sent);
    }
    // All is well again.
    world.network = Network::GOOD;
    for side in 0..2 {
        world.engines[side].under_load = false;
        world.engines[side].control_delay = Duration::ZERO;
    }
    let healed = world.elapsed();
    for side in 0..2 {
        loop {
            let number = world.send(side, 0);
            sent[1 - side].insert(number);
            if world.run_until(Duration::from_millis(500), |world| world.delivered(1 - side, number)).is_some() {
                break;
            }
            assert!(world.elapsed() - healed < 2 * PATIENCE, "packets of {side} do not get through");
        }
    }
    check(&world, &sent);
    // Silence: what is answered was answered, and nobody has anything to say.
    world.run(2 * REKEY_ATTEMPT_TIME);
    let quiet = world.elapsed();
    world.run(20 * REKEY_ATTEMPT_TIME);
    assert!(world.sent.iter().all(|datagram| datagram.at <= quiet), "an idle tunnel is silent");
    check(&world, &sent);

    let mut used = HashSet::new();
    for (_, to, datagram) in world.transmitted.iter().flatten().filter(|(_, _, datagram)| datagram[0] == KIND_DATA) {
        assert!(used.insert((*to, &datagram[4..16])), "a nonce is used for one message only");
    }
}

fn check(world: &World, sent: &[BTreeSet<u64>; 2]) {
    for (engine, sent) in world.engines.iter().zip(sent) {
        let delivered: BTreeSet<u64> = engine.delivered.iter().map(|&(_, number)| number).collect();
        assert_eq!(delivered.len(), engine.delivered.len(), "a packet is delivered once");
        assert!(delivered.is_subset(sent), "a packet is delivered to whom it was sent");
        assert!(engine.indices() <= INDICES_MAX, "{} indices", engine.indices());
    }
}
