# A file system on a zvol that is written to: at rest while the snapshot is made, and never longer. Disk: $D0.
. "$(dirname "$0")/zfs.sh"
. "$(dirname "$0")/lib.sh"

modprobe zfs
zpool create -o cachefile=none tank "$D0"
zfs create -s -b 16K -V 24M tank/vol
udevadm settle
mke2fs -q -t ext4 /dev/zvol/tank/vol
mkdir -p /mnt/vol /usr/local/sbin
mount /dev/zvol/tank/vol /mnt/vol

# on_snapshot COMMANDS: they run first whenever voltar has a snapshot made.
on_snapshot() {
    printf '#!/bin/bash\nif [[ $1 == snapshot ]]; then\n%s\nfi\nexec %s "$@"\n' "$1" "$(command -v zfs)" \
        >/usr/local/sbin/zfs
    chmod +x /usr/local/sbin/zfs
}

# What is frozen cannot be frozen once more.
readonly TRY='fsfreeze --freeze /mnt/vol 2>"$work/tried" && fsfreeze --unfreeze /mnt/vol'
was_frozen() { check grep -q 'busy' tried; }
is_thawed() {
    local tries=0
    until fsfreeze --freeze /mnt/vol 2>tried; do
        tries=$((tries + 1))
        ((tries < 100)) || fail 'it is still frozen'
        sleep 0.1
    done
    check fsfreeze --unfreeze /mnt/vol
}

# is_clean VERDICT: the file system comes back with a journal that holds nothing, or not (0 or 1).
is_clean() {
    local dirty=0
    rm -f copy
    expect 0 voltar restore a.voltar copy
    dumpe2fs -h copy 2>/dev/null | grep -q needs_recovery && dirty=1
    check [ $dirty = "$1" ]
    if [[ $1 == 0 ]]; then expect 0 e2fsck -fn copy; fi
}

write_files() {
    local number=0
    while sleep 0.05; do
        number=$(((number + 1) % 40))
        head -c 30000 /dev/urandom >/mnt/vol/new
        mv /mnt/vol/new "/mnt/vol/$number"
    done
}
write_files &
writer=$!

step 'frozen, and thawed'
on_snapshot "$TRY"
expect 0 voltar backup disk=zfs:tank/vol a.voltar --json
was_frozen
is_thawed
is_clean 0
expect 0 voltar backup disk=zfs:tank/vol a.voltar --json
holds '.volumes[0].change_source == "zfs" and .volumes[0].degraded == null'
was_frozen
is_thawed
is_clean 0
only_bookmarks tank/vol

step 'killed while it is frozen'
on_snapshot "$TRY; kill -KILL \$PPID"
start voltar backup disk=zfs:tank/vol a.voltar
ends 137
was_frozen
is_thawed
rm /usr/local/sbin/zfs
expect 0 voltar backup disk=zfs:tank/vol a.voltar --json
holds '.volumes[0].change_source == "zfs" and .volumes[0].degraded == null'
is_thawed
is_clean 0
only_bookmarks tank/vol

step 'not frozen if that is not wanted'
on_snapshot "$TRY"
expect 0 voltar backup disk=zfs:tank/vol a.voltar --fs-freeze off
check test ! -s tried
is_clean 1

kill $writer
wait $writer || true
umount /mnt/vol
zpool export tank
passed
