# Device mapper makes devices fail under a source, a target and an archive's file system. Each time: the
# documented exit code, the place by name, nothing lost that was committed, and the next run succeeds.
# Disks: $D0 and $D1, of 64 MiB.
. "$(dirname "$0")/lib.sh"

readonly LENGTH=49152 # sectors, 24 MiB: what is backed up

modprobe dm-flakey

# table NAME LINES: (re)places the table of a device, without waiting for what is under way.
table() {
    if [[ -e /dev/mapper/$1 ]]; then
        dmsetup load "$1" <<<"$2"
        dmsetup suspend --noflush --nolockfs "$1"
        dmsetup resume "$1"
    else
        dmsetup create "$1" <<<"$2"
    fi
}

linear() { echo "0 $LENGTH linear $1 0"; }

# All but one MiB, from byte 0x800000 on.
gap() {
    echo "0 16384 linear $1 0
16384 2048 error
18432 $((LENGTH - 18432)) linear $1 18432"
}

# Every request fails.
failing() { echo "0 $2 flakey $1 0 0 3600"; }

# Reads do not, and writes are said to be done and are not.
forgetful() { echo "0 $2 flakey $1 0 0 3600 1 drop_writes"; }

# fails WORDS COMMAND...: voltar ends with 1 and commits nothing.
fails() {
    local words=$1 before
    shift
    expect 0 voltar list a.voltar --json
    before=$(<out)
    expect 1 "$@" --json
    said "$words"
    expect 0 voltar list a.voltar --json
    check test "$(<out)" = "$before"
}

# until_holds DEVICE SECTOR: waits until there is something other than zeroes.
until_holds() {
    until dd if="$1" skip="$2" count=8 iflag=direct status=none | tr -d '\0' | grep -q .; do
        kill -0 "$run" || fail "the run ended before it came to sector $2"
        sleep 0.1
    done
}

# until_long FILE LENGTH: waits until the run has written so much.
until_long() {
    until (($(stat -c %s "$1") >= $2)); do
        kill -0 "$run" || fail "the run ended before $1 had $2 bytes"
        sleep 0.1
    done
}

truncate -s 24M disk
sectors write disk 1 1
expect 0 voltar backup disk a.voltar

source_that_fails() {
    sectors write "$D0" 2 1 0 $LENGTH
    table source "$(linear "$D0")"
    local io
    for io in uring blocking; do
        step "a source with bad sectors, --io $io"
        table source "$(gap "$D0")"
        fails 'bytes 0x800000' voltar backup s=/dev/mapper/source a.voltar --io $io
        expect 4 voltar backup s=/dev/mapper/source a.voltar --io $io --on-read-error record --json
        holds '.volumes[0].unreadable == [{"offset": 8388608, "length": 1048576}]'
        # What could be read is there; what could not is zero, and the restore says so.
        rm -f copy
        expect 4 voltar restore a.voltar copy --json
        head -c 24M "$D0" >want
        dd if=/dev/zero of=want bs=1M seek=8 count=1 conv=notrunc status=none
        check sectors compare copy want
    done
    step 'a source that fails altogether, and midway'
    table source "$(failing "$D0" $LENGTH)"
    fails '/dev/mapper/source' voltar backup s=/dev/mapper/source a.voltar
    table source "$(linear "$D0")"
    voltar show a.voltar --json >before
    local long
    long=$(stat -c %s a.voltar)
    # Stored again, or nothing would have to be written.
    start voltar backup s=/dev/mapper/source a.voltar --dedup off --compression store --limit 8M --json
    until_long a.voltar $((long + 2097152))
    table source "$(failing "$D0" $LENGTH)"
    ends 1
    holds '.error.kind == "source-unreadable"'
    said '/dev/mapper/source'
    voltar show a.voltar --json >after
    check cmp before after
    table source "$(linear "$D0")"
    expect 0 voltar backup s=/dev/mapper/source a.voltar --json
    expect 0 voltar verify a.voltar
    rm -f copy
    expect 0 voltar restore a.voltar copy
    sectors write want 2 1
    check sectors compare copy want
    dmsetup remove --retry source
}

target_that_fails() {
    local io
    for io in uring blocking; do
        step "a target that fails midway, --io $io"
        blkdiscard -z -l 24M "$D0"
        table target "$(linear "$D0")"
        start voltar restore b.voltar /dev/mapper/target --io $io --limit 4M --json
        until_holds /dev/mapper/target 8192
        table target "$(failing "$D0" $LENGTH)"
        ends 6
        holds '.error.kind == "target-partial"'
        said '/dev/mapper/target'
        said 'run the same command again'
        table target "$(linear "$D0")"
        expect 0 voltar restore b.voltar /dev/mapper/target --io $io --json
        holds '.volumes[0].kept_bytes > 0'
        check sectors compare /dev/mapper/target disk
        dmsetup remove --retry target
    done
    step 'a target with bad sectors'
    table target "$(gap "$D0")"
    expect 6 voltar restore b.voltar /dev/mapper/target --overwrite --delta off --json
    holds '.error.kind == "target-partial"'
    said 'bytes 0x8'
    table target "$(linear "$D0")"
    expect 0 voltar restore b.voltar /dev/mapper/target --overwrite --read-back
    check sectors compare /dev/mapper/target disk
    dmsetup remove --retry target
}

# The archive's file system loses its disk for a while. What was committed before stays.
archive_that_fails() {
    local kind=$1 status=$2 all committed
    step "an archive whose disk is $kind"
    all=$(blockdev --getsz "$D1")
    table home "0 $all linear $D1 0"
    mkfs.ext4 -q -E lazy_itable_init=0,nodiscard -e remount-ro /dev/mapper/home
    mkdir -p home
    mount /dev/mapper/home home
    sectors write disk 1 1
    expect 0 voltar backup disk home/a.voltar --json
    committed=$(jq -r .snapshot out)
    sectors write disk 1 2 0 32768
    start voltar backup disk home/a.voltar --compression store --limit 3M --json
    until_long home/a.voltar $(($(stat -c %s home/a.voltar) + 2097152))
    table home "$($kind "$D1" "$all")"
    ends "$status"
    # Only what the disk has, and no more of what the page cache says.
    umount home
    table home "0 $all linear $D1 0"
    e2fsck -fy /dev/mapper/home >fsck || check test $? = 1
    mount /dev/mapper/home home
    expect 0 voltar verify home/a.voltar --json
    holds '.ok and .snapshots == 1'
    expect 0 voltar show home/a.voltar --json
    holds '.. | strings | select(. == $id)' --arg id "$committed"
    expect 0 voltar backup disk home/a.voltar --json
    holds '.parent == $id' --arg id "$committed"
    expect 0 voltar verify home/a.voltar
    rm -f copy
    expect 0 voltar restore home/a.voltar copy
    check sectors compare copy disk
    umount home
    dmsetup remove --retry home
}

# The disk that an archive is restored from fails midway. That is no damage, though the page cache still has what
# was read when the archive was opened: whoever bears damage does not bear that.
archive_that_fails_a_restore() {
    local all io
    all=$(blockdev --getsz "$D1")
    table home "0 $all linear $D1 0"
    mkfs.ext4 -q -E lazy_itable_init=0,nodiscard /dev/mapper/home
    mkdir -p home
    mount /dev/mapper/home home
    expect 0 voltar backup disk home/a.voltar --compression store
    umount home
    mount -o ro /dev/mapper/home home
    for io in uring blocking; do
        step "a restore whose archive fails midway, --io $io"
        blkdiscard -z -l 24M "$D0"
        # With little memory, so that not all is read before the disk fails.
        start voltar restore home/a.voltar "$D0" --on-damage zero --io $io --limit 2M --memory 64M --json
        until_holds "$D0" 2048
        table home "$(failing "$D1" "$all")"
        ends 6
        holds '.error.kind == "target-partial"'
        holds '.volumes[0] | (.complete | not) and .damaged == []'
        said 'attach it again'
        table home "0 $all linear $D1 0"
        expect 0 voltar restore home/a.voltar "$D0" --on-damage zero --io $io
        check sectors compare "$D0" disk
    done
    umount home
    dmsetup remove --retry home
}

source_that_fails
sectors write disk 1 1
expect 0 voltar backup disk b.voltar
target_that_fails
archive_that_fails failing 1
archive_that_fails forgetful 0
sectors write disk 1 3
archive_that_fails_a_restore
passed
