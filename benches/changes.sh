#!/usr/bin/env bash
# What a backup costs when little has changed: nothing, and one chunk in a hundred. `make bench-changes`.
#
#   benches/changes.sh [--host-mib N] [--guest-mib N]
#
# As root: a file on an XFS and on a btrfs made for it on a loop device; in the test guest (tests/guest), a
# thin volume and a zvol, all data. Each row is one backup: seconds as a whole process, bytes read, and both as
# shares of the full backup of the same volume that ran a moment before. The guest is emulated, so only the
# shares mean something there; `snapshot` is what making and removing a snapshot by hand takes in it.
# $VOLTAR names the binary, $VOLTAR_BENCH_DIR the place for the files.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
voltar=$(realpath -m "${VOLTAR:-$here/../target/release/voltar}")
bench_dir=${VOLTAR_BENCH_DIR:-${TMPDIR:-/var/tmp}/voltar-bench}
host_mib=4096
guest_mib=512
PATH=$PATH:/usr/sbin:/sbin

work=
loop=
mounted=

cleanup() {
    if [[ -n $mounted ]]; then umount "$mounted" || umount --lazy "$mounted"; fi
    if [[ -n $loop ]]; then losetup --detach "$loop" || true; fi
    mounted='' loop=''
    if [[ -n $work ]]; then rm -rf --one-file-system "$work"; fi
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# on FILESYSTEM: the rows of a file on it.
on() {
    local image=$work/$1.img
    truncate -s "$((host_mib * 3 / 2 + 1024))M" "$image"
    "mkfs.$1" -q "$image" >/dev/null
    loop=$(losetup --find --show "$image")
    mkdir -p "$work/mount"
    mount "$loop" "$work/mount"
    mounted=$work/mount
    "$here/changes-rows.sh" "file on $1" "$voltar" "$work/mount/disk.raw" "disk=$work/mount/disk.raw" \
        "$work/$1.voltar" "$host_mib" "$work/state"
    umount "$mounted"
    mounted=
    losetup --detach "$loop"
    loop=
    rm -f "$image" "$work/$1.voltar"
}

main() {
    while (($# > 0)); do
        case $1 in
        --host-mib) host_mib=$2 ;;
        --guest-mib) guest_mib=$2 ;;
        *) sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2 && exit 2 ;;
        esac
        shift 2
    done
    [[ $EUID == 0 ]] || { echo 'changes: it takes root to mount file systems' >&2; exit 1; }
    [[ -x $voltar ]] || { echo "changes: no $voltar (cargo build --release)" >&2; exit 1; }
    mkdir -p "$bench_dir"
    work=$(mktemp -d "$bench_dir/changes.XXXXXX")
    printf '%-14s %-16s %9s %12s %8s %8s\n' volume backup seconds 'bytes read' time bytes
    on xfs
    on btrfs
    "$here/../tests/guest/run.sh" -t 3600 -p "$here/changes-rows.sh" -p "$here/changes-guest.sh" \
        -d "$((guest_mib * 3 + 512))M" -d "$((guest_mib * 3 + 512))M" -d "$((guest_mib * 2 + 256))M" \
        "bash changes-guest.sh $guest_mib"
}

main "$@"
