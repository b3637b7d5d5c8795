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
pieces=1 # that the volume was ever written, discarded or cut in

# below NUMBER: sets `number` to a random one. In a subshell, the seed would not replay it.
below() { number=$(((RANDOM * 32768 + RANDOM) % $1)); }

# Changes the volume at random, and sets `bound` to the bytes that a backup of that may read.
change() {
    local number first count what written=0 times=$((1 + RANDOM % 4))
    # Each piece covers a part of two chunks besides those that it fills, and their bytes come from the stream
    # and, whole, from the device; so do those that the audit looks at. Streams speak of holes that were there
    # before as well, so that of two chunks at the ends of each older piece all may be read again.
    bound=$(((2 * times + 1 + pieces) * 2 * 65536))
    pieces=$((pieces + times))
    for ((; times > 0; times--)); do
        what=$((RANDOM % 4))
        below $((size * MIB - 600))
        first=$number
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
    bound=$((bound + written * 512))
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
