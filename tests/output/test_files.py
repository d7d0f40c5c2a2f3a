"""Outputs are written atomically, and leave no other files."""

from __future__ import annotations

import io
import json
import os
import resource
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from detlayer.errors import ConfigError, DetlayerError, OutputError
from detlayer.oci.types import Digest
from detlayer.output.files import FileOutput, LayoutOutput, StreamOutput, Tee
from tests.layers import MemorySink, pack_tree
from tests.privileges import as_nobody, mounted, need_root, program
from tests.trees import disk_mode, list_files, make_tree
from tests.vectors import counter_bytes

DIGEST = Digest("ab" * 32)

pytestmark = pytest.mark.usefixtures("temporary_files")


def test_nothing_until_commit(tmp_path: Path) -> None:
    goal = tmp_path / "out"
    output = FileOutput(goal)
    output.write(b"one")
    assert not goal.exists()
    output.write(bytearray(b"two"))
    output.write(memoryview(b"three"))
    output.commit()
    output.discard()
    assert goal.read_bytes() == b"onetwothree"
    assert list_files(tmp_path) == ["out"]


def test_discard_leaves_nothing(tmp_path: Path) -> None:
    output = FileOutput(tmp_path / "out")
    output.write(b"one")
    output.discard()
    output.discard()
    assert list_files(tmp_path) == []


def test_an_older_file_is_kept_until_commit(tmp_path: Path) -> None:
    goal = tmp_path / "out"
    goal.write_text("old")
    output = FileOutput(goal)
    output.write(b"new")
    assert goal.read_text() == "old"
    output.discard()
    assert goal.read_text() == "old"
    output = FileOutput(goal)
    output.write(b"new")
    output.commit()
    assert goal.read_text() == "new"


def test_umask_counts(tmp_path: Path) -> None:
    os.umask(0o027)
    output = FileOutput(tmp_path / "out")
    output.commit()
    assert disk_mode(tmp_path / "out") == 0o640


def test_symlink_stays(tmp_path: Path) -> None:
    make_tree(tmp_path, {"real": {"out": "old"}})
    (tmp_path / "link").symlink_to("real/out")
    output = FileOutput(tmp_path / "link")
    output.write(b"new")
    output.commit()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "out").read_text() == "new"


def test_dangling_symlink_is_filled(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    output = FileOutput(tmp_path / "link")
    output.write(b"x")
    output.commit()
    assert (tmp_path / "target").read_bytes() == b"x"
    assert list_files(tmp_path) == ["link", "target"]


def test_device() -> None:
    """Written to directly: a rename would replace the host's /dev/null."""
    output = FileOutput("/dev/null")
    output.write(b"x" * 100000)
    output.commit()
    assert Path("/dev/null").is_char_device()


def test_fifo(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    output = FileOutput(fifo)
    output.write(b"through")
    output.commit()
    reader.join()
    assert got == [b"through"]
    assert fifo.is_fifo()


def test_full_device() -> None:
    output = FileOutput("/dev/full")
    with pytest.raises(OutputError) as caught:
        output.write(b"x")
    output.discard()
    assert caught.value.code == "disk-full"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (".", "output-is-directory"),
        ("dir", "output-is-directory"),
        ("missing/out", "output-directory-missing"),
        ("file/out", "output-directory-missing"),
        ("loop", "output-write"),
        ("n" * 256, "output-write"),
    ],
)
def test_bad_places(tmp_path: Path, name: str, code: str) -> None:
    make_tree(tmp_path, {"dir": {}, "file": "x"})
    (tmp_path / "loop").symlink_to("loop")
    before = list_files(tmp_path)
    with pytest.raises(OutputError) as caught:
        FileOutput(tmp_path / name)
    assert caught.value.code == code
    assert caught.value.hint
    assert list_files(tmp_path) == before


@pytest.mark.parametrize("name", ["n" * 255, "日" * 80, "a" * 200 + "é" * 27])
def test_longest_names(tmp_path: Path, name: str) -> None:
    """The temporary name must fit wherever the final name fits."""
    output = FileOutput(tmp_path / name)
    output.write(b"x")
    output.commit()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_no_permission(open_tmp: Path) -> None:
    need_root("root")
    with as_nobody(), pytest.raises(OutputError) as caught:
        FileOutput(open_tmp / "out")
    assert caught.value.code == "output-write"


def test_disk_full(tmp_path: Path, src: Path) -> None:
    """A real full disk, at any point of a pass: an error, and the old file is kept."""
    make_tree(src, {"big": counter_bytes("big", 6 << 20)})
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted(["-t", "tmpfs", "-o", "size=2m", "none"], disk):
        (disk / "out.tar").write_text("old")
        with pytest.raises(OutputError) as caught:
            pack_tree_to(src, output=disk / "out.tar")
        left = list_files(disk)
        kept = (disk / "out.tar").read_text()
    assert caught.value.code == "disk-full"
    assert left == ["out.tar"]
    assert kept == "old"


def pack_tree_to(src: Path, **options: object) -> None:
    from detlayer.packing import packer

    packer.pack([src], **options)  # type: ignore[arg-type]


def test_file_size_limit(tmp_path: Path, src: Path) -> None:
    """EFBIG is an error of the output, too."""
    make_tree(src, {"big": counter_bytes("big", 1 << 20)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(OutputError) as caught:
            pack_tree_to(src, output=tmp_path / "out.tar")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "output-write"
    assert list_files(tmp_path) == ["src", "src/big"]


def test_layout(tmp_path: Path) -> None:
    output = LayoutOutput(tmp_path / "image")
    output.write(b"blob")
    output.commit(DIGEST)
    assert list_files(tmp_path / "image") == [
        "blobs",
        "blobs/sha256",
        f"blobs/sha256/{DIGEST.hex}",
        "index.json",
        "oci-layout",
    ]
    assert (tmp_path / "image" / "oci-layout").read_text() == '{"imageLayoutVersion":"1.0.0"}'
    index = json.loads((tmp_path / "image" / "index.json").read_text())
    assert index == {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}


def test_layout_that_is_there_is_kept(tmp_path: Path) -> None:
    make_tree(tmp_path, {"oci-layout": "theirs", "index.json": "theirs", "blobs": {"sha256": {"old": "blob"}}})
    output = LayoutOutput(tmp_path)
    output.write(b"new")
    output.commit(DIGEST)
    assert (tmp_path / "index.json").read_text() == (tmp_path / "oci-layout").read_text() == "theirs"
    assert (tmp_path / "blobs" / "sha256" / "old").read_text() == "blob"


def test_layout_needs_a_digest(tmp_path: Path) -> None:
    output = LayoutOutput(tmp_path)
    with pytest.raises(ValueError, match="digest"):
        output.commit()
    output.discard()


def test_layout_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError):
        LayoutOutput(tmp_path / "file")


@pytest.mark.parametrize("option", ["output", "oci_layout", "descriptor", "depfile"])
def test_an_error_leaves_no_file(tmp_path: Path, src: Path, option: str) -> None:
    """A failed pass leaves no new files, not even those of a layout."""
    make_tree(src, {"a": b"x" * 10000, "z": {}})
    os.mkfifo(src / "z" / "fifo")
    options: dict[str, object] = {"descriptor": tmp_path / "other.json"} if option == "depfile" else {}
    with pytest.raises(DetlayerError):
        pack_tree_to(src, **{option: tmp_path / "out"}, **options)
    assert [name for name in list_files(tmp_path) if not name.startswith("src")] == []


def test_two_outputs_in_one_place(tmp_path: Path, src: Path) -> None:
    """The descriptor must not silently replace the blob."""
    make_tree(src, {"a": "x"})
    with pytest.raises(ConfigError):
        pack_tree_to(src, output=tmp_path / "out.tar", descriptor=tmp_path / "out.tar")
    assert not (tmp_path / "out.tar").exists()


def test_all_outputs_hold_the_same(tmp_path: Path, src: Path) -> None:
    make_tree(src, {"a": "x"})
    outputs = {
        "output": tmp_path / "o.tar",
        "oci_layout": tmp_path / "l",
        "descriptor": tmp_path / "j",
        "depfile": tmp_path / "d",
    }
    pack_tree_to(src, **outputs)
    digest = json.loads((tmp_path / "j").read_text())["digest"].removeprefix("sha256:")
    assert (tmp_path / "l" / "blobs" / "sha256" / digest).read_bytes() == (tmp_path / "o.tar").read_bytes()
    assert (tmp_path / "j").read_bytes().endswith(b"}\n")
    assert not [name for name in list_files(tmp_path) if ".tmp" in name]


class RawStream(io.RawIOBase):
    """A raw stream may accept fewer bytes than given (io documentation)."""

    def __init__(self) -> None:
        self.got = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object, /) -> int:
        piece = bytes(data)[:1000]  # type: ignore[call-overload]
        self.got += piece
        return len(piece)


def test_raw_stream_gets_all() -> None:
    """A short write is continued: the digest is of the bytes in the file."""
    stream = RawStream()
    output = StreamOutput(stream)  # type: ignore[arg-type]
    data = counter_bytes("raw", 5000)
    output.write(data)
    output.commit()
    assert bytes(stream.got) == data


def failing_stream(error: OSError) -> io.BytesIO:
    class Failing(io.BytesIO):
        def write(self, data: object, /) -> int:
            raise error

    return Failing()


@pytest.mark.parametrize(("number", "code"), [(28, "disk-full"), (32, "output-closed"), (5, "output-write")])
def test_stream_errors_are_ours(number: int, code: str) -> None:
    with pytest.raises(OutputError) as caught:
        StreamOutput(failing_stream(OSError(number, "no"))).write(b"x")
    assert caught.value.code == code


def test_tee() -> None:
    sinks = [MemorySink(), MemorySink()]
    tee = Tee(sinks)
    tee.write(b"ab")
    tee.write(memoryview(b"cd"))
    assert [bytes(sink.data) for sink in sinks] == [b"abcd", b"abcd"]


def test_blob_in_a_fifo(tmp_path: Path, src: Path) -> None:
    make_tree(src, {"a": counter_bytes("fifo", 3 << 20)})
    os.mkfifo(tmp_path / "fifo")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "fifo").read_bytes()))
    reader.start()
    pack_tree_to(src, output=tmp_path / "fifo")
    reader.join()
    assert got == [pack_tree(src, compression="gzip").blob]


def repeat(times: int, action: Callable[[], object]) -> None:
    for _ in range(times):
        action()


def test_no_descriptor_is_left_open(tmp_path: Path, src: Path) -> None:
    make_tree(src, {"a": {"b": {"c": "x"}}})
    os.mkfifo(src / "a" / "fifo")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else pytest.skip("/proc")

    def fail() -> None:
        with pytest.raises(DetlayerError):
            pack_tree_to(src, output=tmp_path / "out.tar", descriptor=tmp_path / "j")

    repeat(5, fail)
    assert len(os.listdir("/proc/self/fd")) == before


def test_programs_are_found() -> None:
    assert Path(program("sh")).exists()
