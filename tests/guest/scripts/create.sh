# Restores into volumes that do not exist yet: thin, thick, zvol; and what `voltar sources` says of them.
# Disks: $D0 for LVM, $D1 for ZFS.
. "$(dirname "$0")/lib.sh"

readonly SIZE=8M BYTES=8388608

step 'make a pool of each kind, and an archive of a file'
vgcreate -qq vg "$D0" >/dev/null
lvcreate -qq -y --type thin-pool -L 32M -n pool vg
modprobe zfs
zpool create -o cachefile=none tank "$D1"
truncate -s $SIZE disk
sectors write disk 1 1 0 4096
sectors write disk 1 2 12288 100
expect 0 voltar backup disk a.voltar

# is_restored DEVICE: it holds the file's bytes.
is_restored() {
    cmp -n $BYTES "$1" disk || fail "$1 is not what was backed up"
    checks=$((checks + 1))
}

step 'thin'
expect 0 voltar restore a.voltar lvm:vg/thin --thin-pool pool --read-back --json
holds '.volumes[0].target == "/dev/vg/thin" and .read_back'
is_restored /dev/vg/thin
check test "$(lvs --noheadings -o pool_lv vg/thin | tr -d ' ')" = pool
# 2 MiB and 50 KiB of 8 MiB: it stays thin.
mapped=$(dmsetup status vg-thin | cut -d ' ' -f 4)
check test "$mapped" -le 4608

step 'thick'
expect 0 voltar restore a.voltar lvm:vg/thick --json
is_restored /dev/vg/thick
check test "$(lvs --noheadings -o segtype vg/thick | tr -d ' ')" = linear

step 'zvol'
expect 0 voltar restore a.voltar zfs:tank/vol --volblocksize 8K --json
is_restored /dev/zvol/tank/vol
check test "$(zfs get -H -o value volblocksize tank/vol)" = 8K
check test "$(zfs get -H -o value refreservation tank/vol)" = none

step 'what exists is refused, and overwritten if allowed'
for target in lvm:vg/thin lvm:vg/thick zfs:tank/vol; do
    expect 5 voltar restore a.voltar $target
    said 'it exists'
    expect 0 voltar restore a.voltar $target --overwrite
done

step 'what cannot be is refused'
expect 5 voltar restore a.voltar lvm:nowhere/x
said 'cannot ask for the volumes'
expect 5 voltar restore a.voltar zfs:tank/none/x
said 'cannot ask for the datasets'
expect 5 voltar restore a.voltar lvm:vg/x --thin-pool nosuch
said 'there is no thin pool'
truncate -s 1G huge
expect 0 voltar backup huge b.voltar
expect 5 voltar restore b.voltar lvm:vg/x
said 'cannot create the target'

step 'a restore that fails before its first byte takes away what it made'
truncate -s 64K one
sectors write one 5 5
expect 0 voltar backup one c.voltar --compression store
# In the middle of the only chunk's bytes.
printf '\377\377\377\377' | dd of=c.voltar bs=1 seek=40000 conv=notrunc status=none
for target in lvm:vg/gone zfs:tank/gone; do
    expect 3 voltar restore c.voltar $target
done
expect 5 lvs vg/gone
expect 1 zfs list tank/gone

step 'the volumes of this host'
expect 0 voltar sources --json
holds '[.sources[].source] == ["lvm:vg/thick", "lvm:vg/thin", "zfs:tank/vol"]'
holds '[.sources[].kind] == ["thick", "thin", "zvol"] and .warnings == []'
lvchange -an vg/thick
expect 0 voltar sources --json
holds '.sources[0].trouble == "not active"'

udevadm settle
zpool export tank
vgchange -q -an vg
passed
