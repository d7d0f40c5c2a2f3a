"""The token service and permissions: the strict registry and docker-registry accept the same tokens."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import httpx
import pytest

from tests.contracts.assertions import leaks
from tests.contracts.fixtures import StartReal, StartStrict
from tests.contracts.plain_client import OCTETS, begin, client, client_at, push_blob, with_digest
from tests.contracts.registry_behaviour import Rules, Tokens
from tests.contracts.servers import Server
from tests.contracts.storage import sha256
from tests.contracts.strict import StrictRegistry
from tests.contracts.tokens import ALICE, ANYBODY_PULLS, SERVICE, Account, TokenService

PUSH = "repository:a:pull,push"
LOGIN = (ALICE.username.encode(), ALICE.password.encode())
DATA = b"some bytes"
BOB = Account("bob", "b0b", allowed={"a": frozenset(("pull",)), "b": frozenset(("pull", "push"))})


@pytest.fixture(params=["strict", "real"])
def guarded(request: pytest.FixtureRequest, start_strict: StartStrict, start_real: StartReal) -> Server:
    """A registry with a token service."""
    return start_strict(auth="bearer") if request.param == "strict" else start_real("token")


def ask(server: Server, *scopes: str, login: tuple[bytes, bytes] | None = LOGIN, more: str = "") -> httpx.Response:
    assert server.tokens is not None
    with client_at(server.tokens.server.url) as http:
        query = "&".join((f"service={SERVICE}", *(f"scope={scope}" for scope in scopes))) + more
        return http.get(f"/token?{query}", auth=login)


def post(server: Server, form: Mapping[str, str]) -> httpx.Response:
    assert server.tokens is not None
    with client_at(server.tokens.server.url) as http:
        return http.post("/token", data={"service": SERVICE, "client_id": "tests", "scope": PUSH, **form})


def test_challenge_token_push(guarded: Server) -> None:
    assert guarded.tokens is not None
    with client(guarded) as http:
        challenge = http.post("/v2/a/blobs/uploads/").headers["WWW-Authenticate"]
    assert challenge.startswith("Bearer ")
    for part in (f'realm="{guarded.tokens.realm}"', f'service="{SERVICE}"'):
        assert part in challenge
    # docker-registry keeps actions in a Go map, which has no order.
    assert 'scope="repository:a:pull,push"' in challenge or 'scope="repository:a:push,pull"' in challenge
    token = ask(guarded, PUSH).json()["token"]
    assert guarded.tokens.asked == [[PUSH]]
    with client(guarded, token=token) as http:
        assert push_blob(http, "a", DATA, sha256(DATA)).status_code == 201
    assert len(guarded.token_requests) == 1
    assert leaks(guarded, f"token is {token}") == {token}
    assert leaks(guarded, "nothing") == set()


def test_a_token_is_good_for_its_scope_only(guarded: Server) -> None:
    guarded.put_blob("b", DATA)
    with client(guarded, token=ask(guarded, "repository:b:pull").json()["token"]) as http:
        assert http.head(f"/v2/b/blobs/{sha256(DATA)}").status_code == 200
        for response in (http.post("/v2/b/blobs/uploads/"), http.get("/v2/a/tags/list")):
            assert response.status_code == 401
            assert 'error="insufficient_scope"' in response.headers["WWW-Authenticate"]


def test_forms(guarded: Server) -> None:
    password = {"grant_type": "password", "username": ALICE.username, "password": ALICE.password}
    answer = post(guarded, {**password, "access_type": "offline"}).json()
    identity = {"grant_type": "refresh_token", "refresh_token": answer["refresh_token"]}
    for form in (password, identity, {**identity, "refresh_token": ALICE.identity_token}):
        response = post(guarded, form)
        with client(guarded, token=response.json()["access_token"]) as http:
            begin(http, "a")
    assert post(guarded, {**password, "password": "wrong"}).status_code == 401
    assert post(guarded, {**identity, "refresh_token": "wrong"}).status_code == 401


def test_a_get_can_give_an_identity_token(guarded: Server) -> None:
    answer = ask(guarded, PUSH, more="&offline_token=true&account=alice").json()
    form = {"grant_type": "refresh_token", "refresh_token": answer["refresh_token"]}
    assert post(guarded, form).status_code == 200
    assert ask(guarded, PUSH, login=(b"alice", b"wrong")).status_code == 401


def test_tokens_expire(start_strict: StartStrict) -> None:
    strict = start_strict(auth="bearer", tokens=Tokens(uses=2))
    assert strict.tokens is not None
    with client(strict, token=ask(strict, PUSH).json()["token"]) as http:
        location = with_digest(begin(http, "a"), sha256(DATA))
        begin(http, "a")
        response = http.put(location, content=DATA, headers=OCTETS)
        assert response.status_code == 401
        assert 'error="invalid_token"' in response.headers["WWW-Authenticate"]
    with client(strict, token=ask(strict, PUSH).json()["token"]) as http:
        assert http.put(location, content=DATA, headers=OCTETS).status_code == 201
    token = ask(strict, PUSH).json()["token"]
    strict.tokens.expire()
    with client(strict, token=token) as http:
        assert http.get("/v2/").status_code == 401


def test_tokens_expire_at_a_request(start_strict: StartStrict) -> None:
    strict = start_strict(auth="bearer", tokens=Tokens(expires_at=frozenset((2,))))
    tokens = [ask(strict, PUSH).json()["token"] for _ in range(2)]
    with client(strict, token=tokens[0]) as http:
        assert [http.get("/v2/").status_code for _ in range(3)] == [200, 401, 401]
    with client(strict, token=tokens[1]) as http:
        assert http.get("/v2/").status_code == 401
    with client(strict, token=ask(strict, PUSH).json()["token"]) as http:
        assert [http.get("/v2/").status_code for _ in range(3)] == [200, 200, 200]


def test_behaviours(start_strict: StartStrict) -> None:
    answer = ask(start_strict(auth="bearer", tokens=Tokens(field="token", says_lifetime=False)), PUSH).json()
    assert {"token", "access_token", "expires_in"} & answer.keys() == {"token"}
    answer = ask(start_strict(auth="bearer", tokens=Tokens(field="access_token", lifetime_s=7)), PUSH).json()
    assert {"token", "access_token", "expires_in"} & answer.keys() == {"access_token", "expires_in"}
    assert answer["expires_in"] == 7
    strict = start_strict(auth="bearer", tokens=Tokens(post=False, post_refusal=405))
    assert post(strict, {"grant_type": "refresh_token"}).status_code == 405
    assert ask(start_strict(auth="bearer", tokens=Tokens(get=False)), PUSH).status_code == 404


def test_anybody_may_pull_where_it_is_allowed(start_strict: StartStrict) -> None:
    strict = start_strict(auth="bearer", anonymous=ANYBODY_PULLS)
    strict.put_blob("a", DATA)
    with client(strict, token=ask(strict, PUSH, login=None).json()["token"]) as http:
        assert http.head(f"/v2/a/blobs/{sha256(DATA)}").status_code == 200
        assert http.post("/v2/a/blobs/uploads/").status_code == 401


@pytest.mark.parametrize("status", [401, 403])
def test_who_may_not_is_denied(start_strict: StartStrict, status: int) -> None:
    strict = start_strict(auth="bearer", accounts=(BOB,), rules=Rules(denied_status=status))
    token = ask(strict, PUSH, login=(b"bob", b"b0b")).json()["token"]
    with client(strict, token=token) as http:
        response = http.post("/v2/a/blobs/uploads/")
    assert response.status_code == status
    assert ("WWW-Authenticate" in response.headers) == (status == 401)


def test_mounts_need_the_pull_scope_of_their_source(start_strict: StartStrict) -> None:
    strict = start_strict(auth="bearer", accounts=(BOB,))
    digest = strict.put_blob("a", DATA)
    strict.put_blob("c", DATA)
    scopes = ("repository:b:pull,push", "repository:a:pull")
    with client(strict, token=ask(strict, *scopes, login=(b"bob", b"b0b")).json()["token"]) as http:
        assert http.post(f"/v2/b/blobs/uploads/?mount={digest}&from=a").status_code == 201
        assert http.post(f"/v2/b/blobs/uploads/?mount={digest}&from=c").status_code == 202  # nothing more to request


def test_a_mount_without_the_scope_that_was_to_be_had_is_blamed() -> None:
    with StrictRegistry(auth="bearer") as strict:
        digest = strict.put_blob("b", DATA)
        with client(strict, token=ask(strict, PUSH).json()["token"]) as http:
            assert http.post(f"/v2/a/blobs/uploads/?mount={digest}&from=b").status_code == 400
        assert [one.code for one in strict.violations] == ["mount-scope"]


def test_a_token_of_somebody_else_is_blamed() -> None:
    with StrictRegistry(auth="bearer") as strict, client(strict, token="made-up") as http:
        assert http.get("/v2/").status_code == 401
        assert [one.code for one in strict.violations] == ["token-unknown"]


def test_basic(start_strict: StartStrict, start_real: StartReal) -> None:
    for server in (start_strict(auth="basic"), start_real("htpasswd")):
        with client(server) as http:
            response = http.get("/v2/")
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"].startswith("Basic ")
            assert http.get("/v2/", auth=LOGIN).status_code == 200
            assert http.get("/v2/", auth=("alice", "wrong")).status_code == 401
        header = base64.b64encode(b":".join(LOGIN)).decode()
        assert leaks(server, header, ALICE.password) == {header, ALICE.password}


@pytest.mark.parametrize(
    ("code", "query", "headers"),
    [
        ("token-service", "service=other", {}),
        ("token-scope", f"service={SERVICE}&scope=a:pull", {}),
        ("token-scope", f"service={SERVICE}&scope={PUSH}&scope={PUSH}", {}),
        ("token-authorization", f"service={SERVICE}", {"Authorization": "Bearer x"}),
        ("token-account", f"service={SERVICE}&account=bob", {}),
        ("cookie", f"service={SERVICE}", {"Cookie": "tracking=token-service"}),
    ],
)
def test_what_breaks_the_token_specification_is_blamed(code: str, query: str, headers: dict[str, str]) -> None:
    service = TokenService()
    with service.server as server, client_at(server.url) as http:
        assert http.get(f"/token?{query}", headers=headers).status_code == 400
        assert [one.code for one in server.violations] == [code]


@pytest.mark.parametrize(
    ("code", "form"),
    [
        ("token-client-id", {"grant_type": "password", "service": SERVICE}),
        ("token-grant-type", {"grant_type": "wish", "service": SERVICE, "client_id": "tests"}),
        ("token-service", {"grant_type": "password"}),
    ],
)
def test_what_breaks_the_form_is_blamed(code: str, form: dict[str, str]) -> None:
    service = TokenService()
    with service.server as server, client_at(server.url) as http:
        assert http.post("/token", data=form).status_code == 400
        assert [one.code for one in server.violations] == [code]
