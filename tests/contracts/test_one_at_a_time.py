"""A registry that handles one request at a time: never read from it while writing to it."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from detlayer.errors import IntegrityError, OutputError
from detlayer.oci.ports import Readable
from detlayer.registry import Network, Transport
from detlayer.registry.transport import Request, Stretch
from tests.contracts.assertions import assert_has, seed
from tests.contracts.client import Client
from tests.contracts.faults import BLOB, Call, Fault
from tests.contracts.images import Layout, image
from tests.contracts.raw_server import RawServer, answer
from tests.contracts.registry_behaviour import Rules
from tests.contracts.strict import StrictRegistry

Start = Callable[..., StrictRegistry]
SERIAL = Rules(one_at_a_time=True, mounts=False)


@pytest.mark.parametrize("in_chunks", [False, True])
@pytest.mark.parametrize("layer_bytes", [2000, 12 << 20], ids=["small", "larger-than-sockets-hold"])
def test_a_copy_within_one_registry(
    layer_bytes: int,
    in_chunks: bool,
    start_strict: Start,
    layout: Layout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if in_chunks:
        monkeypatch.setattr("detlayer.registry.upload.CHUNKED_FROM_BYTES", 1000)
        monkeypatch.setattr("detlayer.registry.upload._CHUNK_BYTES", max(1000, layer_bytes // 3))
    server = start_strict(rules=SERIAL)
    made = image(layout, ["one", "two", "three"], layer_bytes=layer_bytes, compression="none")
    seed(server, "team/from", layout, made, "1")
    client = Client(server, read_s=5.0, retries=0)
    client.pull("team/from:1", tmp_path / "sparse", manifests_only=True)
    client.push(f"oci:{tmp_path / 'sparse'}", "team/to:1")
    assert_has(server, "team/to", "1", layout, made)


def sparse(server: StrictRegistry, layout: Layout, tmp_path: Path) -> str:
    """An image whose blobs are only in the registry."""
    seed(server, "team/from", layout, image(layout, ["one"], layer_bytes=100_000, compression="none"), "1")
    Client(server).pull("team/from:1", tmp_path / "sparse", manifests_only=True)
    server.clear()
    return f"oci:{tmp_path / 'sparse'}"


def test_a_source_that_fails_leaves_no_request_half_sent(start_strict: Start, layout: Layout, tmp_path: Path) -> None:
    server = start_strict(rules=SERIAL)
    name = sparse(server, layout, tmp_path)

    def spoil(request: object) -> None:
        with server.storage.lock:
            blobs = server.storage.repository("team/from").blobs
            blobs.update({digest: b"!" * len(data) for digest, data in blobs.items()})

    server.arm(Fault(Call(spoil), "GET", BLOB))
    with pytest.raises(IntegrityError) as caught:
        Client(server).push(name, "team/to:1")
    assert caught.value.code == "blob-digest"
    sent = [request for request in server.requests if request.method in ("PUT", "PATCH")]
    assert [request for request in sent if request.header("content-length") != "233"] == []  # the local config


class FailingBody:
    """A body that fails to be read."""

    size_bytes = 100

    def open(self, offset: int = 0) -> AbstractContextManager[Readable]:
        raise IntegrityError("blob-digest", "it is gone")


def test_a_source_is_opened_before_the_request() -> None:
    """Including a blob on another host, which is not written to a file."""
    with RawServer(lambda asked: answer(201)) as server:
        transport = Transport(Network(retries=0, read_s=10))
        stretch = Stretch(FailingBody(), 0, 100, lambda count_bytes: None)
        with pytest.raises(IntegrityError):
            transport.send(Request("PUT", f"http://{server.address}/", content=stretch, repeat=False))
        assert transport.counts.requests == 0
        transport.close()
    assert server.connections == 0


def test_a_full_disk_is_named(
    start_strict: Start, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_strict(rules=SERIAL)
    name = sparse(server, layout, tmp_path)

    def full(*arguments: object, **options: object) -> object:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError) as caught:
        Client(server).push(name, "team/to:1")
    assert caught.value.code == "spool-full"
    assert "TMPDIR" in caught.value.hint
