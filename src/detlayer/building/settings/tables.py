"""What may be written in detlayer.toml: its tables, key by key, and the JSON schema that editors read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

TITLE = "detlayer.toml"


class Table(msgspec.Struct, forbid_unknown_fields=True, rename="kebab", frozen=True):
    """A table whose keys are written with dashes."""


class EnvTable(Table, frozen=True):
    """A variable that adds to what the base has."""

    prepend: Annotated[str, Meta(description="Comes before the base's value.")] = ""
    append: Annotated[str, Meta(description="Comes after the base's value.")] = ""
    separator: Annotated[str, Meta(description="Stands between them.")] = ":"


class HealthTable(Table, frozen=True):
    """How Docker learns that a container is well; for format = "docker"."""

    command: Annotated[
        str | list[str], Meta(description="A line for the shell, or a program and its arguments; [] for no check.")
    ]
    interval: Annotated[float, Meta(ge=0, description="Seconds between two checks.")] = 0
    timeout: Annotated[float, Meta(ge=0, description="Seconds until a check has failed.")] = 0
    start_period: Annotated[float, Meta(ge=0, description="Seconds in which failures don't count.")] = 0
    retries: Annotated[int, Meta(ge=0, description="Failures in a row that make a container unhealthy.")] = 0


class LayerTable(Table, frozen=True):
    """A layer: sources, where they go, and the options of `detlayer pack`."""

    name: Annotated[str, Meta(description="What the layer is called in messages and in the image's history.")] = ""
    sources: Annotated[
        list[str], Meta(description="SOURCE[:DEST], with {platform}, {os}, {arch} and {variant}, beside this file.")
    ] = []
    destination: Annotated[str, Meta(description="Where sources without a DEST of their own go.")] = ""
    exclude: Annotated[list[str], Meta(description="What to leave out: gitignore lines, ! brings back.")] = []
    ignore_files: Annotated[list[str], Meta(description="Files of such lines.")] = []
    use_ignore_file: Annotated[bool, Meta(description="Whether .detlayerignore of a source counts.")] = True
    allow_parents: Annotated[list[str], Meta(description="Destinations below /bin, /lib and their like to allow.")] = []
    whiteouts: Annotated[list[str], Meta(description="Paths of the layers below to delete.")] = []
    opaques: Annotated[list[str], Meta(description="Directories of the layers below to hide the content of.")] = []
    compression: Annotated[
        str | UnsetType, Meta(description="none, gzip[:1-12], gzip-stored, zstd[:1-19]; else the image's.")
    ] = UNSET
    mtime: Annotated[
        int | str, Meta(description="Seconds since 1970, source, clamp or clamp:SECONDS; else 2000-01-01.")
    ] = ""
    owner: Annotated[int | str, Meta(description="UID[:GID] of all, or source.")] = "0:0"
    mode: Annotated[Literal["canonical", "source"], Meta(description="0755 and 0644, or all twelve bits.")] = (
        "canonical"
    )
    chmod: Annotated[list[str], Meta(description="PATTERN=MODE by written path; the last match wins.")] = []
    chown: Annotated[list[str], Meta(description="PATTERN=UID:GID by written path; the last match wins.")] = []
    hardlinks: Annotated[Literal["separate", "preserve"], Meta(description="Files of their own, or links.")] = (
        "separate"
    )
    xattrs: Annotated[list[str], Meta(description="Names of extended attributes to keep, as shell patterns.")] = []
    special: Annotated[Literal["error", "skip"], Meta(description="About sockets, FIFOs and devices.")] = "error"
    retime_pyc: Annotated[bool, Meta(description="Whether time stamps in .pyc files follow their sources.")] = True
    allow_empty: Annotated[bool, Meta(description="Whether the layer may have no file in it.")] = False


class ImageTable(Table, frozen=True):
    """An image."""

    base: Annotated[str, Meta(description="registry/repository:tag, scratch, or oci:DIR[:TAG].")] = "scratch"
    platforms: Annotated[
        tuple[str, ...], Meta(description="os/architecture[/variant]; more than one make an index.")
    ] = ("linux/amd64",)
    repositories: Annotated[list[str], Meta(description="Where --push publishes to; {image} is the image's name.")] = []
    tags: Annotated[tuple[str, ...], Meta(description="Under which tags; {image} is the image's name.")] = ("latest",)
    layers: Annotated[
        list[str | LayerTable], Meta(description="From the lowest to the topmost: tables, or names of [layers].")
    ] = []
    entrypoint: Annotated[list[str] | UnsetType, Meta(description="The program; it drops the base's cmd.")] = UNSET
    cmd: Annotated[list[str] | UnsetType, Meta(description="Its arguments, which `run IMAGE …` replaces.")] = UNSET
    env: Annotated[
        dict[str, str | EnvTable], Meta(description="Variables: a value, or what to put before or after the base's.")
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
    compression: Annotated[
        str, Meta(description="Of layers that say nothing: none, gzip[:1-12], gzip-stored, zstd[:1-19].")
    ] = "gzip"
    created: Annotated[
        int | UnsetType, Meta(description="Seconds since 1970; else SOURCE_DATE_EPOCH, else 2000-01-01.")
    ] = UNSET
    git: Annotated[bool, Meta(description="Whether revision and source from git become labels and annotations.")] = (
        False
    )


class FileTable(Table, frozen=True):
    """One detlayer.toml, or the table tool.detlayer of a pyproject.toml."""

    extends: Annotated[str, Meta(description="A file whose defaults and layers count here, too.")] = ""
    members: Annotated[list[str], Meta(description="Directories with files of their own, as shell patterns.")] = []
    variables: Annotated[list[str], Meta(description="Variables that ${NAME} and ${NAME:-default} may name.")] = []
    defaults: Annotated[ImageTable, Meta(description="Settings of all images of this file.")] = ImageTable()
    layers: Annotated[dict[str, LayerTable], Meta(description="Layers that images name.")] = {}
    images: dict[str, ImageTable] = {}


BY_KEY: dict[str, type[Table]] = {"layers": LayerTable, "healthcheck": HealthTable, "env": EnvTable}
"""The tables below an image's keys."""


def schema() -> dict[str, Any]:
    """Make the JSON schema of detlayer.toml (draft 2020-12)."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": TITLE, **msgspec.json.schema(FileTable)}
