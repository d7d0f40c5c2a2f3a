"""Programs as child processes: our own and others'."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# A process starts with its parent's peak; so a small one stands between pytest and the one that is measured.
_MEASURE = """
import os, sys
child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(child, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
"""

DETLAYER = (sys.executable, "-m", "detlayer")


def run(*command: str | Path, cwd: Path | None = None) -> bytes:
    """Run to the end and return stdout; a failure shows what the program said."""
    done = subprocess.run(command, capture_output=True, check=False, cwd=cwd, stdin=subprocess.DEVNULL)
    said = (done.stdout[-2000:] + done.stderr[-4000:]).decode(errors="replace")
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{said}"
    return done.stdout


@dataclass(frozen=True)
class Packed:
    """What `detlayer pack --json` said."""

    document: dict[str, Any]

    @property
    def digest(self) -> str:
        return str(self.document["digest"])

    def note(self, name: str) -> str:
        return str(self.document["annotations"][f"dev.detlayer.{name}"])


def pack(*arguments: str | Path, command: Sequence[str | Path] = DETLAYER) -> Packed:
    """Run `detlayer pack --json`."""
    return Packed(json.loads(run(*command, "pack", "--json", "--quiet", *arguments)))


def pack_measured(*arguments: str | Path) -> tuple[Packed, int]:
    """Run `detlayer pack --json`; returns its peak memory in bytes too."""
    said, peak_bytes = measured("pack", "--json", "--quiet", *arguments)
    return Packed(json.loads(said)), peak_bytes


def measured(*arguments: str | Path) -> tuple[str, int]:
    """Run detlayer; returns the first line that it printed, and its peak memory in bytes."""
    lines = run(sys.executable, "-c", _MEASURE, *DETLAYER, *arguments).decode().splitlines()
    unit = 1 if sys.platform == "darwin" else 1024
    return lines[0], int(lines[-1]) * unit
