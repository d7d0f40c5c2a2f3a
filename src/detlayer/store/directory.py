"""Where the store is, and the files in it.

DIRECTORY/
  index.sqlite       records, traces, chunks, facts about registries (`index`)
  oci/               an OCI layout with no image: blobs/sha256/… (`blobs`)
  leases/            what running processes use, one file each (`lease`)
  incoming/          blobs that are being written
  index.lock, gc.lock
"""

from __future__ import annotations

import os
from contextlib import suppress

_TAG = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# This directory is a cache of detlayer (bford.info/cachedir). It may be removed at any time.\n"
)


def default_directory() -> str:
    """Return the user's cache directory: $DETLAYER_CACHE_DIR, or the platform's."""
    if named := os.environ.get("DETLAYER_CACHE_DIR"):
        return named
    from platformdirs import user_cache_dir

    return user_cache_dir("detlayer", appauthor=False)


def make_directory(path: str) -> None:
    """Create the cache directory, readable only by its owner; raises OSError."""
    if os.path.isdir(path):
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    with suppress(FileExistsError):
        # Packed files may be secret, and so may the URLs of uploads.
        os.mkdir(path, 0o700)
    fd = os.open(os.path.join(path, "CACHEDIR.TAG"), os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.write(fd, _TAG)
    finally:
        os.close(fd)
