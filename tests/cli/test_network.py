"""Transcripts about registry connections: credentials, certificates, retries, and failures."""

from __future__ import annotations

import base64
import json
import re
import signal
import stat
import threading
from collections.abc import Iterator

import pytest

from tests.cli.command import CommandLine, Said
from tests.contracts.assertions import seed
from tests.contracts.certificates import ca_path
from tests.contracts.faults import Fault, LoseAnswer, Reply
from tests.contracts.fixtures import StartReal, StartStrict
from tests.contracts.http_records import Answer, Request, error_answer
from tests.contracts.http_server import Incoming, WireServer
from tests.contracts.images import Layout, image, platforms
from tests.contracts.raw_server import Asked, RawServer
from tests.contracts.raw_server import answer as raw_answer
from tests.contracts.registry_behaviour import PUSH_TRAPS, Rules, busy
from tests.contracts.servers import Server
from tests.contracts.tokens import ALICE, Account

READER = Account("carol", "carol-may-only-read", allowed={"*": frozenset(("pull",))})
CAROL = {"DETLAYER_USERNAME": READER.username, "DETLAYER_PASSWORD": READER.password}
LOGIN = {"DETLAYER_USERNAME": ALICE.username, "DETLAYER_PASSWORD": ALICE.password}


@pytest.fixture
def digest(layout: Layout) -> str:
    """The digest of the one image in `oci:layout`."""
    return str(layout.tag(image(layout), "app")["digest"])


@pytest.fixture(params=["strict-basic", "strict-bearer", "real-htpasswd", "real-token"])
def guarded(request: pytest.FixtureRequest, start_strict: StartStrict, start_real: StartReal) -> Server:
    """A registry that requires credentials."""
    kind, _, auth = str(request.param).partition("-")
    if kind == "strict":
        return start_strict(auth=auth)
    return start_real("htpasswd" if auth == "htpasswd" else "token")


def push(detlayer: CommandLine, server: Server, *options: str, stdin: str = "", **environment: str) -> Said:
    return detlayer("push", "oci:layout", f"{server.address}/team/app:1", *options, stdin=stdin, **environment)


# -- credentials


def test_ways_to_pass_credentials(detlayer: CommandLine, guarded: Server, digest: str) -> None:
    """In the order of docs/credentials.md; with -v and --json, to print as much as possible."""
    host = guarded.address
    nobody = push(detlayer, guarded, "-v")
    exit_code, code, message, hint = nobody.error
    assert (exit_code, code) == (4, "registry-auth")
    assert message.startswith(f"{host} refused to let you push to team/app (401")
    assert hint == f"run `docker login {host}`, or set DETLAYER_USERNAME and DETLAYER_PASSWORD"
    by_stdin = push(detlayer, guarded, "-v", "--username", "alice", "--password-stdin", stdin=f"{ALICE.password}\n")
    assert (by_stdin.exit, by_stdin.stdout) == (0, f"{digest}\n")
    for command in (["resolve", f"{host}/team/app:1"], ["pull", f"{host}/team/app:1", "-o", "oci:pulled"]):
        done = detlayer(*command, "--json", "-v", **LOGIN)
        assert (done.exit, done.result["digest"]) == (0, digest)
    wrong = push(detlayer, guarded, "--json", "-v", **{**LOGIN, "DETLAYER_PASSWORD": "of-somebody-else"})
    assert (wrong.exit, wrong.result["code"]) == (4, "registry-auth")
    assert "refused the credentials (401" in wrong.result["message"]
    assert "of-somebody-else" not in wrong.stdout + wrong.stderr


@pytest.mark.parametrize("place", ["helper", "store", "auths", "podman", "named"])
def test_files_that_docker_and_podman_keep(
    detlayer: CommandLine, start_strict: StartStrict, digest: str, place: str
) -> None:
    server = start_strict(auth="bearer")
    host = server.address
    pair = base64.b64encode(f"{ALICE.username}:{ALICE.password}".encode()).decode()
    entry = {"auths": {host: {"auth": pair}}}
    document = {
        "helper": {"credHelpers": {host: "test"}},
        "store": {"credsStore": "test", "auths": {host: {}}},
    }.get(place, entry)
    path = {"podman": ".config/containers/auth.json", "named": "elsewhere.json"}.get(place, ".docker/config.json")
    (detlayer.home / path).parent.mkdir(parents=True, exist_ok=True)
    (detlayer.home / path).write_text(json.dumps(document))
    answer = json.dumps({"ServerURL": host, "Username": ALICE.username, "Secret": ALICE.password}, ensure_ascii=False)
    programs = detlayer.here / "programs"
    programs.mkdir()
    helper = programs / "docker-credential-test"
    helper.write_text(f"#!/bin/sh\nread host\necho \"$1 $host\" >>{programs}/asked\ncat <<'END'\n{answer}\nEND\n")
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    environment = {"PATH": f"{programs}:{detlayer.environment['PATH']}"}
    environment |= {"REGISTRY_AUTH_FILE": str(detlayer.home / path)} if place == "named" else {}
    said = push(detlayer, server, "-v", **environment)
    assert (said.exit, said.stdout) == (0, f"{digest}\n"), said.stderr
    assert (programs / "asked").exists() == (place in ("helper", "store"))
    if place in ("helper", "store"):
        assert (programs / "asked").read_text() == f"get {host}\n"  # once


def test_helpers_that_fail(detlayer: CommandLine, start_strict: StartStrict, digest: str) -> None:
    server = start_strict(auth="basic")
    (detlayer.home / ".docker").mkdir()
    config = detlayer.home / ".docker" / "config.json"
    config.write_text(json.dumps({"credHelpers": {server.address: "missing"}}))
    exit_code, code, message, hint = push(detlayer, server).error
    assert (exit_code, code) == (2, "credential-helper")
    assert "docker-credential-missing" in message
    assert hint
    config.write_text('{"auths": ')
    assert push(detlayer, server).failure == (2, "credentials-file")


def test_half_a_login(detlayer: CommandLine, digest: str) -> None:
    for options in (["--username", "alice"], ["--username", "alice", "--password-stdin"]):
        assert detlayer("push", "oci:layout", "127.0.0.1:1/x:1", *options).failure == (2, "password-missing")
    push_ = ("push", "oci:layout", "127.0.0.1:1/x:1")
    assert detlayer(*push_, DETLAYER_USERNAME="alice").failure == (2, "password-missing")
    assert detlayer(*push_, DETLAYER_PASSWORD="s3cret").failure == (2, "username-missing")
    assert detlayer(*push_, "--password-stdin", stdin="s3cret\n").failure == (2, "username-missing")


def test_credentials_go_to_the_registries_that_are_named(
    detlayer: CommandLine, start_strict: StartStrict, layout: Layout
) -> None:
    """The registry that an image was pulled from gets none; a strict registry reports any."""
    source, target = start_strict(), start_strict(auth="basic")
    seed(source, "team/app", layout, image(layout), "1")
    said = detlayer("push", f"docker://{source.address}/team/app:1", f"{target.address}/team/app:1", **LOGIN)
    assert said.exit == 0
    assert target.tags("team/app")


@pytest.mark.parametrize("auth", ["basic", "bearer"])
@pytest.mark.parametrize("status", [401, 403])
def test_no_right_to_push(
    detlayer: CommandLine, start_strict: StartStrict, digest: str, auth: str, status: int
) -> None:
    """Unlike with wrong credentials, the hint is to ask for access, not to log in again."""
    server = start_strict(auth=auth, accounts=(READER,), rules=Rules(denied_status=status))
    exit_code, code, message, hint = push(detlayer, server, **CAROL).error
    assert (exit_code, code) == (4, "registry-denied")
    assert message.startswith(f"{server.address} refused to let you push ")
    assert hint.startswith("ask for permission to push ")
    assert hint.endswith(f", or run `docker login {server.address}` as another user")
    assert server.tags("team/app") == {}


def test_secrets_would_be_found(detlayer: CommandLine, start_strict: StartStrict, digest: str) -> None:
    """The search for secrets after every test of the command line finds existing ones."""
    server = start_strict(auth="bearer")
    push(detlayer, server, "-v", **LOGIN)
    assert detlayer.leaks(server.secrets) == set()
    assert server.tokens is not None
    token = next(one for one in server.tokens.secrets if one.count(".") == 2)
    (detlayer.cache / "somewhere").write_text(f"Authorization: Bearer {token}")
    assert detlayer.leaks(server.secrets) == {token}
    (detlayer.cache / "somewhere").unlink()
    detlayer.said.append(Said(0, "", f"password={ALICE.password}"))
    assert detlayer.leaks(server.secrets) == {ALICE.password}
    detlayer.said.clear()


# -- TLS


@pytest.mark.parametrize("kind", ["strict", "real"])
def test_certificates(
    detlayer: CommandLine, start_strict: StartStrict, start_real: StartReal, digest: str, kind: str
) -> None:
    server: Server = start_real("tls") if kind == "real" else start_strict(tls=True)
    assert push(detlayer, server, "--ca-file", str(ca_path())).stdout == f"{digest}\n"
    assert detlayer("resolve", f"{server.address}/team/app:1", "--ca-file", str(ca_path())).exit == 0
    exit_code, code, message, hint = push(detlayer, server, "--ca-file", _wrong_ca(detlayer)).error
    assert (exit_code, code) == (4, "registry-tls")
    assert message == f"certificate verification for {server.address} failed: unable to get local issuer certificate"
    assert hint == f"pass the CA that signed it: --ca-file FILE; without TLS, add --insecure-registry {server.address}"
    exit_code, code, message, hint = push(detlayer, server, "--ca-file", "nowhere.pem").error
    assert (exit_code, code, message) == (2, "certificate-unreadable", "nowhere.pem: No such file or directory")
    (detlayer.here / "empty.pem").write_text("no certificate")
    assert push(detlayer, server, "--ca-file", "empty.pem").failure == (2, "certificate-unreadable")


def test_plain_http_to_a_tls_port_and_vice_versa(detlayer: CommandLine, start_real: StartReal, digest: str) -> None:
    tls, plain = start_real("tls"), start_real("open")
    # Without the proxy, which would record a violation where the registry itself returns an error.
    exit_code, code, message, hint = detlayer("resolve", f"{tls.direct_address}/team/app:1").error
    assert (exit_code, code) == (4, "registry-refused")
    assert message == f"{tls.direct_address} rejected a request over plain HTTP (400)"
    assert hint == "if the registry has TLS, pass the CA that signed its certificate: --ca-file FILE"
    name = f"{plain.direct_address}/team/app:1"
    wrong = detlayer("push", "oci:layout", name, "--ca-file", str(ca_path()))
    assert wrong.failure == (4, "registry-tls")
    assert wrong.words[-1].endswith(f"without TLS, add --insecure-registry {plain.direct_address}")
    options = ["--ca-file", str(ca_path()), "--insecure-registry", plain.direct_address]
    assert detlayer("push", "oci:layout", name, *options).exit == 0


def _wrong_ca(detlayer: CommandLine) -> str:
    """A CA that did not sign the certificates of the servers."""
    import trustme

    path = detlayer.here / "other-ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return str(path)


# -- a registry that is missing, busy or something else


def test_a_host_that_does_not_exist(detlayer: CommandLine, digest: str) -> None:
    for host, reason in (
        ("no-such-host.invalid", r"(Name or service not known|Temporary failure in name resolution|.*known.*)"),
        ("127.0.0.1:1", "Connection refused"),
    ):
        for command in (["push", "oci:layout", f"{host}/x:1"], ["pull", f"{host}/x:1", "-o", "oci:pulled"]):
            exit_code, code, message, hint = detlayer(*command, "--retries", "0").error
            assert (exit_code, code) == (5, "registry-unreachable")
            assert re.fullmatch(f"can't connect to {host}: {reason}", message)
            assert hint == "check the name, the port and the network"
    assert not (detlayer.here / "pulled").exists()


class Forward:
    """A forward proxy that reports every destination as unreachable."""

    def answer(self, request: Request, body: Incoming) -> Answer:
        return error_answer(400, ("UNSUPPORTED", "this proxy leads nowhere", None))

    def disturbed(self, request: Request | None) -> None:
        """Nothing depends on it."""


def test_proxies_and_plain_http_elsewhere(detlayer: CommandLine, start_strict: StartStrict, layout: Layout) -> None:
    """Plain HTTP to other machines is opt-in and uses $HTTP_PROXY; loopback never does."""
    registry = start_strict()
    digest = seed(registry, "team/app", layout, image(layout), "1")
    elsewhere = "registry.invalid:8080"
    with WireServer(Forward()) as proxy:
        through = {"HTTP_PROXY": proxy.url, "http_proxy": proxy.url, **LOGIN}
        said = detlayer("resolve", f"{elsewhere}/app:1", "--insecure-registry", elsewhere, "-v", **through)
        assert said.failure == (4, "registry-refused")
        assert said.error[2].endswith("(400, UNSUPPORTED: this proxy leads nowhere)")
        assert [request.target for request in proxy.requests] == [f"http://{elsewhere}/v2/app/manifests/1"]
        assert not proxy.requests[0].has("authorization")  # without a challenge
        # Without --insecure-registry it is HTTPS, where nothing listens.
        assert detlayer("resolve", f"{elsewhere}/app:1", "--retries", "0", **through).exit == 5
        direct = detlayer("resolve", f"{registry.address}/team/app:1", **through)
        assert direct.stdout.startswith(digest)
        exempt = {**through, "NO_PROXY": "registry.invalid", "no_proxy": "registry.invalid"}
        said = detlayer("resolve", f"{elsewhere}/app:1", "--insecure-registry", elsewhere, "--retries", "0", **exempt)
        assert said.failure == (5, "registry-unreachable")
        assert len(proxy.requests) == 1


@pytest.mark.parametrize("command", ["push", "plan", "resolve", "pull"])
def test_retries(detlayer: CommandLine, start_strict: StartStrict, layout: Layout, digest: str, command: str) -> None:
    """--retries limits the retries of a request, for any kind of failure."""
    server = start_strict()
    seed(server, "team/app", layout, image(layout), "1")
    name = f"{server.address}/team/app:1"
    arguments = {
        "push": ["push", "oci:layout", name],
        "plan": ["plan", "oci:layout", name],
        "resolve": ["resolve", name],
        "pull": ["pull", name, "-o", "oci:pulled"],
    }[command]
    for act, failure in ((Reply(busy(429, "0")), "registry-busy"), (LoseAnswer(), "registry-broke-off")):
        server.arm(Fault(act, times=2))
        assert detlayer(*arguments, "--retries", "2").exit == 0
        server.revive()
        server.clear()
        server.arm(Fault(act, times=0))
        assert detlayer(*arguments, "--retries", "1").failure == (5, failure)
        assert len(server.requests) == 2
        server.revive()


@pytest.mark.parametrize("command", ["push", "resolve"])
def test_a_registry_that_never_answers(
    detlayer: CommandLine, start_strict: StartStrict, digest: str, command: str
) -> None:
    server = start_strict(PUSH_TRAPS["never-answers"])
    name = f"{server.address}/team/app:1"
    arguments = ["push", "oci:layout", name] if command == "push" else ["resolve", name]
    assert detlayer(*arguments, "--timeout", "0.3", "--retries", "0").error == (
        5,
        "registry-timeout",
        f"{server.address} timed out",
        "try again later, or raise --timeout",
    )


def test_no_wait_is_longer_than_the_timeout(detlayer: CommandLine, start_strict: StartStrict, digest: str) -> None:
    server = start_strict()
    server.arm(Fault(Reply(busy(429, "86400")), times=0))
    exit_code, code, message, hint = push(detlayer, server, "--timeout", "0.3").error
    assert (exit_code, code) == (5, "registry-busy")
    assert message == (
        f"can't look up {server.address}/team/app:1: {server.address} is busy (429), and asks to wait 86,400 s"
    )
    assert hint == "try again later, or raise --retries and --timeout"
    assert len(server.requests) == 1


def test_whoever_waits_is_told(detlayer: CommandLine, start_strict: StartStrict, digest: str) -> None:
    """Without -v."""
    server = start_strict()
    server.arm(Fault(Reply(busy(429, "50")), times=0))
    process = detlayer.start("push", "oci:layout", f"{server.address}/team/app:1")
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    assert re.fullmatch(f"{server.address} is busy: waiting (50|4[0-9]) s before the next request\n", line)
    process.send_signal(signal.SIGINT)
    assert detlayer.end(process).exit == 130


def test_a_wait_for_an_answer_is_told(detlayer: CommandLine, digest: str) -> None:
    """After five seconds, and the answer comes once the user has been told."""
    told = threading.Event()

    def say(asked: Asked) -> Iterator[bytes]:
        told.wait(60)
        yield raw_answer(404)

    with RawServer(say) as server:
        process = detlayer.start("resolve", f"{server.address}/team/app:1")
        assert process.stderr is not None
        line = process.stderr.readline().decode()
        told.set()
        assert detlayer.end(process).exit == 4
        url = f"http://{server.address}/v2/team/app/manifests/1"
    assert re.fullmatch(f"waiting for an answer to GET {re.escape(url)}: at most 5[0-5] s more\n", line)


def test_a_proxy_that_is_not_there(detlayer: CommandLine, digest: str) -> None:
    """It is named, and not the registry; its password is not shown."""
    proxy = {"HTTPS_PROXY": "http://me:hunter2-secret@127.0.0.1:1", "https_proxy": ""}
    exit_code, code, message, hint = detlayer("resolve", "registry.invalid/app:1", "--retries", "0", **proxy).error
    assert (exit_code, code) == (5, "proxy-failed")
    assert message == "can't connect to the proxy 127.0.0.1:1 for registry.invalid: Connection refused"
    assert "HTTPS_PROXY" in hint
    assert "hunter2" not in detlayer.said[-1].stderr


def test_a_missing_repository_is_not_to_be_created_by_who_pulls(
    detlayer: CommandLine, start_strict: StartStrict
) -> None:
    server = start_strict()
    missing = error_answer(404, ("NAME_UNKNOWN", "repository name not known to registry", None))
    server.arm(Fault(Reply(missing), times=0))
    name = f"{server.address}/team/app:1"
    for command in (["resolve", name], ["pull", name, "-o", "oci:pulled"]):
        exit_code, code, _, hint = detlayer(*command).error
        assert (exit_code, code) == (4, "repository-missing")
        assert "create" not in hint
        assert "check the name" in hint


@pytest.mark.parametrize(
    ("trap", "code", "says", "advises"),
    [
        (
            "repository-missing",
            "repository-missing",
            "repository not found on {host} (404, NAME_UNKNOWN: ",
            "ecr create-",
        ),
        ("read-only", "registry-read-only", "refused to let you push to team/app (405, ", "read-only or a mirror: "),
        ("garbage-on-post", "registry-garbage", "status 200 for a request to push to team/app", "check the address"),
        ("error-in-html", "registry-denied", "refused to let you push to team/app (403)", "ask for permission"),
        ("error-without-end", "registry-denied", "refused to let you push to team/app (403)", "ask for permission"),
        ("digest-header-wrong", "manifest-digest", "; expected sha256:", "modifies manifests"),
        ("realm-private", "realm-private", "private address: http://10.255.255.1/token", "on the registry's own host"),
    ],
)
def test_registries_that_refuse(
    detlayer: CommandLine, start_strict: StartStrict, digest: str, trap: str, code: str, says: str, advises: str
) -> None:
    server = start_strict(PUSH_TRAPS[trap])
    said = push(detlayer, server, **(LOGIN if server.account else {}))
    assert said.failure == (6 if code == "manifest-digest" else 4, code)
    assert says.format(host=server.address) in said.error[2]
    assert advises in said.error[3]
    assert not said.error[2].endswith(".")
    assert all(line.isprintable() for line in said.words)
    assert said.words[0] == f"{server.address}/team/app:1 failed"


@pytest.mark.parametrize(
    ("said", "failure", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", (5, "registry-broke-off"), "closed the connection: "),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100_000, (5, "registry-broke-off"), "closed the connection: "),
        (b"HTTP/1.1 999 \x1b[31mNo\r\n\r\n", (4, "registry-refused"), "(999)"),
        (raw_answer(301), (4, "registry-garbage"), "status 301 without a Location"),
        (raw_answer(200, b"<html>", content_type="text/html"), (4, "registry-garbage"), "web page instead of a"),
        (raw_answer(200, bytes(100)), (3, "document-invalid"), "is not valid JSON"),
    ],
    ids=["ssh", "flood", "status", "nowhere", "page", "zeros"],
)
def test_a_server_that_is_not_a_registry(
    detlayer: CommandLine, digest: str, said: bytes, failure: tuple[int, str], says: str
) -> None:
    with RawServer(lambda asked: said) as server:
        for command in (["push", "oci:layout", f"{server.address}/x:1"], ["resolve", f"{server.address}/x:1"]):
            done = detlayer(*command, "--retries", "0")
            assert done.failure == failure
            assert says in done.error[2]
            assert all(line.isprintable() for line in done.words)


def test_an_immutable_tag(detlayer: CommandLine, start_strict: StartStrict, layout: Layout, digest: str) -> None:
    server = start_strict(rules=Rules(immutable_tags=True))
    old = seed(server, "team/app", layout, platforms(layout, 1, 1), "1")
    said = push(detlayer, server)
    assert said.failure == (4, "tag-immutable")
    assert said.words[-1] == "  hint: the tag is immutable: push under a new tag"
    assert server.tags("team/app") == {"1": old}


def test_a_blob_that_is_corrupt_on_disk(detlayer: CommandLine, start_real: StartReal, layout: Layout) -> None:
    """The error has the expected and actual digest; no tag ever points to such an image."""
    server = start_real("open")
    layer = json.loads(layout.read(layout.tag(image(layout, ["one"]), "app")["digest"]))["layers"][0]["digest"]
    whole = layout.read(layer)
    layout.blob_path(layer).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    said = push(detlayer, server)
    assert said.failure == (6, "blob-digest")
    assert said.error[2].startswith(f"blob {layer} of the image is corrupt: found sha256:")
    layout.blob_path(layer).write_bytes(whole[:-1])
    said = push(detlayer, server)
    assert said.failure == (6, "blob-digest")
    where = f"blobs/sha256/{layer.removeprefix('sha256:')} of layout"
    assert said.error[2] == f"{where} has {len(whole) - 1} bytes, expected {len(whole)}"
    layout.blob_path(layer).write_bytes(whole)
    assert server.tags("team/app") == {}
    assert push(detlayer, server).exit == 0


def test_what_a_registry_says_is_shown_on_one_line(
    detlayer: CommandLine, start_strict: StartStrict, digest: str
) -> None:
    """Colours, line breaks and commands for GitHub's runner are escaped."""
    server = start_strict()
    text = "no\x1b[31m\r\n::error::really##[command]not" + "!" * 100_000
    body = json.dumps({"errors": [{"code": "DENIED", "message": text}]}).encode()
    server.arm(Fault(Reply(Answer(400, (("Content-Type", "application/json"),), body)), "POST", times=0))
    said = push(detlayer, server)
    assert said.failure[0] == 4
    assert len(said.words) == 4
    assert all(line.isprintable() and len(line) < 1000 for line in said.words)
    assert "##[" not in said.stderr
