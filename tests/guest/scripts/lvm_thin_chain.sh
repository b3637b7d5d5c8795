# A chain of backups of a thin volume. Disk: $D0.
. "$(dirname "$0")/lvm_chain.sh"

step 'thin'
chain thin

step 'nothing changed'
expect 0 voltar backup disk=/dev/vg/thin thin.voltar --json
holds '.volumes[0].change_source == "dm-thin" and .volumes[0].read_bytes <= 262144'

step 'nothing is kept that is not wanted'
expect 0 voltar backup disk=/dev/vg/thin thin.voltar --keep none --json
holds '.volumes[0].change_source == "dm-thin"'
tidy thin 0

vgchange -q -an vg
passed
