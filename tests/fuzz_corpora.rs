//! The committed corpora and fresh random inputs, through the bodies of the fuzz targets: what a fuzzer found once is
//! found again by a plain `cargo test`.
//!
//! `ADIT_SEED=n` repeats a run; the seed is printed. `ADIT_FUZZ_ROUNDS=n` makes it longer.
#![cfg(feature = "device")]

use std::fs;
use std::path::Path;

#[path = "fuzz_bodies/allowed_ips.rs"]
mod allowed_ips;
#[path = "fuzz_bodies/inner_packet.rs"]
mod inner_packet;
#[path = "fuzz_bodies/messages.rs"]
mod messages;
#[path = "fuzz_bodies/offload.rs"]
mod offload;
#[path = "fuzz_bodies/replay.rs"]
mod replay;
#[path = "fuzz_bodies/uapi.rs"]
mod uapi;

/// Random inputs for each target, beside its corpus.
const ROUNDS: u64 = 2000;
/// Bytes in the longest random input.
const INPUT_LEN_MAX: u64 = 1600;

/// xorshift64*: enough to vary inputs, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % bound
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Replays `fuzz/corpus/<target>`, then inputs made from it by a few changes, then noise.
fn exercise(target: &str, body: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut corpus: Vec<_> = match fs::read_dir(&folder) {
        Ok(entries) => entries.map(|entry| entry.expect("a folder can be listed").path()).collect(),
        // The published package has no fuzz folder.
        Err(error) => {
            println!("SKIPPED: corpus of {target}: {}: {error}", folder.display());
            Vec::new()
        }
    };
    corpus.sort();
    let corpus: Vec<Vec<u8>> = corpus.iter().map(|path| fs::read(path).expect("a seed can be read")).collect();
    corpus.iter().for_each(|seed| body(seed));

    let seed = number("ADIT_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
    println!("{target}: {} seeds, ADIT_SEED={seed}", corpus.len());
    let mut random = Random(seed.max(1));
    for round in 0..number("ADIT_FUZZ_ROUNDS").unwrap_or(ROUNDS) {
        let mut input = match corpus.len() as u64 {
            count @ 1.. if round % 4 != 0 => corpus[random.below(count) as usize].clone(),
            _ => (0..random.below(INPUT_LEN_MAX)).map(|_| random.below(256) as u8).collect(),
        };
        for _ in 0..random.below(6) {
            let (at, value) = (random.below(input.len() as u64 + 1) as usize, random.below(256) as u8);
            match random.below(4) {
                0 => input.insert(at, value),
                1 if at < input.len() => drop(input.remove(at)),
                2 => input.truncate(at.max(1)),
                _ if at < input.len() => input[at] = value,
                _ => input.push(value),
            }
        }
        body(&input);
    }
}

#[test]
fn allowed_ips_corpus() {
    exercise("allowed_ips", allowed_ips::run);
}

#[test]
fn inner_packet_corpus() {
    exercise("inner_packet", inner_packet::run);
}

#[test]
fn messages_corpus() {
    exercise("messages", messages::run);
}

#[test]
fn offload_corpus() {
    exercise("offload", offload::run);
}

#[test]
fn replay_corpus() {
    exercise("replay", replay::run);
}

#[test]
fn uapi_corpus() {
    exercise("uapi", uapi::run);
}
