"""The format of SPEC.md, both ways: entries to tar, chunks and blob, and blobs back to entries. Pure, with threads."""
