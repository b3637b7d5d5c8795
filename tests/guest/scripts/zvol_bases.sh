# What a base is and what none is: bookmarks that are gone, volumes that were renamed, made anew or rolled
# back; several volumes at one instant. Disk: $D0.
. "$(dirname "$0")/zfs.sh"
. "$(dirname "$0")/lib.sh"

modprobe zfs
zpool create -o cachefile=none tank "$D0"

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

zpool export tank
passed
