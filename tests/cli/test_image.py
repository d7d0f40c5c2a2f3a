"""`detlayer image`: assemble an image from files only, as make would, and read it with other tools."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from detlayer.cli import run
from tests.privileges import program
from tests.trees import make_tree


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_tree(tmp_path / "p", {"dist": {"a": "hello"}, "more": {"b": "there"}}))
    assert run(["pack", "dist:/srv/app", "--oci", "image", "--descriptor", "app.json", "-q"]) == 0
    return Path.cwd()


def out(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().out.splitlines()[-1]


def blob(layout: str, digest: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(layout, "blobs/sha256", digest.removeprefix("sha256:")).read_bytes())
    return found


def test_image_index_and_base_from_files_only(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "image.toml").write_text('entrypoint = ["/srv/app/a"]\nenv = { A = "1" }\nannotations = { x = "y" }')
    base = ["image", "app.json", "--oci", "image", "--settings", "image.toml"]
    assert run([*base, "--descriptor", "amd64.json", "--depfile", "amd64.d", "--tag", "amd64"]) == 0
    amd64 = out(capfd)
    assert Path("amd64.d").read_text().splitlines()[:3] == ["amd64.json: \\", "  app.json \\", "  image.toml"]
    assert run([*base, "--platform", "linux/arm64", "--descriptor", "arm64.json"]) == 0
    assert run(["image", "--manifest", "amd64.json", "--manifest", "arm64.json", "--oci", "image", "--tag", "1"]) == 0
    index = blob("image", out(capfd))
    platforms = [one["platform"]["architecture"] for one in index["manifests"]]  # type: ignore[attr-defined]
    assert platforms == ["amd64", "arm64"]
    assert run(["verify", "oci:image:1", "-q"]) == 0
    # A repeated run gives the same image, which is listed once.
    before = Path("image/index.json").read_bytes()
    assert run([*base, "--descriptor", "amd64.json", "--tag", "amd64"]) == 0
    assert (out(capfd), Path("image/index.json").read_bytes()) == (amd64, before)
    # As the base of an image in another layout: the layers of the base are copied.
    assert run(["pack", "more:/srv", "--oci", "next", "--descriptor", "more.json", "-q"]) == 0
    assert run(["image", "more.json", "--oci", "next", "--base", "oci:image:1", "--platform", "linux/arm64"]) == 0
    manifest = blob("next", out(capfd))
    assert manifest["annotations"] == {
        "org.opencontainers.image.base.digest": json.loads(Path("arm64.json").read_text())["digest"]
    }
    config = blob("next", manifest["config"]["digest"])  # type: ignore[index]
    assert config["architecture"] == "arm64"
    assert config["config"] == {"Entrypoint": ["/srv/app/a"], "Env": ["A=1"]}
    assert len(config["history"]) == 2  # type: ignore[arg-type]
    assert run(["verify", "oci:next", "-q"]) == 0


def test_other_tools_read_it(project: Path, tmp_path: Path) -> None:
    assert run(["image", "app.json", "--oci", "image", "--tag", "t"]) == 0
    inspected = subprocess.run([program("skopeo"), "inspect", "oci:image:t"], capture_output=True, check=True)
    assert json.loads(inspected.stdout)["Architecture"] == "amd64"
    bundle = tmp_path / "bundle"
    subprocess.run([program("umoci"), "unpack", "--rootless", "--image", "image:t", bundle], check=True)
    assert (bundle / "rootfs/srv/app/a").read_text() == "hello"


@pytest.mark.parametrize(
    ("arguments", "code", "status"),
    [
        (["nothing.json", "--oci", "image"], "config-missing", 2),
        (["dist/a", "--oci", "image"], "document-invalid", 3),
        (["bare.json", "--oci", "image"], "descriptor-invalid", 2),
        (["app.json", "--oci", "other"], "layer-missing", 3),
        (["app.json", "--oci", "image", "--base", "oci:nothing"], "layout-missing", 3),
        (["app.json", "--oci", "image", "--settings", "bad.toml"], "config-key", 2),
        (["app.json", "--oci", "image", "--settings", "nothing.toml"], "config-missing", 2),
        (["app.json", "--oci", "image", "--platform", "linux"], "platform-invalid", 2),
        (["--manifest", "app.json", "--oci", "image"], "descriptor-invalid", 2),
        (["app.json", "--manifest", "app.json", "--oci", "image"], "usage", 2),
    ],
)
def test_errors(project: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: str, status: int) -> None:
    (project / "bad.toml").write_text("entripoint = []")
    descriptor = json.loads((project / "app.json").read_text())
    del descriptor["annotations"]
    (project / "bare.json").write_text(json.dumps(descriptor))
    assert run(["image", *arguments]) == status
    assert f"error[{code}]" in capfd.readouterr().err


def test_a_base_for_another_platform(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "app.json", "--oci", "image", "--tag", "t"]) == 0
    assert run(["image", "--oci", "next", "--base", "oci:image:t", "--platform", "linux/s390x"]) == 4
    error = capfd.readouterr().err
    assert "error[platform-missing]" in error
    assert "linux/amd64" in error


def test_two_images_for_one_platform(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "app.json", "--oci", "image", "--descriptor", "a.json"]) == 0
    assert run(["image", "--oci", "image", "--manifest", "a.json", "--manifest", "a.json"]) == 2
    assert "error[platform-invalid]" in capfd.readouterr().err


def test_the_schema_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capfd.readouterr().out)["title"] == "detlayer.toml"
