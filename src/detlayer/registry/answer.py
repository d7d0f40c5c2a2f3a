"""Error responses of registries as our errors: the codes of the distribution-spec, bounded and shown on one line."""

from __future__ import annotations

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

MAX_ERROR_BYTES = 4 << 20  # a registry may name each missing blob of a manifest
_MAX_SHOWN = 300
_MAX_ERRORS = 20_000


class Fault(msgspec.Struct, frozen=True):
    """One error of an error body (distribution-spec, "Error Codes"): its code, and the digests that it names."""

    code: str
    message: str
    digests: tuple[Digest, ...] = ()


class Refusal(msgspec.Struct, frozen=True):
    """An error response: its status, and the errors in its body if that follows the specification."""

    url: str
    status: int
    faults: tuple[Fault, ...] = ()

    def says(self, *codes: str) -> bool:
        return any(fault.code in codes for fault in self.faults)

    @property
    def is_passing(self) -> bool:
        """Whether trying again may help."""
        return self.status == 429 or 500 <= self.status < 600

    @property
    def digests(self) -> tuple[Digest, ...]:
        """All blobs that it names, as a registry does which misses some."""
        return tuple({digest: None for fault in self.faults for digest in fault.digests})

    def __str__(self) -> str:
        said = "; ".join(": ".join(filter(None, (fault.code, fault.message))) for fault in self.faults)
        return f"{self.status}" + (f", {printable(said[:_MAX_SHOWN])}" if said else "")


def read_faults(body: bytes, secrets: Sequence[str] = ()) -> tuple[Fault, ...]:
    """Read an error body, without `secrets`; empty if it is something else, such as a proxy's page."""
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
    for secret in secrets:
        code, message = code.replace(secret, "…"), message.replace(secret, "…")
    digests = {digest: None for digest in map(read_digest, _texts(item.get("detail"), 0)) if digest is not None}
    return Fault(code, message, tuple(digests))


def _texts(value: object, depth: int) -> list[str]:
    """All texts in an error's detail: every registry structures it differently."""
    if isinstance(value, str):
        return [value]
    if depth > 3:
        return []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in values for text in _texts(one, depth + 1)]


def read_digest(text: str) -> Digest | None:
    """Read a digest that a registry names; None if it is invalid."""
    try:
        return parse_digest(text)
    except ValueError:
        return None


class RefusalReason(Enum):
    """Why a registry refuses, as the codes of errors name it."""

    UNSPECIFIED = "registry-refused"
    MISSING_PARTS = "blobs-missing"
    MISSING_REPOSITORY = "repository-missing"
    IMMUTABLE_TAG = "tag-immutable"
    READ_ONLY = "registry-read-only"
    TOO_LARGE = "too-large"

    @property
    def may_mean_missing_parts(self) -> bool:
        """Whether the registry may lack what the document names. Registries agree on no code for that."""
        return self in (self.MISSING_PARTS, self.UNSPECIFIED, self.MISSING_REPOSITORY)


class RefusedError(RejectedError):
    """A registry refuses a request."""

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
    """There is no such repository, or the registry does not say so to us."""

    reason = RefusalReason.MISSING_REPOSITORY
    digests: tuple[Digest, ...] = ()

    def with_message(self, message: str, hint: str) -> RepositoryMissingError:
        return RepositoryMissingError(self.code, message, hint)


class DeniedError(AuthError):
    """A registry knows who we are, and does not let us."""


class BlobRefusedError(IntegrityError):
    """A registry says that the bytes that were sent do not have the blob's digest."""


def error_of(refusal: Refusal, what: str, host: str) -> RegistryError:
    """Make an error of a refusal. `what` says what was wanted, as in `push to acme/app`."""
    status = refusal.status
    if status < 400:
        return garbage(host, f"{status} to a request to {what}")
    said = f"{host} refused to let you {what} ({refusal})"
    if status == 400 and refusal.url.startswith("http:") and not refusal.faults:
        return RefusedError(
            refusal,
            RefusalReason.UNSPECIFIED,
            f"{host} does not take what it was asked over plain HTTP ({refusal})",
            "if it has TLS, name the CA that signed its certificate: --ca-file FILE",
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
            f"can't {what}: {host} has no such repository ({refusal})",
            "create the repository first: this registry does not do so by itself (ECR: aws ecr create-repository)",
        )
    if refusal.says("TAG_INVALID", "TAG_IMMUTABLE", "ImageTagAlreadyExistsException") or (
        "immutable" in str(refusal).lower()
    ):
        return RefusedError(
            refusal, RefusalReason.IMMUTABLE_TAG, said, "the registry lets no tag move: push under a new tag"
        )
    if status == 403 or refusal.says("DENIED"):
        return denied(refusal, what, host)
    if status == 404:
        return NotFoundError("not-found", f"can't {what}: it is not there ({refusal})", "check the name and the tag")
    if what.startswith("push") and (status == 405 or refusal.says("UNSUPPORTED")):
        return RefusedError(refusal, RefusalReason.READ_ONLY, said, "is the registry read-only, or a mirror?")
    if refusal.is_passing:
        return UnavailableError(
            "registry-busy",
            f"can't {what}: {host} has no time now ({refusal})",
            "try again later, or raise --retries and --timeout",
        )
    if status == 413:
        return RefusedError(
            refusal, RefusalReason.TOO_LARGE, said, "the registry, or a proxy before it, takes no body of this size"
        )
    return RefusedError(refusal, RefusalReason.UNSPECIFIED, said, "see what the registry says, and its log")


def login_hint(host: str) -> str:
    """Say how to log in to a registry."""
    return f"run `docker login {host}`, or set DETLAYER_USERNAME and DETLAYER_PASSWORD"


def denied(refusal: Refusal, what: str, host: str) -> DeniedError:
    """Make an error of a refusal although the registry knows who we are."""
    return DeniedError(
        "registry-denied",
        f"{host} refused to let you {what} ({refusal})",
        f"ask for the right to {what}, or `docker login {host}` as somebody who has it",
    )


def garbage(host: str, what: str) -> RegistryError:
    """Make an error of an answer that no registry should give."""
    return RejectedError(
        "registry-garbage", f"{host} answers {printable(what)}", "is this a registry? check the address, and any proxy"
    )
