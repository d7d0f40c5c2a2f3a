"""Container settings for an image's config, and how they merge with those of the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

_NS = 1_000_000_000


class EnvChange(msgspec.Struct, frozen=True):
    """A variable: its value, or a prefix and suffix to the base's value, joined by `separator`."""

    name: str
    value: str | None = None
    prepend: str = ""
    append: str = ""
    separator: str = ":"

    def of(self, base: str | None) -> str:
        """Return the value, given the base's value or None; empty parts are dropped."""
        if self.value is not None:
            return self.value
        return self.separator.join(part for part in (self.prepend, base or "", self.append) if part)


class HealthCheck(msgspec.Struct, frozen=True):
    """Docker's health check; only Docker's image format has it. Times are in seconds."""

    test: tuple[str, ...]
    interval_s: float = 0
    timeout_s: float = 0
    start_period_s: float = 0
    retries: int = 0

    def to_document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"Test": list(self.test)}
        for name, seconds in (
            ("Interval", self.interval_s),
            ("Timeout", self.timeout_s),
            ("StartPeriod", self.start_period_s),
        ):
            if seconds:
                document[name] = round(seconds * _NS)
        if self.retries:
            document["Retries"] = self.retries
        return document


class Runtime(msgspec.Struct, frozen=True):
    """Settings of a config. None and empty values keep those of the base."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[EnvChange, ...] = ()
    user: str | None = None
    workdir: str | None = None
    ports: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: Mapping[str, str] = {}
    stop_signal: str | None = None
    healthcheck: HealthCheck | None = None

    def apply(self, base: Mapping[str, Any]) -> dict[str, Any]:
        """Merge into the `config` of a base's config.

        A new entrypoint drops the base's command, which belongs to the old one, as in a Dockerfile.
        """
        config = {key: value for key, value in base.items() if key not in _OF_ANOTHER_BUILD}
        if self.entrypoint is not None:
            config["Entrypoint"] = list(self.entrypoint)
            config.pop("Cmd", None)
        if self.cmd is not None:
            config["Cmd"] = list(self.cmd)
        env = merge_env(_texts(config.get("Env")), self.env)
        if env:
            config["Env"] = env
        for name, text in (("User", self.user), ("WorkingDir", self.workdir), ("StopSignal", self.stop_signal)):
            if text is not None:
                config[name] = text
        for name, more in (("ExposedPorts", self.ports), ("Volumes", self.volumes)):
            if more:
                config[name] = {**_table(config.get(name)), **{one: {} for one in more}}
        if self.labels:
            config["Labels"] = {**_table(config.get("Labels")), **self.labels}
        if self.healthcheck is not None:
            config["Healthcheck"] = self.healthcheck.to_document()
        return {key: value for key, value in config.items() if value not in (None, "", [], {})}


# Docker runs ONBUILD triggers in the next build, which does not happen here, and they are not inherited; the others
# describe the container that the base was built in.
_OF_ANOTHER_BUILD = frozenset(("OnBuild", "Hostname", "Domainname", "Image"))


def merge_env(base: Sequence[str], changes: Iterable[EnvChange]) -> list[str]:
    """Override variables of the base in place, and append new ones in order."""
    values = dict(one.partition("=")[::2] for one in base)
    for change in changes:
        values[change.name] = change.of(values.get(change.name))
    return [f"{name}={value}" for name, value in values.items()]


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}
