"""A strict, in-process registry of the OCI distribution-spec 1.1: records requests and refuses violations.

A test asserts `registry.violations == []` at its end. Where registries differ, rules.py says how this one behaves; what
goes wrong on connections is in faults.py. Sources: distribution-spec 1.1; docker-registry where that is silent.
"""

from __future__ import annotations

import base64
import ssl
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.contracts.certificates import ca_path, server_context
from tests.contracts.documents import Documents
from tests.contracts.faults import Fault
from tests.contracts.http_records import Answer, RefusedError, Request, Violation, json_answer
from tests.contracts.http_server import Incoming, WireServer
from tests.contracts.registry_behaviour import Rules, Tokens, Trap
from tests.contracts.storage import Storage
from tests.contracts.storage_host import Elsewhere, byte_range
from tests.contracts.tokens import ALICE, NOBODY, SERVICE, Account, Grant, TokenService
from tests.contracts.uploads import NAME, Uploads, valid_digest

Auth = Literal["open", "basic", "bearer"]
_DENIED = {401: "UNAUTHORIZED", 403: "DENIED"}


class StrictRegistry:
    """A registry on its own port with optional traps; a context manager.

    Tests may read and change `storage` at any time. `tokens` is the token service for `bearer`. `elsewhere` is the
    other host for blobs and uploads. `violations` are those of all three.
    """

    def __init__(
        self,
        *traps: Trap,
        auth: Auth = "open",
        tls: bool = False,
        rules: Rules | None = None,
        tokens: Tokens | None = None,
        accounts: tuple[Account, ...] = (ALICE,),
        anonymous: Account = NOBODY,
    ) -> None:
        trap = sum(traps, Trap())
        context: ssl.SSLContext | None = server_context() if tls or trap.tls else None
        self.auth: Auth = "bearer" if trap.bearer else auth
        self.rules = trap.apply(rules or Rules())
        self.storage = Storage()
        self.ca_file: Path | None = ca_path() if context else None
        self.account: Account | None = accounts[0] if self.auth != "open" else None
        self._accounts = accounts
        self._anonymous = anonymous
        self.server = WireServer(self, tls=context, one_at_a_time=self.rules.one_at_a_time)
        self.elsewhere = Elsewhere(self.storage, context, self.server.url)
        self.uploads = Uploads(
            self.storage, self.rules, base=self.server.url, elsewhere=self.elsewhere.server.url + "/elsewhere"
        )
        self.elsewhere.uploads = self.uploads
        self.tokens: TokenService | None = None
        if self.auth == "bearer":
            self.tokens = TokenService(
                accounts, anonymous=anonymous, behaviour=trap.tokens or tokens or Tokens(), tls=context
            )
        self._documents = Documents(self.storage, self.rules, self.server.url)
        self.arm(*trap.faults)

    # -- what tests look at

    @property
    def address(self) -> str:
        """The prefix of references: host and port."""
        return self.server.address

    @property
    def requests(self) -> list[Request]:
        """The requests to the registry in order of arrival; those for tokens are in `token_requests`."""
        return self.server.requests

    @property
    def token_requests(self) -> list[Request]:
        return self.tokens.server.requests if self.tokens else []

    @property
    def violations(self) -> list[Violation]:
        others = self.tokens.server.violations if self.tokens else []
        return [*self.server.violations, *self.elsewhere.server.violations, *others]

    @property
    def secrets(self) -> set[str]:
        """Strings that must not appear in outputs or at other hosts."""
        logins = {f"{one.username}:{one.password}" for one in self._accounts}
        basic = {base64.b64encode(login.encode()).decode() for login in logins}
        tokens = self.tokens.secrets if self.tokens else set[str]()
        return {one.password for one in self._accounts} | basic | tokens

    def clear(self) -> None:
        """Clear requests and violations; the storage and armed faults are kept."""
        self.server.clear()
        self.elsewhere.server.clear()
        if self.tokens:
            self.tokens.clear()

    def arm(self, *faults: Fault) -> None:
        self.server.arm(*faults)

    def revive(self) -> None:
        """Disarm all faults, and serve again after a Kill."""
        self.server.revive()

    def repositories(self) -> list[str]:
        with self.storage.lock:
            return sorted(self.storage.repositories)

    def tags(self, name: str) -> dict[str, str]:
        with self.storage.lock:
            return dict(self.storage.repository(name).tags)

    def blob(self, name: str, digest: str) -> bytes | None:
        with self.storage.lock:
            return self.storage.repository(name).blobs.get(digest)

    def manifest(self, name: str, digest: str) -> tuple[str, bytes] | None:
        """Return media type and bytes of a manifest of the repository."""
        with self.storage.lock:
            stored = self.storage.repository(name).manifests.get(digest)
            return (stored.media_type, stored.data) if stored else None

    def put_blob(self, name: str, data: bytes) -> str:
        return self.storage.put_blob(name, data)

    def put_manifest(self, name: str, data: bytes, media_type: str, tag: str = "") -> str:
        return self.storage.put_manifest(name, data, media_type, tag)

    def lose(self, name: str, digest: str, *, lying: bool = False) -> None:
        self.storage.lose(name, digest, lying=lying)

    def forget(self) -> None:
        self.storage.forget()

    def end_uploads(self) -> None:
        self.storage.end_uploads()

    def close(self) -> None:
        for server in (self.server, self.elsewhere.server, *((self.tokens.server,) if self.tokens else ())):
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- requests

    def answer(self, request: Request, body: Incoming) -> Answer:
        """Route a request (distribution-spec, "Endpoints")."""
        self._check_head(request, body)
        answer = self._route(request, body)
        tracking = ("Set-Cookie", "session=strict; Path=/")  # a client that returns it stores cookies
        version = ("Docker-Distribution-API-Version", "registry/2.0")
        return Answer(answer.status, (*answer.headers, version, tracking), answer.body, answer.length, answer.close)

    def disturbed(self, request: Request | None) -> None:
        """Excuse wrong session states that a client can't know."""
        self.uploads.disturb(request.path.partition("/blobs/uploads/")[2] if request else None)

    def _check_head(self, request: Request, body: Incoming) -> None:
        if request.header("host") != self.server.address:
            raise RefusedError(400, "UNSUPPORTED", f"Host: {request.header('host')} is not here", violation="host")
        if request.has("cookie"):
            raise RefusedError(400, "UNSUPPORTED", "a cookie was sent", violation="cookie")
        if request.method in ("GET", "HEAD", "DELETE") and (body.length or body.chunked):
            text = f"{request.method} with a body"
            raise RefusedError(400, "UNSUPPORTED", text, violation="body")
        if "#" in request.target or "//" in request.path or not request.path.startswith("/v2"):
            raise RefusedError(404, "UNSUPPORTED", f"{request.target} is not in the API", violation="path")

    def _route(self, request: Request, body: Incoming) -> Answer:
        method, path = request.method, request.path
        if path == "/v2/" and method == "GET":
            self._authorize(request, "", ())
            return json_answer(200, {})
        name, kind, rest = _split(path)
        if not NAME.match(name) or len(name) > 255:
            raise RefusedError(400, "NAME_INVALID", f"{name!r} is no name", violation="name")
        actions = _actions(method, kind)
        self._authorize(request, name, actions)
        if "push" in actions:
            self._check_writable(name)
        match kind, method:
            case "blobs", "GET" | "HEAD":
                return self._read_blob(name, valid_digest(rest), request)
            case "blobs", "DELETE":
                return self._delete_blob(name, valid_digest(rest))
            case "uploads", "POST" if not rest:
                return self.uploads.begin(name, request, body, lambda *pair: self._may(request, *pair))
            case "uploads", "PATCH" if rest:
                return self.uploads.append(rest, request, body)
            case "uploads", "PUT" if rest:
                return self.uploads.finish(rest, request, body)
            case "uploads", "GET" if rest:
                return self.uploads.status(rest, request)
            case "uploads", "DELETE" if rest:
                return self.uploads.cancel(rest, request)
            case "manifests", "GET" | "HEAD":
                return self._documents.read(name, rest, request)
            case "manifests", "PUT":
                return self._documents.put(name, rest, request, body)
            case "manifests", "DELETE":
                return self._documents.delete(name, rest)
            case "tags", "GET":
                return self._documents.list_tags(name, request)
            case "referrers", "GET":
                return self._documents.list_referrers(name, valid_digest(rest), request)
        raise RefusedError(405, "UNSUPPORTED", f"{method} {path} is not in the API", violation="method")

    def _check_writable(self, name: str) -> None:
        if self.rules.read_only:
            raise RefusedError(405, "UNSUPPORTED", "this registry is read-only")
        if not self.rules.creates_repositories and name not in self.storage.repositories:
            text = f"The repository with name '{name}' does not exist in the registry with id '123456789012'"
            raise RefusedError(404, "NAME_UNKNOWN", text)

    def _read_blob(self, name: str, digest: str, request: Request) -> Answer:
        with self.storage.lock:
            repository = self.storage.repositories.get(name)
            data = repository.blobs.get(digest) if repository else None
            lies = repository is not None and digest in repository.lying
        if data is None and not (lies and request.method == "HEAD"):
            raise RefusedError(self.rules.absent_status, "BLOB_UNKNOWN", "blob unknown to registry", detail=digest)
        if self.rules.blobs == "elsewhere" and request.method == "GET":
            return Answer(307, (("Location", self.elsewhere.blob_url(name, digest, fishes=self.rules.fishes)),))
        return byte_range(data or b"", digest, request, ranges=self.rules.ranges)

    def _delete_blob(self, name: str, digest: str) -> Answer:
        if not self.rules.deletes:
            raise RefusedError(405, "UNSUPPORTED", "deletes are off")
        with self.storage.lock:
            if self.storage.repository(name).blobs.pop(digest, None) is None:
                raise RefusedError(404, "BLOB_UNKNOWN", "blob unknown to registry", detail=digest)
        return Answer(202)

    # -- authorization

    def _authorize(self, request: Request, name: str, actions: tuple[str, ...]) -> None:
        header = request.header("authorization")
        if self.rules.anonymous_status and name and not header:
            raise RefusedError(self.rules.anonymous_status, "NAME_UNKNOWN", "repository name not known to registry")
        scheme, _, value = header.partition(" ")
        if self.auth == "open":
            if header:
                text = "credentials, though this registry asked for none"
                raise RefusedError(400, "UNSUPPORTED", text, violation="authorization")
            return
        if header and scheme.lower() != self.auth:
            text = f"{scheme} to a registry that asked for {self.auth}"
            raise RefusedError(400, "UNSUPPORTED", text, violation="authorization")
        if self.auth == "basic":
            self._check_login(value, name, actions)
            return
        grant = self._grant(value) if header else None
        if grant is not None and all((name, action) in grant.access for action in actions):
            return
        error = ""
        if header:
            error = "insufficient_scope" if grant is not None else "invalid_token"
        status = self.rules.denied_status if grant is not None else 401
        headers = (self._challenge(name, actions, error),) if status == 401 else ()
        raise RefusedError(status, _DENIED[status], "authentication required", headers=headers)

    def _check_login(self, value: str, name: str, actions: tuple[str, ...]) -> None:
        account = self._basic(value)
        allowed = account is not None and all(account.may(name, action) for action in actions)
        if account is None or (not value and not (actions and allowed)):
            raise RefusedError(401, "UNAUTHORIZED", "authentication required", headers=(self._challenge("", ()),))
        if not allowed:
            raise RefusedError(403, "DENIED", "requested access to the resource is denied")

    def _grant(self, token: str) -> Grant | None:
        assert self.tokens is not None
        if not self.tokens.gave(token):
            text = "a token that the service never gave"
            raise RefusedError(401, "UNAUTHORIZED", text, violation="token-unknown")
        return self.tokens.spend(token)

    def _may(self, request: Request, name: str, action: str) -> bool | None:
        """Check the authorization; False only if the token lacks an action that the service would have granted."""
        _, _, value = request.header("authorization").partition(" ")
        if self.auth == "open":
            return True
        if self.auth == "basic":
            account = self._basic(value)
            return True if account and account.may(name, action) else None
        assert self.tokens is not None
        grant = self.tokens.look(value)
        if grant is None:
            return None
        if (name, action) in grant.access:
            return True
        return False if grant.account.may(name, action) else None

    def _basic(self, value: str) -> Account | None:
        try:
            username, _, password = base64.b64decode(value).decode().partition(":")
        except ValueError:
            return None
        candidates = self._accounts if value else (self._anonymous,)
        return next((one for one in candidates if one.owns(username, password)), None)

    def _challenge(self, name: str, actions: tuple[str, ...], error: str = "") -> tuple[str, str]:
        if self.auth == "basic":
            return "WWW-Authenticate", 'Basic realm="strict registry, \\"quoted\\""'
        assert self.tokens is not None
        words = [f'realm="{self.tokens.realm}"', f'service="{SERVICE}"']
        if name:
            words.append(f'scope="repository:{name}:{",".join(actions)}"')
        if error:
            words.append(f'error="{error}"')
        return "WWW-Authenticate", f"Bearer {','.join(words)}"


def _split(path: str) -> tuple[str, str, str]:
    """Split a path into name, kind and rest."""
    text = path.removeprefix("/v2/")
    for mark, kind in (("/blobs/uploads/", "uploads"), ("/blobs/", "blobs"), ("/manifests/", "manifests")):
        name, found, rest = text.rpartition(mark)
        if found and "/" not in rest:
            return name, kind, rest
    if text.endswith("/tags/list"):
        return text.removesuffix("/tags/list"), "tags", ""
    name, found, rest = text.rpartition("/referrers/")
    if found:
        return name, "referrers", rest
    raise RefusedError(404, "UNSUPPORTED", f"{path} is not in the API", violation="path")


def _actions(method: str, kind: str) -> tuple[str, ...]:
    """Return the actions that a request needs, as in docker-registry."""
    if method == "DELETE" and kind != "uploads":
        return ("delete",)
    return ("pull",) if method in ("GET", "HEAD") and kind != "uploads" else ("pull", "push")
