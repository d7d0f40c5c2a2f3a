"""The proof `faults`: whatever fails, a command gives the right result or a clear error, and the next run is right.

Each command first runs under strace without a fault, which tells its system calls. Then it runs again and again from
the same state, and each time one call fails, or the process is killed there, or what a read of the cache gives is
changed, or no file may grow beyond a size. With root, blobs of the cache rot on a disk of their own, too.

Allowed is the result of a run without faults, to the byte; or an error with a code of docs/errors.md, and outputs that
are whole or as before. A run without faults after that must give the right result and leave no temporary file.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from scripts.proofs.bench import TEMPORARY, Bench, Snapshot, is_whole
from scripts.proofs.cases import CASES, Case
from scripts.proofs.disk import can_mount
from scripts.proofs.warm import ROOT, Call, Said

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
    "network": ("connect", "sendto", "recvfrom"),
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
_STICKY = ("EIO", "ENOSPC", "EACCES", "ENOLCK")  # as of a full or broken disk: all later calls fail, too
_ALL = ",".join(f"?{name}" for names in CLASSES.values() for name in names)
_CLASS_OF = {name: kind for kind, names in CLASSES.items() for name in names}
_CACHE_BLOB = "/cache/oci/blobs/sha256/"
_ERROR_EXITS = range(2, 8)
_SHOWN = 3  # violations of one sort in a case; others are only counted


@dataclass(frozen=True)
class Fault:
    """What goes wrong: `read:error=EIO:when=3` as strace has it, `limit=BYTES` of a file, or `rot=NUMBER` of a blob."""

    kind: str
    text: str

    @property
    def trace(self) -> list[str] | None:
        if self.text.startswith(("limit=", "rot=")):
            return None
        return ["-e", f"trace={self.text.partition(':')[0]}", "-e", f"inject={self.text}"]

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
        if self.fault.trace is not None:
            yield f"  strace -f {' '.join(self.fault.trace)}"
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
        place = f"{self.bench.place}/"
        return any(path.startswith(place) and not path.startswith(f"{place}said/log") for path in call.paths)

    # -- faults

    def faults(self, rounds: int, seed: int) -> Iterator[Fault]:
        """Choose up to `rounds` faults of each kind; the same for the same seed."""
        for kind in CLASSES:
            chance = random.Random(f"{seed}/{self.case.name}/{kind}")
            some = [one for one in self.calls if _CLASS_OF[one.name] == kind]
            choices = [(one, error) for one in some for error in ERRORS[kind]]
            for call, error in _sample(choices, rounds, chance):
                more = "+" if error in _STICKY and chance.random() < 0.25 else ""
                yield Fault(kind, f"{call.name}:error={error}:when={call.number}{more}")
        chance = random.Random(f"{seed}/{self.case.name}/kill")
        for call in _sample(self.calls, 2 * rounds, chance):
            yield Fault("kill", f"{call.name}:signal=KILL:when={call.number}")
        for call in _sample([one for one in self.calls if _is_cache_read(one)], rounds, chance):
            at = "@arg2=5A5A5A5A5A5A5A5A"
            yield Fault("flip", f"{call.name}:poke_exit={at}:when={call.number}")
        largest = max((path.stat().st_size for path in self.bench.place.glob("in/*.tar")), default=300_000)
        for _ in range(rounds):
            yield Fault("limit", f"limit={4096 + int(largest * chance.random())}")

    def rots(self) -> Iterator[Fault]:
        """Let each blob of the cache rot in turn; the workspace has a disk."""
        self.bench.restore()
        for number in range(len(self.bench.blobs())):
            yield Fault("rot", f"rot={number}")

    # -- judging

    def judge(self, fault: Fault, tally: Tally) -> Said:
        """Run with a fault and without one, and count what came of it."""
        bench, case = self.bench, self.case
        bench.restore()
        if fault.text.startswith("rot="):
            assert bench.disk is not None
            bench.disk.rot(bench.blobs()[int(fault.text.removeprefix("rot="))])
        said = bench.run(*case.command, trace=fault.trace, file_bytes=fault.limit)
        hits = [one for one in said.calls if one.is_injected]
        if fault.trace is not None and not fault.is_kill and not any(map(self._is_ours, hits)):
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
            wrong = self._wrong_after(said)
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
        found = self.bench.results()
        temporaries = self.bench.temporaries()
        if said.exit == self.case.exit and not said.code:
            if said.stdout != self._stdout:
                return "ends well and prints something else", f"{text}expected:\n{self._stdout}"
            different = _differences(found, self._done, self.case.loose)
            if different:
                return "ends well with wrong outputs", f"{text}{different}"
            for check in self.case.checks:
                checked = self.bench.run(*check)
                if checked.exit != 0:
                    return "ends well with an output that is of no use", f"{' '.join(check)}: {checked.stderr}"
        elif not fault.is_kill:
            if said.exit == 1 and self.case.may_say_no:
                return None
            if said.exit not in _ERROR_EXITS or not said.code:
                return "neither a right result nor a clear error", text
            if said.code not in self._documented:
                return f"error {said.code} is not in docs/errors.md", text
        torn = self._torn(found)
        if torn:
            return "an output is neither as before nor whole", f"{text}{torn}"
        if temporaries and not fault.is_kill and not _fails_to_remove(hits):
            left = [one for one in temporaries if "/.detlayer/" not in one]  # a part of a blob, to be resumed
            if left:
                return "leaves temporary files", f"{text}{left}"
        return None

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
            is_seal = path.endswith(("/index.json", "/current/link")) or path == "out/app.json"
            if is_seal and content == self._done.get(path) != self._before.get(path):
                lost = [one for one in self._done if one not in found and _belongs(one, path)]
                torn += [f"{path} is there, and {one} is not" for one in lost]
        return torn

    def _wrong_after(self, faulty: Said) -> tuple[str, str] | None:
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
        temporaries = self.bench.temporaries()
        if temporaries:
            return "temporary files stay", f"{text}{temporaries}"
        return self._wrong_cache()

    def _wrong_cache(self) -> tuple[str, str] | None:
        wrong = self.bench.wrong_blobs()
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


def _fails_to_remove(hits: Sequence[Call]) -> bool:
    return any(one.name.startswith(("unlink", "rmdir")) for one in hits)


def _is_cache_read(call: Call) -> bool:
    return call.name in ("read", "pread64") and call.result > 0 and any(_CACHE_BLOB in path for path in call.paths)


def _sample(items: Sequence[_T], count: int, chance: random.Random) -> list[_T]:
    return list(items) if count <= 0 or len(items) <= count else chance.sample(list(items), count)


# -- all cases


def run_case(
    case: Case,
    place: Path,
    *,
    rounds: int,
    seed: int,
    rots: bool = False,
    show: Callable[[Fault, Said], None] | None = None,
    only: str = "",
) -> dict[str, Tally]:
    """Try the faults of a case, or one of them; gives a tally for each kind."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    with Bench(place, on_disk=rots) as bench:
        sweep = Sweep(case, bench)
        if only:
            name = only.partition(":")[0]
            kind = "kill" if "signal=" in only else _CLASS_OF.get(name, name.partition("=")[0])
            faults: Iterator[Fault] = iter([Fault(kind, only)])
        else:
            faults = sweep.rots() if rots else sweep.faults(rounds, seed)
        for fault in faults:
            said = sweep.judge(fault, tallies[fault.kind])
            if show is not None:
                show(fault, said)
    return tallies


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/prove faults", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=30, help="faults of each kind for each command; 0: all [30]")
    parser.add_argument("--seed", type=int, default=1, help="chooses among faults [1]")
    parser.add_argument(
        "--only", action="append", default=[], metavar="COMMAND", help="a command, or how its name begins"
    )
    parser.add_argument("--fault", default="", help="one fault, as a violation names it; needs --only")
    parser.add_argument("--workers", type=int, default=2, help="commands at a time [2]")
    parser.add_argument("--list", action="store_true", help="list the commands")
    options = parser.parse_args(arguments)
    cases = [one for one in CASES if not options.only or one.name.startswith(tuple(options.only))]
    if options.fault:
        cases = [one for one in cases if one.name in options.only]
    if options.list or not cases:
        for case in CASES:
            print(f"{case.name:22} detlayer {' '.join(case.command)}")
        return 0 if options.list else 2
    started = time.monotonic()
    printing = threading.Lock()
    all_of: list[Violation] = []
    total = 0
    with tempfile.TemporaryDirectory(prefix="detlayer-faults-") as name:
        home = Path(name)
        mounts = can_mount(home / "disk")
        if not mounts:
            print("this machine mounts no disks for us: blobs rot only in what reads of them give", file=sys.stderr)
        jobs = [(case, False) for case in cases if not options.fault.startswith("rot=")]
        jobs += [(case, True) for case in cases if case.uses_blobs and mounts and "=" in (options.fault or "=")]
        if options.fault:
            jobs = [(case, rots) for case, rots in jobs if rots == options.fault.startswith("rot=")]

        def show(fault: Fault, said: Said) -> None:
            if options.fault:
                for call in said.calls:
                    if call.is_injected:
                        print(call.text)
                print(f"exit {said.exit}\n{said.stdout}{said.stderr}", end="")

        def work(job: tuple[Case, bool]) -> None:
            nonlocal total
            case, rots = job
            place = home / (case.name + ("-rot" if rots else ""))
            found = run_case(
                case, place, rounds=options.rounds, seed=options.seed, rots=rots, show=show, only=options.fault
            )
            with printing:
                for kind, tally in found.items():
                    total += tally.injected
                    errors = ", ".join(f"{code} {count}" for code, count in tally.errors.most_common(4))
                    print(
                        f"{case.name:22} {kind:8} {tally.injected:5} faults: {tally.right} right, "
                        f"{tally.killed} killed, {sum(tally.errors.values())} errors"
                        + (f" ({errors})" if errors else "")
                        + (f", {tally.missed} missed" if tally.missed else "")
                        + (f", {len(tally.violations)} VIOLATIONS" if tally.violations else ""),
                        flush=True,
                    )
                    all_of.extend(tally.violations)

        with ThreadPoolExecutor(options.workers) as pool:
            list(pool.map(work, jobs))
    alike: dict[tuple[str, str], list[Violation]] = defaultdict(list)
    for one in all_of:
        alike[one.what, one.case].append(one)
    for some in alike.values():
        for violation in some[:_SHOWN]:
            print()
            print("\n".join(violation.lines()))
        if len(some) > _SHOWN:
            print(f"  and {len(some) - _SHOWN} more like these: {', '.join(one.fault.text for one in some[_SHOWN:])}")
    print(f"\n{total:,} faults, {len(all_of)} violations, in {time.monotonic() - started:.0f} s")
    return 1 if all_of else 0
