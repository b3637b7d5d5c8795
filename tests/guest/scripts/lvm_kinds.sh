# Volumes that lie on several disks, or partly in a cache. Disks: $D0 and $D1.
. "$(dirname "$0")/lib.sh"

vgcreate -qq vg "$D0" "$D1" >/dev/null
generation=0

# chain SOURCE OPTION...: two backups of vg/it, each of which comes back; the changes are told by that, and the
# base is kept.
chain() {
    local source=$1 round
    shift
    rm -f a.voltar
    sectors write /dev/vg/it 1 $((++generation))
    for round in 1 2; do
        expect 0 voltar backup disk=lvm:vg/it a.voltar --json "$@"
        holds '.volumes[0].degraded == null and .warnings == []'
        if ((round == 2)); then holds '.volumes[0].change_source == $it' --arg it "$source"; fi
        rm -f back.raw
        expect 0 voltar restore a.voltar back.raw
        check cmp back.raw /dev/vg/it
        check [ "$(lvs --noheadings -o lv_name -S 'lv_tags=voltar' vg | wc -l)" = 1 ]
        sectors write /dev/vg/it 1 $((++generation)) $((generation * 256)) 128
    done
}

step 'raid1'
lvcreate -qq -y --type raid1 -m 1 -L 8M -n it vg
udevadm settle
chain lvm-cow --keep snapshot
expect 1 voltar backup disk=lvm:vg/it_rimage_0 a.voltar
said 'part of other logical volumes'

step 'raid1 without its second half'
lvconvert -qq -y -m 0 vg/it "$D1"
expect 0 voltar backup disk=lvm:vg/it a.voltar --json --keep snapshot
holds '.volumes[0].degraded | contains("moved")'
rm back.raw
expect 0 voltar restore a.voltar back.raw
check cmp back.raw /dev/vg/it
lvremove -qq -y vg/it

step 'cached'
lvcreate -qq -y -L 8M -n it vg "$D0"
lvcreate -qq -y --type cache-pool -L 8M -n cache vg "$D1"
lvconvert -qq -y --type cache --cachemode writeback --cachepool vg/cache vg/it
udevadm settle
chain lvm-cow --keep snapshot
lvremove -qq -y vg/it

step 'a thin pool on raid1'
lvcreate -qq -y --type raid1 -m 1 -L 16M -n pool vg
lvconvert -qq -y --type thin-pool -c 64k vg/pool
lvcreate -qq -y -V 8M -T vg/pool -n it
udevadm settle
chain dm-thin

vgchange -q -an vg
passed
