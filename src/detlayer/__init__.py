"""Reproducible container layers: the same files give the same bytes, on any machine.

    import detlayer
    layer = detlayer.pack(["dist:/srv/app"], output="app.tar.gz")
    print(layer.digest, layer.diff_id)

Names load when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detlayer.building import Build as Build
    from detlayer.building import BuildReport as BuildReport
    from detlayer.building.image_from_files import assemble_image as assemble_image
    from detlayer.building.image_from_files import assemble_index as assemble_index
    from detlayer.difference import DiffReport as DiffReport
    from detlayer.difference import diff as diff
    from detlayer.errors import AuthError as AuthError
    from detlayer.errors import ConfigError as ConfigError
    from detlayer.errors import DetlayerError as DetlayerError
    from detlayer.errors import IntegrityError as IntegrityError
    from detlayer.errors import LayerError as LayerError
    from detlayer.errors import NotFoundError as NotFoundError
    from detlayer.errors import OutputError as OutputError
    from detlayer.errors import RegistryError as RegistryError
    from detlayer.errors import RejectedError as RejectedError
    from detlayer.errors import TreeError as TreeError
    from detlayer.errors import UnavailableError as UnavailableError
    from detlayer.inspection import LayerContents as LayerContents
    from detlayer.inspection import inspect as inspect
    from detlayer.layer.codec import Codec as Codec
    from detlayer.layer.entry import Mtime as Mtime
    from detlayer.layer.entry import Owner as Owner
    from detlayer.layer.entry import Profile as Profile
    from detlayer.layer.ports import Reporter as Reporter
    from detlayer.layer.writer import Layer as Layer
    from detlayer.normalization import normalize as normalize
    from detlayer.oci.platforms import parse_platform as parse_platform
    from detlayer.oci.references import Reference as Reference
    from detlayer.oci.references import parse_reference as parse_reference
    from detlayer.oci.types import Descriptor as Descriptor
    from detlayer.oci.types import Digest as Digest
    from detlayer.oci.types import Platform as Platform
    from detlayer.packing.options import PackOptions as PackOptions
    from detlayer.packing.packer import pack as pack
    from detlayer.packing.packer import parse_source as parse_source
    from detlayer.transfer.pull import pull as pull
    from detlayer.transfer.pull import resolve as resolve
    from detlayer.transfer.push import PushReport as PushReport
    from detlayer.transfer.push import plan_push as plan_push
    from detlayer.transfer.push import push as push
    from detlayer.tree import Selection as Selection
    from detlayer.tree import Source as Source
    from detlayer.verification import VerifyReport as VerifyReport
    from detlayer.verification import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "building": (
        "Build",
        "BuildReport",
    ),
    "building.image_from_files": (
        "assemble_image",
        "assemble_index",
    ),
    "difference": (
        "DiffReport",
        "diff",
    ),
    "errors": (
        "AuthError",
        "ConfigError",
        "DetlayerError",
        "IntegrityError",
        "LayerError",
        "NotFoundError",
        "OutputError",
        "RegistryError",
        "RejectedError",
        "TreeError",
        "UnavailableError",
    ),
    "inspection": (
        "LayerContents",
        "inspect",
    ),
    "layer.codec": ("Codec",),
    "layer.entry": (
        "Mtime",
        "Owner",
        "Profile",
    ),
    "layer.ports": ("Reporter",),
    "layer.writer": ("Layer",),
    "normalization": ("normalize",),
    "oci.platforms": ("parse_platform",),
    "oci.references": (
        "Reference",
        "parse_reference",
    ),
    "oci.types": (
        "Descriptor",
        "Digest",
        "Platform",
    ),
    "packing.options": ("PackOptions",),
    "packing.packer": (
        "pack",
        "parse_source",
    ),
    "transfer.pull": (
        "pull",
        "resolve",
    ),
    "transfer.push": (
        "PushReport",
        "plan_push",
        "push",
    ),
    "tree": (
        "Selection",
        "Source",
    ),
    "verification": (
        "VerifyReport",
        "verify",
    ),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"detlayer.{module}"), name)
    raise AttributeError(f"module 'detlayer' has no attribute {name!r}")
