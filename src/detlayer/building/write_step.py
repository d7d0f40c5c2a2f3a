"""The steps that write an image to layouts, archives and engines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from detlayer.building.context import BuildContext, BuiltSource
from detlayer.building.graph import Call, Reason, Step
from detlayer.building.options import BuildOutput, label, local_references
from detlayer.building.results import DownloadedBase, MadeImage, WrittenImage
from detlayer.building.settings import ImageSettings
from detlayer.building.step_versions import VERSIONS
from detlayer.errors import ConfigError, IntegrityError, LayerError, TreeError
from detlayer.images.layout_writer import LayoutWriter
from detlayer.images.source import open_image
from detlayer.layer.ports import Sink
from detlayer.oci.platforms import select
from detlayer.oci.types import Descriptor, Digest, Platform
from detlayer.output.files import FileOutput
from detlayer.transfer.remote import gather
from detlayer.transfer.workers import Job, work_off

_PIECE_BYTES = 1 << 20


def platforms_of(image: ImageSettings, output: BuildOutput, host: Platform | None) -> tuple[Platform, ...]:
    """Return the platforms for an output: all, or the host's if it supports only one; raises ConfigError."""
    if output.kind in ("oci", "oci-archive") or len(image.platforms) == 1:
        return image.platforms
    offered = [Descriptor(label(one), Digest(""), 0, platform=one) for one in image.platforms]
    chosen = select(offered, host) if host is not None else None
    if chosen is None or chosen.platform is None:
        raise ConfigError(
            "archive-index",
            f"{output.kind} takes one platform, but {image.name} has {', '.join(map(label, image.platforms))}",
            "choose one with --platform",
        )
    return (chosen.platform,)


class ImageWriter:
    """Writes an image of a build into a layout or an archive, or loads it into an engine."""

    def __init__(
        self,
        image: ImageSettings,
        output: BuildOutput,
        root: Step[MadeImage],
        downloads: Sequence[Step[DownloadedBase]],
        context: BuildContext,
        *,
        is_alone: bool,
    ) -> None:
        """`root` makes the image, `downloads` get its base's layers. Without `is_alone`, its name is its only tag."""
        self._image = image
        self._output = output
        self._root = root
        self._downloads = downloads
        self._context = context
        self._path = output.path_for(image.name)
        self._tags = image.tags if is_alone else (image.name,)
        self._names = local_references(image, output.kind)

    @property
    def step(self) -> Step[WrittenImage]:
        kind, where = self._output.kind, self._where
        return Step(
            f"write {self._image.name} {where}",
            "write",
            VERSIONS["write"],
            self._write,
            WrittenImage.from_texts,
            {"output": where, "tags": " ".join(self._tags), "names": " ".join(map(str, self._names))},
            {"image": self._root.name, **{f"base {at}": one.name for at, one in enumerate(self._downloads)}},
            is_intact=lambda written: bool(written.file) and written.file == _stamp(self._path),
            settled=None if kind in ("oci-archive", "docker-archive") else self._find,
        )

    @property
    def _where(self) -> str:
        return f"{self._output.kind}:{self._path}" if self._path else self._output.kind

    def _made(self, call: Call) -> BuiltSource:
        return BuiltSource(self._context, self._context.document(call.result(self._root).digest), self._image.base)

    def _write(self, call: Call) -> WrittenImage:
        made, kind, path = self._made(call), self._output.kind, self._path
        if kind == "oci":
            for tag in self._tags:
                _into_layout(made, LayoutWriter(path), tag, call)
            return WrittenImage(made.root.digest)
        from detlayer.images.archive_writer import write_docker_archive, write_oci_archive

        if kind == "docker" or kind == "podman":
            from detlayer.images.engine import load

            load(kind, lambda sink: write_docker_archive(_Checked(sink, call), made.root, made, references=self._names))
            return WrittenImage(made.root.digest)
        with _file(path) as file:
            sink = _Checked(file, call)
            if kind == "oci-archive":
                write_oci_archive(sink, gather(made, made.root), made, tags=self._tags)
            else:
                write_docker_archive(sink, made.root, made, references=self._names)
            file.settle()
            file.commit()
        return WrittenImage(made.root.digest, _stamp(path))

    def _find(self, call: Call) -> WrittenImage | tuple[Reason, ...]:
        """Check whether the layout or engine already has the image."""
        made, kind = self._made(call), self._output.kind
        wanted, has = str(made.root.digest), ""
        if kind == "oci":
            has = _layout_has(self._path, self._tags, made)
        elif kind == "docker" or kind == "podman":
            from detlayer.images.engine import identity

            config = made.root.config
            found = {identity(kind, str(name)) for name in self._names}
            is_there = config is not None and found == {str(config.digest)}
            has = wanted if is_there else next(iter(found - {wanted}), "")
        return WrittenImage(made.root.digest) if has == wanted else (Reason("target", self._where, has, wanted),)


class _Checked:
    """A sink that fails once the run is stopped."""

    def __init__(self, sink: Sink, call: Call) -> None:
        self._sink = sink
        self._call = call

    def write(self, data: bytes | bytearray | memoryview, /) -> None:
        self._call.check()
        self._sink.write(data)


@contextmanager
def _file(path: str) -> Iterator[FileOutput]:
    output = FileOutput(path)
    try:
        yield output
    finally:
        output.discard()


def _stamp(path: str) -> str:
    """Return a fingerprint of a file's stat; empty if unknown."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return " ".join(map(str, numbers)) + f" {os.path.realpath(path)}"


def _into_layout(made: BuiltSource, writer: LayoutWriter, tag: str, call: Call) -> None:
    wanted = gather(made, made.root)

    def bring(blob: Descriptor) -> None:
        body = made.body(blob)
        if body is None or writer.has(blob):
            return
        with writer.part(blob) as part, body.open(part.offset) as file:
            while piece := file.read(_PIECE_BYTES):
                call.check()
                part.write(piece)
            part.finish()
        call.add("bytes", blob.size_bytes)

    work_off([Job(lambda blob=blob: bring(blob), is_data=True) for blob in wanted.blobs if not blob.is_foreign])  # type: ignore[misc]
    for one in wanted.documents:
        writer.put(one.data)
    writer.tag(made.root.descriptor(), tag)


def _layout_has(path: str, tags: Sequence[str], made: BuiltSource) -> str:
    """Return the digest that all tags of a layout point to; empty if they differ or blobs are missing."""
    writer = LayoutWriter(path)
    wanted = gather(made, made.root)
    if not all(
        writer.has(one)
        for one in (*wanted.blobs, *(each.descriptor() for each in wanted.documents))
        if not one.is_foreign
    ):
        return ""
    found = set()
    for tag in tags:
        try:
            with open_image(f"oci:{path}:{tag}") as image:
                found.add(str(image.root.digest))
        except (LayerError, TreeError, IntegrityError):
            return ""
    return found.pop() if len(found) == 1 else ""
