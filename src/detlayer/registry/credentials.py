"""Credentials."""

from __future__ import annotations

from dataclasses import dataclass, field

from blake3 import blake3


@dataclass(frozen=True, slots=True)
class Credentials:
    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def principal(self) -> str:
        return blake3(self.username.encode()).hexdigest()[:16]
