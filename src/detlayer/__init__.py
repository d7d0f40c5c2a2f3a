"""Reproducible container layers and images: the same files give the same bytes, on any machine.

    import detlayer
    layer = detlayer.pack(["dist:/srv/app"], "app.tar.gz")
    print(layer.digest, layer.diff_id)

These names are the public interface. They load when they are first used, so importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detlayer.building.commands import build as build
    from detlayer.building.commands import load_project as load_project
    from detlayer.building.commands import lock as lock
    from detlayer.building.image_from_files import ImageOutput as ImageOutput
    from detlayer.building.image_from_files import assemble_image as assemble_image
    from detlayer.building.image_from_files import assemble_index as assemble_index
    from detlayer.building.lock_file import Lock as Lock
    from detlayer.building.options import BuildOptions as BuildOptions
    from detlayer.building.options import BuildOutput as BuildOutput
    from detlayer.building.report import BuildReport as BuildReport
    from detlayer.building.settings import Project as Project
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
    from detlayer.packing.sources import parse_source as parse_source
    from detlayer.registry.client import Registries as Registries
    from detlayer.registry.connections import Network as Network
    from detlayer.store import Store as Store
    from detlayer.transfer.commands import plan as plan
    from detlayer.transfer.commands import pull as pull
    from detlayer.transfer.commands import push as push
    from detlayer.transfer.commands import resolve as resolve
    from detlayer.transfer.plan import Plan as Plan
    from detlayer.transfer.pull import Pulled as Pulled
    from detlayer.transfer.pull import PullOptions as PullOptions
    from detlayer.transfer.pull import Resolved as Resolved
    from detlayer.transfer.push import PushOptions as PushOptions
    from detlayer.transfer.results import PushReport as PushReport
    from detlayer.tree import Selection as Selection
    from detlayer.tree import Source as Source
    from detlayer.verification import VerifyOptions as VerifyOptions
    from detlayer.verification import VerifyReport as VerifyReport
    from detlayer.verification import verify as verify

__version__ = "0.1.0"

_MODULES = {
    "build": "building.commands",
    "load_project": "building.commands",
    "lock": "building.commands",
    "ImageOutput": "building.image_from_files",
    "assemble_image": "building.image_from_files",
    "assemble_index": "building.image_from_files",
    "Lock": "building.lock_file",
    "BuildOptions": "building.options",
    "BuildOutput": "building.options",
    "BuildReport": "building.report",
    "Project": "building.settings",
    "DiffReport": "difference",
    "diff": "difference",
    "AuthError": "errors",
    "ConfigError": "errors",
    "DetlayerError": "errors",
    "IntegrityError": "errors",
    "LayerError": "errors",
    "NotFoundError": "errors",
    "OutputError": "errors",
    "RegistryError": "errors",
    "RejectedError": "errors",
    "TreeError": "errors",
    "UnavailableError": "errors",
    "LayerContents": "inspection",
    "inspect": "inspection",
    "Codec": "layer.codec",
    "Mtime": "layer.entry",
    "Owner": "layer.entry",
    "Profile": "layer.entry",
    "Reporter": "layer.ports",
    "Layer": "layer.writer",
    "normalize": "normalization",
    "parse_platform": "oci.platforms",
    "Reference": "oci.references",
    "parse_reference": "oci.references",
    "Descriptor": "oci.types",
    "Digest": "oci.types",
    "Platform": "oci.types",
    "PackOptions": "packing.options",
    "pack": "packing.packer",
    "parse_source": "packing.sources",
    "Registries": "registry.client",
    "Network": "registry.connections",
    "Store": "store",
    "plan": "transfer.commands",
    "pull": "transfer.commands",
    "push": "transfer.commands",
    "resolve": "transfer.commands",
    "Plan": "transfer.plan",
    "Pulled": "transfer.pull",
    "PullOptions": "transfer.pull",
    "Resolved": "transfer.pull",
    "PushOptions": "transfer.push",
    "PushReport": "transfer.results",
    "Selection": "tree",
    "Source": "tree",
    "VerifyOptions": "verification",
    "VerifyReport": "verification",
    "verify": "verification",
}
__all__ = sorted(_MODULES)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'detlayer' has no attribute {name!r}")
    return getattr(import_module(f"detlayer.{_MODULES[name]}"), name)
