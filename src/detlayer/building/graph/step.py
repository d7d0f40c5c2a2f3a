"""Steps, their results, and the order in which they run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Generic, Literal, Protocol, TypeVar, cast

import msgspec

Texts = Mapping[str, str]
"""Inputs, or the parts of a result, by name."""


class Result(Protocol):
    """The result of a step. Traces store its texts and other steps depend on them, so they contain no times."""

    def to_texts(self) -> dict[str, str]: ...


ResultT = TypeVar("ResultT", bound=Result)


class Reason(msgspec.Struct, frozen=True):
    """Why a step runs, as data.

    `first`: it has no trace. `input`: `what` changed from `before` to `after`. `version`: the step itself changed.
    `output`: its output is missing or changed. `always`: it runs on every build. `outside`: an external input changed;
    `what` names it, `after` says how. `target`: its destination contains `before` instead. `upstream`: `what` has to
    run first.
    """

    kind: Literal["first", "input", "version", "output", "always", "outside", "target", "upstream"]
    what: str = ""
    before: str = ""
    after: str = ""


class Stopped(Exception):
    """The run was stopped while a step was running."""


class Call:
    """One execution of a step: the results of the steps that it needs, and what it reports."""

    def __init__(self, results: Mapping[str, Result], is_stopped: Callable[[], bool]) -> None:
        self._results = results
        self._is_stopped = is_stopped
        self.facts: dict[str, int] = {}
        """Numbers to report, such as bytes. They are not part of the result."""
        self.reasons: list[Reason] = []
        """Reasons found by the step itself."""

    def result(self, step: Step[ResultT]) -> ResultT:
        """Return the result of a step that this one needs; raises KeyError for any other."""
        return cast(ResultT, self._results[step.name])

    def check(self) -> None:
        """Raise Stopped if the run is stopped, so that a long step ends early."""
        if self._is_stopped():
            raise Stopped

    def add(self, fact: str, count: int) -> None:
        """Add to a reported number."""
        self.facts[fact] = self.facts.get(fact, 0) + count


class Step(msgspec.Struct, Generic[ResultT], frozen=True, eq=False):
    """One step. `needs` names its dependencies by role; their results and `inputs` are its inputs.

    `parse` converts texts to a result, or raises ValueError. `reads` limits which texts of dependencies are inputs;
    empty means all. `check` raises if results of dependencies are not acceptable, in every run. `is_intact` returns
    whether the output of an earlier result still exists. `settled` replaces the trace of a step with external state,
    such as a registry: it returns the result if that is up to date, else the reasons to run. `is_free` marks cheap
    steps that only read: dry runs execute them. Without `keeps`, a step runs every time.
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
    """Sort steps after their dependencies, otherwise in the given order; raises ValueError for an invalid graph."""
    by_name = {step.name: step for step in steps}
    if len(by_name) < len(steps):
        raise ValueError("duplicate step name")
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
            raise ValueError(f"{name} depends on itself")
        elif name not in by_name:
            raise ValueError(f"unknown step {name}")
        else:
            entered.add(name)
            stack.append((name, True))
            stack += [(one, False) for one in reversed(tuple(by_name[name].needs.values())) if one not in ordered]
    return list(ordered.values())


def closure(steps: Sequence[Step[Any]], goals: Collection[str]) -> list[Step[Any]]:
    """Return the goals and their dependencies, in order."""
    wanted = set(goals)
    for step in reversed(arrange(steps)):
        if step.name in wanted:
            wanted.update(step.needs.values())
    return [step for step in steps if step.name in wanted]
