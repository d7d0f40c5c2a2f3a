"""Assemble an image from files only: a base in a layout, descriptors of layers, settings. For other tools."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import msgspec

from detlayer.building.bases import choose_manifest, read_base
from detlayer.building.project_files import ProjectFiles
from detlayer.building.settings import ImageSettings, read_image
from detlayer.building.settings.image import read_settings
from detlayer.building.settings.location import Location, add_line
from detlayer.errors import ConfigError, LayerError, printable
from detlayer.filesystem import is_file
from detlayer.images.layout_writer import LayoutWriter
from detlayer.images.source import SOURCE, OpenedImage, open_image
from detlayer.layer.writer import ANNOTATION_PREFIX
from detlayer.oci.assembly import Base, Part, assemble, configure, index, runs_on, scratch
from detlayer.oci.documents import Document, decode_object, parse_descriptor, parse_document
from detlayer.oci.platforms import parse_platform
from detlayer.oci.types import BASE_DIGEST, Descriptor, Platform, parse_digest
from detlayer.output.depfile import rule
from detlayer.output.files import write_file

Path = str | os.PathLike[str]

_DIFF_ID = f"{ANNOTATION_PREFIX}diff-id"
_PIECE_BYTES = 1 << 20
_DEFAULT_PLATFORM = "linux/amd64"


class ImageOutput(msgspec.Struct, frozen=True):
    """What to write in addition to the image: a tag in the layout, a descriptor as JSON, a rule for make and ninja."""

    tag: str = ""
    descriptor: Path | None = None
    depfile: Path | None = None


class Assembled(msgspec.Struct, frozen=True):
    """A manifest or an index, and its descriptor with platform."""

    document: Document
    descriptor: Descriptor


def assemble_image(
    layout: Path,
    layers: Sequence[Path] = (),
    *,
    base: str = "scratch",
    settings: Path | None = None,
    platform: str = "",
    epoch: str | None = None,
    output: ImageOutput | None = None,
) -> Assembled:
    """Assemble an image in an OCI layout from a base, layers in that layout, and settings.

    `layers` are descriptors that `pack --descriptor` wrote. `base` is `scratch` or `oci:DIR[:TAG]`. Its layers are
    copied into the layout, except existing ones and those left in a registry. `settings` is a file with the table of
    an image (docs/build.md); its base, layers, platforms, repositories and tags are ignored. `epoch` is
    SOURCE_DATE_EPOCH. Raises ConfigError, TreeError, LayerError, IntegrityError, NotFoundError, OutputError.
    """
    read = [os.fspath(one) for one in layers]
    image = _settings(settings, epoch)
    if settings is not None:
        read.append(os.fspath(settings))
    wanted = parse_platform(platform or _DEFAULT_PLATFORM)
    writer = LayoutWriter(layout)
    parts = [_layer(path, writer) for path in layers]
    annotations = dict(image.annotations)
    origin: dict[str, str] = {}
    with ExitStack() as stack:
        under: Base = scratch(wanted)
        if base != "scratch":
            opened = stack.enter_context(open_image(base))
            manifest = choose_manifest(opened.root, wanted, base, opened.document)
            under = read_base(manifest, wanted, base, opened)
            annotations = {BASE_DIGEST: str(manifest.digest), **annotations}
            read += [opened.path if is_file(opened.path) else os.path.join(opened.path, "index.json")]
            for part in under.parts:
                if not _copy(part.descriptor, opened, writer) and not part.descriptor.is_foreign:
                    origin = {SOURCE: str(opened.origin)}
        config = configure(under, parts, image.runtime, platform=wanted, created=image.created)
        made = assemble(config, (*under.parts, *parts), format=image.format, annotations=annotations)
    writer.put(config)
    writer.put(made.data)
    assembled = Assembled(made, made.descriptor(runs_on(under, wanted)))
    _write(writer, layout, assembled.descriptor, output or ImageOutput(), origin=origin, read=read)
    return assembled


def assemble_index(
    layout: Path,
    manifests: Sequence[Path],
    *,
    annotations: Mapping[str, str] | None = None,
    output: ImageOutput | None = None,
) -> Assembled:
    """Assemble an index of images that `assemble_image` made in the same layout, given their descriptors.

    Raises ConfigError, LayerError, OutputError.
    """
    writer = LayoutWriter(layout)
    pairs: list[tuple[Document, Platform]] = []
    for path in manifests:
        named = _read_descriptor(path)
        if named.platform is None or not named.is_manifest:
            raise ConfigError(
                "descriptor-invalid",
                f"{printable(os.fspath(path))} is not of an image for a platform",
                "see `detlayer image -h`",
            )
        with open_image(f"oci:{os.fspath(layout)}", whole_index=True) as opened:
            document = parse_document(opened.document(named), str(named.digest), named.media_type)
        pairs.append((document, named.platform))
    platforms = [platform for _, platform in pairs]
    if len(set(platforms)) < len(platforms):
        raise ConfigError("platform-invalid", "two images are for the same platform", "pass one for each platform")
    made = index(pairs, annotations=annotations)
    writer.put(made.data)
    assembled = Assembled(made, made.descriptor())
    read = [os.fspath(one) for one in manifests]
    _write(writer, layout, assembled.descriptor, output or ImageOutput(), origin={}, read=read)
    return assembled


def _write(
    writer: LayoutWriter,
    layout: Path,
    named: Descriptor,
    output: ImageOutput,
    *,
    origin: Mapping[str, str],
    read: Sequence[str],
) -> None:
    """Tag an image and write the requested files; `read` are the input files."""
    writer.tag(Descriptor(named.media_type, named.digest, named.size_bytes, dict(origin), named.platform), output.tag)
    target = output.descriptor if output.descriptor is not None else os.path.join(os.fspath(layout), "index.json")
    if output.depfile is not None:
        write_file(output.depfile, rule(os.fsencode(target), [os.fsencode(one) for one in read]))
    if output.descriptor is not None:  # last, so that its existence implies that of the image
        write_file(output.descriptor, named.to_bytes() + b"\n")


def _settings(path: Path | None, epoch: str | None) -> ImageSettings:
    name = os.fspath(path) if path is not None else "settings"
    files = ProjectFiles()
    data = b"" if path is None else files.read(name)
    if data is None:
        raise ConfigError("config-missing", f"{printable(name)} not found", "check the path", file=name)
    try:
        return read_settings("image", read_image(data, name), {}, Location(name), epoch=epoch)
    except ConfigError as error:
        add_line(error, files.read)
        raise


def _layer(path: Path, writer: LayoutWriter) -> Part:
    named = _read_descriptor(path)
    name = printable(os.fspath(path))
    try:
        diff_id = parse_digest(named.annotations.get(_DIFF_ID, ""))
    except ValueError as error:
        raise ConfigError(
            "descriptor-invalid", f"{name} lacks the diff_id of its layer", "make it with `pack --descriptor`"
        ) from error
    if not writer.has(named):
        raise LayerError(
            "layer-missing", f"{named.digest} of {name} is not in the layout", "pack it with --oci into the same layout"
        )
    return Part(named, diff_id, f"detlayer image {os.path.basename(os.fspath(path))}")


def _read_descriptor(path: Path) -> Descriptor:
    name = os.fspath(path)
    data = ProjectFiles().read(name)
    if data is None:
        raise ConfigError("config-missing", f"{printable(name)} not found", "make it with --descriptor")
    return parse_descriptor(decode_object(data, name), name)


def _copy(blob: Descriptor, source: OpenedImage, writer: LayoutWriter) -> bool:
    """Copy a layer of the base into the layout; False if it is not local and may stay in its registry."""
    if writer.has(blob):
        return True
    body = source.body(blob)
    if body is None:
        if source.origin is None and not blob.is_foreign:
            raise LayerError(
                "layer-missing",
                f"{printable(source.path)} lacks {blob.digest}",
                "pull the base without --manifests-only",
            )
        return False
    with writer.part(blob) as part, body.open(part.offset) as file:
        while piece := file.read(_PIECE_BYTES):
            part.write(piece)
        part.finish()
    return True
