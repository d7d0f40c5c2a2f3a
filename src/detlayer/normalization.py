"""`normalize`: convert a layer from any tool to the one that `pack` writes.

Two passes, one over the blob and one over its entries: contents wait on disk, entries in memory (about half a kilobyte
each).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

from msgspec import structs

from detlayer.errors import LayerError, printable
from detlayer.images.files import open_layer
from detlayer.layer import bytecode, writer
from detlayer.layer.apply import AppliedEntry, Merger
from detlayer.layer.decompress import BlobReader
from detlayer.layer.entry import Entry, Profile, is_whiteout
from detlayer.layer.formats import ArchiveSigns, image_archive
from detlayer.layer.ports import Reporter, Silence
from detlayer.layer.reader import TarReader
from detlayer.layer.writer import Layer
from detlayer.oci.ports import Readable
from detlayer.output.files import Outputs, Tee
from detlayer.output.spool import Spool
from detlayer.packing.options import DEFAULT_OPTIONS, PackOptions, Path
from detlayer.packing.packer import codec_warnings
from detlayer.tree import Selection


def normalize(
    source: Path | BinaryIO,
    output: Path | BinaryIO | None = None,
    *,
    oci_layout: Path | None = None,
    descriptor: Path | None = None,
    max_expansion: int = 200,
    options: PackOptions = DEFAULT_OPTIONS,
) -> Layer:
    """Write the layer at `source` (a file or a binary stream) in canonical form: sorted, normalized, SPEC 3 to 6.

    Later duplicates win, as when the layer is applied; whiteouts stay; missing parents are added. Only these `options`
    are used: compression, profile, jobs, reporter, and `hardlinks`, `special` and `retime_pyc` of the selection.
    normalize(normalize(x)) is normalize(x), and with the default profile normalize(pack(tree)) is pack(tree). Raises
    LayerError if the layer can't be read, ConfigError and OutputError.
    """
    profile, selection, reporter = options.profile, options.selection, options.reporter or Silence()
    codec, jobs = options.codec_for(output), options.count_jobs()
    spool = Spool()
    try:
        with Outputs(output=output, oci_layout=oci_layout, descriptor=descriptor) as outputs:
            if isinstance(source, str | os.PathLike):
                with open_layer(source) as file:
                    merger = _read(file, os.fspath(source), spool, selection, max_expansion, reporter)
            else:
                merger = _read(source, "", spool, selection, max_expansion, reporter)
            entries = _with_content(merger, spool, profile, selection)
            made = writer.pack(entries, Tee(outputs.sinks), codec=codec, jobs=jobs, reporter=reporter)
            outputs.commit(made.digest, descriptor=made.descriptor().to_bytes() + b"\n")
    finally:
        spool.close()
    for code, message in codec_warnings(made):
        reporter.warning(code, message)
    return made


def _read(
    source: Readable, name: str, spool: Spool, selection: Selection, max_expansion: int, reporter: Reporter
) -> Merger:
    merger, signs = Merger(), ArchiveSigns()
    reader = BlobReader(source, max_expansion=max_expansion)
    for member in TarReader(reader, grow=reader.grow):
        entry = member.entry
        shown = printable(entry.path)
        signs.take(entry.path)
        if not entry.path:
            continue  # the root has no entry (SPEC 3.2)
        if member.special and not is_whiteout(entry.path, entry.kind):
            if selection.special == "error":
                raise LayerError("special-files", f"{shown} is a {member.special}", "omit it with --special skip")
            reporter.warning("special-skipped", f"skipped {shown}, a {member.special}")
            continue
        start = spool.append(member.views()) if entry.size_bytes else 0
        merger.add(structs.replace(entry, content=None), start)
    if signs.kind:
        raise image_archive(signs.kind, name, reader.facts.compression)
    spool.flush()
    return merger


def _with_content(merger: Merger, spool: Spool, profile: Profile, selection: Selection) -> Iterator[Entry]:
    for entry, held in merger.entries(profile, hardlinks=selection.hardlinks):
        if held is None or entry.kind != "file" or not entry.size_bytes:
            yield entry
            continue
        patch = _retimed(entry, held, merger, spool, profile) if selection.retime_pyc else None
        yield structs.replace(entry, content=spool.content(held.start, entry.size_bytes, patch))


def _retimed(
    entry: Entry, held: AppliedEntry, merger: Merger, spool: Spool, profile: Profile
) -> tuple[int, bytes] | None:
    """Return the time stamp of a .pyc as `pack` writes it (SPEC 4.8)."""
    if not entry.path.endswith(b".pyc"):
        return None
    recorded = bytecode.recorded(spool.read(held.start, min(entry.size_bytes, bytecode.HEADER_BYTES)))
    source = merger.source_of(entry.path) if recorded is not None else None
    if recorded is None or source is None or not bytecode.matches(recorded, source.mtime, source.size_bytes):
        return None
    return 8, bytecode.mtime_field(profile.time_of(source.mtime, source.path))
