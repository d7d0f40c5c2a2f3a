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
    from detlayer.building.single import assemble_image as assemble_image
    from detlayer.building.single import assemble_index as assemble_index
    from detlayer.codec import Codec as Codec
    from detlayer.difference import DiffReport as DiffReport
    from detlayer.difference import diff as diff
    from detlayer.entry import Mtime as Mtime
    from detlayer.entry import Owner as Owner
    from detlayer.entry import Profile as Profile
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
    from detlayer.layer import Layer as Layer
    from detlayer.names import Reference as Reference
    from detlayer.names import parse_reference as parse_reference
    from detlayer.normalisation import normalize as normalize
    from detlayer.oci import Descriptor as Descriptor
    from detlayer.oci import Digest as Digest
    from detlayer.oci import Platform as Platform
    from detlayer.packing import pack as pack
    from detlayer.packing import parse_source as parse_source
    from detlayer.platforms import parse_platform as parse_platform
    from detlayer.ports import Reporter as Reporter
    from detlayer.publishing import PushReport as PushReport
    from detlayer.publishing import plan_push as plan_push
    from detlayer.publishing import push as push
    from detlayer.pulling import pull as pull
    from detlayer.pulling import resolve as resolve
    from detlayer.tree import Selection as Selection
    from detlayer.tree import Source as Source
    from detlayer.verification import VerifyReport as VerifyReport
    from detlayer.verification import verify as verify

__version__ = "0.1.0"

_HOMES = {
    "building": ("Build", "BuildReport"),
    "building.single": ("assemble_image", "assemble_index"),
    "codec": ("Codec",),
    "difference": ("DiffReport", "diff"),
    "entry": ("Mtime", "Owner", "Profile"),
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
    "inspection": ("LayerContents", "inspect"),
    "layer": ("Layer",),
    "names": ("Reference", "parse_reference"),
    "normalisation": ("normalize",),
    "oci": ("Descriptor", "Digest", "Platform"),
    "packing": ("pack", "parse_source"),
    "platforms": ("parse_platform",),
    "ports": ("Reporter",),
    "publishing": ("PushReport", "plan_push", "push"),
    "pulling": ("pull", "resolve"),
    "tree": ("Selection", "Source"),
    "verification": ("VerifyReport", "verify"),
}
__all__ = sorted(name for names in _HOMES.values() for name in names)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"detlayer.{module}"), name)
    raise AttributeError(f"module 'detlayer' has no attribute {name!r}")
