"""Steps run only if needed, in any number of threads; failures block only their dependents."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from detlayer.building.graph import Call, Event, Monitor, Outcome, Reason, Step, Stopped, arrange, closure, execute
from detlayer.building.graph.drawing import draw
from detlayer.building.results import MadeImage
from detlayer.oci.types import Platform, parse_digest


class Values(dict[str, str]):
    """A result that consists of its texts."""

    def to_texts(self) -> dict[str, str]:
        return dict(self)


def make_step(name: str, kind: str, run: Callable[[Call], Values], **options: Any) -> Step[Values]:
    return Step(name, kind, options.pop("version", "1"), run, Values, **options)


class MemoryTraces:
    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        return self.kept.get(key)

    def put(self, key: str, data: bytes) -> None:
        self.kept[key] = data


@dataclass
class World:
    """Files by name, steps that concatenate their inputs, and a count of runs."""

    files: dict[str, str] = field(default_factory=dict)
    needs: dict[str, list[str]] = field(default_factory=dict)
    traces: MemoryTraces = field(default_factory=MemoryTraces)
    versions: dict[str, str] = field(default_factory=dict)
    cuts: set[str] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    ran: list[str] = field(default_factory=list)

    def step(self, name: str) -> Step[Values]:
        needed = [self.step(one) for one in self.needs.get(name, [])]

        def run(call: Call) -> Values:
            self.ran.append(name)
            if name in self.broken:
                raise OSError(f"{name} is broken")
            parts = [self.files[name], *(call.result(one)["text"] for one in needed)]
            text = f"{name}({','.join(parts)})"
            return Values(text=str(len(text) % 2) if name in self.cuts else text)

        return make_step(
            name,
            "join",
            run,
            version=self.versions.get(name, "1"),
            inputs={"name": name, "file": self.files[name]},
            needs={f"need {at}": one.name for at, one in enumerate(needed)},
            is_intact=lambda values: values["text"] not in self.lost,
        )

    def run(self, *, jobs: int = 4, is_dry: bool = False) -> Outcome:
        self.ran.clear()
        steps = [self.step(name) for name in self.files]
        return execute(steps, traces=self.traces, jobs=jobs, is_dry=is_dry)


def chain(*names: str) -> World:
    world = World(dict.fromkeys(names, "x"))
    world.needs = {name: [before] for before, name in pairwise(names)}
    return world


def test_a_second_run_has_only_cache_hits() -> None:
    world = chain("a", "b", "c")
    first = world.run()
    assert [one.state for one in first.steps.values()] == ["ran"] * 3
    assert [one.reasons for one in first.steps.values()] == [(Reason("first"),)] * 3
    second = world.run()
    assert world.ran == []
    assert {name: one.result for name, one in second.steps.items()} == {n: o.result for n, o in first.steps.items()}
    assert {one.state for one in second.steps.values()} == {"hit"}


def test_a_change_is_a_reason() -> None:
    world = chain("a", "b")
    world.run()
    world.files["a"] = "y"
    outcome = world.run()
    assert sorted(world.ran) == ["a", "b"]
    assert outcome["a"].reasons == (Reason("input", "file", "x", "y"),)
    assert outcome["b"].reasons == (Reason("input", "need 0.text", "a(x)", "a(y)"),)
    world.files["a"] = "x"
    assert {one.state for one in world.run().steps.values()} == {"hit"}  # earlier results are still cached


def test_an_unchanged_result_runs_no_later_step() -> None:
    world = chain("a", "b", "c")
    world.cuts = {"b"}
    world.run()
    world.files["a"] = "z"
    outcome = world.run()
    assert sorted(world.ran) == ["a", "b"]
    assert outcome["b"].is_same
    assert outcome["c"].state == "hit"


def test_versions_and_lost_outputs() -> None:
    world = chain("a", "b")
    world.run()
    world.versions["a"] = "2"
    assert world.run()["a"].reasons == (Reason("version", "join", "1", "2"),)
    assert world.ran == ["a"]
    world.lost = {"b(x,a(x))"}
    assert world.run()["b"].reasons == (Reason("output"),)


def test_a_corrupt_trace_is_ignored() -> None:
    world = chain("a")
    world.run()
    for damage in (b"", b"{", b'{"format":"detlayer-trace/9"}', b"[" * 100_000, b"\xff"):
        world.traces.kept = dict.fromkeys(world.traces.kept, damage)
        assert world.run()["a"].state == "ran"


def test_a_trace_with_an_invalid_result_is_ignored() -> None:
    digest = f"sha256:{'a' * 64}"

    def run(call: Call) -> MadeImage:
        return MadeImage(parse_digest(digest), Platform("linux", "arm64", "v8"))

    step = Step("assemble", "assemble", "1", run, MadeImage.from_texts)
    traces = MemoryTraces()
    assert execute([step], traces=traces)["assemble"].state == "ran"
    again = execute([step], traces=traces)
    assert (again["assemble"].state, again.result(step)) == ("hit", run(Call({}, bool)))
    kept = dict(traces.kept)
    for texts in (
        {},
        {"digest": "sha256:x"},
        {"digest": digest, "platform": "{"},
        {"digest": digest, "platform": "{}"},
    ):
        for key, data in kept.items():
            traces.kept[key] = json.dumps({**json.loads(data), "results": texts}).encode()
        assert execute([step], traces=traces)["assemble"].state == "ran"


def test_a_failure_blocks_dependents_and_is_not_stored() -> None:
    world = World({"a": "", "b": "", "c": "", "d": ""}, {"b": ["a"], "c": ["b"]}, broken={"a"})
    outcome = world.run(jobs=1)
    assert {name: one.state for name, one in outcome.steps.items()} == {
        "a": "failed",
        "b": "blocked",
        "c": "blocked",
        "d": "ran",
    }
    assert [outcome[name].blocked_by for name in "bc"] == ["a", "a"]
    assert [str(error) for error in outcome.errors] == ["a is broken"]
    world.broken = set()
    assert not world.run().errors
    assert sorted(world.ran) == ["a", "b", "c"]


def test_dry_runs_say_what_would_run_and_change_nothing() -> None:
    world = chain("a", "b", "c")
    world.run()
    kept = dict(world.traces.kept)
    world.files["b"] = "new"
    outcome = world.run(is_dry=True)
    assert world.ran == []
    assert world.traces.kept == kept
    assert {name: one.state for name, one in outcome.steps.items()} == {"a": "hit", "b": "would-run", "c": "would-run"}
    assert outcome["b"].reasons == (Reason("input", "file", "x", "new"),)
    assert outcome["c"].reasons == (Reason("upstream", "need 0"),)
    assert [one.step.name for one in outcome.would_run] == ["b", "c"]


def free_step(run: Callable[[Call], Values]) -> Step[Values]:
    return make_step("look", "look", run, is_free=True, keeps=False)


def test_free_steps_run_in_dry_runs_too() -> None:
    outcome = execute([free_step(lambda call: Values(x="1"))], is_dry=True)
    assert outcome["look"].result == Values(x="1")
    assert outcome["look"].reasons == (Reason("always"),)


@pytest.mark.parametrize("is_dry", [False, True])
def test_steps_with_external_state(is_dry: bool) -> None:
    there = {"tag": "old"}

    def settled(call: Call) -> Values | tuple[Reason, ...]:
        return Values(tag="new") if there["tag"] == "new" else (Reason("target", "tag", there["tag"], "new"),)

    def run(call: Call) -> Values:
        there["tag"] = "new"
        call.add("bytes", 3)
        call.add("bytes", 4)
        return Values(tag="new")

    step = make_step("publish", "publish", run, settled=settled)
    traces = MemoryTraces()
    first = execute([step], traces=traces, is_dry=is_dry)["publish"]
    assert first.reasons == (Reason("first"), Reason("target", "tag", "old", "new"))
    assert first.state == ("would-run" if is_dry else "ran")
    assert there["tag"] == ("old" if is_dry else "new")
    assert first.facts == ({} if is_dry else {"bytes": 7})
    if not is_dry:
        assert execute([step], traces=traces)["publish"].state == "hit"
        there["tag"] = "moved"
        assert execute([step], traces=traces)["publish"].reasons == (Reason("target", "tag", "moved", "new"),)
        changed = replace(step, inputs={"level": "9"}, version="2")
        assert execute([changed], traces=traces)["publish"].reasons == (
            Reason("version", "publish", "1", "2"),
            Reason("input", "level", "", "9"),
        )


def test_steps_with_one_key_run_once() -> None:
    ran = []
    gate = threading.Barrier(2)

    def run(call: Call) -> Values:
        ran.append(1)
        gate.wait()  # until the other step has started, too
        return Values(x="1")

    def other(call: Call) -> Values:
        gate.wait()
        return Values()

    same = [make_step(f"same {at}", "same", run, inputs={"a": "b"}) for at in range(5)]
    outcome = execute([*same, make_step("other", "other", other)], jobs=3)
    assert len(ran) == 1
    assert [one.state for one in outcome.steps.values()].count("ran") == 2
    assert all(outcome[step.name].result == Values(x="1") for step in same)


def test_steps_with_one_key_fail_together() -> None:
    ran = []

    def run(call: Call) -> Values:
        ran.append(1)
        raise ValueError("no")

    steps = [make_step(f"same {at}", "same", run, inputs={"a": "b"}) for at in range(2)]
    outcome = execute(steps, jobs=1)
    assert {one.state for one in outcome.steps.values()} == {"failed"}


def test_a_store_that_fails_is_a_failure_not_a_hang() -> None:
    class Full(MemoryTraces):
        def put(self, key: str, data: bytes) -> None:
            raise OSError("full")

    steps = [make_step(f"same {at}", "same", lambda call: Values(), inputs={"a": "b"}) for at in range(3)]
    outcome = execute(steps, traces=Full(), jobs=2)
    assert {one.state for one in outcome.steps.values()} == {"failed"}


@pytest.mark.parametrize("where", ["check", "is_intact", "settled", "parse", "report"])
def test_any_exception_is_reported(where: str) -> None:
    def fail(*_: object) -> Any:
        raise ZeroDivisionError

    step = make_step("a", "a", lambda call: Values())
    traces = MemoryTraces()
    execute([step], traces=traces)
    if where == "report":
        with pytest.raises(ZeroDivisionError):
            execute([step], monitor=Monitor(fail))
        return
    outcome = execute([replace(step, **{where: fail})], traces=traces)
    assert isinstance(outcome.errors[0], ZeroDivisionError)


class _Interrupt(BaseException):
    pass


def test_an_interrupted_run_stops_its_steps_and_is_resumed() -> None:
    """A signal arrives in the calling thread: running steps are stopped, finished steps are kept."""
    traces, ran, told = MemoryTraces(), [], threading.Event()

    def quick(call: Call) -> Values:
        ran.append("quick")
        return Values(x="1")

    def slow(call: Call) -> Values:
        ran.append("slow")
        while not interrupted.is_set():
            interrupted.wait()
        try:
            while True:
                call.check()
        except Stopped:
            told.set()
            raise

    interrupted = threading.Event()
    steps = [make_step("quick", "quick", quick), make_step("slow", "slow", slow, needs={"q": "quick"})]

    def report(event: Event) -> None:
        if event.step.name == "slow" and event.done is None:
            interrupted.set()
            raise _Interrupt

    with pytest.raises(_Interrupt):
        execute(steps, traces=traces, monitor=Monitor(report))
    assert told.is_set()
    steps[1] = replace(steps[1], run=quick)
    outcome = execute(steps, traces=traces)
    assert [one.state for one in outcome.steps.values()] == ["hit", "ran"]


@pytest.mark.parametrize("started", [0, 1, 3])
def test_threads_are_joined_where_a_later_one_cannot_start(started: int, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    start = threading.Thread.start

    def limited(thread: threading.Thread) -> None:
        if len(threads) == started:
            raise RuntimeError("can't start new thread")
        threads.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    ran: list[str] = []

    def run(call: Call) -> Values:
        ran.append("a step")
        return Values()

    with pytest.raises(RuntimeError, match="can't start new thread"):
        execute([make_step(f"step {at}", "step", run, inputs={"at": str(at)}) for at in range(8)], jobs=8)
    assert len(threads) == started
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert ran == []


def test_events_and_seconds() -> None:
    ticks = iter(range(100))
    events: list[tuple[str, str]] = []

    def report(event: Event) -> None:
        events.append((event.step.name, event.done.state if event.done else "begins"))

    world = chain("a", "b")
    steps = [world.step(name) for name in world.files]
    outcome = execute(steps, traces=world.traces, jobs=1, monitor=Monitor(report, lambda: float(next(ticks))))
    assert events == [("a", "begins"), ("a", "ran"), ("b", "begins"), ("b", "ran")]
    assert outcome["a"].seconds == 1.0


def test_invalid_graphs_are_rejected() -> None:
    step = make_step("a", "a", lambda call: Values())
    for steps in (
        [step, step],
        [replace(step, needs={"x": "nobody"})],
        [replace(step, needs={"x": "b"}), replace(step, name="b", needs={"x": "a"})],
        [replace(step, needs={"x": "a"})],
    ):
        with pytest.raises(ValueError):
            execute(steps)


def test_order_and_closure() -> None:
    world = World(dict.fromkeys("abcde", ""), {"a": ["b", "c"], "b": ["d"]})
    steps = [world.step(name) for name in world.files]
    assert [step.name for step in arrange(steps)] == ["d", "b", "c", "a", "e"]
    assert [step.name for step in closure(steps, ["b"])] == ["b", "d"]
    assert not execute([]).steps


def test_drawings() -> None:
    world = World({'a "x"': "", "b": ""}, {"b": ['a "x"']})
    steps = [world.step(name) for name in world.files]
    assert draw(steps) == 'a "x"\nb\n  need 0: a "x"'
    assert '  "a \\"x\\"" -> "b";' in draw(steps, "dot")
    assert '  s0["a &quot;x&quot;"]\n  s1["b"]\n  s0 --> s1' in draw(steps, "mermaid")
    assert [one["needs"] for one in json.loads(draw(steps, "json"))["steps"]] == [{}, {"need 0": 'a "x"'}]


# -- any graph, any edits


@st.composite
def worlds(draw: st.DrawFn) -> World:
    names = [f"s{at}" for at in range(draw(st.integers(1, 9)))]
    needs = {
        name: draw(st.lists(st.sampled_from(names[:at]), unique=True, max_size=3))
        for at, name in enumerate(names)
        if at
    }
    order = draw(st.permutations(names))
    cuts = draw(st.sets(st.sampled_from(names)))
    return World(dict.fromkeys(order, "0"), needs, cuts=cuts)


def results(outcome: Outcome) -> Mapping[str, object]:
    return {name: one.result for name, one in outcome.steps.items()}


def fresh(world: World, jobs: int) -> Mapping[str, object]:
    other = World(dict(world.files), world.needs, cuts=world.cuts, versions=dict(world.versions))
    return results(other.run(jobs=jobs))


@given(worlds(), st.data())
def test_only_changed_steps_run(world: World, data: st.DataObject) -> None:
    """After any edits, exactly the steps with new inputs, by content, run; in any number of threads."""
    seen: set[tuple[object, ...]] = set()
    for _ in range(4):
        for name in data.draw(st.sets(st.sampled_from(sorted(world.files)), max_size=2)):
            world.files[name] = data.draw(st.sampled_from("012"))
        for name in data.draw(st.sets(st.sampled_from(sorted(world.files)), max_size=1)):
            world.versions[name] = data.draw(st.sampled_from("12"))
        outcome = world.run(jobs=data.draw(st.sampled_from([1, 8])))
        expected = set()
        for name in world.files:
            inputs = tuple(str(outcome[need].result) for need in world.needs.get(name, []))
            identity = (name, world.versions.get(name, "1"), world.files[name], inputs)
            if identity not in seen:
                expected.add(name)
                seen.add(identity)
        assert set(world.ran) == expected
        assert len(world.ran) == len(expected)
        assert results(outcome) == fresh(world, 1) == fresh(world, 8)
        for name in expected:
            assert outcome[name].reasons
        dry = world.run(is_dry=True)
        assert not dry.would_run
        assert world.ran == []


@given(worlds(), st.data())
def test_the_next_run_recovers_from_any_failure(world: World, data: st.DataObject) -> None:
    world.broken = data.draw(st.sets(st.sampled_from(sorted(world.files)), min_size=1))
    outcome = world.run(jobs=data.draw(st.sampled_from([1, 8])))
    ran = {name for name, one in outcome.steps.items() if one.state == "ran"}
    for name, one in outcome.steps.items():
        needs = world.needs.get(name, [])
        if any(outcome[need].state != "ran" for need in needs):
            assert one.state == "blocked"
            assert outcome[one.blocked_by].state == "failed"
        else:
            assert one.state == ("failed" if name in world.broken else "ran")
    world.broken = set()
    again = world.run()
    assert not again.errors
    assert set(world.ran) == set(world.files) - ran
    assert results(again) == fresh(world, 1)
