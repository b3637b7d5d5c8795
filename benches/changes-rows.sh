#!/usr/bin/env bash
# The rows of one volume, for changes.sh: a full backup, one with nothing changed, one with a chunk in a hundred
# changed; each after its caches were dropped.
#
#   changes-rows.sh LABEL VOLTAR DEVICE SOURCE ARCHIVE MIB STATE [OPTION]...
set -euo pipefail

label=$1 voltar=$2 device=$3 source=$4 archive=$5 mib=$6
export XDG_STATE_HOME=$7
shift 7
readonly CHUNK=65536
full_ms='' full_bytes=''

now_ms() { local now=${EPOCHREALTIME/[.,]/}; echo $((now / 1000)); }

# random COUNT OFFSET: so many chunks of noise from that chunk on.
random() {
    dd if=/dev/urandom of="$device" bs=$CHUNK count="$1" seek="$2" iflag=fullblock conv=notrunc status=none
}

# row NAME: a backup, and what it cost.
row() {
    local start took read
    sync
    { echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null || true
    start=$(now_ms)
    "$voltar" backup "$source" "$archive" --json "${options[@]}" >"$archive.json"
    took=$(($(now_ms) - start))
    read=$(jq '.volumes[0].read_bytes + .volumes[0].audited_bytes' "$archive.json")
    full_ms=${full_ms:-$took} full_bytes=${full_bytes:-$read}
    printf '%-14s %-16s %5d.%03d %12d %7d%% %7d%%  %s%s\n' "$label" "$1" $((took / 1000)) $((took % 1000)) \
        "$read" $((took * 100 / full_ms)) $((read * 100 / full_bytes)) \
        "$(jq -r '.volumes[0].change_source' "$archive.json")" \
        "$(jq -r '.volumes[0].degraded // "" | if . == "" then "" else " (\(.))" end' "$archive.json")"
}

options=("$@")
chunks=$((mib * 1048576 / CHUNK))
random "$chunks" 0
row full
row 'nothing changed'
for ((chunk = 0; chunk < chunks; chunk += 100)); do random 1 "$chunk"; done
row '1 % changed'
rm -f "$archive" "$archive.json"
