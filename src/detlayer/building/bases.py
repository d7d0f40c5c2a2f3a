"""What an image stands on, for one platform: the manifest of a base and its config, from a layout or a registry."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from detlayer.errors import LayerError, NotFoundError
from detlayer.oci.assembly import Base, parse_base
from detlayer.oci.documents import Document, parse_document
from detlayer.oci.platforms import listed, select
from detlayer.oci.ports import ImageSource
from detlayer.oci.types import Descriptor, Platform


def choose_manifest(root: Document, platform: Platform, name: str, document: Callable[[Descriptor], bytes]) -> Document:
    """Choose the manifest of an index that a platform gets; a manifest stays itself. Raises NotFoundError, LayerError.

    `document` reads what the index names.
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
    """Read what a manifest stands for, held against the platform that was asked for.

    Raises NotFoundError where it is for another, LayerError and IntegrityError.
    """
    config = manifest.config
    if config is None or not config.is_config:
        raise LayerError("base-invalid", f"{name} is no image: {manifest.digest}", "use another base")
    base = parse_base(manifest, source.document(config))
    if select([manifest.descriptor(base.platform)], platform) is None:
        raise no_platform(name, platform, [base.platform])
    return base


def no_platform(name: str, platform: Platform, offered: Sequence[Platform]) -> NotFoundError:
    """Say that a base is not for a platform, and for which it is."""
    has = ", ".join(sorted(map(str, offered))) or "none that it names"
    return NotFoundError("platform-missing", f"{name} is not for {platform}", f"it is for {has}")
