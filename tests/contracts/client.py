"""detlayer as the client under test: library calls, with waits that take no time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

from detlayer.images.layout_writer import LayoutWriter
from detlayer.images.source import open_image
from detlayer.oci.documents import parse_document
from detlayer.oci.ports import Memory
from detlayer.oci.references import RepositoryName, parse_reference
from detlayer.oci.types import MAX_DOCUMENT_BYTES, Descriptor, Digest
from detlayer.registry import Network, Registries, Repository, Transport
from detlayer.registry.credentials import Credentials
from detlayer.registry.retry import Pace
from detlayer.store import Store
from detlayer.transfer.plan import Plan
from detlayer.transfer.pull import Pulled, PullOptions, pull_image
from detlayer.transfer.push import PushOptions, PushReport, plan_image, push_image
from detlayer.transfer.referrers import fallback_tag
from tests.contracts.http_records import Request
from tests.contracts.images import Layout
from tests.contracts.servers import Server
from tests.contracts.storage import INDEX


class FastPace(Pace):
    """Waits by advancing its clock."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead_s = 0.0
        self._lock = Lock()
        self.waits_s: list[float] = []

    def now(self) -> float:
        return super().now() + self._ahead_s

    def wait(self, seconds: float) -> None:
        with self._lock:
            self.waits_s.append(seconds)
            self._ahead_s += seconds
        self.check()


@dataclass
class Client:
    """detlayer as in one process; `cache` is the memory shared between runs, if any."""

    server: Server
    cache: Path | None = None
    retries: int = 4
    read_s: float = 30.0
    log: list[str] = field(default_factory=list)
    pace: FastPace = field(default_factory=FastPace)

    def find(self, name: RepositoryName) -> Credentials | None:
        account = self.server.account
        if account is None or name.registry != self.server.address:
            return None
        return Credentials(account.username, account.password)

    def network(self) -> Network:
        ca_file = str(self.server.ca_file) if self.server.ca_file else None
        return Network(retries=self.retries, read_s=self.read_s, connect_s=10, ca_file=ca_file)

    @contextmanager
    def registries(self) -> Iterator[tuple[Registries, Memory | None]]:
        self.pace = FastPace()
        transport = Transport(self.network(), pace=self.pace, log=self.log.append)
        with Registries(transport, self.find) as registries:
            if self.cache is None:
                yield registries, None
                return
            with Store(str(self.cache)) as store:
                yield registries, store.memory

    def push(
        self,
        layout: Layout | str,
        *names: str,
        source: Sequence[str] = (),
        plans: Sequence[Plan] | None = None,
        check: bool = False,
    ) -> PushReport:
        """Push an image to `repository:tag` names of the server; raises the first error."""
        report = self.try_push(layout, *names, source=source, plans=plans, check=check)
        if report.first_error is not None:
            raise report.first_error
        return report

    def try_push(
        self,
        layout: Layout | str,
        *names: str,
        source: Sequence[str] = (),
        plans: Sequence[Plan] | None = None,
        check: bool = False,
    ) -> PushReport:
        image_name = layout if isinstance(layout, str) else f"oci:{layout.path}"
        with self.registries() as (registries, memory), open_image(image_name) as image:
            references = [parse_reference(f"{self.server.address}/{name}") for name in names]
            options = PushOptions(self._sources(source), check, None if plans is None else tuple(plans))
            return push_image(image, references, registries, options=options, memory=memory)

    def plan(self, layout: Layout | str, *names: str, source: Sequence[str] = (), check: bool = False) -> list[Plan]:
        image_name = layout if isinstance(layout, str) else f"oci:{layout.path}"
        with self.registries() as (registries, memory), open_image(image_name) as image:
            references = [parse_reference(f"{self.server.address}/{name}") for name in names]
            options = PushOptions(self._sources(source), check)
            return plan_image(image, references, registries, options=options, memory=memory)

    def pull(self, name: str, target: Path, *, manifests_only: bool = False) -> Pulled:
        with self.registries() as (registries, memory):
            reference = parse_reference(f"{self.server.address}/{name}")
            options = PullOptions("pulled", manifests_only=manifests_only)
            return pull_image(reference, LayoutWriter(target), registries, options=options, memory=memory)

    def _sources(self, source: Sequence[str]) -> tuple[RepositoryName, ...]:
        return tuple(RepositoryName(self.server.address, one) for one in source)


def counted(server: Server) -> list[Request]:
    """Drop the requests that only served authentication."""
    return [request for request in server.requests if request.status != 401]


def blob_bytes(server: Server) -> int:
    """Count the bytes of blobs that were sent."""
    return sum(request.body_bytes for request in server.requests if "/blobs/" in request.path)


def find_referrers(repository: Repository, subject: Digest) -> list[Descriptor]:
    """Read the referrers of a manifest as a client does: from the API page by page, or else from the tag."""
    found: list[Descriptor] = []
    for answer in repository.pages(f"referrers/{subject}", "a list of referrers", {"accept": INDEX}):
        if answer.status != 200:
            answer.drain()
            return list(repository.get_manifest(fallback_tag(subject)).children)
        found += parse_document(answer.read(MAX_DOCUMENT_BYTES) or b"", "referrers", INDEX).children
    return found
