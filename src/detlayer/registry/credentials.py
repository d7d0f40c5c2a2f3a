"""Credentials for registries, where docker, podman and their helper programs keep them. Never HTTP, never the terminal.

The environment is handed in. Files are read when they are first needed, and once. Sources: docker's config.json
(docker/cli, cli/config), containers-auth.json(5), docker-credential-helpers' protocol.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from blake3 import blake3

from detlayer.errors import ConfigError, printable
from detlayer.oci.references import DEFAULT_REGISTRY, RepositoryName, host_of

_HUB_KEY = "https://index.docker.io/v1/"  # what docker has called Docker Hub from the beginning
_HUB_HOSTS = frozenset((DEFAULT_REGISTRY, "index.docker.io", host_of(DEFAULT_REGISTRY)))
_TOKEN_USER = "<token>"  # a helper's user whose secret is an identity token
_NOT_FOUND = "credentials not found"
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_HELPER_TIMEOUT_S = 60.0
_MAX_FILE_BYTES = 4 << 20
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Credentials:
    """What convinces a registry: a name and a password, or a token to get tokens by, or one to show as it is."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def principal(self) -> str:
        """A short name for who this is, in which no secret is."""
        kind = "registry-token" if self.registry_token else "identity-token" if self.identity_token else "password"
        return blake3(f"{kind}\n{self.username}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class CredentialSources:
    """Where credentials are looked for, in order: `given` ones, then files.

    `given` ones are for `given_for` only, if that is not None: registries by their names. `required` is a file that
    was named by somebody, and so has to be there. `environment` is what helper programs get, PATH among it.
    """

    given: Credentials | None = None
    given_for: frozenset[str] | None = None
    required: str = ""
    files: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_environment(
    environment: Mapping[str, str], username: str = "", password: str = "", *, given_for: frozenset[str] | None = None
) -> CredentialSources:
    """Say where credentials are, going by the environment of a process: as docker does, then as podman does."""
    home = environment.get("HOME", "")
    docker = environment.get("DOCKER_CONFIG") or _below(home, ".docker")
    run = environment.get("XDG_RUNTIME_DIR") or f"/run/containers/{os.getuid()}"
    config = environment.get("XDG_CONFIG_HOME") or _below(home, ".config")
    containers = f"{run}/containers/auth.json" if environment.get("XDG_RUNTIME_DIR") else f"{run}/auth.json"
    files = (_below(docker, "config.json"), containers, _below(config, "containers/auth.json"))
    return CredentialSources(
        _from_pair(username, password),
        given_for,
        environment.get("REGISTRY_AUTH_FILE", ""),
        tuple(filter(None, files)),
        environment,
    )


class CredentialStore:
    """Finds credentials for repositories. Safe to use from several threads."""

    def __init__(self, sources: CredentialSources, *, helper_timeout_s: float = _HELPER_TIMEOUT_S) -> None:
        self._sources = sources
        self._helper_timeout_s = helper_timeout_s
        self._files: dict[str, _AuthFile | None] = {}
        self._answers: dict[tuple[str, str], Credentials | None] = {}
        self._lock = threading.RLock()

    def find(self, name: RepositoryName) -> Credentials | None:
        """Find the most specific credentials for a repository; None if there are none.

        Raises ConfigError for a file or a helper program that should have an answer and does not give it.
        """
        sources = self._sources
        if sources.given is not None and (sources.given_for is None or name.registry in sources.given_for):
            return sources.given
        with self._lock:
            for path in filter(None, (sources.required, *sources.files)):
                file = self._open(path)
                found = self._find_in(file, name) if file is not None else None
                if found is not None:
                    return found
        return None

    def _open(self, path: str) -> _AuthFile | None:
        if path not in self._files:
            data = _read(path)
            if data is None and path == self._sources.required:
                raise ConfigError(
                    "credentials-file",
                    f"there is no {printable(path)}, which REGISTRY_AUTH_FILE names",
                    "log in again, or unset it",
                )
            self._files[path] = _AuthFile(path, data) if data is not None else None
        return self._files[path]

    def _find_in(self, file: _AuthFile, name: RepositoryName) -> Credentials | None:
        """Look at the keys for a repository, the most specific first; each may have a helper, or be in the file."""
        for key in _keys(name):
            helper = file.helper(key)
            found = self._ask(file, helper, key) if helper else None
            if found is None and key == name.registry and file.store:
                try:
                    found = self._ask(file, file.store, key)
                except ConfigError:
                    # As on a machine that a config was copied to; what stands in it may still do.
                    if file.entry(key) is None:
                        raise
            found = found or file.entry(key)
            if found is not None:
                return found
        return None

    def _ask(self, file: _AuthFile, helper: str, key: str) -> Credentials | None:
        server = _HUB_KEY if key == DEFAULT_REGISTRY else key
        if (helper, server) not in self._answers:
            self._answers[helper, server] = self._run(file, helper, server)
        return self._answers[helper, server]

    def _run(self, file: _AuthFile, helper: str, server: str) -> Credentials | None:
        """Ask a helper program; None if it knows nothing. Raises ConfigError."""
        program = f"docker-credential-{helper}"
        path = shutil.which(program, path=self._sources.environment.get("PATH", "")) if _HELPER.match(helper) else None
        if path is None:
            raise ConfigError(
                "credential-helper",
                f"{printable(file.path)} names the helper program {printable(program)}, which is not on PATH",
                "install it, or take it out of that file and log in again",
            )
        try:
            done = subprocess.run(
                [path, "get"],
                input=server.encode(),
                capture_output=True,
                timeout=self._helper_timeout_s,
                env=dict(self._sources.environment),
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise _helper_failed(program, server, f"no answer in {self._helper_timeout_s:g} s") from error
        except OSError as error:
            raise _helper_failed(program, server, str(error.strerror)) from error
        said = done.stdout.decode("utf-8", "replace").strip()
        if done.returncode:
            if _NOT_FOUND in said.lower():
                return None
            # What it says of a failure stands on stdout; a secret would stand in an object.
            why = said.partition("\n")[0][:_SHOWN] if said and not said.startswith("{") else "it does not say why"
            raise _helper_failed(program, server, why)
        try:
            answer = msgspec.json.decode(done.stdout, type=_Answer)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise _helper_failed(program, server, "its answer is none of the protocol") from None
        return _from_pair(answer.Username, answer.Secret)


class _Answer(msgspec.Struct):
    Username: str = ""
    Secret: str = ""


class _AuthFile:
    """A config.json or auth.json. Only the entries that are asked for have to be sound."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        try:
            document = msgspec.json.decode(data) if data.strip() else {}
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise self._invalid("is no JSON") from None
        if not isinstance(document, dict):
            raise self._invalid("is no JSON object")
        self._auths: dict[str, tuple[str, Any]] = {}
        auths = self._mapping(document, "auths")
        for key in sorted(
            auths, key=lambda key: key == _plain(key)
        ):  # what is spelt as it should be comes last, and counts
            if auths[key]:  # docker leaves an empty one where a helper has the rest
                self._auths[_plain(key)] = key, auths[key]
        self._helpers = {_plain(key): name for key, name in self._mapping(document, "credHelpers").items()}
        store = document.get("credsStore") or ""
        if not isinstance(store, str):
            raise self._invalid("has a credsStore that is no text")
        self.store = store

    def helper(self, key: str) -> str:
        """Name the helper program for a key; empty if it has none of its own."""
        name = self._helpers.get(key, "")
        if not isinstance(name, str):
            raise self._invalid(f"has something else than a name as credHelpers[{key!r}]")
        return name

    def entry(self, key: str) -> Credentials | None:
        """Read what stands in the file itself; raises ConfigError, which shows the key and nothing of the entry."""
        written, entry = self._auths.get(key, ("", None))
        if entry is None:
            return None
        fields = {}
        for name in ("auth", "username", "password", "identitytoken", "registrytoken"):
            value = entry.get(name) if isinstance(entry, dict) else 0
            if not isinstance(value, str | None):
                raise self._invalid(f"has something else than text in auths[{written!r}]")
            fields[name] = value or ""
        username, password = fields["username"], fields["password"]
        if fields["auth"]:
            try:
                pair = base64.b64decode(fields["auth"].strip(), validate=True).decode()
            except (binascii.Error, ValueError):  # which hold what they are about, and so are not kept
                raise self._invalid(f"has no base64 of a name and a password in auths[{written!r}]") from None
            username, colon, password = pair.partition(":")
            if not colon:
                raise self._invalid(f"has no base64 of a name and a password in auths[{written!r}]")
            password = password.strip("\0")  # docker pads it
        found = _from_pair(username, password) or Credentials()
        found = Credentials(
            found.username,
            found.password,
            fields["identitytoken"] or found.identity_token,
            fields["registrytoken"],
        )
        return found if found != Credentials() else None

    def _mapping(self, document: dict[str, Any], name: str) -> dict[str, Any]:
        found = document.get(name) or {}
        if not isinstance(found, dict):
            raise self._invalid(f"has something else than an object as {name}")
        return found

    def _invalid(self, what: str) -> ConfigError:
        return ConfigError(
            "credentials-file", f"{printable(self.path)} {printable(what)}", "correct it, or log in again"
        )


def _keys(name: RepositoryName) -> Iterator[str]:
    """`host/team/app`, `host/team`, `host`."""
    key = str(name)
    while key != name.registry:
        yield key
        key = key.rpartition("/")[0]
    yield key


def _plain(key: str) -> str:
    """Bring a key to `registry[/path]`: docker writes URLs for some, with the API's version behind them."""
    text = re.sub(r"\A[a-z]+://", "", key).rstrip("/")
    host, slash, path = text.partition("/")
    if path in ("v1", "v2"):
        slash = path = ""
    return (DEFAULT_REGISTRY if host in _HUB_HOSTS else host) + slash + path


def _from_pair(username: str, password: str) -> Credentials | None:
    if username == _TOKEN_USER:
        return Credentials(identity_token=password) if password else None
    return Credentials(username, password) if username or password else None


def _below(directory: str, name: str) -> str:
    return os.path.join(directory, name) if directory else ""


def _read(path: str) -> bytes | None:
    """Read a file of credentials; None if it is not there. Raises ConfigError."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(0, "it is no regular file")
            data = file.read(_MAX_FILE_BYTES + 1)
            if len(data) > _MAX_FILE_BYTES:
                raise OSError(0, f"it has over {_MAX_FILE_BYTES} bytes")
            return data
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            "credentials-file", f"{printable(path)}: {error.strerror}", "correct it, or set DOCKER_CONFIG"
        ) from error


def _helper_failed(program: str, server: str, why: str) -> ConfigError:
    return ConfigError(
        "credential-helper", f"{program} failed for {printable(server)}: {printable(why)}", "run it by hand, or log in"
    )
