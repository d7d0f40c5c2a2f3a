"""Credentials in docker's and podman's files (src/detlayer/registry/credentials.py). Secrets never show."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detlayer.errors import ConfigError
from detlayer.oci.references import RepositoryName, parse_repository
from detlayer.registry.credentials import Credentials, CredentialStore, read_environment
from tests.layer.handmade_tars import checked
from tests.privileges import as_nobody, need_root, program

SECRET = "s3cr3t-of-nobody"
HELPER = """#!{python}
import json, os, sys
with open({log!r}, "a") as log:
    server = sys.stdin.read()
    log.write(f"{{sys.argv[1:]}} {{server}}\\n")
with open({answers!r}) as file:
    answer = json.load(file).get(server)
if answer is None:
    print("credentials not found in native keychain")
    sys.exit(1)
if isinstance(answer, str):
    print(answer)
    sys.exit(2)
print(json.dumps(answer))
"""


class Machine:
    """A home directory with its own PATH and environment."""

    def __init__(self, path: Path) -> None:
        self.home = path / "home"
        self.bin = path / "bin"
        self.home.mkdir()
        self.bin.mkdir()
        self.log = path / "log"
        self.environment = {"HOME": str(self.home), "PATH": str(self.bin), "XDG_RUNTIME_DIR": str(path / "run")}

    def write(self, name: str, document: Any) -> Path:
        path = self.home.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
        return path

    def docker(self, document: Any) -> Path:
        return self.write("home/.docker/config.json", document)

    def helper(self, name: str, answers: dict[str, Any]) -> None:
        """Install a helper program for some servers; a string is its error message."""
        held = self.write(f"answers-{name}", answers)
        path = self.bin / f"docker-credential-{name}"
        path.write_text(HELPER.format(python=sys.executable, log=str(self.log), answers=str(held)))
        path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def store(self, *given: str, **how: Any) -> CredentialStore:
        return CredentialStore(read_environment(self.environment, *given, **how))

    def find(self, name: str) -> Credentials | None:
        return self.store().find(parse_repository(name))

    def user(self, name: str) -> str:
        found = self.find(name)
        return "" if found is None else found.username

    def refused(self, name: str = "host.example/team/app") -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            self.find(name)
        shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__)
        assert SECRET not in shown
        assert base64.b64encode(SECRET.encode()).decode()[:12] not in shown
        assert checked(caught.value)
        return caught.value


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def auth(username: str, password: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{username}:{password}".encode()).decode()}


# -- kinds of credentials


@given(st.text(), st.text(min_size=5), st.text(min_size=5), st.text(min_size=5))
def test_no_secret_shows(username: str, password: str, identity: str, registry: str) -> None:
    found = Credentials(username, f"p!{password}", f"i!{identity}", f"r!{registry}")
    shown = repr(found)
    assert shown == f"Credentials(username={username!r})"
    assert found.principal == Credentials(username, "another", "another", "another").principal


def test_principals() -> None:
    kinds = [
        Credentials("a", "p"),
        Credentials("b", "p"),
        Credentials("a", identity_token="t"),
        Credentials("a", "", "", "t"),
    ]
    names = [one.principal for one in kinds]
    assert len(set(names)) == 4
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in names)
    assert Credentials("a", "other").principal == names[0]


# -- sources


def test_without_any_file_there_are_no_credentials(machine: Machine) -> None:
    assert machine.find("host.example/app") is None
    assert CredentialStore(read_environment({})).find(RepositoryName("host.example", "app")) is None


def test_the_order_of_places(machine: Machine) -> None:
    """Each source is removed in turn, and the next one is used."""
    key = "host.example"
    places = [
        machine.write("auth.json", {"auths": {key: auth("authfile")}}),
        machine.write("docker/config.json", {"auths": {key: auth("docker-config")}}),
        machine.write("run/containers/auth.json", {"auths": {key: auth("run")}}),
        machine.write("xdg/containers/auth.json", {"auths": {key: auth("config")}}),
    ]
    machine.docker({"auths": {key: auth("home")}})
    machine.write("home/.config/containers/auth.json", {"auths": {key: auth("home-config")}})
    root = machine.home.parent
    machine.environment |= {
        "REGISTRY_AUTH_FILE": str(root / "auth.json"),
        "DOCKER_CONFIG": str(root / "docker"),
        "XDG_CONFIG_HOME": str(root / "xdg"),
    }
    explicit = machine.store("me", SECRET).find(RepositoryName(key, "app"))
    assert explicit == Credentials("me", SECRET)
    found = [machine.user("host.example/app")]
    del machine.environment["REGISTRY_AUTH_FILE"]
    for path in places[1:]:
        found.append(machine.user("host.example/app"))
        path.unlink()
    del machine.environment["DOCKER_CONFIG"]
    found.append(machine.user("host.example/app"))
    machine.docker({})
    del machine.environment["XDG_CONFIG_HOME"]
    found.append(machine.user("host.example/app"))
    assert found == ["authfile", "docker-config", "run", "config", "home", "home-config"]


def test_a_place_without_an_answer_is_passed_by(machine: Machine) -> None:
    machine.docker({"auths": {"other.example": auth("a"), "host.example": {}}})
    machine.write("run/containers/auth.json", {"auths": {"host.example": auth("b")}})
    assert machine.user("host.example/app") == "b"


def test_given_credentials_go_where_they_are_meant_to_go(machine: Machine) -> None:
    machine.docker({"auths": {"other.example": auth("a")}})
    store = machine.store("me", SECRET, given_for=frozenset(("host.example",)))
    assert store.find(RepositoryName("host.example", "app")) == Credentials("me", SECRET)
    assert store.find(RepositoryName("other.example", "app")) == Credentials("a", SECRET)
    assert store.find(RepositoryName("third.example", "app")) is None


def test_files_are_read_late_and_once(machine: Machine) -> None:
    store = machine.store()
    path = machine.docker({"auths": {"host.example": auth("a")}})
    name = RepositoryName("host.example", "app")
    assert store.find(name) == Credentials("a", SECRET)
    path.unlink()
    assert store.find(name) == Credentials("a", SECRET)
    given = machine.store("me", SECRET)
    machine.docker(b"broken")
    assert given.find(name) == Credentials("me", SECRET)  # no file is read


# -- keys


@pytest.mark.parametrize(
    ("name", "user"),
    [
        ("host.example/team/app", "app"),
        ("host.example/team/app/part", "app"),
        ("host.example/team/application", "team"),
        ("host.example/other", "host"),
        ("host.example:5000/team/app", "port"),
        ("sub.host.example/team/app", ""),
        ("alpine", "hub"),
        ("team/app", "hub-team"),
        ("plain.example/app", "plain"),
        ("url.example/app", "url"),
        ("v2.example/app", "v2"),
    ],
)
def test_the_most_special_key_counts(machine: Machine, name: str, user: str) -> None:
    machine.docker(
        {
            "auths": {
                "host.example": auth("host"),
                "host.example/team": auth("team"),
                "host.example/team/app": auth("app"),
                "host.example:5000": auth("port"),
                "https://index.docker.io/v1/": auth("hub"),
                "docker.io/team": auth("hub-team"),
                "https://plain.example": auth("url-of-plain"),
                "plain.example": auth("plain"),
                "http://url.example/v1/": auth("url"),
                "https://v2.example/v2/": auth("v2"),
            }
        }
    )
    assert machine.user(name) == user


def test_the_fields_of_entries(machine: Machine) -> None:
    machine.docker(
        {
            "auths": {
                "a.example": {"username": "u", "password": SECRET},
                "b.example": {**auth("u"), "username": "ignored", "identitytoken": "t"},
                "c.example": {"registrytoken": "t"},
                "d.example": auth("<token>"),
                "e.example": auth("u", SECRET + "\0\0"),
                "f.example": auth("u", "with:colon"),
                "g.example": {"auth": None, "email": "x"},
                "h.example": auth("", SECRET),
            }
        }
    )
    found = {name: machine.find(f"{name}.example/app") for name in "abcdefgh"}
    assert found == {
        "a": Credentials("u", SECRET),
        "b": Credentials("u", SECRET, "t"),
        "c": Credentials(registry_token="t"),
        "d": Credentials(identity_token=SECRET),
        "e": Credentials("u", SECRET),
        "f": Credentials("u", "with:colon"),
        "g": None,
        "h": Credentials("", SECRET),
    }


# -- helper programs


def test_a_helper_for_one_registry(machine: Machine) -> None:
    machine.helper("one", {"host.example": {"Username": "u", "Secret": SECRET}})
    machine.docker({"credHelpers": {"host.example": "one"}, "auths": {"other.example": auth("o")}})
    assert machine.find("host.example/team/app") == Credentials("u", SECRET)
    assert machine.calls == ["['get'] host.example"]
    assert machine.user("other.example/app") == "o"
    assert len(machine.calls) == 1


def test_a_helper_for_all(machine: Machine) -> None:
    machine.helper(
        "all",
        {
            "https://index.docker.io/v1/": {"ServerURL": "x", "Username": "hub", "Secret": SECRET},
            "host.example": {"Username": "<token>", "Secret": SECRET},
        },
    )
    machine.docker({"credsStore": "all", "auths": {"host.example": {}, "third.example": auth("in-file")}})
    assert machine.user("alpine") == "hub"
    assert machine.find("host.example/app") == Credentials(identity_token=SECRET)
    assert machine.user("third.example/app") == "in-file"
    assert machine.find("fourth.example/app") is None


def test_path_keys_win_over_a_helper_for_the_host(machine: Machine) -> None:
    machine.helper("all", {"host.example": {"Username": "helper", "Secret": SECRET}})
    machine.docker({"credsStore": "all", "auths": {"host.example/team": auth("team"), "host.example": auth("stale")}})
    assert machine.user("host.example/team/app") == "team"
    assert machine.calls == []
    assert machine.user("host.example/other") == "helper"


def test_a_helper_is_asked_once(machine: Machine) -> None:
    machine.helper("all", {"host.example": {"Username": "u", "Secret": SECRET}})
    machine.docker({"credsStore": "all"})
    store = machine.store()
    names = [RepositoryName("host.example", f"app{number}") for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(store.find, names)) == {Credentials("u", SECRET)}
    assert len(machine.calls) == 1


def test_helpers_that_fail(machine: Machine) -> None:
    machine.helper("one", {"host.example": "please log in first\nand more"})
    machine.docker({"credHelpers": {"host.example": "one"}})
    error = machine.refused()
    assert (error.code, "please log in first" in error.message) == ("credential-helper", True)
    machine.helper("one", {"host.example": json.dumps({"Username": "u", "Secret": SECRET})})  # exits with 2
    assert machine.refused().code == "credential-helper"
    machine.helper("one", {"host.example": [SECRET]})
    assert machine.refused().code == "credential-helper"
    machine.helper("one", {"host.example": {"Username": 7, "Secret": SECRET}})
    assert machine.refused().code == "credential-helper"
    machine.helper("one", {"host.example": {"Username": "", "Secret": ""}})
    assert machine.find("host.example/app") is None
    (machine.bin / "docker-credential-one").write_text("no program")
    assert machine.refused().code == "credential-helper"
    (machine.bin / "docker-credential-one").unlink()
    error = machine.refused()
    assert "docker-credential-one" in error.message
    assert "config.json" in error.message


def test_a_helper_that_never_answers(machine: Machine) -> None:
    path = machine.bin / "docker-credential-slow"
    path.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    path.chmod(0o755)
    machine.docker({"credsStore": "slow"})
    store = CredentialStore(read_environment(machine.environment), helper_timeout_s=0.2)
    with pytest.raises(ConfigError) as caught:
        store.find(RepositoryName("host.example", "app"))
    assert checked(caught.value) == "credential-helper"


def test_a_config_from_another_machine(machine: Machine) -> None:
    """Its helper is not installed; the file's own entry is used."""
    machine.docker({"credsStore": "desktop", "auths": {"host.example": auth("u")}})
    assert machine.user("host.example/app") == "u"
    assert machine.refused("other.example/app").code == "credential-helper"


@pytest.mark.parametrize("name", ["../evil", "a/b", "a b", "", "-x", "x" * 100])
def test_names_that_no_helper_has(machine: Machine, name: str) -> None:
    evil = machine.bin / "evil"
    evil.write_text(f"#!/bin/sh\ntouch {machine.home}/ran\n")
    evil.chmod(0o755)
    (machine.bin / "docker-credential-").mkdir()
    machine.docker({"credHelpers": {"host.example": name}})
    if name:
        assert machine.refused().code == "credential-helper"
    else:
        assert machine.find("host.example/app") is None
    assert not (machine.home / "ran").exists()


def test_what_a_helper_is_told(machine: Machine) -> None:
    """The given environment, and nothing else."""
    path = machine.bin / "docker-credential-env"
    path.write_text(
        f"#!{sys.executable}\nimport json, os\n"
        'print(json.dumps({"Username": " ".join(sorted(set(os.environ) - {"LC_CTYPE"})), "Secret": "x"}))\n'
    )
    path.chmod(0o755)
    machine.docker({"credsStore": "env"})
    assert machine.user("host.example/app") == "HOME PATH XDG_RUNTIME_DIR"


# -- invalid files


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'"%b"' % SECRET.encode(),
        b'{"auths": {"host.example": {"auth": "%b"}' % SECRET.encode(),
        b" " * (5 << 20),
        {"auths": [SECRET]},
        {"credHelpers": SECRET},
        {"credHelpers": {"host.example": [SECRET]}},
        {"credsStore": {"x": SECRET}},
        {"auths": {"host.example": SECRET}},
        {"auths": {"host.example": [SECRET]}},
        {"auths": {"host.example": {"auth": {"x": SECRET}}}},
        {"auths": {"host.example": {"identitytoken": [SECRET]}}},
        {"auths": {"host.example": {"auth": SECRET}}},
        {"auths": {"host.example": {"auth": base64.b64encode(SECRET.encode()).decode()}}},
        {"auths": {"host.example": {"auth": base64.b64encode(b"u:\xff" + SECRET.encode()).decode()}}},
        {"auths": {"host.example": {"auth": "é" + SECRET}}},
    ],
)
def test_malformed_files(machine: Machine, data: Any) -> None:
    path = machine.docker(data)
    error = machine.refused()
    assert error.code == "credentials-file"
    assert str(path) in error.message
    if isinstance(data, dict) and isinstance(data.get("auths"), dict):
        assert "host.example" in error.message
        assert machine.find("other.example/app") is None  # only requested entries must be valid


@pytest.mark.parametrize(
    "data", [b"", b" \n", b"{}", b"null", {"auths": None, "credHelpers": None, "credsStore": None}]
)
def test_files_with_nothing_in_them(machine: Machine, data: Any) -> None:
    machine.docker(data)
    if data == b"null":
        assert machine.refused().code == "credentials-file"
    else:
        assert machine.find("host.example/app") is None


def test_files_that_can_not_be_read(machine: Machine) -> None:
    path = machine.home / ".docker" / "config.json"
    path.mkdir(parents=True)
    assert machine.refused().code == "credentials-file"
    path.rmdir()
    os.mkfifo(path)
    assert machine.refused().code == "credentials-file"
    path.unlink()
    path.parent.rmdir()
    path.parent.write_text("a file")
    assert machine.find("host.example/app") is None
    machine.environment["REGISTRY_AUTH_FILE"] = str(machine.home / "none.json")
    error = machine.refused()
    assert (error.code, "none.json" in error.message) == ("credentials-file", True)


def test_a_file_of_somebody_else(open_tmp: Path) -> None:
    need_root("root, to lose its privileges")
    machine = Machine(open_tmp)
    machine.docker({"auths": {"host.example": auth("u")}}).chmod(0o600)
    with as_nobody():
        assert machine.refused().code == "credentials-file"


# -- files written by other tools


class _Registry(BaseHTTPRequestHandler):
    """Accepts the user u with SECRET: a minimal registry for a login."""

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(f"u:{SECRET}".encode()).decode()
        is_in = self.headers.get("Authorization") == wanted
        self.send_response(200 if is_in else 401)
        if not is_in:
            self.send_header("WWW-Authenticate", 'Basic realm="here"')
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *ignored: object) -> None:
        return


@pytest.fixture
def registry() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Registry) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("tool", ["skopeo", "podman", "buildah"])
@pytest.mark.parametrize("scope", ["", "/team"])
def test_what_a_login_writes(machine: Machine, registry: str, tool: str, scope: str) -> None:
    path = machine.home.parent / "run" / "containers" / "auth.json"
    path.parent.mkdir(parents=True)
    command: list[str | Path] = [
        program(tool),
        "login",
        "--tls-verify=false",
        "--authfile",
        path,
        "-u",
        "u",
        "--password-stdin",
    ]
    subprocess.run([*command, registry + scope], input=SECRET.encode(), capture_output=True, check=True)
    assert machine.find(f"{registry}/team/app") == Credentials("u", SECRET)
    assert machine.find(f"{registry}/other") == (None if scope else Credentials("u", SECRET))


def test_what_docker_login_writes(machine: Machine, registry: str) -> None:
    """Without a daemon, docker sends the request to the registry itself."""
    home = machine.home / ".docker"
    command: list[str | Path] = [program("docker"), "--config", home, "login", "-u", "u", "--password-stdin", registry]
    subprocess.run(
        command,
        input=SECRET.encode(),
        capture_output=True,
        check=True,
        env={**machine.environment, "DOCKER_HOST": f"unix://{machine.home}/none.sock"},
    )
    assert machine.find(f"{registry}/team/app") == Credentials("u", SECRET)
