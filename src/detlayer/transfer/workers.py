"""Run jobs in a few threads: workers for data, and one for small jobs, which must not wait for data.

Sends no requests itself. The threads are daemons: a job that hangs in a system call does not block the exit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Generic, TypeVar

import msgspec

DATA_WORKERS = 4
CONTROL_WORKERS = 1

_Result = TypeVar("_Result")


class Job(msgspec.Struct, Generic[_Result], frozen=True):
    """A function to call; `is_data` marks a large transfer."""

    run: Callable[[], _Result]
    is_data: bool = False


def work_off(jobs: Sequence[Job[_Result]], *, workers: int = DATA_WORKERS) -> list[_Result]:
    """Run jobs, data ones at most `workers` at a time, and return their results in the order of the jobs.

    After the first failure no further job starts; the failure is raised when the running jobs have ended. An exception
    in the calling thread, such as a signal's, is raised at once, without waiting for the running jobs. A thread that
    fails to start counts as a failure.
    """
    if len(jobs) == 1:
        return [jobs[0].run()]
    queue = _Queue(jobs)
    failure: BaseException | None = None
    results: dict[int, _Result] = {}
    running = 0
    try:
        for takes_data in [True] * min(workers, len(jobs)) + [False] * CONTROL_WORKERS:
            try:
                Thread(target=queue.work, args=(takes_data,), daemon=True).start()
            except RuntimeError as error:  # the system's limit of threads
                failure = error
                queue.stop()
                break
            running += 1
        while running:
            done = queue.ended.get()
            if done is None:
                running -= 1
            elif done[2] is not None:
                failure = failure or done[2]
            else:
                results[done[0]] = done[1]  # type: ignore[assignment]  # results without an error have this type
    finally:
        queue.stop()
    if failure is not None:
        raise failure
    return [results[index] for index in range(len(jobs))]


class _Queue(Generic[_Result]):
    """Waiting jobs. `ended` receives the number of each job with its result or error, and None from each worker."""

    def __init__(self, jobs: Sequence[Job[_Result]]) -> None:
        self._jobs = jobs
        self._data = deque(index for index, job in enumerate(jobs) if job.is_data)
        self._small = deque(index for index, job in enumerate(jobs) if not job.is_data)
        self._lock = Lock()
        self.ended: SimpleQueue[tuple[int, _Result | None, BaseException | None] | None] = SimpleQueue()

    def work(self, takes_data: bool) -> None:
        """Run jobs until none is left, small ones first."""
        while (index := self._take(takes_data)) is not None:
            try:
                self.ended.put((index, self._jobs[index].run(), None))
            except BaseException as error:
                self.stop()
                self.ended.put((index, None, error))
        self.ended.put(None)

    def stop(self) -> None:
        """Start no further job."""
        with self._lock:
            self._data.clear()
            self._small.clear()

    def _take(self, takes_data: bool) -> int | None:
        with self._lock:
            if self._small:
                return self._small.popleft()
            return self._data.popleft() if takes_data and self._data else None
