"""What a base is now, and its layers: resolved, and fetched into the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from detlayer.building.context import BaseSource, BuildContext
from detlayer.errors import IntegrityError, LayerError, OutputError, UnavailableError
from detlayer.oci.ports import TransferReporter
from detlayer.oci.references import Reference
from detlayer.oci.types import Descriptor, Digest, parse_digest

_PIECE_BYTES = 1 << 20


def resolve_now(context: BuildContext, base: Reference) -> Digest:
    """Ask a registry what a reference names: one request if that is known already. Raises RegistryError.

    In a build without network it is what the last one was told; raises UnavailableError where there was none.
    """
    last = _last(context, base)
    if context.is_offline:
        if last is None:
            raise UnavailableError(
                "offline", f"what {base} is was never asked, and the build is offline", "build without --offline once"
            )
        return last
    repository = context.repository(base.name)
    if last is not None and context.known(last) is not None:
        named = repository.head_manifest(base.target)
        if named is not None and context.known(named.digest) is not None:
            if named.digest != last:
                context.traces.put(f"resolved {base}", str(named.digest).encode())
            return named.digest
    document = repository.get_manifest(base.target)
    context.put(document.data)
    context.traces.put(f"resolved {base}", str(document.digest).encode())
    return document.digest


def _last(context: BuildContext, base: Reference) -> Digest | None:
    data = context.traces.get(f"resolved {base}")
    try:
        return parse_digest(data.decode()) if data is not None else None
    except ValueError:
        return None


def download_layer(
    blob: Descriptor, source: BaseSource, context: BuildContext, reporter: TransferReporter, check: Callable[[], None]
) -> None:
    """Bring a layer into the store, held against its digest.

    Raises RegistryError, LayerError, IntegrityError, and OutputError where the store can't take it.
    """
    body = source.body(blob)
    if body is None:
        raise LayerError("blob-missing", f"the base lacks its layer {blob.digest}", "fetch the whole base again")
    name = str(blob.digest)
    reporter.transfer(name, blob.size_bytes)
    sha, count = hashlib.sha256(), 0
    try:
        incoming = context.store.blobs.incoming()
        try:
            with body.open() as file:
                while piece := file.read(_PIECE_BYTES):
                    check()
                    sha.update(piece)
                    count += len(piece)
                    incoming.write(piece)
                    reporter.advance(name, len(piece))
            if count != blob.size_bytes or sha.hexdigest() != blob.digest.hex:
                raise IntegrityError("blob-digest", f"{blob.digest} came as something else", "fetch the base again")
            incoming.commit(blob.digest)
            reporter.done(name, "pulled")
        finally:
            incoming.discard()
    except OSError as error:
        raise OutputError(
            "output-write", f"the store can't take {blob.digest}: {error.strerror}", "free some space, or --cache-dir"
        ) from error
