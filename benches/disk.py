#!/usr/bin/env python3
"""Makes a realistic virtual machine's disk, and the same disk a day later.

    benches/disk.py [--size GiB] [--dir DIR] [--no-root] [--random]

Prints one JSON object: the paths of `day0.img` and `day1.img`, and what is in them. The disk is an
ext4 file system with programs and libraries of this host, logs and databases, compressed and random
files, freed garbage (deleted files whose blocks keep their old bytes) and about a third of zeroes. The
next day has logs appended, database pages edited, packages replaced, files added and deleted.

The images are fully allocated: a thick volume has no holes, and nobody shall be fast by skipping them.

As root the disk is filled through a loop mount. Without root (or with --no-root) `mkfs.ext4 -d` fills
it, the garbage is written into blocks that dumpe2fs says are free, and debugfs makes the changes; such
a disk is less fragmented.

Made once for each size and version of this script, and kept in $VOLTAR_BENCH_DIR
(default ${TMPDIR:-/var/tmp}/voltar-bench). Everything drawn is drawn from a fixed seed, but the files
of the host are what they are: two hosts have different disks.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

SEED = 20261121
BLOCK = 4096
CHUNK = 65536
MIB = 1 << 20
UUID = "5eed5eed-0000-4000-8000-000000000001"

# Shares of the disk. What remains, about a third, is never written.
LIVE = 0.36
LOGS = 0.02
DATABASES = 0.02
COMPRESSED = 0.06
RANDOM = 0.07
GARBAGE_REAL = 0.05
GARBAGE_RANDOM = 0.05

# The day after.
REPLACED = 0.010
ADDED_RANDOM = 0.006
APPENDED = 0.002
EDITED_PAGES_OF_DATABASE = 0.02
DELETED = 0.006

WORDS = (
    "accepted address archive block buffer cache client closed completed connection daemon device "
    "disabled error exceeded failed file finished from host ignored interface kernel limit loaded "
    "memory message network opened packet password port process queue received refused request "
    "restarted root runtime scheduled server service session signal socket started state stopped "
    "storage sync system target thread timeout transfer unit update user value volume warning worker"
).split()


def say(text):
    print(f"disk: {text}", file=sys.stderr, flush=True)


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"disk: {' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


# --- contents -------------------------------------------------------------------------------------


class HostFiles:
    """Real files of this host, directory by directory in a seeded order, each given out once."""

    ROOTS = ("/usr", "/opt", "/var/lib/dpkg", "/var/cache/apt/archives")

    def __init__(self, largest):
        directories = []
        for root in self.ROOTS:
            for where, below, names in os.walk(root):
                below.sort()
                if names:
                    directories.append((where, sorted(names)))
        random.Random(SEED).shuffle(directories)
        self.paths = (os.path.join(where, name) for where, names in directories for name in names)
        self.largest = largest
        self.spare = random.Random(SEED + 1)

    def take(self, amount):
        """Yields (path inside the disk, content) of about `amount` bytes in all."""
        while amount > 0:
            path = next(self.paths, None)
            if path is None:
                # A small host: the rest is generated text, which the caller's statistics will show.
                say("this host has too few files; generated text fills in")
                while amount > 0:
                    data = log_text(self.spare, min(amount, 4 * MIB))
                    yield f"generated/{self.spare.getrandbits(64):016x}.txt", data
                    amount -= len(data)
                return
            data = self.read(path)
            if data:
                yield path.lstrip("/"), data
                # What the file occupies: small files are many.
                amount -= -(-len(data) // BLOCK) * BLOCK

    def read(self, path):
        try:
            about = os.lstat(path)
            if not stat.S_ISREG(about.st_mode) or not 0 < about.st_size <= self.largest:
                return None
            with open(path, "rb") as file:
                return file.read()
        except OSError:
            return None


def log_text(rng, length):
    out, size = [], 0
    while size < length:
        line = "2026-11-%02dT%02d:%02d:%02d host%d %s[%d]: %s id=%08x\n" % (
            rng.randrange(1, 31),
            rng.randrange(24),
            rng.randrange(60),
            rng.randrange(60),
            rng.randrange(4),
            rng.choice(WORDS),
            rng.randrange(32768),
            " ".join(rng.choices(WORDS, k=rng.randrange(4, 12))),
            rng.getrandbits(32),
        )
        out.append(line)
        size += len(line)
    return "".join(out).encode()[:length]


def database_page(rng):
    """A header, rows of numbers and words, and the unused end of the page."""
    rows = b"".join(
        rng.randbytes(12) + " ".join(rng.choices(WORDS, k=5)).encode().ljust(48)
        for _ in range(rng.randrange(20, 60))
    )
    return (b"PAGE" + rng.randbytes(12) + rows).ljust(BLOCK, b"\0")


def random_files(rng, amount, folder):
    while amount > 0:
        length = min(amount, int(rng.lognormvariate(14.5, 1.2)) + 1)
        yield f"{folder}/{rng.getrandbits(48):012x}.bin", rng.randbytes(length)
        amount -= length


def compressed_files(files, amount):
    """Tarball-like files that a compressor has already been over."""
    squeeze = ["zstd", "-3", "-q", "-c"] if shutil.which("zstd") else ["gzip", "-6", "-c"]
    end = "zst" if squeeze[0] == "zstd" else "gz"
    number = 0
    while amount > 0:
        data = b"".join(data for _, data in files.take(min(24 * MIB, amount * 2)))
        packed = subprocess.run(squeeze, input=data, capture_output=True, check=True).stdout
        yield f"srv/packages/part{number:04d}.tar.{end}", packed
        amount -= len(packed)
        number += 1


# --- the two ways to fill a file system -------------------------------------------------------------


class Mounted:
    """Through a loop mount, as an operating system would do it."""

    @staticmethod
    @contextlib.contextmanager
    def of(image):
        loop = mount = None
        try:
            loop = run("losetup", "--find", "--show", image).strip()
            mount = tempfile.mkdtemp(prefix="voltar-disk-mount-")
            run("mount", "-t", "ext4", "-o", "nodiscard", loop, mount)
            yield Mounted(mount)
        finally:
            if mount:
                unmount(mount)
                os.rmdir(mount)
            if loop:
                run("losetup", "--detach", loop)

    @staticmethod
    def make(image, size, fill):
        make_file_system(image, size)
        with Mounted.of(image) as disk:
            fill(disk)

    def __init__(self, root):
        self.root = root
        self.garbage = []

    def path(self, name):
        return os.path.join(self.root, name)

    def put(self, name, data):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "wb") as file:
            file.write(data)

    def put_garbage(self, name, data):
        self.put(name, data)
        self.garbage.append(name)

    def free_garbage(self):
        # Flushed first, or delayed allocation would never write what is deleted.
        run("sync", "-f", self.root)
        for name in self.garbage:
            os.unlink(self.path(name))

    def append(self, name, data):
        with open(self.path(name), "ab") as file:
            file.write(data)

    def edit(self, name, changes):
        with open(self.path(name), "r+b") as file:
            for offset, data in changes:
                file.seek(offset)
                file.write(data)

    def remove(self, name):
        os.unlink(self.path(name))


class Offline:
    """Without privileges: e2fsprogs reads and writes the image as a plain file."""

    @staticmethod
    @contextlib.contextmanager
    def of(image):
        with tempfile.TemporaryDirectory(dir=os.path.dirname(image)) as stage:
            disk = Offline(image, stage)
            yield disk
            disk.apply()

    @staticmethod
    def make(image, size, fill):
        with tempfile.TemporaryDirectory(dir=os.path.dirname(image)) as stage:
            disk = Offline(image, stage)
            fill(disk)
            make_file_system(image, size, "-d", stage)
            disk.write_garbage()

    def __init__(self, image, stage):
        self.image = image
        self.stage = stage
        self.garbage = []
        self.script = []
        self.edits = []

    def put(self, name, data):
        path = os.path.join(self.stage, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
        parents = name.split("/")[:-1]
        for depth in range(len(parents)):
            self.command("mkdir", "/" + "/".join(parents[: depth + 1]))
        self.command("write", path, "/" + name)

    def put_garbage(self, _name, data):
        self.garbage.append(data)

    def free_garbage(self):
        pass

    def append(self, name, data):
        path = os.path.join(self.stage, f"append{len(self.script)}")
        run("debugfs", "-R", f'dump "/{name}" "{path}"', self.image)
        with open(path, "ab") as file:
            file.write(data)
        self.remove(name)
        self.command("write", path, "/" + name)

    def edit(self, name, changes):
        self.edits.append((name, list(changes)))

    def remove(self, name):
        self.command("rm", "/" + name)

    def command(self, verb, *names):
        line = verb + "".join(f' "{name}"' for name in names)
        if line not in self.script[-8:]:
            self.script.append(line)

    def apply(self):
        with open(self.image, "r+b") as file:
            for name, changes in self.edits:
                blocks = run("debugfs", "-R", f'blocks "/{name}"', self.image).split()
                for offset, data in changes:
                    file.seek(int(blocks[offset // BLOCK]) * BLOCK)
                    file.write(data)
        path = os.path.join(self.stage, "script")
        with open(path, "w") as file:
            file.write("\n".join(self.script) + "\n")
        run("debugfs", "-w", "-f", path, self.image)

    def write_garbage(self):
        free = []
        for line in run("dumpe2fs", self.image).splitlines():
            if line.startswith("  Free blocks:"):
                for first, last in re.findall(r"(\d+)(?:-(\d+))?", line):
                    free.append((int(first), int(last or first) + 1))
        cursor = iter(sorted(free, key=lambda run: run[0] - run[1]))
        start, end = next(cursor)
        with open(self.image, "r+b") as file:
            for data in self.garbage:
                while data:
                    if start >= end:
                        start, end = next(cursor)
                    piece = data[: (end - start) * BLOCK]
                    file.seek(start * BLOCK)
                    file.write(piece)
                    start += (len(piece) + BLOCK - 1) // BLOCK
                    data = data[len(piece) :]


def unmount(mount):
    """A program that was just interrupted may hold its files a moment longer."""
    for _ in range(50):
        busy = subprocess.run(["umount", mount], capture_output=True, text=True)
        if busy.returncode == 0 or "not mounted" in busy.stderr:
            return
        time.sleep(0.2)
    say(f"cannot unmount {mount}: {busy.stderr.strip()}")


def make_file_system(image, size, *more):
    with open(image, "wb") as file:
        file.truncate(size)
    options = f"hash_seed={UUID},lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(BLOCK), "-U", UUID, "-E", options, *more, image)


# --- the disk and the day after ---------------------------------------------------------------------


def fill(disk, size, files, ledger):
    """Day 0. `ledger` remembers what the next day will need to know."""
    rng = random.Random(SEED + 2)

    def real(amount):
        for name, data in files.take(amount):
            disk.put(name, data)
            ledger["live"].append((name, len(data)))

    def garbage(amount_real, amount_random):
        for name, data in files.take(amount_real):
            disk.put_garbage("tmp/" + name, data)
        for name, data in random_files(rng, amount_random, "tmp/download"):
            disk.put_garbage(name, data)

    # Garbage in thirds between the live files, so that what is freed lies among them.
    for _ in range(3):
        real(size * LIVE / 3)
        garbage(int(size * GARBAGE_REAL / 3), int(size * GARBAGE_RANDOM / 3))
    for name, data in compressed_files(files, size * COMPRESSED):
        disk.put(name, data)
    for name, data in random_files(rng, int(size * RANDOM), "home/media"):
        disk.put(name, data)
        ledger["random"].append((name, len(data)))
    for number in range(8):
        name = f"var/log/service{number}.log"
        disk.put(name, log_text(rng, int(size * LOGS / 8)))
        ledger["logs"].append(name)
    for number in range(4):
        name = f"var/lib/database/table{number}.db"
        pages = int(size * DATABASES / 4) // BLOCK
        disk.put(name, b"".join(database_page(rng) for _ in range(pages)))
        ledger["databases"].append((name, pages))
    disk.free_garbage()


def change(disk, size, files, ledger):
    """Day 1."""
    rng = random.Random(SEED + 3)
    for name in ledger["logs"]:
        disk.append(name, log_text(rng, int(size * APPENDED / len(ledger["logs"]))))
    for name, pages in ledger["databases"]:
        edited = sorted(rng.sample(range(pages), int(pages * EDITED_PAGES_OF_DATABASE)))
        disk.edit(name, [(page * BLOCK, database_page(rng)) for page in edited])
    remove_some(disk, rng, ledger["live"], size * REPLACED)
    for name, data in files.take(size * REPLACED):
        disk.put(name, data)
    remove_some(disk, rng, ledger["random"], size * DELETED)
    for name, data in random_files(rng, int(size * ADDED_RANDOM), "home/media/new"):
        disk.put(name, data)


def remove_some(disk, rng, names, amount):
    # A run of neighbours, as when a package is removed; the rest one by one.
    start = rng.randrange(max(1, len(names) // 2))
    for name, length in names[start:]:
        if amount <= 0:
            return
        disk.remove(name)
        amount -= length


def survey(day0, day1):
    """What is in the images, counted in the units in which programs see it."""
    counts = dict.fromkeys(
        ("nonzero_bytes", "nonzero_bytes_day1", "changed_bytes_4k", "changed_bytes_64k"), 0
    )
    zero_block, zero_chunk = bytes(BLOCK), bytes(CHUNK)

    def nonzero(chunk):
        if chunk == zero_chunk:
            return 0
        blocks = (chunk[at : at + BLOCK] for at in range(0, len(chunk), BLOCK))
        return sum(len(block) for block in blocks if block != zero_block)

    with open(day0, "rb") as first, open(day1, "rb") as second:
        while old := first.read(CHUNK):
            new = second.read(CHUNK)
            used = nonzero(old)
            counts["nonzero_bytes"] += used
            if old == new:
                counts["nonzero_bytes_day1"] += used
                continue
            counts["nonzero_bytes_day1"] += nonzero(new)
            counts["changed_bytes_64k"] += len(new)
            counts["changed_bytes_4k"] += sum(
                BLOCK for at in range(0, len(new), BLOCK) if old[at : at + BLOCK] != new[at : at + BLOCK]
            )
    return counts


# --- the cache --------------------------------------------------------------------------------------


def bench_dir():
    default = os.path.join(os.environ.get("TMPDIR") or "/var/tmp", "voltar-bench")
    return os.path.abspath(os.environ.get("VOLTAR_BENCH_DIR") or default)


def thick(source, target):
    """Copies every byte, holes as written zeroes, to a file that appears only when it is whole."""
    run("cp", "--sparse=never", "--reflink=never", source, target + ".part")
    run("sync", "-f", target + ".part")
    os.rename(target + ".part", target)


def make(folder, size, kind):
    draft = os.path.join(folder, "draft.img")
    files = HostFiles(largest=size // 100)
    ledger = {"live": [], "random": [], "logs": [], "databases": []}
    say(f"filling an ext4 file system of {size / (1 << 30):g} GiB ({kind.__name__.lower()})")
    kind.make(draft, size, lambda disk: fill(disk, size, files, ledger))
    day0, day1 = os.path.join(folder, "day0.img"), os.path.join(folder, "day1.img")
    thick(draft, day0)
    say("changing it as a day would")
    with kind.of(draft) as disk:
        change(disk, size, files, ledger)
    run("e2fsck", "-f", "-n", draft)
    thick(draft, day1)
    os.unlink(draft)
    say("counting what is in it")
    made = {"day0": day0, "day1": day1, "size": size, "filled": kind.__name__.lower(), **survey(day0, day1)}
    with open(os.path.join(folder, "disk.json"), "w") as out:
        json.dump(made, out, indent=2)
    return made


def make_random(folder, size):
    path = os.path.join(folder, "random.img")
    if not os.path.exists(path):
        say("drawing as many random bytes")
        rng = random.Random(SEED + 4)
        with open(path + ".part", "wb") as out:
            for _ in range(size // MIB):
                out.write(rng.randbytes(MIB))
        run("sync", "-f", path + ".part")
        os.rename(path + ".part", path)
    return path


def main():
    parser = argparse.ArgumentParser(description="Makes a realistic disk image and its next day.")
    parser.add_argument("--size", type=float, default=8, metavar="GiB")
    parser.add_argument("--dir", default=bench_dir(), help="where images are kept")
    parser.add_argument("--no-root", action="store_true", help="without a loop mount, even as root")
    parser.add_argument("--random", action="store_true", help="also a file of random bytes, as large")
    chosen = parser.parse_args()
    # A signal becomes an exception, so that mounts and loop devices are given back.
    for caught in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(caught, lambda number, _: sys.exit(128 + number))

    size = int(chosen.size * 1024) * MIB
    if size < 128 * MIB:
        sys.exit("disk: at least 0.125 GiB are needed for a file system with something in it")
    kind = Offline if chosen.no_root or os.geteuid() != 0 else Mounted
    with open(__file__, "rb") as script:
        version = hashlib.sha256(script.read()).hexdigest()[:10]
    prefix = f"disk-{size // MIB}m-{kind.__name__.lower()}-"
    folder = os.path.join(chosen.dir, prefix + version)
    os.makedirs(folder, exist_ok=True)
    for other in os.listdir(chosen.dir):
        if other.startswith(prefix) and other != os.path.basename(folder):
            shutil.rmtree(os.path.join(chosen.dir, other))
    for left in os.listdir(folder):
        if left.endswith(".part"):
            os.unlink(os.path.join(folder, left))

    ready = os.path.join(folder, "disk.json")
    if os.path.exists(ready):
        with open(ready) as file:
            made = json.load(file)
    else:
        made = make(folder, size, kind)
    if chosen.random:
        made["random"] = make_random(folder, size)
    print(json.dumps(made, indent=2))


main()
