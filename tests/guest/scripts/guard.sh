# Targets that something uses, in ways that need device mapper or ZFS: each is refused, and its bytes stay.
# Disks: $D0 for LVM, $D1 for ZFS.
. "$(dirname "$0")/lib.sh"

readonly SIZE=16M

step 'make volumes and an archive'
vgcreate -qq vg "$D0" >/dev/null
for name in mounted lower swap; do lvcreate -q -y -L $SIZE -n $name vg; done
lvcreate -qq -y --type thin-pool -L 16M -n pool vg
lvcreate -qq -y -V $SIZE -T vg/pool -n thin
modprobe zfs
zpool create -o cachefile=none tank "$D1"
zfs create -V $SIZE tank/vol
udevadm settle
truncate -s 4M disk
sectors write disk 1 1
expect 0 voltar backup disk a.voltar

# refused TARGET WORDS: with exit code 5 and a reason, whatever is allowed, and without having written.
refused() {
    step "refused: $1"
    sync
    bytes_of "$1" >before
    expect 5 voltar restore a.voltar "$1"
    expect 5 voltar restore a.voltar "$1" --overwrite --json
    holds '.error.kind == "target-refused"'
    said "$2"
    check cmp before <(bytes_of "$1")
}

# released TARGET: what was refused because it was in use is a target like any other now.
released() {
    expect 5 voltar restore a.voltar "$1"
    said 'holds data'
    expect 0 voltar restore a.voltar "$1" --overwrite --read-back
}

# A file system whose bytes rest.
file_system() {
    mkfs.ext4 -q -E lazy_itable_init=0,nodiscard "$1"
    mkdir -p "$2"
    mount "$1" "$2"
    echo precious >"$2/file"
}

for device in /dev/vg/mounted /dev/vg/thin /dev/zvol/tank/vol; do
    file_system $device mnt
    refused $device 'mounted at'
    check test "$(<mnt/file)" = precious
    umount mnt
    released $device
done

sectors write /dev/vg/lower 2 1
echo "0 $(blockdev --getsz /dev/vg/lower) linear /dev/vg/lower 0" | dmsetup create upper
refused /dev/vg/lower 'it is part of'
said '(upper)'
# Nobody has the upper one open, so it is a target; and then the lower one holds what was restored.
expect 0 voltar restore a.voltar /dev/mapper/upper --overwrite
dmsetup remove --retry upper
check sectors compare /dev/vg/lower disk
released /dev/vg/lower

mkswap -q /dev/vg/swap
swapon /dev/vg/swap
refused /dev/vg/swap 'swaps to it'
swapoff /dev/vg/swap
released /dev/vg/swap

# The hidden volumes of a pool, and the disk under all of them.
refused /dev/mapper/vg-pool_tdata 'it is part of'
refused /dev/mapper/vg-pool_tmeta 'it is part of'
refused "$D0" 'it is part of'
check vgck vg

# ZFS has its disks open exclusively and shows up nowhere as their holder. It writes to them when it likes,
# so they are compared by what it finds on them.
sectors write /dev/zvol/tank/vol 3 1
bytes_of /dev/zvol/tank/vol >zvol
for device in "$D1" "${D1}1"; do
    step "refused: $device"
    expect 5 voltar restore a.voltar "$device" --overwrite --json
    holds '.error.kind == "target-refused"'
    said 'uses it exclusively'
done
udevadm settle
zpool export tank
zpool import -d /dev -o cachefile=none tank
udevadm settle
check sectors compare /dev/zvol/tank/vol zvol
zpool scrub -w tank
check test "$(zpool list -H -o health tank)" = ONLINE
udevadm settle
zpool export tank
released "$D1"

vgchange -q -an vg
released "$D0"
passed
