//! Fuzz target; its body is shared with `tests/fuzz_corpora.rs`.
#![no_main]

#[path = "../../tests/fuzz_bodies/http_proxy.rs"]
mod http_proxy;
#[path = "../../tests/fuzz_bodies/input.rs"]
#[allow(dead_code)]
mod input;
#[path = "../../tests/fuzz_bodies/service.rs"]
#[allow(dead_code)]
mod service;

libfuzzer_sys::fuzz_target!(|data: &[u8]| http_proxy::run(data));
