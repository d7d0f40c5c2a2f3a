"""Audit a layer blob in one pass: digests, key, counts, and findings.

Joins decompression, the tar reader, `header_form`, `paths` and `content`. Decompression runs a few pieces ahead on its
own thread. Memory is bounded by pieces, by findings kept per trap, and by what `paths` remembers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, Queue
from threading import Thread
from typing import NamedTuple

from blake3 import blake3

from detlayer.checks import content
from detlayer.checks.findings import Finding
from detlayer.checks.header_form import check_form, check_values, is_canonical
from detlayer.checks.paths import PathChecker
from detlayer.errors import printable
from detlayer.layer import bytecode
from detlayer.layer.chunking import CHUNK_MAX_BYTES, cut_before
from detlayer.layer.codec import Codec
from detlayer.layer.decompress import BlobFacts, BlobReader
from detlayer.layer.entry import Profile
from detlayer.layer.formats import ArchiveSigns
from detlayer.layer.identify_codec import recognise
from detlayer.layer.key import LayerKey
from detlayer.layer.reader import Member, TarReader
from detlayer.layer.tar import END, padding
from detlayer.oci.ports import Readable


class Findings:
    """Collected findings: all are counted, the first of each trap are kept."""

    def __init__(self, keep: int = 100) -> None:
        self._keep = keep
        self.counts: dict[str, int] = {}
        self.kept: list[Finding] = []

    def add(self, finding: Finding) -> None:
        count = self.counts[finding.trap] = self.counts.get(finding.trap, 0) + 1
        if count <= self._keep:
            self.kept.append(finding)

    def extend(self, findings: Iterator[Finding]) -> None:
        for finding in findings:
            self.add(finding)

    def __len__(self) -> int:
        return sum(self.counts.values())


@dataclass(slots=True)
class LayerReport:
    """What one pass over a blob found. `codec` is None if no codec of SPEC 6.2 writes these bytes."""

    facts: BlobFacts
    key: str = ""
    entries: int = 0
    files: int = 0
    codec: Codec | None = None
    chunks: list[int] = field(default_factory=list)
    """Where SPEC 6.1 cuts."""
    findings: Findings = field(default_factory=Findings)
    signs: ArchiveSigns = field(default_factory=ArchiveSigns)
    """Whether the blob is an archive of an image instead."""


class _Source(NamedTuple):
    mtime: int
    size_bytes: int


def audit(
    source: Readable,
    *,
    profile: Profile | None = None,
    contents: bool = True,
    keep: int = 100,
    max_expansion: int = 200,
) -> LayerReport:
    """Read a layer blob once and check it against `profile` and SPEC 3 to 6.

    With `contents` False, file contents are not checked; `keep` limits the findings kept per trap. Raises LayerError if
    the blob can't be read as a layer.
    """
    reader = BlobReader(source, max_expansion=max_expansion)
    report = LayerReport(reader.facts, findings=Findings(keep))
    pass_ = _Pass(report, profile or Profile(), contents)
    with _Ahead(reader) as pieces:
        tar = TarReader(pieces, grow=reader.grow)
        for member in tar:
            pass_.take(member)
    pass_.close(tar)
    return report


class _Ahead:
    """Runs a blob's reader a few pieces ahead on a thread, which ends with the context."""

    def __init__(self, reader: BlobReader) -> None:
        self._reader = reader
        self._queue: Queue[bytes | BaseException | None] = Queue(2)
        self._stopped = False
        self._thread = Thread(target=self._run, name="detlayer-blob", daemon=True)

    def __enter__(self) -> Iterator[bytes]:
        self._thread.start()
        return self._pieces()

    def __exit__(self, *failed: object) -> None:
        self._stopped = True
        while self._thread.is_alive():
            with suppress(Empty):
                self._queue.get(timeout=0.01)
        self._thread.join()

    def _run(self) -> None:
        try:
            for piece in self._reader:
                self._queue.put(piece)
                if self._stopped:
                    return
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)

    def _pieces(self) -> Iterator[bytes]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item


# Hashed together: blake3 is far faster on kilobytes, and most blocks have 512 bytes.


class _Pass:
    def __init__(self, report: LayerReport, profile: Profile, contents: bool) -> None:
        self._report = report
        self._profile = profile
        self._contents = contents
        self._key = LayerKey()
        self._places = PathChecker()
        self._previous_bytes = 0
        # None for a hard link to a file that is not Python source: the target's values are not kept.
        self._sources: dict[bytes, _Source | None] = {}
        self._bytecode: list[tuple[bytes, bytes]] = []
        self._chunk_bytes = 0

    def take(self, member: Member) -> None:
        report, entry = self._report, member.entry
        findings = report.findings
        report.entries += 1
        report.signs.take(entry.path)
        if entry.path:
            if not is_canonical(member, self._profile):
                findings.extend(check_form(member))
                findings.extend(check_values(entry, self._profile))
            findings.extend(self._places.take(entry))
            if self._contents:
                findings.extend(content.check_name(entry.path, entry.kind == "dir"))
        else:
            findings.add(Finding("path-form", "", "path", printable(member.written_path), "no entry for the root"))
        fingerprint = b""
        if entry.kind == "file" and not member.special:
            report.files += 1
            fingerprint = self._read(member)
        elif entry.kind == "hardlink" and entry.path.endswith(b".py"):
            self._sources[entry.path] = self._sources.get(entry.target)
        self._key.add(member.blocks + member.map, fingerprint)
        # Only now: reading has already rejected a false size, so the number of chunks is bounded.
        self._count_chunk(member)

    def _read(self, member: Member) -> bytes:
        """Check a file's content; returns its fingerprint."""
        entry = member.entry
        digest = blake3()
        kept: list[bytes] | None = (
            [] if self._contents and content.wants_content(entry.path, entry.size_bytes) else None
        )
        if entry.content is not None:
            for view in member.views():
                digest.update(view)
                if kept is not None:
                    kept.append(bytes(view))
        if not self._contents:
            return digest.digest()
        if entry.path.endswith(b".py"):
            self._sources[entry.path] = _Source(entry.mtime, entry.size_bytes)
        if kept is not None:
            self._check_content(entry.path, b"".join(kept))
        return digest.digest()

    def _check_content(self, path: bytes, data: bytes) -> None:
        if not path.endswith(b".pyc"):
            self._report.findings.extend(content.check_content(path, data, None))
            return
        # The source may come later in the layer: keep the first bytes until the end, and check the rest now.
        self._bytecode.append((path, data[: bytecode.HEADER_BYTES]))
        unstamped = data[:4] + b"\1" + data[5:]
        self._report.findings.extend(content.check_content(path, unstamped, None))

    def _count_chunk(self, member: Member) -> None:
        entry = member.entry
        size = member.stored_bytes
        if cut_before(entry.written_path, size, self._chunk_bytes, self._previous_bytes):
            self._cut()
        self._chunk_bytes += len(member.blocks) + len(member.map)
        left = size
        while left > CHUNK_MAX_BYTES:
            self._chunk_bytes += CHUNK_MAX_BYTES
            left -= CHUNK_MAX_BYTES
            self._cut()
        self._chunk_bytes += left + padding(size)
        self._previous_bytes = size

    def _cut(self) -> None:
        self._report.chunks.append(self._chunk_bytes)
        self._chunk_bytes = 0

    def close(self, tar: TarReader) -> None:
        trailer_bytes = tar.trailer_bytes
        for extension in tar.left_over:
            keys = printable(b", ".join(key for key, _ in extension.records))
            self._report.findings.add(Finding("needless-pax", "", "global header", keys, "none"))
        report, findings = self._report, self._report.findings
        report.key = str(self._key)
        for path, head in self._bytecode:
            above, _, name = path.rpartition(b"/")
            home, _, last = above.rpartition(b"/")
            source_name = bytecode.source_name(name, last == b"__pycache__")
            place = home if last == b"__pycache__" else above
            source_path = (place + b"/" if place else b"") + (source_name or b"")
            source = self._sources.get(source_path)
            if source is not None or source_path not in self._sources:
                findings.extend(content.check_content(path, head, source))
        if trailer_bytes != len(END):
            findings.add(Finding("trailer", "", "zeros at the end", str(trailer_bytes), str(len(END))))
        if self._previous_bytes >= CHUNK_MAX_BYTES:
            self._cut()
        self._chunk_bytes += trailer_bytes
        self._cut()
        self._check_blob()

    def _check_blob(self) -> None:
        report, facts = self._report, self._report.facts
        findings = report.findings
        if facts.compression == "none":
            report.codec = Codec("none")
            return
        for header, number in facts.gzip_headers.items():
            for what, found, wanted in _gzip_deviations(header, facts.gzip_name):
                findings.add(Finding("gzip-header", "", f"{what} of member {number + 1}", found, wanted))
        if facts.members != report.chunks:
            at = next(
                (n for n, (a, b) in enumerate(zip(facts.members, report.chunks, strict=False)) if a != b),
                min(len(facts.members), len(report.chunks)),
            )
            lengths = tuple(str(one[at]) if at < len(one) else "none" for one in (facts.members, report.chunks))
            findings.add(Finding("chunking", "", f"bytes of chunk {at + 1}", *lengths))
            return
        codec = recognise(facts)
        if codec is not None and not findings.counts.get("gzip-header"):
            report.codec = codec
        if codec is None:
            found = f"{facts.compression} of another compressor, version or level"
            findings.add(Finding("compressor-class", "", "first chunk", found, "the output of a codec of SPEC 6.2"))


def _gzip_deviations(header: bytes, name: bytes) -> Iterator[tuple[str, str, str]]:
    flags, mtime, system = header[3], int.from_bytes(header[4:8], "little"), header[9]
    if mtime:
        yield "mtime", str(mtime), "0"
    if flags & 0x08:
        yield "name", printable(name), "none"
    if flags & 0xF7:
        yield "flags", f"{flags:#04x}", "0x00"
    if system != 0xFF:
        yield "OS byte", str(system), "255"
