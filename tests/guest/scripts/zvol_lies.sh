# Streams of `zfs send` that end early, are damaged, fail, or are of something else: the volume is read whole,
# and why is said. Disk: $D0.
. "$(dirname "$0")/zfs.sh"
. "$(dirname "$0")/lib.sh"

modprobe zfs
zpool create -o cachefile=none tank "$D0"

step 'streams that break'
mkdir -p /usr/local/sbin
readonly REAL=$(command -v zfs)
# lie COMMANDS: what becomes of `zfs send`.
lie() {
    printf '#!/bin/bash\nif [[ $1 == send && $2 == -L && $3 == -i ]]; then\n%s\nelse exec %s "$@"; fi\n' \
        "$1" "$REAL" >/usr/local/sbin/zfs
    chmod +x /usr/local/sbin/zfs
}
make tank/new
back_up tank/new '.snapshot != null'
for cut in 'head -c 0' 'head -c 1000' 'sed s/tank/tonk/'; do
    write tank/new 700 10
    lie "$REAL \"\$@\" | { $cut; }"
    back_up tank/new "$(degraded 'the ZFS stream is refused')"
done
write tank/new 700 10
lie "$REAL \"\$@\"; echo 'the disk is on fire' >&2; exit 1"
back_up tank/new "$(degraded 'the disk is on fire')"

step 'one that is another'
# Changes since another snapshot than the one that is the base.
$REAL snapshot tank/new@late
write tank/new 800 10
lie "$REAL send -L -i @late \"\$5\""
back_up tank/new "$(degraded 'it holds the changes since guid')"
rm /usr/local/sbin/zfs
only_bookmarks tank/new

zpool export tank
passed
