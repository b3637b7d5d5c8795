#!/usr/bin/env bash
# A real disk there and back. `make demo` runs this.
#
# As root the disk is a loop device with a mounted ext4 file system; otherwise a plain file, filled and
# changed by e2fsprogs without a mount. Nothing is left behind: no loop device, mount, process or file.
# $TMPDIR (default /var/tmp) needs about 2.5 GiB. $VOLTAR names another binary, which is then not built.
set -euo pipefail

tree=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$PATH:/usr/sbin:/sbin
disk_mib=512
files_mib=200

work=
loops=()
mounted=
deleted=
steps=()

cleanup() {
    local loop
    cd /
    if [[ -n $mounted ]]; then unmount "$mounted" || true; fi
    for loop in "${loops[@]}"; do losetup --detach "$loop" || true; done
    if [[ -n $work ]]; then rm -rf --one-file-system "$work"; fi
}

# A program that was just interrupted may hold its files a moment longer.
unmount() {
    local attempt
    for attempt in {1..50}; do
        if umount "$1" 2>/dev/null; then return; fi
        sleep 0.2
    done
    umount --lazy "$1"
}

trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi

fail() {
    printf '\ndemo: FAILED: %s\n' "$*" >&2
    exit 1
}

title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

# typed COMMAND...: shows the command as a person would type it, and runs it. A function shows its own.
typed() {
    if [[ $(type -t "$1") != function ]]; then printf '$ %s\n' "$*"; fi
    "$@"
}

# step NAME SIZE-OF COMMAND...: one row of the table. SIZE-OF is a file, or - for none. Sets $code.
step() {
    local name=$1 file=$2 started size=-
    shift 2
    title "$name"
    started=$(date +%s%N)
    code=0
    typed "$@" || code=$?
    if [[ $file != - && -e $file ]]; then size=$(mib "$file"); fi
    steps+=("$(printf '%-38s %8s s %14s' "$name" "$(seconds $(($(date +%s%N) - started)))" "$size")")
}

# must NAME SIZE-OF COMMAND...: a step that has to succeed.
must() {
    step "$@"
    if ((code != 0)); then fail "$1: exit $code"; fi
}

seconds() { printf '%d.%02d' $(($1 / 1000000000)) $(($1 / 10000000 % 100)); }

mib() { printf '%d MiB' $((($(stat -L -c %s "$1") + 1048575) / 1048576)); }

attach() {
    local loop
    loop=$(losetup --find --show "$1")
    loops+=("$loop")
    printf '$ losetup --find --show %s\n%s\n' "$1" "$loop"
}

# Real programs and libraries of this machine, up to so many MiB, in the same order every time.
real_files() {
    local budget=$(($1 << 20)) path size
    # Read to the end: a closed pipe would be an error of find's.
    { find /usr/bin /usr/lib /usr/share -xdev -type f -size -8192k -printf '%s\t%p\n' 2>/dev/null || true; } |
        LC_ALL=C sort -t $'\t' -k 2 |
        awk -F '\t' -v budget="$budget" 'used + $1 <= budget { used += $1; print $2 }' |
        while read -r path; do if [[ -r $path ]]; then printf '%s\0' "$path"; fi; done
}

copy_files() { xargs -0 cp --parents --no-dereference --target-directory="$1"; }

random_bytes() { head -c "$1" /dev/urandom; }

# --- the disk: with a mount as root, without one otherwise --------------------------------------------

# Under `must` a function goes on after an error unless it says otherwise: hence the `&&`.

make_disk_mounted() {
    truncate -s "${disk_mib}M" disk.img &&
        attach disk.img &&
        disk=${loops[0]} &&
        typed mkfs.ext4 -q -m 0 "$disk" &&
        mount_disk &&
        echo "\$ (copy $files_mib MiB of programs and libraries of this machine)" &&
        real_files "$files_mib" | copy_files mnt &&
        random_bytes 24M >mnt/photos.bin &&
        unmount_disk
}

mount_disk() {
    mkdir -p mnt &&
        typed mount "$disk" mnt &&
        mounted=$work/mnt
}

unmount_disk() {
    typed umount mnt && mounted=
}

change_disk_mounted() {
    mount_disk &&
        random_bytes 4M >new.bin &&
        typed cp new.bin mnt/new.bin &&
        typed mv mnt/photos.bin mnt/holiday.bin &&
        typed dd if=new.bin of=mnt/holiday.bin bs=64K seek=100 count=8 conv=notrunc status=none &&
        typed rm "mnt$deleted" &&
        unmount_disk
}

make_disk_offline() {
    disk=disk.img
    mkdir tree &&
        echo "\$ (copy $files_mib MiB of programs and libraries of this machine)" &&
        real_files "$files_mib" | copy_files tree &&
        random_bytes 24M >tree/photos.bin &&
        truncate -s "${disk_mib}M" "$disk" &&
        typed mkfs.ext4 -q -F -m 0 -d tree "$disk" &&
        rm -rf tree
}

change_disk_offline() {
    # debugfs greets on stderr and exits 0 whatever happens; the comparison of the days tells.
    random_bytes 4M >new.bin &&
        typed debugfs -w -R 'write new.bin new.bin' "$disk" 2>/dev/null &&
        typed debugfs -w -R 'rm photos.bin' "$disk" 2>/dev/null &&
        typed debugfs -w -R "rm $deleted" "$disk" 2>/dev/null
}

make_target_device() {
    truncate -s "${disk_mib}M" target.img
    attach target.img
    target=${loops[1]}
}

# --- one bit ------------------------------------------------------------------------------------------

# flip FILE OFFSET: inverts the lowest bit of the byte there.
flip() {
    local byte
    byte=$(od -An -tu1 -j "$2" -N 1 "$1")
    printf '%b' "\\x$(printf %x $((byte ^ 1)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

main() {
    if [[ -z ${VOLTAR:-} ]]; then
        title 'Build'
        (cd "$tree" && typed cargo build --release)
        VOLTAR=$tree/target/release/voltar
    fi
    VOLTAR=$(realpath "$VOLTAR")
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/voltar-demo.XXXXXX")
    cd "$work"
    mkdir bin
    ln -s "$VOLTAR" bin/voltar
    PATH=$work/bin:$PATH

    local ways=offline
    if [[ $EUID == 0 ]] && losetup --find >/dev/null 2>&1; then ways=mounted; fi
    if [[ $ways == offline ]]; then echo 'No root or no loop devices: plain files stand in for devices.'; fi

    deleted=$(real_files 1 | head -z -n 1 | tr -d '\0') || true
    must "A disk of $disk_mib MiB with real files" disk.img "make_disk_$ways"
    must 'Full backup' demo.voltar voltar backup disk="$disk" demo.voltar
    local first_day
    first_day=$(sha256sum <"$disk")
    must 'A day goes by' - "change_disk_$ways"
    if [[ $(sha256sum <"$disk") == "$first_day" ]]; then fail 'the day changed nothing'; fi
    must 'Incremental backup' demo.voltar voltar backup disk="$disk" demo.voltar
    must 'List' - voltar list demo.voltar
    must 'What changed' - voltar diff demo.voltar latest~1 latest
    must 'Verify' - voltar verify demo.voltar

    target=target.img
    if [[ $ways == mounted ]]; then
        title 'Another device'
        make_target_device
    fi
    must 'Restore to another device' target.img voltar restore demo.voltar "$target"
    must 'Compare every byte' - cmp "$disk" "$target"
    must 'Restore the first day' first.img voltar restore demo.voltar@latest~1 first.img
    if [[ $(sha256sum <first.img) != "$first_day" ]]; then fail 'the first day came back different'; fi
    echo 'The checksum is that of the first day.'

    local offset
    title 'One bit of a copy of the archive is flipped'
    typed cp demo.voltar damaged.voltar
    offset=$(($(stat -c %s damaged.voltar) / 2))
    printf '(the lowest bit of byte %d)\n' "$offset"
    flip damaged.voltar "$offset"
    if cmp -s demo.voltar damaged.voltar; then fail 'the bit was not flipped'; fi
    step 'Verify the damaged copy' damaged.voltar voltar verify damaged.voltar
    echo "exit code $code"
    if ((code != 3)); then fail "a damaged archive must give exit code 3, not $code"; fi

    title 'Done'
    printf '%-38s %10s %14s\n' step time size
    printf '%s\n' "${steps[@]}"
    printf '\ndemo: all %d steps ok\n' "${#steps[@]}"
}

main "$@"
