"""Findings: what keeps a layer from being reproducible, each under the stable name of its trap. Knows no layer.

`TRAPS` is the one table of names; docs/traps.md shows it with examples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

# Trap → what to do about it.
TRAPS: dict[str, str] = {
    # how the tar is written
    "entry-order": "sort entries by path component; `tar --sort=name` comes near, `detlayer normalize` does it",
    "mtime": "set a fixed time: `tar --mtime=@946684800`, or SOURCE_DATE_EPOCH for the tool that wrote this",
    "owner": "write 0:0: `tar --owner=0 --group=0`",
    "owner-names": "leave names out: `tar --numeric-owner`",
    "mode": "write canonical modes, 0755 and 0644; or ask for others by a rule on both sides",
    "umask": "the modes follow the umask of whoever made the files; set it, or write canonical modes",
    "type-bits-in-mode": "write permission bits only; the file type has a field of its own",
    "pax-pid-name": "a PAX header's name must not hold a process id: `tar --pax-option=exthdr.name=%d/PaxHeaders/%f`",
    "pax-times": "leave PAX times out: `tar --pax-option=delete=atime,delete=ctime,delete=mtime`",
    "needless-pax": "write PAX records only for what the header can't hold",
    "gnu-format": "write POSIX headers: `tar --format=posix`",
    "prefix-field": "write long paths as PAX records, never divided between name and prefix",
    "number-format": "write numbers as zero-padded octal digits and a NUL",
    "type-flag": "write the type flags of POSIX: 0 for a file",
    "size-field": "write size 0 for what has no content",
    "path-form": "write relative paths, with a slash behind directories and no `./`",
    "devices-field": "write device numbers as 0000000 for every entry",
    "header-bytes": "write the header as SPEC 5.2 has it",
    "special-file": "leave devices and FIFOs out; the runtime makes them",
    "duplicate-path": "write every path once",
    "parents": "write an entry for every parent directory, so that its attributes are not left to the engine",
    "xattrs": "leave extended attributes out, but for those that the program needs",
    "hardlink-form": "let a hard link come after its target and have its values; or write files",
    "trailer": "end the tar with exactly 1024 zero bytes: `tar --blocking-factor=1` comes near",
    "sparse": "write sparse files in full",
    # how the blob is compressed
    "gzip-header": "write no time, name or system: `gzip -n`",
    "compressor-class": "compress with a codec of SPEC 6.2, of the class that is recorded; the tar itself may be equal",
    "chunking": "cut the tar as SPEC 6.1 has it, a member or frame for each chunk",
    # what the files hold
    "pyc-timestamp": "compile with `--invalidation-mode unchecked-hash`, or pack the source beside it",
    "pyc-path": "compile with `python -m compileall -s BUILD_DIR`, so that code objects hold no build path",
    "zip-times": "make the archive with SOURCE_DATE_EPOCH set, or with a tool that fixes times",
    "gzip-in-content": "compress with `gzip -n`",
    "archive-in-content": "make the inner archive reproducible, too: fixed times, sorted names",
    "installer-files": "leave the installer's notes out: they hold paths and times of the installation",
    "editor-and-os-files": "exclude what editors, systems and version control leave behind",
    "build-path-in-content": "map the path away: -ffile-prefix-map, --remap-path-prefix, or build at a fixed path",
    "time-in-content": "write no time of the build: set SOURCE_DATE_EPOCH for the tool that wrote it",
    "case-collision": "rename one: on macOS and Windows they are one file",
    "unicode-collision": "rename one: they differ only by Unicode form",
    # whether it is what was named
    "blob-digest": "fetch or write it again: these are not the bytes that the digest names",
    "config-diff-id": "make the image anew: its config names another tar, and engines refuse it",
    "malformed-layer": "make the layer anew: engines would refuse it, too, or read it each in a way of its own",
    "unexpected-digest": "see where they differ: `--against LAYER` with the expected layer, or `detlayer diff A B`",
    # what two runs differ in
    "content": "find what wrote other bytes: `detlayer diff A B` shows where they differ",
    "readdir-order": "something depends on the order in which the file system lists names",
    "environment": "something depends on the environment of the run",
}


class Finding(NamedTuple):
    """One deviation: in which entry (empty for the blob as a whole), which field, what is there, what should be."""

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
    """One thing that two layers or trees differ in, under the trap that explains it. The values are for people."""

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
