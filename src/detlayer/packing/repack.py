"""The flow of a pack with a store: look for the layer, else make it with what is known of its chunks, and keep it."""

from __future__ import annotations

from collections.abc import Callable

from detlayer.layer import writer
from detlayer.layer.codec import Codec
from detlayer.layer.ports import Reporter
from detlayer.layer.writer import Layer
from detlayer.output.files import Outputs, Tee
from detlayer.packing.explanation import Explanation
from detlayer.packing.lookup import Reuse
from detlayer.packing.sources import Sources
from detlayer.store import Store


def repack(
    sources: Sources,
    outputs: Outputs,
    store: Store,
    *,
    codec: Codec,
    jobs: int,
    reporter: Reporter,
    paranoid: bool = False,
    explain: Callable[[Explanation], None] | None = None,
) -> Layer:
    """Give what `layer.writer.pack` of the sources would write to the outputs, with as little work as the store allows.

    Raises what that raises.
    """
    with Reuse(store, codec, sources, jobs=jobs, reporter=reporter, is_paranoid=paranoid) as reuse:
        layer = reuse.find()
        if layer is not None and _write_found(layer, reuse, outputs, store):
            for code, message in sources.warnings:
                reporter.warning(code, message)
        else:
            sources.reporter = reporter
            layer = writer.pack(
                sources.entries(),
                Tee((outputs.blob, reuse.blob)),
                codec=codec,
                jobs=jobs,
                reporter=reporter,
                contents=reuse.contents,
                chunks=reuse.chunks,
            )
            reuse.keep(layer)
        if explain is not None:
            explain(reuse.explanation)
    return layer


def _write_found(layer: Layer, reuse: Reuse, outputs: Outputs, store: Store) -> bool:
    """Write a layer that was found to the outputs that do not hold it; False if it is corrupt in the store."""
    sink = outputs.keep(layer.digest, lambda path: store.outputs.holds(path, layer.digest, layer.size_bytes))
    reuse.explanation.kept_outputs = outputs.kept
    if sink is None or reuse.copy(layer, sink, is_final=not outputs.can_restart):
        return True
    outputs.restart()
    return False
