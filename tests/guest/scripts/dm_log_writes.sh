# Logs every write and flush that reaches the disk of an archive's file system, and that of a restore's
# target, with a mark whenever voltar said that it was done. What the disks hold at any moment of it, the
# other half of this test works out on the host.
# Disks: $D0 for the archive and $D1 for its log, $D2 for the target and $D3 for its log; $D1 and $D3 are kept.
. "$(dirname "$0")/lib.sh"

modprobe dm-log-writes

# logged NAME DISK LOG
logged() { echo "0 $(blockdev --getsz "$2") log-writes $2 $3" | dmsetup create "$1"; }

# mark NAME WORD: without a sync; what voltar said is done must be on the disk without one.
mark() { dmsetup message "$1" 0 mark "$2"; }

# killed COMMAND...: after a second, in the midst of it.
killed() {
    start "$@"
    sleep 1
    kill -9 "$run" || true # `ends` says what became of it.
    ends 137
}

step 'an archive on ext4'
logged home "$D0" "$D1"
mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0,nodiscard /dev/mapper/home
mkdir -p home
mount /dev/mapper/home home
sync -f home
mark home made

backup() {
    step "backup $1"
    expect 0 voltar backup disk home/a.voltar --compression store --json
    holds '.volumes[0].new_bytes > 0'
    mark home "backup-$1"
}

truncate -s 4M disk
sectors write disk 1 1
backup 1
sectors write disk 1 2 2048 2048
backup 2
sectors write disk 1 3 4096 3072
step 'a backup that is killed'
killed voltar backup disk home/a.voltar --compression store --limit 1M
mark home killed
backup 3
cp home/a.voltar a.voltar
umount home
dmsetup remove --retry home

step 'a restore over other data, killed and run again'
logged target "$D2" "$D3"
sectors write /dev/mapper/target 9 9
mark target made
killed voltar restore a.voltar /dev/mapper/target --overwrite --limit 1M
mark target killed
expect 0 voltar restore a.voltar /dev/mapper/target --overwrite
mark target restored
check sectors compare /dev/mapper/target disk
dmsetup remove --retry target
passed
