# Sourced by the guest's scripts: strict mode, steps and checks. A script ends with `passed`.
set -Eeuo pipefail

# On the root file system, which knows O_DIRECT; /tmp does not.
export work=/root/work
mkdir -p "$work"
cd "$work"
export XDG_STATE_HOME=$work/state

checks=0
trap 'printf "FAILED: %s line %d: %s\n" "${BASH_SOURCE[0]##*/}" "$LINENO" "$BASH_COMMAND"' ERR

# step WORDS: what comes now, with the seconds since the guest started.
step() { printf '[%s] %s\n' "$(cut -d ' ' -f 1 /proc/uptime)" "$*"; }

fail() {
    printf 'FAILED: %s\n' "$*"
    exit 1
}

# check COMMAND...: it must succeed.
check() {
    "$@" || fail "$*"
    checks=$((checks + 1))
}

# expect STATUS COMMAND...: it must end with that. What it printed is in $work/out and $work/err.
expect() {
    local want=$1 status=0
    shift
    "$@" >"$work/out" 2>"$work/err" || status=$?
    if ((status != want)); then
        cat "$work/out" "$work/err"
        fail "$*: status $status, not $want"
    fi
    checks=$((checks + 1))
}

# start COMMAND...: in the background, as process $run.
start() {
    "$@" >run.out 2>run.err &
    run=$!
}

# ends STATUS: `expect` for what was started.
ends() {
    local status=0
    wait "$run" || status=$?
    expect "$1" came_back $status
}

came_back() {
    cat run.out
    cat run.err >&2
    return "$1"
}

# said WORDS: the last `expect` printed them on standard error.
said() {
    if ! grep -qF -- "$1" "$work/err"; then
        cat "$work/err"
        fail "it did not say: $1"
    fi
    checks=$((checks + 1))
}

# holds FILTER [JQ-OPTION]...: the JSON object that the last `expect` printed makes the filter true.
holds() {
    local filter=$1
    shift
    # Nothing at all would satisfy jq.
    if [[ ! -s $work/out ]] || ! jq -e "$@" "$filter" "$work/out" >"$work/verdict"; then
        cat "$work/out"
        fail "not so: $filter"
    fi
    checks=$((checks + 1))
}

# bytes_of PATH: what it holds, past the page cache.
bytes_of() { dd if="$1" bs=1M iflag=direct status=none; }

# passed: the last line; who runs the script looks for it.
passed() { printf '%d checks passed\n' "$checks"; }
