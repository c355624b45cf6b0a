#!/bin/bash
# Builds adit as one static program that needs no file beside itself: for images without a system, for chroots, for
# other distributions. With musl where its target and its compiler are installed and the program builds with it, else with
# the system's glibc. Prints where the program lies: target/static/adit, or target/static/PROFILE/adit.
#
#   scripts/static.sh [PROFILE]                                          release, if not given
#   STATIC_TARGET=x86_64-unknown-linux-musl scripts/static.sh            this target and no other
#
# Static glibc resolves names by /etc/hosts and DNS (/etc/resolv.conf) and by no other means of nsswitch.conf(5).
set -euo pipefail
cd "$(dirname "$0")/.."

profile=${1:-release}
# Cargo calls the folder of the profile `dev` otherwise.
folder=$profile
if [[ "$profile" == dev ]]; then folder=debug; fi
program=target/static/adit
if [[ "$profile" != release ]]; then program=target/static/$profile/adit; fi
architecture=$(rustc -vV | sed -n 's/^host: \([^-]*\)-.*/\1/p')

# The list of what it was built from goes into the program, where the tool for that is installed.
auditable=()
if command -v cargo-auditable >/dev/null; then auditable=(auditable); fi

has_musl() {
    command -v rustup >/dev/null && rustup target list --installed | grep -qFx "$architecture-unknown-linux-musl" &&
        { command -v musl-gcc || command -v "$architecture-linux-musl-gcc"; } >/dev/null
}

build() {
    local target=$1
    # - A static program cannot look up getrandom(2)'s wrapper at run time, as the crate does by default: it would read
    #   /dev/urandom, which an empty root lacks. So it calls it outright, and asks for Linux 3.17.
    # - Without --target the flags would be for build scripts and procedural macros too, and a macro cannot be static.
    local flags="-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\""
    RUSTFLAGS="${RUSTFLAGS:-} $flags" CARGO_PROFILE_RELEASE_STRIP=debuginfo \
        cargo "${auditable[@]}" build --profile "$profile" --bin adit --target "$target" >&2 || return
    install -D -m 0755 "target/$target/$folder/adit" "$program"
}

if [[ -n "${STATIC_TARGET:-}" ]]; then
    build "$STATIC_TARGET"
elif ! has_musl; then
    build "$architecture-unknown-linux-gnu"
elif ! build "$architecture-unknown-linux-musl"; then
    echo "static: does not build with musl here: with glibc instead" >&2
    build "$architecture-unknown-linux-gnu"
fi

# A program with an interpreter would start nowhere but beside the system's libraries.
if readelf --program-headers --wide "$program" | grep -q INTERP; then
    echo "static: $program asks for a dynamic linker" >&2
    exit 1
fi
echo "$program"
