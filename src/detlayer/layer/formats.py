"""Recognise a file by its first bytes, and an archive by the names in it. Reads no content.

A format that engines do not support as a layer is an error with the command that converts it.
"""

from __future__ import annotations

import re
from typing import Literal

from detlayer.errors import FormatError, LayerError, printable

HEAD_BYTES = 512
"""Number of first bytes that identify a file: a tar's header."""

_LAYERS = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
_SKIPPABLE = b"\x2a\x4d\x18"  # RFC 8878 3.1.2: bytes 1 to 3 of a frame that zstd skips; the first is 0x50 to 0x5f
_OTHERS: dict[bytes, str] = {
    b"\xfd7zXZ\0": "xz",
    b"\x5d\0\0": "lzma",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x1f\x9d": "compress",
    b"LZIP\1": "lzip",
    b"\x89LZO\0\r\n\x1a\n": "lzop",
    b"PK\3\4": "zip",
    b"PK\5\6": "zip",
    b"PK\7\x08": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_CPIO = re.compile(rb"07070[12][0-9A-Fa-f]{104}|070707[0-7]{70}")
_COMMANDS = {
    **dict.fromkeys(("xz", "lzma"), "xz -dc {}"),
    **{name: f"{name} -dc {{}}" for name in ("bzip2", "lz4", "lzip", "lzop")},
    "compress": "gzip -dc < {}",
    **dict.fromkeys(("zip", "7z", "cpio"), "bsdtar -cf - @{}"),
}
_SUFFIXES = (
    *(".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.xz", ".txz", ".tar.bz2", ".tbz", ".tbz2", ".tar.lzma"),
    *(".tlz", ".tar.lz", ".tar.lz4", ".tar.lzo", ".tar.z", ".taz", ".zip", ".7z", ".cpio"),
)
_PLAIN_NAME = re.compile(r"[\w./:+=@%-]+")
# Files at the top of an image archive, by tool: image-spec, docker, podman, skopeo, go-containerregistry.
_IN_ARCHIVES = re.compile(
    rb"(?:(oci-layout|index\.json|manifest\.json|repositories)"
    rb"|(?:sha256:)?[0-9a-f]{64}(?:\.json|\.tar|\.tar\.gz|/layer\.tar)?|blobs/sha256/[0-9a-f]{64})\Z"
)

ArchiveKind = Literal["", "oci-archive", "docker-archive"]


def format_of(head: bytes) -> str:
    """Return the format with these first bytes: `tar`, `gzip`, `zstd`, or another file format; empty if unknown."""
    for name, signature in _LAYERS.items():
        if head.startswith(signature):
            return name
    if head[1:4] == _SKIPPABLE and head[0] >> 4 == 5:
        return "zstd"
    if head[257:262] == b"ustar" or _is_header(head):  # first: a tar begins with an arbitrary name
        return "tar"
    if _BZIP2.match(head):
        return "bzip2"
    if _CPIO.match(head):
        return "cpio"
    return next((name for signature, name in _OTHERS.items() if head.startswith(signature)), "")


def is_layer(head: bytes) -> bool:
    """Tell whether a layer may begin with these bytes: a tar, gzip or zstd."""
    return format_of(head) in ("tar", *_LAYERS)


def is_named_as_archive(path: str) -> bool:
    """Tell whether a file name is that of a tar, compressed or not, or of another archive format."""
    return path.lower().endswith(_SUFFIXES)


def check_format(head: bytes, name: str = "", *, is_image: bool = False) -> None:
    """Raise LayerError for a file, or a stream without a name, in a format without layers, or an image archive."""
    found = format_of(head)
    if found not in _COMMANDS:
        return
    stem = next((name[: -len(one)] for one in sorted(_SUFFIXES, key=len)[::-1] if name.lower().endswith(one)), name)
    command = _COMMANDS[found].format(quoted(name) if name else "FILE")
    output = quoted((stem or "layer") + (".tar" if is_image else ".tar.gz"))
    raise FormatError(
        "layer-format",
        f"{printable(name) if name else 'the input'} is in the format {found}; expected a tar, plain, gzip or zstd",
        f"{command} > {output}" if is_image else f"{command} | detlayer normalize - -o {output}",
    )


def quoted(name: str) -> str:
    """Quote a path for a shell."""
    shown = printable(name)
    return shown if _PLAIN_NAME.fullmatch(shown) else "'" + shown.replace("'", "'\\''") + "'"


class ArchiveSigns:
    """Tells an archive of an image from a layer by the names of its entries, in any order."""

    def __init__(self) -> None:
        self._names: set[bytes] = set()

    def take(self, path: bytes) -> None:
        """Add the path of an entry."""
        found = _IN_ARCHIVES.match(path)
        if found is not None:
            self._names.add(found[1] or b"blob")

    @property
    def kind(self) -> ArchiveKind:
        """Return the kind of archive so far."""
        names = self._names
        if {b"oci-layout", b"index.json"} <= names:
            return "oci-archive"
        if b"blob" in names and names & {b"manifest.json", b"repositories"}:
            return "docker-archive"
        return ""


def image_archive(kind: ArchiveKind, name: str, compression: str = "") -> LayerError:
    """Make the error for an archive of an image where a layer is expected."""
    shown = quoted(name) if name else "FILE"
    if kind == "oci-archive":
        what, command = "an OCI layout", f"detlayer verify oci-archive:{shown}"
    else:
        # Some versions of skopeo don't read compressed archives.
        is_plain = compression not in _LAYERS
        unpack = "" if is_plain else f"{compression} -dc < {shown} > image.tar && "
        source, made = shown if is_plain else "image.tar", "oci-archive:image.oci.tar"
        what = "as written by `docker save`"
        command = f"{unpack}skopeo copy docker-archive:{source} {made} && detlayer verify {made}"
    return LayerError(
        "image-archive",
        f"{printable(name) if name else 'the input'} is an archive of an image ({what}), not a layer",
        f"{command}; a single layer: tar -xOf {shown} NAME-IN-ARCHIVE | detlayer normalize - -o layer.tar.gz",
    )


def _is_header(block: bytes) -> bool:
    """Tell whether a block has the checksum of a tar header: tars from before POSIX have no magic."""
    digits = block[148:156].strip(b"\0 ")
    if len(block) < HEAD_BYTES or not digits or digits.strip(b"01234567"):
        return False
    return int(digits, 8) == sum(block[:148]) + sum(block[156:HEAD_BYTES]) + 256
