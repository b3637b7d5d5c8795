# Sourced by the scripts about chains of backups, instead of lib.sh: random histories of writes, discards and
# resizes. Every snapshot comes back identical, what changed is known each time and little more is read,
# `thin_delta` agrees, and nothing is left on the host but the base. Disk: $D0.
. "$(dirname "$0")/lib.sh"

readonly MIB=1048576 CHUNK=65536
declare -rA kinds=([thin]=dm-thin [thick]=lvm-cow)
RANDOM=${VOLTAR_SEED:=$((10#$(date +%N) % 32768))}
step "VOLTAR_SEED=$VOLTAR_SEED replays it"

vgcreate -qq vg "$D0" >/dev/null
lvcreate -qq -y --type thin-pool -L 96M -c 64k -n pool vg
lvcreate -qq -y -V 24M -T vg/pool -n thin
lvcreate -qq -y -L 24M -n thick vg
udevadm settle

# tidy VOLUME KEPT: of what voltar made for it, so many snapshots are there; none is active that need not be, and
# no metadata snapshot is held.
tidy() {
    check [ "$(lvs --noheadings -o lv_name -S "origin=$1 && lv_tags=voltar" vg | wc -l)" = "$2" ]
    check [ "$(dmsetup status vg-pool-tpool | cut -d ' ' -f 7)" = - ]
    check [ -z "$(lvs --noheadings -o lv_name -S 'lv_tags=voltar && lv_active=active && pool_lv=pool' vg)" ]
}

# change VOLUME GENERATION: a few random writes and discards; a resize now and then. Sets changed to a bound, in
# chunks, on what they can have touched.
change() {
    local device=/dev/vg/$1 size first count
    changed=0
    size=$(($(blockdev --getsize64 "$device") / CHUNK))
    for ((; changed < 12; changed += count)); do
        count=$((RANDOM % 4 + 1))
        first=$((RANDOM % (size - count)))
        if ((RANDOM % 4 == 0)) && [[ $1 == thin ]]; then
            blkdiscard -o $((first * CHUNK)) -l $((count * CHUNK)) "$device"
        else
            sectors write "$device" 1 "$2" $((first * 128)) $((count * 128))
        fi
    done
}

# oracle OLD NEW: bytes in which two snapshots of the pool are not the same, by thin_delta.
oracle() {
    local old new
    old=$(lvs --noheadings -o thin_id "vg/$1") new=$(lvs --noheadings -o thin_id "vg/$2")
    dmsetup message vg-pool-tpool 0 reserve_metadata_snap
    thin_delta -m --thin1 $old --thin2 $new /dev/mapper/vg-pool_tmeta >delta.xml
    dmsetup message vg-pool-tpool 0 release_metadata_snap
    sed -n 's/.*<\(different\|right_only\) .*length="\([0-9]*\)".*/\2/p' delta.xml \
        | awk -v chunk=$CHUNK '{ n += $1 } END { print n * chunk + 0 }'
}

base_of() { lvs --noheadings -o lv_name -S "origin=$1 && lv_tags=voltar" vg | tr -d ' '; }

# chain VOLUME OPTION...: ten backups.
chain() {
    local volume=$1 number read want changed=0
    shift
    rm -f states.*
    sectors write "/dev/vg/$volume" 1 1 0 16384
    for number in {1..10}; do
        if ((number > 1)); then change "$volume" "$number"; fi
        if [[ $volume == thin ]] && ((number == 5 || number == 9)); then
            lvextend -qq -L +4M "vg/$volume" >/dev/null 2>&1
        fi
        if [[ $volume == thin ]] && ((number == 7)); then
            lvreduce -qq -f -y -L -4M "vg/$volume" >/dev/null 2>&1
        fi
        bytes_of "/dev/vg/$volume" >"state.$number"
        # What thin_delta compares has to be there: the base is kept by another name.
        want=
        if [[ $volume == thin ]] && ((number > 1)); then
            lvcreate -qq -y -s -pr -n now vg/thin
            want=$(oracle "$(base_of thin)" now)
            lvremove -qq -y vg/now
        fi
        expect 0 voltar backup "disk=lvm:vg/$volume" "$volume.voltar" --json "$@"
        read=$(jq '.volumes[0].read_bytes' out)
        if ((number == 1)); then
            holds '.parent == null and .volumes[0].degraded == null'
        else
            holds '.volumes[0].degraded == null and .volumes[0].change_source == $kind' --arg kind "${kinds[$volume]}"
            check [ "$read" -le $(((changed + 8) * CHUNK * 3 / 2 + 4 * MIB * (number == 5 || number == 9))) ]
        fi
        printf '%s %d: %d bytes read; changed %d, thin_delta %s\n' "$volume" "$number" "$read" \
            $((changed * CHUNK)) "${want:--}"
        if [[ -n $want ]] && ((number != 5 && number != 7 && number != 9)); then
            check [ "$read" -le $((want + 4 * CHUNK)) ]
        fi
        tidy "$volume" 1
    done
    for number in {1..10}; do
        rm -f "$volume.raw"
        expect 0 voltar restore "$volume.voltar@latest~$((10 - number))" "$volume.raw"
        check cmp "$volume.raw" "state.$number"
    done
    expect 0 voltar verify "$volume.voltar" --json
    holds '.ok and .snapshots == 10'
}
