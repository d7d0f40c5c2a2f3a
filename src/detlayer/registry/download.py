"""One blob out of a repository: resumed where it broke off, held against size and digest while it is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import msgspec

from detlayer.errors import DetlayerError, IntegrityError, OutputError, UnavailableError
from detlayer.oci.ports import Readable
from detlayer.oci.types import Descriptor
from detlayer.registry.client import Repository
from detlayer.registry.retry import Attempts
from detlayer.registry.transport import Answer

_MAX_ATTEMPTS = 6  # without any byte in between
_PIECE_BYTES = 1 << 20


class RemoteBody(msgspec.Struct, frozen=True):
    """A blob in a registry, as a body to send elsewhere: it streams through, and is checked on the way."""

    repository: Repository
    blob: Descriptor

    @property
    def size_bytes(self) -> int:
        return self.blob.size_bytes

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[Readable]:
        """Open for reading; raises RegistryError. What is read from an offset can't be held against the digest."""
        reader = RemoteReader(self.repository, self.blob, offset)
        try:
            yield reader
        finally:
            reader.close()


class SpooledBody(msgspec.Struct, frozen=True):
    """A blob in an open file, as a body to send."""

    fd: int
    size_bytes: int

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[Readable]:
        yield _FileReader(self.fd, offset)


class _FileReader:
    def __init__(self, fd: int, offset: int) -> None:
        self._fd = fd
        self._at = offset

    def read(self, size: int, /) -> bytes:
        piece = os.pread(self._fd, size, self._at)
        self._at += len(piece)
        return piece


@contextmanager
def spooled(body: RemoteBody) -> Iterator[SpooledBody]:
    """Fetch a blob whole into an unnamed temporary file, which is gone after the block.

    A blob that goes back to the host that it comes from must not be read while it is written: a server that handles one
    request at a time would answer neither. Raises RegistryError, IntegrityError, and OutputError (`spool-full`).
    """
    import tempfile

    with ExitStack() as stack:
        try:
            file = stack.enter_context(tempfile.TemporaryFile(prefix="detlayer-", buffering=0))
            with body.open() as source:
                while piece := source.read(_PIECE_BYTES):
                    while piece:
                        piece = piece[file.write(piece) :]
        except OSError as error:
            raise OutputError(
                "spool-full",
                f"{body.blob.digest} can't be kept in a temporary file: {error.strerror}",
                "set TMPDIR to a directory with more room",
            ) from error
        yield SpooledBody(file.fileno(), body.size_bytes)


class RemoteReader:
    """Reads a blob from an offset to its end.

    The last byte comes only after the digest was found right, if reading began at 0, so that whoever passes the bytes
    on never completes a wrong blob. Raises IntegrityError and RegistryError.
    """

    def __init__(self, repository: Repository, blob: Descriptor, offset: int = 0) -> None:
        self._repository = repository
        self._blob = blob
        self._at = offset
        self._sha = hashlib.sha256() if not offset else None
        self._answer: Answer | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._held = b""
        self._pace = repository.transport.pace
        self._attempts = Attempts(_MAX_ATTEMPTS, repository.transport.network.read_s * _MAX_ATTEMPTS)

    def read(self, size: int, /) -> bytes:
        if not self._held:
            self._held = self._next()
        piece, self._held = self._held[:size], self._held[size:]
        return piece

    def _next(self) -> bytes:
        """Read the next piece, connecting again where the last one broke off; empty at the end."""
        left = self._blob.size_bytes - self._at
        if not left:
            if self._sha is not None and self._at == 0:
                self._check()
            return b""
        self._attempts.failures = 0
        while not (piece := self._try()):
            self._attempts.failures += self._answer is not None
            self.close()
        if len(piece) > left:
            raise self._wrong("too many bytes")
        self._at += len(piece)
        if self._sha is not None:
            self._sha.update(piece)
            if self._at == self._blob.size_bytes:
                self._check()
        return piece

    def _try(self) -> bytes:
        """Read the next piece; empty where another connection may bring it. Raises the error of the last attempt."""
        began = self._pace.now()
        piece = b""
        error: DetlayerError | None = None
        try:
            error = self._connect() if self._answer is None else None
            piece = next(self._pieces, b"")
        except UnavailableError as broken:
            error = broken
        self._attempts.failures += error is not None
        self._attempts.advance(len(piece), self._pace.now() - began)
        if not piece and (self._attempts.are_used_up or self._attempts.is_too_slow):
            raise error or UnavailableError(
                "blob-cut-off",
                f"{self._repository.name.registry} sends only a part of {self._blob.digest}",
                "try again; what has come is kept",
            )
        return piece

    def _connect(self) -> IntegrityError | None:
        """Request what is left; returns an error if the answer has another length: the next may be right."""
        answer = self._repository.get_blob(self._blob.digest, self._at)
        if answer.status == 416:
            answer.close()
            raise self._wrong("too few bytes")
        skip = self._at if answer.status == 200 else 0  # it does not know of ranges
        said = answer.length
        if said is not None and said != self._blob.size_bytes - (self._at - skip):
            answer.close()
            return self._wrong(f"{said + self._at - skip} bytes, not {self._blob.size_bytes},")
        self._answer = answer
        self._pieces = _after(skip, answer.pieces())
        return None

    def _check(self) -> None:
        assert self._sha is not None
        if self._sha.hexdigest() != self._blob.digest.hex:
            raise self._wrong("other bytes")

    def _wrong(self, what: str) -> IntegrityError:
        self.close()
        return IntegrityError(
            "blob-digest",
            f"{self._repository.name} sends {what} for {self._blob.digest}",
            "the blob is corrupt in the registry, or on the way: push it anew",
        )

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None
        self._pieces = iter(())


def _after(skip: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
            continue
        yield piece[skip:]
        skip = 0
