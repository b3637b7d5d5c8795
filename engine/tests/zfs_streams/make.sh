#!/usr/bin/env bash
# Makes the streams beside it anew, in the test guest: `zfs send` of tiny volumes (NAME.stream) and what the
# volumes held then (NAME.image); `list` has the name, the guid, the guid that it goes on from, and the size.
# Needs `cargo build --release`.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
guest=$here/../../../tests/guest
bin=${CARGO_TARGET_DIR:-$here/../../../target}/release

out=$(mktemp -d "${TMPDIR:-/tmp}/voltar-streams.XXXXXX")
trap 'rm -rf "$out"' EXIT
"$guest/run.sh" -t 900 -d 256M -o "$out" -p "$guest/scripts" -b "$bin/sectors" 'bash scripts/zfs_streams.sh'
rm -f "$here"/*.zst
zstd -q -19 "$out"/*.stream "$out"/*.image --output-dir-flat "$here"
cp "$out/list" "$here/list"
