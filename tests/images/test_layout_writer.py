"""Layouts as targets of pulls (src/detlayer/images/layout_writer.py): complete or resumable, with several writers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from detlayer.errors import DetlayerError, IntegrityError, LayerError, OutputError
from detlayer.images.layout_writer import LayoutWriter, PartialBlob
from detlayer.images.source import open_image
from detlayer.oci.types import MEDIA_TYPE_MANIFEST, Descriptor, Digest, canonical_json, digest_of
from detlayer.output.files import LayoutOutput
from tests.layer.handmade_tars import checked
from tests.privileges import as_nobody, mounted, need_root
from tests.trees import list_files, make_tree
from tests.vectors import counter_bytes

DATA = counter_bytes("blob", 100_000)
BLOB = Descriptor("application/vnd.oci.image.layer.v1.tar", digest_of(DATA), len(DATA))
PART = f".detlayer/{BLOB.digest.hex}.part"

pytestmark = pytest.mark.usefixtures("temporary_files")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "layout"


@pytest.fixture
def writer(path: Path) -> LayoutWriter:
    return LayoutWriter(path)


def blobs(path: Path) -> list[str]:
    return sorted(os.listdir(path / "blobs" / "sha256"))


def parts(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.glob(".detlayer/**/*"))


def index(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((path / "index.json").read_bytes())["manifests"]
    return found


def begin(writer: LayoutWriter, data: bytes) -> None:
    """Write a part of a blob, then stop."""
    with writer.part(BLOB) as part:
        part.write(data)


def write(writer: LayoutWriter, *pieces: bytes, blob: Descriptor = BLOB) -> None:
    """Resume a blob, and complete it."""
    with writer.part(blob) as part:
        for piece in pieces:
            part.write(piece)
        part.finish()


def fill(path: Path) -> None:
    """Fill up a disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


# -- blobs


def test_nothing_is_made_until_something_is_written(writer: LayoutWriter, path: Path) -> None:
    assert not writer.has(BLOB)
    assert not path.exists()


def test_a_blob_in_one_go(writer: LayoutWriter, path: Path) -> None:
    with writer.part(BLOB) as part:
        assert part.offset == 0
        part.write(DATA[:7])
        part.write(memoryview(DATA)[7:])
        assert not writer.has(BLOB)
        part.finish()
    assert writer.has(BLOB)
    assert blobs(path) == [BLOB.digest.hex]
    assert (path / "blobs/sha256" / BLOB.digest.hex).read_bytes() == DATA
    assert not writer.has(Descriptor("", BLOB.digest, len(DATA) + 1))


def test_a_blob_goes_on_where_it_broke_off(path: Path) -> None:
    """As another process would: only the file persists."""
    begin(LayoutWriter(path), DATA[:1000])
    assert parts(path) == [PART]
    assert blobs(path) == []
    begin(LayoutWriter(path), DATA[1000:3000])
    with LayoutWriter(path).part(BLOB) as part:
        assert part.offset == 3000
        part.write(DATA[3000:])
        part.finish()
    assert blobs(path) == [BLOB.digest.hex]


def test_a_blob_that_was_all_there(writer: LayoutWriter, path: Path) -> None:
    begin(writer, DATA)
    with writer.part(BLOB) as part:
        assert part.offset == len(DATA)
        part.finish()
    assert blobs(path) == [BLOB.digest.hex]


def test_what_has_another_digest_is_removed(writer: LayoutWriter, path: Path) -> None:
    begin(writer, b"!" * 1000)
    with pytest.raises(IntegrityError) as caught:
        write(writer, DATA[1000:])
    assert checked(caught.value) == "blob-digest"
    assert blobs(path) == parts(path) == []
    assert not (path / ".detlayer").exists()


def test_what_is_too_short_stays(writer: LayoutWriter, path: Path) -> None:
    with pytest.raises(IntegrityError):
        write(writer, DATA[:-1])
    assert parts(path) == [PART]
    with writer.part(BLOB) as part:
        part.write(DATA[-1:])
        part.finish()
    assert writer.has(BLOB)


def test_what_is_too_long(writer: LayoutWriter, path: Path) -> None:
    with pytest.raises(IntegrityError):
        write(writer, DATA, b"!")
    assert parts(path) == []
    (path / ".detlayer").mkdir()
    (path / PART).write_bytes(DATA + b"!")
    with writer.part(BLOB) as part:
        assert part.offset == 0


def test_a_source_that_turns_out_wrong_leaves_nothing_to_resume(writer: LayoutWriter, path: Path) -> None:
    def break_off(part: PartialBlob) -> None:
        part.write(DATA[:-1])
        raise IntegrityError("blob-digest", "the source is corrupt")

    with pytest.raises(IntegrityError), writer.part(BLOB) as part:
        break_off(part)
    assert parts(path) == []


def test_two_at_once_do_not_meet(writer: LayoutWriter, path: Path, temporary_files: str) -> None:
    with writer.part(BLOB) as first, LayoutWriter(path).part(BLOB) as second:
        first.write(DATA[:5000])
        second.write(DATA)
        assert len(parts(path)) == (2 if temporary_files == "named" else 1)
        second.finish()
        assert writer.has(BLOB)
        first.write(DATA[5000:])
        first.finish()
    assert blobs(path) == [BLOB.digest.hex]
    assert not (path / ".detlayer").exists()
    with writer.part(BLOB), writer.part(BLOB) as second:
        second.write(b"lost")
    assert parts(path) == [PART]


@pytest.mark.parametrize("kind", ["fifo", "directory", "symlink"])
def test_something_else_in_the_place_of_a_part(writer: LayoutWriter, path: Path, kind: str) -> None:
    (path / ".detlayer").mkdir(parents=True)
    place = path / PART
    outside = path.parent / "outside"
    if kind == "fifo":
        os.mkfifo(place)
    elif kind == "directory":
        place.mkdir()
    else:
        place.symlink_to(outside)
    with pytest.raises(OutputError) as caught, writer.part(BLOB):
        raise AssertionError("it opened")
    assert checked(caught.value) == "output-write"
    assert not outside.exists()


def test_documents(writer: LayoutWriter, path: Path) -> None:
    writer.put(b"{}")
    before = (path / "blobs/sha256" / digest_of(b"{}").hex).stat().st_ino
    writer.put(b"{}")
    assert (path / "blobs/sha256" / digest_of(b"{}").hex).stat().st_ino == before
    (path / "blobs/sha256" / digest_of(b"{}").hex).write_bytes(b"")  # as after a power cut without fsync
    writer.put(b"{}")
    assert (path / "blobs/sha256" / digest_of(b"{}").hex).read_bytes() == b"{}"


# -- the index


def manifest(number: int, **more: Any) -> Descriptor:
    return Descriptor(MEDIA_TYPE_MANIFEST, Digest(f"{number:064x}"), 1, **more)


def test_tags(writer: LayoutWriter, path: Path) -> None:
    writer.tag(manifest(1), "v1")
    writer.tag(manifest(2, annotations={"a": "b"}), "v2")
    writer.tag(manifest(3))
    writer.tag(manifest(3))
    writer.tag(manifest(4), "v1")
    assert [(one["digest"][-1], one.get("annotations")) for one in index(path)] == [
        ("4", {"org.opencontainers.image.ref.name": "v1"}),
        ("2", {"a": "b", "org.opencontainers.image.ref.name": "v2"}),
        ("3", None),
    ]
    assert json.loads((path / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert list_files(path) == ["blobs", "blobs/sha256", "index.json", "oci-layout"]


def test_what_others_wrote_stays(writer: LayoutWriter, path: Path) -> None:
    path.mkdir(parents=True)
    other = {"digest": "sha512:unknown", "size": -1, "new": {"field": 1}}
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0", "x": 1}')
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [other], "annotations": {"k": "v"}}))
    writer.tag(manifest(1), "v1")
    found = json.loads((path / "index.json").read_bytes())
    assert found["manifests"][0] == other
    assert found["annotations"] == {"k": "v"}
    assert json.loads((path / "oci-layout").read_bytes())["x"] == 1


@pytest.mark.parametrize("null", ['{"schemaVersion":2,"manifests":null}', '{"schemaVersion":2}'])
def test_the_index_of_umoci_init(writer: LayoutWriter, path: Path, null: str) -> None:
    path.mkdir(parents=True)
    (path / "index.json").write_text(null)
    writer.tag(manifest(1), "v1")
    assert len(index(path)) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b'{"manifests":{}}',
        b'{"config":{},"layers":[]}',
        b'{"manifests":[],"layers":[]}',
        b'{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}',
        b"{" * 100_000,
        b" " * (5 << 20),
    ],
)
def test_an_index_that_is_none_is_left_alone(writer: LayoutWriter, path: Path, data: bytes) -> None:
    path.mkdir(parents=True)
    (path / "index.json").write_bytes(data)
    with pytest.raises(DetlayerError) as caught:
        writer.tag(manifest(1), "v1")
    assert isinstance(caught.value, LayerError | OutputError)
    assert checked(caught.value)
    assert (path / "index.json").read_bytes() == data


def test_many_threads_tag_at_once(writer: LayoutWriter, path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: writer.tag(manifest(number), f"v{number}"), range(40)))
    assert len(index(path)) == 40


_TAG = """
import sys
from detlayer.oci.types import Descriptor, Digest
from detlayer.images.layout_writer import LayoutWriter
writer = LayoutWriter(sys.argv[1])
sys.stdin.read()
for number in range(10):
    name = f"{sys.argv[2]}-{number}"
    data = name.encode() * 10_000
    import hashlib
    blob = Descriptor("x/y", Digest(hashlib.sha256(data).hexdigest()), len(data))
    with writer.part(blob) as part:
        part.write(data)
        part.finish()
    writer.tag(blob, name)
    shared = Descriptor("x/y", Digest(hashlib.sha256(b"%d" % number * 50_000).hexdigest()), 50_000)
    with writer.part(shared) as part:
        if part.offset < shared.size_bytes:
            part.write(b"%d" % number * 50_000)
        part.finish()
"""


def test_many_processes_write_at_once(path: Path) -> None:
    children = [
        subprocess.Popen([sys.executable, "-c", _TAG, str(path), f"p{number}"], stdin=subprocess.PIPE)
        for number in range(4)
    ]
    for child in children:
        assert child.stdin is not None
        child.stdin.close()  # now all of them start
    assert [child.wait() for child in children] == [0] * 4
    assert len(index(path)) == 40
    names = blobs(path)
    assert len(names) == 50
    for name in names:
        assert hashlib.sha256((path / "blobs/sha256" / name).read_bytes()).hexdigest() == name


def test_pack_beside_a_pull(writer: LayoutWriter, path: Path) -> None:
    """`pack --oci` does not replace an existing index."""
    output = LayoutOutput(path)
    output.write(DATA)
    writer.tag(manifest(1), "v1")
    output.settle()
    output.commit(BLOB.digest)
    assert len(index(path)) == 1
    assert writer.has(BLOB)


# -- errors of the system


def test_a_full_disk(tmp_path: Path) -> None:
    """Existing files stay complete; a partial blob is resumed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    data = counter_bytes("big", 3 << 20)
    blob = Descriptor("x/y", digest_of(data), len(data))
    with mounted(["-t", "tmpfs", "-o", "size=2m", "none"], disk):
        writer = LayoutWriter(disk / "layout")
        writer.tag(manifest(1), "v1")
        before = (disk / "layout/index.json").read_bytes()
        with pytest.raises(OutputError) as caught:
            write(writer, *(data[at : at + (1 << 16)] for at in range(0, len(data), 1 << 16)), blob=blob)
        assert checked(caught.value) == "disk-full"
        fill(disk / "filler")
        with pytest.raises(OutputError) as caught:
            writer.tag(manifest(2), "v1")
        assert checked(caught.value) == "disk-full"
        assert (disk / "layout/index.json").read_bytes() == before
        assert not writer.has(blob)
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        with writer.part(blob) as part:
            assert 0 < part.offset < len(data)
            part.write(data[part.offset :])
            part.finish()
        assert list_files(disk / "layout/blobs") == ["sha256", f"sha256/{blob.digest.hex}"]


def test_places_where_no_layout_can_be(tmp_path: Path) -> None:
    make_tree(tmp_path, {"file": "1", "layout": {"blobs": "2"}})
    for place in ("file", "layout", "file/layout"):
        writer = LayoutWriter(tmp_path / place)
        acts: list[Callable[[], None]] = [partial(writer.put, b"{}"), partial(writer.tag, manifest(1), "v1")]
        for act in acts:
            with pytest.raises(OutputError) as caught:
                act()
            assert checked(caught.value) == "output-directory-missing"
    assert (tmp_path / "file").read_text() == "1"


def test_no_permission(open_tmp: Path) -> None:
    need_root("root, to lose its privileges")
    directory = open_tmp / "closed"
    directory.mkdir()
    directory.chmod(0o555)
    with as_nobody(), pytest.raises(OutputError) as caught, LayoutWriter(directory / "layout").part(BLOB):
        raise AssertionError("it opened")
    assert checked(caught.value) == "output-write"


def test_what_was_written_can_be_pushed(writer: LayoutWriter, path: Path) -> None:
    config = b'{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["%b"]}}' % (
        str(BLOB.digest).encode()
    )
    writer.put(config)
    document = {
        "schemaVersion": 2,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": str(digest_of(config)),
            "size": len(config),
        },
        "layers": [BLOB.to_document()],
    }
    data = canonical_json(document)
    writer.put(data)
    named = Descriptor(MEDIA_TYPE_MANIFEST, digest_of(data), len(data), {"dev.detlayer.source": "ghcr.io/team/app"})
    writer.tag(named, "v1")
    with open_image(f"oci:{path}:v1") as opened:
        assert opened.root.data == data
        assert opened.body(BLOB) is None
        assert str(opened.origin) == "ghcr.io/team/app"
        begin(writer, DATA[:10])
        assert opened.body(BLOB) is None  # a part is not a blob
