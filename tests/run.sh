#!/usr/bin/env bash
# Everything that must be green. `make test` runs this.
#
# The last line is `N passed, N failed, N skipped`; the exit code is 0 only if nothing failed.
# A stage that is not a test (formatting, lints, build, scripts, what is left over) counts only when it
# fails, as one failure.
#
# Skips: a test that cannot run here appends a line `SKIP: name: why` to the file $VOLTAR_SKIP_LOG and
# returns. cargo counts it as passed; this script moves it to skipped, and with CI=true fails the
# run: there everything can run.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/sbin:/sbin

# Below a directory of our own, so that what is left over can be told from what others do meanwhile.
base=${TMPDIR:-/tmp}
scratch=$(mktemp -d "${base%/}/voltar-test.XXXXXX")
mkdir "$scratch/tmp"
export TMPDIR=$scratch/tmp
export VOLTAR_SKIP_LOG=$scratch/skips
# Marks every process started from here; see `leftovers`.
export VOLTAR_TEST_RUN=$scratch
: >"$VOLTAR_SKIP_LOG"
trap 'rm -rf --one-file-system "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

failed_stages=()

# stage NAME COMMAND...: runs it, prints its time, remembers a failure and goes on.
stage() {
    local name=$1 started=$SECONDS verdict=ok
    shift
    printf '\n== %s\n' "$name"
    if ! "$@"; then
        verdict=FAILED
        failed_stages+=("$name")
    fi
    printf '== %s: %s, %d s\n' "$name" "$verdict" $((SECONDS - started))
}

scripts() {
    local script good=0
    while read -r script; do
        if head -n 1 "$script" | grep -q 'bash'; then
            bash -n "$script" || good=1
        elif head -n 1 "$script" | grep -q 'python3'; then
            python3 -c 'import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])' "$script" || good=1
        fi
    done < <(find .ci benches fuzz tests -type f -not -path '*/target/*' \
        \( -name '*.sh' -o -name '*.py' -o -path '.ci/run' \))
    return "$good"
}

# What `make mutants` breaks is still there to be broken.
mutants() {
    local patch good=0
    for patch in tests/mutants/*.patch; do
        patch --quiet --strip 1 --dry-run <"$patch" >/dev/null || { echo "does not apply: $patch"; good=1; }
    done
    return "$good"
}

# Into a file that is shown meanwhile, not through a pipe: a process that a test leaves behind would hold
# the pipe open, and this script would wait for it instead of naming it.
tests() {
    local verdict=0 shown
    tail -n +1 -f --pid="$$" "$scratch/cargo.log" &
    shown=$!
    cargo test --workspace --no-fail-fast >"$scratch/cargo.log" 2>&1 || verdict=$?
    sleep 0.5
    kill "$shown"
    wait "$shown" 2>/dev/null || true
    return "$verdict"
}

# What this run started and did not end: processes that carry our mark, loop devices and mounts over our
# files. Those of others are none of our business.
leftovers() {
    local found=0 process line
    for process in /proc/[0-9]*; do
        if ours "${process#/proc/}"; then
            printf 'left over: process %s: %s\n' "${process#/proc/}" "$(tr '\0' ' ' <"$process/cmdline")"
            found=1
        fi
    done 2>/dev/null
    while read -r line; do
        printf 'left over: loop device %s\n' "$line"
        found=1
    done < <(losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null | grep -F "$scratch" || true)
    while read -r line; do
        printf 'left over: mount %s\n' "$line"
        found=1
    done < <(awk '{ print $2 }' /proc/mounts | grep -F "$scratch" || true)
    if [[ -n $loops_before && $(loops) != "$loops_before" ]]; then
        echo 'note: the loop devices of this machine changed meanwhile, elsewhere:'
        diff <(echo "$loops_before") <(loops) || true
    fi
    return "$found"
}

loops() { losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null | sort; echo .; }

# ours PID: it carries our mark and is neither this script nor one of its own helpers.
ours() {
    local parent
    grep -qzFx "VOLTAR_TEST_RUN=$scratch" "/proc/$1/environ" 2>/dev/null || return 1
    [[ $1 != "$$" && $1 != "$BASHPID" ]] || return 1
    parent=$(awk '/^PPid:/ { print $2 }' "/proc/$1/status" 2>/dev/null) || return 1
    [[ -n $parent && $parent != "$$" && $parent != "$BASHPID" ]]
}

# sum WORD: of the numbers before WORD in cargo's result lines.
sum() { sed -n "s/^test result:.* \([0-9]\+\) $1.*/\1/p" "$scratch/cargo.log" | awk '{ n += $1 } END { print n + 0 }'; }

forbidden_skips() {
    [[ ! -s $scratch/skips.unique ]] || {
        echo 'not allowed in CI:'
        cat "$scratch/skips.unique"
        return 1
    }
}

main() {
    local loops_before in_tests passed failed skipped
    loops_before=$(loops)
    : >"$scratch/cargo.log"
    stage 'dependencies' tests/deps.sh
    stage 'formatting' cargo fmt --all --check
    stage 'lints' cargo clippy --workspace --all-targets -- -D warnings
    stage 'scripts' scripts
    stage 'mutants apply' mutants
    stage 'release build' cargo build --release
    stage 'tests' tests
    # cargo counts these as passed; what other stages skip, nobody has counted.
    in_tests=$(sort -u "$VOLTAR_SKIP_LOG" | grep -c '^SKIP: ' || true)
    if [[ -x fuzz/smoke.sh ]]; then stage 'fuzz smoke' fuzz/smoke.sh; fi
    stage 'nothing left over' leftovers

    sort -u "$VOLTAR_SKIP_LOG" | grep '^SKIP: ' >"$scratch/skips.unique" || true
    if [[ ${CI:-} == true ]]; then stage 'skips' forbidden_skips; fi

    passed=$(($(sum passed) - in_tests))
    skipped=$(($(wc -l <"$scratch/skips.unique") + $(sum ignored)))
    failed=$(sum failed)
    printf '\n'
    cat "$scratch/skips.unique"
    local name
    for name in "${failed_stages[@]}"; do
        echo "FAILED: $name"
        # A failed test stage is counted by its tests, unless it never came to them.
        if [[ $name != tests || $(sum failed) == 0 ]]; then failed=$((failed + 1)); fi
    done
    if ((passed == 0 && failed == 0)); then
        echo 'FAILED: no test ran'
        failed=1
    fi
    printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
    ((failed == 0))
}

main "$@"
