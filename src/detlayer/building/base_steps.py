"""The steps that a base takes: what it is now, which manifest a platform gets, and its layers where they are wanted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from detlayer.building.bases import choose_manifest, read_base
from detlayer.building.context import BaseName, Desk
from detlayer.building.fetch import ask_now, bring
from detlayer.building.graph import Call, Step, Values
from detlayer.building.request import Request, label
from detlayer.building.versions import VERSIONS
from detlayer.errors import IntegrityError
from detlayer.oci.documents import parse_document
from detlayer.oci.ports import TransferReporter
from detlayer.oci.references import Reference
from detlayer.oci.types import Descriptor, Platform, parse_digest
from detlayer.transfer.workers import Job, work_off


class BaseSteps:
    """Makes the steps of bases; `add` takes each once and gives its name."""

    def __init__(self, request: Request, desk: Desk, hears: TransferReporter, add: Callable[[Step], str]) -> None:
        self._request = request
        self._desk = desk
        self._hears = hears
        self._add = add

    def resolve(self, base: BaseName) -> str:
        """Ask what a base is now: once a run, whoever needs it."""
        desk, request = self._desk, self._request

        def run(call: Call) -> Values:
            if isinstance(base, str):
                root = desk.layout(base).root
                desk.put(root.data)
                return {"digest": str(root.digest)}
            if base.digest is not None:
                return {"digest": str(base.digest)}
            lock = request.lock
            if lock is not None and (request.policy == "locked" or str(base) in lock.bases):
                return {"digest": str(lock.base(str(base)).digest)}
            return {"digest": str(ask_now(desk, base))}

        return self._add(
            Step(f"resolve {base}", "resolve", VERSIONS["resolve"], run, {"base": str(base)}, is_free=True, keeps=False)
        )

    def fetch(self, base: BaseName, platform: Platform) -> str:
        """Bring the manifest and config that a platform gets of a base."""
        desk, lock = self._desk, self._request.lock if self._request.policy == "locked" else None
        source = desk.base_source(base)
        locked = ""
        if lock is not None and isinstance(base, Reference) and not self._request.only_layers:
            locked = str(lock.manifest(str(base), label(platform)))

        def run(call: Call) -> Values:
            name = str(base)
            digest = parse_digest(call["base"]["digest"])
            data = desk.known(digest)
            if data is None:
                assert isinstance(base, Reference)  # a layout's index was put when it was resolved
                data = desk.repository(base.name).get_manifest(str(digest)).data
                desk.put(data)
            manifest = choose_manifest(parse_document(data, name), platform, name, source.document)
            if locked not in ("", str(manifest.digest)):
                raise IntegrityError(
                    "lock-differs",
                    f"{name} has {manifest.digest} for {platform}, not {locked} as the lock says",
                    "`detlayer lock` writes it anew",
                )
            read_base(manifest, platform, name, source)  # it has to be one, and its config be here
            desk.put(manifest.data)
            assert manifest.config is not None  # read_base has read it
            return {"manifest": str(manifest.digest), "config": str(manifest.config.digest)}

        def is_intact(values: Values) -> bool:
            # What the lock has otherwise is run again, which says so.
            return locked in ("", values["manifest"]) and all(
                desk.known(parse_digest(values[one])) is not None for one in ("manifest", "config")
            )

        return self._add(
            Step(
                f"fetch {base} {label(platform)}",
                "fetch",
                VERSIONS["fetch"],
                run,
                {"base": str(base), "platform": label(platform)},
                {"base": self.resolve(base)},
                is_intact=is_intact,
                is_free=True,
            )
        )

    def download(self, base: BaseName, platform: Platform) -> str:
        """Bring the layers of a base into the store, for outputs that need their bytes."""
        desk = self._desk
        source = desk.base_source(base)

        def layers(values: Values) -> list[Descriptor]:
            manifest = desk.document(parse_digest(values["manifest"]))
            return [one for one in manifest.layers if not one.is_foreign]

        def run(call: Call) -> Values:
            missing = [one for one in layers(call["base"]) if desk.body(one) is None]
            work_off([Job(partial(bring, one, source, desk, self._hears, call.check), is_data=True) for one in missing])
            call.add("bytes", sum(one.size_bytes for one in missing))
            return {"manifest": call["base"]["manifest"]}

        def is_intact(values: Values) -> bool:
            return desk.known(parse_digest(values["manifest"])) is not None and all(
                desk.body(blob) is not None for blob in layers(values)
            )

        return self._add(
            Step(
                f"download {base} {label(platform)}",
                "download",
                VERSIONS["download"],
                run,
                needs={"base": self.fetch(base, platform)},
                is_intact=is_intact,
            )
        )
