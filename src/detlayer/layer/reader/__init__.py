"""Read tar bytes from any writer and from untrusted sources.

Reads ustar, PAX, GNU long names and base-256 numbers, and expands sparse files. The original header is kept
(`Member.blocks`), so that `checks.header_form` can compare it with SPEC 5. Records, maps and holes are bounded;
inconsistent headers raise LayerError.
"""

from __future__ import annotations

from detlayer.layer.reader.records import number, parse_records
from detlayer.layer.reader.tar_reader import MAX_HOLES_BYTES, MAX_RECORDS, Extension, Member, TarReader, clean_path

__all__ = [
    "MAX_HOLES_BYTES",
    "MAX_RECORDS",
    "Extension",
    "Member",
    "TarReader",
    "clean_path",
    "number",
    "parse_records",
]
