//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/allowed_ips.rs"]
mod allowed_ips;

libfuzzer_sys::fuzz_target!(|data: &[u8]| allowed_ips::run(data));
