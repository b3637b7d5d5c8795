# A zvol with a random history of writes, discards and sizes, backed up by its snapshots' streams; each
# backup comes back. Disk: $D0. SEED is replayed if it is set.
. "$(dirname "$0")/zfs.sh"
. "$(dirname "$0")/lib.sh"

seed=${SEED:-$RANDOM$RANDOM}
RANDOM=$seed
step "SEED=$seed"
readonly BACKUPS=10 MIB=2048 # sectors

modprobe zfs
zpool create -o cachefile=none tank "$D0"
zfs create -s -b 16K -V 12M tank/vol
udevadm settle
size=12 # MiB

# below NUMBER: a random one.
below() { echo $(((RANDOM * 32768 + RANDOM) % $1)); }

# Sectors that were written since the last backup, and blocks that zfs may read besides.
change() {
    local first count what written=0 times=$((1 + RANDOM % 4))
    for ((; times > 0; times--)); do
        what=$((RANDOM % 4))
        first=$(below $((size * MIB - 600)))
        count=$((1 + RANDOM % 512))
        case $what in
        0 | 1)
            sectors write /dev/zvol/tank/vol 1 $((generation * 4 + times)) "$first" $count
            written=$((written + count))
            ;;
        2) blkdiscard -o $((first * 512)) -l $((count * 512)) /dev/zvol/tank/vol ;;
        3)
            size=$((8 + RANDOM % 9))
            zfs set volsize=${size}M tank/vol
            udevadm settle
            ;;
        esac
    done
    # Each piece touches one chunk more than it fills, and so does the audit.
    bound=$((written * 512 + 6 * 131072))
}

sectors write /dev/zvol/tank/vol 1 1 0 $((6 * MIB))
for ((generation = 1; generation <= BACKUPS; generation++)); do
    bound=$((7 * 1048576))
    ((generation == 1)) || change
    bytes_of /dev/zvol/tank/vol >"state-$generation"
    source=zfs:tank/vol
    ((generation % 3)) || source=disk=/dev/zvol/tank/vol
    expect 0 voltar backup "disk=${source#disk=}" a.voltar --json
    ((generation == 1)) || holds '.volumes[0].change_source == "zfs"'
    holds '.volumes[0].degraded == null and .warnings == []'
    holds ".volumes[0].size == $size * 1048576 and .volumes[0].read_bytes <= $bound"
    jq -r '"backup '$generation': \(.volumes[0].size) bytes, read \(.volumes[0].read_bytes), changed \(.volumes[0].changed_bytes), \(.elapsed_s) s"' out
    only_bookmarks tank/vol
done

step 'everything comes back'
expect 0 voltar verify a.voltar --json
holds ".ok and .snapshots == $BACKUPS"
for ((generation = 1; generation <= BACKUPS; generation++)); do
    rm -f copy
    expect 0 voltar restore "a.voltar@latest~$((BACKUPS - generation))" copy
    check cmp copy "state-$generation"
done

step 'nothing changed'
expect 0 voltar backup disk=zfs:tank/vol a.voltar --json
holds '.volumes[0].change_source == "zfs" and .volumes[0].read_bytes <= 131072'
jq -r '"nothing changed: read \(.volumes[0].read_bytes), \(.elapsed_s) s"' out
zpool export tank
passed
