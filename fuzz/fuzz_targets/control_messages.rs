//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/control_messages.rs"]
mod control_messages;

libfuzzer_sys::fuzz_target!(|data: &[u8]| control_messages::run(data));
