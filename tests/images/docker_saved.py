"""Archives in the formats of `docker save` over the years, made by hand: tests have no docker daemon."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Style = Literal["plain", "symlink", "hardlink", "layout"]


@dataclass(frozen=True)
class Image:
    """An image to save. `layers` are tars, compressed or not; `diff_ids` are those in the config."""

    layers: Sequence[bytes]
    tags: Sequence[str] = ("example.org/team/app:v1",)
    diff_ids: Sequence[str] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> bytes:
        diff_ids = ["sha256:" + hashlib.sha256(one).hexdigest() for one in self.layers]
        rootfs = {"type": "layers", "diff_ids": diff_ids if self.diff_ids is None else list(self.diff_ids)}
        # Docker writes more fields than image-spec has, with Go's whitespace.
        return (
            json.dumps({"architecture": "amd64", "os": "linux", "docker_version": "20.10", **self.settings}).encode()[
                :-1
            ]
            + b', "rootfs": %b}\n' % json.dumps(rootfs).encode()
        )


def save(path: Path, *images: Image, style: Style = "plain", index: Any = None, sources: Any = None) -> Path:
    """Write an archive. In old formats, a repeated layer is a link, which comes before its target."""
    listed = []
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, image in enumerate(images):
            names = _add_layers(archive, number, image, style)
            config = hashlib.sha256(image.config).hexdigest()
            name = f"blobs/sha256/{config}" if style == "layout" else f"{config}.json"
            _add(archive, name, image.config)
            one = {"Config": name, "RepoTags": list(image.tags) or None, "Layers": names}
            listed.append({**one, "LayerSources": sources} if sources is not None else one)
        if style == "layout":
            _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "manifest.json", json.dumps(listed if index is None else index).encode())
        _add(archive, "repositories", b"{}")
    return path


def _add_layers(archive: tarfile.TarFile, number: int, image: Image, style: Style) -> list[str]:
    names: list[str] = []
    known: dict[bytes, str] = {}
    for place, layer in enumerate(image.layers):
        digest = hashlib.sha256(layer).hexdigest()
        if style == "layout":
            name = f"blobs/sha256/{digest}"
            if name not in names:
                _add(archive, name, layer)
        else:
            directory = hashlib.sha256(b"%d %d" % (number, place)).hexdigest()
            name = f"{directory}/layer.tar"
            _add(archive, f"{directory}/VERSION", b"1.0")
            if style == "plain" or layer not in known:
                _add(archive, name, layer)
            else:
                info = tarfile.TarInfo(name)
                info.type = tarfile.SYMTYPE if style == "symlink" else tarfile.LNKTYPE
                info.linkname = f"../{known[layer]}" if style == "symlink" else known[layer]
                archive.addfile(info)
            known.setdefault(layer, name)
        names.append(name)
    return names


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
