"""Transcripts of `detlayer resolve`: exit, stdout, stderr."""

from __future__ import annotations

import pytest

from tests.cli.command import CommandLine
from tests.contracts.assertions import seed
from tests.contracts.fixtures import StartStrict
from tests.contracts.images import ODD_CONFIGS, Layout, artifact, image, odd_image, platforms
from tests.contracts.servers import Server
from tests.contracts.storage import INDEX, MANIFEST


def test_one_line(detlayer: CommandLine, open_server: Server, layout: Layout) -> None:
    at = open_server.address
    index = platforms(layout, 2, 2)
    seed(open_server, "team/app", layout, index, "1")
    said = detlayer("resolve", f"{at}/team/app:1")
    assert (said.exit, said.stderr) == (0, "")
    assert said.stdout == f"{index['digest']} {INDEX} linux/amd64,linux/arm64\n"
    assert detlayer("resolve", f"{at}/team/app@{index['digest']}").stdout == said.stdout
    single, bom = image(layout, architecture="riscv64"), artifact(layout)
    seed(open_server, "team/one", layout, single, "latest")
    seed(open_server, "team/bom", layout, bom, "latest")
    assert detlayer("resolve", f"{at}/team/one").stdout == f"{single['digest']} {MANIFEST} linux/riscv64\n"
    assert detlayer("resolve", f"{at}/team/bom").stdout == f"{bom['digest']} {MANIFEST} -\n"


def test_a_platform(detlayer: CommandLine, open_server: Server, layout: Layout) -> None:
    at = open_server.address
    seed(open_server, "team/app", layout, platforms(layout, 2, 2), "1")
    child = image(layout, ["arm64 0", "arm64 top 1"], architecture="arm64")
    said = detlayer("resolve", f"{at}/team/app:1", "--platform", "linux/arm64", "-v")
    assert said.stdout == f"{child['digest']} {MANIFEST} linux/arm64\n"
    assert said.words == [
        f"GET http://{at}/v2/team/app/manifests/1 -> 200",
        f"GET http://{at}/v2/team/app/manifests/{child['digest']} -> 200",
    ]
    assert detlayer("resolve", f"{at}/team/app:1", "--platform", "linux/s390x").error == (
        4,
        "platform-missing",
        f"{at}/team/app:1 is not for linux/s390x",
        "available: linux/amd64, linux/arm64",
    )
    assert detlayer("resolve", f"{at}/team/app:1", "--platform", "arm64").failure == (2, "platform-invalid")


@pytest.mark.parametrize("name", ODD_CONFIGS)
def test_an_invalid_config(detlayer: CommandLine, start_strict: StartStrict, layout: Layout, name: str) -> None:
    """The digest is printed; only --platform needs the config, and fails."""
    server = start_strict()
    odd = odd_image(layout, ODD_CONFIGS[name])
    seed(server, "team/odd", layout, odd, "1")
    reference = f"{server.address}/team/odd:1"
    said = detlayer("resolve", reference)
    assert (said.exit, said.stdout) == (0, f"{odd['digest']} {MANIFEST} -\n")
    assert len(said.words) == 1
    assert said.words[0].startswith(f"warning[platform-unknown]: can't determine the platform of {reference}: sha256:")
    assert detlayer("resolve", reference, "--json").result["platforms"] == []
    assert detlayer("resolve", reference, "--platform", "linux/amd64").failure == (3, "document-invalid")


def test_json(detlayer: CommandLine, open_server: Server, layout: Layout) -> None:
    at = open_server.address
    index = platforms(layout, 2, 2)
    seed(open_server, "team/app", layout, index, "1")
    said = detlayer("resolve", f"{at}/team/app:1", "--json")
    assert (said.exit, said.stderr, len(said.lines)) == (0, "", 1)
    assert said.result == {
        "type": "result",
        "reference": f"{at}/team/app:1",
        "digest": index["digest"],
        "mediaType": INDEX,
        "size": index["size"],
        "platforms": ["linux/amd64", "linux/arm64"],
    }


def test_missing_tags(detlayer: CommandLine, open_server: Server) -> None:
    at = open_server.address
    exit_code, code, message, hint = detlayer("resolve", f"{at}/team/app:1").error
    assert (exit_code, code, hint) == (4, "not-found", "check the name and the tag")
    assert message.startswith(f"can't pull {at}/team/app:1: not found (404, ")
    said = detlayer("resolve", f"{at}/team/app:1", "--json")
    assert (said.exit, said.result["type"], said.result["code"]) == (4, "error", "not-found")


def test_a_platform_that_would_write_to_the_terminal(
    detlayer: CommandLine, open_server: Server, layout: Layout
) -> None:
    """Platform names from an untrusted index are escaped."""
    child = image(layout)
    evil = {"os": "\x1b[31mlinux\n::error::x", "architecture": "a\u202eb", "variant": "\x07"}
    index = layout.add_document({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**child, "platform": evil}]})
    seed(open_server, "team/app", layout, index, "1")
    reference = f"{open_server.address}/team/app:1"
    shown = r"\x1b[31mlinux\n::error::x/a\u202eb/\x07"
    assert detlayer("resolve", reference).stdout == f"{index['digest']} {INDEX} {shown}\n"
    _, code, _, hint = detlayer("resolve", reference, "--platform", "linux/amd64").error
    assert (code, hint) == ("platform-missing", f"available: {shown}")
