#!/bin/bash
# Installs what the tests, the demo and the benchmark need: tools of Debian, and the other implementations of WireGuard.
# Idempotent; what is there is left alone. Without root it says what it could not install, and goes on.
#
#   scripts/install-tools.sh             everything that the tests and the benchmark need
#   scripts/install-tools.sh --demo      only what the demo needs
#   scripts/install-tools.sh --mutants   only what `make mutants-proto` needs
set -euo pipefail

# Where Debian's administration tools lie, also for users who do not have them in their path.
PATH="$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin"

declare -A package_of=(
    [wg]=wireguard-tools [ip]=iproute2 [ping]=iputils-ping [iperf3]=iperf3 [setpriv]=util-linux
)
declare -A crate_of=()
if [[ "${1:-}" == --mutants ]]; then
    package_of=()
    crate_of=([cargo-mutants]=cargo-mutants@27.1.0)
elif [[ "${1:-}" != --demo ]]; then
    package_of+=(
        [wireguard-go]=wireguard-go [tcpdump]=tcpdump [tshark]=tshark [ncat]=ncat [nft]=nftables
        [ethtool]=ethtool [sysctl]=procps [capsh]=libcap2-bin
        [valgrind]=valgrind [curl]=curl [dig]=bind9-dnsutils [buildah]=buildah [python3]=python3
    )
    crate_of+=([boringtun-cli]=boringtun-cli@0.7.1 [gotatun]=gotatun-cli@0.10.2 [onetun]=onetun@0.3.10
        [cargo-deny]=cargo-deny@0.20.2 [cargo-auditable]=cargo-auditable@0.7.7)
fi

packages=()
for tool in "${!package_of[@]}"; do
    command -v "$tool" >/dev/null || packages+=("${package_of[$tool]}")
done
if (( ${#packages[@]} )); then
    if (( EUID == 0 )) && command -v apt-get >/dev/null; then
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${packages[@]}"
    else
        echo "install-tools: not installed (needs root and apt): ${packages[*]}" >&2
    fi
fi

for program in "${!crate_of[@]}"; do
    command -v "$program" >/dev/null && continue
    cargo install --locked "${crate_of[$program]}" || echo "install-tools: not installed: ${crate_of[$program]}" >&2
done

# What checks images and manifests, from PyPI, in a folder of its own; made anew when a version changes.
if [[ -z "${1:-}" ]]; then
    cd "$(dirname "$0")/.."
    linters=target/linters
    if ! cmp -s scripts/linters.txt "$linters/installed.txt"; then
        rm -rf "$linters"
        mkdir -p target
        # Debian's python3 cannot make such a folder without another package.
        if ! python3 -c 'import ensurepip' 2>/dev/null && (( EUID == 0 )) && command -v apt-get >/dev/null; then
            DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends python3-venv
        fi
        if python3 -m venv "$linters" &&
            "$linters/bin/pip" install --quiet --disable-pip-version-check -r scripts/linters.txt; then
            cp scripts/linters.txt "$linters/installed.txt"
        else
            echo "install-tools: not installed: what scripts/linters.txt lists (python3 with venv, and PyPI)" >&2
        fi
    fi
fi
