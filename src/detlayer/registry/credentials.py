"""Credentials."""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3

from detlayer.names import RepositoryName


@dataclass(frozen=True, slots=True)
class Credentials:
    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def principal(self) -> str:
        return blake3(self.username.encode()).hexdigest()[:16]


class CredentialStore:
    def __init__(self, username: str, password: str) -> None:
        self._explicit = Credentials(username, password) if username or password else None

    def find(self, name: RepositoryName) -> Credentials | None:
        return self._explicit


def read_environment(environ: object, username: str, password: str) -> tuple[str, str]:
    return username, password
