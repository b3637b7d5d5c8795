# The part of changes.sh that runs in the test guest: a thin volume and a zvol of so many MiB, on $D0 and $D1;
# their archives are on $D2.
set -euo pipefail
mib=$1
mkfs.ext4 -q "$D2"
mkdir /archives
mount "$D2" /archives

# timed COMMAND: the row of a snapshot that is made and removed by hand.
timed() {
    local start=${EPOCHREALTIME/[.,]/} took
    "$@" >/dev/null 2>&1
    took=$(((${EPOCHREALTIME/[.,]/} - start) / 1000))
    printf '%-14s %-16s %5d.%03d\n' "$label" snapshot $((took / 1000)) $((took % 1000))
}

by_lvm() { lvcreate -qq -y -s -pr -n by-hand vg/thin && lvremove -qq -y vg/by-hand; }
by_zfs() { zfs snapshot tank/vol@by-hand && zfs destroy tank/vol@by-hand; }

vgcreate -qq vg "$D0"
lvcreate -qq -y --type thin-pool -L "$((mib * 2))M" -c 64k -n pool vg
lvcreate -qq -y -V "${mib}M" -T vg/pool -n thin
udevadm settle
label='thin volume'
bash changes-rows.sh "$label" voltar /dev/vg/thin lvm:vg/thin /archives/a.voltar "$mib" /root/state
timed by_lvm
vgchange -q -an vg >/dev/null

modprobe zfs
zpool create -o cachefile=none tank "$D1"
zfs create -s -b 16K -V "${mib}M" tank/vol
udevadm settle
label='zvol'
bash changes-rows.sh "$label" voltar /dev/zvol/tank/vol zfs:tank/vol /archives/a.voltar "$mib" /root/state
timed by_zfs
zpool export tank
