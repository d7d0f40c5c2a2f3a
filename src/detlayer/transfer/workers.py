"""A few threads that work a list of jobs off: lanes for data, and one for what is small and must not queue behind it.

Knows no network. The threads end with the process: a job that hangs in the system's hands keeps nobody from leaving.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Generic, TypeVar

import msgspec

DATA_LANES = 4
CONTROL_LANES = 1

_Result = TypeVar("_Result")


class Job(msgspec.Struct, Generic[_Result], frozen=True):
    """Something to do, and whether it moves much data."""

    run: Callable[[], _Result]
    is_data: bool = False


def work_off(jobs: Sequence[Job[_Result]], *, lanes: int = DATA_LANES) -> list[_Result]:
    """Run jobs, data ones at most `lanes` at a time, and return their results in the order of the jobs.

    After the first failure no job is begun any more; that failure is raised when those that run have ended. An
    exception that comes to the calling thread, such as a signal's, is raised at once: no job is begun any more, and
    those that run are left behind.
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

    def give_up() -> None:
        with lock:
            waiting[True].clear()
            waiting[False].clear()

    def lane(kinds: Sequence[bool]) -> None:
        while (index := take(kinds)) is not None:
            try:
                ended.put((index, jobs[index].run(), None))
            except BaseException as error:
                give_up()
                ended.put((index, None, error))
        ended.put(None)

    kinds = [(False, True)] * min(lanes, len(jobs)) + [(False,)] * CONTROL_LANES
    results: dict[int, _Result] = {}
    failure: BaseException | None = None
    left = len(kinds)
    try:
        for one in kinds:
            Thread(target=lane, args=(one,), daemon=True).start()
        while left:
            done = ended.get()
            if done is None:
                left -= 1
            elif done[2] is not None:
                failure = failure or done[2]
            else:
                results[done[0]] = done[1]  # type: ignore[assignment]  # without an error it is a result
    finally:
        give_up()
    if failure is not None:
        raise failure
    return [results[index] for index in range(len(jobs))]
