"""Write an OCI layout: resumes interrupted blobs, and lets several writers change the index.

An unfinished blob is `.detlayer/HEX.part` in the layout, since umoci rejects unknown files among the blobs. It is kept
when a download fails, and renamed once its digest is verified. Sources: image-spec image-layout.md, and its annotations
for image names.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from detlayer.errors import IntegrityError, LayerError, OutputError, printable
from detlayer.layer.ports import Bytes
from detlayer.oci.documents import decode_object
from detlayer.oci.types import (
    INDEX_TYPES,
    MAX_DOCUMENT_BYTES,
    MEDIA_TYPE_INDEX,
    REF_NAME,
    Descriptor,
    Digest,
    canonical_json,
    digest_of,
)
from detlayer.output.files import fail, home_in, locked, make_layout, sync_directory, write_all, write_file
from detlayer.output.temporary import Temporary, is_at, make_in, sweep

_PIECE_BYTES = 1 << 20
_TRIES = 10
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class LayoutWriter:
    """A layout in a directory, created on the first write. Safe for several threads and processes."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._layout = os.path.realpath(directory)
        self._blobs = os.path.join(self._layout, "blobs", "sha256")
        self._home = home_in(self._layout)
        self._is_swept = False

    def has(self, descriptor: Descriptor) -> bool:
        """Tell whether a blob with this digest and size exists; only complete blobs get their names."""
        try:
            status = os.stat(self._path(descriptor.digest))
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == descriptor.size_bytes

    @contextmanager
    def part(self, descriptor: Descriptor) -> Iterator[PartialBlob]:
        """Start or resume a blob; an incomplete one is kept on failure, a corrupt one is not. Raises OutputError."""
        self._make_directories()
        part = PartialBlob(self._path(descriptor.digest), self._home, descriptor)
        try:
            yield part
        except IntegrityError:
            part.remove()
            raise
        finally:
            part.close()
            with suppress(OSError):  # not empty: other parts are in use
                os.rmdir(self._home)

    def put(self, data: bytes) -> None:
        """Write a small blob, such as a document; raises OutputError."""
        digest = digest_of(data)
        if not self.has(Descriptor("", digest, len(data))):
            self._make_directories()
            write_file(self._path(digest), data, home=self._home)

    def tag(self, descriptor: Descriptor, tag: str = "") -> None:
        """Add an image to index.json, replacing one with the same name; other entries are kept.

        Without a tag the image has only its digest. Raises OutputError, and LayerError for an invalid index.
        """
        self._make_directories()
        path = os.path.join(self._layout, "index.json")
        named = descriptor.to_document()
        if tag:
            named["annotations"] = {**descriptor.annotations, REF_NAME: tag}
        try:
            sync_directory(self._blobs)  # sync blobs before the index names them
            with locked(self._layout):
                make_layout(self._layout)
                index = decode_object(_read(path), path)
                known = index.get("manifests")
                if not isinstance(known, list | None) or not _is_index(index):
                    raise LayerError(
                        "layout-invalid", f"{printable(path)} is not an image index", "write to another directory"
                    )
                index["manifests"] = _replace(known or [], named)
                write_file(path, canonical_json(index), home=self._home)
        except OSError as error:
            fail(error, path)

    def _path(self, digest: Digest) -> str:
        return os.path.join(self._blobs, digest.hex)

    def _make_directories(self) -> None:
        try:
            os.makedirs(self._blobs, exist_ok=True)
            if not self._is_swept:
                self._is_swept = True
                sweep(self._layout)
                sweep(self._blobs)
        except FileExistsError as error:
            fail(NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)), error.filename)
        except OSError as error:
            fail(error, self._blobs)


def _is_index(document: dict[str, Any]) -> bool:
    """Tell whether a document is an index; with layers or a config it is a manifest."""
    named = document.get("mediaType") or MEDIA_TYPE_INDEX
    return named in INDEX_TYPES and document.get("config") is None and document.get("layers") is None


class PartialBlob:
    """A blob being written, possibly resumed. Use it from one thread, and close it.

    Two writers of the same blob do not conflict: the second one writes a temporary file of its own.
    """

    def __init__(self, goal: str, directory: str, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._goal = goal
        self._part = os.path.join(directory, f"{descriptor.digest.hex}.part")
        self._own: Temporary | None = None
        self._sha = hashlib.sha256()
        self._offset = 0
        try:
            fd = _open_shared(self._part)
            if fd is None:
                self._own = Temporary(os.path.dirname(goal), directory)
                fd = self._own.fd
            self._fd = fd
        except OSError as error:
            fail(error, self._part)
        try:
            self._take_up()
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                fail(error, self._part)
            raise

    def _take_up(self) -> None:
        """Read the existing bytes into the digest."""
        if os.fstat(self._fd).st_size > self._descriptor.size_bytes:
            os.ftruncate(self._fd, 0)
        while piece := os.read(self._fd, _PIECE_BYTES):
            self._sha.update(piece)
            self._offset += len(piece)

    @property
    def offset(self) -> int:
        """The number of bytes written."""
        return self._offset

    def write(self, data: Bytes, /) -> None:
        """Append bytes; raises OutputError, and IntegrityError for excess bytes."""
        if self._offset + len(data) > self._descriptor.size_bytes:
            raise self._wrong(f"has over {self._descriptor.size_bytes} bytes")
        try:
            write_all(self._fd, data)
        except OSError as error:
            # Remove the bytes of a failed write, such as on a full disk: they are not counted.
            with suppress(OSError):
                os.ftruncate(self._fd, self._offset)
            fail(error, self._goal)
        self._sha.update(data)
        self._offset += len(data)

    def finish(self) -> None:
        """Verify size and digest, and publish the blob; raises IntegrityError and OutputError.

        A part that is too short can be resumed.
        """
        if self._offset != self._descriptor.size_bytes:
            self.close()  # close it first to keep the part
            raise self._wrong(f"has {self._offset} bytes; expected {self._descriptor.size_bytes}")
        if self._sha.hexdigest() != self._descriptor.digest.hex:
            raise self._wrong(f"has the digest sha256:{self._sha.hexdigest()}")
        try:
            os.fsync(self._fd)
            if self._own is not None:
                self._own.publish(self._goal)
            else:
                os.replace(self._part, self._goal)
        except OSError as error:
            fail(error, self._goal)
        self.close()

    def remove(self) -> None:
        """Remove the part: it is corrupt and must not be resumed."""
        if self._fd >= 0 and self._own is None:
            with suppress(OSError):
                os.unlink(self._part)

    def close(self) -> None:
        """Close the file; can be called again."""
        fd, self._fd = self._fd, -1
        if self._own is not None:
            self._own.close()
        elif fd >= 0:
            os.close(fd)

    def _wrong(self, what: str) -> IntegrityError:
        return IntegrityError(
            "blob-digest", f"{self._descriptor.digest} {what}", "try again; if it fails again, the source is corrupt"
        )


def _open_shared(path: str) -> int | None:
    """Open and lock the part of an earlier attempt; None if another process uses it."""
    for _ in range(_TRIES):
        fd = make_in(os.path.dirname(path), lambda: os.open(path, _FLAGS, 0o666))
        status = os.fstat(fd)
        try:
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EEXIST, "not a regular file")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last user may have renamed it to its final name.
            if is_at(path, status):
                return fd
        except OSError as error:
            os.close(fd)
            if error.errno == errno.EEXIST:
                raise
            if not isinstance(error, BlockingIOError) and not status.st_size:  # no locks here
                with suppress(OSError):
                    os.unlink(path)
            return None
        os.close(fd)
    return None


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise OutputError(
            "output-write", f"{printable(path)} has over {MAX_DOCUMENT_BYTES} bytes", "write to another layout"
        )
    return data


def _replace(manifests: list[Any], named: dict[str, Any]) -> list[Any]:
    """Replace the descriptor of the same name, or append the new one."""
    tag = named.get("annotations", {}).get(REF_NAME)
    made: list[Any] = []
    is_placed = False
    for one in manifests:
        annotations = one.get("annotations") if isinstance(one, dict) else None
        has = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
        is_same = has == tag and (tag is not None or (isinstance(one, dict) and one.get("digest") == named["digest"]))
        if not is_same:
            made.append(one)
        elif not is_placed:
            made.append(named)
            is_placed = True
    return made if is_placed else [*made, named]
