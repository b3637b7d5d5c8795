#!/usr/bin/env python3
"""voltar and its peers, end to end, on a realistic disk. `make bench` runs this.

    benches/run.py [--size GiB] [--only NAME...] [--skip-peers] [--runs N]

NAME is one of: voltar random nbd zstd qemu-img restic borg. The limits of the machine are always measured.

How it measures:
- Caches are dropped before every run (as root; otherwise the files are advised out of the cache).
- Wall time ends when the output is on the medium: the file system is flushed, and that counts.
- CPU time and peak memory are those of the whole process and its children, from wait4. The peak has
  a floor of about 10 MiB, the program that starts the command.
- fio's best sequential direct read and write of the same bytes are the measure. Where a row is held
  against them, fio runs right before and right after it, and the better of the two counts: a disk that
  others use moves by half within seconds.
- Every restored byte is compared with the source. A mismatch fails the run.
- With --runs N, the median of each figure.

Prints a table, the limits and the ratios the project holds itself to; writes them as JSON into
$VOLTAR_BENCH_DIR (default ${TMPDIR:-/var/tmp}/voltar-bench). $VOLTAR names the binary to measure.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 1 << 20
CORES = os.cpu_count() or 1
ROOT = os.geteuid() == 0
MEMORY = "/dev/shm"
MEMORY_LIMIT = 256 * MIB
NAMES = ("voltar", "random", "nbd", "zstd", "qemu-img", "restic", "borg")
READS = (("256k", 16), ("1M", 4), ("1M", 16), ("1M", 32), ("4M", 8))
WRITES = (("1M", 8), ("1M", 32), ("4M", 8))


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


class Failed(Exception):
    """One step went wrong; the table says so and the run goes on."""


# --- measuring ------------------------------------------------------------------------------------


class Bench:
    def __init__(self, folder, disk):
        self.disk = disk
        self.dir = os.path.join(folder, "scratch")
        self.memory = os.path.join(MEMORY, f"voltar-bench-{os.getpid()}")
        self.rows = {}
        self.limits = {}
        self.failures = []
        self.loops = []

    def __enter__(self):
        shutil.rmtree(self.dir, ignore_errors=True)
        os.makedirs(self.dir)
        os.makedirs(self.memory)
        return self

    def __exit__(self, *_):
        for loop in list(self.loops):
            self.detach(loop)
        shutil.rmtree(self.dir, ignore_errors=True)
        shutil.rmtree(self.memory, ignore_errors=True)

    def path(self, name):
        return os.path.join(self.dir, name)

    def shm(self, name):
        return os.path.join(self.memory, name)

    def attach(self, path):
        loop = output(["losetup", "--find", "--show", "--direct-io=on", path]).strip()
        self.loops.append(loop)
        return loop

    def detach(self, loop):
        subprocess.run(["losetup", "--detach", loop], check=False)
        self.loops.remove(loop)

    def drop_caches(self):
        os.sync()
        if ROOT:
            with contextlib.suppress(OSError), open("/proc/sys/vm/drop_caches", "w") as file:
                file.write("3")
                return
        files = [os.path.join(at, name) for at, _, names in os.walk(self.dir) for name in names]
        for path in files + [v for v in self.disk.values() if isinstance(v, str) and os.path.isfile(v)]:
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def measure(self, command, stdin=None, stdout=None, cwd=None, into=None):
        """One cold run. `into` is where the output lands and must be flushed."""
        self.drop_caches()
        result, errors = self.path("result.json"), self.path("stderr")
        answer = stdout or self.path("stdout")
        options = ["--stdin", stdin or "/dev/null", "--stdout", answer, "--stderr", errors]
        options += ["--cwd", cwd] if cwd else []
        options += ["--sync", into] if into else []
        measure = [sys.executable, "-S", "-I", os.path.join(HERE, "measure.py"), result]
        done = subprocess.run([*measure, *options, "--", *command], capture_output=True, text=True)
        if done.returncode != 0:
            said = read_text(errors).strip().splitlines() or done.stderr.strip().splitlines()
            reason = next((line for line in said if "error" in line.lower()), said[-1] if said else "")
            raise Failed(f"exit {done.returncode}: {reason.strip()[:120]}".rstrip(": "))
        with open(result) as file:
            sample = json.load(file)
        if not stdout:
            sample["answer"] = read_json(answer)
        return sample

    def step(self, work, program, action, beside=None):
        """Runs `action`, which returns a sample, and files it under its row; measures the limit `beside`
        before and after it."""
        row = self.rows.setdefault((work, program), {"work": work, "program": program, "samples": []})
        say(f"{work}: {program}")
        try:
            before = beside() if beside else None
            sample = action()
            if beside:
                sample["limit"] = max(before, beside())
            row["samples"].append(sample)
            return sample
        except Failed as failure:
            row["failed"] = str(failure)
            self.failures.append(f"{work}, {program}: {failure}")
            say(f"  FAILED {failure}")
            return None

    def fio_now(self, name, path, size):
        """Measures fio at this moment, with the setting that was best before; `None` if there was none."""
        if not self.limits.get(name):
            return None
        block, depth = self.limits[name]["setting"].split(" x ")

        def rate():
            self.drop_caches()
            return fio(name.split()[0], path, size, block, int(depth))

        return rate

    def compare(self, restored, source):
        self.drop_caches()
        done = subprocess.run(["cmp", restored, source], capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stdout + done.stderr).strip().replace(f"{restored} {source} differ: ", "")
            raise Failed(f"RESTORED BYTES DIFFER: {said[:100]}")

    def figure(self, work, program, name):
        row = self.rows.get((work, program))
        if not row or row.get("failed") or not row["samples"]:
            return None
        values = [sample[name] for sample in row["samples"] if sample.get(name) is not None]
        return statistics.median(values) if values else None


def output(command, **options):
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[:3])}: {done.stderr.strip()[:160]}")
    return done.stdout


def read_text(path):
    with contextlib.suppress(OSError), open(path, errors="replace") as file:
        return file.read()
    return ""


def read_json(path):
    with contextlib.suppress(ValueError):
        return json.loads(read_text(path))
    return None


def stored(path):
    """Bytes a file or a repository takes up as seen by a copy of it."""
    if os.path.isfile(path):
        return os.path.getsize(path)
    return sum(os.path.getsize(os.path.join(at, name)) for at, _, names in os.walk(path) for name in names)


def remove(*paths):
    for path in paths:
        if os.path.isdir(path):
            shutil.rmtree(path)
        elif os.path.exists(path):
            os.unlink(path)


# --- what the machine can do ----------------------------------------------------------------------


def fio(mode, path, size, block, depth):
    job = ["fio", "--name=limit", f"--filename={path}", f"--rw={mode}", f"--size={size}", f"--bs={block}"]
    job += [f"--iodepth={depth}", "--ioengine=io_uring", "--direct=1", "--output-format=json"]
    job += ["--readonly"] if mode == "read" else ["--end_fsync=1", "--fallocate=none"]
    side = json.loads(output(job))["jobs"][0][mode]
    return side["bw_bytes"]


def best(bench, mode, path, size, settings):
    rates = {}
    for block, depth in settings:
        bench.drop_caches()
        rates[f"{block} x {depth}"] = fio(mode, path, size, block, depth)
    setting = max(rates, key=rates.get)
    return {"rate": rates[setting], "setting": setting, "all": rates}


def per_core(command, pattern):
    """The command once per core at the same time; the sums of the numbers each prints last."""
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(CORES)
    ]
    found = []
    for process in running:
        matches = re.findall(pattern, process.communicate()[0])
        if not matches:
            raise Failed(f"{command[0]} said nothing that is understood")
        found.append([float(number) for number in matches[-1]])
    return [sum(numbers) for numbers in zip(*found)]


def write_sample(bench, path, amount):
    """Non-zero parts drawn evenly from the whole disk, in memory."""
    piece, zeroes = MIB, bytes(MIB)
    size = bench.disk["size"]
    stride = max(1, size // piece * bench.disk["nonzero_bytes"] // size * piece // amount)
    with open(bench.disk["day0"], "rb") as source, open(path, "wb") as sample:
        for number in range(0, size // piece, stride):
            source.seek(number * piece)
            data = source.read(piece)
            if data != zeroes:
                sample.write(data)


def limit_hash(voltar, sample):
    """BLAKE3 on every core, by b3sum; else what voltar says of itself."""
    if shutil.which("b3sum"):
        command = ["b3sum", "--num-threads", "1", "--no-mmap", sample]
        subprocess.run(command, capture_output=True, check=True)
        started, rounds = time.monotonic(), 4
        for _ in range(rounds):
            running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(CORES)]
            for process in running:
                process.wait()
        return rounds * CORES * os.path.getsize(sample) / (time.monotonic() - started), "b3sum"
    rates = []

    def walk(value, named):
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, named or re.search("hash|blake3", key))
        elif isinstance(value, (int, float)) and named and value > 1e7:
            rates.append(value)

    if os.path.exists(voltar):
        done = subprocess.run([voltar, "bench", "--json"], capture_output=True, text=True)
        with contextlib.suppress(ValueError):
            walk(json.loads(done.stdout), None)
    if not rates:
        raise Failed("b3sum is not installed")
    return max(rates), "voltar bench"


def limits(bench, voltar, with_random):
    """A limit that cannot be measured is missing, and so are the ratios that need it."""
    found, size = {}, bench.disk["size"]

    def attempt(name, action):
        say(f"limit: {name}")
        try:
            found[name] = action()
        except (Failed, OSError, ValueError) as failure:
            found[name] = None
            bench.failures.append(f"limit {name}: {failure}")
            say(f"  not measured: {failure}")

    def write():
        fresh = best(bench, "write", bench.path("fio.img"), size, WRITES)
        again = best(bench, "write", bench.path("fio.img"), size, WRITES)
        return max(fresh, again, key=lambda result: result["rate"])

    def through_loop():
        loop = bench.attach(bench.path("fio.img"))
        try:
            return best(bench, "write", loop, size, WRITES[:2])
        finally:
            bench.detach(loop)

    def codec():
        sample = bench.shm("sample")
        write_sample(bench, sample, min(256 * MIB, size // 4))
        pattern = r"([\d.]+) MB/s,?\s+([\d.]+) MB/s"
        command = ["zstd", "-b1", "-e1", "-i2", f"-B{MIB}", "-T1", sample]
        pack, unpack = per_core(command, pattern)
        return {"compress": pack * 1e6, "decompress": unpack * 1e6}

    def digest():
        rate, by = limit_hash(voltar, bench.shm("sample"))
        return {"rate": rate, "by": by}

    attempt("read", lambda: best(bench, "read", bench.disk["day0"], size, READS))
    if with_random:
        attempt("read random", lambda: best(bench, "read", bench.disk["random"], size, READS))
    attempt("write", write)
    if ROOT:
        attempt("write loop", through_loop)
    attempt("zstd -1", codec)
    attempt("blake3", digest)
    remove(bench.shm("sample"))
    return found


# --- voltar ---------------------------------------------------------------------------------------


def run_voltar(bench, voltar):
    """The life of an archive: full, unchanged, next day, verify, and every way to restore."""
    day0, day1, disk = bench.disk["day0"], bench.disk["day1"], bench.disk
    archive, fast = bench.path("auto.voltar"), bench.shm("auto.voltar")
    level1, target = bench.shm("zstd1.voltar"), bench.path("target.img")

    def backup(source, to, *more):
        before = stored(to) if os.path.exists(to) else 0
        command = [voltar, "backup", f"disk={source}", to, "--json", "--quiet", *more]
        sample = bench.measure(command, into=to if to.startswith(bench.dir) else None)
        return {**sample, "stored_bytes": stored(to) - before}

    def verify(of, *more):
        sample = bench.measure([voltar, "verify", of, "--json", "--quiet", *more])
        return {**sample, "stored_bytes": stored(of)}

    def restore(of, to, *more, compared_with=day1):
        command = [voltar, "restore", f"{of}@latest", to, "--json", "--quiet", *more]
        sample = bench.measure(command, into=bench.dir)
        bench.compare(to, compared_with)
        return sample

    def onto_device(of):
        # Full of other bytes: what must become zero is not zero yet.
        output(["cp", "--sparse=never", disk.get("random") or day0, target])
        loop = bench.attach(target)
        try:
            return restore(of, loop, "--overwrite", "--delta", "off")
        finally:
            bench.detach(loop)

    def in_place():
        output(["cp", "--sparse=never", day0, target])
        sample = restore(archive, target, "--overwrite", "--delta", "auto")
        volume = (sample.get("answer") or {}).get("volumes", [{}])[0]
        if "written_bytes" in volume:
            sample["written_bytes"] = volume["written_bytes"] + volume.get("zeroed_bytes", 0)
        return sample

    step, size = bench.step, disk["size"]
    reading = bench.fio_now("read", day0, size)
    writing = bench.fio_now("write", bench.path("fio.img"), size)

    def reading_archive():
        return bench.fio_now("read", archive, stored(archive) // MIB * MIB)

    def writing_loop():
        loop = bench.attach(bench.path("fio.img"))
        try:
            return bench.fio_now("write loop", loop, size)()
        finally:
            bench.detach(loop)

    if shm_has_room(disk["nonzero_bytes"]):
        step("full, to memory", "voltar auto", lambda: backup(day0, fast), beside=reading)
        remove(fast)
        step("full, to memory", "voltar zstd:1", lambda: backup(day0, level1, "--compression", "zstd:1"))
        if os.path.exists(level1):
            step("verify, in memory", "voltar zstd:1", lambda: verify(level1))
        remove(level1)
    else:
        bench.failures.append(f"{MEMORY} is too small for an archive of this disk")
    if step("full", "voltar auto", lambda: backup(day0, archive)) is None:
        remove(archive)
        return
    step("nothing changed", "voltar auto", lambda: backup(day0, archive), beside=reading)
    if step("next day", "voltar auto", lambda: backup(day1, archive)) is not None:
        step("restore to a file", "voltar auto", lambda: restore(archive, target))
        remove(target)
        step("restore in place", "voltar auto", in_place)
        remove(target)
        if ROOT:
            step("restore to a loop device", "voltar auto", lambda: onto_device(archive))
            remove(target)
        if shm_has_room(stored(archive)):
            # The medium of the target does nothing but be written.
            shutil.copyfile(archive, fast)
            step("restore to a file, from memory", "voltar auto", lambda: restore(fast, target), beside=writing)
            remove(target)
            if ROOT:
                action = lambda: onto_device(fast)  # noqa: E731
                step("restore to a loop device, from memory", "voltar auto", action, beside=writing_loop)
                remove(target)
            remove(fast)
    step("verify, stored bytes", "voltar auto", lambda: verify(archive, "--stored"), beside=reading_archive())
    step("verify", "voltar auto", lambda: verify(archive))
    remove(archive)


def run_random(bench, voltar):
    source, archive = bench.disk["random"], bench.shm("random.voltar")
    if not shm_has_room(bench.disk["size"]):
        bench.failures.append(f"{MEMORY} is too small for an archive of {bench.disk['size'] >> 20} MiB of random data")
        return
    for mode in ("auto", "store"):

        def action(mode=mode):
            command = [voltar, "backup", f"random={source}", archive, "--compression", mode]
            sample = bench.measure([*command, "--json", "--quiet"])
            return {**sample, "stored_bytes": stored(archive)}

        reading = bench.fio_now("read random", source, bench.disk["size"])
        bench.step("full of random data, to memory", f"voltar {mode}", action, beside=reading)
        remove(archive)


def shm_has_room(needed):
    if not os.path.isdir(MEMORY):
        return False
    available = int(re.search(r"MemAvailable:\s+(\d+)", read_text("/proc/meminfo"))[1]) * 1024
    # Room besides for the program that is measured.
    return min(shutil.disk_usage(MEMORY).free, available - 1024 * MIB) > needed * 1.02


# --- the peers ------------------------------------------------------------------------------------


def run_nbd(bench, voltar):
    """A qcow2 image that qemu-nbd serves, read whole; nbdcopy to nowhere, right before and after, is the
    measure."""
    image, sock, archive = bench.path("disk.qcow2"), bench.path("nbd.sock"), bench.shm("nbd.voltar")
    uri, size = f"nbd+unix:///?socket={sock}", bench.disk["size"]
    output(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", bench.disk["day0"], image])

    def copying():
        return size / bench.measure(["nbdcopy", uri, "null:"])["wall_s"]

    def backup():
        command = [voltar, "backup", f"disk={uri}", archive, "--json", "--quiet"]
        return {**bench.measure(command), "stored_bytes": stored(archive)}

    serve = ["qemu-nbd", "--read-only", "--persistent", "--shared=8", "--format=qcow2", f"--socket={sock}", image]
    server = subprocess.Popen(serve)
    try:
        while not os.path.exists(sock):
            if server.poll() is not None:
                raise Failed("qemu-nbd does not serve")
            time.sleep(0.01)
        if shm_has_room(bench.disk["nonzero_bytes"]):
            bench.step("full over NBD, to memory", "voltar auto", backup, beside=copying)
            bench.step("nothing changed over NBD", "voltar auto", backup, beside=copying)
    finally:
        server.kill()
        server.wait()
        remove(image, sock, archive)


def run_zstd(bench, _voltar):
    program, out, restored = f"zstd -1 -T{CORES}", bench.path("disk.zst"), bench.path("restored.img")
    day0 = bench.disk["day0"]

    def pack(to, into):
        sample = bench.measure(["zstd", "-1", f"-T{CORES}", "-q", "-f", day0, "-o", to], into=into)
        return {**sample, "stored_bytes": stored(to)}

    def restore():
        sample = bench.measure(["zstd", "-d", "-q", "-f", out, "-o", restored], into=bench.dir)
        bench.compare(restored, day0)
        return sample

    if shm_has_room(bench.disk["nonzero_bytes"]):
        bench.step("full, to memory", program, lambda: pack(bench.shm("disk.zst"), None))
        remove(bench.shm("disk.zst"))
    if bench.step("full", program, lambda: pack(out, bench.dir)):
        bench.step("restore to a file", program, restore)
        bench.step("verify", program, lambda: bench.measure(["zstd", "-t", "-q", out]))
    remove(out, restored)


def run_qemu(bench, _voltar):
    program, out, restored = "qemu-img convert -c", bench.path("disk.qcow2"), bench.path("restored.img")
    day0 = bench.disk["day0"]
    parallel = ["-T", "none", "-m", str(max(CORES, 8)), "-W"]

    def pack():
        form = ["-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"]
        sample = bench.measure(["qemu-img", "convert", *parallel, *form, day0, out], into=bench.dir)
        return {**sample, "stored_bytes": stored(out)}

    def restore():
        form = ["-t", "none", "-f", "qcow2", "-O", "raw"]
        sample = bench.measure(["qemu-img", "convert", *parallel, *form, out, restored], into=bench.dir)
        bench.compare(restored, day0)
        return sample

    if bench.step("full", program, pack):
        bench.step("restore to a file", program, restore)
    remove(out, restored)


def run_restic(bench, _voltar):
    program, repository, restored = "restic", bench.path("restic"), bench.path("restic-restored")
    os.environ.update(RESTIC_PASSWORD="bench", RESTIC_CACHE_DIR=bench.path("restic-cache"))
    restic = ["restic", "-q", "-r", repository]

    def backup(source):
        before = stored(repository)
        command = [*restic, "backup", "--stdin", "--stdin-filename", "disk.img"]
        sample = bench.measure(command, stdin=source, into=bench.dir)
        return {**sample, "stored_bytes": stored(repository) - before}

    def restore():
        sample = bench.measure([*restic, "restore", "latest", "--target", restored], into=bench.dir)
        bench.compare(os.path.join(restored, "disk.img"), bench.disk["day1"])
        return sample

    output([*restic, "init", "--repository-version", "2"])
    if bench.step("full", program, lambda: backup(bench.disk["day0"])):
        if bench.step("next day", program, lambda: backup(bench.disk["day1"])):
            bench.step("restore to a file", program, restore)
        bench.step("verify", program, lambda: bench.measure([*restic, "check", "--read-data"]))
    remove(repository, restored, bench.path("restic-cache"))


def run_borg(bench, _voltar):
    program, repository, restored = "borg", bench.path("borg"), bench.path("borg-restored")
    os.environ.update(
        BORG_BASE_DIR=bench.path("borg-base"),
        BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK="yes",
        BORG_RELOCATED_REPO_ACCESS_IS_OK="yes",
    )

    def backup(source, name):
        before = stored(repository)
        # Fixed chunks are what borg's documents advise for disks; 64 KiB is voltar's own size.
        form = ["--chunker-params", "fixed,65536", "--compression", "zstd,1", "--stdin-name", "disk.img"]
        command = ["borg", "create", *form, f"{repository}::{name}", "-"]
        sample = bench.measure(command, stdin=source, into=bench.dir)
        return {**sample, "stored_bytes": stored(repository) - before}

    def restore():
        os.makedirs(restored, exist_ok=True)
        sample = bench.measure(["borg", "extract", f"{repository}::day1"], cwd=restored, into=bench.dir)
        bench.compare(os.path.join(restored, "disk.img"), bench.disk["day1"])
        return sample

    output(["borg", "init", "--encryption", "none", repository])
    if bench.step("full", program, lambda: backup(bench.disk["day0"], "day0")):
        if bench.step("next day", program, lambda: backup(bench.disk["day1"], "day1")):
            bench.step("restore to a file", program, restore)
        bench.step("verify", program, lambda: bench.measure(["borg", "check", "--verify-data", repository]))
    remove(repository, restored, bench.path("borg-base"))


PEERS = {
    "zstd": ("zstd", run_zstd),
    "qemu-img": ("qemu-img", run_qemu),
    "restic": ("restic", run_restic),
    "borg": ("borg", run_borg),
}


# --- the ratios the project holds itself to -------------------------------------------------------


def ratios(bench):
    """Rows of (work, what is required, what was measured, verdict)."""
    disk, size = bench.disk, bench.disk["size"]
    rows = []

    def rate(work, program, amount):
        wall = bench.figure(work, program, "wall_s")
        return amount / wall if wall and amount else None

    def limit(name, key="rate"):
        return (bench.limits.get(name) or {}).get(key)

    def row(work, required, value, shown, good):
        verdict = "not measured" if value is None else "held" if good(value) else "MISSED"
        rows.append((work, required, "-" if value is None else shown(value), verdict))

    def beside(work, program, amount, ceiling=None):
        """The median ratio of each run to the limit measured beside it, or to the ceiling if that is lower."""
        samples = bench.rows.get((work, program), {}).get("samples", [])
        against = [(s["wall_s"], s.get("limit")) for s in samples]
        ratios = [amount / wall / min(limit, ceiling or limit) for wall, limit in against if limit and amount]
        return statistics.median(ratios) if ratios else None

    def ratio_row(work, required, against, value, measure=1):
        ratio = value / measure if value and measure else None
        row(work, f">= {required:.2f} x {against}", ratio, lambda r: f"{r:.2f}", lambda r: r >= required)

    ratio = beside("full of random data, to memory", "voltar auto", size)
    ratio_row("full of random data, auto, to memory", 0.85, "fio read", ratio)

    memory = "full, to memory"
    ratio_row("full, auto, to memory", 0.80, "fio read", beside(memory, "voltar auto", size))
    share = bench.figure(memory, "voltar auto", "stored_bytes")
    share = share and share / disk["nonzero_bytes"]
    row("size of that archive", "<= 0.75 x non-zero bytes", share, lambda r: f"{r:.2f}", lambda r: r <= 0.75)

    peer = f"zstd -1 -T{CORES}"
    mine, theirs = rate(memory, "voltar zstd:1", size), rate(memory, peer, size)
    ratio_row("full, zstd:1, to memory", 1.80, peer, mine, theirs)
    mine, theirs = (bench.figure(memory, name, "stored_bytes") for name in ("voltar zstd:1", peer))
    smaller = mine / theirs if mine and theirs else None
    row("size of that archive", f"<= 1.00 x {peer}", smaller, lambda r: f"{r:.3f}", lambda r: r <= 1)

    unchanged = beside("nothing changed", "voltar auto", size)
    ratio_row("incremental by comparing, nothing changed", 0.90, "fio read", unchanged)

    for work in ("full over NBD, to memory", "nothing changed over NBD"):
        ratio_row(work, 0.90, "nbdcopy to nowhere", beside(work, "voltar auto", size))

    # Only what is not zero must be written, so only that counts.
    used = disk["nonzero_bytes_day1"]
    unpack = limit("zstd -1", "decompress")
    for place in ("a file", "a loop device"):
        ratio = beside(f"restore to {place}, from memory", "voltar auto", used, ceiling=unpack)
        against = "min(fio write, decompression)"
        ratio_row(f"restore to {place}, from memory (non-zero bytes)", 0.85, against, ratio)

    touched = bench.figure("restore in place", "voltar auto", "written_bytes")
    touched = touched / disk["changed_bytes_64k"] if touched is not None else None
    row("restore in place: bytes written", "<= 1.00 x changed chunks", touched, lambda r: f"{r:.2f}", lambda r: r <= 1)

    kept = bench.figure("verify, stored bytes", "voltar auto", "stored_bytes")
    checked = beside("verify, stored bytes", "voltar auto", kept)
    ratio_row("verify, stored bytes", 0.90, "fio read", checked)

    digest = limit("blake3")
    both = 1 / (1 / unpack + 1 / digest) if unpack and digest else None
    checked = rate("verify, in memory", "voltar zstd:1", disk["nonzero_bytes"])
    ratio_row("verify, end to end (non-zero bytes)", 0.85, "(decompress + hash)", checked, both)
    cpu, wall = (bench.figure("verify, in memory", "voltar zstd:1", name) for name in ("cpu_s", "wall_s"))
    busy = cpu / wall if cpu and wall else None
    row("cores busy meanwhile", f">= 0.85 x {CORES}", busy, lambda r: f"{r:.2f}", lambda r: r >= 0.85 * CORES)

    peaks = [bench.figure(w, p, "peak_bytes") for w, p in bench.rows if p.startswith("voltar")]
    peak = max((peak for peak in peaks if peak), default=None)
    row("peak memory of all the above", "<= 256 MiB", peak, lambda b: f"{b / MIB:.0f} MiB", lambda b: b <= MEMORY_LIMIT)
    return rows


# --- showing --------------------------------------------------------------------------------------


def machine(folder):
    info = read_text("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.*)", info)
    memory = re.search(r"MemTotal:\s+(\d+)", read_text("/proc/meminfo"))
    place = subprocess.run(["findmnt", "-no", "FSTYPE,SOURCE", "-T", folder], capture_output=True, text=True)
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": CORES,
        "memory_bytes": int(memory[1]) * 1024 if memory else None,
        "kernel": platform.release(),
        "file_system": " on ".join(place.stdout.split()) or "unknown",
        "load_at_start": os.getloadavg()[0],
    }


VERSIONS = {"fio": "--version", "zstd": "--version", "qemu-img": "--version", "restic": "version", "borg": "--version"}


def versions(voltar):
    found = {}
    for program, argument in {voltar: "--version", **VERSIONS}.items():
        with contextlib.suppress(OSError, IndexError):
            said = subprocess.run([program, argument], capture_output=True, text=True).stdout
            number = re.search(r"\d+(\.\d+)+", said)
            found[os.path.basename(program)] = number[0] if number else said.splitlines()[0]
    return found


def table(head, rows):
    widths = [max(len(str(row[at])) for row in [head, *rows]) for at in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(str(c).ljust(w) for c, w in zip(line, widths)) + " |" for line in lines)


ORDER = (
    "full of random data, to memory", "full, to memory", "full", "nothing changed", "next day",
    "restore to a file", "restore to a file, from memory", "restore in place",
    "restore to a loop device", "restore to a loop device, from memory",
    "full over NBD, to memory", "nothing changed over NBD",
    "verify, in memory", "verify, stored bytes", "verify",
)  # fmt: skip


def results_table(bench, missing):
    rows = []
    for work, program in sorted(bench.rows, key=lambda key: ORDER.index(key[0])):
        failed = bench.rows[(work, program)].get("failed")
        if failed:
            rows.append((work, program, "failed", "see", "below", ""))
            continue
        wall, cpu, peak, kept = (
            bench.figure(work, program, name) for name in ("wall_s", "cpu_s", "peak_bytes", "stored_bytes")
        )
        kept = f"{kept / MIB:.0f}" if kept is not None and not work.startswith("verify") else "-"
        rows.append((work, program, f"{wall:.2f}", f"{cpu:.2f}", f"{peak / MIB:.0f}", kept))
    rows += [("all", program, "missing", "-", "-", "-") for program in missing]
    return table(("work", "program", "wall s", "CPU s", "peak MiB", "stored MiB"), rows)


def limits_table(bench):
    rows = []
    for name, value in bench.limits.items():
        if value is None:
            rows.append((name, "not measured", ""))
        elif name == "zstd -1":
            for part in ("compress", "decompress"):
                rows.append((f"{name}, {part}, all cores", f"{value[part] / MIB:.0f}", "1 MiB blocks, in memory"))
        elif name == "blake3":
            rows.append(("blake3, all cores", f"{value['rate'] / MIB:.0f}", value["by"]))
        else:
            rows.append((f"fio {name}", f"{value['rate'] / MIB:.0f}", value["setting"]))
    for (work, program), row in bench.rows.items():
        beside = [sample["limit"] for sample in row["samples"] if sample.get("limit")]
        if beside:
            rows.append((f"beside: {work}, {program}", f"{statistics.median(beside) / MIB:.0f}", ""))
    return table(("limit", "MiB/s", "how"), rows)


def report(bench, held, about, missing, runs):
    disk = bench.disk
    memory = f"{about['memory_bytes'] / (1 << 30):.0f} GiB" if about["memory_bytes"] else "?"
    print(f"\nMachine: {about['cpu']}, {CORES} cores, {memory}, Linux {about['kernel']}, {about['file_system']}.")
    print(
        f"Disk: {disk['size'] / (1 << 30):g} GiB, {disk['nonzero_bytes'] / MIB:.0f} MiB of it not zero; next day "
        f"{disk['changed_bytes_4k'] / MIB:.0f} MiB changed in 4 KiB blocks, "
        f"{disk['changed_bytes_64k'] / MIB:.0f} MiB in 64 KiB chunks."
    )
    print(f"Versions: {', '.join(f'{name} {number}' for name, number in about['versions'].items())}.")
    print(f"Cold caches{'' if ROOT else ' (advised, not dropped: not root)'}; ", end="")
    print("one run each." if runs == 1 else f"median of {runs} runs.")
    if about["load_at_start"] > 0.5:
        print(f"The machine was not idle: load {about['load_at_start']:.1f} at the start.")
    print("\n" + results_table(bench, missing))
    print("\n" + limits_table(bench))
    print("\n" + table(("what is held", "required", "measured", "verdict"), held))
    for failure in bench.failures:
        print(f"\nFAILED {failure}")


# --- the run --------------------------------------------------------------------------------------


def arguments():
    parser = argparse.ArgumentParser(description="voltar and its peers, end to end.")
    parser.add_argument("--size", type=float, default=8, metavar="GiB", help="of the disk (default 8)")
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=" ".join(NAMES))
    parser.add_argument("--skip-peers", action="store_true")
    parser.add_argument("--runs", type=int, default=1, help="the median of so many (default 1)")
    return parser.parse_args()


def main():
    chosen = arguments()
    for caught in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(caught, lambda number, _: sys.exit(128 + number))
    names = chosen.only or [name for name in NAMES if not (chosen.skip_peers and name in PEERS)]
    voltar = os.path.abspath(os.environ.get("VOLTAR") or os.path.join(HERE, "../target/release/voltar"))

    make_disk = [sys.executable, os.path.join(HERE, "disk.py"), "--size", str(chosen.size)]
    make_disk += ["--random"] if "random" in names else []
    disk = json.loads(subprocess.run(make_disk, stdout=subprocess.PIPE, check=True).stdout)
    folder = os.path.dirname(os.path.dirname(disk["day0"]))
    about = {**machine(folder), "versions": versions(voltar)}

    needed = disk["size"] * 3 + disk["nonzero_bytes"] * 2
    if shutil.disk_usage(folder).free < needed:
        sys.exit(f"bench: {folder} needs {needed >> 20} MiB more; VOLTAR_BENCH_DIR names another place")

    missing = [name for name in names if name in PEERS and not shutil.which(PEERS[name][0])]
    with Bench(folder, disk) as bench:
        if not ROOT:
            say("not root: caches are advised away, not dropped, and no device is restored to")
        bench.limits = limits(bench, voltar, "random" in names)
        for number in range(chosen.runs):
            if chosen.runs > 1:
                say(f"run {number + 1} of {chosen.runs}")
            for name in names:
                one_program(bench, voltar, name, missing)
        held = ratios(bench)
        report(bench, held, about, missing, chosen.runs)
        written = os.path.join(folder, time.strftime("results-%Y%m%d-%H%M%S.json"))
        with open(written, "w") as out:
            kept = {"machine": about, "disk": disk, "limits": bench.limits, "runs": chosen.runs, "missing": missing}
            kept.update(rows=list(bench.rows.values()), ratios=held, failures=bench.failures)
            json.dump(kept, out, indent=2)
        print(f"\nWritten to {written}")
        sys.exit(1 if bench.failures else 0)


def one_program(bench, voltar, name, missing):
    if name in missing:
        say(f"{name} is not installed (make deps)")
        return
    if name in ("voltar", "random", "nbd") and not os.path.exists(voltar):
        bench.failures.append(f"{name}: no {voltar} (cargo build --release)")
        return
    own = {"voltar": run_voltar, "random": run_random, "nbd": run_nbd}
    action = own.get(name) or PEERS[name][1]
    try:
        action(bench, voltar)
    except (Failed, OSError) as failure:
        bench.failures.append(f"{name}: {failure}")
        say(f"FAILED {name}: {failure}")


main()
