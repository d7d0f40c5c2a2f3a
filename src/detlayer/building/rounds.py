"""A run in several rounds, reported as one: a layer that is lost from the store is made again by a further round."""

from __future__ import annotations

from detlayer.graph import Done, Event, Outcome
from detlayer.graph.outcome import Report
from detlayer.oci import Digest
from detlayer.store import LostBlobError


class Rounds:
    """Collects what became of steps in rounds that follow each other."""

    def __init__(self, report: Report | None) -> None:
        self._report = report or (lambda event: None)
        self._done: dict[str, Done] = {}
        self._held: dict[str, Event] = {}
        """Steps that failed for want of a lost blob, and those that need them: another round may run them."""
        self._lost: set[Digest] = set()

    def hear(self, event: Event) -> None:
        """Pass on what another round will not repeat."""
        done, name = event.done, event.step.name
        if done is not None and (isinstance(done.error, LostBlobError) or done.blocked_by in self._held):
            self._held[name] = event
        elif done is None or done.state != "hit" or name not in self._done:
            self._report(event)

    def is_over(self, outcome: Outcome) -> bool:
        """Take in a round; False if a further one may heal it: blobs were lost that were not lost before."""
        for name, done in outcome.steps.items():
            before = self._done.get(name)
            if before is None or before.state != "ran" or done.state != "hit":
                self._done[name] = done
        lost = {error.digest for error in outcome.errors if isinstance(error, LostBlobError)}
        if not lost <= self._lost:
            self._lost |= lost
            self._held.clear()
            return False
        for event in self._held.values():
            self._report(event)
        return True

    @property
    def outcome(self) -> Outcome:
        """What became of each step in all rounds."""
        return Outcome(self._done)
