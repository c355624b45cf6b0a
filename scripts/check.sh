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
# The oldest compiler that is promised.
msrv=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
if [[ "$(rustc --version)" == "rustc $msrv."* ]]; then
    echo "--- this compiler is the oldest that is promised, $msrv"
elif rustup toolchain list 2>/dev/null | grep -q "^$msrv"; then
    step cargo "+$msrv" check --all-targets
else
    echo "--- Rust $msrv, the oldest that is promised, is not installed (rustup toolchain install $msrv): not built with it"
fi
# The packet AEAD in pure Rust.
step cargo clippy --lib --bins --no-default-features --features daemon -- -D warnings
# The sidecar in somebody else's program.
step cargo clippy --lib --no-default-features --features proxy -- -D warnings
# Module heads may point to what is private: they are for who reads the source as well.
RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" step cargo doc --no-deps --lib --quiet
if command -v cargo-deny >/dev/null; then
    step cargo deny --log-level error check --hide-inclusion-graph licenses bans sources
    # The database of advisories lies on GitHub, and a firewall may stand before it.
    if cargo deny --log-level off fetch db 2>/dev/null; then
        step cargo deny --log-level error check --hide-inclusion-graph advisories
    else
        echo "--- the database of advisories cannot be reached: not checked"
    fi
else
    echo "--- cargo-deny is not installed: licences and advisories not checked"
fi
if command -v shellcheck >/dev/null; then
    step shellcheck scripts/*.sh .ci/run
fi
