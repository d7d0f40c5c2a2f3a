"""One side of a comparison: a directory or a layer file, read once for summaries and again for chosen contents.

Joins tree, blob, untar and form. Contents are streamed; a summary of each entry is kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from blake3 import blake3
from msgspec import structs

from detlayer.checks.compare import DIGEST_BYTES, EntryValues, Summary, summarise
from detlayer.checks.findings import Finding
from detlayer.checks.header_form import check_form
from detlayer.errors import IntegrityError, LayerError, printable
from detlayer.images.files import OpenFile
from detlayer.layer.apply import AppliedTree
from detlayer.layer.decompress import BlobFacts, BlobReader
from detlayer.layer.entry import Entry, Mtime, Profile, is_whiteout, marker, normalize
from detlayer.layer.key import confirm, hash_content, pieces
from detlayer.layer.order import order_key
from detlayer.layer.ports import Reporter
from detlayer.layer.reader import TarReader
from detlayer.layer.tar import END
from detlayer.oci.types import Digest
from detlayer.tree import Selection, Source, walk
from detlayer.tree.ignore_files import read_own_patterns

Pieces = Iterator[bytes | memoryview]
_PIECE_BYTES = 1 << 18
_KEPT_FINDINGS = 50


class Side(Protocol):
    """The interface of a side for `diff`."""

    name: str

    def summaries(self) -> list[Summary]:
        """Read everything once; return summaries in the order of SPEC 3.4, each path once."""

    def contents(self, wanted: Mapping[int, bytes]) -> Iterator[tuple[bytes, Pieces]]:
        """Read again, and yield the contents at the wanted positions; each is valid until the next."""


class HeaderFindings:
    """Findings on the form of a tar: the first of each trap, and a checksum to compare two logs."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.sums: dict[str, int] = {}
        self.kept: dict[str, list[Finding]] = {}

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            trap = finding.trap
            self.counts[trap] = self.counts.get(trap, 0) + 1
            self.sums[trap] = self.sums.get(trap, 0) + hash(finding)
            kept = self.kept.setdefault(trap, [])
            if len(kept) < _KEPT_FINDINGS:
                kept.append(finding)


class Gathering:
    """Collected summaries, applied as an engine does; hard links have the content of their target at that point.

    Normalized, hard links are files of their own (SPEC 4.7) and whiteouts have one form (4.10).
    """

    def __init__(self, normalized: bool) -> None:
        self._profile = Profile() if normalized else None
        self._applied = AppliedTree[Summary](lambda summary: summary.values.kind == "dir")
        self._values: dict[EntryValues, EntryValues] = {}
        self.count = 0
        self.duplicates: list[bytes] = []

    def add(self, entry: Entry, digest: bytes, kind: str = "", extras: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        if self._profile is not None:
            xattrs = tuple(pair for pair in entry.xattrs if self._profile.wants_xattr(os.fsdecode(pair[0])))
            entry = normalize(structs.replace(entry, xattrs=xattrs), self._profile)
            extras = tuple(one for one in extras if one[0] == b"device")  # `pack` writes none of the others
        summary = summarise(entry, self._values, self.count, kind or entry.kind, digest, extras)
        if entry.kind == "hardlink":
            target = self._applied.link_target(entry.path, entry.target)
            if target is not None:
                summary = self._bound(summary, target)
        if self._applied.put(entry.path, summary):
            self.duplicates.append(entry.path)
        self.count += 1

    def _bound(self, link: Summary, target: Summary) -> Summary:
        if self._profile is not None:
            return structs.replace(target, path=link.path, position=link.position, is_link=True)
        digest, size_bytes = target.digest, target.size_bytes
        if target.values.kind == "symlink":  # the content of a symlink is its target
            digest, size_bytes = blake3(target.target).digest(DIGEST_BYTES), len(target.target)
        extras = tuple({**dict(target.extras), **dict(link.extras)}.items())
        return structs.replace(link, size_bytes=size_bytes, digest=digest, extras=extras, is_link=True)

    def close(self) -> list[Summary]:
        """Return the summaries in the order of SPEC 3.4."""
        summaries = [self._whiteout(one) for one in self._applied.by_path.values()]
        self._applied.by_path.clear()
        summaries.sort(key=lambda summary: order_key(summary.path))
        return summaries

    def _whiteout(self, summary: Summary) -> Summary:
        if self._profile is None or not is_whiteout(summary.path, summary.values.kind):
            return summary
        made = marker(summary.path, self._profile)
        return summarise(made, self._values, summary.position, made.kind, blake3().digest(DIGEST_BYTES))


class TreeSide:
    """A directory: unchanged, or normalized as by `pack`."""

    def __init__(self, path: str, normalized: bool, reporter: Reporter) -> None:
        self.name = path
        self._normalized = normalized
        self._reporter = reporter

    def _walk(self) -> Iterable[Entry]:
        raw = os.fsencode(self.name)
        if self._normalized:
            return walk([Source(raw, b"", tuple(read_own_patterns(self.name)))], reporter=self._reporter)
        # Take every entry: a tree is only compared here, so skip what no layer can contain.
        xattrs = ("*",) if hasattr(os, "listxattr") else ()
        profile = Profile(mtime=Mtime("source"), owner=None, mode="source", xattrs=xattrs)
        selection = Selection(hardlinks="preserve", special="skip", retime_pyc=False)
        return walk([Source(raw)], profile=profile, selection=selection, reporter=self._reporter)

    def summaries(self) -> list[Summary]:
        gathering = Gathering(False)
        read_bytes = 0
        buffer = memoryview(bytearray(_PIECE_BYTES))

        def progress(count: int) -> None:
            nonlocal read_bytes
            read_bytes += count
            self._reporter.progress(gathering.count, read_bytes)

        for entry in self._walk():
            digest = blake3()
            if entry.content is not None:
                reader = entry.content.open()
                try:
                    digest = hash_content(entry, reader, buffer, progress)
                finally:
                    reader.close()
            gathering.add(entry, digest.digest(DIGEST_BYTES) if entry.kind == "file" else b"")
        return gathering.close()

    def contents(self, wanted: Mapping[int, bytes]) -> Iterator[tuple[bytes, Pieces]]:
        left = len(wanted)
        for position, entry in enumerate(self._walk()):
            if wanted.get(position) == entry.path:
                yield entry.path, _pieces(entry)
                left -= 1
                if not left:
                    return


class LayerSide:
    """A layer, opened for each pass. `facts` is complete after `summaries`; `expected` is the manifest's digest."""

    def __init__(
        self,
        name: str,
        opened: Callable[[], OpenFile],
        normalized: bool,
        reporter: Reporter,
        *,
        max_expansion: int,
        expected: Digest | None = None,
    ) -> None:
        self.name = name
        self._open = opened
        self._normalized = normalized
        self._reporter = reporter
        self._max_expansion = max_expansion
        self._expected = expected
        self._seen: tuple[int, int, int] | None = None
        self.facts = BlobFacts()
        self.form = HeaderFindings()
        self.entries = 0

    def blob(self) -> OpenFile:
        """Open the blob; the caller closes it. Raises LayerError if it can't be read twice, or has changed."""
        file = self._open()
        if self._seen not in (None, file.stamp):
            file.close()
            raise LayerError("input-changed", f"{printable(self.name)} changed while it was read", "try again")
        self._seen = file.stamp
        return file

    def pieces(self) -> Iterator[bytes]:
        """Yield the tar bytes from the start."""
        with self.blob() as file:
            yield from self._read(self._reader(file))

    def _reader(self, file: OpenFile) -> BlobReader:
        return BlobReader(file, max_expansion=self._max_expansion)

    def _read(self, reader: BlobReader) -> Iterator[bytes]:
        try:
            for piece in reader:
                self._reporter.progress(self.entries, reader.facts.tar_bytes)
                yield piece
        except LayerError as error:
            raise self._named(error) from error.__cause__

    def _named(self, error: LayerError) -> LayerError:
        """Add the input's name to an error."""
        if error.message.startswith(printable(self.name)):
            return error
        return LayerError(error.code, f"{printable(self.name)}: {error.message}", error.hint)

    def summaries(self) -> list[Summary]:
        gathering = Gathering(self._normalized)
        with self.blob() as file:
            reader = self._reader(file)
            self.facts = reader.facts
            tar = TarReader(self._read(reader), grow=reader.grow)
            self._gather(tar, gathering)
        if self._expected is not None and self.facts.digest != self._expected:
            raise IntegrityError(
                "blob-digest", f"{printable(self.name)} does not match {self._expected}", "fetch or build it again"
            )
        if tar.trailer_bytes != len(END):
            self.form.add([Finding("trailer", "", "zeros at the end", str(tar.trailer_bytes), str(len(END)))])
        for path in gathering.duplicates:
            self.form.add([Finding("duplicate-path", printable(path), "path", "again", "once")])
        return gathering.close()

    def _gather(self, tar: TarReader, gathering: Gathering) -> None:
        try:
            for member in tar:
                entry = member.entry
                self.entries = gathering.count
                if not entry.path:  # the root has no entry in a layer (SPEC 3.2): a finding of form
                    shown = printable(member.written_path)
                    self.form.add([Finding("path-form", "", "path", shown, "no entry for the root")])
                    gathering.count += 1
                    continue
                if not self._normalized:
                    self.form.add(check_form(member))
                digest = b""
                if entry.kind == "file" and not member.special:
                    hashed = blake3()
                    for view in member.views():
                        hashed.update(view)
                    digest = hashed.digest(DIGEST_BYTES)
                gathering.add(entry, digest, member.special, member.extras)
        except LayerError as error:
            raise self._named(error) from error.__cause__

    def contents(self, wanted: Mapping[int, bytes]) -> Iterator[tuple[bytes, Pieces]]:
        left = len(wanted)
        with self.blob() as file:
            reader = self._reader(file)
            for position, member in enumerate(TarReader(self._read(reader), grow=reader.grow)):
                if wanted.get(position) == member.entry.path:
                    yield member.entry.path, member.views()
                    left -= 1
                    if not left:
                        return


def _pieces(entry: Entry) -> Pieces:
    if entry.content is None:
        return
    reader = entry.content.open()
    try:
        digest = blake3()
        for piece in pieces(entry, reader, memoryview(bytearray(_PIECE_BYTES))):
            digest.update(piece)
            yield piece
        if not reader.finish():
            confirm(entry, reader, digest)
    finally:
        reader.close()
