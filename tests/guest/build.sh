#!/usr/bin/env bash
# Builds the guest, unless the cache has it, and prints its directory: `vmlinux`, `initrd`, `root.img`, and
# `versions`, which says what it was made of.
#
# From Debian packages only, without root, and nothing of the host changes but the cache. Exits with 77 and
# says why if it cannot be built here.
#
# A guest is cached by what its making depends on here, not by the archive's newest versions: it stays until
# one of these files changes. The modules of ZFS, which take most of the time, have a cache of their own.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
PATH=$PATH:/usr/sbin:/sbin
. ./apt.sh

# Room on the guest's root for what tests put there.
readonly ROOT_SIZE=2G
# Rules that block devices, device mapper and ZFS need; the others only take time, or want systemd.
readonly UDEV_RULES='50-udev-default|55-dm|56-lvm|60-block|60-persistent-storage|60-persistent-storage-dm|60-zvol|64-btrfs|95-dm-notify'

cannot() {
    echo "the guest cannot be built here: $1" >&2
    exit 77
}

main() {
    local cache guest
    cache=${VOLTAR_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/voltar}/guest
    guest=$cache/$(digest apt.sh build.sh init.sh initrd.sh modules.sh packages.txt)
    mkdir -p "$cache"
    # One builder at a time; whoever waited finds it built.
    exec 9>"$cache/lock"
    flock 9
    if [[ ! -d $guest ]]; then
        check_host
        tidy "$cache"
        work=$(mktemp -d "$cache/building.XXXXXX")
        trap finish EXIT
        trap 'exit 130' INT
        trap 'exit 143' TERM
        echo 'building the test guest: minutes if the modules of ZFS have to be made' >&2
        exec 3>&1 4>&2 >"$work/log" 2>&1
        build "$cache"
        mv "$work/guest" "$guest"
        exec >&3 2>&4
    fi
    touch "$guest"
    echo "$guest"
}

digest() { cat "$@" | sha256sum | cut -c 1-16; }

check_host() {
    local program
    [[ $(uname -m) == x86_64 ]] || cannot 'it is for x86_64'
    for program in apt-get dpkg-deb gcc make strip depmod modprobe mke2fs lz4; do
        command -v "$program" >/dev/null || cannot "$program is missing (\`make deps\` installs what is needed)"
    done
    [[ -e $guest_keyring ]] || cannot "$guest_keyring is missing"
}

# What was not used for three months, and what a killed run left.
tidy() {
    find "$1" -mindepth 1 -maxdepth 1 -type d \( -mtime +90 -o -name 'building.*' \) -exec rm -rf {} +
}

finish() {
    local status=$?
    if ((status != 0 && status != 77)); then
        printf 'the guest was not built:\n' >&4
        tail -n 40 "$work/log" >&4
    fi
    rm -rf "$work"
}

build() {
    local kernel kabi zfs modules
    apt_setup "$work/apt" || { exec 2>&4; cannot "no package lists: $(tail -n 1 "$work/log")"; }
    kernel=$(apt_closure linux-image-cloud-amd64 | grep -E '^linux-image-[0-9]')
    kabi=${kernel#linux-image-}
    kabi=${kabi%%=*}
    zfs=$(apt_version zfs-dkms)
    modules=$1/zfs-$zfs-$kabi-$(digest apt.sh modules.sh)
    if [[ ! -d $modules ]]; then
        ./modules.sh "$kabi" "$work/modules"
        mv "$work/modules" "$modules"
    fi
    touch "$modules"

    mkdir "$work/guest"
    make_root "$work/root" "$kabi" "$modules"
    make_initrd "$work/root" "$kabi"
    unwrap_kernel "$work/root/boot/vmlinuz-$kabi" >"$work/guest/vmlinux"
    rm -r "$work/root/boot"
    # Thrown away after every run: a journal guards nothing here.
    mke2fs -q -t ext4 -O ^has_journal -m 0 -E root_owner=0:0 -d "$work/root" "$work/guest/root.img" $ROOT_SIZE
    printf 'kernel %s\nzfs %s\n' "${kernel#*=}" "$zfs" >"$work/guest/versions"
}

make_root() {
    local root=$1 kabi=$2 modules=$3 packages rule
    mapfile -t packages < <(grep -v -e '^#' -e '^$' packages.txt)
    mapfile -t packages < <(apt_closure "${packages[@]}")
    unpack "$root" "${packages[@]}"
    install -D -m 644 -t "$root/lib/modules/$kabi/extra" "$modules"/*.ko
    depmod -b "$root" "$kabi"
    install -m 755 init.sh "$root/sbin/guest-init"
    for rule in "$root"/lib/udev/rules.d/*; do
        if [[ ! $rule =~ /($UDEV_RULES)\.rules$ ]]; then rm "$rule"; fi
    done

    # What packages' scripts would have made.
    mkdir -p "$root"/{dev,proc,sys,run,tmp,root,in,out,mnt}
    echo 'root:x:0:0:root:/root:/bin/bash' >"$root/etc/passwd"
    printf '%s:x:0:\n' root tty disk kmem input render sgx video audio cdrom tape lp kvm dialout >"$root/etc/group"
    ln -s /proc/self/mounts "$root/etc/mtab"
    ln -sfn bash "$root/usr/bin/sh"
    ln -sfn gawk "$root/usr/bin/awk"
    echo guest >"$root/etc/hostname"
    # LVM's defaults, without a long file of comments that each command would read.
    : >"$root/etc/lvm/lvm.conf"
    # No daemons: what happens in the guest, a script did.
    printf 'activation { monitoring = 0 }\nglobal { use_lvmpolld = 0 }\n' >"$root/etc/lvm/lvmlocal.conf"
}

make_initrd() {
    local root=$1 kabi=$2 tree=$work/initrd module
    mkdir -p "$tree"/{bin,dev,modules,proc,root,sys}
    cp "$root/bin/busybox" "$tree/bin/"
    install -m 755 initrd.sh "$tree/init"
    for module in virtio_pci virtio_blk virtio_console; do
        modprobe -d "$root" -S "$kabi" --show-depends "$module"
    done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r module; do
        cp "$module" "$tree/modules/"
        basename "$module" >>"$tree/modules/order"
    done
    (cd "$tree" && find . | bin/busybox cpio -o -H newc) >"$work/guest/initrd"
}

# The kernel without its compression: QEMU enters it directly, and every boot saves the time. Where it lies
# is in the header of the x86 boot protocol; its last four bytes are its length, not its data.
unwrap_kernel() {
    local setup offset length
    setup=$(od -An -tu1 -j $((0x1f1)) -N 1 "$1")
    offset=$(od -An -tu4 -j $((0x248)) -N 4 "$1")
    length=$(od -An -tu4 -j $((0x24c)) -N 4 "$1")
    dd if="$1" iflag=skip_bytes,count_bytes skip=$(((setup + 1) * 512 + offset)) count=$((length - 4)) \
        bs=1M status=none | lz4 -d
}

main
