//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/input.rs"]
#[allow(dead_code)]
mod input;
#[path = "../../tests/fuzz_bodies/live_session.rs"]
mod live_session;

libfuzzer_sys::fuzz_target!(|data: &[u8]| live_session::run(data));
