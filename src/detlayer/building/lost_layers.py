"""Report several rounds of a run as one: another round rebuilds layers that were lost from the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from detlayer.building.graph import Done, Event, Outcome
from detlayer.oci.types import Digest
from detlayer.store import LostBlobError

_MOST_TIMES = 2  # rebuilds of one blob per run: a disk that loses it more often is broken


class Rounds:
    """Collects the results of steps over several rounds."""

    def __init__(self, report: Callable[[Event], None] | None) -> None:
        self._report = report or (lambda event: None)
        self._done: dict[str, Done] = {}
        self._held: dict[str, Event] = {}
        """Steps that failed because a blob was lost, and steps blocked by them: another round may run them."""
        self._lost: Counter[Digest] = Counter()

    def report(self, event: Event) -> None:
        """Forward an event, unless another round may repeat the step."""
        done, name = event.done, event.step.name
        if done is not None and (isinstance(done.error, LostBlobError) or done.blocked_by in self._held):
            self._held[name] = event
        elif done is None or done.state != "hit" or name not in self._done:
            self._report(event)

    def is_over(self, outcome: Outcome) -> bool:
        """Add the outcome of a round; return False if another one may recover lost blobs."""
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
        """The final result of each step."""
        return Outcome(self._done)
