# Sourced by the scripts about logical volumes, instead of lib.sh: a group `vg` on $D0 with a thin and a thick
# volume of 16 MiB, full of data.
. "$(dirname "$0")/lib.sh"

vgcreate -qq vg "$D0" >/dev/null
lvcreate -qq -y --type thin-pool -L 64M -c 64k -n pool vg
lvcreate -qq -y -V 16M -T vg/pool -n thin
lvcreate -qq -y -L 16M -n thick vg
udevadm settle
sectors write /dev/vg/thin 1 1
sectors write /dev/vg/thick 1 1

# held: the root of the pool's metadata snapshot, or a dash.
held() { dmsetup status vg-pool-tpool | cut -d ' ' -f 7; }
# ours: how many snapshots there are that voltar made.
ours() { lvs --noheadings -o lv_name -S 'lv_tags=voltar' vg | wc -l; }
generation=1
# backup VOLUME OPTION...: after a change; what comes back is what is there.
backup() {
    local volume=$1
    shift
    generation=$((generation + 1))
    sectors write "/dev/vg/$volume" 1 $generation $((generation * 256)) 128
    expect 0 voltar backup "disk=/dev/vg/$volume" "$volume.voltar" --json "$@"
    cp out report
    rm -f back.raw
    expect 0 voltar restore "$volume.voltar" back.raw
    check cmp back.raw "/dev/vg/$volume"
}
# degraded WORDS: the last backup says that it did not use what it knows, because of that.
degraded() {
    if ! jq -e --arg why "$1" '.volumes[0].degraded // "" | contains($why)' report >/dev/null; then
        cat report
        fail "not degraded for: $1"
    fi
    checks=$((checks + 1))
}
# good: the last backup knew what changed, and nothing is left but the base.
good() {
    check [ -s report ]
    cp report out
    holds '.volumes[0].degraded == null and .volumes[0].change_source == "dm-thin"'
    check [ "$(held)" = - ]
    check [ "$(ours)" = 1 ]
}

