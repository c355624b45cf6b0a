//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/http_proxy.rs"]
mod http_proxy;

libfuzzer_sys::fuzz_target!(|data: &[u8]| http_proxy::run(data));
