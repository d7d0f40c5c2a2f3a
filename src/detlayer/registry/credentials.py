"""Credentials for registries from docker's and podman's files and their helper programs. Sends no requests.

Files are read once, on first use. Sources: docker's config.json (docker/cli, cli/config), containers-auth.json(5),
docker-credential-helpers' protocol.
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

_HUB_KEY = "https://index.docker.io/v1/"  # docker's key for Docker Hub, for historical reasons
_HUB_HOSTS = frozenset((DEFAULT_REGISTRY, "index.docker.io", host_of(DEFAULT_REGISTRY)))
_TOKEN_USER = "<token>"  # the user name that marks a helper's secret as an identity token
_NOT_FOUND = "credentials not found"
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_HELPER_TIMEOUT_S = 60.0
_MAX_FILE_BYTES = 4 << 20
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and password, or a token: `identity_token` to get others by, `registry_token` to send as is."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def principal(self) -> str:
        """A short name for this user, without secrets."""
        kind = "registry-token" if self.registry_token else "identity-token" if self.identity_token else "password"
        return blake3(f"{kind}\n{self.username}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class CredentialSources:
    """Where to look for credentials, in order: `given` ones, then files.

    `given` ones apply only to the registries in `given_for`, unless it is None. `required` is a file that must exist.
    `environment` is passed to helper programs, including PATH.
    """

    given: Credentials | None = None
    given_for: frozenset[str] | None = None
    required: str = ""
    files: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_environment(
    environment: Mapping[str, str], username: str = "", password: str = "", *, given_for: frozenset[str] | None = None
) -> CredentialSources:
    """Find the credential files as docker does, then as podman does, by the environment of a process."""
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
    """Finds credentials for repositories. Thread-safe."""

    def __init__(self, sources: CredentialSources, *, helper_timeout_s: float = _HELPER_TIMEOUT_S) -> None:
        self._sources = sources
        self._helper_timeout_s = helper_timeout_s
        self._files: dict[str, _AuthFile | None] = {}
        self._answers: dict[tuple[str, str], Credentials | None] = {}
        self._lock = threading.RLock()

    def find(self, name: RepositoryName) -> Credentials | None:
        """Return the most specific credentials for a repository; None if there are none.

        Raises ConfigError for an invalid file or a failing helper program.
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
                    f"{printable(path)} not found, which is set in REGISTRY_AUTH_FILE",
                    "log in again, or run `unset REGISTRY_AUTH_FILE`",
                )
            self._files[path] = _AuthFile(path, data) if data is not None else None
        return self._files[path]

    def _find_in(self, file: _AuthFile, name: RepositoryName) -> Credentials | None:
        """Look up the keys for a repository, most specific first, each with its helper or in the file itself."""
        for key in _keys(name):
            helper = file.helper(key)
            found = self._ask(file, helper, key) if helper else None
            if found is None and key == name.registry and file.store:
                try:
                    found = self._ask(file, file.store, key)
                except ConfigError:
                    # As with a config copied from another machine; its own entries may still work.
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
        """Run a helper program; None if it has no credentials. Raises ConfigError."""
        program = f"docker-credential-{helper}"
        path = shutil.which(program, path=self._sources.environment.get("PATH", "")) if _HELPER.match(helper) else None
        if path is None:
            raise ConfigError(
                "credential-helper",
                f"{printable(file.path)} needs the helper program {printable(program)}, which is not on PATH",
                "install it, or remove it from that file and run `docker login`",
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
            raise _helper_failed(program, server, f"timed out after {self._helper_timeout_s:g} s") from error
        except OSError as error:
            raise _helper_failed(program, server, str(error.strerror)) from error
        said = done.stdout.decode("utf-8", "replace").strip()
        if done.returncode:
            if _NOT_FOUND in said.lower():
                return None
            # Helpers print errors as plain text on stdout, and secrets as JSON, which must not be shown.
            why = said.partition("\n")[0][:_SHOWN] if said and not said.startswith("{") else "no error message"
            raise _helper_failed(program, server, why)
        try:
            answer = msgspec.json.decode(done.stdout, type=_Answer)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise _helper_failed(program, server, "invalid output") from None
        return _from_pair(answer.Username, answer.Secret)


class _Answer(msgspec.Struct):
    Username: str = ""
    Secret: str = ""


class _AuthFile:
    """A config.json or auth.json. Only the entries that are looked up must be valid."""

    def __init__(self, path: str, data: bytes) -> None:
        self.path = path
        try:
            document = msgspec.json.decode(data) if data.strip() else {}
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            raise self._invalid("is not valid JSON") from None
        if not isinstance(document, dict):
            raise self._invalid("is not a JSON object")
        self._auths: dict[str, tuple[str, Any]] = {}
        auths = self._mapping(document, "auths")
        for key in sorted(auths, key=lambda key: key == _plain(key)):  # the exactly spelt key is last and wins
            if auths[key]:  # docker leaves an empty entry if a helper has the secret
                self._auths[_plain(key)] = key, auths[key]
        self._helpers = {_plain(key): name for key, name in self._mapping(document, "credHelpers").items()}
        store = document.get("credsStore") or ""
        if not isinstance(store, str):
            raise self._invalid("has an invalid credsStore: expected a string")
        self.store = store

    def helper(self, key: str) -> str:
        """Return the helper program for a key; empty if it has none of its own."""
        name = self._helpers.get(key, "")
        if not isinstance(name, str):
            raise self._invalid(f"has an invalid credHelpers[{key!r}]: expected a string")
        return name

    def entry(self, key: str) -> Credentials | None:
        """Read an entry of the file itself; raises ConfigError, which shows the key but not the entry."""
        written, entry = self._auths.get(key, ("", None))
        if entry is None:
            return None
        fields = {}
        for name in ("auth", "username", "password", "identitytoken", "registrytoken"):
            value = entry.get(name) if isinstance(entry, dict) else 0
            if not isinstance(value, str | None):
                raise self._invalid(f"has an invalid auths[{written!r}]: expected strings")
            fields[name] = value or ""
        username, password = fields["username"], fields["password"]
        if fields["auth"]:
            try:
                pair = base64.b64decode(fields["auth"].strip(), validate=True).decode()
            except (binascii.Error, ValueError):  # these errors contain their input, so they are not chained
                raise self._invalid(f"has an invalid auths[{written!r}]: expected base64 of NAME:PASSWORD") from None
            username, colon, password = pair.partition(":")
            if not colon:
                raise self._invalid(f"has an invalid auths[{written!r}]: expected base64 of NAME:PASSWORD")
            password = password.strip("\0")  # docker pads it with NUL bytes
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
            raise self._invalid(f"has an invalid {name}: expected an object")
        return found

    def _invalid(self, what: str) -> ConfigError:
        return ConfigError(
            "credentials-file",
            f"{printable(self.path)} {printable(what)}",
            "correct it, or remove it and run `docker login`",
        )


def _keys(name: RepositoryName) -> Iterator[str]:
    """Yield `host/team/app`, `host/team`, `host`."""
    key = str(name)
    while key != name.registry:
        yield key
        key = key.rpartition("/")[0]
    yield key


def _plain(key: str) -> str:
    """Normalize a key to `registry[/path]`: docker writes some as URLs with the API version."""
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
    """Read a credentials file; None if it is not found. Raises ConfigError."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(0, "not a regular file")
            data = file.read(_MAX_FILE_BYTES + 1)
            if len(data) > _MAX_FILE_BYTES:
                raise OSError(0, f"over {_MAX_FILE_BYTES} bytes")
            return data
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(
            "credentials-file", f"{printable(path)}: {error.strerror}", "correct it, or set DOCKER_CONFIG"
        ) from error


def _helper_failed(program: str, server: str, why: str) -> ConfigError:
    return ConfigError(
        "credential-helper",
        f"{program} failed for {printable(server)}: {printable(why)}",
        f"run it by hand: echo {printable(server)} | {program} get",
    )
