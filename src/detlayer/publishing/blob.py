"""One blob without an image around it: what `plan` and `push` do with `--as-blob`."""

from __future__ import annotations

from collections.abc import Sequence

from detlayer.documents import Document
from detlayer.names import RepositoryName
from detlayer.oci import Descriptor
from detlayer.plan import Facts, Plan, Wanted, plan_blob
from detlayer.ports import Amnesia, ImageSource, Memory, Place, SilentTransfers, TransferReporter
from detlayer.publishing.carry import Carrier
from detlayer.publishing.survey import Hints
from detlayer.registry.client import Registries


def plan_blobs(
    blob: Descriptor,
    names: Sequence[RepositoryName],
    registries: Registries,
    *,
    memory: Memory | None = None,
    hints: Hints | None = None,
) -> list[Plan]:
    """Say what pushing one blob to repositories would do, changing nothing; raises RegistryError."""
    memory = memory or Amnesia()
    return [_plan(blob, name, registries, memory, hints)[0] for name in names]


def push_blob(
    blob: Descriptor,
    source: ImageSource,
    names: Sequence[RepositoryName],
    registries: Registries,
    *,
    memory: Memory | None = None,
    hints: Hints | None = None,
    reporter: TransferReporter | None = None,
) -> list[Plan]:
    """Push one blob to repositories, where it is not there; returns what was done. Raises as `push` does."""
    memory, reporter = memory or Amnesia(), reporter or SilentTransfers()
    plans = []
    for name in names:
        made, facts = _plan(blob, name, registries, memory, hints)
        wanted = Wanted((Document("", b"", blob.digest, layers=(blob,)),))
        Carrier(registries.repository(name), source, wanted, facts, memory, reporter, None).bring(made)
        plans.append(made)
    return plans


def _plan(
    blob: Descriptor, name: RepositoryName, registries: Registries, memory: Memory, hints: Hints | None
) -> tuple[Plan, Facts]:
    repository = registries.repository(name)
    repository.expect_push()
    facts = Facts()
    sources = hints.sources if hints is not None else ()
    size_bytes = repository.head_blob(blob.digest)
    if size_bytes is not None:
        facts.proofs[blob.digest] = "seen"
        memory.remember(repository.principal, [Place(name, blob.digest, "seen")])
    else:
        facts.absent.add(blob.digest)
        places = memory.places(name.registry, repository.principal, [blob.digest])
        for source in (*(place.name for place in places), *sources):
            if source.registry == name.registry and source != name:
                facts.elsewhere.setdefault(blob.digest, source)
    return plan_blob(name, blob, facts, asked=1), facts
