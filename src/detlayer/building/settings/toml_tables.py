"""The tables and keys of detlayer.toml, and the JSON schema for editors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

TITLE = "detlayer.toml"


class Table(msgspec.Struct, forbid_unknown_fields=True, rename="kebab", frozen=True):
    """A table with kebab-case keys."""


class EnvTable(Table, frozen=True):
    """A variable that extends the base's value."""

    prepend: Annotated[str, Meta(description="Text before the base's value.")] = ""
    append: Annotated[str, Meta(description="Text after the base's value.")] = ""
    separator: Annotated[str, Meta(description="Separator between them.")] = ":"


class HealthTable(Table, frozen=True):
    """Docker's health check of a container; for format = "docker"."""

    command: Annotated[
        str | list[str], Meta(description="A shell command, or a program and its arguments; [] disables checks.")
    ]
    interval: Annotated[float, Meta(ge=0, description="Seconds between two checks.")] = 0
    timeout: Annotated[float, Meta(ge=0, description="Seconds until a check times out.")] = 0
    start_period: Annotated[float, Meta(ge=0, description="Seconds in which failures are ignored.")] = 0
    retries: Annotated[int, Meta(ge=0, description="Consecutive failures until a container is unhealthy.")] = 0


class LayerTable(Table, frozen=True):
    """A layer: sources, where they go, and the options of `detlayer pack`."""

    name: Annotated[str, Meta(description="Name of the layer in messages and in the image's history.")] = ""
    sources: Annotated[
        list[str], Meta(description="SOURCE[:DEST], relative to this file; {platform}, {os}, {arch}, {variant}.")
    ] = []
    destination: Annotated[str, Meta(description="Default DEST of sources.")] = ""
    exclude: Annotated[list[str], Meta(description="Patterns to exclude; gitignore syntax, ! includes again.")] = []
    ignore_files: Annotated[list[str], Meta(description="Files with patterns to exclude.")] = []
    use_ignore_file: Annotated[bool, Meta(description="Whether to read the .detlayerignore of sources.")] = True
    allow_parents: Annotated[list[str], Meta(description="Allow destinations below such paths as /bin.")] = []
    whiteouts: Annotated[list[str], Meta(description="Paths to delete from the layers below.")] = []
    opaques: Annotated[list[str], Meta(description="Directories whose contents in the layers below are hidden.")] = []
    compression: Annotated[
        str | UnsetType, Meta(description="none, gzip[:1-12], gzip-stored, zstd[:1-19]; default: the image's.")
    ] = UNSET
    mtime: Annotated[
        int | str, Meta(description="Seconds since 1970, source, clamp or clamp:SECONDS; default: 2000-01-01.")
    ] = ""
    owner: Annotated[int | str, Meta(description="UID[:GID] of all entries, or source.")] = "0:0"
    mode: Annotated[Literal["canonical", "source"], Meta(description="0755 or 0644, or all twelve bits.")] = "canonical"
    chmod: Annotated[list[str], Meta(description="PATTERN=MODE by layer path; the last match wins.")] = []
    chown: Annotated[list[str], Meta(description="PATTERN=UID:GID by layer path; the last match wins.")] = []
    hardlinks: Annotated[Literal["separate", "preserve"], Meta(description="Separate files, or links.")] = "separate"
    xattrs: Annotated[list[str], Meta(description="Names of extended attributes to keep, as shell patterns.")] = []
    special: Annotated[Literal["error", "skip"], Meta(description="How to handle sockets, FIFOs and devices.")] = (
        "error"
    )
    retime_pyc: Annotated[bool, Meta(description="Whether timestamps inside .pyc files follow their sources.")] = True
    allow_empty: Annotated[bool, Meta(description="Whether the layer may contain no files.")] = False


class ImageTable(Table, frozen=True):
    """An image."""

    base: Annotated[str, Meta(description="registry/repository:tag, scratch, or oci:DIR[:TAG].")] = "scratch"
    platforms: Annotated[tuple[str, ...], Meta(description="os/architecture[/variant]; several make an index.")] = (
        "linux/amd64",
    )
    repositories: Annotated[list[str], Meta(description="Destinations of --push; {image} is the image's name.")] = []
    tags: Annotated[tuple[str, ...], Meta(description="Tags to push; {image} is the image's name.")] = ("latest",)
    layers: Annotated[list[str | LayerTable], Meta(description="Tables, or names from [layers], lowest first.")] = []
    entrypoint: Annotated[list[str] | UnsetType, Meta(description="The program; discards the base's cmd.")] = UNSET
    cmd: Annotated[list[str] | UnsetType, Meta(description="Default arguments, which `run IMAGE …` overrides.")] = UNSET
    env: Annotated[
        dict[str, str | EnvTable], Meta(description="Variables: a value, or text before or after the base's.")
    ] = {}
    user: Annotated[int | str | UnsetType, Meta(description="USER[:GROUP], by name or number.")] = UNSET
    workdir: Annotated[str | UnsetType, Meta(description="An absolute path.")] = UNSET
    ports: Annotated[list[int | str], Meta(description="8080, or 53/udp.")] = []
    volumes: Annotated[list[str], Meta(description="Absolute paths.")] = []
    labels: dict[str, str] = {}
    annotations: Annotated[dict[str, str], Meta(description="Of the manifests and the index; OCI only.")] = {}
    stop_signal: Annotated[str | UnsetType, Meta(description="SIGTERM, or a number.")] = UNSET
    healthcheck: HealthTable | UnsetType = UNSET
    format: Literal["oci", "docker"] = "oci"
    compression: Annotated[str, Meta(description="Default of layers: none, gzip[:1-12], gzip-stored, zstd[:1-19].")] = (
        "gzip"
    )
    created: Annotated[
        int | UnsetType, Meta(description="Seconds since 1970; default: SOURCE_DATE_EPOCH, else 2000-01-01.")
    ] = UNSET
    git: Annotated[bool, Meta(description="Whether to add revision and source from git as labels and annotations.")] = (
        False
    )


class FileTable(Table, frozen=True):
    """One detlayer.toml, or the table tool.detlayer of a pyproject.toml."""

    extends: Annotated[str, Meta(description="A file whose defaults and layers are inherited.")] = ""
    members: Annotated[list[str], Meta(description="Directories with their own files, as shell patterns.")] = []
    variables: Annotated[list[str], Meta(description="Variables that ${NAME} and ${NAME:-default} may use.")] = []
    defaults: Annotated[ImageTable, Meta(description="Defaults of all images in this file.")] = ImageTable()
    layers: Annotated[dict[str, LayerTable], Meta(description="Layers that images refer to by name.")] = {}
    images: dict[str, ImageTable] = {}


BY_KEY: dict[str, type[Table]] = {"layers": LayerTable, "healthcheck": HealthTable, "env": EnvTable}
"""The tables below an image's keys."""


def schema() -> dict[str, Any]:
    """Make the JSON schema of detlayer.toml (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": TITLE, **msgspec.json.schema(FileTable)}
