"""Destinations of a blob: a file, a stream, an OCI layout. Files are written atomically.

A file is written without a name (`temporary`), synced, and then named in one step. The digest under which a layout
stores a blob is given at the end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO, NoReturn, Protocol

from detlayer.errors import OutputError, printable
from detlayer.filesystem import look, real_path
from detlayer.layer.ports import Bytes, Sink
from detlayer.oci.types import MEDIA_TYPE_INDEX, OCI_LAYOUT_VERSION, Digest, canonical_json
from detlayer.output.temporary import Temporary, sweep

# Error numbers of file systems without locks; NFS needs a writable descriptor.
_NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EBADF)


class Output(Protocol):
    """A sink that is undecided until `commit` or `discard`."""

    @property
    def can_restart(self) -> bool:
        """Whether what was written can be undone."""

    def restart(self) -> None:
        """Undo all writes if possible; raises OutputError."""

    def write(self, data: Bytes, /) -> None: ...

    def settle(self) -> None:
        """Sync what was written, which detects a full disk; raises OutputError."""

    def commit(self, digest: Digest | None = None) -> None:
        """Make the result visible, in a layout under `digest`; raises OutputError."""

    def discard(self) -> None:
        """Remove what was written; does nothing after a commit."""


class FileOutput:
    """A file that replaces the one at `path` in one step. A device or FIFO is written to directly."""

    def __init__(self, path: str | os.PathLike[str], *, home: str | None = None) -> None:
        """`home` is for temporary files that need a name (`Temporary`)."""
        self._path = _real(path)  # a symlink stays; its target is replaced
        self._fd = -1
        self._temporary: Temporary | None = None
        self.is_kept = False
        try:
            existing = os.stat(self._path)
        except FileNotFoundError:
            existing = None
        except OSError as error:
            fail(error, self._path)
        if os.fspath(path).endswith("/") or (existing is not None and stat.S_ISDIR(existing.st_mode)):
            raise OutputError("output-is-directory", f"{printable(self._path)} is a directory", "name a file in it")
        try:
            if existing is not None and not stat.S_ISREG(existing.st_mode):
                self._fd = os.open(self._path, os.O_WRONLY)
                return
            directory = os.path.dirname(self._path)
            self._temporary = Temporary(directory, home)
            self._fd = self._temporary.fd
            if existing is not None:
                os.fchmod(self._fd, stat.S_IMODE(existing.st_mode))
        except OSError as error:
            self.discard()
            fail(error, self._path)

    @property
    def can_restart(self) -> bool:
        return self._temporary is not None

    def restart(self) -> None:
        self.is_kept = False
        if self._temporary is None:
            return
        try:
            os.ftruncate(self._fd, 0)
            os.lseek(self._fd, 0, os.SEEK_SET)
        except OSError as error:
            fail(error, self._path)

    def final_path(self, digest: Digest) -> str | None:
        """Return the path of the committed file; None for a device or FIFO."""
        return self._path if self._temporary is not None else None

    def keep(self, digest: Digest) -> bool:
        """Keep the existing file, which is up to date, with a new mtime for make.

        Tells whether that succeeded; otherwise it has to be written.
        """
        path = self.final_path(digest)
        try:
            if path is not None:
                os.utime(path)
                self.is_kept = True
        except OSError:  # another user's file in our directory
            return False
        return self.is_kept

    def write(self, data: Bytes, /) -> None:
        try:
            write_all(self._fd, data)
        except OSError as error:
            fail(error, self._path)

    def settle(self) -> None:
        try:
            if self._temporary is not None and not self.is_kept:
                os.fsync(self._fd)
        except OSError as error:
            fail(error, self._path)

    def commit(self, digest: Digest | None = None) -> None:
        self._finish(self._path)

    def _finish(self, path: str) -> None:
        try:
            if self._temporary is not None and not self.is_kept:
                self._temporary.publish(path)
                sync_directory(os.path.dirname(path))
        except OSError as error:
            fail(error, path)
        self.discard()

    def discard(self) -> None:
        if self._temporary is not None:
            self._temporary.close()
        elif self._fd >= 0:
            os.close(self._fd)
        self._temporary, self._fd = None, -1


class LayoutOutput(FileOutput):
    """A blob of an OCI layout (image-spec image-layout.md), which is created if missing."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._layout = _real(directory)
        self._blobs = os.path.join(self._layout, "blobs", "sha256")
        self._made: list[str] = []
        try:
            self._make_directories()
            sweep(self._layout)
            sweep(self._blobs)
            super().__init__(os.path.join(self._blobs, "unnamed"), home=home_in(self._layout))
        except BaseException:
            self._remove_directories()
            raise

    def _make_directories(self) -> None:
        missing = self._blobs
        wanted = []
        while not os.path.isdir(missing):
            wanted.append(missing)
            missing = os.path.dirname(missing)
        try:
            for path in reversed(wanted):
                try:
                    os.mkdir(path)
                    self._made.append(path)
                except FileExistsError as error:  # created by another pack just now, or not a directory
                    if not os.path.isdir(path):
                        fail(NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)), error.filename)
        except OSError as error:
            fail(error, self._layout)

    def _remove_directories(self) -> None:
        while self._made:
            try:
                os.rmdir(self._made.pop())
            except OSError:  # not empty any more, so its parents aren't either
                self._made.clear()

    def final_path(self, digest: Digest) -> str | None:
        return os.path.join(self._blobs, digest.hex)

    def commit(self, digest: Digest | None = None) -> None:
        if digest is None:
            raise ValueError("a blob of a layout is named by its digest")
        with locked(self._layout):
            make_layout(self._layout)
        self._made.clear()
        self._finish(os.path.join(self._blobs, digest.hex))

    def discard(self) -> None:
        super().discard()
        self._remove_directories()


class StreamOutput:
    """A stream of the caller: what was written can't be undone."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    can_restart = False

    def restart(self) -> None:
        return

    def write(self, data: Bytes, /) -> None:
        view = memoryview(data)
        try:
            while view:
                count: int | None = self._stream.write(view)
                if count is None:  # a raw stream that would block
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                view = view[count:]
        except OSError as error:
            fail(error, "the output stream")

    def settle(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            fail(error, "the output stream")

    def commit(self, digest: Digest | None = None) -> None:
        return

    def discard(self) -> None:
        return


class Tee:
    """Several sinks that get the same bytes."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def write(self, data: Bytes, /) -> None:
        for sink in self._sinks:
            sink.write(data)


class Outputs:
    """The outputs of a layer, opened and committed together. Leaving the context discards what is not committed."""

    def __init__(
        self,
        *,
        output: str | os.PathLike[str] | BinaryIO | None = None,
        oci_layout: str | os.PathLike[str] | None = None,
        descriptor: str | os.PathLike[str] | None = None,
        depfile: str | os.PathLike[str] | None = None,
    ) -> None:
        self._opened: list[Output] = []
        try:
            if isinstance(output, str | os.PathLike):
                self._open(FileOutput(output))
            elif output is not None:
                self._open(StreamOutput(output))
            if oci_layout is not None:
                self._open(LayoutOutput(oci_layout))
            self._blobs = tuple(self._opened)
            self._depfile = self._open(FileOutput(depfile)) if depfile is not None else None
            # Last: a visible descriptor implies that the blob exists.
            self._descriptor = self._open(FileOutput(descriptor)) if descriptor is not None else None
        except BaseException:
            self.discard()
            raise

    def _open(self, output: Output) -> Output:
        self._opened.append(output)
        return output

    def __enter__(self) -> Outputs:
        return self

    def __exit__(self, *failed: object) -> None:
        self.discard()

    @property
    def sinks(self) -> Sequence[Sink]:
        """The sink of the blob."""
        return self._blobs

    @property
    def can_restart(self) -> bool:
        """Whether the blob's bytes can be undone."""
        return all(one.can_restart for one in self._blobs)

    def restart(self) -> None:
        """Undo all writes of the blob; raises OutputError."""
        for one in self._blobs:
            one.restart()

    def final_paths(self, digest: Digest) -> list[str]:
        """Return the paths of the files with the blob."""
        found = (one.final_path(digest) for one in self._blobs if isinstance(one, FileOutput))
        return [path for path in found if path is not None]

    def keep(self, digest: Digest, holds: Callable[[str], bool]) -> Sink | None:
        """Keep outputs that are up to date, and return the sink of the others, if any."""
        others = []
        for one in self._blobs:
            path = one.final_path(digest) if isinstance(one, FileOutput) else None
            is_kept = isinstance(one, FileOutput) and path is not None and holds(path) and one.keep(digest)
            if not is_kept:
                others.append(one)
        return Tee(others) if others else None

    @property
    def kept(self) -> int:
        """Number of outputs that were kept."""
        return sum(isinstance(one, FileOutput) and one.is_kept for one in self._blobs)

    def commit(self, digest: Digest, *, descriptor: bytes = b"", depfile: bytes = b"") -> None:
        """Write the requested documents and make everything visible; raises OutputError."""
        if self._depfile is not None:
            self._depfile.write(depfile)
        if self._descriptor is not None:
            self._descriptor.write(descriptor)
        for one in self._opened:
            one.settle()
        for one in self._opened:
            one.commit(digest)

    def discard(self) -> None:
        for one in self._opened:
            one.discard()


@contextmanager
def locked(directory: str) -> Iterator[None]:
    """Lock the index of a layout against other detlayer processes, if the file system has locks."""
    fd = -1
    try:
        try:
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                fail(error, directory)
        yield
    finally:
        if fd >= 0:
            os.close(fd)


def make_layout(directory: str) -> None:
    """Write the missing files that make a directory a layout; raises OutputError."""
    index = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": []}
    version = {"imageLayoutVersion": OCI_LAYOUT_VERSION}
    for name, document in (("index.json", index), ("oci-layout", version)):
        path = os.path.join(directory, name)
        try:
            is_missing = look(path) is None
        except OSError as error:
            fail(error, path)
        if is_missing:
            write_file(path, canonical_json(document), home=home_in(directory))


def write_file(path: str | os.PathLike[str], data: bytes, *, home: str | None = None) -> None:
    """Write a small file at `path` in one step, through `home` if it needs another name; raises OutputError."""
    output = FileOutput(path, home=home)
    try:
        output.write(data)
        output.settle()
        output.commit()
    finally:
        output.discard()


def home_in(layout: str) -> str:
    """Return the directory of a layout for temporary files; among the blobs they would confuse other tools."""
    return os.path.join(layout, ".detlayer")


def _real(path: str | os.PathLike[str]) -> str:
    try:
        return real_path(os.fspath(path))
    except OSError as error:
        fail(error, os.fspath(path))


def write_all(fd: int, data: Bytes) -> None:
    """Write all bytes; raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_directory(path: str) -> None:
    """Sync a directory; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fail(error: OSError, path: str) -> NoReturn:
    """Convert a system error to an OutputError and raise it."""
    shown = printable(path)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            code, message, hint = "disk-full", f"no space left for {shown}", "free some space, or write elsewhere"
        case errno.ENOENT | errno.ENOTDIR:
            code, message = "output-directory-missing", f"directory of {shown} not found"
            hint = f"create it first: mkdir -p {printable(os.path.dirname(path))}"
        case errno.EPIPE:
            code, message, hint = "output-closed", f"{shown} was closed by its reader", "check why the reader stopped"
        case _:
            code, message, hint = "output-write", f"{shown}: {error.strerror}", "write to another place"
    raise OutputError(code, message, hint) from error
