"""What detlayer's own Python costs per entry, as JSON: run by `bench` in a process of its own (TREE RUNS).

`full` is the process's CPU time, user and system, over a whole pass with one job, no compression and output to nowhere:
system calls, hashing (BLAKE3 of contents and key; SHA-256 of the tar, which then is the blob) and Python. From it goes
what a bare loop needs over a plan made beforehand: `calls`, the same system calls in the same order on the same warm
tree (scandir, lstat, open, readv, fstat, close, readlink) into fresh buffers, and `hashing`, what the loop takes longer
when it also hashes as many bytes in place. So `os` and the hashes count with what their bindings cost, and the bare
loop's own steps, about a microsecond, are taken off, too. What remains, `own`, is detlayer's: ordering, filters,
entries, checks, headers, chunking, the hand-over, garbage collection.

`user`, the user time of the full pass less hashing, is an upper bound that needs no plan: of the system calls, only the
kernel's part is taken off. (The kernel divides user from system time by sampling, so that it is the less exact figure.)
"""

from __future__ import annotations

import gc
import json
import os
import stat
import sys
from contextlib import suppress
from hashlib import sha256
from itertools import cycle
from mmap import mmap
from resource import RUSAGE_SELF, getrusage
from statistics import median
from time import process_time_ns
from typing import Any

from blake3 import blake3

from detlayer.layer import writer
from detlayer.layer.bytecode import source_name
from detlayer.layer.chunking import CHUNK_MAX_BYTES, CHUNK_MIN_BYTES
from detlayer.layer.codec import Codec
from detlayer.layer.ports import Bytes
from detlayer.tree import Source, walk

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_HEADER = bytes(512)
_KEY_PART = _HEADER + bytes(32)  # a header and a content's hash

# Name, kind, size, what else is looked at (the source of a .pyc), the plan of a directory.
Plan = list[tuple[bytes, str, int, bytes | None, Any]]


class Nowhere:
    def write(self, data: Bytes, /) -> None:
        return


def make_plan(directory: bytes) -> Plan:
    made: Plan = []
    cached = os.path.basename(directory) == b"__pycache__"
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            made.append((name, "dir", 0, None, make_plan(path)))
        elif stat.S_ISLNK(status.st_mode):
            made.append((name, "symlink", 0, None, None))
        else:
            source = source_name(name, cached)
            made.append((name, "file", status.st_size, b"../" + source if cached and source else source, None))
    return made


class Floor:
    """The bare loop: system calls, and hashing where it is asked for."""

    def __init__(self, hashing: bool) -> None:
        self._hashing = hashing
        self._views = cycle([memoryview(mmap(-1, 2 * CHUNK_MAX_BYTES)) for _ in range(3)])
        self._view = next(self._views)
        self._used = 0
        self._tar = sha256()
        self._key = blake3()
        self._key_parts: list[bytes] = []

    def directory(self, fd: int, plan: Plan) -> None:
        os.fstat(fd)
        with os.scandir(fd) as found:
            for item in found:
                _ = item.name
        for name, kind, size, source, below in plan:
            os.lstat(name, dir_fd=fd)
            if kind == "dir":
                deeper = os.open(name, _DIR, dir_fd=fd)
                self.directory(deeper, below)
                os.close(deeper)
            elif kind == "symlink":
                os.readlink(name, dir_fd=fd)
            self._view[self._used : self._used + 512] = _HEADER
            self._used += 512
            if size:
                self._file(name, fd, size, source)
            self._key_parts.append(_KEY_PART)
            if self._used >= CHUNK_MIN_BYTES:
                self.next_chunk()

    def next_chunk(self) -> None:
        if self._hashing:
            self._tar.update(self._view[: self._used])
            self._key.update(b"".join(self._key_parts))
        self._key_parts.clear()
        self._view, self._used = next(self._views), 0

    def _file(self, name: bytes, fd: int, size: int, source: bytes | None) -> None:
        file = os.open(name, _FILE, dir_fd=fd)
        digest = blake3()
        while size:
            length = min(size, CHUNK_MAX_BYTES)
            piece = self._view[self._used : self._used + length]
            os.readv(file, (piece,))
            if self._hashing:
                digest.update(piece)
            size -= length
            self._used += length
            if size:
                self.next_chunk()
        self._used += -self._used % 512
        if source is not None:
            with suppress(FileNotFoundError):
                os.lstat(source, dir_fd=fd)
        if self._hashing:
            digest.digest()
        os.fstat(file)
        os.close(file)


def run_floor(path: str, plan: Plan, hashing: bool) -> int:
    started = process_time_ns()
    fd = os.open(path, _DIR)
    floor = Floor(hashing)
    floor.directory(fd, plan)
    floor.next_chunk()
    os.close(fd)
    return process_time_ns() - started


def main(path: str, runs: int) -> None:
    plan = make_plan(os.fsencode(path))
    gc.collect()
    gc.freeze()  # the plan is ours, and must not make detlayer's collections longer
    rounds: list[dict[str, int]] = []
    entries = 0
    for _ in range(runs + 1):
        user = getrusage(RUSAGE_SELF).ru_utime
        started = process_time_ns()
        entries = writer.pack(walk([Source(os.fsencode(path))]), Nowhere(), codec=Codec("none"), jobs=1).entries
        full = process_time_ns() - started
        user = getrusage(RUSAGE_SELF).ru_utime - user
        calls = run_floor(path, plan, hashing=False)
        floor = run_floor(path, plan, hashing=True)
        rounds.append({"full": full, "calls": calls, "hashing": floor - calls, "user": int(user * 1e9)})
    us = {name: median(one[name] for one in rounds[1:]) / entries / 1000 for name in rounds[0]}
    us["own"] = us["full"] - us["calls"] - us["hashing"]
    us["user"] -= us["hashing"]
    print(json.dumps({"entries": entries, "us_per_entry": us, "runs_ns": rounds[1:]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
