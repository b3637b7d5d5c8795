# Thick snapshots that run full, groups without room for one, and what is no volume: loud, and nothing is
# left. Disk: $D0.
. "$(dirname "$0")/lvm.sh"

step 'a thick snapshot that runs full'
generation=$((generation + 1))
start voltar backup disk=/dev/vg/thick thick.voltar --cow-size 4M --limit 2M
# It is a plain mapping first, while LVM clears it.
until dmsetup status vg-thick_voltar_1 2>/dev/null | grep -q ' snapshot ' || ! kill -0 "$run"; do :; done
sectors write /dev/vg/thick 1 $generation
ends 1
said '--cow-size'
check [ "$(ours)" = 0 ]
backup thick
check [ "$(ours)" = 0 ]

step 'a kept thick snapshot that ran full'
backup thick --keep snapshot --cow-size 4M
sectors write /dev/vg/thick 1 99
backup thick --keep snapshot --cow-size 4M
degraded 'ran full'
backup thick
check [ "$(ours)" = 0 ]

step 'no room for a thick snapshot'
lvcreate -qq -y -l 100%FREE -n rest vg
expect 1 voltar backup disk=/dev/vg/thick thick.voltar
said '--snapshot off'
expect 0 voltar backup disk=/dev/vg/thick thick.voltar --snapshot off
lvremove -qq -y vg/rest
check [ "$(ours)" = 0 ]

step 'parts of volumes'
expect 1 voltar backup disk=lvm:vg/pool pool.voltar
said 'part of other logical volumes'
expect 1 voltar backup disk=lvm:vg/none pool.voltar
said 'no such logical volume'

step 'two volumes at once'
expect 0 voltar backup a=lvm:vg/thin b=lvm:vg/thick two.voltar --json
holds '[.volumes[].degraded] == [null, null]'
# The base of the thin one.
check [ "$(ours)" = 1 ]

vgchange -q -an vg
passed
