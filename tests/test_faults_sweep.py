"""A short version of `scripts/prove faults`: system calls fail, processes are killed, and blobs of the cache rot.

The same code, with few faults and a fixed seed. A failure shows the command that repeats it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts.proofs.cases import CASES
from scripts.proofs.disk import can_mount
from scripts.proofs.sweep import Tally, run_case
from scripts.proofs.warm import Warm

from tests.privileges import program

SWEPT = (
    "pack-cold",
    "pack-copied",
    "pack-layout",
    "normalize",
    "build-layout-changed",
    "push",
    "pull",
    "cache-gc",
    "cache-verify",
    "cache-import",
)
ROTTEN = (
    "pack-copied",
    "pack-layout-copied",
    "build-layout-copied",
    "build-archive-copied",
    "build-docker-copied",
    "build-push-copied",
    "cache-export",
)
BY_NAME = {case.name: case for case in CASES}
_SEED = 1


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """A process that has imported detlayer and forks runs."""
    program("strace")
    with Warm(tmp_path_factory.mktemp("warm") / "said") as started:
        yield started


@pytest.mark.parametrize("name", SWEPT)
def test_a_fault_leads_to_the_right_result_or_a_clear_error_and_the_next_run_is_right(
    name: str, warm: Warm, tmp_path: Path
) -> None:
    judge(run_case(BY_NAME[name], tmp_path / name, warm, rounds=1, seed=_SEED))


@pytest.mark.parametrize("name", ROTTEN)
def test_a_damaged_blob_of_the_cache_costs_only_time(name: str, warm: Warm, tmp_path: Path) -> None:
    """The damage is behind the file system, or where nothing can be mounted in what a read gives."""
    damage = "rot" if can_mount(tmp_path / "try") else "reads"
    judge(run_case(BY_NAME[name], tmp_path / name, warm, rounds=2, seed=_SEED, damage=damage))


def judge(tallies: dict[str, Tally]) -> None:
    violations = [line for tally in tallies.values() for one in tally.violations for line in one.lines()]
    assert not violations, "\n".join(violations)
    assert sum(tally.injected for tally in tallies.values()) > 0
