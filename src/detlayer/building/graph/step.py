"""Steps, their results, and the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import msgspec

Texts = Mapping[str, str]
"""Inputs, or the parts of a result, by name."""


class Result(Protocol):
    """What a step makes. Traces keep its texts, and other steps depend on them: digests, never times."""

    def to_texts(self) -> dict[str, str]: ...


ResultT = TypeVar("ResultT", bound=Result)


class Reason(msgspec.Struct, frozen=True):
    """Why a step runs, as data.

    `first`: there is no trace of it. `input`: `what` changed from `before` to `after`. `version`: the step itself did.
    `output`: its output is missing or has changed. `always`: it runs in every build. `outside`: something that it reads
    has changed; `what` names it, `after` says how. `target`: its destination has something else, `before`. `upstream`:
    `what` has to run first.
    """

    kind: Literal["first", "input", "version", "output", "always", "outside", "target", "upstream"]
    what: str = ""
    before: str = ""
    after: str = ""


class Stopped(Exception):
    """The run was ended while a step was under way."""


class Call:
    """One execution of a step: the results of the steps that it needs, and what it reports."""

    def __init__(self, results: Mapping[str, Result], is_stopped: Callable[[], bool]) -> None:
        self._results = results
        self._is_stopped = is_stopped
        self.facts: dict[str, int] = {}
        """Numbers to report, such as bytes. They are not part of the result."""
        self.reasons: list[Reason] = []
        """Reasons that the step itself finds."""

    def result(self, step: Step[ResultT]) -> ResultT:
        """Return the result of a step that this one needs; raises KeyError for any other."""
        return cast(ResultT, self._results[step.name])

    def check(self) -> None:
        """Let a long step end early; raises Stopped once the run is stopped."""
        if self._is_stopped():
            raise Stopped

    def add(self, fact: str, count: int) -> None:
        """Add to a number that is reported."""
        self.facts[fact] = self.facts.get(fact, 0) + count


class Step(msgspec.Struct, Generic[ResultT], frozen=True, eq=False):
    """One step. `needs` names other steps by their role; its inputs are their results and `inputs`.

    `parse` makes a result of its texts; it raises ValueError for others. `reads` names the texts of others
    that are inputs; all are if it is empty. `check` raises where results of others are not acceptable, in every run.
    `is_intact` tells whether what an earlier result names still exists. `settled` replaces the trace of a step whose
    state is outside, such as in a registry: it returns the result if nothing has to be done, else the reasons. Steps
    that `is_free` marks only read and are cheap: dry runs execute them. Without `keeps` a step runs every time.
    """

    name: str
    kind: str
    version: str
    run: Callable[[Call], ResultT]
    parse: Callable[[Texts], ResultT]
    inputs: Texts = {}
    needs: Mapping[str, str] = {}
    reads: frozenset[str] = frozenset()
    check: Callable[[Call], None] | None = None
    is_intact: Callable[[ResultT], bool] | None = None
    settled: Callable[[Call], ResultT | tuple[Reason, ...]] | None = None
    is_free: bool = False
    keeps: bool = True


def arrange(steps: Sequence[Step[Any]]) -> list[Step[Any]]:
    """Put each step behind those that it needs, else in the given order; raises ValueError for what can't be so."""
    by_name = {step.name: step for step in steps}
    if len(by_name) < len(steps):
        raise ValueError("two steps have one name")
    ordered: dict[str, Step[Any]] = {}
    entered: set[str] = set()
    stack = [(step.name, False) for step in reversed(steps)]
    while stack:
        name, is_left = stack.pop()
        if is_left:
            ordered[name] = by_name[name]
        elif name in ordered:
            continue
        elif name in entered:
            raise ValueError(f"{name} needs itself")
        elif name not in by_name:
            raise ValueError(f"there is no step {name}")
        else:
            entered.add(name)
            stack.append((name, True))
            stack += [(one, False) for one in reversed(tuple(by_name[name].needs.values())) if one not in ordered]
    return list(ordered.values())


def closure(steps: Sequence[Step[Any]], goals: Collection[str]) -> list[Step[Any]]:
    """Keep the goals and what they need, in order."""
    wanted = set(goals)
    for step in reversed(arrange(steps)):
        if step.name in wanted:
            wanted.update(step.needs.values())
    return [step for step in steps if step.name in wanted]
