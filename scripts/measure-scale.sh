#!/bin/bash
# Measures what many peers cost, with the release build (or the program that is named): loading 20,000 peers by one
# `wg setconf`, listing them, memory for a configured peer and for one with a live session, wake-ups when idle.
# Fails if a bound of the project is exceeded. Needs root.
#
#   scripts/measure-scale.sh [path/to/adit]
set -euo pipefail
cd "$(dirname "$0")/.."

if (( $# )); then
    program=$(realpath "$1")
else
    cargo build --release --bin adit
    program=$PWD/target/release/adit
fi
echo "machine  $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) cores"
echo "kernel   $(uname -sr)"
echo "date     $(date -u '+%Y-%m-%d %H:%M UTC')"
echo "commit   $(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)"
echo "program  $program"
# One after the other: they are timed.
ADIT_TEST_BINARY=$program ADIT_RELEASE_BOUNDS=1 cargo test --quiet --test scale --test idle -- --nocapture --test-threads=1
