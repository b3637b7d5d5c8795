# Encrypted volumes, what is no volume, and what is not voltar's though it is called so. Disk: $D0.
. "$(dirname "$0")/zfs.sh"
. "$(dirname "$0")/lib.sh"

modprobe zfs
zpool create -o cachefile=none tank "$D0"

step 'an encrypted volume, unlocked and locked'
printf 'key of eight' >key
make tank/secret -o encryption=on -o keyformat=passphrase -o "keylocation=file://$PWD/key"
back_up tank/secret '.snapshot != null' --parent none
write tank/secret 900 10
back_up tank/secret "$STREAMED"
only_bookmarks tank/secret
udevadm settle
zfs unload-key tank/secret
expect 1 voltar backup disk=zfs:tank/secret a.voltar
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
make tank/two
zfs snapshot -o voltar:run=1 tank/two@voltar-1
zfs bookmark tank/two@voltar-1 tank/two#voltar-1
back_up tank/two '.snapshot != null' --parent none --keep none
check test "$(made)" = $'tank/two@voltar-1\ntank/two#voltar-1'

step 'a clone that somebody took over stays, and is his to back up'
make tank/three
back_up tank/three '.snapshot != null' --parent none --keep snapshot
kept=$(made | grep '^tank/three@')
zfs clone -o "voltar:run=$(zfs get -H -o value voltar:run "$kept")" "$kept" tank/rescue
write tank/three 900 10
back_up tank/three "$STREAMED"
check zfs list -H -o name tank/rescue
archive=b.voltar
back_up tank/rescue '.snapshot != null' --keep none
archive=a.voltar
zfs destroy tank/rescue
back_up tank/three "$STREAMED"
check test 0 -eq "$(made | grep -c '^tank/three@' || true)"
zpool export tank
passed
