"""An OCI layout that an image is fetched into: interrupted blobs are resumed, and many writers may change its index.

A blob that is on its way is `.detlayer/HEX.part` in the layout: among the blobs, umoci would stumble over it. It
stays when a fetch fails, and gets its name when its digest is right. Sources: image-spec image-layout.md; its
annotations for the names of images.
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
    """A layout in a directory, which is made when something is written. Safe with several threads and processes."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._layout = os.path.realpath(directory)
        self._blobs = os.path.join(self._layout, "blobs", "sha256")
        self._home = home_in(self._layout)
        self._is_swept = False

    def has(self, descriptor: Descriptor) -> bool:
        """Tell whether a blob of that digest and size is there: it got its name when it was whole."""
        try:
            status = os.stat(self._path(descriptor.digest))
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == descriptor.size_bytes

    @contextmanager
    def part(self, descriptor: Descriptor) -> Iterator[PartialBlob]:
        """Begin or resume a blob; what was written stays if it fails, unless it is wrong. Raises OutputError."""
        self._make_directories()
        part = PartialBlob(self._path(descriptor.digest), self._home, descriptor)
        try:
            yield part
        except IntegrityError:
            part.remove()
            raise
        finally:
            part.close()
            with suppress(OSError):  # other parts are in it
                os.rmdir(self._home)

    def put(self, data: bytes) -> None:
        """Write a small blob, such as a document; raises OutputError."""
        digest = digest_of(data)
        if not self.has(Descriptor("", digest, len(data))):
            self._make_directories()
            write_file(self._path(digest), data, home=self._home)

    def tag(self, descriptor: Descriptor, tag: str = "") -> None:
        """Name an image in index.json, in place of what had that name; what others have put there stays.

        Without a tag it is named by its digest only. Raises OutputError, and LayerError for an index that is none.
        """
        self._make_directories()
        path = os.path.join(self._layout, "index.json")
        named = descriptor.to_document()
        if tag:
            named["annotations"] = {**descriptor.annotations, REF_NAME: tag}
        try:
            sync_directory(self._blobs)  # what the index names is on the disk before it is named
            with locked(self._layout):
                make_layout(self._layout)
                index = decode_object(_read(path), path)
                known = index.get("manifests")
                if not isinstance(known, list | None) or not _is_index(index):
                    raise LayerError(
                        "layout-invalid", f"{printable(path)} is not an image index", "write into another directory"
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
    """Tell whether a document is an index: one with layers or a config is a manifest, whatever else it has."""
    named = document.get("mediaType") or MEDIA_TYPE_INDEX
    return named in INDEX_TYPES and document.get("config") is None and document.get("layers") is None


class PartialBlob:
    """A blob that is being written, from where an earlier attempt stopped. Use from one thread, and close it.

    Two that write the same blob at once do not meet: the second has a file of its own, which does not stay.
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
        """Read what is there, which the digest is of, too."""
        if os.fstat(self._fd).st_size > self._descriptor.size_bytes:
            os.ftruncate(self._fd, 0)
        while piece := os.read(self._fd, _PIECE_BYTES):
            self._sha.update(piece)
            self._offset += len(piece)

    @property
    def offset(self) -> int:
        """How many bytes are there."""
        return self._offset

    def write(self, data: Bytes, /) -> None:
        """Take the next bytes; raises OutputError, and IntegrityError if there are more than there should be."""
        if self._offset + len(data) > self._descriptor.size_bytes:
            raise self._wrong(f"has over {self._descriptor.size_bytes} bytes")
        try:
            write_all(self._fd, data)
        except OSError as error:
            # What a full disk took of it is not counted, so it must not be there.
            with suppress(OSError):
                os.ftruncate(self._fd, self._offset)
            fail(error, self._goal)
        self._sha.update(data)
        self._offset += len(data)

    def finish(self) -> None:
        """Check size and digest of what is there, and make it visible; raises IntegrityError and OutputError.

        A part that is too short can be resumed.
        """
        if self._offset != self._descriptor.size_bytes:
            self.close()  # so that it is not removed
            raise self._wrong(f"has {self._offset} bytes, not {self._descriptor.size_bytes}")
        if self._sha.hexdigest() != self._descriptor.digest.hex:
            raise self._wrong(f"came as sha256:{self._sha.hexdigest()}")
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
        """Remove what is there: it is wrong, and must not be resumed."""
        if self._fd >= 0 and self._own is None:
            with suppress(OSError):
                os.unlink(self._part)

    def close(self) -> None:
        """Let go of it; may be called again."""
        fd, self._fd = self._fd, -1
        if self._own is not None:
            self._own.close()
        elif fd >= 0:
            os.close(fd)

    def _wrong(self, what: str) -> IntegrityError:
        return IntegrityError(
            "blob-digest",
            f"{self._descriptor.digest} {what}",
            "try again; if that does not help, its source is damaged",
        )


def _open_shared(path: str) -> int | None:
    """Open and lock the file that an earlier attempt may have begun; None if somebody else has it."""
    for _ in range(_TRIES):
        fd = make_in(os.path.dirname(path), lambda: os.open(path, _FLAGS, 0o666))
        status = os.fstat(fd)
        try:
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EEXIST, "is no regular file")
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it until now may have given it its final name.
            if is_at(path, status):
                return fd
        except OSError as error:
            os.close(fd)
            if error.errno == errno.EEXIST:
                raise
            if not isinstance(error, BlockingIOError) and not status.st_size:  # there are no locks: nobody can share it
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
            "output-write", f"{printable(path)} has over {MAX_DOCUMENT_BYTES} bytes", "choose another layout"
        )
    return data


def _replace(manifests: list[Any], named: dict[str, Any]) -> list[Any]:
    """Put a descriptor where the one of that name was, or else behind the others."""
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
