"""Read images written by `docker save` and `podman save`: manifest.json, configs, and layers as plain tars.

Such an archive has no registry manifest, so one is made here, always the same for the same archive. It has OCI media
types, since Docker's lack plain and zstd layers. The config stays unchanged, byte for byte. An archive of docker 25 or
later is also an OCI layout; read it as `oci-archive:` to keep its own manifest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from detlayer.errors import ConfigError, IntegrityError, LayerError, printable
from detlayer.filesystem import is_file
from detlayer.images.archive_files import Archive
from detlayer.images.files import OpenFile, layer_type
from detlayer.images.layout import SAVED, measure, split_name
from detlayer.images.layout_files import read_document
from detlayer.layer.decompress import BlobReader
from detlayer.layer.formats import HEAD_BYTES
from detlayer.oci.documents import Document, parse_config, parse_descriptor, parse_document
from detlayer.oci.references import Reference, parse_reference
from detlayer.oci.types import MEDIA_TYPE_CONFIG, MEDIA_TYPE_MANIFEST, Descriptor, Digest, canonical_json, digest_of

_INDEX = "manifest.json"
_MAX_LAYERS = 1000
_THREADS = 4
# Files named by their digest, if by anything; layers are verified by their diff_ids anyway.
_NAMED_BY_DIGEST = re.compile(r"(?:blobs/sha256/([0-9a-f]{64})|([0-9a-f]{64})\.json)\Z")


class _Saved(msgspec.Struct):
    Config: str
    Layers: list[str] | None = None
    RepoTags: list[str] | None = None
    LayerSources: dict[str, Any] | None = None


class _StoredLayer(NamedTuple):
    descriptor: Descriptor
    diff_id: Digest


class SavedImage(msgspec.Struct, frozen=True):
    """An image of an archive: its generated manifest, and the locations of its blobs."""

    path: str
    manifest: Document
    _archive: Archive
    _names: dict[Digest, str] = {}

    def find(self, digest: Digest) -> OpenFile | None:
        """Open a blob without verifying it; None if it is not found."""
        name = self._names.get(digest)
        return None if name is None else self._archive.open(name)


@contextmanager
def open_saved(text: str, *, max_expansion: int = 200) -> Iterator[SavedImage]:
    """Open `docker-archive:FILE[:REPOSITORY:TAG]`, or `docker-archive:FILE:@N` for the Nth image, from 0.

    Reads all layers once, since the archive lacks their digests. Raises IntegrityError for a layer that does not match
    the config, TreeError, LayerError and ConfigError.
    """
    path, wanted = split_name(text.removeprefix(SAVED), is_file)
    archive = Archive(path, max_expansion=max_expansion)
    try:
        yield _Reading(path, archive, max_expansion).image(wanted)
    finally:
        archive.close()


class _Reading:
    def __init__(self, path: str, archive: Archive, max_expansion: int) -> None:
        self._path = path
        self._archive = archive
        self._max_expansion = max_expansion

    def image(self, wanted: str) -> SavedImage:
        saved = self._choose(self._images(), wanted)
        data = read_document(self._open(saved.Config), saved.Config)
        config = Descriptor(MEDIA_TYPE_CONFIG, digest_of(data), len(data))
        self._check_name(saved.Config, config.digest)
        facts = parse_config(data, saved.Config)
        layers = saved.Layers or []
        if len(layers) != len(facts.diff_ids):
            raise self._invalid(f"has {len(layers)} layers for an image with {len(facts.diff_ids)} diff_ids")
        if len(layers) > _MAX_LAYERS:
            raise self._invalid(f"has an image with over {_MAX_LAYERS} layers")
        sources = saved.LayerSources or {}
        foreign = {diff_id: self._foreign(sources.get(diff_id)) for diff_id in facts.diff_ids}
        wanted_layers = {
            name: None for name, diff_id in zip(layers, facts.diff_ids, strict=True) if not foreign[diff_id]
        }
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
            stored = dict(zip(wanted_layers, pool.map(self._measure, wanted_layers), strict=True))
        found = [
            foreign[diff_id] or self._layer(name, stored[name], diff_id)
            for name, diff_id in zip(layers, facts.diff_ids, strict=True)
        ]
        manifest = canonical_json(
            {
                "schemaVersion": 2,
                "mediaType": MEDIA_TYPE_MANIFEST,
                "config": config.to_document(),
                "layers": [one.to_document() for one in found],
            }
        )
        names = {one.digest: name for one, name in zip(found, layers, strict=True) if not one.is_foreign}
        names[config.digest] = saved.Config
        return SavedImage(self._path, parse_document(manifest, self._path), self._archive, names)

    def _images(self) -> list[_Saved]:
        if not self._archive.holds(_INDEX):
            if self._archive.holds("index.json"):
                hint = f"this is an OCI layout: use oci-archive:{printable(self._path)}"
            else:
                hint = "save the image with docker 1.10 or later, or with podman"
            raise LayerError("layout-invalid", f"{printable(self._path)} has no {_INDEX}", hint)
        try:
            return msgspec.json.decode(read_document(self._open(_INDEX), _INDEX), type=list[_Saved])
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise self._invalid(f"has an invalid {_INDEX}: {error}") from error

    def _choose(self, images: list[_Saved], wanted: str) -> _Saved:
        found = images
        if re.fullmatch(r"@\d{1,6}", wanted):
            found = images[int(wanted[1:]) :][:1]
        elif wanted:
            reference = parse_reference(wanted)
            found = [one for one in images if reference in _references(one)]
        if len(found) == 1:
            return found[0]
        tags = sorted({tag for one in images for tag in one.RepoTags or ()})
        what = f"{printable(self._path)} has {len(found) or 'no'} image{'s' * (len(found) != 1)}"
        hint = f"available: {', '.join(map(printable, tags[:10]))}" if tags else "select one by its number: :@0"
        raise LayerError("layout-image", f"{what} named {printable(wanted)}" if wanted else what, hint)

    def _foreign(self, source: object) -> Descriptor | None:
        """Return the descriptor of a foreign layer, if docker recorded one."""
        if source is None:
            return None
        descriptor = parse_descriptor(source, f"LayerSources of {self._path}")
        return descriptor if descriptor.is_foreign else None

    def _measure(self, name: str) -> _StoredLayer:
        """Read a layer once to compute its digests."""
        with self._open(name) as file, file.stretch(0, min(HEAD_BYTES, file.size_bytes)) as head:
            media_type = layer_type(head.read(HEAD_BYTES))
            if media_type.endswith("tar"):
                digest, size_bytes = measure(file)
                return _StoredLayer(Descriptor(media_type, digest, size_bytes), digest)
            reader = BlobReader(file, max_expansion=self._max_expansion)
            for _ in reader:  # only the digests are needed
                continue
            facts = reader.facts
            assert facts.digest is not None
            assert facts.diff_id is not None
            return _StoredLayer(Descriptor(media_type, facts.digest, facts.blob_bytes), facts.diff_id)

    def _layer(self, name: str, stored: _StoredLayer, diff_id: str) -> Descriptor:
        if str(stored.diff_id) != diff_id:
            raise IntegrityError(
                "blob-digest",
                f"{printable(name)} of {printable(self._path)} has the diff_id {stored.diff_id}, "
                f"but the config has {printable(diff_id)}",
                "save the image again",
            )
        self._check_name(name, stored.descriptor.digest)
        return stored.descriptor

    def _check_name(self, name: str, digest: Digest) -> None:
        named = _NAMED_BY_DIGEST.match(name)
        if named is not None and digest.hex not in named.groups():
            raise IntegrityError(
                "blob-digest", f"{name} of {printable(self._path)} has the digest {digest}", "save the image again"
            )

    def _open(self, name: str) -> OpenFile:
        file = self._archive.open(printable(name))
        if file is None:
            raise self._invalid(f"has no {name}")
        return file

    def _invalid(self, what: str) -> LayerError:
        return LayerError("layout-invalid", f"{printable(self._path)} {printable(what)}", "save the image again")


def _references(saved: _Saved) -> Iterator[Reference]:
    for tag in saved.RepoTags or ():
        try:
            yield parse_reference(tag)
        except ConfigError:  # a name that docker 1.10 accepted, but that is invalid in references
            continue
