"""One pass over a layer blob that says all there is to say of it: digests, key, counts, and findings.

Joins `blob`, `untar`, `form` and `innards`; knows no disk and no terminal. Decompression runs one piece ahead on
a thread of its own. Memory is bounded by pieces, by findings kept per trap, and by the paths that order alone
can't judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Queue
from threading import Thread
from typing import NamedTuple

from blake3 import blake3

from detlayer import innards, pyc
from detlayer.blob import BlobFacts, BlobReader, Readable
from detlayer.chunk import CHUNK_MAX_BYTES, cut_before
from detlayer.codec import Codec
from detlayer.entry import Entry, Profile, order_key
from detlayer.errors import printable
from detlayer.finding import Finding
from detlayer.form import check_form, check_values
from detlayer.layer import KEY_FORMAT
from detlayer.tar import END, padding
from detlayer.untar import Member, TarReader


class Findings:
    """Findings as they come: all counted, the first of each trap kept."""

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
    """What one pass over a blob found. `codec` is None where none of ours writes these bytes."""

    facts: BlobFacts
    key: str = ""
    entries: int = 0
    files: int = 0
    codec: Codec | None = None
    chunks: list[int] = field(default_factory=list)
    """Where SPEC 6.1 would cut."""
    findings: Findings = field(default_factory=Findings)


class _Source(NamedTuple):
    mtime: int
    size_bytes: int


class _Values(NamedTuple):
    mode: int
    uid: int
    gid: int
    mtime: int


def audit(
    source: Readable,
    *,
    profile: Profile | None = None,
    contents: bool = True,
    keep: int = 100,
    max_expansion: int = 200,
    each: Callable[[Member], None] | None = None,
) -> LayerReport:
    """Read a layer blob once and judge it against `profile` and SPEC 3 to 6.

    `contents` False looks at no file's content; `keep` findings of each trap are kept; `each` sees every member, whose
    content it must not read. Raises LayerError for what can't be read as a layer at all.
    """
    reader = BlobReader(source, max_expansion=max_expansion)
    report = LayerReport(reader.facts, findings=Findings(keep))
    tar = TarReader(_Ahead(reader))
    pass_ = _Pass(report, profile or Profile(), contents)
    for member in tar:
        if each is not None:
            each(member)
        pass_.take(member)
    pass_.close(tar.trailer_bytes)
    return report


class _Ahead:
    """Runs an iterator on a thread, a few pieces ahead."""

    def __init__(self, pieces: BlobReader) -> None:
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        queue: Queue[bytes | BaseException | None] = Queue(4)
        stopped = False

        def run() -> None:
            try:
                for piece in self._pieces:
                    queue.put(piece)
                    if stopped:
                        return
                queue.put(None)
            except BaseException as error:
                queue.put(error)

        thread = Thread(target=run, name="detlayer-blob", daemon=True)
        thread.start()
        try:
            while (item := queue.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped = True
            while thread.is_alive():
                while not queue.empty():
                    queue.get()
                thread.join(0.01)


class _Pass:
    def __init__(self, report: LayerReport, profile: Profile, contents: bool) -> None:
        self._report = report
        self._profile = profile
        self._contents = contents
        self._key = blake3(KEY_FORMAT.encode() + b"\n")
        self._previous: Entry | None = None
        # Paths by their hash, with what a hard link to a file there would have to carry; equal values are one object.
        self._seen: dict[int, _Values | None] = {}
        self._values: dict[_Values, _Values] = {}
        self._dirs: set[bytes] = {b""}
        self._sources: dict[bytes, _Source] = {}
        self._bytecode: list[tuple[bytes, bytes]] = []
        self._chunk_bytes = 0
        self._in_order = True

    def take(self, member: Member) -> None:
        report, entry = self._report, member.entry
        findings = report.findings
        self._key.update(member.blocks)
        report.entries += 1
        self._count_chunk(member)
        if not entry.path:
            findings.add(Finding("path-form", "", "path", printable(member.written_path), "no entry for the root"))
            return
        findings.extend(check_form(member))
        findings.extend(check_values(entry, self._profile))
        self._check_place(entry)
        if entry.kind == "file" and not member.special:
            report.files += 1
            self._read(member)
        if self._contents:
            findings.extend(innards.check_name(entry.path, entry.kind == "dir"))
        self._previous = entry

    def _check_place(self, entry: Entry) -> None:
        """Hold SPEC 3.3, 3.4 and 4.4 between entries."""
        findings, path, previous = self._report.findings, entry.path, self._previous
        shown = printable(path)
        place = hash(path)
        if place in self._seen:
            findings.add(Finding("duplicate-path", shown, "path", "again", "once"))
        elif previous is not None and order_key(path) < order_key(previous.path):
            findings.add(Finding("entry-order", shown, "order", f"after {printable(previous.path)}", "before it"))
        values = _Values(entry.mode, entry.uid, entry.gid, entry.mtime)
        self._seen[place] = self._values.setdefault(values, values) if entry.kind == "file" else None
        above = path.rpartition(b"/")[0]
        if above not in self._dirs:
            findings.add(Finding("parents", shown, "parent", "no entry", printable(above) + "/"))
            self._dirs.add(above)
        if entry.kind == "dir":
            self._dirs.add(path)
        elif entry.kind == "hardlink":
            target = self._seen.get(hash(entry.target))
            if target is None:
                where = "is not before it" if hash(entry.target) not in self._seen else "is no file"
                findings.add(Finding("hardlink-form", shown, "target", f"{printable(entry.target)} {where}", "a file"))
            elif target != values:
                for name, found, wanted in zip(_Values._fields, values, target, strict=True):
                    if found != wanted:
                        findings.add(Finding("hardlink-form", shown, name, str(found), f"its target's {wanted}"))

    def _read(self, member: Member) -> None:
        entry = member.entry
        digest = blake3()
        kept: list[bytes] | None = (
            [] if self._contents and innards.wants_content(entry.path, entry.size_bytes) else None
        )
        if entry.content is not None:
            for view in member.views():
                digest.update(view)
                if kept is not None:
                    kept.append(bytes(view))
        self._key.update(digest.digest())
        if not self._contents:
            return
        if entry.path.endswith(b".py"):
            self._sources[entry.path] = _Source(entry.mtime, entry.size_bytes)
        if kept is not None:
            self._check_content(entry.path, b"".join(kept))

    def _check_content(self, path: bytes, data: bytes) -> None:
        if not path.endswith(b".pyc"):
            self._report.findings.extend(innards.check_content(path, data, None))
            return
        # Its source may come later in the layer, so the first bytes wait for the end, and the rest is judged now.
        self._bytecode.append((path, data[: pyc.HEADER_BYTES]))
        unstamped = data[:4] + b"\1" + data[5:]
        self._report.findings.extend(innards.check_content(path, unstamped, None))

    def _count_chunk(self, member: Member) -> None:
        entry, previous = member.entry, self._previous
        size = entry.size_bytes
        if cut_before(entry.written_path, size, self._chunk_bytes, previous.size_bytes if previous is not None else 0):
            self._cut()
        self._chunk_bytes += len(member.blocks)
        left = size
        while left > CHUNK_MAX_BYTES:
            self._chunk_bytes += CHUNK_MAX_BYTES
            left -= CHUNK_MAX_BYTES
            self._cut()
        self._chunk_bytes += left + padding(size)

    def _cut(self) -> None:
        self._report.chunks.append(self._chunk_bytes)
        self._chunk_bytes = 0

    def close(self, trailer_bytes: int) -> None:
        report, findings = self._report, self._report.findings
        report.key = "blake3:" + self._key.hexdigest()
        for path, head in self._bytecode:
            above, _, name = path.rpartition(b"/")
            home, _, last = above.rpartition(b"/")
            source_name = pyc.source_name(name, last == b"__pycache__")
            place = home if last == b"__pycache__" else above
            source = self._sources.get((place + b"/" if place else b"") + (source_name or b""))
            findings.extend(innards.check_content(path, head, source))
        if trailer_bytes != len(END):
            findings.add(Finding("trailer", "", "zeros at the end", str(trailer_bytes), str(len(END))))
        if self._previous is not None and self._previous.size_bytes >= CHUNK_MAX_BYTES:
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
        report.codec = _recognise(facts)
        if report.codec is None:
            found = f"{facts.compression} of another compressor, version or level"
            findings.add(Finding("compressor-class", "", "first chunk", found, "what a codec of SPEC 6.2 writes here"))


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


def _recognise(facts: BlobFacts) -> Codec | None:
    """Find the codec that writes the first chunk as it stands, the likely ones first."""
    if not facts.first_member:
        return None
    if facts.compression == "gzip":
        names = [
            "gzip-libdeflate-6",
            "gzip-stored",
            *(f"gzip-libdeflate-{n}" for n in (1, 9, 2, 3, 4, 5, 7, 8, 10, 11, 12)),
        ]
    else:
        names = ["zstd-3", *(f"zstd-{n}" for n in range(1, 20) if n != 3)]
    chunk = b"".join(BlobReader(_Bytes(facts.first_member)))
    for name in names:
        codec = Codec(name)
        if bytes(codec.compressor()(memoryview(chunk))) == facts.first_member:
            return codec
    return None


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, size: int, /) -> bytes:
        data, self._data = self._data[:size], self._data[size:]
        return data
