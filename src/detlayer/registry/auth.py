"""Who we are, for one registry: challenges, tokens with their scopes and lifetimes, Basic. Never what is asked.

Sources: RFC 9110 11.6.1 (challenges); distribution's "Token Authentication Specification" and "OAuth2 Token
Authentication". Nothing secret goes into a message, a log or a representation.
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
from detlayer.registry.answer import Refusal, denied, error_of, garbage, login_hint
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
    """What may be done with a repository: `repository:NAME:pull,push`."""

    repository: str
    actions: frozenset[str]

    def __str__(self) -> str:
        return f"repository:{self.repository}:{','.join(sorted(self.actions))}"


def pull(name: RepositoryName) -> Scope:
    return Scope(name.repository, frozenset(("pull",)))


def push(name: RepositoryName) -> Scope:
    return Scope(name.repository, frozenset(("pull", "push")))


class Challenge(msgspec.Struct, frozen=True):
    """One challenge of a WWW-Authenticate header: the scheme in lower case, and its parameters."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Read WWW-Authenticate headers, each with one challenge or more; what can't be read is left out."""
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
    expires: float  # by the pace's clock

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
    """Knows how one registry wants to be convinced. Safe to use from several threads; one asks, the others wait."""

    def __init__(
        self,
        transport: Transport,
        host: str,
        find: Callable[[], Credentials | None],
        challenges: dict[str, Challenge],
    ) -> None:
        """`challenges` holds what hosts asked for; it is shared, so that each has to ask only once."""
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
        """What was found for this registry; looked for once."""
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
        """Whom the registry takes us for, without a secret; empty if it has not asked, or knows no name of ours."""
        if self._challenge is None:
            return ""
        found = self.credentials
        return found.principal if found is not None else ""

    def header(self, scopes: frozenset[Scope], *, times: int = 0) -> str:
        """Make the value of Authorization for a request; empty as long as the registry has not asked for one.

        A token that is about to expire is renewed first. A request that was refused `times` gets one that nobody else
        uses up, from the second time on. Raises RegistryError.
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
        """Take in a 401; tells whether to ask again.

        `used` is the value of Authorization that was refused, `times` how often this request was refused before.
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
                # A token may have expired, and the next one before its turn came; a scope does not grow.
                return not used or (times < 2 or chosen.parameters.get("error") != "insufficient_scope")
            return False

    def refused(self, refusal: Refusal, what: str) -> AuthError:
        """Make an error of a 401 to a request that said who we are."""
        if self._challenge is None or self._challenge.scheme == "basic":
            return AuthError(
                "registry-auth", f"{self._host} refused the credentials ({refusal})", login_hint(self._host)
            )
        return denied(refusal, what, self._host)  # the service took them, and gave a token that is not enough

    def _can_basic(self) -> bool:
        found = self.credentials
        return found is not None and bool(found.username or found.password)

    def _basic(self) -> str:
        found = self.credentials
        if found is None:
            return ""
        # Bytes of the environment that are no UTF-8 go as they are.
        pair = f"{found.username}:{found.password}".encode("utf-8", "surrogateescape")
        return f"Basic {base64.b64encode(pair).decode()}"

    # -- tokens

    def _fetch(self, scopes: frozenset[Scope]) -> _Token:
        found = self.credentials
        if found is not None and found.registry_token:
            if not _is_token(found.registry_token):
                raise AuthError(
                    "registry-auth",
                    f"the registrytoken for {self._host} in the file of credentials is none",
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
            raise garbage(urlsplit(realm).netloc, "a request for a token without one")
        if reply.refresh_token and self._identity_token:
            self._identity_token = reply.refresh_token
        lifetime_s = _lifetime_s(reply.expires_in)
        expires = asked_at + lifetime_s - min(_MARGIN_S, lifetime_s / 4)
        return _Token(scopes, text, expires)

    def _ask(self, realm: str, service: str, scopes: frozenset[Scope]) -> _Reply:
        # What may be pushed to comes first: some services look at the first scope only.
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
            answer = self._send(Request("POST", realm, {"content-type": FORM}, data, auth=True))
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
        answer = self._send(Request("GET", url, headers, auth=True))
        if answer.status != 200:
            raise self._refused(answer)
        return self._read(answer)

    def _send(self, request: Request) -> Answer:
        """Ask the token service; it may redirect within its host only."""
        for _ in range(3):
            answer = self._transport.send(request)
            target = follow(answer, allow_other_hosts=False)
            if target is None:
                return answer
            answer.drain()
            request = request._replace(url=target)
        raise garbage(urlsplit(request.url).netloc, "redirects without end")

    def _read(self, answer: Answer) -> _Reply:
        data = answer.read(_MAX_TOKEN_BYTES)
        try:
            return msgspec.json.decode(data or b"", type=_Reply)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise garbage(answer.host, "a request for a token with something else") from error

    def _refused(self, answer: Answer) -> RegistryError:
        refusal = answer.refusal()
        service = urlsplit(answer.url).netloc
        if refusal.status in (400, 401, 403):
            who = "the credentials" if self.credentials is not None else "anonymous access"
            return AuthError(
                "registry-auth",
                f"{service}, which gives tokens for {self._host}, refused {who} ({refusal})",
                login_hint(self._host),
            )
        return error_of(refusal, f"have a token for {self._host}", service)

    def _checked_realm(self, said: str) -> str:
        """Refuse a realm that would take credentials where nobody wants them; raises RegistryError."""
        realm = checked(said, self._host)
        parts = urlsplit(realm)
        plain = self._transport.base_url(self._host).startswith("http:")
        if parts.scheme == "http" and not plain and parts.netloc not in self._transport.network.insecure:
            raise RejectedError(
                "realm-insecure",
                f"{self._host} sends you to plain HTTP for a token: {shown_url(realm)}",
                f"if that is meant, add --insecure-registry {parts.netloc}",
            )
        own = urlsplit(f"//{self._host}").hostname
        if parts.hostname != own and _is_inside(parts.hostname or "", own or ""):
            raise RejectedError(
                "realm-private",
                f"{printable(self._host)} sends you to a private address for a token: {shown_url(realm)}",
                "a registry has its token service on its own host, or on a public one",
            )
        return realm


def _is_token(text: str) -> bool:
    """Tell whether a text can stand in a header."""
    return bool(text) and text.isascii() and text.isprintable()


def _lifetime_s(said: object) -> float:
    """Read expires_in, which some services write as text; what is no time at all is the usual one."""
    try:
        lifetime_s = float(said) if isinstance(said, int | float | str) else 0.0
    except (ValueError, OverflowError):
        lifetime_s = 0.0
    return lifetime_s if 0 < lifetime_s < float("inf") else _DEFAULT_LIFETIME_S


def _is_inside(host: str, registry: str) -> bool:
    """Tell whether a host is a private address in disguise or not, that a registry elsewhere should not send us to.

    An address is judged as it stands. A name may well mean a private address, as in a company's network; but never one
    of this machine or its link, where cloud providers keep secrets.
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
        return []  # behind a proxy names may mean nothing here; else connecting will fail, too
    return [ipaddress.ip_address(str(item[4][0]).partition("%")[0]) for item in found]
