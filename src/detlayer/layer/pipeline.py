"""A pipeline of threads: chunks are processed in parallel, and finished in order. Does not look inside chunks.

There are as many threads as jobs, including the calling one: when no buffer is free, it processes a chunk instead of
waiting. More threads than processors cost a tenth of the time through caches (measured with zstd). A switch of the GIL
takes as long as reading a small file, so a pipeline needs few long calls into C.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from mmap import mmap
from threading import Condition, Lock, Thread
from typing import Generic, Self, TypeVar

from detlayer.layer.chunking import CHUNK_MAX_BYTES

# The longest chunk of small entries: almost CHUNK_MAX, plus another entry of almost CHUNK_MAX with its headers.
# Anonymous maps: pages that no chunk reaches are never touched, so the size costs address space, not memory.
BUFFER_BYTES = 2 * CHUNK_MAX_BYTES + (1 << 20)

# In addition to one per worker: one that is being filled, and some for chunks that wait to be finished.
_SPARE_BUFFERS = 3

_Made = TypeVar("_Made")
Processor = Callable[[memoryview], _Made]


class ChunkPipeline(ABC, Generic[_Made]):
    """Base class; a subclass processes the chunks. A context manager: leaving it ends the threads."""

    def __init__(self, jobs: int) -> None:
        self._own = self.processor()
        self._pending: deque[tuple[int, mmap, memoryview]] = deque()
        self._done: dict[int, tuple[mmap, memoryview, _Made]] = {}
        self._finished = 0
        self._stopped = False
        self._failure: BaseException | None = None
        # Last in, first out: the most recent buffer is still in the processor's cache.
        self._free = [mmap(-1, BUFFER_BYTES) for _ in range(jobs + _SPARE_BUFFERS)]
        self._lock = Lock()
        self._chunk_there = Condition(self._lock)
        self._buffer_free = Condition(self._lock)
        self._finishing = Lock()
        self._workers = [Thread(target=self._work, name="detlayer-pipeline", daemon=True) for _ in range(jobs - 1)]
        self.chunks: list[int] = []
        """The sizes of all chunks, in order."""

    @abstractmethod
    def processor(self) -> Processor[_Made]:
        """Return the function that processes chunks in one thread."""

    @abstractmethod
    def finish(self, chunk: memoryview, made: _Made) -> None:
        """Finish a chunk, in order; called by one thread at a time."""

    def __enter__(self) -> Self:
        try:
            for worker in self._workers:
                worker.start()
        except BaseException as error:  # no more threads, or an interrupt: the running ones must not wait for ever
            self.__exit__(type(error))
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *failed: object) -> None:
        with self._lock:
            self._stopped = True
            self._pending.clear()
            self._chunk_there.notify_all()
        # A worker may be blocked in a write; an interrupt must not wait for it.
        patience_s = None if kind is None or issubclass(kind, Exception) else 5.0
        for worker in self._workers:
            if worker.ident is not None:  # None if it was never started
                worker.join(patience_s)

    def take_buffer(self) -> mmap:
        """Return a free chunk buffer, processing a chunk meanwhile if there is none; raises a worker's error."""
        while True:
            with self._lock:
                while not self._free and not self._pending and self._failure is None:
                    self._buffer_free.wait()
                if self._failure is not None:
                    raise self._failure
                if self._free:
                    return self._free.pop()
                item = self._pending.popleft()
            self._process(self._own, *item)

    def put_chunk(self, buffer: mmap, size_bytes: int) -> None:
        """Queue a full chunk, in order."""
        view = memoryview(buffer)[:size_bytes]
        with self._lock:
            self._pending.append((len(self.chunks), buffer, view))
            self._chunk_there.notify()
        self.chunks.append(size_bytes)

    def drain(self) -> None:
        """Work until everything is finished; raises a worker's error."""
        while True:
            with self._lock:
                while not self._pending and self._finished < len(self.chunks) and self._failure is None:
                    self._buffer_free.wait()
                if self._failure is not None:
                    raise self._failure
                if not self._pending:
                    return
                item = self._pending.popleft()
            self._process(self._own, *item)

    def _work(self) -> None:
        processor = self.processor()
        while True:
            with self._lock:
                while not self._pending and not self._stopped:
                    self._chunk_there.wait()
                if self._stopped:
                    return
                item = self._pending.popleft()
            self._process(processor, *item)

    def _process(self, processor: Processor[_Made], number: int, buffer: mmap, view: memoryview) -> None:
        """Process a chunk, and finish it and its successors that are ready once it is next."""
        try:
            self._done[number] = (buffer, view, processor(view))
            # No thread waits for the finishing one: it checks again before it continues with other work.
            while self._finished in self._done and self._finishing.acquire(blocking=False):
                try:
                    self._finish_done()
                finally:
                    self._finishing.release()
        except BaseException as error:
            with self._lock:
                self._failure = self._failure or error
                self._buffer_free.notify()

    def _finish_done(self) -> None:
        """Finish the chunks that are next in order; one thread at a time."""
        while (done := self._done.pop(self._finished, None)) is not None and self._failure is None:
            buffer, view, made = done
            self.finish(view, made)
            with self._lock:
                self._finished += 1
                self._free.append(buffer)
                self._buffer_free.notify()
