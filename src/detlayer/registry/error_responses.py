"""Error responses of registries as DetlayerErrors: distribution-spec error codes, bounded, on one line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

import msgspec

from detlayer.errors import (
    AuthError,
    IntegrityError,
    NotFoundError,
    RegistryError,
    RejectedError,
    UnavailableError,
    printable,
)
from detlayer.oci.types import Digest, parse_digest
from detlayer.registry.retry import BUSY_HINT, shown_s

_FULL = re.compile(r"no space left|disk quota exceeded|insufficient storage|not enough space", re.IGNORECASE)
# How Go writes system errors into JSON: the number of Linux. docker-registry sends them as the detail of an error.
_ERRNO_KEY = "Err"
_ERRNOS = {28: "no space left on device", 122: "disk quota exceeded"}

MAX_ERROR_BYTES = 4 << 20  # a registry may list each missing blob of a manifest
_MAX_SHOWN = 300
_MAX_TEXT_BYTES = 4096
_MAX_DETAIL = 200
_MAX_DETAILS = 20
_MAX_ERRORS = 20_000


class Fault(msgspec.Struct, frozen=True):
    """One error of an error body (distribution-spec, "Error Codes") with the texts and digests in its detail."""

    code: str
    message: str
    digests: tuple[Digest, ...] = ()
    detail: str = ""


class Refusal(msgspec.Struct, frozen=True):
    """An error response.

    `faults` is empty unless the body follows the specification, or explains an internal error in plain text.
    `retry_after_s` is how long the host asks to wait.
    """

    url: str
    status: int
    faults: tuple[Fault, ...] = ()
    retry_after_s: float | None = None

    def says(self, *codes: str) -> bool:
        return any(fault.code in codes for fault in self.faults)

    @property
    def is_passing(self) -> bool:
        """Whether a retry may help."""
        return self.status == 429 or self._is_internal

    @property
    def _is_internal(self) -> bool:
        return 500 <= self.status < 600

    @property
    def is_full(self) -> bool:
        """Whether the registry has no space left."""
        return self._is_internal and (self.status == 507 or _FULL.search(str(self)) is not None)

    @property
    def is_gateway_timeout(self) -> bool:
        """Whether a proxy gave up waiting: the registry may still be at work. 524 is Cloudflare's."""
        return self.status in (504, 524)

    @property
    def digests(self) -> tuple[Digest, ...]:
        """All digests in the errors, such as those of missing blobs."""
        return tuple({digest: None for fault in self.faults for digest in fault.digests})

    def __str__(self) -> str:
        said = "; ".join(
            ": ".join(filter(None, (fault.code, fault.message, fault.detail if self._is_internal else "")))
            for fault in self.faults
        )
        return f"{self.status}" + (f", {printable(said[:_MAX_SHOWN])}" if said else "")


def read_faults(
    body: bytes, secrets: Sequence[str] = (), *, status: int = 0, media_type: str = ""
) -> tuple[Fault, ...]:
    """Read an error body, without `secrets`; empty if it is something else, such as a proxy's page.

    A plain text is read only if the status says that the server failed.
    """
    if media_type == "text/plain" and status >= 500:
        text = " ".join(body[:_MAX_TEXT_BYTES].decode("utf-8", "replace").split())
        return (Fault("", _without(text, secrets)),) if text else ()
    try:
        document = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ()
    listed = document.get("errors") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        return ()
    return tuple(_fault(item, secrets) for item in listed[:_MAX_ERRORS] if isinstance(item, dict))


def _fault(item: dict[str, object], secrets: Sequence[str]) -> Fault:
    code, message = (value if isinstance(value, str) else "" for value in (item.get("code"), item.get("message")))
    texts = _texts(item.get("detail"), 0)
    digests = {digest: None for digest in map(read_digest, texts) if digest is not None}
    detail = _without(" ".join(texts[:_MAX_DETAILS])[:_MAX_TEXT_BYTES], secrets)
    return Fault(_without(code, secrets), _without(message, secrets), tuple(digests), detail[:_MAX_DETAIL])


def _without(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        text = text.replace(secret, "…")
    return text


def _texts(value: object, depth: int) -> list[str]:
    """Collect all strings in an error's detail: every registry structures it differently."""
    if isinstance(value, str):
        return [value]
    if depth > 3:
        return []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    texts = [text for one in values for text in _texts(one, depth + 1)]
    number = value.get(_ERRNO_KEY) if isinstance(value, dict) else None
    return [*texts, _ERRNOS[number]] if isinstance(number, int) and number in _ERRNOS else texts


def read_digest(text: str) -> Digest | None:
    """Parse a digest from a registry; None if it is invalid."""
    try:
        return parse_digest(text)
    except ValueError:
        return None


class RefusalReason(Enum):
    """The reason for a refusal; the value is the error code."""

    UNSPECIFIED = "registry-refused"
    MISSING_PARTS = "blobs-missing"
    MISSING_REPOSITORY = "repository-missing"
    IMMUTABLE_TAG = "tag-immutable"
    READ_ONLY = "registry-read-only"
    TOO_LARGE = "too-large"

    @property
    def may_mean_missing_parts(self) -> bool:
        """Whether blobs or manifests may be missing. Registries use different codes for that."""
        return self in (self.MISSING_PARTS, self.UNSPECIFIED, self.MISSING_REPOSITORY)


class RefusedError(RejectedError):
    """The registry refuses a request."""

    def __init__(self, refusal: Refusal, reason: RefusalReason, message: str, hint: str) -> None:
        super().__init__(reason.value, message, hint)
        self.refusal = refusal
        self.reason = reason

    @property
    def digests(self) -> tuple[Digest, ...]:
        return self.refusal.digests

    def with_message(self, message: str, hint: str) -> RefusedError:
        return RefusedError(self.refusal, self.reason, message, hint)


class RepositoryMissingError(NotFoundError):
    """The repository does not exist, or the registry hides it from this user."""

    reason = RefusalReason.MISSING_REPOSITORY
    digests: tuple[Digest, ...] = ()

    def with_message(self, message: str, hint: str) -> RepositoryMissingError:
        return RepositoryMissingError(self.code, message, hint)


class BusyError(UnavailableError):
    """The registry answers that it can't carry out the request now."""

    def __init__(self, refusal: Refusal, code: str, message: str, hint: str) -> None:
        super().__init__(code, message, hint)
        self.refusal = refusal


class DeniedError(AuthError):
    """The credentials are valid but lack the permission."""


class BlobRefusedError(IntegrityError):
    """The registry reports that the received bytes do not match the blob's digest."""


def error_of(refusal: Refusal, what: str, host: str) -> RegistryError:
    """Turn a refusal into an error. `what` is the request as a verb phrase, such as `push to acme/app`."""
    status = refusal.status
    if status < 400:
        return garbage(host, f"status {status} for a request to {what}")
    said = f"{host} refused to let you {what} ({refusal})"
    if status == 400 and refusal.url.startswith("http:") and not refusal.faults:
        return RefusedError(
            refusal,
            RefusalReason.UNSPECIFIED,
            f"{host} rejected a request over plain HTTP ({refusal})",
            "if the registry has TLS, pass the CA that signed its certificate: --ca-file FILE",
        )
    if status == 401:
        return AuthError(
            "registry-auth",
            said,
            login_hint(host),
        )
    if status == 404 and (refusal.says("NAME_UNKNOWN") or what.startswith("push")):
        return RepositoryMissingError(
            "repository-missing",
            f"can't {what}: repository not found on {host} ({refusal})",
            "create the repository first (ECR: aws ecr create-repository --repository-name NAME)"
            if what.startswith("push")
            else f"check the name; if the repository is private, {login_hint(host)}",
        )
    if refusal.says("TAG_INVALID", "TAG_IMMUTABLE", "ImageTagAlreadyExistsException") or (
        "immutable" in str(refusal).lower()
    ):
        return RefusedError(refusal, RefusalReason.IMMUTABLE_TAG, said, "the tag is immutable: push under a new tag")
    if status == 403 or refusal.says("DENIED"):
        return denied(refusal, what, host)
    if status == 404:
        return NotFoundError("not-found", f"can't {what}: not found ({refusal})", "check the name and the tag")
    if what.startswith("push") and (status == 405 or refusal.says("UNSUPPORTED")):
        return RefusedError(refusal, RefusalReason.READ_ONLY, said, "read-only or a mirror: push to another one")
    if refusal.is_passing:
        return _busy(refusal, what, host)
    if status == 413:
        return RefusedError(
            refusal, RefusalReason.TOO_LARGE, said, "raise the body size limit of the registry, or of its proxy"
        )
    return RefusedError(refusal, RefusalReason.UNSPECIFIED, said, "read the registry's answer above and its log")


def _busy(refusal: Refusal, what: str, host: str) -> BusyError:
    if refusal.is_full:
        return BusyError(
            refusal,
            "registry-full",
            f"can't {what}: {host} has no space left ({refusal})",
            "free space on the registry, or run its garbage collection; then push again",
        )
    asks = f", and asks to wait {shown_s(refusal.retry_after_s)}" if refusal.retry_after_s is not None else ""
    return BusyError(refusal, "registry-busy", f"can't {what}: {host} is busy ({refusal}){asks}", BUSY_HINT)


def login_hint(host: str) -> str:
    """Return the hint that says how to log in to a registry."""
    return f"run `docker login {host}`, or set DETLAYER_USERNAME and DETLAYER_PASSWORD"


def denied(refusal: Refusal, what: str, host: str) -> DeniedError:
    """Make the error for valid credentials that lack the permission."""
    return DeniedError(
        "registry-denied",
        f"{host} refused to let you {what} ({refusal})",
        f"ask for permission to {what}, or run `docker login {host}` as another user",
    )


def garbage(host: str, what: str) -> RegistryError:
    """Make the error for a response that violates the protocol."""
    return RejectedError(
        "registry-garbage", f"invalid response from {host}: {printable(what)}", "check the address and any proxy"
    )
