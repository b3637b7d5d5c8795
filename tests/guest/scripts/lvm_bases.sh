# Bases that are gone or are not what they were: never a wrong backup, and the next one knows what changed
# again. Disk: $D0.
. "$(dirname "$0")/lvm.sh"

step 'a chain begins'
backup thin
backup thin
good

step 'a base that is gone'
lvremove -qq -y -S 'lv_tags=voltar' vg
backup thin
degraded 'is gone'
backup thin
good

step 'a base that could have been written to'
base=$(lvs --noheadings -o lv_name -S 'lv_tags=voltar' vg | tr -d ' ')
lvchange -qq -prw "vg/$base"
backup thin
degraded 'made writable'
# Whoever makes it his own keeps it.
check lvremove -qq -y "vg/$base"
backup thin
good

step 'another volume of the same name'
lvrename -qq vg/thin vg/old
lvcreate -qq -y -V 16M -T vg/pool -n thin
udevadm settle
sectors write /dev/vg/thin 2 1
backup thin
degraded 'another volume'
lvremove -qq -y vg/old
lvremove -qq -y -S 'lv_tags=voltar && origin!=thin' vg
backup thin
good

step 'a renamed volume is the same one'
lvrename -qq vg/thin vg/other
udevadm settle
mv thin.voltar other.voltar
backup other
good
lvrename -qq vg/other vg/thin
mv other.voltar thin.voltar
udevadm settle

step 'what is not a volume of its own, and what is kept, is no source'
for part in vg-pool_tdata vg-pool_tmeta vg-pool-tpool; do
    expect 1 voltar backup "disk=/dev/mapper/$part" thin.voltar
    said 'a part of other logical volumes'
done
base=$(lvs --noheadings -o lv_name -S 'lv_tags=voltar' vg | tr -d ' ')
expect 1 voltar backup "disk=lvm:vg/$base" thin.voltar
said 'a snapshot that voltar keeps'

step 'what is kept of a volume that is gone stays, and is told of'
expect 0 voltar sources --json
holds '.strays == []'
lvremove -qq -y vg/thin
expect 0 voltar sources --json
holds '.strays == [{name: $name, kind: "snapshot", remove: "lvremove \($name)"}]' --arg name "vg/$base"
holds '[.sources[].source] == ["lvm:vg/thick"]'
check lvremove -qq -y "vg/$base"

vgchange -q -an vg
passed
