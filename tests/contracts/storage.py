"""The storage of a strict registry: repositories with blobs, manifests, tags and uploads. No HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from typing import Any

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES = frozenset((INDEX, DOCKER_LIST))
MANIFESTS = frozenset((MANIFEST, DOCKER_MANIFEST))


def sha256(data: bytes | bytearray) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_foreign(descriptor: dict[str, Any]) -> bool:
    """Whether a manifest is accepted without this layer (image-spec layer.md; Docker's foreign layers)."""
    kind = str(descriptor.get("mediaType", ""))
    return "nondistributable" in kind or "rootfs.foreign" in kind


def named_blobs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the descriptors of the required config and layers."""
    named = [document["config"], *document.get("layers", [])] if "config" in document else []
    return [one for one in named if not is_foreign(one)]


def named_children(document: dict[str, Any]) -> list[dict[str, Any]]:
    return list(document.get("manifests", []))


@dataclass(frozen=True, slots=True)
class Stored:
    """A manifest with the bytes and media type of its PUT."""

    media_type: str
    data: bytes

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.data)
        return document


@dataclass(slots=True)
class Upload:
    """An upload session. `state` changes with each response; `disturbed`: the client may not know the latest one."""

    id: str
    repository: str
    state: str
    data: bytearray = field(default_factory=bytearray)
    chunks: int = 0
    last_chunk_bytes: int = 0
    disturbed: bool = False


@dataclass(slots=True)
class Repository:
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, Stored] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    old_tags: dict[str, list[str]] = field(
        default_factory=dict
    )  # the results of the next reads of a tag ("": not found)
    lost: set[str] = field(default_factory=set)  # deleted without the client's knowledge
    lying: set[str] = field(default_factory=set)  # deleted, but HEAD still finds them

    def missing(self, document: dict[str, Any], *, sparse: bool = False) -> list[str]:
        """Return the digests of a manifest that the repository lacks."""
        blobs = [one["digest"] for one in named_blobs(document)]
        children = [] if sparse else [one["digest"] for one in named_children(document)]
        absent = [one for one in blobs if one not in self.blobs] + [
            one for one in children if one not in self.manifests
        ]
        return list(dict.fromkeys(absent))


@dataclass(slots=True)
class Storage:
    """All repositories of a registry. Hold `lock` to read or change anything."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, Upload] = field(default_factory=dict)
    finished: set[str] = field(default_factory=set)  # sessions completed by a client
    ended: set[str] = field(default_factory=set)  # sessions dropped by the registry, or ended without a response
    lock: threading.RLock = field(default_factory=threading.RLock)

    def repository(self, name: str) -> Repository:
        """Return a repository, created if missing."""
        with self.lock:
            return self.repositories.setdefault(name, Repository())

    def put_blob(self, name: str, data: bytes) -> str:
        with self.lock:
            digest = sha256(data)
            repository = self.repository(name)
            repository.blobs[digest] = data
            repository.lost.discard(digest)
            repository.lying.discard(digest)
            return digest

    def put_manifest(self, name: str, data: bytes, media_type: str, tag: str = "") -> str:
        with self.lock:
            digest = sha256(data)
            repository = self.repository(name)
            repository.manifests[digest] = Stored(media_type, data)
            repository.lost.discard(digest)
            if tag:
                repository.tags[tag] = digest
            return digest

    def lose(self, name: str, digest: str, *, lying: bool = False) -> None:
        """Delete a blob or a manifest, as garbage collection does; `lying`: HEAD still reports it."""
        with self.lock:
            repository = self.repository(name)
            repository.blobs.pop(digest, None)
            repository.manifests.pop(digest, None)
            repository.tags = {tag: target for tag, target in repository.tags.items() if target != digest}
            repository.lost.add(digest)
            if lying:
                repository.lying.add(digest)

    def forget(self) -> None:
        """Lose everything, as a restarted registry that stores its data in memory."""
        with self.lock:
            for repository in self.repositories.values():
                repository.lost |= repository.blobs.keys() | repository.manifests.keys()
                repository.blobs.clear()
                repository.manifests.clear()
                repository.tags.clear()
            self.end_uploads()

    def end_uploads(self) -> None:
        """Drop all open sessions, as registries do after a while."""
        with self.lock:
            self.ended |= self.uploads.keys()
            self.uploads.clear()
