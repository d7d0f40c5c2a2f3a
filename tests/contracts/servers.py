"""Real registries (docker-registry 2.8), each behind a recording proxy, with a common interface with the strict one."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from tests.contracts.certificates import ca_path, server_context, server_files
from tests.contracts.faults import Fault
from tests.contracts.http_records import Request, Violation
from tests.contracts.http_server import WireServer
from tests.contracts.proxy import Proxy
from tests.contracts.storage import sha256
from tests.contracts.tokens import ALICE, ISSUER, SERVICE, Account, TokenService, signing_key
from tests.privileges import program

Kind = Literal["open", "htpasswd", "token", "tls"]


class Server(Protocol):
    """A registry for tests, strict or real.

    `address` is the prefix of references; `account` may push (None: anyone); `ca_file` is set with TLS. `requests` are
    the registry's, `token_requests` those of its token service. `secrets` must not leak. The storage is read and
    changed without HTTP.
    """

    account: Account | None
    ca_file: Path | None
    tokens: TokenService | None

    @property
    def address(self) -> str: ...

    @property
    def requests(self) -> list[Request]: ...

    @property
    def token_requests(self) -> list[Request]: ...

    @property
    def violations(self) -> list[Violation]: ...

    @property
    def secrets(self) -> set[str]: ...

    def clear(self) -> None:
        """Clear requests and violations. The storage and armed faults are kept."""

    def arm(self, *faults: Fault) -> None:
        """Arm faults."""

    def revive(self) -> None:
        """Disarm all faults, and serve again after a Kill."""

    def repositories(self) -> list[str]: ...

    def tags(self, name: str) -> dict[str, str]:
        """Return the digests of a repository's tags."""

    def blob(self, name: str, digest: str) -> bytes | None:
        """Return a blob's bytes; None if the repository lacks it."""

    def manifest(self, name: str, digest: str) -> tuple[str, bytes] | None:
        """Return media type and bytes of a manifest; None if the repository lacks it."""

    def put_blob(self, name: str, data: bytes) -> str: ...

    def put_manifest(self, name: str, data: bytes, media_type: str, tag: str = "") -> str: ...

    def lose(self, name: str, digest: str) -> None:
        """Delete a blob or a manifest, as garbage collection does."""

    def end_uploads(self) -> None:
        """Drop all open upload sessions."""


class RealRegistry:
    """A docker-registry in its own process. `port` is its own; `address` is the proxy's."""

    def __init__(self, kind: Kind, directory: Path) -> None:
        self.kind = kind
        self.account: Account | None = ALICE if kind in ("htpasswd", "token") else None
        self.ca_file: Path | None = ca_path() if kind == "tls" else None
        self.tokens: TokenService | None = TokenService() if kind == "token" else None
        self._directory = directory
        self._root = directory / "storage" / "docker" / "registry" / "v2"
        self.log = ""
        config = directory / "config.yml"
        config.write_text(json.dumps(self._config()))
        environment = {"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"}
        self._process = subprocess.Popen(
            [program("docker-registry"), "serve", config], stderr=subprocess.PIPE, env=environment, text=True
        )
        self.port = self._wait()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        context = server_context() if kind == "tls" else None
        self.server = WireServer(Proxy(self.port, tls=kind == "tls"), tls=context)

    @property
    def address(self) -> str:
        return self.server.address

    @property
    def direct_address(self) -> str:
        """The address of the registry without the proxy, for measurements."""
        return f"127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[Request]:
        return self.server.requests

    @property
    def token_requests(self) -> list[Request]:
        return self.tokens.server.requests if self.tokens else []

    @property
    def violations(self) -> list[Violation]:
        return [*self.server.violations, *(self.tokens.server.violations if self.tokens else ())]

    @property
    def secrets(self) -> set[str]:
        if self.account is None:
            return set()
        login = f"{self.account.username}:{self.account.password}".encode()
        tokens = self.tokens.secrets if self.tokens else set[str]()
        return {self.account.password, base64.b64encode(login).decode()} | tokens

    def clear(self) -> None:
        self.server.clear()
        if self.tokens:
            self.tokens.clear()

    def arm(self, *faults: Fault) -> None:
        self.server.arm(*faults)

    def revive(self) -> None:
        self.server.revive()

    def reset(self) -> None:
        """Reset storage, records and faults. The registry has no cache that would become stale."""
        self.revive()
        self.clear()
        shutil.rmtree(self._root, ignore_errors=True)

    def repositories(self) -> list[str]:
        top = self._root / "repositories"
        # Not by glob: the registry removes upload directories meanwhile, which os.walk skips.
        found = {Path(above) for above, names, _ in os.walk(top) if {"_layers", "_manifests"} & set(names)}
        return sorted(str(path.relative_to(top)) for path in found)

    def tags(self, name: str) -> dict[str, str]:
        links = self._repository(name).glob("_manifests/tags/*/current/link")
        return {path.parent.parent.name: path.read_text() for path in links}

    def blob(self, name: str, digest: str) -> bytes | None:
        return self._data(digest) if self._layer_link(name, digest).exists() else None

    def manifest(self, name: str, digest: str) -> tuple[str, bytes] | None:
        data = self._data(digest) if self._revision_link(name, digest).exists() else None
        return None if data is None else (str(json.loads(data).get("mediaType", "")), data)

    def put_blob(self, name: str, data: bytes) -> str:
        digest = self._put_data(data)
        _write(self._layer_link(name, digest), digest.encode())
        return digest

    def put_manifest(self, name: str, data: bytes, media_type: str, tag: str = "") -> str:
        digest = self._put_data(data)
        _write(self._revision_link(name, digest), digest.encode())
        if tag:
            at = self._repository(name) / "_manifests" / "tags" / tag
            _write(at / "current" / "link", digest.encode())
            _write(at / "index" / "sha256" / digest.removeprefix("sha256:") / "link", digest.encode())
        return digest

    def lose(self, name: str, digest: str) -> None:
        for link in (self._layer_link(name, digest), self._revision_link(name, digest)):
            link.unlink(missing_ok=True)
        for tag, target in self.tags(name).items():
            if target == digest:
                shutil.rmtree(self._repository(name) / "_manifests" / "tags" / tag)

    def lose_data(self, digest: str) -> None:
        """Remove a blob's file, but keep all links to it."""
        self._data_path(digest).unlink()

    def end_uploads(self) -> None:
        for path in (self._root / "repositories").glob("**/_uploads"):
            shutil.rmtree(path)

    def collect_garbage(self) -> None:
        """Run docker-registry's own garbage collection."""
        command = [program("docker-registry"), "garbage-collect", str(self._directory / "config.yml")]
        subprocess.run(command, check=True, capture_output=True)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._reader.join()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self.server.close()
        if self.tokens:
            self.tokens.server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _config(self) -> dict[str, object]:
        http: dict[str, object] = {"addr": "127.0.0.1:0", "secret": "shared by nobody"}
        auth: dict[str, object] = {}
        if self.kind == "tls":
            key, certificate = server_files()
            http["tls"] = {"certificate": str(certificate), "key": str(key)}
        elif self.kind == "htpasswd":
            path = self._directory / "htpasswd"
            command = [program("htpasswd"), "-Bbn", ALICE.username, ALICE.password]
            path.write_bytes(subprocess.run(command, check=True, capture_output=True).stdout)
            auth = {"htpasswd": {"realm": "detlayer tests", "path": str(path)}}
        elif self.tokens:
            path = self._directory / "tokens.crt"
            path.write_text(signing_key()[1])
            named = {"realm": self.tokens.realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": str(path)}
            auth = {"token": named}
        return {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self._directory / "storage")},
                "delete": {"enabled": True},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http,
            "auth": auth,
        }

    def _wait(self) -> int:
        """Wait for the log line with the port that it listens on."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log += line
            _, found, rest = line.partition("listening on 127.0.0.1:")
            if found:
                return int("".join(letter for letter in rest[:5] if letter.isdecimal()))
        raise AssertionError(f"docker-registry did not start:\n{self.log}")

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log += line

    # -- docker-registry's storage: registry/storage/paths.go

    def _repository(self, name: str) -> Path:
        return self._root / "repositories" / name

    def _layer_link(self, name: str, digest: str) -> Path:
        return self._repository(name) / "_layers" / "sha256" / digest.removeprefix("sha256:") / "link"

    def _revision_link(self, name: str, digest: str) -> Path:
        at = self._repository(name) / "_manifests" / "revisions" / "sha256"
        return at / digest.removeprefix("sha256:") / "link"

    def _data_path(self, digest: str) -> Path:
        hex_ = digest.removeprefix("sha256:")
        return self._root / "blobs" / "sha256" / hex_[:2] / hex_ / "data"

    def _data(self, digest: str) -> bytes | None:
        path = self._data_path(digest)
        return path.read_bytes() if path.exists() else None

    def _put_data(self, data: bytes) -> str:
        digest = sha256(data)
        _write(self._data_path(digest), data)
        return digest


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
