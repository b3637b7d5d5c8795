#!/usr/bin/env bash
# Builds the fuzz targets and runs each for a few seconds on its seeds.
#
#   fuzz/smoke.sh                   all targets, FUZZ_SMOKE_SECONDS (3) each
#   fuzz/smoke.sh --seconds 600     a long run; corpora grow in fuzz/corpus, from those in fuzz/corpora
#   fuzz/smoke.sh --minimise        the least of seeds and fuzz/corpus that covers as much, into fuzz/corpora
#   fuzz/smoke.sh frame archive     these targets only
#
# It needs neither cargo-fuzz nor a nightly compiler: the flags below are those that cargo-fuzz gives, and
# RUSTC_BOOTSTRAP lets the stable compiler take the one that is not stable (-Zsanitizer). A C++ compiler is
# needed, for libFuzzer. What a target finds is kept in fuzz/artifacts/TARGET; `fuzz/smoke.sh --replay FILE
# TARGET` runs it again.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"

seconds=${FUZZ_SMOKE_SECONDS:-3}
replay=
minimise=
jobs=$(nproc)
wanted=()
while (($#)); do
    case $1 in
        --seconds) seconds=$2; shift ;;
        --minimise) minimise=yes ;;
        --replay) replay=$(realpath "$2"); shift ;;
        --jobs) jobs=$2; shift ;;
        -*) echo "unknown option: $1" >&2; exit 2 ;;
        *) wanted+=("$1") ;;
    esac
    shift
done
smoke=yes
((seconds <= 30)) || smoke=

skip() {
    echo "SKIP: fuzz_smoke: $1"
    if [[ -n ${VOLTAR_SKIP_LOG:-} ]]; then echo "SKIP: fuzz_smoke: $1" >>"$VOLTAR_SKIP_LOG"; fi
    exit 0
}

command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null \
    || skip 'no C++ compiler (package g++), which libFuzzer is built with'

triple=$(rustc -vV | sed -n 's/^host: //p')
[[ $triple == *-linux-gnu ]] || skip "no sanitizer runtime for $triple"

# Coverage as libFuzzer wants it, checks on, and the address sanitizer, whose hooks the memory limits need.
flags=(
    --cfg fuzzing
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Cdebug-assertions
    -Coverflow-checks
    -Zsanitizer=address
)
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="${flags[*]} ${RUSTFLAGS:-}"
target_dir=${CARGO_TARGET_DIR:-$PWD/target}
${CARGO:-cargo} build --quiet --release --bins --target "$triple" --target-dir "$target_dir"
bin=$target_dir/$triple/release

mapfile -t all < <(sed -n 's|^path = "fuzz_targets/\(.*\)\.rs"|\1|p' Cargo.toml)
((${#wanted[@]})) || wanted=("${all[@]}")

export ASAN_OPTIONS=quarantine_size_mb=16:detect_leaks=0:allocator_may_return_null=0:abort_on_error=0
# Without entropic scheduling: over tens of thousands of features its books cost more than the runs.
limits=(-rss_limit_mb=512 -malloc_limit_mb=128 -timeout=30 -max_len=196608 -entropic=0)

if [[ -n $replay ]]; then
    exec "$bin/${wanted[0]}" "${limits[@]}" "$replay"
fi

scratch=$(mktemp -d "${TMPDIR:-/tmp}/voltar-fuzz.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# seeds_of TARGET: where its inputs lie that are kept as files, into `seeds`.
seeds_of() {
    local golden
    seeds=("seeds/$1")
    if [[ $1 == archive ]]; then
        for golden in ../format/vectors/{accept,reject}; do
            [[ ! -d $golden ]] || seeds+=("$golden")
        done
    fi
}

# pack TARGET: the least of its seeds and its corpus that covers as much as all of them.
pack() {
    local target=$1 least=$scratch/least/$1 seeds
    [[ -d corpus/$target ]] || return 0
    seeds_of "$target"
    mkdir -p "$least" corpora
    "$bin/$target" "${limits[@]}" -merge=1 "$least" "${seeds[@]}" "corpus/$target" >"$scratch/$target.log" 2>&1 \
        || { tail -n 20 "$scratch/$target.log"; return 1; }
    tar -C "$least" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - . \
        | zstd -q -f -19 --long=27 -o "corpora/$target.tar.zst"
    printf '%-10s %5d inputs, %d KiB\n' "$target" "$(find "$least" -type f | wc -l)" \
        "$(($(stat -c %s "corpora/$target.tar.zst") / 1024))"
}

if [[ -n $minimise ]]; then
    for target in "${wanted[@]}"; do pack "$target"; done
    exit
fi

# one TARGET: runs it, prints one line; the whole output only if it fails.
one() {
    local target=$1 log=$scratch/$1.log corpus=$scratch/corpus/$1 verdict=0 seeds
    seeds_of "$target"
    [[ -n $smoke ]] || corpus=corpus/$target
    mkdir -p "$corpus" "artifacts/$target"
    if [[ -z $smoke && -f corpora/$target.tar.zst ]]; then
        zstd -q -d -c --long=27 "corpora/$target.tar.zst" | tar -C "$corpus" -xf - --skip-old-files
    fi
    "$bin/$target" "${limits[@]}" -max_total_time="$seconds" -print_final_stats=1 -verbosity=1 \
        -artifact_prefix="artifacts/$target/" "$corpus" "${seeds[@]}" >"$log" 2>&1 </dev/null || verdict=$?
    local runs coverage
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)
    coverage=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) .*/\1 edges, \2 features/p' "$log" | tail -n 1)
    if ((verdict != 0)) || [[ ${runs:-0} == 0 ]]; then
        tail -n 60 "$log"
        printf '%-10s FAILED (exit %d) after %s executions; see fuzz/artifacts/%s\n' \
            "$target" "$verdict" "${runs:-?}" "$target"
        return 1
    fi
    rmdir --ignore-fail-on-non-empty "artifacts/$target"
    printf '%-10s %9d executions, %s\n' "$target" "$runs" "${coverage:-}"
    echo "$runs" >"$scratch/$target.runs"
}

failed=0
running=0
for target in "${wanted[@]}"; do
    if ((running >= jobs)); then
        wait -n || failed=$((failed + 1))
        running=$((running - 1))
    fi
    one "$target" &
    running=$((running + 1))
done
while ((running > 0)); do
    wait -n || failed=$((failed + 1))
    running=$((running - 1))
done
rmdir --ignore-fail-on-non-empty artifacts 2>/dev/null || true

total=$(cat "$scratch"/*.runs 2>/dev/null | awk '{ n += $1 } END { print n + 0 }')
printf 'fuzzing: %d targets, %d executions, %d failed\n' "${#wanted[@]}" "$total" "$failed"
((failed == 0))
