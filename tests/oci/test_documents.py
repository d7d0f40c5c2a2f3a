"""Untrusted indexes, manifests, configs (src/detlayer/oci/documents.py) and descriptors (src/detlayer/oci/types.py)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detlayer.errors import LayerError
from detlayer.oci.documents import decode_object, parse_config, parse_descriptor, parse_document
from detlayer.oci.types import (
    CONFIG_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    MEDIA_TYPE_CONFIG,
    MEDIA_TYPE_DOCKER_LIST,
    MEDIA_TYPE_DOCKER_MANIFEST,
    MEDIA_TYPE_INDEX,
    MEDIA_TYPE_MANIFEST,
    Descriptor,
    Digest,
    Platform,
    canonical_json,
    digest_of,
)
from tests.layer.handmade_tars import checked

HEX = "0123456789abcdef" * 4
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": f"sha256:{HEX}", "size": 7}
CONFIG = {"mediaType": MEDIA_TYPE_CONFIG, "digest": "sha256:" + "1" * 64, "size": 3}
CHILD = {"mediaType": MEDIA_TYPE_MANIFEST, "digest": "sha256:" + "2" * 64, "size": 9}


def read(document: Any, media_type: str = "") -> Any:
    return parse_document(json.dumps(document).encode(), "it", media_type)


def refused(document: Any, media_type: str = "") -> str:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    with pytest.raises(LayerError) as caught:
        parse_document(data, "it\n", media_type)
    assert "\n" not in caught.value.message
    return checked(caught.value)


_TEXT = st.text("ab/.\n é", max_size=6)
_PLATFORM = st.builds(Platform, st.sampled_from(("linux", "")), st.just("arm"), _TEXT, _TEXT)
_DESCRIPTOR = st.builds(
    Descriptor,
    st.sampled_from((*sorted(INDEX_TYPES | MANIFEST_TYPES | CONFIG_TYPES), LAYER["mediaType"], "", "x/y")),
    st.text("0123456789abcdef", min_size=64, max_size=64).map(Digest),
    st.integers(0, 2**63 - 1),
    st.dictionaries(_TEXT, _TEXT, max_size=3),
    st.one_of(st.none(), _PLATFORM),
    _TEXT,
    st.lists(_TEXT, max_size=2).map(tuple),
)


@given(_DESCRIPTOR)
def test_a_written_descriptor_reads_as_itself(descriptor: Descriptor) -> None:
    assert parse_descriptor(decode_object(descriptor.to_bytes(), "it"), "it") == descriptor


@given(st.lists(_DESCRIPTOR, max_size=4), st.booleans())
def test_a_written_document_reads_as_itself(named: list[Descriptor], is_index: bool) -> None:
    documents = [one.to_document() for one in named]
    kind = "manifests" if is_index else "layers"
    whole = {"schemaVersion": 2, kind: documents} | ({} if is_index else {"config": CONFIG})
    data = canonical_json(whole)
    found = parse_document(data, "it")
    assert (found.children if is_index else found.layers) == tuple(named)
    assert found.media_type == (MEDIA_TYPE_INDEX if is_index else MEDIA_TYPE_MANIFEST)
    assert (found.data, found.digest) == (data, digest_of(data))
    assert found.descriptor() == Descriptor(found.media_type, digest_of(data), len(data))


_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(f"sha256:{HEX}")),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ("mediaType", "manifests", "layers", "config", "digest", "size", "platform", "subject", "annotations")
            ),
            inner,
            max_size=6,
        ),
    ),
    max_leaves=20,
)


@given(_JSON, st.sampled_from(("", MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST)))
def test_any_json_is_read_or_refused(document: Any, media_type: str) -> None:
    data = json.dumps(document).encode()
    for parse in (lambda: parse_document(data, "it", media_type), lambda: parse_config(data, "it")):
        try:
            parse()
        except LayerError as error:
            assert checked(error).startswith("document-")


@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse_document(data, "it")
    except LayerError as error:
        assert checked(error) == "document-invalid"


def test_index() -> None:
    platform = {"os": "windows", "architecture": "amd64", "os.version": "10.0", "os.features": ["win32k"]}
    index = read(
        {
            "manifests": [{**CHILD, "platform": platform}],
            "artifactType": "a/b",
            "annotations": {"k": "v"},
            "subject": CHILD,
        }
    )
    assert index.is_index
    assert index.blobs == ()
    assert index.children[0].platform == Platform("windows", "amd64", "", "10.0")
    assert (index.artifact_type, index.annotations) == ("a/b", {"k": "v"})
    assert index.subject == Descriptor(MEDIA_TYPE_MANIFEST, Digest("2" * 64), 9)


def test_manifest() -> None:
    manifest = read({"config": CONFIG, "layers": [LAYER, LAYER]})
    assert not manifest.is_index
    assert len(manifest.layers) == 2
    assert [one.digest.hex for one in manifest.blobs] == ["1" * 64, HEX]  # each once
    assert manifest.config.is_config
    assert manifest.layers[0].is_layer


def test_null_is_an_empty_list() -> None:
    """As Go encodes it: umoci in a new layout."""
    assert read({"schemaVersion": 2, "manifests": None}).is_index
    assert read({"config": CONFIG, "layers": None}).layers == ()
    assert parse_config(b'{"rootfs":{"type":"layers","diff_ids":null}}', "it").diff_ids == ()


def test_media_types() -> None:
    assert read({"manifests": []}, MEDIA_TYPE_DOCKER_LIST).media_type == MEDIA_TYPE_DOCKER_LIST
    assert read({"config": CONFIG, "mediaType": MEDIA_TYPE_DOCKER_MANIFEST}).media_type == MEDIA_TYPE_DOCKER_MANIFEST
    # The media types must agree: otherwise two readers would interpret it differently.
    assert refused({"config": CONFIG, "mediaType": MEDIA_TYPE_DOCKER_MANIFEST}, MEDIA_TYPE_MANIFEST) == (
        "document-invalid"
    )
    assert refused({"config": CONFIG}, "text/plain") == "document-invalid"
    assert refused({"config": CONFIG, "mediaType": 7}) == "document-invalid"


@pytest.mark.parametrize(
    "document",
    [
        {"manifests": [CHILD], "layers": [LAYER]},
        {"manifests": [CHILD], "config": CONFIG},
        {"manifests": [CHILD], "config": CONFIG, "layers": [LAYER]},
        {"manifests": [], "layers": []},
    ],
)
@pytest.mark.parametrize("media_type", ["", MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST])
def test_both_at_once(document: dict[str, Any], media_type: str) -> None:
    """CVE-2021-41190: a registry may see an index where an engine sees a manifest."""
    assert refused(document, media_type) == "document-invalid"


@pytest.mark.parametrize("suffix", ["v1+json", "v1+prettyjws"])
def test_schema_1(suffix: str) -> None:
    kind = f"application/vnd.docker.distribution.manifest.{suffix}"
    assert refused({"schemaVersion": 1, "fsLayers": []}, kind) == "document-schema1"
    assert refused({"schemaVersion": 1, "fsLayers": [], "mediaType": kind}) == "document-schema1"


@pytest.mark.parametrize("size", [-1, 1 << 63, 10**40, 1.5, "7", None, True])
def test_invalid_sizes_are_refused(size: object) -> None:
    assert refused({"manifests": [{**CHILD, "size": size}]}) == "document-invalid"
    assert refused({"config": CONFIG, "layers": [{**LAYER, "size": size}]}) == "document-invalid"


@pytest.mark.parametrize("digest", ["", HEX, "sha256:" + HEX[1:], "sha256:" + HEX.upper(), "sha512:" + HEX * 2, "\n"])
def test_digests(digest: str) -> None:
    assert refused({"config": {**CONFIG, "digest": digest}}) == "document-invalid"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"\xff{}",
        b'{"config":',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"config":{"digest":"' + b"x" * 100_000 + b'"}}',
    ],
)
def test_bad_json(data: bytes) -> None:
    assert refused(data) == "document-invalid"


def test_bounds() -> None:
    assert refused(b" " * (4 << 20) + b"{}") == "document-too-long"
    assert refused({"manifests": [CHILD] * 20_001}) == "document-invalid"
    assert len(read({"manifests": [CHILD] * 20_000}).children) == 20_000


def test_configs() -> None:
    facts = parse_config(
        b'{"os":"linux","architecture":"arm","variant":"v7","os.version":3,"rootfs":{"diff_ids":["sha256:a"]}}', "it"
    )
    assert facts.platform == Platform("linux", "arm", "v7")
    assert str(facts.platform) == "linux/arm/v7"
    assert facts.diff_ids == ("sha256:a",)
    assert parse_config(b"{}", "it").platform is None  # an artifact's
    for data in (b"[]", b'{"os":7}', b'{"rootfs":[]}', b'{"rootfs":{"diff_ids":"x"}}'):
        with pytest.raises(LayerError) as caught:
            parse_config(data, "it")
        assert checked(caught.value) == "document-invalid"


def test_kinds_of_descriptors() -> None:
    foreign = Descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", Digest(HEX), 1)
    assert (foreign.is_layer, foreign.is_foreign, foreign.is_config) == (True, True, False)
    index = Descriptor(MEDIA_TYPE_INDEX, Digest(HEX), 1)
    assert (index.is_index, index.is_manifest, index.is_layer) == (True, False, False)
    assert index.tag == ""
