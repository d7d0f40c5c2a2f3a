"""A run in several rounds, reported as one: a layer that is lost from the store is made again by a further round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from detlayer.building.graph import Done, Event, Outcome
from detlayer.oci.types import Digest
from detlayer.store import LostBlobError

_MOST_TIMES = 2  # that a blob is made again in one run: a disk that loses it more often is broken


class Rounds:
    """Collects what became of steps in rounds that follow each other."""

    def __init__(self, report: Callable[[Event], None] | None) -> None:
        self._report = report or (lambda event: None)
        self._done: dict[str, Done] = {}
        self._held: dict[str, Event] = {}
        """Steps that failed for want of a lost blob, and those that need them: another round may run them."""
        self._lost: Counter[Digest] = Counter()

    def report(self, event: Event) -> None:
        """Pass on what another round will not repeat."""
        done, name = event.done, event.step.name
        if done is not None and (isinstance(done.error, LostBlobError) or done.blocked_by in self._held):
            self._held[name] = event
        elif done is None or done.state != "hit" or name not in self._done:
            self._report(event)

    def is_over(self, outcome: Outcome) -> bool:
        """Take in a round; False if a further one may heal it: blobs were lost, none of them too often."""
        for name, done in outcome.steps.items():
            before = self._done.get(name)
            if before is None or before.state != "ran" or done.state != "hit":
                self._done[name] = done
        lost = {error.digest for error in outcome.errors if isinstance(error, LostBlobError)}
        self._lost.update(lost)
        if lost and all(self._lost[digest] <= _MOST_TIMES for digest in lost):
            self._held.clear()
            return False
        for event in self._held.values():
            self._report(event)
        return True

    @property
    def outcome(self) -> Outcome:
        """What became of each step in all rounds."""
        return Outcome(self._done)
