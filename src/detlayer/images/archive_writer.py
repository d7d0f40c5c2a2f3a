"""Write images as `oci-archive` and `docker-archive`, the same bytes for the same image.

The tar is deterministic (SPEC 5): sorted entries, fixed times and owners. Each blob is verified while it is written, so
a corrupt one fails the archive before it is published. Sources: image-spec image-layout.md; moby's image/tarexport for
what `docker load` reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import msgspec
from msgspec.structs import replace

from detlayer.errors import ConfigError, IntegrityError, LayerError, printable
from detlayer.layer.decompress import BlobReader
from detlayer.layer.entry import Entry
from detlayer.layer.order import order_key
from detlayer.layer.ports import Sink
from detlayer.layer.tar import END, encode_header, padding
from detlayer.oci.documents import Document, Wanted, parse_config
from detlayer.oci.ports import Body, ImageSource
from detlayer.oci.references import Reference
from detlayer.oci.types import (
    MAX_DOCUMENT_BYTES,
    MEDIA_TYPE_INDEX,
    OCI_LAYOUT_VERSION,
    REF_NAME,
    Descriptor,
    canonical_json,
    parse_digest,
)

_PIECE_BYTES = 1 << 20
_BLOBS = "blobs/sha256"

Pieces = Callable[[], Iterator[bytes]]


class _File(msgspec.Struct, frozen=True):
    """A file of an archive: its path, size and bytes; readable once."""

    path: str
    size_bytes: int
    pieces: Pieces


def write_oci_archive(sink: Sink, wanted: Wanted, source: ImageSource, *, tags: Sequence[str] = ()) -> None:
    """Write an image as a tar of an OCI layout, with `tags` as its names.

    Skips missing foreign layers. Raises LayerError for other missing blobs, IntegrityError for corrupt ones, and
    OutputError.
    """
    root = wanted.root.descriptor()
    named = [replace(root, annotations={REF_NAME: tag}) for tag in tags] or [root]
    listed = [one.to_document() for one in named]
    index = {"schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": listed}
    files = {}
    for document in wanted.documents:
        path = f"{_BLOBS}/{document.digest.hex}"
        files[path] = _bytes(path, document.data)
    for blob in wanted.blobs:
        file = _blob(f"{_BLOBS}/{blob.digest.hex}", blob, source)
        if file is not None:
            files[file.path] = file
    files["index.json"] = _bytes("index.json", canonical_json(index))
    files["oci-layout"] = _bytes("oci-layout", canonical_json({"imageLayoutVersion": OCI_LAYOUT_VERSION}))
    _write(sink, ("blobs", _BLOBS), files.values())


def write_docker_archive(
    sink: Sink, image: Document, source: ImageSource, *, references: Sequence[Reference] = (), max_expansion: int = 200
) -> None:
    """Write one image under these names in the format of `docker load` and `podman load`.

    Plain and gzip layers are copied unchanged; zstd ones, which older engines reject, are decompressed. Raises
    ConfigError for anything but an image of one platform, LayerError, IntegrityError, OutputError.
    """
    config = image.config
    if config is None:
        raise ConfigError(
            "archive-index",
            f"{image.digest} is an index, but a docker-archive has one platform",
            "choose one with --platform, or write an oci-archive",
        )
    if not config.is_config or not all(one.is_layer for one in image.layers):
        raise ConfigError(
            "archive-artifact",
            f"{image.digest} is an artifact, not a container image",
            "write it to a layout or an oci-archive instead",
        )
    config_name = f"{config.digest.hex}.json"
    data = _config(config_name, config, source)
    diff_ids = parse_config(data, str(config.digest)).diff_ids
    if len(diff_ids) != len(image.layers):
        what = f"{config.digest} has {len(diff_ids)} diff_ids for {len(image.layers)} layers"
        raise LayerError("document-invalid", what, "build the image again")
    files = {config_name: _bytes(config_name, data)}
    names = []
    for blob, diff_id in zip(image.layers, diff_ids, strict=True):
        if blob.media_type.endswith("zstd"):
            file = _expanded(blob, diff_id, source, max_expansion, files)
        else:
            suffix = "tar.gz" if blob.media_type.endswith("gzip") else "tar"
            file = _needed(f"{blob.digest.hex}.{suffix}", blob, source)
        files[file.path] = file
        names.append(file.path)
    listed = [{"Config": config_name, "RepoTags": [str(one) for one in references], "Layers": names}]
    files["manifest.json"] = _bytes("manifest.json", canonical_json(listed))
    _write(sink, (), files.values())


def _write(sink: Sink, directories: Iterable[str], files: Iterable[_File]) -> None:
    """Write a tar (SPEC 5) of these files in order (SPEC 3.4)."""
    entries = [(Entry(path.encode(), "dir", 0o755), _nothing) for path in directories]
    entries += [(Entry(one.path.encode(), "file", size_bytes=one.size_bytes), one.pieces) for one in files]
    for entry, pieces in sorted(entries, key=lambda pair: order_key(pair[0].path)):
        sink.write(encode_header(entry))
        for piece in pieces():
            sink.write(piece)
        sink.write(bytes(padding(entry.size_bytes)))
    sink.write(END)


def _nothing() -> Iterator[bytes]:
    return iter(())


def _bytes(path: str, data: bytes) -> _File:
    return _File(path, len(data), lambda: iter((data,)))


def _blob(path: str, blob: Descriptor, source: ImageSource) -> _File | None:
    """Return a blob as a file, verified when read; None for a missing foreign layer."""
    body = source.body(blob)
    if body is None and blob.is_foreign:
        return None
    if body is None:
        raise LayerError(
            "blob-missing", f"blob {blob.digest} not found, but an archive needs it", "pull it without --manifests-only"
        )
    return _File(path, blob.size_bytes, partial(_checked, body, blob))


def _needed(path: str, blob: Descriptor, source: ImageSource) -> _File:
    file = _blob(path, blob, source)
    if file is None:
        raise LayerError(
            "blob-missing", f"foreign layer {blob.digest} not found", "write an oci-archive, which does not need it"
        )
    return file


def _checked(body: Body, blob: Descriptor) -> Iterator[bytes]:
    """Read a blob; raises IntegrityError at its end, or before excess bytes."""
    sha, count = hashlib.sha256(), 0
    with body.open() as file:
        while piece := file.read(_PIECE_BYTES):
            sha.update(piece)
            count += len(piece)
            if count > blob.size_bytes:
                break
            yield piece
    if count != blob.size_bytes or sha.hexdigest() != blob.digest.hex:
        raise IntegrityError("blob-digest", f"blob {blob.digest} is corrupt", "build or pull the image again")


def _config(path: str, config: Descriptor, source: ImageSource) -> bytes:
    if config.size_bytes > MAX_DOCUMENT_BYTES:
        raise LayerError(
            "document-too-long", f"config {config.digest} has {config.size_bytes} bytes", "do not trust this image"
        )
    return b"".join(_needed(path, config, source).pieces())


def _expanded(
    blob: Descriptor, diff_id: str, source: ImageSource, max_expansion: int, known: Mapping[str, _File]
) -> _File:
    """Return the tar in a blob as a file; the blob is read once for the size, and again for the bytes."""
    try:
        name = f"{parse_digest(diff_id).hex}.tar"
    except ValueError as error:
        raise LayerError(
            "document-invalid", f"invalid diff_id {printable(diff_id)}", "build the image again"
        ) from error
    if name in known:
        return known[name]
    body = source.body(blob)
    if body is None:
        return _needed(name, blob, source)

    def pieces() -> Iterator[bytes]:
        with body.open() as file:
            reader = BlobReader(file, max_expansion=max_expansion)
            try:
                yield from reader
            except LayerError:
                while file.read(_PIECE_BYTES):  # a corrupt source raises at its end
                    pass
                raise
        facts = reader.facts
        if (facts.digest, str(facts.diff_id)) != (blob.digest, diff_id):
            raise IntegrityError(
                "blob-digest", f"{blob.digest} does not match the diff_id {diff_id}", "build or pull the image again"
            )

    return _File(name, sum(map(len, pieces())), pieces)
