#!/usr/bin/env bash
# modules.sh KABI OUT: the kernel modules of ZFS for that kernel, from Debian's zfs-dkms, into OUT.
#
# Not by installing zfs-dkms, which builds for the kernel that runs here. APT_CONFIG is from apt.sh. A
# script of its own, so that its cache depends on it and on nothing else of the guest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
. ./apt.sh

kabi=$1 out=$2
mkdir -p "$out"
work=$(mktemp -d "$out.work.XXXXXX")
trap 'rm -rf "$work"' EXIT

# What the headers' programs need, but no compiler: the host has one.
mapfile -t headers < <(apt_closure "linux-headers-$kabi" | grep -E '^(linux-|libelf1=)')
unpack "$work/root" "${headers[@]}" "zfs-dkms=$(apt_version zfs-dkms)"
export LD_LIBRARY_PATH=$work/root/usr/lib/x86_64-linux-gnu
sources=$work/root/usr/src
# The headers lie elsewhere than they think.
sed -i "s|/usr/src/|$sources/|g" "$sources/linux-headers-$kabi/Makefile"

cd "$sources"/zfs-*/
./configure --with-config=kernel --with-linux="$sources/linux-headers-${kabi%-cloud-amd64}-common" \
    --with-linux-obj="$sources/linux-headers-$kabi"
# Without DWARF and BTF: five minutes less.
make -j"$(nproc)" KCFLAGS=-g0 CONFIG_DEBUG_INFO_BTF_MODULES=
find module -name '*.ko' -exec strip -g {} + -exec cp -t "$out" {} +
