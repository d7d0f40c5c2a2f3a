"""`normalize` and `inspect`: layers of any tool in any order become those of `pack`."""

from __future__ import annotations

import io
import os
import py_compile
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import detlayer
from detlayer import Owner, Profile, Selection
from detlayer.checks.audit import audit
from detlayer.errors import LayerError
from tests.privileges import program
from tests.trees import make_tree


def tar_of(*members: tuple[str, str, bytes], **values: Any) -> bytes:
    """A tar by Python's `tarfile`: (path, kind, content or target) in the given order."""
    out = io.BytesIO()
    kinds = {"dir": tarfile.DIRTYPE, "file": tarfile.REGTYPE, "link": tarfile.LNKTYPE, "symlink": tarfile.SYMTYPE}
    kinds |= {"fifo": tarfile.FIFOTYPE}
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, kind, data in members:
            info = tarfile.TarInfo(path)
            info.type = kinds[kind]
            info.mtime = 12345
            for name, value in values.items():
                setattr(info, name, value)
            if kind == "file":
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            else:
                info.linkname = data.decode() if kind in ("link", "symlink") else ""
                tar.addfile(info)
    return out.getvalue()


def normalize(layer: bytes, **options: Any) -> bytes:
    out = io.BytesIO()
    detlayer.normalize(io.BytesIO(layer), output=out, options=detlayer.PackOptions(compression="none", **options))
    return out.getvalue()


def listed(layer: bytes) -> list[str]:
    found: list[str] = []
    detlayer.inspect(io.BytesIO(layer), each=lambda entry, kind: found.append(f"{kind} {entry.written_path.decode()}"))
    return found


def content(layer: bytes, path: str) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        file = tar.extractfile(path)
        assert file is not None
        return file.read()


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A tree of files that tools treat differently: long and non-ASCII names, links, modes, bytecode."""
    root = tmp_path / "tree"
    make_tree(
        root,
        {
            "app": {
                "main.py": "print('hi')\n",
                "run.sh": "#!/bin/sh\n",
                "n" * 120: "long",
                "ü": "wide",
                "empty": {},
                "sub": {"a": "1", "a-b": "2", "a.d": "3"},
            }
        },
    )
    (root / "app" / "run.sh").chmod(0o775)
    (root / "app" / "link").symlink_to("main.py")
    os.link(root / "app" / "main.py", root / "app" / "same.py")
    os.utime(root / "app" / "main.py", (1_700_000_000, 1_700_000_000))
    py_compile.compile(str(root / "app" / "main.py"), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    return root


WRITERS = {
    "gnu": "tar -cf {out} -C {root} .",
    "pax": "tar --format=posix -cf {out} -C {root} app",
    "gnu sorted gzip": "tar --sort=name -czf {out} -C {root} app",
    "zstd": "tar --zstd -cf {out} -C {root} ./app",
    "bsdtar": "bsdtar -cf {out} -C {root} app",
    "bsdtar gnutar": "bsdtar --format gnutar -cf {out} -C {root} app",
    "tarfile": "python3 -c \"import tarfile; t = tarfile.open('{out}', 'w'); t.add('{root}/app', 'app'); t.close()\"",
}


@pytest.mark.parametrize("writer", WRITERS)
def test_layers_of_all_writers_become_the_one_that_pack_writes(app: Path, tmp_path: Path, writer: str) -> None:
    """SPEC 3 to 5, including the retimed bytecode of 4.8: equal trees become equal layers."""
    command = WRITERS[writer]
    program(command.split()[0])
    layer = tmp_path / "layer"
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run(command.format(out=layer, root=app), shell=True, check=True, env=environment)
    packed = detlayer.pack([str(app)])
    assert detlayer.normalize(layer).diff_id == packed.diff_id
    assert (
        detlayer.normalize(layer, options=detlayer.PackOptions(compression="zstd")).digest
        == detlayer.pack([str(app)], options=detlayer.PackOptions(compression="zstd")).digest
    )


@pytest.mark.parametrize("hardlinks", ["separate", "preserve"])
def test_of_pack_is_pack(app: Path, tmp_path: Path, hardlinks: Any) -> None:
    selection = Selection(hardlinks=hardlinks)
    packed = detlayer.pack([str(app)], output=tmp_path / "l.tar.gz", options=detlayer.PackOptions(selection=selection))
    again = detlayer.normalize(
        tmp_path / "l.tar.gz", output=tmp_path / "m.tar.gz", options=detlayer.PackOptions(selection=selection)
    )
    assert again == packed
    assert (tmp_path / "l.tar.gz").read_bytes() == (tmp_path / "m.tar.gz").read_bytes()


def test_parents_of_a_destination_stay(app: Path, tmp_path: Path) -> None:
    """SPEC 4.4: `tmp` keeps 1777 through pack and normalize."""
    packed = detlayer.pack([f"{app}:/tmp/x"], output=tmp_path / "l.tar")
    assert detlayer.normalize(tmp_path / "l.tar").diff_id == packed.diff_id


def test_later_entries_win() -> None:
    """As when an engine applies the layer: files, a file in place of a directory, a directory in place of a file."""
    layer = tar_of(
        ("a", "file", b"old"),
        ("d", "dir", b""),
        ("d/below", "file", b"x"),
        ("f", "file", b"x"),
        ("a", "file", b"new"),
        ("d", "file", b"now a file"),
        ("f", "dir", b""),
        ("f/x", "file", b"y"),
    )
    out = normalize(layer)
    assert listed(out) == ["file a", "file d", "dir f/", "file f/x"]
    assert (content(out, "a"), content(out, "d")) == (b"new", b"now a file")


def test_whiteouts_stay_and_come_first() -> None:
    """SPEC 3.4 and 4.10: they apply to the layers below, whatever this layer contains."""
    out = normalize(
        tar_of(
            ("d", "dir", b""),
            ("d/a", "file", b""),
            ("d/.wh.b", "file", b""),
            ("d/.wh..wh..opq", "file", b""),
            mode=0o600,
            uid=7,
        ),
        profile=Profile(owner=None),
    )
    assert listed(out) == ["dir d/", "file d/.wh..wh..opq", "file d/.wh.b", "file d/a"]
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert {(m.name, m.mode, m.uid) for m in tar if ".wh." in m.name} == {
            ("d/.wh.b", 0o644, 0),
            ("d/.wh..wh..opq", 0o644, 0),
        }


def test_parents_are_added_and_the_root_dropped() -> None:
    """SPEC 3.2, 4.4."""
    out = normalize(tar_of((".", "dir", b""), ("/tmp/a/b", "file", b"x")))
    assert listed(out) == ["dir tmp/", "dir tmp/a/", "file tmp/a/b"]
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert tar.getmember("tmp").mode == 0o1777


def test_hard_links() -> None:
    """SPEC 4.7: the first path in order has the content, whichever had it before; or each is a file."""
    layer = tar_of(("z", "file", b"data"), ("a", "link", b"z"), ("b", "link", b"a"), ("z", "file", b"other"))
    separate = normalize(layer)
    assert listed(separate) == ["file a", "file b", "file z"]
    assert [content(separate, name) for name in "abz"] == [b"data", b"data", b"other"]
    preserved = normalize(layer, selection=Selection(hardlinks="preserve"))
    assert listed(preserved) == ["file a", "hardlink b", "file z"]
    assert content(preserved, "b") == b"data"


def test_a_hard_link_to_a_symlink_is_that_symlink() -> None:
    out = normalize(tar_of(("s", "symlink", b"target"), ("t", "link", b"s")))
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        assert [(m.name, m.linkname, m.issym()) for m in tar] == [("s", "target", True), ("t", "target", True)]


@pytest.mark.parametrize(
    ("layer", "code"),
    [
        (tar_of(("a", "link", b"nowhere")), "hardlink-target"),
        (tar_of(("d", "dir", b""), ("a", "link", b"d")), "hardlink-target"),
        (tar_of(("../a", "file", b"x")), "unsafe-path"),
        (tar_of(("p", "fifo", b"")), "special-files"),
        (tar_of(("a", "file", b"x" * 5000))[:3000], "tar-truncated"),
        (tar_of(("f", "symlink", b"d"), ("f/x", "file", b"x")), "file-as-parent"),
        (b"no tar " * 100, "header-checksum"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_can_not_be_normalized(tmp_path: Path, layer: bytes, code: str) -> None:
    """An error with its code, and no output file."""
    with pytest.raises(LayerError) as caught:
        detlayer.normalize(io.BytesIO(layer), output=tmp_path / "out.tar")
    assert caught.value.code == code
    assert not list(tmp_path.iterdir())


def test_special_files_can_be_left_out() -> None:
    layer = tar_of(("p", "fifo", b""), ("a", "file", b"x"))
    assert listed(normalize(layer, selection=Selection(special="skip"))) == ["file a"]


def test_missing_layer(tmp_path: Path) -> None:
    with pytest.raises(LayerError) as caught:
        detlayer.normalize(tmp_path / "nothing")
    assert caught.value.code == "layer-unreadable"


def test_values_are_those_of_the_profile() -> None:
    """SPEC 4.1 to 4.3."""
    layer = tar_of(("a", "file", b"x"), mode=0o6711, uid=5, gid=6)
    out = normalize(layer, profile=Profile(owner=Owner(1, 2), mode="source"))
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        info = tar.getmember("a")
        assert (info.mode, info.uid, info.gid, info.mtime) == (0o6711, 1, 2, 946684800)


PATHS = st.sampled_from(["a", "a/b", "a/b/c", "a-b", "b", "b/.wh.x", "tmp", "ü"])
MEMBERS = st.lists(st.tuples(PATHS, st.sampled_from(["dir", "file"]), st.binary(max_size=600)), max_size=12)


@given(MEMBERS, st.integers(0, 0o7777), st.integers(0, 2**21))
def test_it_is_idempotent(members: list[tuple[str, str, bytes]], mode: int, uid: int) -> None:
    """normalize(normalize(x)) is normalize(x), and canonical: `audit` has no findings."""
    try:
        once = normalize(tar_of(*members, mode=mode, uid=uid))
    except LayerError as error:
        assert error.code == "file-as-parent"
        return
    assert normalize(once) == once
    assert audit(io.BytesIO(once), contents=False).findings.counts == {}


def test_inspect_sums_up(app: Path, tmp_path: Path) -> None:
    packed = detlayer.pack([f"{app}:/srv"], output=tmp_path / "l.tar.zst")
    found = detlayer.inspect(tmp_path / "l.tar.zst", top=2)
    assert (found.facts.digest, found.facts.diff_id) == (packed.digest, packed.diff_id)
    assert (found.entries, found.kinds["file"]) == (packed.entries, packed.files)
    assert (found.facts.tar_bytes, tuple(found.facts.members)) == (packed.tar_bytes, packed.chunks)
    sizes = sorted(path.stat().st_size for path in app.rglob("*") if path.is_file() and not path.is_symlink())
    assert found.content_bytes == sum(sizes)
    assert [size for size, _ in found.biggest_files] == sizes[:-3:-1]
    assert found.biggest_directories[0] == (sum(sizes), "srv/")
