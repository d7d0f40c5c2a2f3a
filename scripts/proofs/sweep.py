"""Put faults into one command, one at a time, and judge what comes of each (see `faults`)."""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from scripts.proofs.bench import TEMPORARY, Bench, Snapshot, is_whole
from scripts.proofs.cases import Case
from scripts.proofs.warm import ROOT, Call, Said, Warm

_T = TypeVar("_T")
CLASSES = {
    "read": ("read", "pread64", "readv", "preadv2"),
    "stat": ("stat", "lstat", "fstat", "newfstatat", "statx", "access", "faccessat", "faccessat2"),
    "link": ("readlink", "readlinkat"),
    "open": ("open", "openat"),
    "write": ("write", "pwrite64", "writev", "pwritev2", "copy_file_range", "sendfile"),
    "name": ("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat"),
    "sync": ("fsync", "fdatasync"),
    "list": ("getdents64",),
    "lock": ("flock", "fcntl"),
    "size": ("ftruncate", "fallocate"),
    "values": ("utimensat", "fchmod", "fchmodat", "statfs", "fstatfs"),
    "network": ("connect", "recvfrom"),  # a send that fails alone is no reset: httpcore then waits for an answer
}
ERRORS = {
    "read": ("EIO", "ESTALE", "EINTR"),
    "stat": ("EIO", "ESTALE", "EACCES"),
    "link": ("EIO", "EACCES"),
    "open": ("EIO", "ESTALE", "EACCES", "EMFILE", "EINTR"),
    "write": ("EIO", "ENOSPC", "EDQUOT"),
    "name": ("EIO", "EACCES", "ENOSPC"),
    "sync": ("EIO", "ENOSPC"),
    "list": ("EIO", "ESTALE"),
    "lock": ("ENOLCK", "EIO", "EINTR"),
    "size": ("EIO", "ENOSPC"),
    "values": ("EIO", "EACCES"),
    "network": ("ECONNRESET", "ETIMEDOUT"),
}
# As of a broken disk or a server that is gone: all later calls fail, too. Not so those that print and that import.
_STICKY = {"sync": ("EIO", "ENOSPC"), "name": ("EIO", "ENOSPC", "EACCES"), "list": ("EIO",), "read": ("EIO",)}
_ALL = ",".join(f"?{name}" for names in CLASSES.values() for name in names)
_CLASS_OF = {name: kind for kind, names in CLASSES.items() for name in names}
_CACHE_BLOB = "/cache/oci/blobs/sha256/"
_ERROR_EXITS = range(2, 8)


@dataclass(frozen=True)
class Fault:
    """What goes wrong: `read:error=EIO:when=3` as strace has it, `limit=BYTES` of a file, or `rot=NUMBER` of a blob.

    With ` of PATH` behind it, only calls that are about this file count.
    """

    kind: str
    text: str

    def trace(self, place: Path) -> list[str] | None:
        """Give the options of strace."""
        if self.text.startswith(("limit=", "rot=")):
            return None
        inject, _, path = self.text.partition(" of ")
        only = ["-P", str(place / path)] if path else []
        return [*only, "-e", f"trace={inject.partition(':')[0]}", "-e", f"inject={inject}"]

    @property
    def is_rot(self) -> bool:
        """Tell whether only a blob of the cache is damaged, which costs time and nothing else."""
        return self.kind in ("rot", "flip", "unreadable")

    @property
    def limit(self) -> int | None:
        return int(self.text.removeprefix("limit=")) if self.text.startswith("limit=") else None

    @property
    def is_kill(self) -> bool:
        return "signal=KILL" in self.text


@dataclass(frozen=True)
class Violation:
    """What a fault led to that may never be."""

    case: str
    fault: Fault
    hit: str
    what: str
    detail: str

    def lines(self) -> Iterator[str]:
        yield f"VIOLATION {self.case}: {self.what}"
        yield f"  fault: {self.fault.text}" + (f" in {self.hit}" if self.hit else "")
        options = self.fault.trace(Path())
        if options is not None:
            yield f"  strace -f {' '.join(options)}"
        yield from (f"  | {line}" for line in self.detail.splitlines()[:12])
        yield f"  repeat: scripts/prove faults --only {self.case} --fault '{self.fault.text}'"


@dataclass
class Tally:
    """What came of the faults of a kind in a case."""

    right: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    missed: int = 0  # the call did not come, or belongs to no file of ours
    violations: list[Violation] = field(default_factory=list)

    @property
    def injected(self) -> int:
        return self.right + sum(self.errors.values()) + self.killed + len(self.violations)


class Sweep:
    """One case in a workspace, with the results that a run without faults gives."""

    def __init__(self, case: Case, bench: Bench) -> None:
        self.case = case
        self.bench = bench
        self._after = case.after or (case.command,)
        self._documented = set(re.findall(r"`([\w-]+)`", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")))
        case.prepare(bench)
        bench.capture()
        bench.restore()
        bench.capture()  # files that had to be written again have the stat records that they keep from now on
        self._before = bench.results()
        said = bench.run(*case.command)
        if said.exit != case.exit or bench.temporaries():
            raise RuntimeError(f"{case.name} fails without a fault: exit {said.exit}\n{said.stdout}{said.stderr}")
        self._stdout = said.stdout
        self._done = bench.results()
        self._expected = [bench.run(*command) for command in self._after]
        self._settled = bench.results()
        if any(one.exit not in (0, case.exit) for one in self._expected):
            raise RuntimeError(f"{case.name} can't be run again: {self._expected}")
        bench.restore()
        self.calls = [
            one for one in bench.run(*case.command, trace=["-e", f"trace={_ALL}"]).calls if self._is_ours(one)
        ]

    def _is_ours(self, call: Call) -> bool:
        if call.name == "fcntl" and "SETLK" not in call.text:
            return False
        if _CLASS_OF.get(call.name) == "network":
            return call.is_network
        return any(map(self.bench.is_ours, call.paths))

    def _is_fair(self, hits: Sequence[Call]) -> bool:
        """Tell whether nothing was hit, in other threads, that hides what comes of the fault: imports, what is said."""
        hidden = (str(self.bench.stderr), ".pyc", ".so", "/ld.so.cache")
        return all(
            self.bench.is_ours(path) or not path.endswith(hidden) for call in hits for path in call.paths
        ) and all(self._is_ours(call) for call in hits if call.name == "fcntl")

    # -- faults

    def faults(self, damage: str, rounds: int, seed: int) -> Iterator[Fault]:
        """Choose up to `rounds` faults of each kind; the same for the same seed."""
        if damage == "rot":
            self.bench.restore()
            yield from (Fault("rot", f"rot={number}") for number in range(len(self.bench.blobs())))
            return
        chance = random.Random(f"{seed}/{self.case.name}/reads")
        yield from _sample(list(self._blob_faults()), 2 * rounds, chance)
        if damage == "reads":
            return
        for kind in CLASSES:
            chance = random.Random(f"{seed}/{self.case.name}/{kind}")
            some = [one for one in self.calls if _CLASS_OF[one.name] == kind]
            choices = [(one, error) for one in some for error in ERRORS[kind] if _is_real(one, error)]
            for call, error in _sample(choices, rounds, chance):
                more = "+" if kind in _STICKY and error in _STICKY[kind] and chance.random() < 0.25 else ""
                yield Fault(kind, f"{call.name}:error={error}:when={call.number}{more}")
        chance = random.Random(f"{seed}/{self.case.name}/kill")
        for call in _sample(self.calls, 2 * rounds, chance):
            yield Fault("kill", f"{call.name}:signal=KILL:when={call.number}")
        largest = max((path.stat().st_size for path in self.bench.place.glob("in/*.tar")), default=300_000)
        for _ in range(rounds):
            yield Fault("limit", f"limit={4096 + int(largest * chance.random())}")

    def _blob_faults(self) -> Iterator[Fault]:
        """Change what each read of a blob of the cache gives, or let all fail."""
        counts: Counter[tuple[int, str, str]] = Counter()
        place = f"{self.bench.place}/"
        for call in self.calls:
            for path in call.paths:
                if _CACHE_BLOB not in path or not path.startswith(place):
                    continue
                counts[call.thread, call.name, path] += 1
                number = counts[call.thread, call.name, path]
                name = path.removeprefix(place)
                if call.name in ("read", "pread64") and call.result > 0:
                    yield Fault("flip", f"{call.name}:poke_exit=@arg2=5A5A5A5A5A5A5A5A:when={number} of {name}")
                if call.name in ("read", "pread64", "openat", "copy_file_range", "sendfile"):
                    yield Fault("unreadable", f"{call.name}:error=EIO:when={number}+ of {name}")

    # -- judging

    def judge(self, fault: Fault, tally: Tally) -> Said:
        """Run with a fault and without one, and count what came of it."""
        bench, case = self.bench, self.case
        bench.restore()
        if fault.text.startswith("rot="):
            assert bench.disk is not None
            bench.disk.rot(bench.blobs()[int(fault.text.removeprefix("rot="))])
        trace = fault.trace(bench.place)
        said = bench.run(*case.command, trace=trace, file_bytes=fault.limit)
        hits = [one for one in said.calls if one.is_injected]
        if trace is not None and not fault.is_kill and not (any(map(self._is_ours, hits)) and self._is_fair(hits)):
            tally.missed += 1
            return said
        if fault.is_kill and said.exit != -9:
            tally.missed += 1
            return said
        if fault.is_kill:
            hits = list(said.calls[-1:])
        hit = "; ".join(one.text.replace(f"{bench.place}/", "") for one in hits[:3])
        wrong = self._wrong(said, fault, hits)
        outcome = "killed" if fault.is_kill else said.code or ("no" if said.exit else "right")
        if wrong is None:
            wrong = self._wrong_after(said, fault, hits)
        if wrong is not None:
            tally.violations.append(Violation(case.name, fault, hit, *wrong))
        elif outcome == "killed":
            tally.killed += 1
        elif outcome == "right" or said.exit == case.exit:
            tally.right += 1
        else:
            tally.errors[outcome] += 1
        return said

    def _wrong(self, said: Said, fault: Fault, hits: Sequence[Call]) -> tuple[str, str] | None:
        """Judge the run with the fault."""
        text = f"exit {said.exit}\n{said.stdout}{said.stderr}"
        if said.is_hung:
            return "it hangs", text
        if "Traceback" in said.stderr or said.exit == 70:
            return "internal error", text + self._report()
        if said.left_running and not fault.is_kill:
            return "leaves processes running", f"{text}{said.left_running}"
        found = self.bench.results()
        if said.exit == self.case.exit and not said.code:
            if not self.case.claim and not self.case.loose and said.stdout != self._stdout:
                return "ends well and prints something else", f"{text}expected:\n{self._stdout}"
            if self.case.claim and not self._is_true(said.stdout):
                return "ends well and prints what is false", f"{text}{len(self.bench.blobs())} blobs are in the cache"
            different = _differences(found, self._done, self.case.loose)
            if different:
                return "ends well with wrong outputs", f"{text}{different}"
            if fault.kind == "rot" and said.stderr.count("warning[") > 1:
                return "more than one warning", text
            for check in self.case.checks:
                checked = self.bench.run(*check)
                if checked.exit != 0:
                    return "ends well with an output that is of no use", f"{' '.join(check)}: {checked.stderr}"
        elif not fault.is_kill:
            if said.exit == 1 and self.case.may_say_no:
                return None
            # strace damages what each thread reads, so also the blob that is made again: that is an error in the end.
            is_lost_again = fault.kind != "rot" and said.code in ("cache-corrupt", "cache-vanished")
            if fault.is_rot and not is_lost_again:
                return "a damaged blob of the cache is an error", text
            if said.exit not in _ERROR_EXITS or not said.code:
                return "neither a right result nor a clear error", text
            if said.code not in self._documented:
                return f"error {said.code} is not in docs/errors.md", text
        torn = self._torn(found)
        if torn:
            return "an output is neither as before nor whole", f"{text}{torn}"
        if not fault.is_kill and not _fails_to_remove(hits):
            # What a pull has of a blob stays, to be resumed.
            left = [one for one in self.bench.temporaries() if "/.detlayer/" not in one]
            if left:
                return "leaves temporary files", f"{text}{left}"
        return None

    def _is_true(self, stdout: str) -> bool:
        """Tell whether the cache has as many blobs as is printed."""
        found = re.search(self.case.claim, stdout)
        return found is not None and int(found[1]) == len(self.bench.blobs())

    def _torn(self, found: Snapshot) -> list[str]:
        torn = []
        for path, content in found.items():
            known = (self._before.get(path), self._done.get(path))
            if content in known or path == self.case.loose or TEMPORARY.search(path):
                continue
            if not is_whole(path, content, self.bench.place):
                torn.append(f"{path} is {content[:80]}")
        torn += [f"{path} is gone" for path in self._before if path not in found and path in self._done]
        for path, content in found.items():
            if self._names_others(path) and content == self._done.get(path) != self._before.get(path):
                lost = [one for one in self._done if one not in found and _belongs(one, path)]
                torn += [f"{path} is there, and {one} is not" for one in lost]
        return torn

    def _names_others(self, path: str) -> bool:
        """Tell whether a file names what must be there before it."""
        if path.endswith("/index.json"):
            return b"sha256:" in (self.bench.place / path).read_bytes()
        return path.endswith("/current/link") or path == "out/app.json"

    def _wrong_after(self, faulty: Said, fault: Fault, hits: Sequence[Call]) -> tuple[str, str] | None:
        """Judge the runs after the one with the fault."""
        for command, expected in zip(self._after, self._expected, strict=True):
            said = self.bench.run(*command)
            if (said.exit, said.stdout) == (expected.exit, expected.stdout):
                continue
            if "export" in command and said.exit == 0:
                continue
            again = self.bench.run(*command)
            heals = (again.exit, again.stdout) == (expected.exit, expected.stdout)
            text = f"first: exit {faulty.exit}\n{faulty.stderr}then: exit {said.exit}\n{said.stdout}{said.stderr}"
            return f"the next run is wrong{'' if heals else ', and so is the one after it'}", text + self._report()
        text = f"first: exit {faulty.exit}\n{faulty.stderr}"
        different = _differences(self.bench.results(), self._settled, self.case.loose)
        if different:
            return "the next run leaves wrong outputs", f"{text}{different}"
        # In $TMPDIR what a killed process leaves is the system's to remove.
        is_excused = fault.is_kill or _fails_to_remove(hits)
        left = [one for one in self.bench.temporaries() if not (is_excused and one.startswith("tmp/"))]
        if left:
            return "temporary files stay", f"{text}{left}"
        wrong = self.bench.wrong_blobs() if fault.kind != "rot" else []  # one that nobody used may stay
        return ("the cache keeps a blob that is not what its name says", str(wrong)) if wrong else None

    def _report(self) -> str:
        reports = sorted((self.bench.place / "tmp").glob("detlayer-bug-*"))
        return "\n".join(reports[-1].read_text().splitlines()[-9:]) if reports else ""


def _differences(found: Snapshot, expected: Snapshot, loose: str) -> list[str]:
    paths = sorted((found.keys() | expected.keys()) - {loose})
    return [
        f"{path}: {found.get(path, 'missing')[:80]}, expected {expected.get(path, 'none')[:80]}"
        for path in paths
        if found.get(path) != expected.get(path) and not TEMPORARY.search(path)
    ]


def _belongs(path: str, seal: str) -> bool:
    """Tell whether what is at `path` must be there when `seal` is: it is of the same layout or registry."""
    top = seal.split("/")[:2]
    return seal == "out/app.json" or path.startswith("/".join(top)) or (top[0] == "registry" == path.split()[0])


def _is_real(call: Call, error: str) -> bool:
    """Tell whether a system may give that error to that call."""
    return error != "ENOSPC" or not call.name.startswith(("unlink", "rmdir"))


def _fails_to_remove(hits: Sequence[Call]) -> bool:
    return any(one.name.startswith(("unlink", "rmdir")) for one in hits)


def _sample(items: Sequence[_T], count: int, chance: random.Random) -> list[_T]:
    return list(items) if count <= 0 or len(items) <= count else chance.sample(list(items), count)


def _kind_of(text: str) -> str:
    name = text.partition(":")[0]
    if "signal=" in text:
        return "kill"
    if " of " in text:
        return "flip" if "poke_exit" in text else "unreadable"
    return _CLASS_OF.get(name, name.partition("=")[0])


def run_case(
    case: Case,
    place: Path,
    warm: Warm,
    *,
    rounds: int,
    seed: int,
    damage: str = "all",
    only: str = "",
    show: Callable[[Fault, Said], None] | None = None,
) -> dict[str, Tally]:
    """Try the faults of a case, or only one; gives a tally for each kind.

    `damage` is "all"; or "rot", of blobs of the cache on a disk of its own; or "reads", of blobs of the cache.
    """
    tallies: dict[str, Tally] = defaultdict(Tally)
    with Bench(place, warm, on_disk=damage == "rot") as bench:
        sweep = Sweep(case, bench)
        for fault in [Fault(_kind_of(only), only)] if only else sweep.faults(damage, rounds, seed):
            said = sweep.judge(fault, tallies[fault.kind])
            if show is not None:
                show(fault, said)
    return tallies
