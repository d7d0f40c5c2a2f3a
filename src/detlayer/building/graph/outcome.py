"""How a run went, step by step, as values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from detlayer.building.graph.step import Reason, Step, Values

State = Literal["hit", "ran", "failed", "blocked", "would-run", "stopped"]
"""`hit`: replayed, or there already. `blocked`: something that it needs failed. `would-run`: it was only looked at."""


class Done(msgspec.Struct, frozen=True):
    """What became of a step. `is_same` tells that its results are those of the last run."""

    step: Step
    state: State
    values: Values = {}
    key: str = ""
    reasons: tuple[Reason, ...] = ()
    error: BaseException | None = None
    blocked_by: str = ""
    facts: Mapping[str, int] = {}
    seconds: float = 0.0
    is_same: bool = False


class Event(msgspec.Struct, frozen=True):
    """A step begins (`done` is None), or something became of it."""

    step: Step
    done: Done | None = None


Report = Callable[[Event], None]


class Outcome(msgspec.Struct, frozen=True):
    """What became of each step, in the order of the graph."""

    steps: Mapping[str, Done]

    def __getitem__(self, name: str) -> Done:
        return self.steps[name]

    @property
    def errors(self) -> list[BaseException]:
        """What went wrong, in order, each once however many steps had it."""
        return list({id(one.error): one.error for one in self.steps.values() if one.error is not None}.values())

    @property
    def would_run(self) -> list[Done]:
        return [one for one in self.steps.values() if one.state == "would-run"]
