"""Ctrl-C and SIGTERM in the middle of a push or pull: the exit code says so, and a second run resumes."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import CommandLine
from tests.contracts.assertions import assert_has, broken_tags, present, seed, uploaded
from tests.contracts.faults import SESSION, Fault, Reply
from tests.contracts.fixtures import StartStrict
from tests.contracts.http_records import Answer
from tests.contracts.images import CounterBody, Descriptor, Layout, image, platforms
from tests.contracts.registry_behaviour import busy
from tests.contracts.servers import RealRegistry, Server
from tests.contracts.storage import MANIFEST

SIGNALS = pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["interrupt", "terminate"]
)
STOPPED = "warning[interrupted]: stopped; every output is either complete or unchanged"
CHUNKS_BYTES = 132 << 20  # sent in chunks of 64 MiB
LAYER = "application/vnd.oci.image.layer.v1.tar"


def with_large(layout: Layout, size_bytes: int) -> tuple[Descriptor, str]:
    """An image with two small layers and a large one; returns it, and the large one's digest."""
    document = json.loads(layout.read(image(layout)["digest"]))
    path = layout.path / "large"
    digest = CounterBody(size_bytes).write_to(path)
    path.rename(layout.blob_path(digest))
    document["layers"].append({"mediaType": LAYER, "digest": digest, "size": size_bytes})
    return layout.tag(layout.add_document(document), "app"), digest


@SIGNALS
def test_push(detlayer: CommandLine, open_server: Server, layout: Layout, number: int, exit_code: int) -> None:
    made, large = with_large(layout, CHUNKS_BYTES)
    push = ("push", "oci:layout", f"{open_server.address}/team/app:1")
    # Before the second chunk: the first has arrived, and the small blobs have arrived or will soon.
    said = detlayer.interrupted(push, number, lambda call: open_server.arm(Fault(call, "PATCH", SESSION, at=2)))
    assert (said.exit, said.stdout, said.words[-1]) == (exit_code, "", STOPPED)
    assert "Traceback" not in said.stderr
    assert open_server.tags("team/app") == {}
    arrived = set(uploaded(open_server.requests))
    assert large not in arrived
    open_server.revive()
    open_server.clear()
    again = detlayer(*push)
    assert (again.exit, again.stdout) == (0, f"{made['digest']}\n")
    assert_has(open_server, "team/app", "1", layout, made)
    assert not set(uploaded(open_server.requests)) & arrived
    patched = sum(one.body_bytes for one in open_server.requests if one.method == "PATCH")
    # docker-registry drops an upload that broke off within a chunk; the specification requires keeping it.
    assert patched <= CHUNKS_BYTES - (0 if isinstance(open_server, RealRegistry) else 64 << 20)


@SIGNALS
def test_pull(detlayer: CommandLine, open_server: Server, layout: Layout, number: int, exit_code: int) -> None:
    size_bytes = 48 << 20
    made, large = with_large(layout, size_bytes)
    seed(open_server, "team/app", layout, made, "1")
    pull = ("pull", f"{open_server.address}/team/app:1", "-o", "oci:pulled")
    process: list[subprocess.Popen[bytes]] = []

    def pieces() -> Iterator[bytes]:
        """Send two thirds of the blob, more than socket buffers hold, then the signal and the rest."""
        for at, piece in enumerate(CounterBody(size_bytes).pieces()):
            if at == 32:
                process[0].send_signal(number)
            yield piece

    open_server.arm(Fault(Reply(Answer(200, body=pieces(), length=size_bytes)), "GET", f"/blobs/{large}"))
    process.append(detlayer.start(*pull))
    said = detlayer.end(process[0])
    assert (said.exit, said.stdout, said.words[-1]) == (exit_code, "", STOPPED)
    pulled = detlayer.here / "pulled"
    assert not (pulled / "index.json").exists()
    part = (pulled / ".detlayer" / f"{large.removeprefix('sha256:')}.part").stat().st_size
    assert part >= 8 << 20
    here = {one.name for one in (pulled / "blobs" / "sha256").iterdir()}
    open_server.revive()
    open_server.clear()
    again = detlayer(*pull)
    assert (again.exit, again.stdout) == (0, f"{made['digest']}\n")
    fetched = {one.path.rpartition(":")[2]: one for one in open_server.requests if "/blobs/" in one.path}
    assert not here & fetched.keys()
    assert fetched[large.removeprefix("sha256:")].header("range") == f"bytes={part}-"
    for digest, data in layout.blobs_of(made).items():
        assert (pulled / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes() == data
    assert not (pulled / ".detlayer").exists()


def test_push_at_any_request(detlayer: CommandLine, start_strict: StartStrict, layout: Layout) -> None:
    """At any request: no tag points to a partial image, and blobs that arrived are not sent again."""
    server = start_strict()
    made = layout.tag(platforms(layout, 1, 2), "app")
    for number in itertools.count(1):
        name = f"team/app{number}"
        push = ("push", "oci:layout", f"{server.address}/{name}:1", "--cache-dir", f"cache{number}")
        said = detlayer.interrupted(
            push,
            signal.SIGINT,
            lambda call, at=number: server.arm(Fault(call, at=at)),  # type: ignore[misc]
        )
        server.revive()
        assert broken_tags(server) == {}, f"interrupted at request {number}"
        if said.exit == 0:
            break
        assert (said.exit, said.words[-1]) == (130, STOPPED)
        arrived = present(server, name, layout.blobs_of(made))
        server.clear()
        assert detlayer(*push).stdout == f"{made['digest']}\n"
        assert_has(server, name, "1", layout, made)
        assert not set(uploaded(server.requests)) & arrived, f"interrupted at request {number}"
        server.clear()
    assert number > 9


@SIGNALS
def test_while_it_waits(
    detlayer: CommandLine, start_strict: StartStrict, layout: Layout, number: int, exit_code: int
) -> None:
    """Ctrl-C also works while waiting for a registry that asks for an hour."""
    server = start_strict()
    layout.tag(image(layout), "app")
    server.arm(Fault(Reply(busy(429, "3600")), "POST", times=0))
    push = ("push", "oci:layout", f"{server.address}/team/app:1", "--timeout", "3600")
    said = detlayer.interrupted(push, number, lambda call: server.arm(Fault(call, "POST")))
    assert (said.exit, said.words[-1]) == (exit_code, STOPPED)
    server.revive()
    assert detlayer(*push).exit == 0
    assert broken_tags(server) == {}


def test_while_it_copies(detlayer: CommandLine, start_strict: StartStrict, layout: Layout) -> None:
    """From registry to registry: no partial blob is left, and the second run completes the copy."""
    source, target = start_strict(), start_strict()
    made, large = with_large(layout, 24 << 20)
    seed(source, "team/app", layout, made, "1")
    copy = ("push", f"docker://{source.address}/team/app:1", f"{target.address}/copy/app:1")
    said = detlayer.interrupted(copy, signal.SIGINT, lambda call: source.arm(Fault(call, "GET", rf"/blobs/{large}")))
    assert (said.exit, said.words[-1]) == (130, STOPPED)
    assert target.blob("copy/app", large) is None
    assert target.tags("copy/app") == {}
    source.revive()
    assert detlayer(*copy).stdout == f"{made['digest']}\n"
    assert target.manifest("copy/app", made["digest"]) == (
        MANIFEST,
        Path(layout.blob_path(made["digest"])).read_bytes(),
    )
    assert broken_tags(target) == {}


def test_the_last_line_of_json_says_it(detlayer: CommandLine, start_strict: StartStrict, layout: Layout) -> None:
    server = start_strict()
    layout.tag(image(layout), "app")
    push = ("push", "oci:layout", f"{server.address}/team/app:1", "--json")
    said = detlayer.interrupted(push, signal.SIGINT, lambda call: server.arm(Fault(call, "POST")))
    assert said.exit == 130
    assert said.documents[-1]["type"] == "error"
    assert said.documents[-1]["code"] == "interrupted"
