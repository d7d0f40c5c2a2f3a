"""Run steps in a bounded number of threads, each as soon as its dependencies are done.

The calling thread schedules and reports; the others run steps and store traces. If another step with the same key is
running, a step waits for its result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from threading import Event as Flag
from threading import Lock, Semaphore, Thread
from typing import Any

from msgspec.structs import replace

from detlayer.building.graph.outcome import Done, Event, Monitor, Outcome
from detlayer.building.graph.step import Call, Reason, Result, ResultT, Step, Stopped, Texts, arrange
from detlayer.building.graph.traces import Forgetful, Trace, Traces, compare, keep, key_of, last_key, recall

_GRACE_S = 10.0  # time for steps to end after a stop; steps that hang are abandoned


def execute(
    steps: Sequence[Step[Any]],
    *,
    traces: Traces | None = None,
    scope: str = "",
    jobs: int = 4,
    is_dry: bool = False,
    monitor: Monitor | None = None,
) -> Outcome:
    """Run the steps that need to run, and return the result of each.

    A step that fails blocks only the steps that need it. With `is_dry`, only free steps run, and the outcome lists
    those that would run. `scope` separates runs that share traces: reasons are changes since the last run of the same
    scope. The number of jobs does not affect results.

    An exception in the calling thread, such as a signal's, stops the run and waits up to ten seconds for running
    steps. Finished steps are kept for the next run. Raises ValueError for an invalid graph.
    """
    monitor = monitor or Monitor()
    return _Run(steps, traces or Forgetful(), scope, is_dry, monitor).go(max(1, jobs))


class _Run:
    def __init__(self, steps: Sequence[Step[Any]], traces: Traces, scope: str, is_dry: bool, monitor: Monitor) -> None:
        self._steps = arrange(steps)
        self._traces = traces
        self._scope = scope
        self._is_dry = is_dry
        self._report = monitor.report
        self._clock = monitor.clock
        self._stop_waits = monitor.stop
        self._stop = Flag()
        self._ended = Semaphore(0)
        """Each thread releases it when it ends."""
        self._lock = Lock()
        self._waiting: dict[str, list[Step[Any]]] = {}
        """The steps that wait for the result of each key that is executing."""
        self._busy: dict[str, str] = {}
        """The keys of executing steps, by name."""
        self._landed: dict[str, Done] = {}
        self._todo: SimpleQueue[tuple[Step[Any], Mapping[str, Done]] | None] = SimpleQueue()
        self._news: SimpleQueue[Done | Step[Any]] = SimpleQueue()
        self._done: dict[str, Done] = {}
        self._behind: dict[str, list[Step[Any]]] = {step.name: [] for step in self._steps}
        for step in self._steps:
            for name in dict.fromkeys(step.needs.values()):
                self._behind[name].append(step)

    # -- the calling thread

    def go(self, jobs: int) -> Outcome:
        threads = 0
        under_way = 0
        try:
            for _ in range(min(jobs, len(self._steps))):
                Thread(target=self._work, daemon=True).start()
                threads += 1
            left = {step.name: len(set(step.needs.values())) for step in self._steps}
            ready = deque(step for step in self._steps if not left[step.name])
            while ready or under_way:
                if ready:
                    step = ready.popleft()
                    blocker = self._blocker(step)
                    if blocker is None:
                        under_way += 1
                        self._todo.put((step, {role: self._done[name] for role, name in step.needs.items()}))
                        continue
                    done = Done(step, "blocked", blocked_by=blocker)
                else:
                    news = self._news.get()
                    if isinstance(news, Step):
                        self._report(Event(news))
                        continue
                    done = news
                    under_way -= 1
                self._done[done.step.name] = done
                self._report(Event(done.step, done))
                for step in self._behind[done.step.name]:
                    left[step.name] -= 1
                    if not left[step.name]:
                        ready.append(step)
        except BaseException:
            self._stop.set()
            self._stop_waits()
            self._dismiss(threads)
            for _ in range(threads):
                if not self._ended.acquire(timeout=_GRACE_S):
                    break
            raise
        self._dismiss(threads)
        return Outcome({step.name: self._done[step.name] for step in self._steps})

    def _blocker(self, step: Step[Any]) -> str | None:
        for name in step.needs.values():
            if self._done[name].state in ("failed", "blocked", "stopped"):
                return self._done[name].blocked_by or name
        return None

    def _dismiss(self, threads: int) -> None:
        for _ in range(threads):
            self._todo.put(None)

    # -- the other threads

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            if not self._stop.is_set():
                self._step(*item)
        self._ended.release()

    def _step(self, step: Step[Any], needed: Mapping[str, Done]) -> None:
        results = {one.step.name: one.result for one in needed.values() if one.result is not None}
        call = Call(results, self._stop.is_set)
        started = self._clock()
        try:
            done = self._one(step, needed, call)
        except Stopped as error:
            done = Done(step, "stopped", error=error)
        except BaseException as error:
            done = Done(step, "failed", error=error)
        if done is not None:
            reasons = (*done.reasons, *call.reasons)
            self._land(replace(done, reasons=reasons, facts=dict(call.facts), seconds=self._clock() - started))

    def _one(self, step: Step[ResultT], needed: Mapping[str, Done], call: Call) -> Done | None:
        """Run a step if needed; None if it waits for another one with the same key."""
        call.check()
        unknown = next((role for role, one in needed.items() if one.state == "would-run"), None)
        if unknown is not None:
            return Done(step, "would-run", reasons=(Reason("upstream", unknown),))
        inputs = dict(step.inputs)
        for role, one in needed.items():
            texts = one.result.to_texts() if one.result is not None else {}
            inputs.update({f"{role}.{name}": text for name, text in texts.items() if _counts(step, name)})
        if step.check is not None:
            step.check(call)
        if step.settled is not None:
            return self._live(step, step.settled, inputs, call)
        key = key_of(step, inputs)
        trace = recall(self._traces, key) if step.keeps else None
        last = recall(self._traces, last_key(self._scope, step))
        known = _parse(step, trace)
        reasons = self._reasons(step, inputs, known, last)
        if known is not None and not reasons:
            return Done(step, "hit", known, key, is_same=self._note_last(step, inputs, known, last))
        if self._is_dry and not step.is_free:
            return Done(step, "would-run", key=key, reasons=reasons)
        if not self._claim(key, step):
            return None
        landed = self._landed.get(key)
        if landed is not None:
            return replace(landed, step=step, state="hit")
        self._news.put(step)
        try:
            result = step.run(call)
            call.check()
        except BaseException as error:
            failed = Done(step, "failed", key=key, reasons=reasons, error=error)
            return replace(failed, state="stopped") if isinstance(error, Stopped) else failed
        if step.keeps and not self._is_dry:
            keep(self._traces, key, Trace(step.version, inputs, result.to_texts()))
        return Done(step, "ran", result, key, reasons, is_same=self._note_last(step, inputs, result, last))

    def _live(
        self,
        step: Step[ResultT],
        settled: Callable[[Call], ResultT | tuple[Reason, ...]],
        inputs: dict[str, str],
        call: Call,
    ) -> Done:
        """Run a step with external state, unless that is up to date."""
        last = recall(self._traces, last_key(self._scope, step))
        found = settled(call)
        is_old = last is not None and last.version != step.version
        if not isinstance(found, tuple) and not is_old:
            is_same = self._note_last(step, inputs, found, last)
            return Done(step, "hit", found, key_of(step, inputs), is_same=is_same)
        outside = found if isinstance(found, tuple) else ()
        reasons = (*compare(step, inputs, last), *outside)
        if self._is_dry and not step.is_free:
            return Done(step, "would-run", key=key_of(step, inputs), reasons=reasons)
        self._news.put(step)
        result = step.run(call)
        is_same = self._note_last(step, inputs, result, last)
        return Done(step, "ran", result, key_of(step, inputs), reasons, is_same=is_same)

    def _note_last(self, step: Step[Any], inputs: dict[str, str], result: Result, last: Trace | None) -> bool:
        """Store the inputs of a step for the next run; return whether its result is unchanged."""
        made = Trace(step.version, inputs, result.to_texts())
        if made != last and not self._is_dry:
            keep(self._traces, last_key(self._scope, step), made)
        return last is not None and last.results == made.results

    def _reasons(
        self, step: Step[ResultT], inputs: Texts, known: ResultT | None, last: Trace | None
    ) -> tuple[Reason, ...]:
        if not step.keeps:
            return (Reason("always"),)
        if known is None:
            return compare(step, inputs, last) or (Reason("first"),)
        if step.is_intact is not None and not step.is_intact(known):
            return (Reason("output"),)
        return ()

    def _claim(self, key: str, step: Step[Any]) -> bool:
        """Claim the execution of a key; False if another step has it and will pass on its result."""
        with self._lock:
            if key in self._waiting:
                self._waiting[key].append(step)
                return False
            self._waiting[key] = []
            self._busy[step.name] = key
            return True

    def _land(self, done: Done) -> None:
        with self._lock:
            key = self._busy.pop(done.step.name, None)
            waiting = self._waiting.pop(key) if key is not None else []
            if key is not None and done.state == "ran":
                self._landed[key] = done
        self._news.put(done)
        for step in waiting:
            state = "hit" if done.state == "ran" else done.state
            self._news.put(replace(done, step=step, state=state, facts={}, seconds=0.0))


def _counts(step: Step[Any], text: str) -> bool:
    return not step.reads or text in step.reads


def _parse(step: Step[ResultT], trace: Trace | None) -> ResultT | None:
    """Return the result of a trace; None if it is missing or invalid for this step."""
    try:
        return step.parse(trace.results) if trace is not None else None
    except ValueError:
        return None
