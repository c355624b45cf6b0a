#!/bin/bash
# Fetches the wireguard-go of Debian's unstable release for the comparison, as a stable release's may be years old and without
# segmentation offloads. It is unpacked into target/wireguard-go and not installed; what is there is left alone. Where
# it cannot be had, the comparison takes the one in the path.
#
#   scripts/fetch-wireguard-go.sh
set -euo pipefail
cd "$(dirname "$0")/.."
folder=target/wireguard-go
if [[ -x $folder/usr/bin/wireguard-go ]]; then
    exit
fi

# Lists and archives of its own: the system's stay as they are.
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
mkdir -p "$state/lists/partial" "$state/archives/partial" target
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] http://deb.debian.org/debian sid main" > "$state/sources.list"
options=(
    -o Dir::Etc::SourceList="$state/sources.list" -o Dir::Etc::SourceParts=- -o Dir::State::Lists="$state/lists"
    # The folder is closed to others, also to the user as whom apt downloads for root.
    -o Dir::Cache="$state" -o APT::Sandbox::User=root
    -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
)
if ! { command -v apt-get >/dev/null && apt-get -qq "${options[@]}" update &&
    (cd "$state" && apt-get -qq "${options[@]}" download wireguard-go) &&
    dpkg-deb -x "$state"/wireguard-go_*.deb "$folder"; }; then
    echo "fetch-wireguard-go: not fetched (needs apt, Debian's keyring, and Debian's packages)" >&2
fi
