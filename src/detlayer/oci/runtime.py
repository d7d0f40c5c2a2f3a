"""What a container of the image does: the settings that go into its config, and how they meet those of the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

_NS = 1_000_000_000


class EnvChange(msgspec.Struct, frozen=True):
    """A variable: its value, or what comes before and after the base's, with `separator` between."""

    name: str
    value: str | None = None
    prepend: str = ""
    append: str = ""
    separator: str = ":"

    def of(self, base: str | None) -> str:
        """Give the value where the base has `base`; None if it has none. What is empty is left out."""
        if self.value is not None:
            return self.value
        return self.separator.join(part for part in (self.prepend, base or "", self.append) if part)


class HealthCheck(msgspec.Struct, frozen=True):
    """How Docker learns that a container is well. Only images of Docker's format have it; times are in seconds."""

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
    """Settings of a config. None, and what is empty, leaves what the base has."""

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
        """Merge with the `config` of a base's config.

        An entrypoint of one's own drops the base's command, which was meant for another, as in a Dockerfile.
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


# Docker runs ONBUILD when the image is built upon, which is not done here, and no child inherits it; the others are of
# the container that the base was made in.
_OF_ANOTHER_BUILD = frozenset(("OnBuild", "Hostname", "Domainname", "Image"))


def merge_env(base: Sequence[str], changes: Iterable[EnvChange]) -> list[str]:
    """Change the variables of a base in place, and add new ones behind, in their order."""
    values = dict(one.partition("=")[::2] for one in base)
    for change in changes:
        values[change.name] = change.of(values.get(change.name))
    return [f"{name}={value}" for name, value in values.items()]


def _texts(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}
