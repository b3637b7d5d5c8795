#!/usr/bin/env bash
# Breaks voltar on purpose, one way after the other, and says which test notices. `make mutants` runs this.
#
#   tests/mutants.sh             every patch in tests/mutants
#   tests/mutants.sh NAME...     these only
#
# A patch says what it breaks (`What:`) and which tests must notice (`Tests:`, arguments of cargo test). It
# is an error if a patch no longer applies, if what it makes does not build, or if no test fails; and if one
# of these tests fails without any patch. Works on a copy; the tree is not touched.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tree=$PWD
wanted=("$@")
((${#wanted[@]})) || mapfile -t wanted < <(basename -s .patch -a tests/mutants/*.patch)

scratch=$(mktemp -d "${TMPDIR:-/tmp}/voltar-mutants.XXXXXX")
trap 'rm -rf --one-file-system "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir "$scratch/copy"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$scratch/copy"
cd "$scratch/copy"
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$scratch/target}

# said NAME FIELD: what the patch says of itself.
said() { sed -n "s/^$2: //p" "$tree/tests/mutants/$1.patch"; }

# noticed NAME: the tests that fail, at most three of them; or why there are none.
noticed() {
    local log=$scratch/log tests
    read -ra tests < <(said "$1" Tests)
    if ! cargo test --quiet --no-run "${tests[@]}" >"$log" 2>&1; then
        cat "$log" >&2
        echo '**it does not build**'
        return
    fi
    # A mutant may wait for ever for what it broke.
    timeout 900 cargo test --no-fail-fast "${tests[@]}" >"$log" 2>&1 || true
    sed -n 's/^test \(.*\) \.\.\. FAILED$/`\1`/p' "$log" | sort -u | head -n 3 | paste -sd ' '
}

# unbroken: runs all tests that mutants name; a test that fails anyway would notice everything.
unbroken() {
    local name log=$scratch/log line tests
    for name in "${wanted[@]}"; do said "$name" Tests; done | sort -u >"$scratch/tests"
    while read -r line; do
        read -ra tests <<<"$line"
        cargo test --no-fail-fast "${tests[@]}" >"$log" 2>&1 </dev/null && continue
        cat "$log" >&2
        echo "mutants: these tests fail without any mutant: $line" >&2
        return 1
    done <"$scratch/tests"
}

survived=0
# try NAME: one row of the table.
try() {
    local patch=$tree/tests/mutants/$1.patch by='**the patch does not apply**'
    if patch --quiet --strip 1 --dry-run <"$patch"; then
        patch --quiet --strip 1 <"$patch"
        by=$(noticed "$1")
        patch --quiet --strip 1 --reverse <"$patch"
    fi
    [[ $by == \`* ]] || survived=$((survived + 1))
    printf '| %s | %s | %s |\n' "$1" "$(said "$1" What)" "${by:-**nobody**}"
}

unbroken
echo '| mutant | what is broken | noticed by |'
echo '|---|---|---|'
for name in "${wanted[@]}"; do try "$name"; done
printf 'mutants: %d of %d noticed\n' $((${#wanted[@]} - survived)) "${#wanted[@]}"
((survived == 0))
