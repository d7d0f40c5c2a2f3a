"""Steps, and what they stand in: an order without cycles."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal

import msgspec

Values = Mapping[str, str]
"""Inputs or results by name. Results are what others depend on: digests, never times."""


class Reason(msgspec.Struct, frozen=True):
    """Why a step runs, as data.

    `first`: there is no trace of it. `input`: `what` changed from `before` to `after`. `version`: the step itself did.
    `output`: what it made is not there any more, or not as it was. `always`: it is asked
    anew in every run. `outside`: what it reads is not as it was; `what` says what, `after` how. `target`: where its
    result goes has something else, `before`. `upstream`: `what` has to run first.
    """

    kind: Literal["first", "input", "version", "output", "always", "outside", "target", "upstream"]
    what: str = ""
    before: str = ""
    after: str = ""


class Stopped(Exception):
    """The run was ended while a step was under way."""


class Call:
    """What a step is run with: the results of what it needs, and a way to say how it goes."""

    def __init__(self, needed: Mapping[str, Values], is_stopped: Callable[[], bool]) -> None:
        self._needed = needed
        self._is_stopped = is_stopped
        self.facts: dict[str, int] = {}
        """Numbers to report, such as bytes; they are no results."""
        self.reasons: list[Reason] = []
        """What the step itself finds out of why it had to run."""

    def __getitem__(self, role: str) -> Values:
        return self._needed[role]

    def __contains__(self, role: str) -> bool:
        return role in self._needed

    def check(self) -> None:
        """Let a long step end early; raises Stopped once the run is to end."""
        if self._is_stopped():
            raise Stopped

    def add(self, fact: str, count: int) -> None:
        """Add to a number that is reported."""
        self.facts[fact] = self.facts.get(fact, 0) + count


class Step(msgspec.Struct, frozen=True):
    """One step. `needs` names others by the role that they have for it; inputs come from them and from `inputs`.

    `reads` names the results of others that count; all do if it is empty. `observe` looks at inputs that lie outside
    when the step's turn has come. `is_intact` tells whether what earlier results name is still there. `settled` stands
    for a trace where only the outside knows whether there is anything to do: it gives the results if not, else the
    reasons. `is_free` is for what only reads and costs little: a run that is to change nothing runs it, too. `keeps`
    False runs it every time.
    """

    name: str
    kind: str
    version: str
    run: Callable[[Call], Values]
    inputs: Values = {}
    needs: Mapping[str, str] = {}
    reads: frozenset[str] = frozenset()
    observe: Callable[[Call], Values] | None = None
    is_intact: Callable[[Values], bool] | None = None
    settled: Callable[[Call], Values | tuple[Reason, ...]] | None = None
    is_free: bool = False
    keeps: bool = True


def arrange(steps: Sequence[Step]) -> list[Step]:
    """Put each step behind those that it needs, else in the given order; raises ValueError for what can't be so."""
    by_name = {step.name: step for step in steps}
    if len(by_name) < len(steps):
        raise ValueError("two steps have one name")
    ordered: dict[str, Step] = {}
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


def closure(steps: Sequence[Step], goals: Collection[str]) -> list[Step]:
    """Keep the goals and what they need, in order."""
    wanted = set(goals)
    for step in reversed(arrange(steps)):
        if step.name in wanted:
            wanted.update(step.needs.values())
    return [step for step in steps if step.name in wanted]
