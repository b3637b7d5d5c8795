# Sourced by the guest's scripts about ZFS: volumes, their backups, and what is there.

generation=0
# Where volumes are backed up to.
archive=a.voltar

# only_bookmarks VOLUME...: of all that voltar makes there is one bookmark of each of these volumes.
only_bookmarks() {
    local made volume
    made=$(made)
    check test $# -eq "$(grep -c . <<<"$made" || true)"
    for volume; do check grep -q "^$volume#" <<<"$made"; done
}

# nothing_left: of all that voltar makes there is nothing.
nothing_left() { check test -z "$(made)"; }

made() { zfs list -H -o name -t all | grep voltar- || true; }

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
    expect 0 voltar backup "disk=zfs:$1" "$archive" --json "${@:3}"
    holds "$2"
    comes_back "$1"
}

# comes_back VOLUME: what it holds is what the newest snapshot has of it.
comes_back() {
    bytes_of "/dev/zvol/$1" >held
    rm -f copy
    expect 0 voltar restore "$archive" copy
    check cmp copy held
}

readonly STREAMED='.volumes[0].change_source == "zfs" and .volumes[0].degraded == null and .volumes[0].read_bytes <= 262144'
# degraded WORDS: the filter of a report that has them as the reason.
degraded() { printf '.volumes[0].degraded != null and (.volumes[0].degraded | contains("%s"))' "$1"; }
