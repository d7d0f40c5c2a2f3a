"""Client for the distribution API of one repository: manifests, blobs, tags. See also `upload` and `download`.

Source: distribution-spec 1.1. Keeps nothing between runs. Does not trust responses: sizes are bounded, digests are
computed here, and credentials are sent only to the host they are for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import msgspec

from detlayer.errors import (
    AuthError,
    DetlayerError,
    IntegrityError,
    NotFoundError,
    RegistryError,
    RejectedError,
    printable,
)
from detlayer.oci.documents import Document, parse_document
from detlayer.oci.references import Reference, RepositoryName
from detlayer.oci.types import INDEX_TYPES, MANIFEST_TYPES, MAX_DOCUMENT_BYTES, Descriptor, Digest, digest_of
from detlayer.registry.address import checked, join, origin
from detlayer.registry.auth import Authorizer, Challenge, Scope, pull, push
from detlayer.registry.error_responses import (
    RefusalReason,
    RefusedError,
    RepositoryMissingError,
    error_of,
    garbage,
    read_digest,
)
from detlayer.registry.retry import Attempts
from detlayer.registry.transport import Answer, Method, Request, Transport, follow

if TYPE_CHECKING:
    from detlayer.registry.credentials import Credentials

# Always send all types: docker-registry answers 404 to a HEAD that does not accept the type of the manifest.
ACCEPT = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_MAX_REDIRECTS = 5
_KEEPING_REDIRECTS = frozenset((307, 308))  # those that keep method and body (RFC 9110 15.4)
_MAX_REFUSALS = 5  # threads may use up each other's short-lived tokens
_MAX_PAGES = 10_000
_MAX_PAGE_BYTES = 16 << 20
_MAX_TAGS = 1_000_000


class Listing(NamedTuple):
    """What this process adds to the referrers of one subject: JSON by digest. Hold `lock` to change it."""

    lock: threading.Lock
    own: dict[Digest, bytes]


class Roots(NamedTuple):
    """Whether `/v2/` of a registry has sent a challenge, by host. Hold `lock` to read or change it."""

    lock: threading.Lock
    challenged: dict[str, bool]


class Registries:
    """All registries of a run, with shared connections and tokens. Close it at the end."""

    def __init__(
        self, transport: Transport, find: Callable[[RepositoryName], Credentials | None] | None = None
    ) -> None:
        """Create it. `find` looks up credentials when a registry asks for them; None means anonymous access."""
        self.transport = transport
        self._find = find or (lambda name: None)
        self._challenges: dict[str, Challenge] = {}
        self._roots = Roots(threading.Lock(), {})
        self._repositories: dict[RepositoryName, Repository] = {}
        self._lock = threading.Lock()

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] | None = None, *, given_for: Iterable[Reference] = ()
    ) -> Registries:
        """Create it with proxies and credentials from the environment, by default that of the process.

        DETLAYER_USERNAME and DETLAYER_PASSWORD are sent only to the registries in `given_for`. Raises ConfigError.
        """
        from detlayer.registry.user import open_user_registries

        return open_user_registries(environment, given_for=given_for)

    def repository(self, name: RepositoryName) -> Repository:
        with self._lock:
            if name not in self._repositories:
                authorizer = Authorizer(self.transport, name.host, lambda: self._find(name), self._challenges)
                self._repositories[name] = Repository(name, self.transport, authorizer, self._roots)
            return self._repositories[name]

    def cancel(self) -> None:
        """Make every thread that waits or transfers stop soon."""
        self.transport.pace.cancel()

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Registries:
        return self

    def __exit__(self, *failed: object) -> None:
        self.close()


class Repository:
    """One repository of a registry. Thread-safe."""

    def __init__(self, name: RepositoryName, transport: Transport, authorizer: Authorizer, roots: Roots) -> None:
        self.name = name
        self._roots = roots
        self.transport = transport
        self._authorizer = authorizer
        self._base = transport.base_url(name.host)
        self._wants_push = False
        self._sources: frozenset[Scope] = frozenset()
        self._listings: dict[Digest, Listing] = {}
        self._lock = threading.Lock()
        self.lists_referrers: bool | None = None
        """Whether the registry maintains the lists of referrers itself; None if unknown."""

    @property
    def principal(self) -> str:
        """The user name that the registry knows, without secrets; empty before a challenge."""
        return self._authorizer.principal

    def expect_push(self, sources: Iterable[RepositoryName] = ()) -> None:
        """Request one token for pushing and for mounting from `sources`."""
        self._wants_push = True
        self._sources |= {pull(source) for source in sources if source != self.name}

    # -- manifests

    def head_manifest(self, target: str) -> Descriptor | None:
        """Look up a tag or digest; None if it is not found, or hidden from this user.

        The digest comes from the registry, unverified. Raises RegistryError.
        """
        answer = self.fetch("HEAD", f"manifests/{target}", {"accept": ACCEPT})
        try:
            if answer.status in (405, 501):
                return self._head_by_get(target)
            if answer.status in (403, 404):  # Artifactory and GHCR answer 403 for a missing manifest
                return None
            if answer.status != 200:
                raise error_of(answer.refusal(), f"look up {self._named(target)}", self.name.registry)
            digest = read_digest(answer.header("docker-content-digest"))
            length = answer.length
            media_type = answer.media_type
            if digest is None or length is None or media_type not in INDEX_TYPES | MANIFEST_TYPES:
                return self._head_by_get(target)
            return Descriptor(media_type, digest, length)
        finally:
            answer.drain()  # read the empty body, so that the connection can be reused

    def _head_by_get(self, target: str) -> Descriptor | None:
        try:
            return self.get_manifest(target).descriptor()
        except (NotFoundError, AuthError):
            return None

    def get_manifest(self, target: str) -> Document:
        """Fetch an index or manifest by tag or digest, and verify the digest if given.

        Raises RegistryError, IntegrityError, and LayerError for an invalid document.
        """
        data, media_type = self.get_manifest_data(target)
        if media_type == "text/html":
            raise garbage(self.name.registry, "web page instead of a manifest")
        known = media_type in INDEX_TYPES | MANIFEST_TYPES or media_type.startswith("application/vnd.docker.dist")
        return parse_document(data, f"{self.name}:{target}", media_type if known else "")

    def get_manifest_data(self, target: str) -> tuple[bytes, str]:
        """Fetch the bytes of an index or manifest and its media type; raises RegistryError and IntegrityError."""
        what = f"pull {self._named(target)}"
        request = Request("GET", self.url(f"manifests/{target}"), {"accept": ACCEPT}, whole=MAX_DOCUMENT_BYTES)
        answer = self.call(request)
        if answer.status != 200:
            raise self._refused(answer, what)
        data = answer.read(MAX_DOCUMENT_BYTES)
        if data is None:
            raise RejectedError(
                "manifest-too-long",
                f"the manifest of {self._named(target)} has over {MAX_DOCUMENT_BYTES:,} bytes",
                "do not trust this image; if it is yours, remove large annotations",
            )
        wanted = read_digest(target) or read_digest(answer.header("docker-content-digest"))
        if wanted is not None and digest_of(data) != wanted:
            raise IntegrityError(
                "manifest-digest",
                f"{self.name.registry} sent {digest_of(data)} as {self.name}@{wanted}",
                "the registry, or a proxy in front of it, modifies manifests",
            )
        return data, answer.media_type

    def put_manifest(self, target: str, document: Document) -> RefusedError | RepositoryMissingError | None:
        """Put a document under a tag or its digest; returns a refusal that may mean missing parts.

        For a document with a subject, `lists_referrers` is updated ("Pushing Manifests with Subject"). Raises
        RegistryError and IntegrityError.
        """
        headers = {"content-type": document.media_type}
        answer = self.call(Request("PUT", self.url(f"manifests/{target}"), headers, document.data))
        if answer.status not in (200, 201, 202):
            refusal = answer.refusal()
            if refusal.says("MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"):
                named = ", ".join(map(str, refusal.digests[:10]))
                return RefusedError(
                    refusal,
                    RefusalReason.MISSING_PARTS,
                    f"{self.name} lacks parts of {document.digest}, although all of them were sent or found"
                    f"{f': {named}' if named else ''} ({refusal})",
                    "check the registry's log, and that garbage collection is not running; then push again",
                )
            error = error_of(refusal, f"push {self._named(target)}", self.name.registry)
            if isinstance(error, RefusedError | RepositoryMissingError):
                return error
            raise error
        said = read_digest(answer.header("docker-content-digest"))
        listed = read_digest(answer.header("oci-subject"))
        answer.drain()
        if said is not None and said != document.digest:
            raise IntegrityError(
                "manifest-digest",
                f"{self.name.registry} stored {said}; expected {document.digest}",
                "the registry, or a proxy in front of it, modifies manifests",
            )
        if document.subject is not None:
            with self._lock:
                self.lists_referrers = listed == document.subject.digest and self.lists_referrers is not False
        return None

    # -- blobs

    def head_blob(self, digest: Digest) -> int | None:
        """Return the size of a blob in bytes, or None if it is not found. Raises RegistryError."""
        answer = self.fetch("HEAD", f"blobs/{digest}")
        if answer.status in (200, 403, 404, 405):
            answer.drain()
        if answer.status == 200:
            return answer.length or 0
        if answer.status in (403, 404, 405):  # 403 may mean not found after a redirect to a signed URL
            return None
        raise error_of(answer.refusal(), f"look up {self.name}@{digest}", self.name.registry)

    def get_blob(self, digest: Digest, offset: int = 0, attempts: Attempts | None = None) -> Answer:
        """Start to fetch a blob, from an offset if the status is 206. Raises RegistryError."""
        headers = {"range": f"bytes={offset}-"} if offset else {}
        answer = self.call(Request("GET", self.url(f"blobs/{digest}"), headers, attempts=attempts))
        if answer.status in (200, 206) or (answer.status == 416 and offset):
            return answer
        raise self._refused(answer, f"pull {self.name}@{digest}")

    def listing(self, subject: Digest) -> Listing:
        """Return what this process adds to the referrers of a subject."""
        with self._lock:
            return self._listings.setdefault(subject, Listing(threading.Lock(), {}))

    # -- tags

    def tags(self) -> list[str]:
        """List all tags, page by page; raises RegistryError."""
        found: list[str] = []
        for answer in self.pages("tags/list?n=1000", "a list of tags"):
            if answer.status != 200:
                raise error_of(answer.refusal(), f"list the tags of {self.name}", self.name.registry)
            data = answer.read(_MAX_PAGE_BYTES)
            try:
                found += msgspec.json.decode(data or b"", type=_Tags).tags or []
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise garbage(self.name.registry, "invalid list of tags") from error
            if len(found) > _MAX_TAGS:
                raise garbage(self.name.registry, f"over {_MAX_TAGS:,} tags")
        return found

    def pages(self, path: str, what: str, headers: Mapping[str, str] | None = None) -> Iterator[Answer]:
        """GET a list page by page (RFC 8288); yields responses with unread bodies. Raises RegistryError."""
        url = self.url(path)
        for _ in range(_MAX_PAGES):
            answer = self.call(Request("GET", url, headers or {}, whole=_MAX_PAGE_BYTES))
            yield answer
            link = _next_link(answer.header("link"))
            if not link:
                return
            after = self.trusted(join(url, link))
            if not self._is_own(after) or after == url:
                raise garbage(self.name.registry, f"{what} with an invalid next page")
            url = after
        raise garbage(self.name.registry, f"{what} with too many pages")

    # -- requests

    def _refused(self, answer: Answer, what: str) -> RegistryError:
        """Make the error for a refused GET, by the registry or by the target of a redirect."""
        refusal = answer.refusal()
        is_own = self._is_own(answer.url)
        if is_own or refusal.is_passing:
            return error_of(refusal, what, self.name.registry if is_own else printable(answer.host))
        # Logging in would not help: no credentials are sent there. Such URLs are signed for a short time.
        return RejectedError(
            "redirect-refused",
            f"{printable(answer.host)}, a redirect from {self.name.registry}, refused to let you {what} ({refusal})",
            "try again, and check the clock of this machine; else report it to the operator of the registry",
        )

    def _named(self, target: str) -> str:
        return f"{self.name}@{target}" if ":" in target else f"{self.name}:{printable(target)}"

    def url(self, path: str) -> str:
        return f"{self._base}/v2/{self.name.repository}/{path}"

    def fetch(self, method: Method, path: str, headers: Mapping[str, str] | None = None) -> Answer:
        """Send GET or HEAD for a path of the repository; raises RegistryError."""
        return self.call(Request(method, self.url(path), headers or {}))

    def call(self, request: Request) -> Answer:
        """Send a request and follow redirects: always for GET and HEAD, otherwise only if method and body are kept.

        Credentials are sent only to the registry itself. Returns any response except the registry's 401.
        Raises RegistryError.
        """
        for _ in range(_MAX_REDIRECTS):
            answer = self._authorized(request) if self._is_own(request.url) else self.transport.send(request)
            if request.method not in ("GET", "HEAD") and answer.status not in _KEEPING_REDIRECTS:
                return answer
            target = follow(answer, allow_other_hosts=True)
            if target is None:
                return answer
            answer.drain()
            request = request._replace(url=target)
        raise garbage(self.name.registry, "too many redirects")

    def _authorized(self, request: Request) -> Answer:
        """Send a request to the registry; retries with (other) credentials after a 401."""
        own = frozenset((push(self.name) if self._wants_push else pull(self.name),))
        what = f"{'push to' if self._wants_push else 'pull'} {self.name.repository}"
        for times in range(_MAX_REFUSALS):
            try:
                used = self._authorizer.header(own | self._sources, times=times)
            except AuthError:
                if not self._sources:
                    raise
                # Some token services refuse all scopes if one is not allowed. Drop those for mounts, which may fail.
                self._sources = frozenset()
                used = self._authorizer.header(own, times=times)
            signed = {**request.headers, "authorization": used} if used else request.headers
            answer = self.transport.send(request._replace(headers=signed))
            if answer.status in (403, 404) and not used and self._finds_challenge():
                answer.drain()
                continue
            if answer.status != 401:
                return answer
            if not self._authorizer.learn(answer, used, times):
                if used and self._authorizer.credentials is not None:
                    raise self._authorizer.refused(answer.refusal(), what)
                break
            self.transport.counts.add(requests=-1)
            answer.drain()
        raise error_of(answer.refusal(), what, self.name.registry)

    def _finds_challenge(self) -> bool:
        """Ask `/v2/` for a challenge, once for all repositories of the registry; tells whether it has sent one.

        Some registries challenge only there, and hide from anonymous users what exists elsewhere.
        """
        try:
            has_credentials = self._authorizer.credentials is not None
        except DetlayerError:  # this matters only if the registry asks for credentials
            has_credentials = True
        if not has_credentials:
            return False
        with self._roots.lock:
            if self.name.host not in self._roots.challenged:
                self._roots.challenged[self.name.host] = self._ask_root()
            return self._roots.challenged[self.name.host]

    def _ask_root(self) -> bool:
        try:
            answer = self.transport.send(Request("GET", f"{self._base}/v2/", auth=True, is_optional=True))
        except RegistryError:
            return False
        try:
            return answer.status == 401 and self._authorizer.learn(answer, "", 0)
        finally:
            answer.drain()

    def location(self, answer: Answer) -> str:
        """Return the URL where an upload continues, absolute, and by HTTPS on this host if the registry uses HTTPS."""
        text = answer.header("location")
        if not text:
            raise garbage(self.name.registry, "upload without a Location")
        return self.trusted(join(answer.url, text))

    def trusted(self, url: str) -> str:
        """Check a URL from this registry. Raises RegistryError.

        A registry behind a TLS proxy may name itself with plain HTTP; HTTPS is used instead.
        """
        url = checked(url, self.name.registry)
        parts, base = urlsplit(url), urlsplit(self._base)
        if base.scheme == "https" and parts.scheme == "http":
            if parts.hostname != base.hostname:
                raise RejectedError(
                    "redirect-insecure",
                    f"{self.name.registry} redirects uploads to plain HTTP on another host: {printable(parts.netloc)}",
                    "configure the registry, or the proxy in front of it, for HTTPS",
                )
            return urlunsplit(parts._replace(scheme="https", netloc=base.netloc))
        return url

    def _is_own(self, url: str) -> bool:
        return origin(url) == origin(self._base)


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


def _next_link(header: str) -> str:
    """Return the URL of the next page (RFC 8288); empty on the last one."""
    start, _, rest = header.partition(">")
    return start.partition("<")[2] if 'rel="next"' in rest or "rel=next" in rest else ""
