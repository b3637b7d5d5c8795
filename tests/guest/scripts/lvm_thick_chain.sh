# A chain of backups of a thick volume whose snapshot is kept. Disk: $D0.
. "$(dirname "$0")/lvm_chain.sh"

step 'thick'
chain thick --keep snapshot --cow-size 16M

step 'nothing is kept that is not wanted'
expect 0 voltar backup disk=/dev/vg/thick thick.voltar --json
tidy thick 0

vgchange -q -an vg
passed
