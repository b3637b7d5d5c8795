# Pools whose metadata lies: damaged, with another device where the base was, and forged so that all of the
# proof fits. No backup is wrong, and the report says what was found. Disk: $D0.
. "$(dirname "$0")/lvm.sh"

base() { lvs --noheadings -o lv_name -S 'lv_tags=voltar' vg | tr -d ' '; }
# id VOLUME: in the pool.
id() { lvs --noheadings -o thin_id "vg/$1" | tr -d ' '; }
# again: the chain goes on.
again() {
    backup thin
    backup thin
    good
}

step 'a chain begins'
again

step 'metadata that is damaged'
mkdir -p /usr/local/sbin
cat >/usr/local/sbin/dmsetup <<'END'
#!/bin/bash
# Damages a block of the pool's metadata once its snapshot is there, and mends it before that goes: the one
# whose number lies at this offset of the superblock; the superblock itself for 0.
offset=$(<"$work/offset") cell=$work/cell metadata=/dev/mapper/vg-pool_tmeta
block() { dd if=$metadata bs=4096 skip="$1" count=1 iflag=direct status=none; }
put() { dd of=$metadata bs=4096 seek="$1" oflag=direct conv=notrunc status=none; }
if [[ $* == *release_metadata_snap ]]; then put "$(<$cell.number)" <$cell; fi
/usr/sbin/dmsetup "$@" || exit
if [[ $* == *reserve_metadata_snap ]]; then
    number=$(/usr/sbin/dmsetup status --noflush vg-pool-tpool | cut -d ' ' -f 7)
    if ((offset > 0)); then number=$(block "$number" | od -An -tu8 -j "$offset" -N 8 | tr -d ' '); fi
    block "$number" >$cell
    echo "$number" >$cell.number
    { head -c 3000 $cell; printf 'x'; tail -c +3002 $cell; } | put "$number"
fi
END
chmod +x /usr/local/sbin/dmsetup
# The superblock, the devices' mappings, the devices' details.
for offset in 0 320 328; do
    echo $offset >offset
    backup thin
    degraded "the thin pool's metadata cannot be used"
    check [ "$(held)" = - ]
    check [ -s cell ]
done
rm /usr/local/sbin/dmsetup
again

step 'another device with the id of the base'
id=$(id "$(base)")
dmsetup message vg-pool-tpool 0 "delete $id"
sectors write /dev/vg/thin 1 900 0 1024
dmsetup suspend vg-thin
dmsetup message vg-pool-tpool 0 "create_snap $id $(id thin)"
dmsetup resume vg-thin
backup thin
degraded "another device's by now"
backup thin
good

step 'a base that was written to past LVM'
# That only adds to what differs.
dmsetup create past --table "0 32768 thin /dev/mapper/vg-pool-tpool $(id "$(base)")"
sectors write /dev/mapper/past 1 901 0 1024
dmsetup remove --retry past
backup thin
good

step 'a base with the mappings of what is there now'
sectors write /dev/vg/thin 1 902 0 4096
base=$(id "$(base)") origin=$(id thin)
vgchange -q -an vg
lvcreate -qq -y -an -Zn -L 4M -n aside vg 2>/dev/null
# Into the pool and out of it: LVM hands out a pool's metadata in no other way.
lvconvert -qq -y --thinpool vg/pool --poolmetadata vg/aside
lvchange -ay vg/aside
thin_dump /dev/vg/aside >true.xml
awk -v base="$base" -v origin="$origin" '
    FNR == 1 { pass++; is_base = 0 }
    /<device / { split($0, words, "\""); device = words[2] }
    pass == 1 && device == origin && /_mapping / { mappings = mappings $0 "\n" }
    pass == 2 && device == base && /_mapping / { next }
    pass == 2 && device == base && /<\/device>/ { printf "%s", mappings }
    pass == 2' true.xml true.xml >forged.xml
expect 1 cmp -s true.xml forged.xml
thin_restore -q -i forged.xml -o /dev/vg/aside
lvchange -an vg/aside
lvconvert -qq -y --thinpool vg/pool --poolmetadata vg/aside
lvremove -qq -y vg/aside
vgchange -q -ay vg
udevadm settle
backup thin --audit 100
degraded 'dm-thin called the chunk at 0x0 unchanged, but it differs; everything was read'
cp report out
holds '.warnings == [.volumes[0].degraded] and .volumes[0].change_source == "none"'
backup thin
good

vgchange -q -an vg
passed
