"""Findings: what keeps a layer from being reproducible, each under the stable name of its trap.

`TRAPS` is the only table of names; docs/traps.md shows it with examples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Trap → hint.
TRAPS: dict[str, str] = {
    # how the tar is written
    "entry-order": "sort entries by path component: `detlayer normalize`; `tar --sort=name` gives almost this order",
    "mtime": "set a fixed time: `tar --mtime=@946684800`, or SOURCE_DATE_EPOCH for the tool that wrote this",
    "owner": "write 0:0: `tar --owner=0 --group=0`",
    "owner-names": "omit owner names: `tar --numeric-owner`",
    "mode": "write canonical modes, 0755 and 0644, or set others by the same rule on both sides",
    "umask": "the modes depend on the umask of the process that created the files: set it, or write canonical modes",
    "type-bits-in-mode": "write permission bits only; the file type has its own field",
    "pax-pid-name": "keep process ids out of PAX header names: `tar --pax-option=exthdr.name=%d/PaxHeaders/%f`",
    "pax-times": "omit PAX times: `tar --pax-option=delete=atime,delete=ctime,delete=mtime`",
    "needless-pax": "write PAX records only for values that do not fit the header",
    "gnu-format": "write POSIX headers: `tar --format=posix`",
    "prefix-field": "write long paths as PAX records; do not split them between name and prefix",
    "number-format": "write numbers as zero-padded octal digits and a NUL",
    "type-flag": "write the type flags of POSIX: 0 for a file",
    "size-field": "write size 0 for entries without content",
    "path-form": "write relative paths, with a slash after directories and without `./`",
    "devices-field": "write device numbers as 0000000 for every entry",
    "header-bytes": "write the header as specified in SPEC 5.2",
    "special-file": "omit devices and FIFOs; the runtime creates them",
    "duplicate-path": "write every path once",
    "parents": "write an entry for every parent directory; otherwise the engine chooses its attributes",
    "xattrs": "omit extended attributes that the program does not need",
    "hardlink-form": "write a hard link after its target and with equal values, or write files",
    "trailer": "end the tar with exactly 1024 zero bytes: `tar --blocking-factor=1`",
    "sparse": "write sparse files in full",
    # how the blob is compressed
    "gzip-header": "omit time, name and system: `gzip -n`",
    "compressor-class": "compress with a codec of SPEC 6.2 and the recorded class; the tar itself may be equal",
    "chunking": "cut the tar as specified in SPEC 6.1, one member or frame per chunk",
    # file contents
    "pyc-timestamp": "compile with `--invalidation-mode unchecked-hash`, or pack the source next to it",
    "pyc-path": "compile with `python -m compileall -s BUILD_DIR`, which strips the build path from code objects",
    "zip-times": "create the archive with SOURCE_DATE_EPOCH set, or with a tool that fixes times",
    "gzip-in-content": "compress with `gzip -n`",
    "archive-in-content": "make the inner archive reproducible, too: fixed times, sorted names",
    "installer-files": "exclude the installer's files: they contain paths and times of the installation",
    "editor-and-os-files": "exclude files of editors, operating systems and version control",
    "build-path-in-content": "remap the path: -ffile-prefix-map, --remap-path-prefix, or build at a fixed path",
    "time-in-content": "do not write the build time: set SOURCE_DATE_EPOCH for the tool that wrote it",
    "case-collision": "rename one: they are the same file on macOS and Windows",
    "unicode-collision": "rename one: they differ only in Unicode form",
    # digests and validity
    "blob-digest": "fetch or write it again: the bytes do not match the digest",
    "config-diff-id": "rebuild the image: its config lists another diff_id, and engines reject it",
    "malformed-layer": "rebuild the layer: engines reject it or disagree on its content",
    "unexpected-digest": "find the differences: `--against LAYER` with the expected layer, or `detlayer diff A B`",
    # differences between two runs
    "content": "find the cause: `detlayer diff A B` shows where the contents differ",
    "readdir-order": "something depends on the order in which the file system lists names: sort them",
    "environment": "something depends on the environment of the run: fix its locale, time zone and HOME",
}


class Finding(NamedTuple):
    """One deviation: its entry (empty for the whole blob), the field, the value found and the one expected."""

    trap: str
    path: str
    field: str
    found: str
    wanted: str

    @property
    def hint(self) -> str:
        return TRAPS[self.trap]

    def to_document(self) -> dict[str, Any]:
        return {**self._asdict(), "hint": self.hint}


class Change(NamedTuple):
    """One difference between two layers or trees, under the trap that explains it. The values are for people."""

    trap: str
    field: str
    old: str
    new: str

    @property
    def hint(self) -> str:
        return TRAPS[self.trap]

    def __str__(self) -> str:
        return f"{self.field} {self.old or 'none'} → {self.new or 'none'} [{self.trap}]"

    def to_document(self) -> dict[str, Any]:
        return self._asdict()
