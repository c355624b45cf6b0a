//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/proxy_config.rs"]
mod proxy_config;

libfuzzer_sys::fuzz_target!(|data: &[u8]| proxy_config::run(data));
