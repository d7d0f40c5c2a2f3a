"""Run `pack` in a fresh process for a perturbed run: the job comes by stdin, the answer goes to a file.

`run_pack` starts it, so its stdin is trusted.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from detlayer import errors
from detlayer.errors import ConfigError, DetlayerError, TreeError
from detlayer.layer.codec import Codec
from detlayer.layer.entry import Profile
from detlayer.layer.ports import Silence
from detlayer.packing import packer
from detlayer.packing.options import PackOptions
from detlayer.tree import Selection, Source

_START = "from detlayer.verification.pack_process import main; main()"


@dataclass(frozen=True, slots=True)
class PackJob:
    """What to pack, and how names are listed: `""` for the system's order, else an order of `Variation`."""

    sources: tuple[Source, ...]
    profile: Profile
    selection: Selection
    codec: Codec
    jobs: int
    output: str
    order: str = ""
    seed: int = 0

    @property
    def answer(self) -> str:
        """The file for the result."""
        return self.output + ".json"


def run_pack(
    job: PackJob, *, environment: Mapping[str, str], cwd: str, umask: int, prefix: Sequence[str] = ()
) -> list[str]:
    """Pack to `job.output` in a fresh process, and return the warnings of its pack.

    Raises the errors of its pack, and ConfigError for rules that can't be pickled.
    """
    try:
        asked = pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            "rules-not-portable",
            f"a rule of the profile can't be sent to another process: {error}",
            "use a function at the top level of a module",
        ) from error
    # The child imports from the same places, whatever its working directory.
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path if os.path.exists(path or "."))
    done = subprocess.run(
        [*prefix, sys.executable, "-c", _START],
        input=asked,
        env={**environment, "PYTHONPATH": paths},
        cwd=cwd,
        umask=umask,
        capture_output=True,
        check=False,
    )
    try:
        with open(job.answer, encoding="utf-8") as file:
            told = json.load(file)
    except (OSError, ValueError):
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise TreeError(
            "replica-failed",
            f"a perturbed run ended without a result: {said[0]}",
            "check whether memory or disk ran out",
        ) from None
    if "code" in told:
        family = getattr(errors, told["family"], DetlayerError)
        raise family(told["code"], told["message"], told["hint"])
    return [str(warning) for warning in told["warnings"]]


def main() -> None:
    """Run the job from stdin; the answer is the warnings, or an error."""
    job: PackJob = pickle.load(sys.stdin.buffer)
    if job.order:
        _disorder(job.order, job.seed)
    warnings = _Warnings()
    told: dict[str, Any] = {"warnings": warnings.said}
    try:
        packer.pack(
            job.sources,
            job.output,
            options=PackOptions(
                job.codec,
                job.profile,
                job.selection,
                use_ignore_file=False,
                jobs=job.jobs,
                reporter=warnings,
            ),
        )
    except DetlayerError as error:
        told = {"family": type(error).__name__, "code": error.code, "message": error.message, "hint": error.hint}
    with open(job.answer, "w", encoding="utf-8") as file:
        json.dump(told, file)


class _Warnings(Silence):
    """A reporter that collects warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warning(self, code: str, message: str) -> None:
        self.said.append(f"{code}: {message}")


def _disorder(order: str, seed: int) -> None:
    """List names in another order, as another file system may do."""
    scandir, listdir = os.scandir, os.listdir
    chosen = random.Random(seed)

    def arrange(names: list[Any], key: Any) -> list[Any]:
        if order == "shuffled":
            chosen.shuffle(names)
            return names
        return sorted(names, key=key, reverse=order == "descending")

    def disordered_scandir(*path: Any) -> _Scan:
        with scandir(*path) as found:
            return _Scan(arrange(list(found), lambda item: item.name))

    def disordered_listdir(*path: Any) -> list[Any]:
        return arrange(listdir(*path), lambda name: name)

    for name, function in (("scandir", disordered_scandir), ("listdir", disordered_listdir)):
        setattr(os, name, function)


class _Scan:
    """The result of os.scandir: an iterator that has to be closed."""

    def __init__(self, items: list[os.DirEntry[Any]]) -> None:
        self._items: Iterator[os.DirEntry[Any]] = iter(items)

    def __iter__(self) -> Iterator[os.DirEntry[Any]]:
        return self._items

    def __next__(self) -> os.DirEntry[Any]:
        return next(self._items)

    def __enter__(self) -> _Scan:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def close(self) -> None:
        return
