"""Upload one blob: mount, POST and PUT, or chunks, which a later process can resume.

    UNKNOWN -> PRESENT | MOUNTING -> PRESENT | SESSION(location, offset) -> COMMITTING -> PRESENT

Source: distribution-spec 1.1, "Pushing blobs". The caller stores sessions (`on_session`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

import msgspec

from detlayer.errors import AuthError, RegistryError, RejectedError, UnavailableError
from detlayer.oci.ports import Body, Session
from detlayer.oci.references import RepositoryName
from detlayer.oci.types import Descriptor
from detlayer.registry.address import with_query
from detlayer.registry.client import Repository
from detlayer.registry.error_responses import BlobRefusedError, BusyError, Refusal, error_of
from detlayer.registry.retry import Attempts
from detlayer.registry.transport import Answer, Request, SourceError, Stretch

CHUNKED_FROM_BYTES = 128 << 20  # a blob that took this long to send is worth resuming
_CHUNK_BYTES = 64 << 20
_SMALLEST_CHUNK_BYTES = 1 << 20
_MAX_STARTS = 3
_FIRST_LOOK_S = 1.0
_LONGEST_LOOK_S = 30.0
_BYTES = {"content-type": "application/octet-stream"}
_RANGE = re.compile(r"(?:bytes=)?([0-9]{1,19})-([0-9]{1,19})\Z")

# The longest body of a ranged PATCH that a host accepts, in bytes, from its documentation or errors.
_LONGEST_CHUNK_BYTES = {"ghcr.io": 4 << 20}
_WHOLE_ONLY = frozenset(("gcr.io", "pkg.dev"))  # Artifact Registry rejects chunks; includes all subdomains

UploadResult = Literal["uploaded", "mounted"]


class Progress(msgspec.Struct, frozen=True):
    """Callbacks of an upload: bytes sent (negative if they must be sent again) and its session."""

    advance: Callable[[int], None] = lambda count_bytes: None
    on_session: Callable[[Session | None], None] = lambda session: None


def upload(
    repository: Repository,
    blob: Descriptor,
    body: Callable[[], Body],
    *,
    mount_from: RepositoryName | None = None,
    resume: Session | None = None,
    progress: Progress | None = None,
) -> UploadResult:
    """Upload a blob to a repository; returns how it got there.

    `body` is called only if bytes must be sent. `resume` is a session of an earlier run. Raises RegistryError, and
    IntegrityError if the registry reports a digest mismatch.
    """
    return _Upload(repository, blob, body, progress or Progress()).run(mount_from, resume)


class _SessionError(Exception):
    """The upload must start again in a new session: the session is lost, or the body is too large."""

    def __init__(self, refusal: Refusal | None = None, *, is_too_large: bool = False) -> None:
        self.refusal = refusal
        self.is_too_large = is_too_large


class _Upload:
    def __init__(self, repository: Repository, blob: Descriptor, body: Callable[[], Body], progress: Progress) -> None:
        self._repository = repository
        self._blob = blob
        self._make_body = body
        self._body: Body | None = None
        self._progress = progress
        self._sent = 0
        self._reached = 0
        self._is_storing = False
        self._is_resumed = False
        network = repository.transport.network
        self._starts = _MAX_STARTS
        # The number of attempts without any progress in between.
        self._attempts = Attempts(network.retries + 1, network.read_s * (network.retries + 2))
        self._store_s = network.store_s(blob.size_bytes)
        self._confirmed_at_s = self._moved_at_s = repository.transport.pace.now()
        self._in_chunks = self._may_chunk() and blob.size_bytes >= CHUNKED_FROM_BYTES
        self._chunk_bytes = min(_CHUNK_BYTES, _LONGEST_CHUNK_BYTES.get(repository.name.host, _CHUNK_BYTES))

    def run(self, mount_from: RepositoryName | None, resume: Session | None) -> UploadResult:
        # Only a chunked session can be resumed.
        session = self._recover(resume) if resume is not None and self._in_chunks else None
        while True:
            try:
                if session is None:
                    session = self._begin(mount_from)
                    if session is None:
                        return self._finish("mounted")
                    mount_from = None
                    self._progress.on_session(session)
                self._send(session)
                return self._finish("uploaded")
            except SourceError:
                raise
            except UnavailableError as error:
                if session is None:  # opening a session has retries of its own
                    raise
                if self._has_arrived(error):
                    return self._finish("uploaded")
                session = self._resume(session, error)
            except _SessionError as error:
                session = None
                self._start_again(error)
            except BlobRefusedError:
                if not self._is_resumed:
                    raise
                # The bytes of an earlier run may be corrupt in the registry: start again once.
                self._is_resumed = False
                session = None
            if session is None:
                self._take_back(self._sent)

    def _has_arrived(self, error: UnavailableError) -> bool:
        """Ask whether the blob arrived nevertheless: perhaps only the answer was lost.

        If a proxy gave up waiting, the registry may still be storing the blob: ask until its time is over. Raises
        `error` if the registry does not answer.
        """
        transport, wait_s = self._repository.transport, _FIRST_LOOK_S
        ends = self._moved_at_s + self._store_s
        is_patient = self._is_storing and isinstance(error, BusyError) and error.refusal.is_gateway_timeout
        if is_patient:
            transport.announce(
                f"{self._repository.name.registry} to store {self._blob.digest}", ends - transport.pace.now()
            )
        while True:
            try:
                if self._repository.head_blob(self._blob.digest) is not None:
                    return True
            except UnavailableError as failure:
                raise error from failure
            left_s = ends - transport.pace.now()
            if not is_patient or left_s <= 0:
                return False
            transport.pace.wait(min(wait_s, left_s))
            wait_s = min(wait_s * 2, _LONGEST_LOOK_S)

    def _resume(self, session: Session, error: UnavailableError) -> Session | None:
        """After a failed transfer, return the session to continue, or None to start again.

        Raises `error` if no attempt is left.
        """
        before, failures = self._reached, self._attempts.failures
        is_full = isinstance(error, BusyError) and error.refusal.is_full
        if is_full or not self._attempts.fail():
            raise error
        self._take_back(self._sent)
        self._repository.transport.retries.back_off(self._repository.name.host, failures)
        recovered = self._recover(session) if self._in_chunks else None
        if recovered is not None:
            self._confirm(max(0, recovered.offset - before))
        return recovered

    def _finish(self, result: UploadResult) -> UploadResult:
        self._progress.on_session(None)
        return result

    def _start_again(self, error: _SessionError) -> None:
        """Choose how to send next; raises RegistryError if no start is left."""
        if not error.is_too_large or not self._in_chunks:
            self._starts -= 1
            if not self._starts:
                raise self._refused(error.refusal)
        elif self._chunk_bytes <= _SMALLEST_CHUNK_BYTES:
            raise self._refused(error.refusal)
        else:  # retry until a size is accepted
            self._chunk_bytes = max(self._chunk_bytes // 4, _SMALLEST_CHUNK_BYTES)
        self._in_chunks |= error.is_too_large

    def _refused(self, refusal: Refusal | None) -> RegistryError:
        if refusal is not None and refusal.status != 404:  # the repository exists, or there was no session
            return error_of(refusal, f"push to {self._repository.name.repository}", self._repository.name.registry)
        return RejectedError(
            "upload-lost",
            f"{self._repository.name.registry} lost the upload of {self._blob.digest} {_MAX_STARTS} times",
            "if several servers share this name, give them common storage or sticky sessions",
        )

    # -- sessions

    def _begin(self, mount_from: RepositoryName | None) -> Session | None:
        """Open a session; None if the blob was mounted instead. A failing mount does not fail the push."""
        post = self._repository.url("blobs/uploads/")
        if mount_from is not None:
            answer = self._mount(f"{post}?mount={self._blob.digest}&from={mount_from.repository}")
            if answer is not None and answer.status == 201:
                answer.drain()
                return None
            if answer is not None and answer.status == 202:
                return self._opened(answer)
            if answer is not None:
                answer.drain()
        answer = self._repository.call(Request("POST", post))
        if answer.status != 202:
            raise self._error(answer, "POST")
        return self._opened(answer)

    def _mount(self, url: str) -> Answer | None:
        try:
            return self._repository.call(Request("POST", url, is_optional=True))
        except (AuthError, RejectedError, UnavailableError):
            # The user may push here without being allowed to pull from the source.
            return None

    def _opened(self, answer: Answer) -> Session:
        minimum = answer.header("oci-chunk-min-length")
        if minimum.isascii() and minimum.isdigit() and len(minimum) < 12:
            self._chunk_bytes = max(self._chunk_bytes, int(minimum))
        return self._session(answer, 0)

    def _session(self, answer: Answer, offset: int, last: str = "") -> Session:
        """Read the next Location of a session; without one, `last` remains valid if given."""
        location = last if last and not answer.header("location") else self._repository.location(answer)
        answer.drain()
        return Session(location, offset)

    def _recover(self, session: Session) -> Session | None:
        """Ask for the offset of an earlier session; None if the registry has dropped it."""
        try:
            # An earlier run may have used another scheme for this registry.
            location = self._repository.trusted(session.location)
            answer = self._repository.call(Request("GET", location))
        except (RejectedError, AuthError):
            self._progress.on_session(None)
            return None
        if answer.status not in (202, 204):
            answer.drain()
            self._progress.on_session(None)
            return None
        offset = _reached(answer) or 0
        if offset > self._blob.size_bytes or not self._may_chunk() or not offset:
            answer.drain()
            return None
        self._in_chunks = self._is_resumed = True
        self._reached = max(self._reached, offset)
        self._advance(offset)
        recovered = self._session(answer, offset, location)
        self._progress.on_session(recovered)  # the request may have changed its Location
        return recovered

    # -- bytes

    def _send(self, session: Session) -> None:
        if not self._in_chunks:
            answer = self._put(session, (0, self._blob.size_bytes))
        else:
            while session.offset < self._blob.size_bytes:
                session = self._patch(session)
                self._progress.on_session(session)
            answer = self._put(session, None)
        if answer.status in (201, 204):
            answer.drain()
            return
        raise self._error(answer, "PUT")

    def _put(self, session: Session, span: tuple[int, int] | None) -> Answer:
        self._is_storing = True
        url = with_query(session.location, f"digest={self._blob.digest}")
        if span is None or span == (0, 0):
            self._moved_at_s = self._repository.transport.pace.now()
            return self._repository.call(self._storing(Request("PUT", url, _BYTES, repeat=False)))
        return self._call("PUT", url, _BYTES, span)

    def _storing(self, request: Request) -> Request:
        """Give the registry the time to store the whole blob before it answers."""
        return request._replace(store=str(self._blob.digest), patience_s=self._store_s)

    def _patch(self, session: Session) -> Session:
        self._is_storing = False
        end = min(session.offset + self._chunk_bytes, self._blob.size_bytes)
        answer = self._call(
            "PATCH",
            session.location,
            {**_BYTES, "content-range": f"{session.offset}-{end - 1}"},
            (session.offset, end),
        )
        if answer.status in (201, 202, 204):
            reached = _reached(answer) or end
            if not session.offset < reached <= end:
                answer.drain()
                raise _SessionError
            self._take_back(end - reached)
            self._confirm(max(0, reached - self._reached))  # bytes that are sent again are no progress
            self._reached = max(self._reached, reached)
            return self._session(answer, reached, session.location)
        raise self._error(answer, "PATCH")

    def _call(
        self, method: Literal["PUT", "PATCH"], url: str, headers: dict[str, str], span: tuple[int, int]
    ) -> Answer:
        """Send a range of the blob; bytes of a refused request are not counted as sent."""
        before = self._sent
        if self._body is None:
            self._body = self._make_body()
        stretch = Stretch(self._body, *span, self._advance)
        try:
            request = Request(method, url, headers, stretch, repeat=False)
            answer = self._repository.call(self._storing(request) if method == "PUT" else request)
        except BaseException:
            self._take_back(self._sent - before)
            raise
        self._take_back(self._sent - before - (span[1] - span[0]))  # sent twice because the token was missing
        return answer

    def _error(self, answer: Answer, method: str) -> Exception:
        """Turn a refusal into the error that selects the next step, or ends the upload."""
        is_cut_off = answer.is_cut_off
        refusal = answer.refusal()
        if is_cut_off:
            return UnavailableError(
                "registry-broke-off",
                f"{self._repository.name.registry} received only a part of a request ({refusal})",
                "try again; then check proxies on the way",
            )
        if refusal.says("DIGEST_INVALID"):
            self._progress.on_session(None)
            return BlobRefusedError(
                "blob-refused",
                f"{self._repository.name.registry} reports that the received bytes do not match {self._blob.digest}",
                "try again; then check proxies on the way and the registry's storage",
            )
        if refusal.status == 413 or refusal.says("SIZE_INVALID"):
            return _SessionError(refusal, is_too_large=True)
        if refusal.says("BLOB_UPLOAD_UNKNOWN", "BLOB_UPLOAD_INVALID") or (
            method != "POST" and refusal.status in (404, 416)
        ):
            return _SessionError(refusal)
        return error_of(refusal, f"push to {self._repository.name.repository}", self._repository.name.registry)

    def _confirm(self, count_bytes: int) -> None:
        """Count bytes confirmed by the registry, and the time they took."""
        now_s = self._repository.transport.pace.now()
        self._attempts.advance(count_bytes, now_s - self._confirmed_at_s)
        self._confirmed_at_s = now_s

    def _advance(self, count_bytes: int) -> None:
        self._moved_at_s = self._repository.transport.pace.now()
        self._sent += count_bytes
        self._progress.advance(count_bytes)

    def _take_back(self, count_bytes: int) -> None:
        if count_bytes > 0:
            self._advance(-count_bytes)

    def _may_chunk(self) -> bool:
        host = self._repository.name.host
        return not any(host == one or host.endswith("." + one) for one in _WHOLE_ONLY)


def _reached(answer: Answer) -> int | None:
    """Read how many bytes a session has; None if the registry does not say.

    docker-registry answers 0-0 for an empty session, so that one byte and none look the same.
    """
    told = _RANGE.match(answer.header("range"))
    return int(told[2]) + 1 if told is not None and int(told[1]) == 0 and int(told[2]) else None
