//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/uapi.rs"]
mod uapi;

libfuzzer_sys::fuzz_target!(|data: &[u8]| uapi::run(data));
