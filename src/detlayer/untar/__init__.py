"""Tar bytes to entries, from any writer and from untrusted sources. Never compression, hashing or disk.

Reads ustar, PAX, GNU long names and base-256 numbers, and expands sparse files. How an entry was written is kept as it
stands (`Member.blocks`), for `form` to compare with how SPEC 5 would have it. Records, maps and holes are bounded;
whatever lies is a LayerError.
"""

from __future__ import annotations

from detlayer.untar.reader import MAX_HOLES_BYTES, MAX_RECORDS, Extension, Member, TarReader, clean_path
from detlayer.untar.records import number, parse_records

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
