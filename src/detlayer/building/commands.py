"""Build from Python: open a project, build its images, lock its bases and layers, with one call each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING

from msgspec.structs import replace

from detlayer.building import Build
from detlayer.building.lock_file import FILE_NAME, Lock, parse_lock
from detlayer.building.options import BuildOptions
from detlayer.building.project_files import ProjectFiles, find_project
from detlayer.building.report import BuildReport, BuildReporter
from detlayer.building.settings import ImageSettings, Project, load
from detlayer.errors import ConfigError
from detlayer.layer.ports import Reporter
from detlayer.oci.platforms import host_platform
from detlayer.store import Store

if TYPE_CHECKING:
    from detlayer.registry.client import Registries


def load_project(
    path: str | os.PathLike[str] | None = None, *, environment: Mapping[str, str] | None = None
) -> Project:
    """Read a detlayer.toml or pyproject.toml, and the files of its members.

    Without a path, the file is searched upwards from the working directory. `environment`, by default that of the
    process, provides SOURCE_DATE_EPOCH and the variables that the file allows. Raises ConfigError with file, line, key.
    """
    environment = os.environ if environment is None else environment
    name = find_project() if path is None else os.fspath(path)
    return load(name, ProjectFiles(), environment=environment, epoch=environment.get("SOURCE_DATE_EPOCH"))


def build(
    project: Project,
    images: Sequence[str] = (),
    *,
    options: BuildOptions | None = None,
    store: Store | None = None,
    registries: Registries | None = None,
    reporter: BuildReporter | None = None,
) -> BuildReport:
    """Build images of a project, by default all.

    Uses the user's cache and registries by default, as the command line does. The report contains the errors of
    images; an image that fails does not stop the others. Raises ConfigError for invalid options.
    """
    options = options_for(project, options or BuildOptions())
    with _open(project.choose(tuple(images)), options, store, registries, reporter) as opened:
        return opened.run()


def lock(
    project: Project,
    *,
    options: BuildOptions | None = None,
    store: Store | None = None,
    registries: Registries | None = None,
    reporter: BuildReporter | None = None,
) -> Lock:
    """Resolve the bases of a project and pack its layers; `to_text()` of the result is the text of detlayer.lock.

    Raises the first error of the build.
    """
    options = replace(options or BuildOptions(), until="pack", push=False, outputs=())
    with _open(project.choose(()), options, store, registries, reporter) as opened:
        report = opened.run()
        for error in report.errors:
            raise error
        return opened.locked(report)


@contextmanager
def open_build(
    images: Sequence[ImageSettings],
    options: BuildOptions,
    store: Store,
    open_registries: Callable[[], AbstractContextManager[Registries]],
    reporter: BuildReporter | None = None,
) -> Iterator[Build]:
    """Open a build, and registries on first use; closes both at the end. Raises ConfigError."""
    with ExitStack() as stack:
        yield stack.enter_context(
            Build(images, options, store, lambda: stack.enter_context(open_registries()), reporter=reporter)
        )


@contextmanager
def _open(
    images: Sequence[ImageSettings],
    options: BuildOptions,
    store: Store | None,
    registries: Registries | None,
    reporter: BuildReporter | None,
) -> Iterator[Build]:
    def open_registries() -> AbstractContextManager[Registries]:
        from detlayer.registry.user import open_user_registries

        references = [one for image in images for one in image.references] if options.push else []
        return nullcontext(registries) if registries else open_user_registries(given_for=references)

    with (
        nullcontext(store) if store else open_store(Store) as opened,
        open_build(images, options, opened, open_registries, reporter) as build,
    ):
        yield build


def options_for(project: Project, options: BuildOptions) -> BuildOptions:
    """Fill in options from the project and the machine: the scope, the host's platform, and the lock if needed."""
    return replace(
        options,
        scope=options.scope or os.path.realpath(project.file),
        host=options.host or host_platform(os.uname().machine),
        lock=options.lock or (read_lock(project) if options.policy != "always" else None),
    )


def lock_path(project: Project) -> str:
    """Return the path of a project's lock, next to its file."""
    return os.path.join(os.path.dirname(project.file), FILE_NAME)


def read_lock(project: Project) -> Lock | None:
    """Read the lock of a project; None if there is none. Raises ConfigError."""
    path = lock_path(project)
    data = ProjectFiles().read(path)
    return parse_lock(data, path) if data is not None else None


@contextmanager
def open_store(open_cache: Callable[[], Store] | None, reporter: Reporter | None = None) -> Iterator[Store]:
    """Open the cache, or a temporary one if it is disabled or unusable, because layers need a place."""
    with ExitStack() as stack:
        if open_cache is not None:
            store = stack.enter_context(open_cache())
            if store.index.is_usable:
                yield store
                return
        import tempfile

        try:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="detlayer-"))
        except OSError as error:
            raise ConfigError("cache-temporary", f"no temporary directory: {error}", "set TMPDIR") from error
        yield stack.enter_context(Store(os.path.join(directory, "store"), reporter=reporter))
