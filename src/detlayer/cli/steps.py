"""Output of build steps: lines for people, events for programs, and why each step runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from detlayer.cli.console import Console, counted, size
from detlayer.cli.transfers import Transfers
from detlayer.errors import printable

if TYPE_CHECKING:
    from detlayer.building import BuildReport
    from detlayer.building.graph import Done, Event, Reason

_SHOWN_CHARACTERS = 72
_FREE = ("resolve", "fetch", "configure", "assemble", "index")  # too fast to be worth a line


class Steps(Transfers):
    """Shows steps, packs and transfers. `on_event` is called in one thread, the other methods in several."""

    def __init__(
        self, console: Console, *, as_json: bool = False, explain: bool = False, is_silent: bool = False
    ) -> None:
        super().__init__(console, as_events=as_json)
        self._as_json = as_json
        self._explain = explain
        self._is_silent = is_silent
        self._moved_bases: set[str] = set()

    def on_event(self, event: Event) -> None:
        """Show the result of a step."""
        done = event.done
        if done is not None:
            self.forget_pack(done.step.name)
        if done is None or self._is_silent:
            return
        if self._as_json:
            from detlayer.oci.types import canonical_json

            self._console.result(canonical_json({"type": "step", **done_document(done)}).decode())
        self._say_moved(done)
        if done.state == "ran":
            facts = f"{size(done.facts['bytes'])}, " if done.facts.get("bytes") else ""
            line = f"{done.step.name}: {facts}{done.seconds:.1f} s" + (", output unchanged" if done.is_same else "")
            if done.step.kind in _FREE and not self._explain:
                self._console.detail(line)
            else:
                self._console.note(line)
        elif done.state == "blocked":
            self._console.note(f"{done.step.name}: skipped because `{done.blocked_by}` failed")
        elif done.state == "hit":
            self._console.detail(f"{done.step.name}: cache hit")
        if self._explain and done.state in ("ran", "failed", "would-run"):
            for reason in done.reasons:
                self._console.note(f"  because {reason_text(reason)}")

    def _say_moved(self, done: Done) -> None:
        """Report a base that has moved, even without --explain."""
        if done.step.kind == "fetch":
            for reason in done.reasons:
                if (reason.kind, reason.what) == ("input", "base.digest") and reason.before:
                    base = done.step.inputs["base"]
                    if base in self._moved_bases:  # for another platform
                        return
                    self._moved_bases.add(base)
                    self._console.note(f"{base} has moved: {reason.before} → {reason.after}")


def reason_text(reason: Reason) -> str:
    """Describe a reason."""
    match reason.kind:
        case "first":
            return "it has not run with these inputs before"
        case "input":
            return f"{reason.what} changed: {_short(reason.before)} → {_short(reason.after)}"
        case "version":
            return f"the step changed: version {reason.before} → {reason.after}"
        case "output":
            return "its output is missing"
        case "always":
            return "it runs on every build"
        case "outside":
            return f"{printable(reason.what)} {reason.after}".rstrip()
        case "target":
            return f"{reason.what} has {_short(reason.before)}, not {_short(reason.after)}"
        case "upstream":
            return f"{reason.what} has to run first"


def _short(text: str) -> str:
    shown = printable(text)
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[:_SHOWN_CHARACTERS] + "…"
    return shown or "nothing"


def done_document(done: Done) -> dict[str, Any]:
    """Return the event of a step, for --json."""
    document: dict[str, Any] = {
        "step": done.step.name,
        "kind": done.step.kind,
        "state": done.state,
        "seconds": round(done.seconds, 3),
    }
    if done.key:
        document["key"] = done.key
    if done.reasons:
        document["reasons"] = [
            {
                name: value
                for name, value in (
                    ("kind", one.kind),
                    ("what", one.what),
                    ("before", one.before),
                    ("after", one.after),
                )
                if value
            }
            for one in done.reasons
        ]
    if done.facts:
        document.update(done.facts)
    if done.blocked_by:
        document["blockedBy"] = done.blocked_by
    if done.error is not None:
        document["error"] = getattr(done.error, "code", "bug")
    return document


def show_report(console: Console, report: BuildReport, *, as_json: bool, is_dry: bool, seconds: float) -> None:
    steps = report.outcome.steps.values()
    if as_json:
        from detlayer.oci.types import canonical_json

        document = {
            "type": "result",
            "images": [one.to_document() for one in report.images],
            "requests": report.requests,
            "sentBytes": report.sent_bytes,
            "steps": {state: sum(one.state == state for one in steps) for state in {one.state for one in steps}},
        }
        console.result(canonical_json(document).decode())
    elif is_dry:
        for done in steps:
            if done.state == "would-run":
                what = f" ({size(done.facts['bytes'])})" if done.facts.get("bytes") else ""
                console.line(f"{done.step.name}{what}: {'; '.join(map(reason_text, done.reasons))}")
        console.flush()
    else:
        for image in report.images:
            if image.digest is None or image.error is not None:
                continue
            names = dict.fromkeys(str(one.name) for one in image.references)
            for name in names or [image.name]:
                console.line(f"{name}@{image.digest}")
        console.flush()
    ran = sum(one.state == "ran" and one.step.kind not in _FREE for one in steps)
    would = sum(one.state == "would-run" for one in steps)
    failed = sum(one.state in ("failed", "blocked") for one in steps)
    console.note(
        f"{counted(len(report.images), 'image')}: "
        + (f"{counted(would, 'step')} would run" if is_dry else f"{counted(ran, 'step')} run")
        + (f", {failed:,} failed or skipped" if failed else "")
        + f", {counted(report.requests, 'request')}, {size(report.sent_bytes)} sent, {seconds:.1f} s"
    )
