"""`verify` by the library: layer files, layouts and archives of them, expectations, and causes of differences.

Perturbed packs and builds run as processes: tests/e2e/test_perturbation.py.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import detlayer
from detlayer.checks.audit import Findings
from detlayer.checks.findings import TRAPS, Finding
from detlayer.checks.layer_diff import Run, diff_layers, explain_content
from detlayer.errors import ConfigError, DetlayerError, LayerError, TreeError
from detlayer.layer.entry import Entry
from detlayer.layer.writer import BytesContent
from detlayer.layer.writer import pack as pack_layer
from detlayer.oci.ports import Readable
from detlayer.packing.options import PackOptions
from detlayer.verification import VerifyOptions, verify
from detlayer.verification.report import ADVICE, INTEGRITY, divide
from tests.layers import MemorySink

CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def file(path: str, data: bytes = b"", **values: Any) -> Entry:
    return Entry(path.encode(), "file", size_bytes=len(data), content=BytesContent(data), **values)


def tar_of(*entries: Entry) -> bytes:
    out = MemorySink()
    pack_layer(entries, out, codec=detlayer.Codec("none"))
    return bytes(out.data)


@pytest.fixture
def packed(src: Path, tmp_path: Path) -> tuple[Path, detlayer.Layer]:
    (src / "hello.txt").write_text("hello\n")
    (src / "sub").mkdir()
    (src / "sub" / "run.sh").write_text("#!/bin/sh\n")
    path = tmp_path / "layer.tar.gz"
    return path, detlayer.pack([f"{src}:/srv"], output=path, descriptor=tmp_path / "layer.json")


# -- the report


def test_every_trap_that_decides_the_exit_is_in_the_table() -> None:
    assert TRAPS.keys() >= ADVICE | INTEGRITY


def test_advice_fails_only_when_strict() -> None:
    found = Findings(keep=1)
    for trap in ("mtime", "pyc-path", "pyc-path"):
        found.add(Finding(trap, "x", "field", "a", "b"))
    failures, advice = divide(found, strict=False)
    assert (failures.counts, advice.counts) == ({"mtime": 1}, {"pyc-path": 2})
    assert [one.trap for one in advice.kept] == ["pyc-path"]
    failures, advice = divide(found, strict=True)
    assert (failures.counts, advice.counts) == ({"mtime": 1, "pyc-path": 2}, {})


# -- layer files


def test_our_own_layer_is_reproducible(packed: tuple[Path, detlayer.Layer]) -> None:
    path, layer = packed
    report = verify([path])
    assert report.ok
    assert not report.is_corrupt
    [facts] = report.targets[0].layers
    assert (facts.digest, facts.diff_id, facts.key) == (str(layer.digest), str(layer.diff_id), layer.key)
    assert (facts.codec, facts.codec_class) == (layer.codec.name, layer.codec_class)
    assert (facts.entries, facts.files, facts.size_bytes) == (layer.entries, layer.files, layer.size_bytes)


@pytest.mark.parametrize(
    "profile",
    [
        detlayer.Profile(owner=detlayer.Owner(1000, 1000)),
        detlayer.Profile(mtime=detlayer.Mtime("clamp", 1000)),
        detlayer.Profile(mtime=detlayer.Mtime("source"), owner=None, mode="source"),
    ],
)
def test_the_profile_that_packed_it_finds_nothing(src: Path, tmp_path: Path, profile: detlayer.Profile) -> None:
    """SPEC 4.4, 4.10: parents and whiteouts are root's, whatever owner the others have."""
    (src / "a").write_text("a")
    (src / "a").chmod(0o600)
    selection = detlayer.Selection(whiteouts=(b"opt/gone",))
    detlayer.pack(
        [f"{src}:/opt/app"],
        output=tmp_path / "l.tar",
        options=detlayer.PackOptions(profile=profile, selection=selection),
    )
    assert verify([tmp_path / "l.tar"], options=VerifyOptions(PackOptions(profile=profile))).findings == []


def test_another_tools_layer_is_not(src: Path, tmp_path: Path) -> None:
    (src / "a").write_text("a")
    with tarfile.open(tmp_path / "l.tar.gz", "w:gz") as archive:
        archive.add(src / "a", "a")
    report = verify([tmp_path / "l.tar.gz"])
    assert not report.ok
    assert {"mtime", "gzip-header"} <= {finding.trap for finding in report.findings}


def test_what_is_no_layer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"no tar" * 200))
    with pytest.raises(LayerError):
        verify([tmp_path / "x.gz"])


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.zst"])
def test_what_is_named_as_a_layer_is_no_source(tmp_path: Path, suffix: str) -> None:
    """An empty or damaged layer must not be verified as a source, which would be reproducible."""
    (tmp_path / f"x{suffix}").write_bytes(b"")
    report = verify([tmp_path / f"x{suffix}"])
    assert (report.targets[0].kind, report.ok) == ("layer", False)
    (tmp_path / f"x{suffix}").write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(LayerError):
        verify([tmp_path / f"x{suffix}"])


def test_nothing_to_verify() -> None:
    with pytest.raises(ConfigError) as caught:
        verify([])
    assert caught.value.code == "no-target"


# -- expectations


def test_against_what_it_is(packed: tuple[Path, detlayer.Layer], tmp_path: Path) -> None:
    path, layer = packed
    for against in (str(layer.digest), str(layer.diff_id), layer.key, str(tmp_path / "layer.json"), str(path)):
        assert verify([path], against=against).ok, against


def test_against_another_digest(packed: tuple[Path, detlayer.Layer]) -> None:
    [finding] = verify([packed[0]], against="sha256:" + "0" * 64).findings
    assert finding.trap == "unexpected-digest"
    assert str(packed[1].digest) in finding.found


@pytest.mark.parametrize("form", ["descriptor", "layer"])
def test_tar_equal_but_compressor_differs(src: Path, packed: tuple[Path, detlayer.Layer], form: str) -> None:
    """SPEC 6.3: not reported as changed content."""
    other = src.parent / "other.tar.gz"
    detlayer.pack(
        [f"{src}:/srv"],
        output=other,
        descriptor=src.parent / "other.json",
        options=detlayer.PackOptions(compression="gzip:9"),
    )
    report = verify([packed[0]], against=str(other if form == "layer" else src.parent / "other.json"))
    [finding] = report.findings
    assert finding.trap == "compressor-class"
    assert "tar equal, compressor differs" in finding.found


@pytest.mark.parametrize("form", ["descriptor", "layer"])
def test_against_other_content(src: Path, packed: tuple[Path, detlayer.Layer], form: str) -> None:
    (src / "hello.txt").write_text("hullo\n")
    other = src.parent / "other.tar.gz"
    detlayer.pack([f"{src}:/srv"], output=other, descriptor=src.parent / "other.json")
    report = verify([packed[0]], against=str(other if form == "layer" else src.parent / "other.json"))
    traps = [finding.trap for finding in report.findings]
    assert traps == ["unexpected-digest"] * 2 + ["content"] * (form == "layer")
    if form == "layer":
        assert report.findings[-1].path == "srv/hello.txt"
        assert report.findings[-1].field == "line 1"


@pytest.mark.parametrize("text", ["sha256:12", "nowhere", '{"digest": 5}', "{", '{"digest": "sha256:x"}'])
def test_against_nonsense(packed: tuple[Path, detlayer.Layer], tmp_path: Path, text: str) -> None:
    if text.startswith("{"):
        (tmp_path / "odd.json").write_text(text)
        text = str(tmp_path / "odd.json")
    with pytest.raises(ConfigError) as caught:
        verify([packed[0]], against=text)
    assert caught.value.code == "against-invalid"


# -- layouts


class Image:
    """An OCI layout with one image of one layer; each part can be damaged before `write`."""

    def __init__(self, layer: bytes, diff_id: str) -> None:
        self.blobs: dict[str, bytes] = {}
        self.config: dict[str, Any] = {"rootfs": {"type": "layers", "diff_ids": [diff_id]}}
        self.layers = [self.add(layer, "application/vnd.oci.image.layer.v1.tar+gzip")]
        self.config_type = CONFIG
        self.index: dict[str, Any] = {"schemaVersion": 2, "manifests": []}

    def add(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    def tag(self, name: str) -> dict[str, Any]:
        config = self.add(json.dumps(self.config).encode(), self.config_type)
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": self.layers}
        descriptor = self.add(json.dumps(manifest).encode(), MANIFEST)
        descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
        self.index["manifests"].append(descriptor)
        return descriptor

    def files(self) -> dict[str, bytes]:
        return {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": json.dumps(self.index).encode(),
            **{f"blobs/sha256/{digest}": data for digest, data in self.blobs.items()},
        }

    def write(self, at: Path) -> str:
        for name, data in self.files().items():
            (at / name).parent.mkdir(parents=True, exist_ok=True)
            (at / name).write_bytes(data)
        return f"oci:{at}"

    def archive(self, at: Path, mode: str = "w:") -> str:
        with tarfile.open(at, mode) as archive:  # type: ignore[call-overload]
            for name, data in self.files().items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return f"oci-archive:{at}"


Writer = Callable[[Image, Path], str]
WRITERS: dict[str, Writer] = {
    "directory": lambda image, at: image.write(at / "layout"),
    "archive": lambda image, at: image.archive(at / "layout.tar"),
    "gzipped archive": lambda image, at: image.archive(at / "layout.tgz", "w:gz"),
}


@pytest.fixture
def image(packed: tuple[Path, detlayer.Layer]) -> Image:
    return Image(packed[0].read_bytes(), str(packed[1].diff_id))


@pytest.fixture(params=WRITERS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Image], str]:
    return partial(lambda at, image: WRITERS[request.param](image, at), tmp_path)


def test_a_good_layout(image: Image, written: Callable[[Image], str], packed: tuple[Path, detlayer.Layer]) -> None:
    image.tag("v1")
    target = written(image)
    report = verify([target], against=str(packed[1].digest))
    assert report.ok
    assert [facts.diff_id for facts in report.targets[0].layers] == [str(packed[1].diff_id)]
    assert verify([target + ":v1"]).ok
    assert not verify([target], against="sha256:" + "1" * 64).ok
    with pytest.raises(TreeError) as caught:
        verify([target + ":v2"])
    assert caught.value.code == "layout-tag"


@pytest.mark.parametrize("which", ["layer", "config", "manifest"])
def test_a_flipped_byte(image: Image, written: Callable[[Image], str], which: str) -> None:
    manifest = image.tag("v1")
    config = json.loads(image.blobs[manifest["digest"][7:]])["config"]
    digest = {"layer": image.layers[0], "config": config, "manifest": manifest}[which]["digest"]
    data = bytearray(image.blobs[digest[7:]])
    data[len(data) // 2] ^= 1
    image.blobs[digest[7:]] = bytes(data)
    report = verify([written(image)])
    assert report.is_corrupt
    [finding] = report.findings
    assert (finding.trap, finding.path, finding.field) == ("blob-digest", digest, "digest")


@pytest.mark.parametrize("change", ["longer", "missing"])
def test_another_size_or_none(image: Image, tmp_path: Path, change: str) -> None:
    image.tag("v1")
    digest = image.layers[0]["digest"][7:]
    if change == "longer":
        image.blobs[digest] += b"\0"
    else:
        del image.blobs[digest]
    report = verify([image.write(tmp_path / "layout")])
    assert report.is_corrupt
    assert {finding.field for finding in report.findings} == ({"size", "digest"} if change == "longer" else {"blob"})


@pytest.mark.parametrize("diff_ids", [["sha256:" + "2" * 64], []])
def test_wrong_diff_ids(image: Image, tmp_path: Path, diff_ids: list[str]) -> None:
    image.config["rootfs"]["diff_ids"] = diff_ids
    image.tag("v1")
    report = verify([image.write(tmp_path / "layout")])
    assert [finding.trap for finding in report.findings] == ["config-diff-id"]
    assert report.is_corrupt


def test_a_foreign_layer_is_passed_by_and_said(image: Image, tmp_path: Path) -> None:
    foreign = {
        "mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "digest": "sha256:" + "3" * 64,
        "size": 5,
    }
    image.layers.insert(0, foreign)
    image.config["rootfs"]["diff_ids"].insert(0, "sha256:" + "4" * 64)
    image.tag("v1")
    report = verify([image.write(tmp_path / "layout")])
    assert report.ok
    assert ["foreign" in note for note in report.targets[0].notes] == [True]


def test_docker_media_types_and_nested_indexes(image: Image, tmp_path: Path) -> None:
    image.layers[0]["mediaType"] = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    image.config_type = "application/vnd.docker.container.image.v1+json"
    image.config["rootfs"]["diff_ids"] = ["sha256:" + "5" * 64]
    image.tag("v1")
    for _ in range(3):
        inner = json.dumps({"schemaVersion": 2, "manifests": image.index["manifests"]}).encode()
        image.index["manifests"] = [image.add(inner, INDEX)]
    report = verify([image.write(tmp_path / "layout")])
    assert [finding.trap for finding in report.findings] == ["config-diff-id"]


def test_an_attestation_has_no_layers_to_unpack(image: Image, tmp_path: Path) -> None:
    statement = image.add(b"{}", "application/vnd.in-toto+json")
    image.layers = [statement]
    image.config["rootfs"]["diff_ids"] = ["sha256:" + "6" * 64]
    image.tag("v1")
    assert verify([image.write(tmp_path / "layout")]).ok


def test_a_layer_without_an_image_is_judged(src: Path, tmp_path: Path) -> None:
    (src / "a").write_text("a")
    detlayer.pack([src], oci_layout=tmp_path / "oci")
    assert [len(target.layers) for target in verify([f"oci:{tmp_path}/oci"]).targets] == [1]
    detlayer.pack(
        [src],
        oci_layout=tmp_path / "oci",
        options=detlayer.PackOptions(profile=detlayer.Profile(mtime=detlayer.Mtime("fixed", 5))),
    )
    assert verify([f"oci:{tmp_path}/oci"]).targets[0].failures.counts == {"mtime": 1}


def test_a_blob_that_no_image_leads_to(image: Image, written: Callable[[Image], str]) -> None:
    image.tag("v1")
    image.add(b"right", "")
    report = verify([written(image)])
    assert report.ok
    assert "does not refer to: 1;" in report.targets[0].notes[0]
    image.blobs["b" * 64] = b"wrong"
    report = verify([written(image)])
    assert report.is_corrupt
    assert report.targets[0].failures.counts == {"blob-digest": 1}


def test_a_layer_first_named_as_something_else_is_judged(image: Image, tmp_path: Path) -> None:
    """One image lists a blob that is not a layer, the next one as a layer: it must not count as seen."""
    image.tag("v1")
    digest, blob = next((digest, blob) for digest, blob in image.blobs.items() if blob[:2] == b"\x1f\x8b")
    decoy = image.add(
        json.dumps(
            {
                "config": image.add(b"{}", "application/x"),
                "layers": [{"mediaType": "application/x", "digest": f"sha256:{digest}", "size": len(blob)}],
            }
        ).encode(),
        MANIFEST,
    )
    image.index["manifests"].insert(0, decoy)
    [target] = verify([image.write(tmp_path / "layout")]).targets
    assert [layer.digest for layer in target.layers] == [f"sha256:{digest}"]
    assert any("no layer of a known type" in note for note in target.notes)


@pytest.mark.parametrize("of", ["layer", "manifest"])
def test_one_digest_with_two_sizes(image: Image, written: Callable[[Image], str], of: str) -> None:
    """The second reference must not count as seen, nor the valid one be lost if the first is wrong."""
    manifest = image.tag("v1")
    if of == "manifest":
        image.index["manifests"].insert(0, {**manifest, "size": 1})
    else:
        image.layers = [{**image.layers[0], "size": 1}]
        image.tag("v2")
    target = written(image)
    [finding] = verify([target]).findings
    assert (finding.trap, finding.field, finding.wanted) == ("blob-digest", "size", "1")
    assert len(verify([target]).targets[0].layers) == 1


def test_a_manifest_first_named_as_something_else(image: Image, written: Callable[[Image], str]) -> None:
    manifest = image.tag("v1")
    image.index["manifests"].insert(0, {**manifest, "mediaType": "text/plain"})
    [target] = verify([written(image)]).targets
    assert (target.ok, len(target.layers)) == (True, 1)
    assert list(target.notes) == [
        f"{manifest['digest']}: text/plain, no image of a known type; only its digest was checked"
    ]


def test_layers_of_an_archive_without_an_image(image: Image, written: Callable[[Image], str]) -> None:
    [target] = verify([written(image)]).targets
    assert [layer.digest for layer in target.layers] == [image.layers[0]["digest"]]


def test_a_foreign_layer_of_two_images(image: Image, tmp_path: Path) -> None:
    kind = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    image.layers.insert(0, {"mediaType": kind, "digest": "sha256:" + "3" * 64, "size": 5})
    image.config["rootfs"]["diff_ids"].insert(0, "sha256:" + "4" * 64)
    image.tag("v1")
    image.config["os"] = "linux"
    image.tag("v2")
    report = verify([image.write(tmp_path / "layout")])
    assert (report.ok, len(report.targets[0].notes)) == (True, 1)


def test_a_layer_that_is_no_tar_is_a_finding(image: Image, tmp_path: Path) -> None:
    image.layers.append(image.add(b"\x1f\x8bno", "application/vnd.oci.image.layer.v1.tar+gzip"))
    image.config["rootfs"]["diff_ids"].append("sha256:" + "7" * 64)
    image.tag("v1")
    assert [finding.trap for finding in verify([image.write(tmp_path / "layout")]).findings] == ["malformed-layer"]


def test_hostile_documents_end_as_layer_errors(image: Image, tmp_path: Path) -> None:
    deep = image.tag("v1")
    for _ in range(12):
        deep = image.add(json.dumps({"manifests": [deep]}).encode(), INDEX)
    odd: list[Any] = [
        b"[" * 100_000,
        b"{}",
        b'{"manifests": 5}',
        b'{"manifests": [{"digest": "sha256:../../etc/passwd", "size": 1}]}',
        b'{"manifests": [{"digest": "sha512:00", "size": 1, "mediaType": "x/y"}]}',
        b'{"manifests": [{"digest": "sha256:%b", "size": 5000000}]}' % (b"0" * 64),
        b" " * (5 << 20),
        json.dumps({"manifests": [deep]}).encode(),
    ]
    for number, data in enumerate(odd):
        at = tmp_path / str(number)
        image.write(at)
        (at / "index.json").write_bytes(data)
        with pytest.raises(LayerError):
            verify([f"oci:{at}"])


def test_an_archive_with_two_of_a_name(image: Image, tmp_path: Path) -> None:
    image.tag("v1")
    target = image.archive(tmp_path / "twice.tar")
    with tarfile.open(tmp_path / "twice.tar", "a:") as archive:
        archive.addfile(tarfile.TarInfo("index.json"), io.BytesIO())
    with pytest.raises(LayerError) as caught:
        verify([target])
    assert caught.value.code == "layout-invalid"


def test_no_layout_at_all(tmp_path: Path) -> None:
    for target in (f"oci:{tmp_path}", f"oci:{tmp_path}/none", f"oci-archive:{tmp_path}/none.tar"):
        with pytest.raises(TreeError):
            verify([target])


def test_a_fifo_for_a_blob_holds_nobody_up(image: Image, tmp_path: Path) -> None:
    image.tag("v1")
    target = image.write(tmp_path / "layout")
    blob = tmp_path / "layout" / "blobs" / "sha256" / image.layers[0]["digest"][7:]
    blob.unlink()
    os.mkfifo(blob)
    assert verify([target]).is_corrupt


# -- contrast


def compared(old: bytes, new: bytes) -> list[Finding]:
    def opened(data: bytes) -> nullcontext[Readable]:
        return nullcontext(io.BytesIO(data))

    return list(diff_layers(Run("one", partial(opened, old)), Run("other", partial(opened, new))))


@pytest.mark.parametrize(
    ("new", "trap", "field"),
    [
        (file("a", b"x", mtime=5), "mtime", "mtime"),
        (file("a", b"x", uid=5), "owner", "owner"),
        (file("a", b"x", mode=0o640), "umask", "mode"),
        (file("a", b"x", mode=0o744), "mode", "mode"),
        (file("a", b"x", xattrs=((b"user.x", b"1"),)), "xattrs", "xattr user.x"),
        (file("a", b"y"), "content", "line 1"),
        (file("b", b"x"), "content", "entry"),
        (Entry(b"a", "symlink", target=b"x"), "content", "kind"),
    ],
)
def test_contrast_names_the_field(new: Entry, trap: str, field: str) -> None:
    found = compared(tar_of(file("a", b"x")), tar_of(new))
    assert (found[0].trap, found[0].field) == (trap, field)
    assert {finding.trap for finding in found} == {trap}


def test_equal_layers_have_no_contrast() -> None:
    assert compared(tar_of(file("a", b"x")), tar_of(file("a", b"x"))) == []


def test_contrast_names_hard_links() -> None:
    linked = tar_of(file("a", b"x"), Entry(b"b", "hardlink", target=b"a"))
    found = compared(tar_of(file("a", b"x"), file("b", b"x")), linked)
    assert found[0].trap == "hardlink-form"


def test_contrast_names_order() -> None:
    one, other = tar_of(file("a", b"x")), tar_of(file("b", b"x"))
    found = compared(one[:1024] + other[:1024] + bytes(1024), other[:1024] + one[:1024] + bytes(1024))
    assert [(finding.trap, finding.path) for finding in found] == [("entry-order", "b")]


@pytest.mark.parametrize(
    ("path", "old", "new", "trap"),
    [
        (b"x", b"built at /b/one\n", b"built at /b/second\n", "build-path-in-content"),
        (b"x.pyc", b"\0" * 20 + b"/b/one/x.py", b"\0" * 20 + b"/b/second/x.py", "pyc-path"),
        (b"x.pyc", b"\xcb\r\r\n" + bytes(4) + b"1111" + bytes(8), b"\xcb\r\r\n" + bytes(4) + b"2222" + bytes(8),
         "pyc-timestamp"),
        (b"x", b"home=/home/a", b"home=/h/b", "environment"),
        (b"x", b"made 2026-01-02\n", b"made 2026-01-03\n", "time-in-content"),
        (b"x", b"c\na\nb\n", b"a\nb\nc\n", "readdir-order"),
        (b"x.gz", gzip.compress(b"x", mtime=1), gzip.compress(b"x", mtime=2), "gzip-in-content"),
        (b"x.tar", tar_of(file("a", mtime=1)), tar_of(file("a", mtime=2)), "archive-in-content"),
        (b"x", b"abc", b"abd", "content"),
        (b"x", b"abc", b"abcd", "content"),
    ],
)  # fmt: skip
def test_contrast_names_what_a_content_holds(path: bytes, old: bytes, new: bytes, trap: str) -> None:
    marks = ({"build path": b"/b/one", "home": b"/home/a"}, {"build path": b"/b/second", "home": b"/h/b"})
    assert [finding.trap for finding in explain_content(path, old, new, *marks)] == [trap]


def test_one_content_may_hold_several() -> None:
    marks = ({"build path": b"/b/one"}, {"build path": b"/b/second"})
    old, new = b"in /b/one\nat 11:12:13\n", b"in /b/second\nat 14:15:16\n"
    assert [finding.trap for finding in explain_content(b"x", old, new, *marks)] == [
        "build-path-in-content",
        "time-in-content",
    ]


@given(data=st.data())
@settings(max_examples=150)
def test_any_change_to_an_archive_is_found_or_refused(data: st.DataObject) -> None:
    """The result is a report or a detlayer error, and a changed blob never passes."""
    layer = MemorySink()
    made = pack_layer([file("a", b"some text\n" * 50)], layer)
    image = Image(bytes(layer.data), str(made.diff_id))
    image.tag("v1")
    with tempfile.TemporaryDirectory() as scratch:
        at = Path(scratch) / "layout.tar"
        target = image.archive(at)
        raw = bytearray(at.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            place = data.draw(st.integers(0, len(raw) - 1))
            match data.draw(st.sampled_from(["set", "cut", "insert"])):
                case "set":
                    raw[place] = data.draw(st.integers(0, 255))
                case "cut":
                    del raw[place : place + data.draw(st.integers(1, 600))]
                case _:
                    raw[place:place] = data.draw(st.binary(min_size=1, max_size=600))
            if not raw:
                break
        at.write_bytes(raw)
        with suppress(DetlayerError):
            report = verify([target])
            blobs = [blob for blob in image.blobs.values() if blob not in bytes(raw)]
            assert not (report.ok and blobs and not report.targets[0].notes)
