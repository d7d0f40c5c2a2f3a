"""Results are in the order of the jobs, data jobs are limited, and no job starts after a failure."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from detlayer.transfer.workers import CONTROL_WORKERS, DATA_WORKERS, Job, work_off


def test_results_come_in_the_order_of_the_jobs() -> None:
    jobs = [Job(lambda number=number: number, is_data=number % 3 == 0) for number in range(50)]  # type: ignore[misc]
    assert work_off(jobs) == list(range(50))


def test_nothing_to_do() -> None:
    assert work_off([]) == []


def test_data_takes_its_workers_and_no_more() -> None:
    """All workers meet at a barrier, which opens only if that many run at once; never more run."""
    lock = threading.Lock()
    running = most = 0
    together = threading.Barrier(DATA_WORKERS)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(timeout=30)
        with lock:
            running -= 1

    work_off([Job(work, is_data=True)] * (3 * DATA_WORKERS))
    assert most == DATA_WORKERS


def test_what_is_small_does_not_wait_behind_data() -> None:
    """All data workers wait for the small job, which is last: only the extra worker can run it."""
    done = threading.Event()

    def wait() -> bool:
        return done.wait(timeout=30)

    def small() -> bool:
        done.set()
        return True

    assert CONTROL_WORKERS == 1
    jobs: list[Job[bool]] = [Job(wait, is_data=True) for _ in range(DATA_WORKERS)]
    jobs.append(Job(small))
    results = work_off(jobs)
    assert all(results)


def test_after_a_failure_nothing_is_begun() -> None:
    begun: list[int] = []

    def fail() -> None:
        raise LookupError("no")

    jobs = [Job(lambda: begun.append(1), is_data=True), Job(fail, is_data=True)]
    jobs += [Job(lambda: begun.append(2), is_data=True)] * 10
    with pytest.raises(LookupError):
        work_off(jobs, workers=1)
    assert begun == [1]


def test_after_an_interruption_nothing_is_begun() -> None:
    """A signal's exception reaches the calling thread at once; running jobs are abandoned, and none starts."""
    begun: list[int] = []
    let_go = threading.Event()
    before = set(threading.enumerate())
    caller = threading.get_ident()

    class Interrupted(BaseException):
        pass

    def interrupt() -> None:
        signal.pthread_kill(caller, signal.SIGUSR1)
        let_go.wait(timeout=30)

    def stop(number: int, frame: object) -> None:
        raise Interrupted

    usual = signal.signal(signal.SIGUSR1, stop)
    try:
        jobs = [Job(interrupt, is_data=True), *[Job(lambda: begun.append(1), is_data=True)] * 10]
        with pytest.raises(Interrupted):
            work_off(jobs, workers=1)
    finally:
        signal.signal(signal.SIGUSR1, usual)
    let_go.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
    assert begun == []


def test_workers_stop_where_another_thread_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thread runs a job; the second fails to start: no further job starts, and none keeps running."""
    begun: list[int] = []
    is_running, has_failed = threading.Event(), threading.Event()
    before = set(threading.enumerate())
    start = threading.Thread.start

    def start_one(thread: threading.Thread) -> None:
        if set(threading.enumerate()) - before:
            assert is_running.wait(timeout=30)
            has_failed.set()
            raise RuntimeError("can't start new thread")
        start(thread)

    def run() -> None:
        begun.append(1)
        is_running.set()
        has_failed.wait(timeout=30)
        time.sleep(0.1)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        work_off([Job(run, is_data=True)] * 20)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=1)
    assert begun == [1]
