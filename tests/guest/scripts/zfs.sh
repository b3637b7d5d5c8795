# Sourced by the guest's scripts about ZFS: what is there, and that nothing else is.

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
