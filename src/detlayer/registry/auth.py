"""Authentication to one registry: challenges, bearer tokens with scopes and lifetimes, Basic.

Sources: RFC 9110 11.6.1 (challenges); distribution's "Token Authentication Specification" and "OAuth2 Token
Authentication". No secret appears in a message, log or repr.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import msgspec

from detlayer.errors import AuthError, RegistryError, RejectedError, printable
from detlayer.oci.references import RepositoryName
from detlayer.registry.address import checked, is_loopback, shown_url, with_query
from detlayer.registry.error_responses import Refusal, denied, error_of, garbage, login_hint
from detlayer.registry.transport import FORM, Answer, Request, Transport, follow

if TYPE_CHECKING:
    from detlayer.registry.credentials import Credentials

_MAX_TOKEN_BYTES = 1 << 20
_DEFAULT_LIFETIME_S = 60.0  # "Token Authentication Specification", expires_in
_MARGIN_S = 10.0
_CLIENT_ID = "detlayer"
_PARAMETER = re.compile(r'\s*([A-Za-z0-9!#$%&\'*+.^_`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|\Z)')
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s+|\Z)")
_NO_GET = frozenset((400, 401, 404, 405))


class Scope(NamedTuple):
    """Actions on a repository: `repository:NAME:pull,push`."""

    repository: str
    actions: frozenset[str]

    def __str__(self) -> str:
        return f"repository:{self.repository}:{','.join(sorted(self.actions))}"


def pull(name: RepositoryName) -> Scope:
    return Scope(name.repository, frozenset(("pull",)))


def push(name: RepositoryName) -> Scope:
    return Scope(name.repository, frozenset(("pull", "push")))


class Challenge(msgspec.Struct, frozen=True):
    """One challenge of a WWW-Authenticate header; `scheme` is in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Parse WWW-Authenticate headers, each with one or more challenges; skips invalid ones."""
    found = []
    for header in headers:
        at = 0
        while scheme := _SCHEME.match(header, at):
            at = scheme.end()
            parameters: dict[str, str] = {}
            while parameter := _PARAMETER.match(header, at):
                quoted = parameter[2]
                value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else parameter[3]
                parameters.setdefault(parameter[1].lower(), value)
                at = parameter.end()
            found.append(Challenge(scheme[1].lower(), parameters))
    return found


class _Token(NamedTuple):
    scopes: frozenset[Scope]
    text: str
    expires: float  # by the clock of `Pace`

    def covers(self, wanted: frozenset[Scope]) -> bool:
        return all(
            any(one.repository == scope.repository and one.actions >= scope.actions for one in self.scopes)
            for scope in wanted
        )


class _Reply(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    expires_in: Any = None
    refresh_token: str | None = None


class Authorizer:
    """Authorizes requests to one registry. Thread-safe: one thread fetches a token while the others wait."""

    def __init__(
        self,
        transport: Transport,
        host: str,
        find: Callable[[], Credentials | None],
        challenges: dict[str, Challenge],
    ) -> None:
        """Create it. `challenges` caches the last challenge by host; it is shared between repositories."""
        self._transport = transport
        self._host = host
        self._find = find
        self._found: tuple[Credentials | None] | None = None
        self._challenges = challenges
        self._tokens: list[_Token] = []
        self._identity_token = ""
        self._lock = threading.RLock()

    @property
    def credentials(self) -> Credentials | None:
        """The credentials for this registry, looked up once."""
        with self._lock:
            if self._found is None:
                self._found = (self._find(),)
                if self._found[0] is not None:
                    self._identity_token = self._found[0].identity_token
            return self._found[0]

    @property
    def _challenge(self) -> Challenge | None:
        return self._challenges.get(self._host)

    @property
    def principal(self) -> str:
        """The user name that the registry knows, without secrets; empty before a challenge or for anonymous access."""
        if self._challenge is None:
            return ""
        found = self.credentials
        return found.principal if found is not None else ""

    def header(self, scopes: frozenset[Scope], *, times: int = 0) -> str:
        """Return the Authorization header for a request; empty until the registry has sent a challenge.

        Tokens that are about to expire are renewed first. A request refused more than
        once (`times`) gets a new token, not shared with other threads. Raises RegistryError.
        """
        with self._lock:
            if self._challenge is None:
                return ""
            if self._challenge.scheme == "basic":
                return self._basic()
            now = self._transport.pace.now()
            if times > 1:
                return f"Bearer {self._fetch(scopes).text}"
            for token in self._tokens:
                if token.expires > now and token.covers(scopes):
                    return f"Bearer {token.text}"
            self._tokens = [token for token in self._tokens if token.expires > now]
            token = self._fetch(scopes)
            self._tokens.append(token)
            return f"Bearer {token.text}"

    def learn(self, answer: Answer, used: str, times: int) -> bool:
        """Process a 401 response; tells whether to retry.

        `used` is the Authorization header that was refused; `times` counts the earlier refusals of this request.
        """
        challenges = parse_challenges(answer.headers("www-authenticate"))
        with self._lock:
            for scheme in ("bearer", "basic"):
                chosen = next((one for one in challenges if one.scheme == scheme), None)
                if chosen is None or (scheme == "basic" and not self._can_basic()):
                    continue
                self._challenges[self._host] = chosen
                if scheme == "basic":
                    return not used
                self._tokens = [token for token in self._tokens if f"Bearer {token.text}" != used]
                # A token may expire before its request is sent: retry once more. Its scope does not grow.
                return not used or (times < 2 or chosen.parameters.get("error") != "insufficient_scope")
            return False

    def refused(self, refusal: Refusal, what: str) -> AuthError:
        """Make the error for a 401 response to an authorized request."""
        if self._challenge is None or self._challenge.scheme == "basic":
            return AuthError(
                "registry-auth", f"{self._host} refused the credentials ({refusal})", login_hint(self._host)
            )
        return denied(refusal, what, self._host)  # the credentials are valid; the token lacks the permission

    def _can_basic(self) -> bool:
        found = self.credentials
        return found is not None and bool(found.username or found.password)

    def _basic(self) -> str:
        found = self.credentials
        if found is None:
            return ""
        # Variables that are not valid UTF-8 are sent as their original bytes.
        pair = f"{found.username}:{found.password}".encode("utf-8", "surrogateescape")
        return f"Basic {base64.b64encode(pair).decode()}"

    # -- tokens

    def _fetch(self, scopes: frozenset[Scope]) -> _Token:
        found = self.credentials
        if found is not None and found.registry_token:
            if not _is_token(found.registry_token):
                raise AuthError(
                    "registry-auth",
                    f"invalid registrytoken for {self._host} in the credentials file",
                    f"log in again: `docker login {self._host}`",
                )
            return _Token(scopes, found.registry_token, float("inf"))
        challenge = self._challenge
        assert challenge is not None
        realm = self._checked_realm(challenge.parameters.get("realm", ""))
        asked_at = self._transport.pace.now()
        reply = self._ask(realm, challenge.parameters.get("service", ""), scopes)
        text = reply.token or reply.access_token or ""
        if not _is_token(text):
            raise garbage(urlsplit(realm).netloc, "token response without a token")
        if reply.refresh_token and self._identity_token:
            self._identity_token = reply.refresh_token
        lifetime_s = _lifetime_s(reply.expires_in)
        expires = asked_at + lifetime_s - min(_MARGIN_S, lifetime_s / 4)
        return _Token(scopes, text, expires)

    def _ask(self, realm: str, service: str, scopes: frozenset[Scope]) -> _Reply:
        # Push scopes come first: some services read only the first scope.
        ordered = sorted(scopes, key=lambda scope: ("push" not in scope.actions, scope.repository))
        texts = list(map(str, ordered))
        found = self.credentials
        if self._identity_token:
            form = {
                "grant_type": "refresh_token",
                "service": service,
                "client_id": _CLIENT_ID,
                "scope": " ".join(texts),
                "refresh_token": self._identity_token,
            }
            data = urlencode(form, errors="surrogateescape").encode()
            answer = self._send(Request("POST", realm, {"content-type": FORM}, data, auth=True, whole=_MAX_TOKEN_BYTES))
            if answer.status == 200:
                return self._read(answer)
            if answer.status not in _NO_GET or found is None or not found.password:
                raise self._refused(answer)
            answer.drain()
        query = [("service", service)] if service else []
        query += [("scope", text) for text in texts]
        headers = {}
        if found is not None and found.username and found.password:
            query.append(("account", found.username))
            headers["authorization"] = self._basic()
        url = with_query(realm, urlencode(query, errors="surrogateescape"))
        answer = self._send(Request("GET", url, headers, auth=True, whole=_MAX_TOKEN_BYTES))
        if answer.status != 200:
            raise self._refused(answer)
        return self._read(answer)

    def _send(self, request: Request) -> Answer:
        """Send a request to the token service, following redirects only within its host."""
        for _ in range(3):
            answer = self._transport.send(request)
            target = follow(answer, allow_other_hosts=False)
            if target is None:
                return answer
            answer.drain()
            request = request._replace(url=target)
        raise garbage(urlsplit(request.url).netloc, "too many redirects")

    def _read(self, answer: Answer) -> _Reply:
        data = answer.read(_MAX_TOKEN_BYTES)
        try:
            return msgspec.json.decode(data or b"", type=_Reply)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise garbage(answer.host, "invalid token response") from error

    def _refused(self, answer: Answer) -> RegistryError:
        refusal = answer.refusal()
        service = urlsplit(answer.url).netloc
        if refusal.status in (400, 401, 403):
            who = "the credentials" if self.credentials is not None else "anonymous access"
            return AuthError(
                "registry-auth",
                f"{service}, the token service of {self._host}, refused {who} ({refusal})",
                login_hint(self._host),
            )
        return error_of(refusal, f"get a token for {self._host}", service)

    def _checked_realm(self, said: str) -> str:
        """Check that it is safe to send credentials to a realm; raises RegistryError."""
        realm = checked(said, self._host)
        parts = urlsplit(realm)
        plain = self._transport.base_url(self._host).startswith("http:")
        if parts.scheme == "http" and not plain and parts.netloc not in self._transport.network.insecure:
            raise RejectedError(
                "realm-insecure",
                f"the token service of {self._host} uses plain HTTP: {shown_url(realm)}",
                f"if this is intended, add --insecure-registry {parts.netloc}",
            )
        own = urlsplit(f"//{self._host}").hostname
        if parts.hostname != own and _is_inside(parts.hostname or "", own or ""):
            raise RejectedError(
                "realm-private",
                f"the token service of {printable(self._host)} has a private address: {shown_url(realm)}",
                "serve tokens on the registry's own host, or on a public one",
            )
        return realm


def _is_token(text: str) -> bool:
    """Tell whether a string is valid in a header."""
    return bool(text) and text.isascii() and text.isprintable()


def _lifetime_s(said: object) -> float:
    """Read expires_in in seconds, which some services send as a string; invalid values yield the default."""
    try:
        lifetime_s = float(said) if isinstance(said, int | float | str) else 0.0
    except (ValueError, OverflowError):
        lifetime_s = 0.0
    return lifetime_s if 0 < lifetime_s < float("inf") else _DEFAULT_LIFETIME_S


def _is_inside(host: str, registry: str) -> bool:
    """Tell whether a host is a private address that a registry must not redirect credentials to.

    IP addresses are checked as given. A DNS name may resolve to a private address, as in company networks, but not to
    loopback or link-local ones, where cloud providers serve secrets.
    """
    if is_loopback(host):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return any(
            one.is_link_local or (one.is_loopback and not is_loopback(registry)) or one.is_unspecified
            for one in _resolve(host)
        )
    return not address.is_global


def _resolve(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []  # behind a proxy, local DNS may not resolve it; otherwise connecting fails too
    return [ipaddress.ip_address(str(item[4][0]).partition("%")[0]) for item in found]
