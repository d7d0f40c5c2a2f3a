"""Every golden vector agrees: an independent writer made them, and they define the format (SPEC 3 to 8)."""

from __future__ import annotations

import hashlib
import random

import pytest

from detlayer.layer.codec import KNOWN_CLASSES, PROBE_BYTES, Codec, probe
from detlayer.layer.order import order_key
from tests.layers import layer_of
from tests.vectors import Vector, load_classes, load_vector, vector_names

CLASSES: dict[str, str] = load_classes()["classes"]


def load_sorted(name: str) -> Vector:
    vector = load_vector(name)
    return Vector(name, tuple(sorted(vector.entries, key=lambda entry: order_key(entry.path))), vector.expect)


def difference(codec: str, measured: str) -> str:
    """Return why a digest can't be compared; empty if it can (SPEC 6.3)."""
    wanted = CLASSES.get(codec, measured)
    if wanted == measured:
        return ""
    return f"tar equal, compressor differs: {codec} is of class {measured} here, the vectors want {wanted}"


def test_all_vectors_are_there() -> None:
    assert len(vector_names()) == 14


@pytest.mark.parametrize("name", vector_names())
def test_tar(name: str) -> None:
    """SPEC 5: diff_id and size of the tar, whatever compressor is installed."""
    vector = load_sorted(name)
    made, blob = layer_of(vector.entries)
    assert str(made.diff_id) == vector.expect["diff_id"] == f"sha256:{hashlib.sha256(blob).hexdigest()}"
    assert made.tar_bytes == vector.expect["tar_size"] == len(blob)


@pytest.mark.parametrize("name", vector_names())
def test_key(name: str) -> None:
    """SPEC 8."""
    vector = load_sorted(name)
    assert layer_of(vector.entries)[0].key == vector.expect["key"]


@pytest.mark.parametrize("name", [name for name in vector_names() if "order" in load_vector(name).expect])
def test_order(name: str) -> None:
    """SPEC 3.4: entries in any order sort to the vector's order."""
    vector = load_vector(name)
    entries = list(vector.entries)
    random.Random(name).shuffle(entries)
    entries.sort(key=lambda entry: order_key(entry.path))
    assert [entry.written_path.decode() for entry in entries] == vector.expect["order"]


@pytest.mark.parametrize("name", vector_names())
def test_chunks(name: str) -> None:
    """SPEC 6.1."""
    vector = load_sorted(name)
    assert list(layer_of(vector.entries)[0].chunks) == vector.expect["chunks"]


@pytest.mark.parametrize("name", vector_names())
def test_digest(name: str) -> None:
    """SPEC 6.2: digest and size under every codec of the vector."""
    vector = load_sorted(name)
    for codec, blob in vector.expect["blobs"].items():
        made, written = layer_of(vector.entries, codec)
        assert str(made.diff_id) == vector.expect["diff_id"]
        if explanation := difference(codec, Codec(codec).codec_class):
            pytest.fail(explanation)
        assert (codec, str(made.digest), made.size_bytes) == (codec, blob["digest"], blob["size"])
        assert (hashlib.sha256(written).hexdigest(), len(written)) == (made.digest.hex, made.size_bytes)


def test_the_probe_of_codec_classes() -> None:
    """SPEC 6.3."""
    wanted = load_classes()
    assert len(probe()) == PROBE_BYTES == wanted["probe_size"]
    assert hashlib.sha256(probe()).hexdigest() == wanted["probe_sha256"]


@pytest.mark.parametrize("codec", sorted(CLASSES))
def test_codec_class(codec: str) -> None:
    """SPEC 6.3: the class of every codec; if it differs, digests do and diff_ids do not."""
    assert not difference(codec, Codec(codec).codec_class)


def test_known_classes_are_the_fixture() -> None:
    """SPEC 6.3."""
    assert KNOWN_CLASSES == CLASSES


def test_another_class_is_named_as_the_cause() -> None:
    """SPEC 6.3: never reported as changed content."""
    said = difference("zstd-3", "0123456789abcdef")
    assert said.startswith("tar equal, compressor differs: zstd-3 is of class 0123456789abcdef here")
