"""A token service on its own port, trusted by strict and real registries.

Sources: docker's "Token Authentication Specification" and "OAuth2 Token Authentication"; the key id is libtrust's,
which docker-registry 2.8 requires.
"""

from __future__ import annotations

import base64
import datetime
import fnmatch
import functools
import hashlib
import re
import ssl
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from tests.contracts.http_records import Answer, RefusedError, Request, json_answer
from tests.contracts.http_server import Incoming, WireServer
from tests.contracts.registry_behaviour import Tokens

SERVICE = "registry.test"
ISSUER = "tokens.test"
_SCOPE = re.compile(r"repository(?:\([a-z]+\))?:[a-z0-9][a-z0-9._/-]*:[a-z*]+(?:,[a-z*]+)*\Z")
_ALL = frozenset(("pull", "push", "delete"))

Access = frozenset[tuple[str, str]]  # (repository, action)


@dataclass(frozen=True, slots=True)
class Account:
    """An account. `allowed`: actions by repository pattern; the first match counts."""

    username: str
    password: str
    identity_token: str = ""
    allowed: Mapping[str, frozenset[str]] = field(default_factory=lambda: {"*": _ALL})

    def may(self, repository: str, action: str) -> bool:
        for pattern, actions in self.allowed.items():
            if fnmatch.fnmatchcase(repository, pattern):
                return action in actions
        return False

    def owns(self, username: str, password: str) -> bool:
        return (username, password) == (self.username, self.password)


NOBODY = Account("", "", allowed={})
ANYBODY_PULLS = Account("", "", allowed={"*": frozenset(("pull",))})
ALICE = Account("alice", "s3cret-pässword:with-colon", "identity-token-of-alice")


@dataclass(slots=True)
class Grant:
    """An issued token, and the number of requests it is still valid for (None: no limit)."""

    account: Account
    access: Access
    left: int | None


@functools.cache
def signing_key() -> tuple[str, str, str]:
    """Create the service's key once: the key, its certificate, and its id in libtrust's format."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = key.public_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ISSUER)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, public, x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    encoded = base64.b32encode(hashlib.sha256(der).digest()[:30]).decode()
    key_id = ":".join(encoded[at : at + 4] for at in range(0, len(encoded), 4))
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem.decode(), certificate.public_bytes(serialization.Encoding.PEM).decode(), key_id


class TokenService:
    """Issues tokens by GET and POST, and refuses requests that violate the specification.

    `requests` counts separately from the registry's, and `asked` has the requested scopes of each request.
    """

    def __init__(
        self,
        accounts: Iterable[Account] = (ALICE,),
        *,
        anonymous: Account = NOBODY,
        behaviour: Tokens | None = None,
        tls: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.accounts = tuple(accounts)
        self.anonymous = anonymous
        self.behaviour = behaviour or Tokens()
        self.asked: list[list[str]] = []
        self._grants: dict[str, Grant] = {}
        self._spent = 0
        self._refresh: dict[str, Account] = {one.identity_token: one for one in self.accounts if one.identity_token}
        self._lock = threading.Lock()
        self.server = WireServer(self, tls=tls, host=host)

    @property
    def realm(self) -> str:
        """The service's URL in challenges."""
        return self.behaviour.realm or f"{self.server.url}/token"

    @property
    def secrets(self) -> set[str]:
        """All tokens issued so far: none may appear in an output."""
        with self._lock:
            return self._grants.keys() | self._refresh.keys()

    def clear(self) -> None:
        self.server.clear()
        self.asked.clear()

    def expire(self) -> None:
        """Expire all tokens issued so far."""
        with self._lock:
            for grant in self._grants.values():
                grant.left = 0

    def spend(self, token: str) -> Grant | None:
        """Use a token for one request; None if it is unknown or expired."""
        with self._lock:
            grant = self._grants.get(token)
            if grant is None or grant.left == 0:
                return None
            self._spent += 1
            if self._spent in self.behaviour.expires_at:
                for given in self._grants.values():
                    given.left = 0
                return None
            if grant.left is not None:
                grant.left -= 1
            return grant

    def look(self, token: str) -> Grant | None:
        """Return the permissions of a token without using it."""
        with self._lock:
            return self._grants.get(token)

    def gave(self, token: str) -> bool:
        with self._lock:
            return token in self._grants

    def answer(self, request: Request, body: Incoming) -> Answer:
        """Answer `GET /token` and `POST /token`."""
        if request.path != "/token":
            raise RefusedError(404, "NOT_FOUND", "there is only /token", violation="token-path")
        if request.has("cookie"):
            raise RefusedError(400, "COOKIE", "a cookie was sent", violation="cookie")
        if request.method == "GET" and self.behaviour.get:
            return self._by_get(request)
        if request.method == "POST" and self.behaviour.post:
            return self._by_post(request, body)
        body.drain()
        raise RefusedError(self.behaviour.post_refusal, "UNSUPPORTED", f"{request.method} is not supported")

    def disturbed(self, request: Request | None) -> None:
        """Ignored: nothing depends on it."""

    def _by_get(self, request: Request) -> Answer:
        scopes = [value for key, value in request.parameters if key == "scope"]
        self._check(request.parameter("service"), scopes)
        account = self._basic(request.header("authorization"))
        named = request.parameter("account")
        if named and named != account.username:
            raise RefusedError(400, "ACCOUNT", f"account={named} is not who logs in", violation="token-account")
        refresh = self._new_refresh(account) if request.parameter("offline_token") == "true" else ""
        return self._grant(account, scopes, refresh)

    def _by_post(self, request: Request, body: Incoming) -> Answer:
        if request.header("content-type").partition(";")[0] != "application/x-www-form-urlencoded":
            raise RefusedError(400, "FORM", "the body has to be a form", violation="token-content-type")
        if request.has("authorization"):
            raise RefusedError(400, "FORM", "authorization besides a form", violation="token-authorization")
        form = dict(parse_qsl(body.read(1 << 20).decode(), keep_blank_values=True))
        scopes = form.get("scope", "").split()
        self._check(form.get("service", ""), scopes)
        if not form.get("client_id"):
            raise RefusedError(400, "FORM", "client_id is required", violation="token-client-id")
        match form.get("grant_type"):
            case "refresh_token":
                with self._lock:
                    account = self._refresh.get(form.get("refresh_token", ""))
            case "password":
                login = (form.get("username", ""), form.get("password", ""))
                account = next((one for one in self.accounts if one.owns(*login)), None)
            case other:
                raise RefusedError(400, "FORM", f"grant_type={other}", violation="token-grant-type")
        if account is None:
            raise RefusedError(401, "UNAUTHORIZED", "who is that?")
        refresh = form.get("refresh_token", "")
        if form.get("access_type") == "offline":
            refresh = self._new_refresh(account)
        return self._grant(account, scopes, refresh)

    def _check(self, service: str, scopes: list[str]) -> None:
        self.asked.append(scopes)
        if service != SERVICE:
            raise RefusedError(400, "SERVICE", f"service={service!r} is not {SERVICE!r}", violation="token-service")
        for scope in scopes:
            if not _SCOPE.match(scope):
                raise RefusedError(400, "SCOPE", f"{scope!r} is no scope", violation="token-scope")
        if len(set(scopes)) != len(scopes):
            raise RefusedError(400, "SCOPE", f"{scopes} has one twice", violation="token-scope")

    def _basic(self, header: str) -> Account:
        if not header:
            return self.anonymous
        scheme, _, value = header.partition(" ")
        if scheme.lower() != "basic":
            raise RefusedError(400, "LOGIN", f"{scheme} to a token service", violation="token-authorization")
        username, _, password = base64.b64decode(value).decode().partition(":")
        for account in self.accounts:
            if account.owns(username, password):
                return account
        raise RefusedError(401, "UNAUTHORIZED", "incorrect username or password")

    def _new_refresh(self, account: Account) -> str:
        if account is self.anonymous:
            return ""
        token = f"refresh-{uuid.uuid4()}"
        with self._lock:
            self._refresh[token] = account
        return token

    def _grant(self, account: Account, scopes: list[str], refresh: str) -> Answer:
        wanted = {
            (name, action)
            for _, name, actions in (scope.split(":") for scope in scopes)
            for action in (sorted(_ALL) if actions == "*" else actions.split(","))
        }
        access = frozenset(pair for pair in wanted if account.may(*pair))
        token = self.issue(account, access)
        document: dict[str, object] = {"issued_at": datetime.datetime.now(datetime.UTC).isoformat()}
        if self.behaviour.field in ("token", "both"):
            document["token"] = token
        if self.behaviour.field in ("access_token", "both"):
            document["access_token"] = token
        if self.behaviour.says_lifetime:
            document["expires_in"] = self.behaviour.lifetime_s
        if refresh:
            document["refresh_token"] = refresh
        return json_answer(200, document, headers=(("Set-Cookie", "tracking=token-service; Path=/"),))

    def issue(self, account: Account, access: Access) -> str:
        """Sign a token and record it."""
        key, _, key_id = signing_key()
        now = int(time.time())
        by_name: dict[str, list[str]] = {}
        for name, action in sorted(access):
            by_name.setdefault(name, []).append(action)
        claims = {
            "iss": ISSUER,
            "sub": account.username,
            "aud": SERVICE,
            "iat": now,
            "nbf": now - 60,
            "exp": now + self.behaviour.lifetime_s,
            "jti": str(uuid.uuid4()),
            "access": [{"type": "repository", "name": name, "actions": actions} for name, actions in by_name.items()],
        }
        token = jwt.encode(claims, key, algorithm="RS256", headers={"kid": key_id})
        with self._lock:
            self._grants[token] = Grant(account, access, self.behaviour.uses or None)
        return token
