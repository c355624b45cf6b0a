//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/offload.rs"]
mod offload;

libfuzzer_sys::fuzz_target!(|data: &[u8]| offload::run(data));
