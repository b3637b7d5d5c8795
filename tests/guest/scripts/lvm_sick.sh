# Thin pools that are out of space, read-only, failing or repaired: a backup is right, or it is refused in words
# that say what to do; once the pool is well again, so is the next backup. Disk: $D0.
. "$(dirname "$0")/lvm.sh"

# refused WORDS: there is no backup, and nothing of it is left; the volume can be read as it is.
refused() {
    expect 1 voltar backup disk=/dev/vg/thin thin.voltar
    said "$1"
    said '--snapshot off'
    check [ "$(held)" = - ]
    check [ "$(ours)" = 1 ]
    expect 0 voltar backup disk=/dev/vg/thin as-it-is.voltar --snapshot off
    comes_back as-it-is.voltar
}

# comes_back ARCHIVE: what the volume holds.
comes_back() {
    rm -f back.raw
    expect 0 voltar restore "$1" back.raw
    check cmp back.raw /dev/vg/thin
}

# fill: all of the pool's space is taken.
fill() {
    dd if=/dev/zero of=/dev/vg/filler bs=1M oflag=direct status=none 2>/dev/null && fail 'the pool has room'
    is_pool out_of_data_space
}

# is_pool WORD: the kernel says so of it.
is_pool() {
    dmsetup status --noflush vg-pool-tpool >status
    grep -qw "$1" status || fail "not $1: $(<status)"
    checks=$((checks + 1))
}

# replace MAPPING TABLE: while it is in use.
replace() {
    dmsetup reload "$1" --table "$2"
    dmsetup suspend --noflush --nolockfs "$1"
    dmsetup resume "$1"
}

step 'a chain begins'
# What does not fit fails at once, instead of after a minute.
lvchange -qq --errorwhenfull y vg/pool
lvcreate -qq -y -V 64M -T vg/pool -n filler
backup thin
backup thin
good

step 'out of space for data while it is read'
generation=$((generation + 1))
sectors write /dev/vg/thin 1 $generation 0 256
size=$(stat -c %s thin.voltar)
start voltar backup disk=/dev/vg/thin thin.voltar --parent none --dedup off --limit 2M
until (($(stat -c %s thin.voltar) > size + 1048576)); do kill -0 "$run" || fail 'it ended before it read'; done
fill
check kill -0 "$run"
ends 0
comes_back thin.voltar
check [ "$(ours)" = 1 ]

step 'out of space for data'
# The old base gave back a little.
fill
refused 'reached threshold'
lvremove -qq -y vg/filler
backup thin
good

step 'read-only'
table=$(dmsetup table vg-pool-tpool)
read -r _ length _ metadata data block low _ <<<"$table"
replace vg-pool-tpool "0 $length thin-pool $metadata $data $block $low 1 read_only"
is_pool ro
refused 'read-only'
replace vg-pool-tpool "$table"
backup thin
good

step 'metadata that cannot be written to: the kernel wants it checked'
table=$(dmsetup table vg-pool_tmeta)
read -r _ length _ device offset <<<"$table"
replace vg-pool_tmeta "0 $length flakey $device $offset 0 3600 1 error_writes"
# Until the kernel commits, all seems well.
sectors write /dev/vg/thin 1 99 0 128 || true
for _ in {1..50}; do
    sync /dev/vg/thin || true
    grep -qw needs_check <<<"$(dmsetup status --noflush vg-pool-tpool)" && break
    sleep 0.2
done
replace vg-pool_tmeta "$table"
is_pool needs_check
refused 'needs check'

step 'repaired'
vgchange -q -an vg
lvconvert -qq -y --repair vg/pool
lvremove -qq -y vg/pool_meta0
# Debian's LVM leaves the mark that the kernel set.
vgchange -q -ay --config 'global/thin_check_options=["-q","--clear-needs-check-flag"]' vg
udevadm settle
is_pool rw
backup thin
degraded 'repaired'
backup thin
good

vgchange -q -an vg
passed
