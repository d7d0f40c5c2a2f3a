"""The steps that bring an image into layouts, archives and engines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from detlayer.building.context import BuildContext, Made
from detlayer.building.graph import Call, Reason, Step
from detlayer.building.options import Output, label, local_reference
from detlayer.building.results import DownloadedBase, MadeImage, WrittenImage
from detlayer.building.settings import ImageSettings
from detlayer.building.step_versions import VERSIONS
from detlayer.errors import ConfigError, IntegrityError, LayerError, TreeError
from detlayer.images.layout_writer import LayoutWriter
from detlayer.images.source import open_image
from detlayer.layer.ports import Sink
from detlayer.oci.documents import Document
from detlayer.oci.platforms import select
from detlayer.oci.types import Descriptor, Digest, Platform
from detlayer.output.files import FileOutput
from detlayer.transfer.remote import gather
from detlayer.transfer.workers import Job, work_off

_PIECE_BYTES = 1 << 20


def platforms_of(image: ImageSettings, output: Output, host: Platform | None) -> tuple[Platform, ...]:
    """Say which platforms an output takes: all, or for what holds one the machine's; raises ConfigError."""
    if output.kind in ("oci", "oci-archive") or len(image.platforms) == 1:
        return image.platforms
    offered = [Descriptor(label(one), Digest(""), 0, platform=one) for one in image.platforms]
    chosen = select(offered, host) if host is not None else None
    if chosen is None or chosen.platform is None:
        raise ConfigError(
            "archive-index",
            f"{output.kind} holds one platform, and {image.name} is for {', '.join(map(label, image.platforms))}",
            "choose one with --platform",
        )
    return (chosen.platform,)


def write_step(
    image: ImageSettings,
    output: Output,
    root: Step[MadeImage],
    downloads: Sequence[Step[DownloadedBase]],
    context: BuildContext,
    *,
    is_alone: bool,
) -> Step[WrittenImage]:
    """Write an image into a layout or an archive, or load it into an engine; `root` is the step that makes it."""
    path = output.path_for(image.name)
    where = f"{output.kind}:{path}" if path else output.kind
    needs = {"image": root.name, **{f"base {at}": one.name for at, one in enumerate(downloads)}}
    tags = image.tags if is_alone else (image.name,)
    names = local_reference(image, output.kind)

    def document(call: Call) -> Document:
        return context.document(call.result(root).digest)

    def run(call: Call) -> WrittenImage:
        made = Made(context, document(call), image.base)
        if output.kind == "oci":
            for tag in tags:
                _into_layout(made, LayoutWriter(path), tag, call)
            return WrittenImage(made.root.digest)
        from detlayer.images.archive_writer import write_docker_archive, write_oci_archive

        if output.kind == "docker" or output.kind == "podman":
            from detlayer.images.engine import load

            load(
                output.kind, lambda sink: write_docker_archive(_Checked(sink, call), made.root, made, references=names)
            )
            return WrittenImage(made.root.digest)
        with _file(path) as file:
            sink = _Checked(file, call)
            if output.kind == "oci-archive":
                write_oci_archive(sink, gather(made, made.root), made, tags=tags)
            else:
                write_docker_archive(sink, made.root, made, references=names)
            file.settle()
            file.commit()
        return WrittenImage(made.root.digest, _stamp(path))

    def settled(call: Call) -> WrittenImage | tuple[Reason, ...]:
        root_document = document(call)
        wanted = str(root_document.digest)
        if output.kind == "oci":
            has = _layout_has(path, tags, root_document, Made(context, root_document, image.base))
        elif output.kind == "docker" or output.kind == "podman":
            from detlayer.images.engine import identity

            config = root_document.config
            found = {identity(output.kind, str(name)) for name in names}
            is_there = config is not None and found == {str(config.digest)}
            has = wanted if is_there else next(iter(found - {wanted}), "")
        return WrittenImage(root_document.digest) if has == wanted else (Reason("target", where, has, wanted),)

    is_live = output.kind not in ("oci-archive", "docker-archive")
    return Step(
        f"write {image.name} {where}",
        "write",
        VERSIONS["write"],
        run,
        WrittenImage.from_texts,
        {"output": where, "tags": " ".join(tags), "names": " ".join(map(str, names))},
        needs,
        is_intact=lambda written: bool(written.file) and written.file == _stamp(path),
        settled=settled if is_live else None,
    )


class _Checked:
    """A sink that ends with the run."""

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
    """Name a file's state on disk; empty if it is not known, which equals no other."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return " ".join(map(str, numbers)) + f" {os.path.realpath(path)}"


def _into_layout(made: Made, writer: LayoutWriter, tag: str, call: Call) -> None:
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


def _layout_has(path: str, tags: Sequence[str], root: Document, made: Made) -> str:
    """Say what all tags of a layout name, if that is there to its last blob; empty if they differ or lack something."""
    writer = LayoutWriter(path)
    wanted = gather(made, root)
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
