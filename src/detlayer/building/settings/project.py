"""Load a project: one file, the file that it extends, and the files of its members."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import msgspec

from detlayer.building.settings.image import LAYOUT_PREFIX, ImageSettings, beside, read_settings
from detlayer.building.settings.layer import LayerSettings, read_layer
from detlayer.building.settings.location import Location, add_line
from detlayer.building.settings.parsing import FILE_NAME, PYPROJECT, Tables, image_with_defaults, read_tables
from detlayer.building.settings.substitution import nearest
from detlayer.errors import ConfigError, printable


class Files(Protocol):
    """Access to the files of a project, by paths as shown to users."""

    def read(self, path: str) -> bytes | None:
        """Read a file; None if it does not exist. Raises ConfigError."""

    def members(self, directory: str, pattern: str) -> list[str]:
        """List the directories that match a pattern, in order, as paths for `read`."""

    def same(self, path: str) -> str:
        """Return a path that is equal for all names of one file."""


class Project(msgspec.Struct, frozen=True):
    """All images by name, in the order of their files. `file` is the loaded file."""

    file: str
    images: Mapping[str, ImageSettings]

    def choose(self, names: tuple[str, ...]) -> tuple[ImageSettings, ...]:
        """Select images by name, by default all; raises ConfigError."""
        for name in names:
            if name not in self.images:
                raise ConfigError(
                    "image-unknown",
                    f"{printable(self.file)} has no image {printable(name)!r}",
                    nearest(name, self.images) or f"known images: {', '.join(self.images) or 'none'}",
                )
        return tuple(self.images[name] for name in dict.fromkeys(names) or self.images)


def load(path: str, files: Files, *, environment: Mapping[str, str], epoch: str | None = None) -> Project:
    """Read a file and the files of its members; raises ConfigError.

    `environment` provides the variables that a file allows. `epoch` is SOURCE_DATE_EPOCH.
    """
    reader = _Reader(files, environment, epoch)
    try:
        reader.read(path, ())
    except ConfigError as error:
        add_line(error, files.read)
        raise
    if not reader.images:
        raise ConfigError(
            "no-images",
            f"{printable(path)} has no images",
            "add [images.NAME], or run `detlayer init`",
            file=path,
        )
    return Project(path, reader.images)


class _Reader:
    def __init__(self, files: Files, environment: Mapping[str, str], epoch: str | None) -> None:
        self._files = files
        self._environment = environment
        self._epoch = epoch
        self._done: set[str] = set()
        self.images: dict[str, ImageSettings] = {}

    def read(self, path: str, above: tuple[tuple[str, str], ...]) -> None:
        above = self._enter(path, above, "members")
        if above[-1][0] in self._done:
            return
        self._done.add(above[-1][0])
        tables = self._tables(path)
        defaults, layers = self._inherited(tables, above[-1:])
        prefix = _prefix(path)
        for name, raw in tables.raw.get("images", {}).items():
            location = Location(path, f"{prefix}images.{name}")
            table = image_with_defaults(defaults, _placed(raw, _directory(path)), path, location.key)
            image = read_settings(name, table, layers, location, epoch=self._epoch)
            if name in self.images:
                raise ConfigError(
                    "image-twice",
                    f"both {printable(self.images[name].location.file)} and {printable(path)} have an image {name}",
                    "give each image its own name",
                    file=path,
                    key=location.key,
                )
            self.images[name] = image
        for member in self._members(path, tables):
            self.read(member, above)

    def _members(self, path: str, tables: Tables) -> Iterator[str]:
        for pattern in tables.file.members:
            directories = self._files.members(_directory(path), pattern)
            found = [file for one in directories if (file := self._file_in(one)) is not None]
            if not found:
                raise Location(path, f"{_prefix(path)}members").error(
                    "member-missing",
                    f"no {FILE_NAME} in {printable(pattern)!r}",
                    f"a member is a directory with a {FILE_NAME}, or a {PYPROJECT} with [tool.detlayer]",
                )
            yield from found

    def _file_in(self, directory: str) -> str | None:
        own = beside(directory, FILE_NAME)
        if self._files.read(own) is not None:
            return own
        project = beside(directory, PYPROJECT)
        data = self._files.read(project)
        return project if data is not None and read_tables(data, project, self._environment) is not None else None

    def _inherited(
        self, tables: Tables, above: tuple[tuple[str, str], ...]
    ) -> tuple[dict[str, Any], dict[str, LayerSettings]]:
        """Merge defaults and layers of a file with those it extends. Paths stay relative to their file."""
        path, file = tables.name, tables.file
        directory = _directory(path)
        defaults: dict[str, Any] = {}
        layers: dict[str, LayerSettings] = {}
        if file.extends:
            other = beside(directory, file.extends)
            below = self._enter(other, above, "extends")
            defaults, layers = self._inherited(self._tables(other), below)
        own = _placed(tables.raw.get("defaults", {}), directory)
        compression = own.get("compression", defaults.get("compression", "gzip"))
        for name, layer in file.layers.items():
            location = Location(path, f"{_prefix(path)}layers.{printable(name)}")
            layers[name] = read_layer(layer.name or name, layer, location, directory, compression, self._epoch)
        for table in ("env", "labels", "annotations"):
            if table in own and table in defaults:
                own[table] = {**defaults[table], **own[table]}
        return {**defaults, **own}, layers

    def _tables(self, path: str) -> Tables:
        data = self._files.read(path)
        if data is None:
            raise ConfigError("config-missing", f"{printable(path)} not found", "run `detlayer init`", file=path)
        tables = read_tables(data, path, self._environment)
        if tables is None:
            raise ConfigError(
                "config-missing",
                f"{printable(path)} has no table tool.detlayer",
                "add it, or pass another file",
                file=path,
            )
        return tables

    def _enter(self, path: str, above: tuple[tuple[str, str], ...], key: str) -> tuple[tuple[str, str], ...]:
        same = self._files.same(path)
        if same in (one for one, _ in above):
            way = [printable(shown) for _, shown in above]
            raise ConfigError(
                "config-cycle",
                f"{key}: {' → '.join([*way, printable(path)])} is a cycle",
                "remove one of them",
                file=above[-1][1],
                key=key,
            )
        return (*above, (same, path))


def _placed(image: Mapping[str, Any], directory: str) -> dict[str, Any]:
    """Make the paths in an image's table relative to the working directory, since defaults apply to other directories.

    Invalid values are left unchanged and reported when they are parsed.
    """
    made = dict(image)
    base, layers = image.get("base"), image.get("layers")
    if isinstance(base, str) and base.startswith(LAYOUT_PREFIX):
        made["base"] = LAYOUT_PREFIX + beside(directory, base.removeprefix(LAYOUT_PREFIX))
    if isinstance(layers, list):
        made["layers"] = [_placed_layer(one, directory) if isinstance(one, dict) else one for one in layers]
    return made


def _placed_layer(layer: dict[str, Any], directory: str) -> dict[str, Any]:
    made = dict(layer)
    for key in ("sources", "ignore-files"):
        paths = layer.get(key)
        if isinstance(paths, list):
            made[key] = [beside(directory, one) if isinstance(one, str) else one for one in paths]
    return made


def _directory(path: str) -> str:
    return path.rpartition("/")[0] if not path.startswith("/") or path.count("/") > 1 else "/"


def _prefix(path: str) -> str:
    return "tool.detlayer." if path.rpartition("/")[2] == PYPROJECT else ""
