//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/replay.rs"]
mod replay;

libfuzzer_sys::fuzz_target!(|data: &[u8]| replay::run(data));
