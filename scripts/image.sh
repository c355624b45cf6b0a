#!/bin/bash
# Builds the container image adit:VERSION from the static program, by buildah, podman or docker, whichever is there.
# Nothing is pulled.
#
#   scripts/image.sh [PROGRAM]                     target/static/adit, if not given
#
# ADIT_IMAGE_ARCHIVE=FILE   also writes it as an archive, to be loaded elsewhere (`podman load`, `docker load`)
# ADIT_IMAGE_STORE=FOLDER   buildah's storage, if not the user's
set -euo pipefail
cd "$(dirname "$0")/.."

program=${1:-target/static/adit}
version=$(sed -n '/^\[package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
tag=adit:$version
archive=${ADIT_IMAGE_ARCHIVE:-}
if [[ ! -x "$program" ]]; then
    echo "image: $program is not there: make static" >&2
    exit 1
fi
# A folder with the program and nothing else.
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
cp "$program" "$context/adit"

if command -v buildah >/dev/null; then
    # vfs and chroot work where overlays and namespaces are not permitted, as within another container.
    buildah=(buildah --storage-driver vfs)
    if [[ -n "${ADIT_IMAGE_STORE:-}" ]]; then
        mkdir -p "$ADIT_IMAGE_STORE"
        store=$(realpath "$ADIT_IMAGE_STORE")
        buildah+=(--root "$store/root" --runroot "$store/run")
    fi
    "${buildah[@]}" bud --isolation chroot --quiet --tag "$tag" --file deploy/docker/Dockerfile "$context" >&2
    if [[ -n "$archive" ]]; then
        rm -f "$archive"
        "${buildah[@]}" push --quiet "$tag" "docker-archive:$archive:$tag" >&2
    fi
elif builder=$(command -v podman || command -v docker); then
    "$builder" build --tag "$tag" --file deploy/docker/Dockerfile "$context" >&2
    if [[ -n "$archive" ]]; then
        "$builder" save --output "$archive" "$tag" >&2
    fi
else
    echo "image: needs buildah, podman or docker" >&2
    exit 1
fi
echo "$tag"
