"""OCI layouts made by hand: config, manifest and index around layers that `detlayer pack --oci` put there."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.e2e.commands import Packed

TAG = "test"
_PREFIX = "application/vnd.oci.image."
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_image(layout: Path, layers: Sequence[Packed], settings: dict[str, Any] | None = None) -> str:
    """Make an image of layers that are in `layout`; returns the manifest's digest."""
    machine = platform.machine()
    config = {
        "architecture": _ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": settings or {},
        "rootfs": {"type": "layers", "diff_ids": [layer.note("diff-id") for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _PREFIX + "manifest.v1+json",
        "config": _put(layout, "config", config),
        "layers": [layer.document for layer in layers],
    }
    described = _put(layout, "manifest", manifest)
    index = {
        "schemaVersion": 2,
        "mediaType": _PREFIX + "index.v1+json",
        "manifests": [{**described, "annotations": {"org.opencontainers.image.ref.name": TAG}}],
    }
    (layout / "index.json").write_text(json.dumps(index), encoding="utf-8")
    return str(described["digest"])


def reference(layout: Path) -> str:
    """Name the image as skopeo and podman do."""
    return f"oci:{layout}:{TAG}"


def _put(layout: Path, kind: str, document: dict[str, Any]) -> dict[str, Any]:
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"mediaType": f"{_PREFIX}{kind}.v1+json", "digest": f"sha256:{digest}", "size": len(data)}
