# The commands of README, "LVM and ZFS", one after the other. Disks: $D0 for LVM, $D1 for ZFS.
. "$(dirname "$0")/lib.sh"

step 'make the volumes that it speaks of'
vgcreate -qq vg "$D0" >/dev/null
lvcreate -qq -y --type thin-pool -L 64M -n pool vg
lvcreate -qq -y -V 16M -T vg/pool -n root
modprobe zfs
zpool create -o cachefile=none tank "$D1"
zfs create -s -V 16M tank/vm-7
udevadm settle
sectors write /dev/vg/root 1 1 0 8192
sectors write /dev/zvol/tank/vm-7 2 1 0 8192

sed -n '/^## LVM and ZFS/,/^## VM images/p' /in/README.md | sed -n '/^```sh/,/^```/p' | sed '/^```/d' >commands
check test -s commands
backups=0
while read -r command; do
    step "$command"
    # Read by words, as README has nothing else.
    read -ra words <<<"$command"
    expect 0 "${words[@]}"
    cat "$work/out"
    if [[ ${words[1]} == backup ]]; then
        backups=$((backups + 1))
        sectors write /dev/vg/root 1 $((backups + 1)) 100 100
        sectors write /dev/zvol/tank/vm-7 2 $((backups + 1)) 100 100
    fi
    if [[ ${words[1]} == show ]]; then
        grep -q 'changes from *dm-thin' "$work/out" || fail 'no change source named for the thin volume'
        grep -q 'changes from *zfs' "$work/out" || fail 'no change source named for the zvol'
    fi
done <commands
check test "$backups" -eq 2
check test "$(lvs --noheadings -o pool_lv vg/root-again | tr -d ' ')" = pool
check test -b /dev/zvol/tank/vm-7-again

udevadm settle
zpool export tank
vgchange -q -an vg
passed
