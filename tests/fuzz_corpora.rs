//! The committed corpora and fresh random inputs, through the bodies of the fuzz targets: what a fuzzer found once is
//! found again by a plain `cargo test`.
//!
//! `ADIT_SEED=n` repeats a run; the seed is printed. `ADIT_FUZZ_ROUNDS=n` makes it longer.
#![cfg(feature = "device")]

use std::fs;
use std::path::Path;

#[path = "fuzz_bodies/allowed_ips.rs"]
mod allowed_ips;
#[path = "fuzz_bodies/control_messages.rs"]
mod control_messages;
#[cfg(feature = "netstack")]
#[path = "fuzz_bodies/dns_answers.rs"]
mod dns_answers;
#[cfg(feature = "proxy")]
#[path = "fuzz_bodies/http_proxy.rs"]
mod http_proxy;
#[path = "fuzz_bodies/inner_packet.rs"]
mod inner_packet;
#[path = "fuzz_bodies/input.rs"]
mod input;
#[path = "fuzz_bodies/live_session.rs"]
mod live_session;
#[path = "fuzz_bodies/messages.rs"]
mod messages;
#[path = "fuzz_bodies/offload.rs"]
mod offload;
#[path = "fuzz_bodies/oracles.rs"]
mod oracles;
#[cfg(feature = "proxy")]
#[path = "fuzz_bodies/proxy_config.rs"]
mod proxy_config;
#[path = "fuzz_bodies/replay.rs"]
mod replay;
#[cfg(feature = "netstack")]
#[path = "fuzz_bodies/seeds.rs"]
mod seeds;
#[cfg(feature = "proxy")]
#[path = "fuzz_bodies/service.rs"]
mod service;
#[cfg(feature = "proxy")]
#[path = "fuzz_bodies/socks5.rs"]
mod socks5;
#[cfg(feature = "netstack")]
#[path = "fuzz_bodies/stack.rs"]
mod stack;
#[path = "fuzz_bodies/strangers.rs"]
mod strangers;
#[path = "fuzz_bodies/two_engines.rs"]
mod two_engines;
#[path = "fuzz_bodies/uapi.rs"]
mod uapi;

/// What a fuzz target does with an input.
type Body = fn(&[u8]);

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

/// Replays `fuzz/corpus/<target>`, then `rounds` inputs: made from it by a few changes, or noise.
fn exercise(target: &str, rounds: u64, body: Body) {
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
    for round in 0..number("ADIT_FUZZ_ROUNDS").unwrap_or(rounds) {
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
fn z_01_strangers_get_no_answer_and_change_nothing() {
    exercise("strangers", 200, strangers::run);
}

#[test]
fn z_02_altered_messages_deliver_nothing() {
    exercise("live_session", 400, live_session::run);
}

#[test]
fn z_02_any_datagram_is_sorted() {
    exercise("messages", 2000, messages::run);
}

#[test]
fn z_03_inner_packets() {
    exercise("inner_packet", 2000, inner_packet::run);
}

#[test]
fn z_04_bytes_in_are_bytes_out() {
    exercise("offload", 2000, offload::run);
}

#[test]
fn z_05_uapi_text() {
    exercise("uapi", 2000, uapi::run);
}

#[test]
fn z_06_allowed_ips_are_a_plain_list() {
    exercise("allowed_ips", 2000, allowed_ips::run);
}

#[test]
fn z_07_the_window_is_a_set() {
    exercise("replay", 2000, replay::run);
}

#[test]
fn z_08_control_messages() {
    exercise("control_messages", 2000, control_messages::run);
}

#[test]
fn z_09_two_engines_and_a_bad_network() {
    exercise("two_engines", 300, two_engines::run);
}

#[test]
fn z_10_snow_and_boringtun_agree() {
    exercise("oracles", 300, oracles::run);
}

#[cfg(feature = "proxy")]
#[test]
fn z_11_the_sidecars_file() {
    exercise("proxy_config", 2000, proxy_config::run);
}

#[cfg(feature = "proxy")]
#[test]
fn z_12_what_a_client_says_to_socks5() {
    exercise("socks5", 300, socks5::run);
}

#[cfg(feature = "proxy")]
#[test]
fn z_13_what_a_client_says_to_the_http_proxy() {
    exercise("http_proxy", 300, http_proxy::run);
}

#[cfg(feature = "netstack")]
#[test]
fn z_14_packets_into_the_stack() {
    exercise("stack", 300, stack::run);
}

#[cfg(feature = "netstack")]
#[test]
fn z_15_answers_of_a_dns_server() {
    exercise("dns_answers", 300, dns_answers::run);
}

/// What real peers and stacks say is no surprise to any target. `ADIT_WRITE_SEEDS=1` adds it to the corpora.
#[cfg(feature = "netstack")]
#[test]
fn real_traffic() {
    let bodies: [(&str, Body); 5] = [
        ("inner_packet", inner_packet::run),
        ("messages", messages::run),
        ("offload", offload::run),
        ("stack", stack::run),
        ("strangers", strangers::run),
    ];
    for (target, name, bytes) in seeds::of_real_traffic() {
        let (_, body) = bodies.iter().find(|(name, _)| *name == target).expect("each seed has its target");
        body(&bytes);
        if std::env::var_os("ADIT_WRITE_SEEDS").is_some() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
            fs::create_dir_all(&folder).expect("a folder");
            fs::write(folder.join(name), bytes).expect("a seed");
        }
    }
}
