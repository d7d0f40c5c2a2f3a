"""The proof `faults`: whatever fails, a command gives the right result or a clear error, and the next run is right.

Each command first runs under strace without a fault, which tells its system calls. Then it runs again and again from
the same state, and each time one call fails, or the process is killed there, or what a read of the cache gives is
changed, or no file may grow beyond a size. With root, blobs of the cache rot on a disk of their own, too.

Allowed is the result of a run without faults, to the byte; or an error with a code of docs/errors.md, and outputs that
are whole or as before. A run without faults after that must give the right result and leave no temporary file.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from scripts.proofs.cases import CASES, Case
from scripts.proofs.disk import can_mount
from scripts.proofs.sweep import Fault, Violation, run_case
from scripts.proofs.warm import Said, Warm

_SHOWN = 3  # violations of one sort in a case; others are only counted


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
    broken: list[str] = []  # commands that fail without a fault
    total = 0
    with tempfile.TemporaryDirectory(prefix="detlayer-faults-") as name:
        home = Path(name)
        mounts = can_mount(home / "disk")
        if not mounts:
            print("this machine mounts no disks for us: blobs rot only in what reads of them give", file=sys.stderr)
        jobs = [(case, "all") for case in cases] + [(case, "rot") for case in cases if case.uses_blobs and mounts]
        if options.fault:
            wanted = "rot" if options.fault.startswith("rot=") else "all"
            jobs = [(case, damage) for case, damage in jobs if damage == wanted]

        def show(fault: Fault, said: Said) -> None:
            if options.fault:
                for call in said.calls:
                    if call.is_injected:
                        print(call.text)
                print(f"exit {said.exit}\n{said.stdout}{said.stderr}", end="")

        def work(job: tuple[Case, str]) -> None:
            nonlocal total
            case, damage = job
            place = home / f"{case.name}-{damage}"
            try:
                with Warm(home / f"{case.name}-{damage}-said") as warm:
                    found = run_case(
                        case,
                        place,
                        warm,
                        rounds=options.rounds,
                        seed=options.seed,
                        damage=damage,
                        only=options.fault,
                        show=show,
                    )
            except RuntimeError as error:
                broken.append(case.name)
                print(f"{case.name}: {error}", file=sys.stderr, flush=True)
                return
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
    return 1 if all_of or broken else 0
