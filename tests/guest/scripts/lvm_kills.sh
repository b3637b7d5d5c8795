# Killed and interrupted backups of logical volumes, with the metadata snapshot held or not, and a slot that
# another tool holds: the next backup works, and nothing is left. Disk: $D0.
. "$(dirname "$0")/lvm.sh"

step 'a chain begins'
backup thin
backup thin
good

step 'killed while the metadata snapshot is held'
generation=$((generation + 1))
killed=0
for try in {1..40}; do
    sectors write /dev/vg/thin 1 $((generation + try)) 0 64
    start voltar backup disk=/dev/vg/thin thin.voltar
    while [[ $(held) == - ]] && kill -0 "$run" 2>/dev/null; do :; done
    kill -9 "$run" 2>/dev/null || true
    wait "$run" || true
    if [[ $(held) != - ]]; then
        killed=1
        break
    fi
done
generation=$((generation + 41))
check [ "$killed" = 1 ]

step 'while somebody reads the metadata, it may be his'
theirs=$(held)
exec 9</dev/mapper/vg-pool_tmeta
backup thin
degraded 'another tool holds'
check [ "$(held)" = "$theirs" ]
exec 9<&-
backup thin
check [ "$(held)" = - ]
backup thin
good

step 'killed at any moment, interrupted at any moment'
for nap in 0.1 0.3 0.5; do
    for signal in KILL INT; do
        start voltar backup disk=/dev/vg/thin thin.voltar
        sleep $nap
        kill -$signal "$run" 2>/dev/null || true
        wait "$run" || true
        if [[ $signal == INT ]]; then
            check [ "$(held)" = - ]
        fi
    done
    backup thin
    check [ "$(held)" = - ]
    check [ "$(ours)" = 1 ]
done

step 'another tool holds the slot'
dmsetup message vg-pool-tpool 0 reserve_metadata_snap
theirs=$(held)
backup thin
degraded 'another tool holds'
check [ "$(held)" = "$theirs" ]
dmsetup message vg-pool-tpool 0 release_metadata_snap
backup thin
backup thin
good

vgchange -q -an vg
passed
