#!/usr/bin/env bash
# Peak memory of voltar on a volume of 16 TiB that holds 1 GiB of data, spread over all of it.
# `make bench-memory` runs this.
#
#   benches/memory.sh            $VOLTAR names the binary, $VOLTAR_BENCH_DIR the place for the files
#
# A sparse file of 16 TiB fits XFS and tmpfs, not ext4 (one block less). The file lies, in this order, in
# the bench directory if its file system takes 16 TiB; as root in an XFS made for it on a loop device; else
# in the bench directory with the largest size that is allowed there, which is then said.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
voltar=$(realpath -m "${VOLTAR:-$here/../target/release/voltar}")
bench_dir=${VOLTAR_BENCH_DIR:-${TMPDIR:-/var/tmp}/voltar-bench}
limit_mib=256
wanted=$((16 << 40))
pieces=16384 # of 64 KiB each: 1 GiB, every piece in a part of the map of its own
changed=160

work=
loop=
mounted=
failed=0
rows=()

cleanup() {
    if [[ -n $mounted ]]; then unmount "$mounted" || true; fi
    if [[ -n $loop ]]; then losetup --detach "$loop" || true; fi
    if [[ -n $work ]]; then rm -rf --one-file-system "$work"; fi
}

# A program that was just interrupted may hold its files a moment longer.
unmount() {
    local attempt
    for attempt in {1..50}; do
        if umount "$1" 2>/dev/null; then return; fi
        sleep 0.2
    done
    umount --lazy "$1"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf 'memory: %s\n' "$*" >&2; }

# Creates the directory for the volume and sets $place and $size.
find_place() {
    mkdir -p "$bench_dir"
    work=$(mktemp -d "$bench_dir/memory.XXXXXX")
    place=$work
    size=$wanted
    if truncate -s "$size" "$work/volume.raw" 2>/dev/null; then return; fi
    rm -f "$work/volume.raw"
    if [[ $EUID == 0 ]] && command -v mkfs.xfs >/dev/null && make_xfs; then
        place=$mounted
        say "16 TiB do not fit the file system of $bench_dir; using an XFS on a loop device"
        return
    fi
    # ext4: 2^32 blocks less one. Others may allow less still.
    for size in $((wanted - 4096)) $((8 << 40)) $((1 << 40)); do
        if truncate -s "$size" "$work/volume.raw" 2>/dev/null; then
            say "the largest sparse file here has $((size >> 20)) MiB, not 16 TiB"
            return
        fi
    done
    say "no sparse file of even 1 TiB can be made in $bench_dir"
    exit 1
}

make_xfs() {
    truncate -s 12G "$work/xfs.img" || return 1
    mkfs.xfs -q "$work/xfs.img" || return 1
    loop=$(losetup --find --show "$work/xfs.img") || return 1
    mkdir "$work/mount"
    mount "$loop" "$work/mount" || return 1
    mounted=$work/mount
}

# spread FILE COUNT SEED: writes COUNT pieces of 64 KiB, half of each random, at places drawn from SEED.
spread() {
    python3 - "$@" <<'PYTHON'
import os, random, sys

path, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
size = os.path.getsize(path)
with open(path, "r+b") as file:
    # The first and the last block are where mistakes live.
    for place in [0, size - 65536] + [rng.randrange(size // 65536) * 65536 for _ in range(count - 2)]:
        file.seek(place)
        file.write(rng.randbytes(32768) + b"voltar! " * 4096)
PYTHON
}

# same A B: compares two sparse files without reading their holes.
same() {
    python3 - "$@" <<'PYTHON'
import os, sys

STEP = 1 << 20

def extents(file, size):
    at = 0
    while at < size:
        try:
            start = os.lseek(file, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(file, start, os.SEEK_HOLE)
        yield start, at

def within(first, second, size):
    """Every byte of `first` that is not in a hole equals the one of `second`."""
    for start, end in extents(first, size):
        for at in range(start, end, STEP):
            length = min(STEP, end - at)
            if os.pread(first, length, at) != os.pread(second, length, at):
                sys.exit(f"memory: the files differ between {at:#x} and {at + length:#x}")

first, second = (os.open(path, os.O_RDONLY) for path in sys.argv[1:3])
sizes = [os.fstat(file).st_size for file in (first, second)]
if sizes[0] != sizes[1]:
    sys.exit(f"memory: sizes differ: {sizes[0]} and {sizes[1]}")
within(first, second, sizes[0])
within(second, first, sizes[0])
PYTHON
}

field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }

# measured NAME COMMAND...: a row of the table; a failure is a row too.
measured() {
    local name=$1 peak wall
    shift
    say "$name"
    if ! python3 -S -I "$here/measure.py" "$work/result" --stdout /dev/null --stderr "$work/stderr" -- "$@"; then
        rows+=("$(printf '| %-28s | %8s | %9s | failed: %s |' "$name" - - "$(tail -n 1 "$work/stderr")")")
        failed=1
        return 0
    fi
    peak=$(($(field "$work/result" peak_bytes) >> 20))
    wall=$(field "$work/result" wall_s)
    local verdict=held
    if ((peak > limit_mib)); then
        verdict=MISSED
        failed=1
    fi
    rows+=("$(printf '| %-28s | %8.2f | %9d | %-7s |' "$name" "$wall" "$peak" "$verdict")")
}

main() {
    if [[ ! -x $voltar ]]; then
        say "no $voltar (cargo build --release)"
        exit 1
    fi
    find_place
    local volume=$place/volume.raw archive=$work/a.voltar restored=$place/restored.raw
    truncate -s "$size" "$volume"
    say "spreading 1 GiB over $((size >> 30)) GiB"
    spread "$volume" "$pieces" 1
    measured 'full backup' "$voltar" backup "disk=$volume" "$archive" --quiet
    measured 'nothing changed' "$voltar" backup "disk=$volume" "$archive" --quiet
    spread "$volume" "$changed" 2
    measured 'incremental, 10 MiB changed' "$voltar" backup "disk=$volume" "$archive" --quiet
    measured 'list' "$voltar" list "$archive"
    measured 'diff' "$voltar" diff "$archive" latest~1 latest
    measured 'verify' "$voltar" verify "$archive" --quiet
    measured 'verify, stored bytes' "$voltar" verify "$archive" --stored --quiet
    measured 'restore to a file' "$voltar" restore "$archive" "$restored" --quiet
    if [[ -e $restored ]]; then
        say 'comparing'
        same "$volume" "$restored" || failed=1
    fi

    local filesystem
    filesystem=$(stat -f -c %T "$volume")
    printf '\nVolume: %s bytes (%s GiB) with 1 GiB of data in %s places, a sparse file on %s.\n\n' \
        "$size" "$((size >> 30))" "$pieces" "$filesystem"
    printf '| %-28s | %8s | %9s | %-7s |\n' work 'wall s' 'peak MiB' "<= $limit_mib"
    printf '| %s | %s | %s | %s |\n' ---------------------------- -------- --------- -------
    printf '%s\n' "${rows[@]}"
    exit "$failed"
}

main "$@"
