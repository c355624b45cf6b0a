#!/bin/bash
# What can be said about the code without running it: formatting, lints, the builds that prove a property, docs.
set -euo pipefail
cd "$(dirname "$0")/.."

step() { echo "--- $*"; "$@"; }

step cargo fmt --check
step cargo clippy --all-targets -- -D warnings
# The protocol needs no operating system: without features it is no_std, and builds where there is no std at all.
step cargo clippy --lib --no-default-features -- -D warnings
bare=$(rustc --print target-list | grep -Fx "$({ rustup target list --installed 2>/dev/null || true; } | grep -- '-none' | head -n 1)" || true)
if [[ -n "$bare" ]]; then
    step cargo check --lib --no-default-features --target "$bare"
else
    echo "--- no bare-metal target is installed (rustup target add thumbv7em-none-eabihf): not built for one"
fi
# The packet AEAD in pure Rust.
step cargo clippy --lib --bins --no-default-features --features daemon -- -D warnings
# Module heads may point to what is private: they are for who reads the source as well.
RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" step cargo doc --no-deps --lib --quiet
if command -v cargo-deny >/dev/null; then
    step cargo deny check
else
    echo "--- cargo-deny is not installed: licences and advisories not checked"
fi
if command -v shellcheck >/dev/null; then
    step shellcheck scripts/*.sh .ci/run
fi
