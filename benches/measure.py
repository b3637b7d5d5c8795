#!/usr/bin/env python3
"""Runs one command and reports what the whole process cost: wall, CPU, peak memory.

    python3 -S -I measure.py RESULT.json [--stdin F] [--stdout F] [--stderr F] [--cwd D] [--sync PATH] -- CMD...

It is a program of its own because the kernel carries a parent's peak memory over an exec: whoever
starts the command directly adds its own size to the figure. A bare interpreter is about 10 MB, which
is then the floor of what can be told apart.

`--sync PATH` flushes the file system of PATH afterwards and counts that time as wall time, so that a
program which leaves its output in the page cache has no advantage over one that writes through.
"""

import os
import sys
import time


def options(arguments):
    result, command = arguments[0], arguments[arguments.index("--") + 1 :]
    named = arguments[1 : arguments.index("--")]
    return result, dict(zip(named[::2], named[1::2])), command


def redirections(opts):
    actions = []
    if "--stdin" in opts:
        actions.append((os.POSIX_SPAWN_OPEN, 0, opts["--stdin"], os.O_RDONLY, 0))
    for descriptor, name in ((1, "--stdout"), (2, "--stderr")):
        if name in opts:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            actions.append((os.POSIX_SPAWN_OPEN, descriptor, opts[name], flags, 0o644))
    return actions


def main():
    result, opts, command = options(sys.argv[1:])
    if "--cwd" in opts:
        os.chdir(opts["--cwd"])
    started = time.monotonic()
    try:
        child = os.posix_spawnp(command[0], command, os.environ, file_actions=redirections(opts))
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127)
    _, status, usage = os.wait4(child, 0)
    finished = time.monotonic()
    if "--sync" in opts:
        flush = os.posix_spawnp("sync", ["sync", "-f", opts["--sync"]], os.environ)
        os.waitpid(flush, 0)
    flushed = time.monotonic()
    code = os.waitstatus_to_exitcode(status)
    # Written by hand: importing json would double the floor.
    with open(result, "w") as out:
        out.write(
            f'{{"exit": {code}, "wall_s": {flushed - started:.4f}, "sync_s": {flushed - finished:.4f}, '
            f'"cpu_s": {usage.ru_utime + usage.ru_stime:.4f}, "user_s": {usage.ru_utime:.4f}, '
            f'"system_s": {usage.ru_stime:.4f}, "peak_bytes": {usage.ru_maxrss * 1024}}}\n'
        )
    sys.exit(code if code >= 0 else 128 - code)


main()
