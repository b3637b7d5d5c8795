#!/usr/bin/env bash
# Peak memory for an archive whose index holds 100 million chunks: made by a generator, then opened,
# extended and verified. `benches/big-index.sh [CHUNKS]`; needs about 30 GB of disk for 100 million.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

chunks=${1:-100000000}
dir=${VOLTAR_BENCH_DIR:-${TMPDIR:-/var/tmp}/voltar-bench}/big-index
limit_kib=$((256 * 1024))
mkdir -p "$dir"
trap 'rm -rf "$dir"' EXIT
cargo build --release -p voltar -p voltar-benches

verdict=0
# measure NAME COMMAND...: wall time and peak memory of a whole process.
measure() {
    local name=$1 figures
    shift
    python3 -S -I benches/measure.py "$dir/result.json" --stdout "$dir/output" --stderr "$dir/output" -- "$@" ||
        { echo "$name: failed:"; cat "$dir/output"; verdict=1; return; }
    figures=$(cat "$dir/result.json")
    python3 - "$name" "$limit_kib" "$figures" <<'PYTHON' || verdict=1
import json, sys
name, limit, figures = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
peak = figures["peak_bytes"] / 1024
print(f"| {name} | {figures['wall_s']:.1f} s | {peak / 1024:.0f} MiB | {'ok' if peak <= limit else 'MISSED'} |", flush=True)
sys.exit(0 if peak <= limit else 1)
PYTHON
}

archive=$dir/big.voltar
head -c 64M /dev/urandom >"$dir/small.raw"
echo "| $chunks chunks of 4 KiB | wall | peak memory | at most 256 MiB |"
echo '|---|---|---|---|'
measure 'generate (a full backup)' target/release/big-index "$archive" "$chunks"
measure 'list' target/release/voltar list "$archive" --quiet
measure 'extend (a 64 MiB volume)' target/release/voltar backup "$dir/small.raw" "$archive" --quiet
measure 'extend again, nothing changed' target/release/voltar backup "$dir/small.raw" "$archive" --quiet
measure 'verify --stored' target/release/voltar verify --stored "$archive" --quiet
measure 'verify' target/release/voltar verify "$archive" --quiet
ls -l "$archive" | awk '{ printf "archive: %.1f GiB\n", $5 / 2^30 }'
exit "$verdict"
