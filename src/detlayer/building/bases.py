"""Read a base image for one platform: its manifest and config, from a layout or a registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detlayer.errors import LayerError, NotFoundError
from detlayer.oci.assembly import Base, parse_base
from detlayer.oci.documents import Document, parse_document
from detlayer.oci.platforms import listed, select
from detlayer.oci.ports import ImageSource
from detlayer.oci.types import Descriptor, Platform


def choose_manifest(root: Document, platform: Platform, name: str, document: Callable[[Descriptor], bytes]) -> Document:
    """Select the manifest for a platform from an index; a manifest is returned as is.

    `document` reads the manifests that the index lists. Raises NotFoundError, LayerError.
    """
    if not root.is_index:
        return root
    chosen = select(root.children, platform)
    if chosen is None:
        raise no_platform(name, platform, listed(root.children))
    manifest = parse_document(document(chosen), str(chosen.digest), chosen.media_type)
    if manifest.is_index:
        return choose_manifest(manifest, platform, name, document)
    return manifest


def read_base(manifest: Document, platform: Platform, name: str, source: ImageSource) -> Base:
    """Read a base from its manifest, and check its platform.

    Raises NotFoundError if it is for another platform, LayerError and IntegrityError.
    """
    config = manifest.config
    if config is None or not config.is_config:
        raise LayerError("base-invalid", f"{name} is not an image: {manifest.digest}", "use another base")
    base = parse_base(manifest, source.document(config))
    if select([manifest.descriptor(base.platform)], platform) is None:
        raise no_platform(name, platform, [base.platform])
    return base


def no_platform(name: str, platform: Platform, offered: Sequence[Platform]) -> NotFoundError:
    """Return the error for a base that lacks a platform, with the platforms it has."""
    has = ", ".join(sorted(map(str, offered))) or "none"
    return NotFoundError("platform-missing", f"{name} is not for {platform}", f"use one of its platforms: {has}")
