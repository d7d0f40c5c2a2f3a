"""The checked settings of layers: every option of `detlayer pack`. Placeholders are filled in for each platform."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec.structs import replace

from detlayer.building.settings.location import Location
from detlayer.building.settings.substitution import fill, has_placeholder
from detlayer.building.settings.toml_tables import LayerTable
from detlayer.errors import ConfigError
from detlayer.layer.codec import DEFAULT_CODEC, Codec, parse_compression
from detlayer.layer.entry import Mtime, Owner, Profile, parse_mtime
from detlayer.oci.types import Platform
from detlayer.tree.patterns import parse_mode_rules, parse_owner, parse_owner_rules, parse_pattern

_USUAL_MTIME = Mtime()
_ROOT = Owner()


class LayerSettings(msgspec.Struct, frozen=True):
    """A layer to pack. Sources, destination and ignore files may have placeholders, and are relative to `directory`."""

    name: str
    directory: str
    sources: tuple[str, ...]
    destination: str = ""
    exclude: tuple[str, ...] = ()
    ignore_files: tuple[str, ...] = ()
    use_ignore_file: bool = True
    allow_parents: tuple[str, ...] = ()
    whiteouts: tuple[str, ...] = ()
    opaques: tuple[str, ...] = ()
    codec: Codec = DEFAULT_CODEC
    mtime: Mtime = _USUAL_MTIME
    owner: Owner | None = _ROOT
    mode: Literal["canonical", "source"] = "canonical"
    chmod: tuple[str, ...] = ()
    chown: tuple[str, ...] = ()
    hardlinks: Literal["separate", "preserve"] = "separate"
    xattrs: tuple[str, ...] = ()
    special: Literal["error", "skip"] = "error"
    retime_pyc: bool = True
    allow_empty: bool = False

    @property
    def is_common(self) -> bool:
        """Whether it is the same for all platforms."""
        return not any(map(has_placeholder, (*self.sources, self.destination, *self.ignore_files)))

    def on(self, platform: Platform) -> LayerSettings:
        """Fill in placeholders for a platform; raises ConfigError for an unknown one."""
        values = {
            "platform": str(platform),
            "os": platform.os,
            "arch": platform.architecture,
            "variant": platform.variant,
        }
        try:
            return replace(
                self,
                sources=tuple(fill(one, values) for one in self.sources),
                destination=fill(self.destination, values),
                ignore_files=tuple(fill(one, values) for one in self.ignore_files),
            )
        except ConfigError as error:
            raise ConfigError(error.code, f"layer {self.name}: {error.message}", error.hint) from error

    def profile(self) -> Profile:
        """Return the rules for the values of entries."""
        return Profile(
            mtime=self.mtime,
            owner=self.owner,
            mode=self.mode,
            xattrs=self.xattrs,
            mode_rule=parse_mode_rules(self.chmod),
            owner_rule=parse_owner_rules(self.chown),
        )


def read_layer(
    name: str, table: LayerTable, location: Location, directory: str, compression: str, epoch: str | None
) -> LayerSettings:
    """Check the table of a layer; raises ConfigError with file and key."""
    if not table.sources and not table.whiteouts and not table.opaques:
        raise location.error("layer-no-source", "the layer has no sources", 'add: sources = ["dist:/srv/app"]')
    with (location / "compression").located():
        codec = parse_compression(table.compression if isinstance(table.compression, str) else compression)
    with (location / "mtime").located():
        mtime = parse_mtime(str(table.mtime), epoch) if table.mtime != "" else _USUAL_MTIME
    with (location / "owner").located():
        owner = None if table.owner == "source" else parse_owner(str(table.owner))
    with (location / "exclude").located():
        for one in table.exclude:
            parse_pattern(one)
    with (location / "chmod").located():
        parse_mode_rules(table.chmod)
    with (location / "chown").located():
        parse_owner_rules(table.chown)
    layer = LayerSettings(
        name,
        directory,
        tuple(table.sources),
        table.destination,
        tuple(table.exclude),
        tuple(table.ignore_files),
        table.use_ignore_file,
        tuple(table.allow_parents),
        tuple(table.whiteouts),
        tuple(table.opaques),
        codec,
        mtime,
        owner,
        table.mode,
        tuple(table.chmod),
        tuple(table.chown),
        table.hardlinks,
        tuple(table.xattrs),
        table.special,
        table.retime_pyc,
        table.allow_empty,
    )
    with location.located():
        layer.on(Platform("linux", "amd64"))  # finds unknown placeholders, which fail for any platform
    return layer
