#!/usr/bin/env bash
# The long run: random histories for SOAK_SECONDS, SOAK_KILLS rounds of signals to backups, of VMs too, and to
# restores, and all other tests with SOAK_CASES cases per property. `make soak` runs this.
#
# Ends with figures: what was done and survived, added up. A failure is named before them, with the seed
# that replays it, and makes the exit code 1.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
: "${SOAK_SECONDS:=3600}" "${SOAK_KILLS:=300}" "${SOAK_CASES:=5000}"

log=$(mktemp "${TMPDIR:-/tmp}/voltar-soak.XXXXXX")
trap 'rm -f "$log"' EXIT

failed=0

# tests ARGUMENT...: of `cargo test`.
tests() { cargo test --release "$@" 2>&1 | tee -a "$log" || failed=1; }

cargo build --release
# Histories all at once, for most of them wait for their disk or share a volume's few megabytes.
VOLTAR_SOAK=$SOAK_SECONDS tests -p voltar-tests --test model script:: -- --nocapture --test-threads 4
VOLTAR_KILLS=$SOAK_KILLS tests -p voltar-tests --test cli kills:: -- --nocapture
VOLTAR_KILLS=$SOAK_KILLS tests -p voltar-tests --test vm kills:: -- --nocapture
# Where other tests take samples of bits and moments, they take all; those with seeds go on for a minute.
VOLTAR_SOAK=60 VOLTAR_ALL_BITS=1 PROPTEST_CASES=$SOAK_CASES \
    tests --workspace -- --include-ignored --skip script:: --skip kills::

printf '\n'
grep -E 'VOLTAR_SEED=|^SKIP: |^test .* FAILED$' "$log" || true
# Lines such as `figure: 12 histories`, added up by what follows the number.
grep -o 'figure: .*' "$log" | awk '
    { count = $2; sub(/^figure: [0-9]+ /, ""); if (!($0 in sum)) order[++n] = $0; sum[$0] += count }
    END { for (i = 1; i <= n; i++) printf "%14d %s\n", sum[order[i]], order[i] }'
exit "$failed"
