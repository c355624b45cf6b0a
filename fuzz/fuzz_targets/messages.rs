//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/messages.rs"]
mod messages;

libfuzzer_sys::fuzz_target!(|data: &[u8]| messages::run(data));
