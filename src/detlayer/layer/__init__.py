"""The format of SPEC.md: entries to tar, chunks and blob, and blobs back to entries. Pure, with threads."""
