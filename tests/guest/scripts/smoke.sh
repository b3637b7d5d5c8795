# Thin, thick and ZFS volumes as plain block devices, there and back: full, incremental, from a snapshot's
# device, each with both ways of doing I/O. Disks: $D0 for LVM, $D1 for ZFS.
. "$(dirname "$0")/lib.sh"

readonly SIZE=12M SECTORS=24576 # of 512 bytes

step 'make volumes'
vgcreate -qq vg "$D0" >/dev/null
lvcreate -qq -y -L $SIZE -n thick vg
lvcreate -qq -y -L $SIZE -n thick_copy vg
lvcreate -qq -y --type thin-pool -L 48M -n pool vg
lvcreate -qq -y -V $SIZE -T vg/pool -n thin
lvcreate -qq -y -V $SIZE -T vg/pool -n thin_copy
modprobe zfs
zpool create -o cachefile=none -O snapdev=visible tank "$D1"
zfs create -s -V $SIZE tank/vol
zfs create -s -V $SIZE tank/vol_copy
udevadm settle

# there_and_back KIND SOURCE TARGET: SOURCE is backed up, changes, is backed up; both states come back.
there_and_back() {
    local kind=$1 source=$2 target=$3 io
    step "$kind"
    sectors write "$source" 1 1 0 $((SECTORS / 2))
    bytes_of "$source" >before
    for io in uring blocking; do
        expect 0 voltar backup "disk=$source" "$kind-$io.voltar" --io $io --json
        holds '.volumes[0].size == 12582912 and .parent == null'
    done

    # A change of 1 MiB, and 1 MiB given back.
    sectors write "$source" 1 2 4096 2048
    blkdiscard -o 4M -l 1M "$source"
    bytes_of "$source" >after
    for io in uring blocking; do
        expect 0 voltar backup "disk=$source" "$kind-$io.voltar" --io $io --json
        holds '.parent != null and .volumes[0].new_bytes == 1048576'
        expect 0 voltar verify "$kind-$io.voltar" --io $io --json
        holds '.ok and .snapshots == 2'
    done

    # Every sector of the target holds something else.
    sectors write "$target" 9 9
    expect 5 voltar restore "$kind-uring.voltar" "$target"
    said 'holds data'
    expect 0 voltar restore "$kind-blocking.voltar@latest~1" "$target" --overwrite --io uring
    check sectors compare "$target" before
    expect 0 voltar restore "$kind-uring.voltar" "$target" --overwrite --read-back --io blocking --json
    holds '.volumes[0].kept_bytes >= 9 * 1048576'
    check sectors compare "$target" after
}

# of_a_snapshot KIND SNAPSHOT: a device that cannot be written to, and does not change.
of_a_snapshot() {
    step "$1: its snapshot"
    expect 0 voltar backup "disk=$2" "$1-uring.voltar" --json
    holds '.volumes[0].new_bytes == 0'
}

there_and_back thick /dev/vg/thick /dev/vg/thick_copy
there_and_back thin /dev/vg/thin /dev/vg/thin_copy
there_and_back zvol /dev/zvol/tank/vol /dev/zvol/tank/vol_copy

lvcreate -qq -y -s -L 4M -n thick_snapshot vg/thick
lvcreate -qq -y -s -kn -n thin_snapshot vg/thin
zfs snapshot tank/vol@now
udevadm settle
sectors write /dev/vg/thick 1 3 0 64
sectors write /dev/vg/thin 1 3 0 64
sectors write /dev/zvol/tank/vol 1 3 0 64
of_a_snapshot thick /dev/vg/thick_snapshot
of_a_snapshot thin /dev/vg/thin_snapshot
of_a_snapshot zvol /dev/zvol/tank/vol@now

udevadm settle
zpool export tank
vgchange -q -an vg
passed
