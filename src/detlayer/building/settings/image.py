"""What a build goes by: images and layers, each value read and checked. Placeholders wait for a platform."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from detlayer.building.settings.layer import LayerSettings, at, read_layer
from detlayer.building.settings.substitution import fill, nearest
from detlayer.building.settings.tables import EnvTable, HealthTable, ImageTable, LayerTable
from detlayer.errors import ConfigError, printable
from detlayer.layer.entry import MAX_MTIME
from detlayer.oci.assembly import DEFAULT_CREATED
from detlayer.oci.media_types import Format
from detlayer.oci.platforms import parse_platform
from detlayer.oci.references import Reference, RepositoryName, is_tag, parse_reference, parse_repository
from detlayer.oci.runtime import EnvChange, HealthCheck, Runtime
from detlayer.oci.types import Platform

SCRATCH = "scratch"
LAYOUT_PREFIX = "oci:"

_IMAGE_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*\Z")
_PORT = re.compile(r"([0-9]{1,5})(?:/(?:tcp|udp|sctp))?\Z")
_VARIABLE = re.compile(r"[^=\0]+\Z")
_SIGNAL = re.compile(r"(?:SIG)?[A-Z][A-Z0-9+-]*\Z|[0-9]{1,3}\Z")
_Value = TypeVar("_Value")


class ImageSettings(msgspec.Struct, frozen=True):
    """An image to build. `file` is where it stands, for messages; `base` None is scratch, a text is a layout."""

    name: str
    file: str
    directory: str
    base: Reference | str | None
    platforms: tuple[Platform, ...]
    repositories: tuple[RepositoryName, ...]
    tags: tuple[str, ...]
    layers: tuple[LayerSettings, ...]
    runtime: Runtime
    annotations: Mapping[str, str]
    format: Format = "oci"
    created: int = DEFAULT_CREATED
    git: bool = False

    @property
    def references(self) -> tuple[Reference, ...]:
        """Every destination: each repository with each tag."""
        return tuple(Reference(name, tag) for name in self.repositories for tag in self.tags)


def beside(directory: str, path: str) -> str:
    """Say where a path is that was written relative to a file in `directory`."""
    return path if path.startswith("/") or directory in ("", ".") else f"{directory}/{path}"


def read_settings(
    name: str,
    table: ImageTable,
    shared: Mapping[str, LayerSettings],
    *,
    file: str,
    key: str,
    epoch: str | None,
) -> ImageSettings:
    """Check the table of an image, whose paths are as they are seen from here; raises ConfigError with file and key.

    `shared` are the layers that it may name. `epoch` is SOURCE_DATE_EPOCH.
    """
    where = f"{printable(file)}: {key}" if key else printable(file)
    if not _IMAGE_NAME.match(name):
        raise ConfigError(
            "image-name",
            f"{printable(file)}: {printable(name)!r} is no name for an image",
            "use lower-case letters, digits, and single '.', '_' or '-' between them",
        )
    own = [one for one in table.layers if isinstance(one, LayerTable)]
    named = [one for one in table.layers if isinstance(one, str)]
    for one in named:
        if one not in shared:
            raise ConfigError(
                "layer-unknown",
                f"{where}.layers: there is no layer {printable(one)!r} in [layers]",
                nearest(one, shared) or "define it: [layers.NAME]",
            )
    layers: list[LayerSettings] = []
    for index, item in enumerate(table.layers):
        if isinstance(item, str):
            layers.append(shared[item])
        else:
            label = item.name or (f"layer-{index + 1}" if len(own) + len(named) > 1 else "layer")
            layers.append(
                read_layer(label, item, f"{where}.layers[{index}]", "", table.compression, epoch),
            )
    seen = [one.name for one in layers]
    for one in seen:
        if seen.count(one) > 1:
            raise ConfigError(
                "layer-twice", f"{where}.layers: two layers are called {printable(one)}", "give each a name of its own"
            )
    platforms = tuple(_each(f"{where}.platforms", table.platforms, parse_platform))
    if not platforms or len(set(platforms)) < len(platforms):
        raise ConfigError(
            "platform-invalid", f"{where}.platforms: {'one twice' if platforms else 'none'}", "name each platform once"
        )
    values = {"image": name}
    tags = tuple(fill(one, f"{where}.tags", values) for one in table.tags)
    for tag in tags:
        if not is_tag(tag):
            raise ConfigError(
                "tag-invalid",
                f"{where}.tags: {printable(tag)!r} is no tag",
                "a tag has up to 128 letters, digits, '.', '_' and '-', and starts with none of . and -",
            )
    repositories = [fill(one, f"{where}.repositories", values) for one in table.repositories]
    if table.format == "docker":
        _check_docker(table, layers, where)
    elif table.healthcheck is not UNSET:
        raise ConfigError(
            "format-healthcheck",
            f"{where}.healthcheck: images of the OCI format have none",
            'use format = "docker", or leave it to who runs the image',
        )
    return ImageSettings(
        name,
        file,
        file.rpartition("/")[0],
        _base(table.base, where),
        platforms,
        tuple(dict.fromkeys(_each(f"{where}.repositories", repositories, _repository))),
        tuple(dict.fromkeys(tags)),
        tuple(layers),
        _runtime(table, where),
        dict(table.annotations),
        table.format,
        _created(table.created, epoch, where),
        table.git,
    )


def _each(where: str, texts: tuple[str, ...] | list[str], read: Callable[[str], _Value]) -> Iterator[_Value]:
    for text in texts:
        with at(where):
            yield read(text)


def _repository(text: str) -> RepositoryName:
    reference = parse_reference(text)
    if reference.digest is not None or text.endswith(f":{reference.tag}"):
        raise ConfigError("repository-tag", f"{printable(text)} has a tag or digest", "write tags in `tags`")
    return parse_repository(text)


def _base(text: str, where: str) -> Reference | str | None:
    if text == SCRATCH:
        return None
    if text.startswith(LAYOUT_PREFIX):
        return text
    with at(f"{where}.base"):
        return parse_reference(text)


def _created(value: int | UnsetType, epoch: str | None, where: str) -> int:
    text = str(value) if isinstance(value, int) else epoch
    if text is None:
        return DEFAULT_CREATED
    if re.fullmatch(r"[0-9]{1,11}", text) is None or int(text) > MAX_MTIME:
        raise ConfigError(
            "created-invalid",
            f"{where}.created: {printable(text)!r} is no time"
            + ("" if isinstance(value, int) else " (SOURCE_DATE_EPOCH)"),
            f"give whole seconds since 1970, 0 to {MAX_MTIME}",
        )
    return int(text)


def _check_docker(table: ImageTable, layers: list[LayerSettings], where: str) -> None:
    if table.annotations:
        raise ConfigError(
            "format-annotations",
            f"{where}.annotations: images of Docker's format have none",
            'use labels, or format = "oci"',
        )
    for layer in layers:
        if layer.codec.family == "zstd":
            raise ConfigError(
                "format-compression",
                f"{where}: layer {layer.name} is of {layer.codec.name}, which Docker's format has no name for",
                'use format = "oci", or compress with gzip',
            )


def _runtime(table: ImageTable, where: str) -> Runtime:
    for path in (table.workdir, *table.volumes):
        if isinstance(path, str) and not path.startswith("/"):
            raise ConfigError("path-relative", f"{where}: {printable(path)!r} is no absolute path", "begin it with /")
    ports = tuple(f"{one}" if "/" in str(one) else f"{one}/tcp" for one in table.ports)
    for port in ports:
        match = _PORT.match(port)
        if match is None or not 0 < int(match[1]) < 65536:
            raise ConfigError("port-invalid", f"{where}.ports: {printable(port)!r} is no port", "write 8080, or 53/udp")
    for name in (*table.env, *table.labels):
        if not _VARIABLE.match(name):
            raise ConfigError("env-invalid", f"{where}: {printable(name)!r} is no name", "leave out '=' and NUL")
    if isinstance(table.stop_signal, str) and not _SIGNAL.match(table.stop_signal):
        raise ConfigError(
            "signal-invalid", f"{where}.stop-signal: {printable(table.stop_signal)!r} is no signal", "write SIGTERM"
        )
    return Runtime(
        entrypoint=tuple(table.entrypoint) if isinstance(table.entrypoint, list) else None,
        cmd=tuple(table.cmd) if isinstance(table.cmd, list) else None,
        env=tuple(_env(name, value) for name, value in table.env.items()),
        user=str(table.user) if table.user is not UNSET else None,
        workdir=table.workdir if isinstance(table.workdir, str) else None,
        ports=ports,
        volumes=tuple(table.volumes),
        labels=dict(table.labels),
        stop_signal=table.stop_signal if isinstance(table.stop_signal, str) else None,
        healthcheck=_health(table.healthcheck) if isinstance(table.healthcheck, HealthTable) else None,
    )


def _env(name: str, value: str | EnvTable) -> EnvChange:
    if isinstance(value, str):
        return EnvChange(name, value)
    return EnvChange(name, None, value.prepend, value.append, value.separator)


def _health(table: HealthTable) -> HealthCheck:
    command = table.command
    if isinstance(command, str):
        test: tuple[str, ...] = ("CMD-SHELL", command)
    else:
        test = ("CMD", *command) if command else ("NONE",)
    return HealthCheck(test, table.interval, table.timeout, table.start_period, table.retries)
