# A backup by somebody whose quota is used up ends as on a full disk: what was committed is there, and with
# more quota the next run goes on. Disk: $D0, of 320 MiB.
. "$(dirname "$0")/lib.sh"

readonly NOBODY=65534

modprobe xfs
mkfs.xfs -q "$D0"
mkdir home
mount -o usrquota "$D0" home
chown $NOBODY:$NOBODY home

grant() { xfs_quota -x -c "limit -u bhard=$1 $NOBODY" home; }

# Root has no quota.
backup() {
    setpriv --reuid=$NOBODY --regid=$NOBODY --clear-groups \
        voltar backup disk home/a.voltar --compression store --json
}

step 'a backup within the quota'
grant 50m
truncate -s 2M disk
sectors write disk 1 1
cp disk old
expect 0 backup

step 'a backup over the quota'
truncate -s 80M disk
sectors write disk 1 2
expect 1 backup
holds '.error.kind == "no-space"'
check test "$(stat -c %u home/a.voltar)" = $NOBODY
expect 0 voltar verify home/a.voltar --json
holds '.ok and .snapshots == 1'
expect 0 voltar restore home/a.voltar copy
check sectors compare copy old

step 'the same with more quota'
grant 140m
expect 0 backup
holds '.resumed_bytes >= 31457280'
expect 0 voltar verify home/a.voltar --json
holds '.ok and .snapshots == 2'
expect 0 voltar restore home/a.voltar copy --overwrite
check sectors compare copy disk
passed
