"""The run: steps go to a bounded number of threads as soon as what they need is done.

The calling thread keeps the books and reports; the others look, run and remember. One that has to do what another is
just doing, by the key, waits for that one's results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from threading import Event as Flag
from threading import Lock, Semaphore, Thread

from msgspec.structs import replace

from detlayer.building.graph.outcome import Done, Event, Outcome, Report
from detlayer.building.graph.step import Call, Reason, Step, Stopped, Values, arrange
from detlayer.building.graph.traces import Forgetful, Trace, Traces, compare, keep, key_of, last_key, recall

_GRACE_S = 10.0  # how long steps that run may take to end when the run is ended; what hangs is left behind


def execute(
    steps: Sequence[Step],
    *,
    traces: Traces | None = None,
    scope: str = "",
    jobs: int = 4,
    is_dry: bool = False,
    report: Report | None = None,
    clock: Callable[[], float] | None = None,
    stop: Callable[[], None] | None = None,
) -> Outcome:
    """Run the steps that have to, and say what became of each.

    A step that fails blocks those that need it, and no others. `is_dry` runs only what is free, and says what would
    run. `scope` tells runs apart for what changed since the last one.
    `report` is called in the calling thread, `clock` gives seconds. The number of jobs never shows in the results.

    An exception in the calling thread, such as a signal's, ends the run: steps under way are told so, by `stop` in what
    they wait for, too, and waited for a while; what was done is remembered for the next run. Raises ValueError for
    steps that are no graph.
    """
    run = _Run(steps, traces or Forgetful(), scope, is_dry, report, clock)
    return run.go(max(1, jobs), stop or (lambda: None))


class _Run:
    def __init__(
        self,
        steps: Sequence[Step],
        traces: Traces,
        scope: str,
        is_dry: bool,
        report: Report | None,
        clock: Callable[[], float] | None,
    ) -> None:
        self._steps = arrange(steps)
        self._traces = traces
        self._scope = scope
        self._is_dry = is_dry
        self._report = report or (lambda event: None)
        self._clock = clock or (lambda: 0.0)
        self._stop = Flag()
        self._gone = Semaphore(0)
        """Released by each thread that has ended."""
        self._lock = Lock()
        self._waiting: dict[str, list[Step]] = {}
        """Keys that a step is busy with, and the steps that wait for its results."""
        self._busy: dict[str, str] = {}
        """What each of these steps is busy with, by its name."""
        self._landed: dict[str, Done] = {}
        self._todo: SimpleQueue[tuple[Step, Mapping[str, Done]] | None] = SimpleQueue()
        self._news: SimpleQueue[Done | Step] = SimpleQueue()
        self._done: dict[str, Done] = {}
        self._behind: dict[str, list[Step]] = {step.name: [] for step in self._steps}
        for step in self._steps:
            for name in dict.fromkeys(step.needs.values()):
                self._behind[name].append(step)

    # -- the calling thread

    def go(self, jobs: int, stop: Callable[[], None]) -> Outcome:
        threads = [Thread(target=self._work, daemon=True) for _ in range(min(jobs, len(self._steps)))]
        for thread in threads:
            thread.start()
        under_way = 0
        try:
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
            stop()
            self._dismiss(threads)
            for _ in threads:
                if not self._gone.acquire(timeout=_GRACE_S):
                    break
            raise
        self._dismiss(threads)
        return Outcome({step.name: self._done[step.name] for step in self._steps})

    def _blocker(self, step: Step) -> str | None:
        for name in step.needs.values():
            if self._done[name].state in ("failed", "blocked", "stopped"):
                return self._done[name].blocked_by or name
        return None

    def _dismiss(self, threads: Sequence[Thread]) -> None:
        for _ in threads:
            self._todo.put(None)

    # -- the other threads

    def _work(self) -> None:
        while (item := self._todo.get()) is not None:
            if not self._stop.is_set():
                self._step(*item)
        self._gone.release()

    def _step(self, step: Step, needed: Mapping[str, Done]) -> None:
        call = Call({role: one.values for role, one in needed.items()}, self._stop.is_set)
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

    def _one(self, step: Step, needed: Mapping[str, Done], call: Call) -> Done | None:
        """See whether a step has to run, and run it; None if it waits for another that does the same."""
        call.check()
        unknown = next((role for role, one in needed.items() if one.state == "would-run"), None)
        if unknown is not None:
            return Done(step, "would-run", reasons=(Reason("upstream", unknown),))
        inputs = dict(step.inputs)
        for role, one in needed.items():
            inputs.update({f"{role}.{name}": value for name, value in one.values.items() if _counts(step, name)})
        if step.observe is not None:
            inputs.update(step.observe(call))
        if step.settled is not None:
            return self._live(step, step.settled, inputs, call)
        key = key_of(step, inputs)
        trace = recall(self._traces, key) if step.keeps else None
        last = recall(self._traces, last_key(self._scope, step))
        reasons = self._reasons(step, inputs, trace, last)
        if trace is not None and not reasons:
            self._note_last(step, inputs, trace.results, last)
            return Done(step, "hit", trace.results, key, is_same=last is not None and last.results == trace.results)
        if self._is_dry and not step.is_free:
            return Done(step, "would-run", key=key, reasons=reasons)
        if not self._take_off(key, step):
            return None
        landed = self._landed.get(key)
        if landed is not None:
            return replace(landed, step=step, state="hit")
        self._news.put(step)
        try:
            results = dict(step.run(call))
            call.check()
        except BaseException as error:
            failed = Done(step, "failed", key=key, reasons=reasons, error=error)
            return replace(failed, state="stopped") if isinstance(error, Stopped) else failed
        if step.keeps and not self._is_dry:
            keep(self._traces, key, Trace(step.version, inputs, results))
        self._note_last(step, inputs, results, last)
        return Done(step, "ran", results, key, reasons, is_same=last is not None and last.results == results)

    def _live(
        self, step: Step, settled: Callable[[Call], Values | tuple[Reason, ...]], inputs: dict[str, str], call: Call
    ) -> Done:
        """Run a step of which only the outside knows whether it has to be."""
        last = recall(self._traces, last_key(self._scope, step))
        found = settled(call)
        is_old = last is not None and last.version != step.version
        if not isinstance(found, tuple) and not is_old:
            self._note_last(step, inputs, found, last)
            same = last is not None and last.results == found
            return Done(step, "hit", found, key_of(step, inputs), is_same=same)
        outside = found if isinstance(found, tuple) else ()
        reasons = (*compare(step, inputs, last), *outside)
        if self._is_dry and not step.is_free:
            return Done(step, "would-run", key=key_of(step, inputs), reasons=reasons)
        self._news.put(step)
        results = dict(step.run(call))
        self._note_last(step, inputs, results, last)
        same = last is not None and last.results == results
        return Done(step, "ran", results, key_of(step, inputs), reasons, is_same=same)

    def _note_last(self, step: Step, inputs: dict[str, str], results: Values, last: Trace | None) -> None:
        """Remember what a step was run with, for the next run to compare."""
        made = Trace(step.version, inputs, dict(results))
        if made != last and not self._is_dry:
            keep(self._traces, last_key(self._scope, step), made)

    def _reasons(self, step: Step, inputs: Values, trace: Trace | None, last: Trace | None) -> tuple[Reason, ...]:
        if not step.keeps:
            return (Reason("always"),)
        if trace is None:
            return compare(step, inputs, last) or (Reason("first"),)
        if step.is_intact is not None and not step.is_intact(trace.results):
            return (Reason("output"),)
        return ()

    def _take_off(self, key: str, step: Step) -> bool:
        """Make the step the one that is busy with a key; False if another is, and will hand its results on."""
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


def _counts(step: Step, result: str) -> bool:
    return not step.reads or result in step.reads
