"""Where a blob goes: a file, a stream, an OCI layout. What is written appears whole or not at all.

A file is written without a name (`temporary`), synced, and then gets its name in one step. Knows no layer; the digest
under which a layout keeps a blob is told at the end.
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

# What the system says where a file system has no locks; NFS wants a descriptor that can be written to.
_NO_LOCKS = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL, errno.EBADF)


class Output(Protocol):
    """A sink that is undecided until `commit` or `discard`."""

    @property
    def can_restart(self) -> bool:
        """Whether what was written can be taken back."""

    def restart(self) -> None:
        """Take back all that was written, where that is possible; raises OutputError."""

    def write(self, data: Bytes, /) -> None: ...

    def settle(self) -> None:
        """Bring what was written to the disk, where a full one shows; raises OutputError."""

    def commit(self, digest: Digest | None = None) -> None:
        """Make what was settled visible, in a layout under `digest`; raises OutputError."""

    def discard(self) -> None:
        """Leave nothing behind; does nothing after a commit."""


class FileOutput:
    """A file that replaces what was at `path` in one step. A device or FIFO there is written to directly."""

    def __init__(self, path: str | os.PathLike[str], *, home: str | None = None) -> None:
        """`home` is for temporary files that need a name (`Temporary`)."""
        self._path = _real(path)  # a symlink stays; what it points to is replaced
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
        """Name the file that a commit makes; None for a device or FIFO."""
        return self._path if self._temporary is not None else None

    def keep(self, digest: Digest) -> bool:
        """Let what is at the goal stay: it is what would be written. It gets a new time, as make expects.

        Tells whether that could be done; else it has to be written.
        """
        path = self.final_path(digest)
        try:
            if path is not None:
                os.utime(path)
                self.is_kept = True
        except OSError:  # somebody else's file, in a directory of ours
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
    """A blob of an OCI layout (image-spec image-layout.md), which is made where there is none."""

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
                except FileExistsError as error:  # made by another pack just now, or no directory
                    if not os.path.isdir(path):
                        fail(NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)), error.filename)
        except OSError as error:
            fail(error, self._layout)

    def _remove_directories(self) -> None:
        while self._made:
            try:
                os.rmdir(self._made.pop())
            except OSError:  # somebody else put something into it, which keeps those above, too
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
    """A stream that is somebody else's: what was written can't be taken back."""

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
                if count is None:  # says a raw stream that would have to wait
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
    """Where a layer goes, opened and decided together. A context: what is not committed is discarded at its end."""

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
            # Last, so that whoever finds a descriptor finds the blob.
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
        """Where the blob is written to."""
        return self._blobs

    @property
    def can_restart(self) -> bool:
        """Whether what was written of the blob can be taken back."""
        return all(one.can_restart for one in self._blobs)

    def restart(self) -> None:
        """Take back all that was written of the blob; raises OutputError."""
        for one in self._blobs:
            one.restart()

    def final_paths(self, digest: Digest) -> list[str]:
        """Name the files that will hold the blob."""
        found = (one.final_path(digest) for one in self._blobs if isinstance(one, FileOutput))
        return [path for path in found if path is not None]

    def keep(self, digest: Digest, holds: Callable[[str], bool]) -> Sink | None:
        """Let files that hold the blob already stay as they are, and give the sink of the others, if there are any."""
        others = []
        for one in self._blobs:
            path = one.final_path(digest) if isinstance(one, FileOutput) else None
            is_kept = isinstance(one, FileOutput) and path is not None and holds(path) and one.keep(digest)
            if not is_kept:
                others.append(one)
        return Tee(others) if others else None

    @property
    def kept(self) -> int:
        """How many outputs stay as they are."""
        return sum(isinstance(one, FileOutput) and one.is_kept for one in self._blobs)

    def commit(self, digest: Digest, *, descriptor: bytes = b"", depfile: bytes = b"") -> None:
        """Write the documents that were asked for and make everything visible; raises OutputError."""
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
    """Keep other processes of ours from changing the index of a layout, where the file system has locks."""
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
    """Write what makes a directory a layout, where it is not there; raises OutputError."""
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
    """Put a small file at `path` in one step, by way of `home` if it needs another name; raises OutputError."""
    output = FileOutput(path, home=home)
    try:
        output.write(data)
        output.settle()
        output.commit()
    finally:
        output.discard()


def home_in(layout: str) -> str:
    """Name the directory of a layout for temporary files: among the blobs, other tools would stumble over them."""
    return os.path.join(layout, ".detlayer")


def _real(path: str | os.PathLike[str]) -> str:
    try:
        return real_path(os.fspath(path))
    except OSError as error:
        fail(error, os.fspath(path))


def write_all(fd: int, data: Bytes) -> None:
    """Write to the last byte; raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def sync_directory(path: str) -> None:
    """Bring names to the disk; raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fail(error: OSError, path: str) -> NoReturn:
    """Raise what the system says as an OutputError."""
    shown = printable(path)
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            code, message, hint = "disk-full", f"no space is left for {shown}", "free some, or write elsewhere"
        case errno.ENOENT | errno.ENOTDIR:
            code, message = "output-directory-missing", f"there is no directory for {shown}"
            hint = f"make it first: mkdir -p {printable(os.path.dirname(path))}"
        case errno.EPIPE:
            code, message, hint = "output-closed", f"{shown} was closed by its reader", "see why the reader stopped"
        case _:
            code, message, hint = "output-write", f"{shown}: {error.strerror}", "choose another place to write to"
    raise OutputError(code, message, hint) from error
