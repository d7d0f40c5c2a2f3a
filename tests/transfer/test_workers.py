"""Lanes work jobs off in order of their results, never more data than lanes, and stop after a failure."""

from __future__ import annotations

import signal
import threading

import pytest

from detlayer.transfer.workers import CONTROL_LANES, DATA_LANES, Job, work_off


def test_results_come_in_the_order_of_the_jobs() -> None:
    jobs = [Job(lambda number=number: number, is_data=number % 3 == 0) for number in range(50)]  # type: ignore[misc]
    assert work_off(jobs) == list(range(50))


def test_nothing_to_do() -> None:
    assert work_off([]) == []


def test_data_takes_its_lanes_and_no_more() -> None:
    """All lanes meet at a barrier, which opens only if as many run at once; no more than that ever do."""
    lock = threading.Lock()
    running = most = 0
    together = threading.Barrier(DATA_LANES)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(timeout=30)
        with lock:
            running -= 1

    work_off([Job(work, is_data=True)] * (3 * DATA_LANES))
    assert most == DATA_LANES


def test_what_is_small_does_not_wait_behind_data() -> None:
    """Every data lane waits for the small job, which comes last: only another lane can do it."""
    done = threading.Event()

    def wait() -> bool:
        return done.wait(timeout=30)

    def small() -> bool:
        done.set()
        return True

    assert CONTROL_LANES == 1
    jobs: list[Job[bool]] = [Job(wait, is_data=True) for _ in range(DATA_LANES)]
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
        work_off(jobs, lanes=1)
    assert begun == [1]


def test_after_an_interruption_nothing_is_begun() -> None:
    """A signal's exception comes to the calling thread at once; what runs is left behind, and nothing follows it."""
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
            work_off(jobs, lanes=1)
    finally:
        signal.signal(signal.SIGUSR1, usual)
    let_go.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
    assert begun == []
