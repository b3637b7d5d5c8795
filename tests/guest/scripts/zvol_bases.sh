# What a base is and what none is: bookmarks that are gone, volumes that were renamed, made anew, rolled back
# or locked, streams that break or lie. Disk: $D0.
. "$(dirname "$0")/zfs.sh"
. "$(dirname "$0")/lib.sh"

modprobe zfs
zpool create -o cachefile=none tank "$D0"
generation=0

# make VOLUME [OPTION]...: with something in it.
make() {
    zfs create -s -b 16K -V 4M "${@:2}" "$1"
    write "$1" 0 4096
}

# write VOLUME FIRST COUNT: sectors of a generation of their own.
write() {
    generation=$((generation + 1))
    udevadm settle
    sectors write "/dev/zvol/$1" 1 $generation "$2" "$3"
}

# back_up VOLUME FILTER [OPTION]...: the report makes the filter true, and what the volume holds comes back.
back_up() {
    udevadm settle
    expect 0 voltar backup "disk=zfs:$1" a.voltar --json "${@:3}"
    holds "$2"
    bytes_of "/dev/zvol/$1" >held
    rm -f copy
    expect 0 voltar restore a.voltar copy
    check cmp copy held
}

readonly STREAMED='.volumes[0].change_source == "zfs" and .volumes[0].degraded == null and .volumes[0].read_bytes <= 262144'
# degraded WORDS: the filter of a report that has them as the reason.
degraded() { printf '.volumes[0].degraded != null and (.volumes[0].degraded | contains("%s"))' "$1"; }

step 'a bookmark that is gone'
make tank/vol
back_up tank/vol '.parent == null'
only_bookmarks tank/vol
zfs destroy "$(zfs list -H -o name -t bookmark tank/vol)"
write tank/vol 100 10
back_up tank/vol "$(degraded 'is gone')"
only_bookmarks tank/vol

step 'a volume with another name, and no property of it touched'
zfs rename tank/vol tank/new
write tank/new 200 10
zfs get -Hp all tank/new | grep -Ev 'used|available|refer|ratio|written' >before
back_up tank/new "$STREAMED"
zfs get -Hp all tank/new | grep -Ev 'used|available|refer|ratio|written' >after
check cmp before after
only_bookmarks tank/new

step 'a volume that was rolled back'
zfs snapshot tank/new@mine
write tank/new 300 10
back_up tank/new "$STREAMED"
zfs rollback -r tank/new@mine
back_up tank/new "$(degraded 'is gone')"

step 'another volume with the same name'
zfs destroy -r tank/new
make tank/new
back_up tank/new "$(degraded 'another volume')"
only_bookmarks tank/new

step 'the snapshot is kept, or nothing'
write tank/new 400 10
back_up tank/new "$STREAMED" --keep snapshot
check test 1 -eq "$(made | grep -c 'tank/new@')" -a 1 -eq "$(made | wc -l)"
write tank/new 500 10
back_up tank/new "$STREAMED" --keep none
nothing_left

step 'two volumes at one instant'
make tank/two
expect 0 voltar backup zfs:tank/new two=/dev/zvol/tank/two b.voltar --keep snapshot --json
check test 2 -eq "$(made | wc -l)"
check test 1 -eq "$(made | xargs zfs get -Hp -o value createtxg | sort -u | wc -l)"
write tank/two 600 10
expect 0 voltar backup zfs:tank/new two=/dev/zvol/tank/two b.voltar --json
holds '[.volumes[].change_source] == ["zfs", "zfs"] and .volumes[0].changed_bytes == 0'
only_bookmarks tank/new tank/two

step 'streams that break or lie'
readonly REAL=$(command -v zfs)
# lie COMMANDS: what becomes of `zfs send`.
lie() {
    printf '#!/bin/bash\nif [[ $1 == send && $2 == -L && $3 == -i ]]; then\n%s\nelse exec %s "$@"; fi\n' \
        "$1" "$REAL" >/usr/local/sbin/zfs
    chmod +x /usr/local/sbin/zfs
}
back_up tank/new '.snapshot != null'
for cut in 'head -c 400' 'head -c 1000' 'head -c 0' 'sed s/tank/tonk/' 'cat; echo 1'; do
    write tank/new 700 10
    lie "$REAL \"\$@\" | { $cut; }"
    back_up tank/new "$(degraded 'the ZFS stream is refused')"
done
write tank/new 700 10
lie "$REAL \"\$@\"; echo 'the disk is on fire' >&2; exit 1"
back_up tank/new "$(degraded 'the disk is on fire')"
# Changes since another snapshot than the one that is the base.
$REAL snapshot tank/new@late
write tank/new 800 10
lie "$REAL send -L -i @late \"\$5\""
back_up tank/new "$(degraded 'it holds the changes since guid')"
rm /usr/local/sbin/zfs
only_bookmarks tank/new tank/two

step 'an encrypted volume, unlocked and locked'
printf 'key of eight' >key
make tank/secret -o encryption=on -o keyformat=passphrase -o "keylocation=file://$PWD/key"
back_up tank/secret '.snapshot != null' --parent none
write tank/secret 900 10
back_up tank/secret "$STREAMED"
only_bookmarks tank/new tank/two tank/secret
udevadm settle
zfs unload-key tank/secret
expect 1 voltar backup disk=zfs:tank/secret a.voltar --json
said 'encrypted and locked'
said 'zfs load-key tank/secret'
zfs destroy -r tank/secret

step 'what is not there, or no volume'
expect 1 voltar backup zfs:tank/none a.voltar
said 'there is no such volume'
zfs create -o mountpoint=none tank/files
expect 1 voltar backup zfs:tank/files a.voltar
said 'this is no volume'

step 'what others made stays'
zfs snapshot tank/two@voltar-1 -o voltar:run=1
zfs bookmark tank/two@voltar-1 tank/two#voltar-1
back_up tank/two '.snapshot != null' --parent none --keep none
check test "$(made | tr '\n' ' ')" = "$(made | grep -e '#voltar.*-' -e '@voltar-1$' -e 'two#voltar-1$' | tr '\n' ' ')"
check test 2 -eq "$(made | grep -c 'tank/two')"
zpool export tank
passed
