"""Media types of documents and layers in OCI's and Docker's format, and conversions between them."""

from __future__ import annotations

from typing import Literal

from detlayer.errors import ConfigError, printable
from detlayer.oci.types import (
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_DOCKER_CONFIG,
    MEDIA_TYPE_DOCKER_LIST,
    MEDIA_TYPE_DOCKER_MANIFEST,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
)

Format = Literal["oci", "docker"]

MANIFESTS: dict[Format, str] = {"oci": MEDIA_TYPE_MANIFEST, "docker": MEDIA_TYPE_DOCKER_MANIFEST}
CONFIGS: dict[Format, str] = {"oci": MEDIA_TYPE_CONFIG, "docker": MEDIA_TYPE_DOCKER_CONFIG}
INDEXES: dict[Format, str] = {"oci": MEDIA_TYPE_INDEX, "docker": MEDIA_TYPE_DOCKER_LIST}

_OCI = "application/vnd.oci.image.layer."
_DOCKER = "application/vnd.docker.image.rootfs."
_PAIRS = (
    (f"{_OCI}v1.tar", f"{_DOCKER}diff.tar"),
    (f"{_OCI}v1.tar+gzip", f"{_DOCKER}diff.tar.gzip"),
    (f"{_OCI}nondistributable.v1.tar", f"{_DOCKER}foreign.diff.tar"),
    (f"{_OCI}nondistributable.v1.tar+gzip", f"{_DOCKER}foreign.diff.tar.gzip"),
)
_TO_DOCKER = dict(_PAIRS)
# containerd writes this type into Docker manifests; skopeo and Docker reject it, so it is only read.
_TO_OCI = {
    **{docker: oci for oci, docker in _PAIRS},
    f"{_DOCKER}diff.tar.zstd": f"{_OCI}v1.tar+zstd",
}


def layer_type(media_type: str, wanted: Format) -> str:
    """Return a layer's media type in a format; raises ConfigError if the format has none for it.

    Types that neither format defines are kept: they may belong to an artifact.
    """
    if wanted == "oci":
        return _TO_OCI.get(media_type, media_type)
    if media_type.endswith("zstd"):
        raise ConfigError(
            "format-compression",
            f"{printable(media_type)} is not supported in Docker's image format",
            'use format = "oci", or compress with gzip',
        )
    return _TO_DOCKER.get(media_type, media_type)
