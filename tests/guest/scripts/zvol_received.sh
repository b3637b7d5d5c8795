# Zvols that came here by `zfs receive`, that were received anew, cloned and promoted: each is known for what it
# is, and each backup is right. Disk: $D0.
. "$(dirname "$0")/zfs.sh"
. "$(dirname "$0")/lib.sh"

modprobe zfs
zpool create -o cachefile=none tank "$D0"

step 'a copy is another volume, whatever came with it'
make tank/vol
back_up tank/vol '.parent == null' --keep snapshot
zfs snapshot tank/vol@one
zfs send -R tank/vol@one | zfs receive tank/copy
check test 2 -eq "$(made | wc -l)"
write tank/copy 100 10
back_up tank/copy "$(degraded 'another volume')"
write tank/copy 200 10
back_up tank/copy "$STREAMED"
# The original's, which came along, is not the copy's.
check test 1 -eq "$(made | grep -c '^tank/copy@')" -a 1 -eq "$(made | grep -c '^tank/copy#')"

step 'received anew'
write tank/vol 300 10
zfs snapshot tank/vol@two
# What was written to the copy goes: it was only read since.
zfs rollback -r tank/copy@one
back_up tank/copy "$(degraded 'is gone')"
zfs send -i @one tank/vol@two | zfs receive tank/copy
back_up tank/copy "$STREAMED"
write tank/copy 400 10
back_up tank/copy "$STREAMED"

step 'received over what was written since: it is taken back, and the bookmark stays'
write tank/copy 450 10
back_up tank/copy "$STREAMED"
write tank/vol 460 10
zfs snapshot tank/vol@three
zfs send -i @two tank/vol@three | zfs receive -F tank/copy
back_up tank/copy "$(degraded 'received into the volume')"
write tank/copy 470 10
back_up tank/copy "$STREAMED"

step 'received into and never written to: nothing can be taken back'
zfs snapshot tank/vol@four
zfs send -i @three tank/vol@four | zfs receive -F tank/copy
back_up tank/copy "$(degraded 'received into the volume')"
write tank/vol 480 10
zfs snapshot tank/vol@five
zfs send -i @four tank/vol@five | zfs receive tank/copy
back_up tank/copy "$STREAMED"

step 'a copy in another place with the old name'
zfs rename tank/copy tank/old
zfs send tank/vol@two | zfs receive tank/copy
back_up tank/copy "$(degraded 'another volume')"
write tank/copy 500 10
back_up tank/copy "$STREAMED"
zfs destroy -r tank/old

step 'a clone that takes the place of its origin'
archive=b.voltar
back_up tank/vol '.parent == null'
zfs clone tank/vol@two tank/clone
write tank/vol 600 10
write tank/clone 700 10
zfs promote tank/clone
back_up tank/vol "$STREAMED"
archive=c.voltar
back_up tank/clone '.parent == null'
write tank/clone 800 10
back_up tank/clone "$STREAMED"
# As one does who goes back: what is there under the name is now the clone.
archive=b.voltar
zfs rename tank/vol tank/gone
zfs rename tank/clone tank/vol
back_up tank/vol "$(degraded 'another volume')"
check test 1 -eq "$(made | grep -c '^tank/vol')"

zpool export tank
passed
