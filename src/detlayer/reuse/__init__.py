"""A pack that knows of earlier ones: the layer from a trace, or its chunks from earlier blobs. Joins tree and store.

What it gives is what a cold pack gives, byte by byte: a trace is found by the key of the entries, which names the tar
(SPEC 8), and the codec class, which names what the compressor makes of it; a chunk by its blake3.
"""

from __future__ import annotations

from detlayer.reuse.explanation import Explanation
from detlayer.reuse.lookup import Reuse
from detlayer.reuse.repack import repack
from detlayer.reuse.sources import Sources

__all__ = ["Explanation", "Reuse", "Sources", "repack"]
