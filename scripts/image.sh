#!/bin/bash
# Builds the container image `adit:VERSION` from the static program, by buildah, podman or docker, whichever is there.
# Nothing is pulled. With --archive it is also written to target/static/adit-image.tar, to be loaded elsewhere
# (podman load, docker load, ctr image import); that needs buildah.
#
#   scripts/image.sh [--archive]                ADIT_IMAGE_STORE=FOLDER: buildah's storage, if not the user's usual one
set -euo pipefail
cd "$(dirname "$0")/.."

version=$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
tag=adit:$version
if [[ ! -x target/static/adit ]]; then
    echo "image: target/static/adit is not there: make static" >&2
    exit 1
fi
# The context is a folder of its own: the archive may lie beside the program.
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp target/static/adit "$context/adit"

if command -v buildah >/dev/null; then
    # vfs and chroot work where overlay mounts and namespaces are not permitted, as within another container.
    store=()
    if [[ -n "${ADIT_IMAGE_STORE:-}" ]]; then
        mkdir -p "$ADIT_IMAGE_STORE"
        folder=$(realpath "$ADIT_IMAGE_STORE")
        store=(--root "$folder/root" --runroot "$folder/run")
    fi
    in_store() { buildah --storage-driver vfs "${store[@]}" "$@"; }
    in_store bud --isolation chroot --quiet -t "$tag" -f deploy/docker/Dockerfile "$context" >&2
    if [[ "${1:-}" == --archive ]]; then
        rm -f target/static/adit-image.tar
        in_store push --quiet "$tag" "docker-archive:$PWD/target/static/adit-image.tar:$tag" >&2
        echo target/static/adit-image.tar
    fi
elif builder=$(command -v podman || command -v docker); then
    "$builder" build -t "$tag" -f deploy/docker/Dockerfile "$context" >&2
else
    echo "image: needs buildah, podman or docker" >&2
    exit 1
fi
echo "$tag"
