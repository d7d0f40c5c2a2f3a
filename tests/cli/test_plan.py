"""Transcripts of `detlayer plan`: exit, stdout, stderr."""

from __future__ import annotations

import pytest

from tests.cli.command import CommandLine
from tests.contracts.assertions import seed
from tests.contracts.images import Layout, base_of, image, platforms
from tests.contracts.servers import Server


@pytest.fixture
def index(layout: Layout) -> str:
    """The digest of an image for two platforms, the only one in `oci:layout`."""
    return str(layout.tag(platforms(layout, 2, 2), "app")["digest"])


def test_each_blob_has_an_action_and_a_reason(
    detlayer: CommandLine, open_server: Server, index: str, layout: Layout
) -> None:
    at = open_server.address
    seed(open_server, "team/base", layout, base_of(layout, 2, 2), "12")
    old = seed(open_server, "team/app", layout, platforms(layout, 2, 2, version="0"), "1")
    said = detlayer("plan", "oci:layout", f"{at}/team/app:1")
    assert (said.exit, said.stderr) == (0, "")
    here, *rows = said.lines
    assert here == f"{at}/team/app"
    actions = [(row.split()[0], row.split("  ")[-1]) for row in rows[:-1]]
    # The bases are in the image that the tag points to now; top layers and configs are new.
    assert actions.count(("inferred", "listed by an existing manifest")) == 2
    assert actions.count(("upload", "not known to exist")) == 4
    assert actions[-3:] == [("put", "not known to exist")] * 2 + [("put", f"names {old} now")]
    assert rows[-1].startswith("  11 requests and ")
    assert len({row.index(row.split("  ")[-1]) for row in rows[:-1]}) == 1  # the columns are aligned
    two = detlayer("plan", "oci:layout", f"{at}/team/app:1", f"{at}/new/app:1", "--source", f"{at}/team/base")
    first, second = two.stdout.split(f"{at}/new/app\n")
    for one in (first, second):  # a failed mount becomes an upload, so a wrong guess costs nothing
        assert one.count(f"{at}/team/base may have it") == (4 if one is first else 6)
    assert {request.method for request in open_server.requests} <= {"HEAD", "GET"}


def test_a_question_sets_the_exit_code(detlayer: CommandLine, open_server: Server, index: str, layout: Layout) -> None:
    at = open_server.address
    open_question = detlayer("plan", "oci:layout", f"{at}/team/app:1", "--question")
    assert (open_question.exit, open_question.stderr) == (1, "")
    seed(open_server, "team/app", layout, platforms(layout, 2, 2), "1")
    done = detlayer("plan", "oci:layout", f"{at}/team/app:1", "--question")
    assert (done.exit, done.stderr) == (0, "")
    assert done.lines[-2].split() == ["present", "1", "517", "bytes", "up", "to", "date"]
    assert done.lines[-1] == "  nothing to do"
    more = detlayer("plan", "oci:layout", f"{at}/team/app:1", f"{at}/team/app:2", "--question")
    assert more.exit == 1
    assert more.lines[-1].startswith("  1 request and 517 bytes to send, of ")
    assert detlayer("plan", "oci:layout", f"{at}/team/app:2").exit == 0


def test_json_is_one_document(detlayer: CommandLine, open_server: Server, index: str) -> None:
    at = open_server.address
    said = detlayer("plan", "oci:layout", f"{at}/team/app:1", "--json")
    assert (said.exit, said.stderr, len(said.lines)) == (0, "", 1)
    assert said.result["format"] == "detlayer-plan/1"
    assert said.result["type"] == "result"
    (plan,) = said.result["plans"]
    assert (plan["repository"], plan["root"]) == (f"{at}/team/app", index)
    assert plan["asked"] == len(open_server.requests)
    assert plan["requests"] == 15
    assert plan["uploadBytes"] == plan["allBytes"]
    sizes = [blob["size"] for blob in plan["blobs"]]
    assert sizes == sorted(sizes, reverse=True)
    assert {blob["action"] for blob in plan["blobs"]} == {"upload"}
    assert plan["tags"] == [{"tag": "1", "action": "put", "reason": "new"}]
    assert said.stdout == detlayer("plan", "oci:layout", f"{at}/team/app:1", "--json", "--no-cache").stdout


def test_foreign_layers_are_not_sent(detlayer: CommandLine, open_server: Server, layout: Layout) -> None:
    layout.tag(image(layout, foreign_seed="windows"), "app")
    said = detlayer("plan", "oci:layout", f"{open_server.address}/team/app:1")
    rows = [line for line in said.lines if "registries do not accept foreign layers" in line]
    assert len(rows) == 1
    assert rows[0].startswith("  foreign ")


def test_errors_are_on_stderr_and_in_json(detlayer: CommandLine, index: str) -> None:
    plan = ("plan", "oci:layout", "127.0.0.1:1/team/app:1", "--retries", "0")
    assert detlayer(*plan).error == (
        5,
        "registry-unreachable",
        "can't connect to 127.0.0.1:1: Connection refused",
        "check the name, the port and the network",
    )
    said = detlayer(*plan, "--json")
    assert (said.exit, len(said.lines)) == (5, 1)
    assert said.result == {
        "type": "error",
        "code": "registry-unreachable",
        "message": "can't connect to 127.0.0.1:1: Connection refused",
        "hint": "check the name, the port and the network",
    }
