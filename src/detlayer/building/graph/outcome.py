"""The outcome of a run, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import msgspec

from detlayer.building.graph.step import Reason, Result, ResultT, Step

State = Literal["hit", "ran", "failed", "blocked", "would-run", "stopped"]
"""`hit`: cached, or up to date. `blocked`: a dependency failed. `would-run`: skipped by a dry run."""


class Done(msgspec.Struct, frozen=True):
    """The result of a step. `is_same`: the result is unchanged since the last run."""

    step: Step[Any]
    state: State
    result: Result | None = None
    key: str = ""
    reasons: tuple[Reason, ...] = ()
    error: BaseException | None = None
    blocked_by: str = ""
    facts: Mapping[str, int] = {}
    seconds: float = 0.0
    is_same: bool = False


class Event(msgspec.Struct, frozen=True):
    """A step begins (`done` is None) or ends."""

    step: Step[Any]
    done: Done | None = None


def _ignore(*event: object) -> None:
    return


def _no_clock() -> float:
    return 0.0


class Monitor(msgspec.Struct, frozen=True):
    """Callbacks of a run. `report` is called in the calling thread, `clock` returns seconds.

    `stop` is called when a run is stopped. It cancels what steps wait for, such as a registry.
    """

    report: Callable[[Event], None] = _ignore
    clock: Callable[[], float] = _no_clock
    stop: Callable[[], None] = _ignore


class Outcome(msgspec.Struct, frozen=True):
    """The results of all steps, in the order of the graph."""

    steps: Mapping[str, Done]

    def __getitem__(self, name: str) -> Done:
        return self.steps[name]

    def result(self, step: Step[ResultT]) -> ResultT | None:
        """Return the result of a step; None if it has no result or was not in the run."""
        done = self.steps.get(step.name)
        return cast("ResultT | None", done.result) if done is not None else None

    @property
    def errors(self) -> list[BaseException]:
        """The errors in order, without duplicates for steps that share one."""
        return list({id(one.error): one.error for one in self.steps.values() if one.error is not None}.values())

    @property
    def would_run(self) -> list[Done]:
        return [one for one in self.steps.values() if one.state == "would-run"]
