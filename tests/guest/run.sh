#!/usr/bin/env bash
# Runs a command in a fresh test guest, with voltar in its PATH:
#
#   tests/guest/run.sh [OPTION]... COMMAND...
#
#   -b PROGRAM  a program of this host that it needs besides
#   -p PATH     put this file or directory into /in, where the command starts
#   -d SIZE     an empty disk of that size: $D0, the next one $D1, and so on
#   -D FILE     this raw file as a disk, to be kept; counted with the others
#   -Q FILE     this qcow2 image as a disk, to be kept; counted with the others
#   -r FILE     start from this qcow2 image, a copy of the guest's root, and keep what the guest writes to it
#   -q SOCKET   have QEMU's monitor (QMP) listen there
#   -a SOCKET   the channel of an agent in the guest ($AGENT there) listens there
#   -c SOCKET   a channel to the command ($CONTROL there) listens there
#   -o DIR      put what the command left in /out into this directory
#   -t SECONDS  how long it may take (default 300)
#   -m COMMAND  start the machine by this line for the shell, which gives it the root as its disk; what it
#               boots, its console and its channels to us are added
#
# COMMAND is a line for bash, run by root. Its output, both streams in one, goes to standard output and its
# status is ours; 124 if time was up and 125 if the guest died, with what its console said on standard error.
# 77: no guest can be had here. The guest is thrown away, and no process or file stays behind.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly MEMORY=1G
# What hardens a kernel costs much where every instruction is emulated. Most of all addresses at random: QEMU
# translates a program again for each address that it appears at, which is most of what a short run takes.
readonly KERNEL_OPTIONS='console=ttyS0 panic=-1 quiet mitigations=off norandmaps randomize_kstack_offset=off
    init_on_alloc=0 hardened_usercopy=off apparmor=0 audit=0 cgroup_disable=memory'

payload=() programs=() disks=() results='' limit=300 own_root='' channels=()
machine=(qemu-system-x86_64 -machine q35 -accel tcg -cpu Nehalem -smp 2 -m "$MEMORY") has_root=''

main() {
    options "$@"
    shift $((OPTIND - 1))
    (($# > 0)) || usage
    command -v qemu-system-x86_64 >/dev/null || { echo 'qemu-system-x86_64 is missing' >&2; exit 77; }
    guest=$("$here/build.sh")
    work=$(mktemp -d "${TMPDIR:-/tmp}/voltar-guest.XXXXXX")
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    pack "$*"
    add_disks
    boot
    report
}

usage() {
    sed -n '2,/^set /s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

options() {
    local option
    while getopts b:p:d:D:Q:r:q:a:c:o:t:m: option; do
        case $option in
        b) programs+=("$OPTARG") ;;
        p) payload+=("$OPTARG") ;;
        d) disks+=("new:$OPTARG") ;;
        D) disks+=("old:$OPTARG") ;;
        Q) disks+=("qcow2:$OPTARG") ;;
        r) own_root=$OPTARG ;;
        q) channels+=(-qmp "unix:$OPTARG,server=on,wait=off") ;;
        a) channel agent org.qemu.guest_agent.0 "$OPTARG" ;;
        c) channel control control "$OPTARG" ;;
        o) results=$OPTARG ;;
        t) limit=$OPTARG ;;
        m) eval "machine=($OPTARG)" has_root=yes ;;
        *) usage ;;
        esac
    done
}

# channel ID NAME SOCKET: a port of the guest that listens here.
channel() {
    channels+=(-chardev "socket,id=$1,path=$3,server=on,wait=off" -device "virtserialport,chardev=$1,name=$2")
}

# pack COMMAND: what goes into the guest, as a tar archive that is a disk.
pack() {
    local path program
    mkdir -p "$work/in/bin" "$work/in/lib"
    printf '%s\n' "$1" >"$work/in/.command"
    bundle voltar "${VOLTAR_BIN:-${CARGO_TARGET_DIR:-$here/../../target}/release/voltar}"
    for program in "${programs[@]}"; do bundle "$(basename "$program")" "$program"; done
    for path in "${payload[@]}"; do cp -r "$path" "$work/in/"; done
    tar -cf "$work/payload" -C "$work/in" .
    rm -r "$work/in"
    disk payload "$work/payload" raw ,readonly=on
}

# bundle NAME PROGRAM: a program of this host with its loader and libraries, which the guest's may be older than;
# without its DWARF, which is most of it.
bundle() {
    local name=$1 loader
    strip -g -o "$work/in/lib/$name" "$2"
    ldd "$2" | grep -o '/[^ ]*' | xargs cp -L -t "$work/in/lib"
    loader=$(basename "$work"/in/lib/ld-linux*)
    printf '#!/bin/busybox sh\nexec /in/lib/%s --library-path /in/lib /in/lib/%s "$@"\n' "$loader" "$name" >"$work/in/bin/$name"
    chmod +x "$work/in/bin/$name"
}

add_disks() {
    local index file format
    for index in "${!disks[@]}"; do
        file=${disks[index]#*:}
        if [[ ${disks[index]} == new:* ]]; then
            truncate -s "$file" "$work/D$index"
            file=$work/D$index
        fi
        if [[ ${disks[index]} == qcow2:* ]]; then format=qcow2; else format=raw; fi
        disk "D$index" "$file" $format ,discard=unmap
    done
    if [[ -n $results ]]; then
        truncate -s 1G "$work/results"
        disk results "$work/results" raw
    fi
    if [[ -n $own_root ]]; then
        disk root "$own_root" qcow2
    elif [[ -z $has_root ]]; then
        # Writable, and as it was afterwards: QEMU keeps what is written in a temporary file.
        disk root "$guest/root.img" raw ,snapshot=on
    fi
}

# disk SERIAL FILE FORMAT [OPTION]
disk() {
    qemu_disks+=(-drive "if=none,id=$1,file=$2,format=$3,cache=unsafe${4:-}"
        -device "virtio-blk-pci,drive=$1,serial=$1")
}

boot() {
    local reader
    mkfifo "$work/output"
    cat "$work/output" &
    reader=$!
    # Each ends with its parent, even if that is killed.
    TMPDIR=$work setpriv --pdeathsig TERM \
        timeout --kill-after=5 "$limit" setpriv --pdeathsig KILL \
        "${machine[@]}" -nodefaults -no-user-config -display none -no-reboot \
        -kernel "$guest/vmlinux" -initrd "$guest/initrd" \
        -append "${KERNEL_OPTIONS//$'\n'/}" \
        -chardev "file,id=console,path=$work/console" -serial chardev:console \
        -device virtio-serial-pci \
        -chardev "file,id=output,path=$work/output" -device virtserialport,chardev=output,name=output \
        -chardev "file,id=status,path=$work/status" -device virtserialport,chardev=status,name=status \
        "${channels[@]}" "${qemu_disks[@]}" >"$work/qemu" 2>&1 </dev/null &
    emulator=$!
    emulated=0
    wait "$emulator" || emulated=$?
    emulator=''
    wait "$reader"
}

report() {
    local status
    status=$(cat "$work/status" 2>/dev/null || true)
    if [[ ! $status =~ ^[0-9]+$ ]]; then
        tail -n 60 "$work/qemu" "$work/console" >&2
        if ((emulated == 124)); then
            echo "the guest was not done after $limit seconds; above is its console" >&2
            exit 124
        fi
        echo "the guest died; above is its console" >&2
        exit 125
    fi
    if [[ -n $results ]]; then
        mkdir -p "$results"
        tar -xf "$work/results" -C "$results"
    fi
    exit "$status"
}

finish() {
    if [[ -n ${emulator:-} ]]; then
        kill "$emulator" 2>/dev/null || true
        wait "$emulator" || true
    fi
    rm -rf "$work"
}

main "$@"
