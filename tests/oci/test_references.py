"""Image references: parsed, and formatted without loss (src/detlayer/oci/references.py)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detlayer.errors import ConfigError
from detlayer.oci.references import Reference, RepositoryName, host_of, is_tag, parse_reference, parse_repository
from detlayer.oci.types import Digest
from tests.layer.handmade_tars import checked

HEX = "0123456789abcdef" * 4

_WORD = st.text("abz019", min_size=1, max_size=5)
_COMPONENT = st.lists(_WORD, min_size=1, max_size=3).flatmap(
    lambda words: st.sampled_from((".", "_", "__", "-", "---")).map(lambda between: between.join(words))
)
_REGISTRY = st.one_of(
    st.just("docker.io"),
    st.just("localhost"),
    st.builds("{}.{}".format, _WORD, _WORD),
    st.builds("{}:{}".format, _WORD, st.integers(1, 65535)),
    st.builds("[::{:x}]:{}".format, st.integers(0, 65535), st.integers(1, 65535)),
    _WORD.map(str.upper).filter(lambda word: word != word.lower()),
)
_TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", fullmatch=True)
_DIGEST = st.text("0123456789abcdef", min_size=64, max_size=64).map(Digest)


@st.composite
def references(draw: st.DrawFn) -> Reference:
    registry = draw(_REGISTRY)
    parts = draw(st.lists(_COMPONENT, min_size=2 if registry == "docker.io" else 1, max_size=4))
    tag, digest = draw(st.one_of(st.just(""), _TAG)), draw(st.one_of(st.none(), _DIGEST))
    return Reference(RepositoryName(registry, "/".join(parts)), tag or ("" if digest else "latest"), digest)


@given(references())
def test_a_printed_reference_parses_to_itself(reference: Reference) -> None:
    assert parse_reference(str(reference)) == reference
    assert parse_repository(str(reference.name)) == reference.name


@given(st.text("ab.:/@-_A[]1 \n", max_size=30))
def test_what_parses_prints_as_something_that_means_the_same(text: str) -> None:
    try:
        found = parse_reference(text)
    except ConfigError as error:
        assert checked(error) == "reference-invalid"
    else:
        assert parse_reference(str(found)) == found


@pytest.mark.parametrize(
    ("text", "registry", "repository", "tag", "digest"),
    [
        ("alpine", "docker.io", "library/alpine", "latest", ""),
        ("alpine:3.20", "docker.io", "library/alpine", "3.20", ""),
        ("team/app", "docker.io", "team/app", "latest", ""),
        ("index.docker.io/alpine", "docker.io", "library/alpine", "latest", ""),
        ("registry-1.docker.io/team/app:v1", "docker.io", "team/app", "v1", ""),
        ("localhost/app", "localhost", "app", "latest", ""),
        ("localhost:5000/app", "localhost:5000", "app", "latest", ""),
        ("localhost:5000", "docker.io", "library/localhost", "5000", ""),
        ("HOST/app", "HOST", "app", "latest", ""),
        ("[::1]:5000/app:v1", "[::1]:5000", "app", "v1", ""),
        (f"ghcr.io/team/app@sha256:{HEX}", "ghcr.io", "team/app", "", HEX),
        (f"ghcr.io/team/app:v1@sha256:{HEX}", "ghcr.io", "team/app", "v1", HEX),
    ],
)
def test_references_mean_what_other_tools_say(text: str, registry: str, repository: str, tag: str, digest: str) -> None:
    """Cases that users of other tools rely on (github.com/distribution/reference)."""
    wanted = Reference(RepositoryName(registry, repository), tag, Digest(digest) if digest else None)
    found = parse_reference(text)
    assert found == wanted
    assert found.target == (f"sha256:{digest}" if digest else tag)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "App",
        "team/App",
        "host.example/",
        "host.example//app",
        "/app",
        "app:",
        "app:-v1",
        "app:" + "t" * 129,
        "app@sha256:" + HEX[1:],
        "app@sha256:" + HEX.upper(),
        "app@md5:" + HEX[:32],
        "app@",
        "https://host.example/app",
        "host.example/../app",
        "host..example/app",
        "host.example:999999/app",
        "host.example:65536/app",
        "host.example:0/app",
        "a" * 64 + ".example/app",
        "a." * 127 + "example/app",
        "[:::]:5000/app",
        "[1.2.3.4]/app",
        "[::1%25lo]:5000/app",
        "user@host.example/app",
        "host.example/a__.b",
        "host.example/" + "a" * 256,
        "host.example/app\n",
        "host.example/app:v1\n",
        "host.example\n/app",
        "::error::x/app",
    ],
)
def test_what_is_no_reference(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_reference(text)
    assert checked(caught.value) == "reference-invalid"
    assert "\n" not in caught.value.message
    assert not caught.value.message.startswith("::")


def test_docker_hub_answers_elsewhere() -> None:
    assert parse_reference("alpine").name.host == host_of("docker.io") == "registry-1.docker.io"
    assert parse_reference("ghcr.io/a/b").name.host == "ghcr.io"
    assert parse_reference("GHCR.io/a/b").name.host == "ghcr.io"
    assert str(parse_reference("Index.Docker.io/alpine")) == "docker.io/library/alpine:latest"


def test_tags() -> None:
    assert is_tag("v1.2_3-x")
    assert not any(map(is_tag, ("", ".v1", "a b", "v1\n", "t" * 129)))
