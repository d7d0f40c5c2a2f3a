"""Download one blob: resumed when the connection breaks, checked against size and digest on the way."""

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

_PIECE_BYTES = 1 << 20


class RemoteBody(msgspec.Struct, frozen=True):
    """A blob in a registry as the body of an upload: streamed, and verified on the way."""

    repository: Repository
    blob: Descriptor

    @property
    def size_bytes(self) -> int:
        return self.blob.size_bytes

    @contextmanager
    def open(self, offset: int = 0) -> Iterator[Readable]:
        """Open for reading; raises RegistryError. The digest is verified only from offset 0."""
        reader = RemoteReader(self.repository, self.blob, offset)
        try:
            yield reader
        finally:
            reader.close()


class SpooledBody(msgspec.Struct, frozen=True):
    """A blob in an open file as the body of an upload."""

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
    """Download a blob into an unnamed temporary file that is deleted after the block.

    Use it for a blob that is uploaded to the host it comes from: a server that handles one request at a time would
    deadlock otherwise. Raises RegistryError, IntegrityError, and OutputError (`spool-full`).
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
                f"can't write {body.blob.digest} to a temporary file: {error.strerror}",
                "set TMPDIR to a directory with more room",
            ) from error
        yield SpooledBody(file.fileno(), body.size_bytes)


class RemoteReader:
    """Reads a blob from an offset to its end.

    From offset 0, the last byte is returned only after the digest is verified, so that a caller that forwards the
    bytes never completes a wrong blob. Raises IntegrityError and RegistryError.
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
        network = repository.transport.network
        # The number of attempts without any progress in between.
        self._attempts = Attempts(network.retries + 1, network.read_s * (network.retries + 2))

    def read(self, size: int, /) -> bytes:
        if not self._held:
            self._held = self._next()
        piece, self._held = self._held[:size], self._held[size:]
        return piece

    def _next(self) -> bytes:
        """Read the next piece, reconnecting if the connection broke; empty at the end."""
        left = self._blob.size_bytes - self._at
        if not left:
            if self._sha is not None and self._at == 0:
                self._check()
            return b""
        while not (piece := self._try()):
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
        """Read the next piece; empty if a new connection may help. Raises the error of the last attempt."""
        began = self._pace.now()
        piece = b""
        error: DetlayerError | None = None
        if self._answer is None:
            error = self._connect()
        try:
            piece = next(self._pieces, b"")
        except UnavailableError as broken:
            error = broken
        self._attempts.advance(len(piece), self._pace.now() - began)
        if not piece and (self._attempts.is_too_slow or not self._attempts.fail()):
            raise error or UnavailableError(
                "blob-cut-off",
                f"{self._repository.name.registry} sent only a part of {self._blob.digest}",
                "run the command again: `pull` resumes",
            )
        return piece

    def _connect(self) -> IntegrityError | None:
        """Request the rest; returns an error for a wrong length, since the next response may be right."""
        answer = self._repository.get_blob(self._blob.digest, self._at, self._attempts)
        if answer.status == 416:
            answer.close()
            raise self._wrong("too few bytes")
        skip = self._at if answer.status == 200 else 0  # the registry does not support ranges
        said = answer.length
        if said is not None and said != self._blob.size_bytes - (self._at - skip):
            answer.close()
            return self._wrong(f"{said + self._at - skip} bytes (expected {self._blob.size_bytes})")
        self._answer = answer
        self._pieces = _after(skip, answer.pieces())
        return None

    def _check(self) -> None:
        assert self._sha is not None
        if self._sha.hexdigest() != self._blob.digest.hex:
            raise self._wrong("corrupt bytes")

    def _wrong(self, what: str) -> IntegrityError:
        self.close()
        return IntegrityError(
            "blob-digest",
            f"{self._repository.name} sent {what} for {self._blob.digest}",
            "the blob is corrupt in the registry or on the way: push the image again",
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
