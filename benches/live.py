#!/usr/bin/env python3
"""What a backup of a running VM costs its guest. `make bench-live`.

    benches/live.py [--size MiB] [--seconds N]

A Linux in the test guest (tests/guest) writes to a qcow2 disk with fio: as fast as it can, and at a fixed rate, half
of that. Each alone for N seconds, then while voltar makes a full backup of the disk, as long as that takes. Prints
the guest's rates and latencies, the ratios that the project holds itself to, and what voltar says of its own
holding back. The guest is emulated and shares the processors with voltar: all of it is slower than with hardware
virtualization, the ratios included. $VOLTAR names the binary, $VOLTAR_BENCH_DIR the place for the files.
"""

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
MIB = 1 << 20
SHARE_MIN = 0.7


def make_disk(folder, size):
    """A qcow2 image of `size` bytes, all of it data that does not compress."""
    raw, image = os.path.join(folder, "disk.raw"), os.path.join(folder, "disk.qcow2")
    with open(raw, "wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
    os.remove(raw)
    return image


class Guest:
    """The guest at work."""

    def __init__(self, folder, image):
        self.monitor, self.control = (os.path.join(folder, name) for name in ("qmp", "control"))
        run = os.path.join(HERE, "..", "tests", "guest", "run.sh")
        command = [run, "-t", "3600", "-p", os.path.join(HERE, "live-guest.sh"), "-Q", image]
        command += ["-q", self.monitor, "-c", self.control, "bash live-guest.sh"]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def say(self, word):
        """Says a word to the script."""
        with socket.socket(socket.AF_UNIX) as channel:
            channel.connect(self.control)
            channel.sendall(f"{word}\n".encode())
            # What the guest has not read by then would be lost.
            time.sleep(1)

    def next(self):
        """What the script tells next."""
        for line in self.child.stdout:
            if line.startswith("{"):
                return json.loads(line)
            print(line, end="", file=sys.stderr)
        sys.exit(f"live: the guest ended too soon: {self.child.wait()}")

    def close(self):
        self.child.terminate()
        self.child.wait()


def back_up(voltar, guest, archive):
    """A full backup of the disk: what voltar tells of it."""
    source = f"qemu:{guest.monitor}/D0"
    made = subprocess.run([voltar, "backup", source, archive, "--json"], stdout=subprocess.PIPE)
    if made.returncode != 0:
        sys.exit(f"live: the backup failed: {made.returncode}")
    report = json.loads(made.stdout)
    subprocess.run([voltar, "verify", archive, "--quiet"], check=True)
    os.remove(archive)
    return report


def measure(voltar, folder, size, seconds):
    rows, reports = {}, {}
    guest = Guest(folder, make_disk(folder, size))
    try:
        while len(rows) < 4:
            told = guest.next()
            if "up" in told:
                guest.say(seconds)
            elif "loaded" in told:
                time.sleep(2)
                reports[told["loaded"]] = back_up(voltar, guest, os.path.join(folder, "a.voltar"))
                guest.say("enough")
            else:
                print(f"live: {told}", file=sys.stderr)
                rows[told["name"]] = told
    finally:
        guest.close()
    return rows, reports


def show(rows, reports):
    print(f"{'load':14} {'MiB/s':>8} {'share':>7} {'mean ms':>9} {'p99 ms':>9} {'worst ms':>9}")
    good = True
    for name, row in rows.items():
        load = name.split()[0]
        share = row["bytes_per_s"] / rows[f"{load} idle"]["bytes_per_s"]
        shown = "" if name.endswith("idle") else f"{share:.2f}"
        figures = (row["mean_ms"], row["p99_ms"], row["max_ms"])
        print(f"{name:14} {row['bytes_per_s'] / MIB:8.2f} {shown:>7}", *(f"{ms:9.1f}" for ms in figures))
        if row["error"] != 0:
            print(f"live: a write of the guest failed: {name}: {row['error']}")
            good = False
        if name == "fixed beside" and share < SHARE_MIN:
            print(f"live: a guest with a fixed load keeps {share:.2f} of its rate, under {SHARE_MIN}")
    for name, report in reports.items():
        volume, latency = report["volumes"][-1], report["latency"]
        rate = volume["read_bytes"] / report["elapsed_s"] / MIB
        print(f"backup, {name}: {rate:.1f} MiB/s, {report['elapsed_s']:.1f} s, latency: {latency}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=2048, metavar="MiB")
    parser.add_argument("--seconds", type=int, default=30)
    options = parser.parse_args()
    voltar = os.environ.get("VOLTAR", os.path.join(HERE, "..", "target", "release", "voltar"))
    base = os.environ.get("VOLTAR_BENCH_DIR", os.path.join(os.environ.get("TMPDIR", "/var/tmp"), "voltar-bench"))
    os.makedirs(base, exist_ok=True)
    folder = tempfile.mkdtemp(prefix="live.", dir=base)
    try:
        rows, reports = measure(os.path.realpath(voltar), folder, options.size * MIB, options.seconds)
    finally:
        shutil.rmtree(folder)
    sys.exit(0 if show(rows, reports) else 1)


if __name__ == "__main__":
    main()
