"""The checked settings of images. Placeholders are filled in later, for each platform."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from detlayer.building.settings.layer import LayerSettings, read_layer
from detlayer.building.settings.location import Location
from detlayer.building.settings.substitution import fill, nearest
from detlayer.building.settings.toml_tables import EnvTable, HealthTable, ImageTable
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
    """An image to build. `location` is that of its table; `base` is None for scratch and a string for a layout."""

    name: str
    location: Location
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
    """Resolve a path that is relative to a file in `directory`."""
    return path if path.startswith("/") or directory in ("", ".") else f"{directory}/{path}"


def read_settings(
    name: str, table: ImageTable, shared: Mapping[str, LayerSettings], location: Location, *, epoch: str | None
) -> ImageSettings:
    """Check the table of an image, whose paths are relative to the working directory; raises ConfigError.

    `shared` are the layers that it can refer to. `epoch` is SOURCE_DATE_EPOCH.
    """
    file = location.file
    if not _IMAGE_NAME.match(name):
        raise ConfigError(
            "image-name",
            f"{printable(file)}: invalid image name {printable(name)!r}",
            "use lower-case letters, digits, and single '.', '_' or '-' between them",
            file=file,
            key=location.key or None,
        )
    layers = _layers(table, shared, location, epoch)
    if table.format == "docker":
        _check_docker(table, layers, location)
    elif table.healthcheck is not UNSET:
        raise (location / "healthcheck").error(
            "format-healthcheck",
            "the OCI format has no healthcheck",
            'use format = "docker", or set it when you run the image',
        )
    values = {"image": name}
    return ImageSettings(
        name,
        location,
        file.rpartition("/")[0],
        _base(table.base, location),
        _platforms(table, location),
        _repositories(table, location, values),
        _tags(table, location, values),
        layers,
        _runtime(table, location),
        dict(table.annotations),
        table.format,
        _created(table.created, epoch, location),
        table.git,
    )


def _layers(
    table: ImageTable, shared: Mapping[str, LayerSettings], location: Location, epoch: str | None
) -> tuple[LayerSettings, ...]:
    location /= "layers"
    for one in table.layers:
        if isinstance(one, str) and one not in shared:
            raise location.error(
                "layer-unknown",
                f"layer {printable(one)!r} not found in [layers]",
                nearest(one, shared) or "define it: [layers.NAME]",
            )
    layers: list[LayerSettings] = []
    for index, item in enumerate(table.layers):
        if isinstance(item, str):
            layers.append(shared[item])
        else:
            name = item.name or (f"layer-{index + 1}" if len(table.layers) > 1 else "layer")
            layers.append(read_layer(name, item, location.item(index), "", table.compression, epoch))
    names = [one.name for one in layers]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise location.error(
                "layer-twice", f"duplicate layer name {printable(name)}", "give each layer its own name"
            )
    return tuple(layers)


def _platforms(table: ImageTable, location: Location) -> tuple[Platform, ...]:
    location /= "platforms"
    platforms = tuple(_each(location, table.platforms, parse_platform))
    if not platforms or len(set(platforms)) < len(platforms):
        raise location.error("platform-invalid", "duplicate" if platforms else "empty", "list each platform once")
    return platforms


def _tags(table: ImageTable, location: Location, values: Mapping[str, str]) -> tuple[str, ...]:
    location /= "tags"
    tags = tuple(dict.fromkeys(_each(location, table.tags, lambda text: fill(text, values))))
    for tag in tags:
        if not is_tag(tag):
            raise location.error(
                "tag-invalid",
                f"invalid tag {printable(tag)!r}",
                "use up to 128 letters, digits, '.', '_' and '-', and do not start with '.' or '-'",
            )
    return tags


def _each(location: Location, texts: Iterable[str], read: Callable[[str], _Value]) -> Iterator[_Value]:
    for text in texts:
        with location.located():
            value = read(text)
        yield value


def _repositories(table: ImageTable, location: Location, values: Mapping[str, str]) -> tuple[RepositoryName, ...]:
    def read(text: str) -> RepositoryName:
        text = fill(text, values)
        reference = parse_reference(text)
        if reference.digest is not None or text.endswith(f":{reference.tag}"):
            raise ConfigError("repository-tag", f"{printable(text)} has a tag or digest", "set tags in `tags`")
        return parse_repository(text)

    return tuple(dict.fromkeys(_each(location / "repositories", table.repositories, read)))


def _base(text: str, location: Location) -> Reference | str | None:
    if text == SCRATCH:
        return None
    if text.startswith(LAYOUT_PREFIX):
        return text
    with (location / "base").located():
        return parse_reference(text)


def _created(value: int | UnsetType, epoch: str | None, location: Location) -> int:
    text = str(value) if isinstance(value, int) else epoch
    if text is None:
        return DEFAULT_CREATED
    if re.fullmatch(r"[0-9]{1,11}", text) is None or int(text) > MAX_MTIME:
        raise (location / "created").error(
            "created-invalid",
            f"invalid time {printable(text)!r}" + ("" if isinstance(value, int) else " (SOURCE_DATE_EPOCH)"),
            f"use whole seconds since 1970, 0 to {MAX_MTIME}",
        )
    return int(text)


def _check_docker(table: ImageTable, layers: Iterable[LayerSettings], location: Location) -> None:
    if table.annotations:
        raise (location / "annotations").error(
            "format-annotations",
            "the Docker format has no annotations",
            'use labels, or format = "oci"',
        )
    for layer in layers:
        if layer.codec.family == "zstd":
            raise location.error(
                "format-compression",
                f"layer {layer.name} uses {layer.codec.name}, which the Docker format does not support",
                'use format = "oci", or compress with gzip',
            )


def _runtime(table: ImageTable, location: Location) -> Runtime:
    for path in (table.workdir, *table.volumes):
        if isinstance(path, str) and not path.startswith("/"):
            raise location.error("path-relative", f"{printable(path)!r} is not an absolute path", "start it with /")
    ports = tuple(f"{one}" if "/" in str(one) else f"{one}/tcp" for one in table.ports)
    for port in ports:
        match = _PORT.match(port)
        if match is None or not 0 < int(match[1]) < 65536:
            raise (location / "ports").error("port-invalid", f"invalid port {printable(port)!r}", "use 8080 or 53/udp")
    for name in (*table.env, *table.labels):
        if not _VARIABLE.match(name):
            raise location.error("env-invalid", f"invalid name {printable(name)!r}", "remove '=' and NUL")
    if isinstance(table.stop_signal, str) and not _SIGNAL.match(table.stop_signal):
        raise (location / "stop-signal").error(
            "signal-invalid", f"invalid signal {printable(table.stop_signal)!r}", "use a name such as SIGTERM"
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
