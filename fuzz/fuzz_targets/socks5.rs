//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/input.rs"]
#[allow(dead_code)]
mod input;
#[path = "../../tests/fuzz_bodies/service.rs"]
#[allow(dead_code)]
mod service;
#[path = "../../tests/fuzz_bodies/socks5.rs"]
mod socks5;

libfuzzer_sys::fuzz_target!(|data: &[u8]| socks5::run(data));
