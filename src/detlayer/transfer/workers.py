"""A few threads that run a list of jobs: workers for data, and one for small jobs, which must not queue behind data.

Knows no network. The threads are daemons: a job that hangs in a system call does not keep the process from exiting.
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
    """Something to do, and whether it moves much data."""

    run: Callable[[], _Result]
    is_data: bool = False


def work_off(jobs: Sequence[Job[_Result]], *, workers: int = DATA_WORKERS) -> list[_Result]:
    """Run jobs, data ones at most `workers` at a time, and return their results in the order of the jobs.

    After the first failure no further job starts; the failure is raised when the running jobs have ended. An exception
    in the calling thread, such as a signal's, is raised at once: no further job starts, and running jobs are left
    behind. A thread that can't be started counts as a failure.
    """
    if len(jobs) == 1:
        return [jobs[0].run()]
    waiting = {
        True: deque(index for index, job in enumerate(jobs) if job.is_data),
        False: deque(index for index, job in enumerate(jobs) if not job.is_data),
    }
    lock = Lock()
    ended: SimpleQueue[tuple[int, _Result | None, BaseException | None] | None] = SimpleQueue()

    def take(kinds: Sequence[bool]) -> int | None:
        with lock:
            for kind in kinds:
                if waiting[kind]:
                    return waiting[kind].popleft()
        return None

    def stop() -> None:
        with lock:
            waiting[True].clear()
            waiting[False].clear()

    def work(kinds: Sequence[bool]) -> None:
        while (index := take(kinds)) is not None:
            try:
                ended.put((index, jobs[index].run(), None))
            except BaseException as error:
                stop()
                ended.put((index, None, error))
        ended.put(None)

    kinds = [(False, True)] * min(workers, len(jobs)) + [(False,)] * CONTROL_WORKERS
    results: dict[int, _Result] = {}
    failure: BaseException | None = None
    left = 0
    try:
        for one in kinds:
            try:
                Thread(target=work, args=(one,), daemon=True).start()
            except RuntimeError as error:  # the system has no more threads for us
                failure = error
                stop()
                break
            left += 1
        while left:
            done = ended.get()
            if done is None:
                left -= 1
            elif done[2] is not None:
                failure = failure or done[2]
            else:
                results[done[0]] = done[1]  # type: ignore[assignment]  # without an error it is a result
    finally:
        stop()
    if failure is not None:
        raise failure
    return [results[index] for index in range(len(jobs))]
