"""detlayer.toml: its keys, the resulting settings, and errors."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from fnmatch import fnmatchcase
from posixpath import normpath

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detlayer.building.settings import Project, load, read_image, schema
from detlayer.errors import ConfigError
from detlayer.layer.codec import Codec
from detlayer.layer.entry import Mtime, Owner
from detlayer.oci.references import parse_reference
from detlayer.oci.runtime import EnvChange, HealthCheck
from detlayer.oci.types import Platform


class MemoryFiles:
    """Files of a project in memory, by path."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self._files = files

    def read(self, path: str) -> bytes | None:
        found = self._files.get(normpath(path))
        return None if found is None else found.encode()

    def members(self, directory: str, pattern: str) -> list[str]:
        directories = {path.rpartition("/")[0] for path in self._files if "/" in path} | {"."}
        wanted = normpath(f"{directory or '.'}/{pattern}")
        return sorted(one for one in directories if fnmatchcase(one, wanted))

    def same(self, path: str) -> str:
        return normpath(path)


def project(
    text: str, environment: Mapping[str, str] | None = None, *, epoch: str | None = None, **more: str
) -> Project:
    files = {"detlayer.toml": text, **{path.replace("__", "/") + ".toml": what for path, what in more.items()}}
    return load("detlayer.toml", MemoryFiles(files), environment=environment or {}, epoch=epoch)


def project_of(files: Mapping[str, str], path: str = "detlayer.toml") -> Project:
    return load(path, MemoryFiles(files), environment={})


EVERYTHING = """
variables = ["VERSION", "REGISTRY"]
members = []

[defaults]
platforms = ["linux/amd64", "linux/arm/v7"]
labels = { team = "a", shared = "d" }

[layers.deps]
sources = ["site-{arch}:/opt/app/site-packages"]

[images.app]
base = "debian:12"
repositories = ["${REGISTRY:-127.0.0.1:5000}/team/{image}", "registry.example/app"]
tags = ["${VERSION}", "latest"]
entrypoint = ["python3", "-m", "app"]
cmd = ["--port", "8080"]
env = { PATH = { prepend = "/opt/app/bin" }, MODE = "prod" }
user = 1000
workdir = "/srv"
ports = [8080, "53/udp"]
volumes = ["/var/lib/app"]
labels = { shared = "own" }
annotations = { "org.example.a" = "b" }
stop-signal = "SIGTERM"
compression = "zstd:9"
created = 5
git = true
layers = [
  "deps",
  { name = "app", sources = ["src"], destination = "/opt/app", exclude = ["*.log", "!keep.log"], \
ignore-files = ["ignored"], use-ignore-file = false, allow-parents = ["/lib"], whiteouts = ["/etc/x"], \
opaques = ["/var/cache"], compression = "gzip:9", mtime = "clamp:7", owner = "1:2", mode = "source", \
chmod = ["*.sh=0755"], chown = ["/x=3:4"], hardlinks = "preserve", xattrs = ["user.*"], special = "skip", \
retime-pyc = false, allow-empty = true },
  { sources = ["more:/m"] },
]
"""


def test_every_key_reaches_the_settings() -> None:
    app = project(EVERYTHING, {"VERSION": "1.2"}).images["app"]
    assert app.base == parse_reference("docker.io/library/debian:12")
    assert app.platforms == (Platform("linux", "amd64"), Platform("linux", "arm", "v7"))
    assert [str(one) for one in app.references] == [
        "127.0.0.1:5000/team/app:1.2",
        "127.0.0.1:5000/team/app:latest",
        "registry.example/app:1.2",
        "registry.example/app:latest",
    ]
    assert (app.format, app.created, app.git) == ("oci", 5, True)
    assert app.annotations == {"org.example.a": "b"}
    run = app.runtime
    assert (run.entrypoint, run.cmd) == (("python3", "-m", "app"), ("--port", "8080"))
    assert run.env == (EnvChange("PATH", None, "/opt/app/bin"), EnvChange("MODE", "prod"))
    assert (run.user, run.workdir, run.stop_signal) == ("1000", "/srv", "SIGTERM")
    assert (run.ports, run.volumes) == (("8080/tcp", "53/udp"), ("/var/lib/app",))
    assert run.labels == {"team": "a", "shared": "own"}
    deps, layer, more = app.layers
    assert (deps.name, deps.codec, deps.is_common) == ("deps", Codec("gzip-libdeflate-6"), False)
    assert deps.on(app.platforms[1]).sources == ("site-arm:/opt/app/site-packages",)
    assert (more.name, more.codec, more.is_common) == ("layer-3", Codec("zstd-9"), True)
    assert (layer.codec, layer.mtime, layer.owner) == (Codec("gzip-libdeflate-9"), Mtime("clamp", 7), Owner(1, 2))
    assert (layer.mode, layer.hardlinks, layer.special, layer.retime_pyc) == ("source", "preserve", "skip", False)
    assert (layer.exclude, layer.ignore_files, layer.use_ignore_file) == (("*.log", "!keep.log"), ("ignored",), False)
    assert (layer.whiteouts, layer.opaques, layer.allow_parents) == (("/etc/x",), ("/var/cache",), ("/lib",))
    assert (layer.sources, layer.destination, layer.allow_empty) == (("src",), "/opt/app", True)
    assert (layer.chmod, layer.chown, layer.xattrs) == (("*.sh=0755",), ("/x=3:4",), ("user.*",))
    profile = layer.profile()
    assert profile.mode_rule is not None
    assert profile.mode_rule(b"a.sh", False) == 0o755
    assert profile.owner_rule is not None
    assert profile.owner_rule(b"x", False) == Owner(3, 4)


def test_placeholders() -> None:
    source = "{platform}/{os}-{arch}{variant}/{{x}}"
    text = f'[images.a]\nplatforms = ["linux/arm/v7"]\n[[images.a.layers]]\nsources = ["{source}"]'
    image = project(text).images["a"]
    assert image.layers[0].on(image.platforms[0]).sources == ("linux/arm/v7/linux-armv7/{x}",)


def test_docker_format() -> None:
    image = project(
        '[images.a]\nformat = "docker"\nhealthcheck = { command = "true", interval = 3, retries = 2 }'
    ).images["a"]
    assert image.runtime.healthcheck == HealthCheck(("CMD-SHELL", "true"), 3, 0, 0, 2)
    none = project('[images.a]\nformat = "docker"\nhealthcheck = { command = [] }').images["a"]
    assert none.runtime.healthcheck == HealthCheck(("NONE",))


def test_created_defaults_to_the_epoch() -> None:
    assert project("[images.a]").images["a"].created == 946684800
    assert project("[images.a]", epoch="12").images["a"].created == 12
    assert project("[images.a]\ncreated = 3", epoch="12").images["a"].created == 3


def test_members_and_extended_files() -> None:
    found = project_of(
        {
            "detlayer.toml": 'members = ["services/*"]\n[defaults]\nbase = "oci:bases/a"\nenv = {A = "1"}\n'
            'layers = ["common", {sources = ["all:/all"]}]\n'
            '[layers.common]\nsources = ["lib:/opt/lib"]',
            "services/one/detlayer.toml": 'extends = "../../detlayer.toml"\n[images.one]',
            "services/two/pyproject.toml": '[tool.detlayer.images.two]\nlayers = [{sources = ["src:/srv"]}]',
            "services/three/pyproject.toml": "[tool.other]\nx = 1",
        }
    )
    one, two = found.images["one"], found.images["two"]
    assert one.base == "oci:services/one/../../bases/a"
    assert one.runtime.env == (EnvChange("A", "1"),)
    assert [layer.directory for layer in one.layers] == ["services/one/../..", ""]
    assert one.layers[1].sources == ("services/one/../../all:/all",)
    assert (two.base, two.location.file, two.directory) == (None, "services/two/pyproject.toml", "services/two")
    assert two.layers[0].sources == ("services/two/src:/srv",)
    assert [image.name for image in found.choose(("two",))] == ["two"]
    assert [image.name for image in found.choose(())] == ["one", "two"]


def test_a_member_of_two_counts_once() -> None:
    found = project_of(
        {
            "detlayer.toml": 'members = ["a", "b"]',
            "a/detlayer.toml": 'members = ["../c"]\n[images.a]',
            "b/detlayer.toml": 'members = ["../c"]\n[images.b]',
            "c/detlayer.toml": "[images.c]",
        }
    )
    assert list(found.images) == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("files", "code", "word"),
    [
        (
            {"detlayer.toml": 'members = ["a"]', "a/detlayer.toml": 'members = [".."]'},
            "config-cycle",
            "a/detlayer.toml",
        ),
        ({"detlayer.toml": 'members = ["."]'}, "config-cycle", "members"),
        (
            {"detlayer.toml": 'extends = "b.toml"\n[images.a]', "b.toml": 'extends = "detlayer.toml"'},
            "config-cycle",
            "b.toml",
        ),
        (
            {"detlayer.toml": 'members = ["a"]\n[images.x]', "a/detlayer.toml": "[images.x]"},
            "image-twice",
            "a/detlayer.toml",
        ),
        ({"detlayer.toml": 'members = ["nothing-*"]'}, "member-missing", "nothing-*"),
        ({"detlayer.toml": 'extends = "nothing.toml"\n[images.x]'}, "config-missing", "nothing.toml"),
        ({"other.toml": ""}, "config-missing", "detlayer.toml"),
        ({"detlayer.toml": ""}, "no-images", "detlayer.toml"),
    ],
)
def test_invalid_projects(files: dict[str, str], code: str, word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        project_of(files)
    assert caught.value.code == code
    assert word in caught.value.message
    assert caught.value.hint


MISTAKES = [
    ("imags = {}", "config-key", "imags", "images"),
    ('[images.app]\nbas = "x"', "config-key", "images.app.bas", "base"),
    ("[defaults]\nplatform = []", "config-key", "defaults.platform", "platforms"),
    ('[images.app]\n[[images.app.layers]]\nsource = ["x"]', "config-key", "images.app.layers[0].source", "sources"),
    ('[images.a]\nlayers = [{sources=["x"]}, {nam="y"}]', "config-key", "images.a.layers[1].nam", "name"),
    ('[images.a.env]\nA = "1"\nB = {apend = "x"}', "config-key", "images.a.env.B.apend", "append"),
    (
        "[images.a]\nformat = 'docker'\nhealthcheck = {command='x', intervall=3}",
        "config-key",
        "healthcheck.intervall",
        "interval",
    ),
    ("[images.app]\nplatforms = 3", "config-value", "images.app.platforms", "array"),
    ("[images.ok]\n[images.app.env]\nA = 1", "config-value", "images.app.env.A", "int"),
    ("[layers.x]\nmode = 'loose'", "config-value", "layers.x.mode", "loose"),
    ("no toml", "config-invalid", "detlayer.toml", "line 1"),
    ("[images.Big]", "image-name", "Big", "lower-case"),
    ("[images.a]\nplatforms = ['linux']", "platform-invalid", "images.a.platforms", "linux"),
    ("[images.a]\nplatforms = []", "platform-invalid", "images.a.platforms", "once"),
    ("[images.a]\nplatforms = ['linux/arm64', 'linux/aarch64']", "platform-invalid", "images.a.platforms", "once"),
    ("[images.a]\ntags = ['-x']", "tag-invalid", "images.a.tags", "-x"),
    ("[images.a]\ntags = ['{imag}']", "placeholder-unknown", "images.a.tags", "image"),
    ("[images.a]\nrepositories = ['r.example/A']", "reference-invalid", "images.a.repositories", "lower-case"),
    ("[images.a]\nrepositories = ['r.example/a:x']", "repository-tag", "images.a.repositories", "tags"),
    ("[images.a]\nbase = 'a b'", "reference-invalid", "images.a.base", "a b"),
    ("[images.a]\nlayers = ['deps']\n[layers.dep]\nsources=['x']", "layer-unknown", "deps", "dep?"),
    ("[images.a]\nlayers = [{name='x'}]", "layer-no-source", "images.a.layers[0]", "sources"),
    ("[images.a]\nlayers = [{name='x',sources=['a']},{name='x',sources=['b']}]", "layer-twice", "x", "name"),
    ("[images.a]\nlayers = [{sources=['{archi}']}]", "placeholder-unknown", "{archi}", "arch"),
    (
        "[images.a]\nlayers = [{sources=['a'],compression='lzma'}]",
        "compression-unknown",
        "layers[0].compression",
        "gzip",
    ),
    ("[images.a]\nlayers = [{sources=['a'],mtime='now'}]", "mtime-invalid", "layers[0].mtime", "seconds"),
    ("[images.a]\nlayers = [{sources=['a'],mtime='clamp'}]", "mtime-invalid", "layers[0].mtime", "clamp:SECONDS"),
    ("[images.a]\nlayers = [{sources=['a'],owner='bob'}]", "owner-invalid", "layers[0].owner", "UID"),
    ("[images.a]\nlayers = [{sources=['a'],chmod=['x=9']}]", "mode-invalid", "layers[0].chmod", "octal"),
    ("[images.a]\nlayers = [{sources=['a'],chown=['x']}]", "rule-invalid", "layers[0].chown", "PATTERN"),
    ("[images.a]\nlayers = [{sources=['a'],exclude=['!']}]", "pattern-invalid", "layers[0].exclude", "gitignore"),
    ("[images.a]\nhealthcheck = {command='x'}", "format-healthcheck", "images.a.healthcheck", "docker"),
    ("[images.a]\nformat='docker'\nannotations={a='b'}", "format-annotations", "images.a.annotations", "labels"),
    ("[images.a]\nformat='docker'\ncompression='zstd'\nlayers=[{sources=['a']}]", "format-compression", "zstd", "gzip"),
    ("[images.a]\nworkdir = 'srv'", "path-relative", "srv", "/"),
    ("[images.a]\nvolumes = ['srv']", "path-relative", "srv", "/"),
    ("[images.a]\nports = [70000]", "port-invalid", "70000", "8080"),
    ("[images.a]\nports = ['http']", "port-invalid", "http", "8080"),
    ("[images.a]\nstop-signal = 'term me'", "signal-invalid", "term me", "SIGTERM"),
    ("[images.a.env]\n'A=B' = 'x'", "env-invalid", "A=B", "="),
    ("[images.a]\ncreated = -1", "created-invalid", "-1", "1970"),
    ("[images.a]\ncmd = ['${HOME}']", "variable-not-allowed", "images.a.cmd[0]", "$${HOME}"),
    ("variables = ['HOMES']\n[images.a]\ncmd = ['${HOME}']", "variable-not-allowed", "HOME", "HOMES"),
    ("variables = ['X']\n[images.a]\ncmd = ['${X}']", "variable-unset", "X", "default"),
    ("variables = ['X']\n[images.a]\ncmd = ['${X-1}']", "variable-invalid", "${X-1}", "NAME"),
]


@pytest.mark.parametrize(("text", "code", "word", "hint"), MISTAKES)
def test_errors_have_file_key_and_suggestion(text: str, code: str, word: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        project(text, {"HOME": "/root"})
    error = caught.value
    assert error.code == code
    assert error.file == "detlayer.toml"
    assert (error.key is None) == (code == "config-invalid")
    assert (error.line or 0) in range(1, text.count("\n") + 2)
    assert "detlayer.toml" in error.message
    assert word in error.message
    assert hint in error.message + error.hint


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("entrypoint = 'python3 -m app'", 'write an array: entrypoint = ["python3", "-m", "app"]'),
        ("platforms = 'linux/arm64'", 'write an array: platforms = ["linux/arm64"]'),
        ("labels = { version = 1.5 }", 'write it in quotes: version = "1.5"'),
        ("workdir = 5", 'write it in quotes: workdir = "5"'),
        ("created = '17'", "write it without quotes: created = 17"),
        ("git = 'yes'", "write git = true or git = false"),
        ("labels = ['a']", "write a table: [images.app.labels]"),
        ("format = 'appc'", "`detlayer schema` prints the type of each key"),
    ],
)
def test_a_value_of_the_wrong_type_is_shown_in_the_right_form(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        project(f"[images.app]\n{text}")
    assert (caught.value.code, caught.value.hint) == ("config-value", hint)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("# a\nimags = {}", "imags", 2),
        ("[images.app]\n\nbas = 'x'", "images.app.bas", 3),
        ("[images.ok]\nports = [1]\n[images.a]\nports = [70000]", "images.a.ports", 4),
        ("[images.a]\ntags = [\n  '-x',\n]", "images.a.tags", 2),
        ("[images.a]\nlayers = [{sources=['a'],mtime='now'}]", "images.a.layers[0].mtime", 2),
        ("[images.a]\nenv.B = {apend = 'x'}", "images.a.env.B.apend", 2),
        ("[images]\na = {platforms = 3}", "images.a.platforms", 2),
        (
            "[images.a]\n[[images.a.layers]]\nname='x'\nsources=['a']\n[[images.a.layers]]\nname='y'\nsource=['b']",
            "images.a.layers[1].source",
            7,
        ),
        ("[layers.x]\nsources = ['a']\nmode = 'loose'", "layers.x.mode", 3),
        ("variables = ['X']\n[images.a]\ncmd = ['a', '${X}']", "images.a.cmd[1]", 3),
        ("[images.a]\nx = = 1", None, 2),
        ("[images.a]\nlabels = {x = '''\n[images.b]\nuser = 1\n'''}\n[images.b]\nuser = []", "images.b.user", 7),
        ("[defaults]\nports = [0]\n[images.a]\n", "images.a.ports", 3),
        ("[images.a]\nlabels = {x = '\u2028\x85'}\nuser = []", "images.a.user", 3),
    ],
)
def test_errors_have_a_line(text: str, key: str | None, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        project(text)
    assert (caught.value.file, caught.value.key, caught.value.line) == ("detlayer.toml", key, line)


def test_an_unknown_image_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        project("[images.web]\n[images.api]").choose(("wep",))
    assert caught.value.code == "image-unknown"
    assert "web" in caught.value.hint


def test_keys_in_pyproject_have_their_full_path() -> None:
    with pytest.raises(ConfigError) as caught:
        project_of({"pyproject.toml": "[tool.detlayer.images.a]\nbse = 'x'"}, "pyproject.toml")
    assert "tool.detlayer.images.a.bse" in caught.value.message


def test_variables_are_filled_in() -> None:
    text = 'variables = ["A"]\n[images.a]\ncmd = ["${A}", "$${A}", "${A:-b}", "$A", "{{}}"]'
    assert project(text, {"A": "x${A}"}).images["a"].runtime.cmd == ("x${A}", "${A}", "x${A}", "$A", "{{}}")


def test_a_file_of_one_image() -> None:
    assert read_image(b'base = "oci:b"', "image.toml").base == "oci:b"


# -- the schema for editors


def test_schema_is_valid_and_accepts_valid_files() -> None:
    validator = jsonschema.Draft202012Validator(schema())
    validator.check_schema(schema())
    validator.validate(tomllib.loads(EVERYTHING))


@pytest.mark.parametrize(
    ("text", "code"), [(one[0], one[1]) for one in MISTAKES if one[1] in ("config-key", "config-value")]
)
def test_schema_rejects_invalid_files(text: str, code: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(schema()).validate(tomllib.loads(text))


_json = st.recursive(
    st.booleans() | st.integers(-(2**40), 2**40) | st.text("ab${}:/ .-!", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["images", "a", "layers", "env", "base", "sources", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(_json)
def test_any_invalid_config_is_a_clear_error(document: object) -> None:
    """Any file is either read, or rejected with file, code and hint."""
    text = f"images.a = {_toml(document)}"
    try:
        project(text)
    except ConfigError as error:
        assert error.hint
        assert "detlayer.toml" in error.message


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)
