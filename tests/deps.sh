#!/usr/bin/env bash
# Installs the packages of tests/packages.txt that are missing. `make deps` and tests/run.sh run this.
#
# Without root, without apt or without a network nothing is installed; what is missing is said and the exit
# code is 0: whoever needs a program says so itself.
set -euo pipefail

list=$(dirname "${BASH_SOURCE[0]}")/packages.txt
# mkfs and losetup live where a user's path may not look.
PATH=$PATH:/usr/sbin:/sbin

missing=()
find_missing() {
    missing=()
    while read -r package program _; do
        if [[ -z $package || $package == \#* ]]; then continue; fi
        if ! command -v "$program" >/dev/null; then missing+=("$package"); fi
    done <"$list"
}

find_missing
if ((${#missing[@]} == 0)); then
    echo 'deps: everything is installed'
    exit 0
fi
if [[ $EUID != 0 ]]; then
    echo "deps: not root, skipped: ${missing[*]}"
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "deps: no apt-get, skipped: ${missing[*]}"
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() { apt-get install -y --no-install-recommends "$@" >"$log" 2>&1; }

echo "deps: installing ${missing[*]}"
apt-get update >"$log" 2>&1 || echo 'deps: apt-get update failed; trying what is known'
install_missing() {
    if ! install "${missing[@]}"; then
        # One package that does not exist here must not keep the others away.
        for package in "${missing[@]}"; do
            install "$package" || echo "deps: skipped $package: $(tail -n 1 "$log")"
        done
    fi
}
install_missing
# A package that was here may have had to go for another: QEMU's programs of two releases, for one.
find_missing
if ((${#missing[@]} > 0)); then
    echo "deps: once more: ${missing[*]}"
    install_missing
fi
