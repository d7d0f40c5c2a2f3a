"""Uploads in chunks to registries with wrong offsets: the blob arrives complete, or the push fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from detlayer.errors import IntegrityError, RegistryError
from detlayer.oci.ports import Session
from detlayer.oci.types import digest_of
from detlayer.registry.upload import Progress, upload
from tests.contracts.raw_server import Asked, RawServer, answer
from tests.contracts.test_addresses import BLOB, DATA, Bytes, repository

CHUNK = 300


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detlayer.registry.upload.CHUNKED_FROM_BYTES", 100)
    monkeypatch.setattr("detlayer.registry.upload._CHUNK_BYTES", CHUNK)
    monkeypatch.setattr("detlayer.registry.upload._SMALLEST_CHUNK_BYTES", 50)


@dataclass
class Chunky:
    """A registry with one upload at a time. `range_of` returns its Range for a number of bytes."""

    range_of: Callable[[int], str] = lambda count: f"0-{max(count - 1, 0)}"
    minimum: str = ""
    patch_status: int = 202
    gives_locations: bool = True
    most: int = 1 << 30
    have: bytearray = field(default_factory=bytearray)
    whole: bytes = b""
    starts: int = 0

    def __call__(self, asked: Asked) -> bytes:
        location = "/u" if self.gives_locations else ""
        match asked.method:
            case "POST":
                self.have.clear()
                self.starts += 1
                return answer(202, location="/u", oci_chunk_min_length=self.minimum)
            case "PATCH":
                if len(asked.body) > self.most:
                    return answer(413)
                if asked.headers["content-range"] != f"{len(self.have)}-{len(self.have) + len(asked.body) - 1}":
                    return answer(416, range=self.range_of(len(self.have)))
                self.have += asked.body
                return answer(self.patch_status, location=location, range=self.range_of(len(self.have)))
            case "GET":
                return answer(204, location=location, range=self.range_of(len(self.have)))
            case "PUT":
                if str(digest_of(self.have + asked.body)) not in asked.target:
                    return answer(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
                self.whole = bytes(self.have + asked.body)
                return answer(201)
        return answer(404)


GOOD = {
    "plain": Chunky(),
    "0-0-always": Chunky(lambda count: "0-0"),
    "no-range": Chunky(lambda count: ""),
    "no-numbers": Chunky(lambda count: "all of it"),
    "bytes": Chunky(lambda count: f"bytes=0-{count - 1}"),
    "not-from-0": Chunky(lambda count: f"{count - 300}-{count - 1}"),
    "enormous-number": Chunky(lambda count: "0-" + "9" * 5000),
    "201": Chunky(patch_status=201),
    "204": Chunky(patch_status=204),
    "no-locations": Chunky(gives_locations=False),
    "minimum-beyond-the-blob": Chunky(minimum="5000000"),
    "minimum-of-any-size": Chunky(minimum="9" * 11),
    "minimum-absurd": Chunky(minimum="9" * 40),
    "minimum-negative": Chunky(minimum="-5"),
    "minimum-zero": Chunky(minimum="0"),
    "maximum": Chunky(most=100),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_comes_through(name: str) -> None:
    registry = GOOD[name]
    sent: list[int] = []
    with RawServer(registry) as server, repository(server) as one:
        assert upload(one, BLOB, Bytes, progress=Progress(sent.append)) == "uploaded"
    assert registry.whole == DATA
    assert sum(sent) == len(DATA)
    if name.startswith("minimum-") and name.endswith(("blob", "size")):
        assert len([asked for asked in server.asked if asked.method == "PATCH"]) == 1


@pytest.mark.parametrize(
    ("registry", "code"),
    [
        (Chunky(lambda count: f"0-{count + 5}"), "upload-lost"),
        (Chunky(lambda count: "0-5"), "registry-refused"),
        (Chunky(lambda count: "0-" + "9" * 18), "upload-lost"),
        (Chunky(patch_status=416), "registry-refused"),
        (Chunky(patch_status=404), "upload-lost"),
        (Chunky(patch_status=302), "registry-garbage"),
        (Chunky(most=1), "too-large"),
    ],
)
def test_what_does_not(registry: Chunky, code: str) -> None:
    """The upload is retried a few times, then fails."""
    with RawServer(registry) as server, repository(server) as one:
        with pytest.raises(RegistryError) as caught:
            upload(one, BLOB, Bytes)
        assert len(server.asked) < 20
    assert caught.value.code == code
    assert registry.whole == b""


@pytest.mark.parametrize("had", [DATA[:500], b"y" * 500, DATA, b"y" * 1000, b"", b"y" * 5000])
def test_a_session_of_an_earlier_run(had: bytes) -> None:
    """The upload is resumed; if the resumed bytes are corrupt, the blob is sent again from the start."""
    registry = Chunky(have=bytearray(had))
    with RawServer(registry) as server, repository(server) as one:
        session = Session(f"http://{server.address}/u", 500)
        assert upload(one, BLOB, Bytes, resume=session) == "uploaded"
    assert registry.whole == DATA
    assert registry.starts == (0 if had in (DATA[:500], DATA) else 1)


def test_the_newest_location_is_kept() -> None:
    """Including a resumed session: docker-registry accepts no other Location."""
    chunky = Chunky(have=bytearray(DATA[:500]))

    def say(asked: Asked) -> bytes:
        if asked.method == "PATCH":
            return answer(503)
        return chunky(asked).replace(b"location: /u\r\n", b"location: /u?asked=%d\r\n" % len(server.asked))

    kept: list[Session | None] = []
    with RawServer(say) as server, repository(server) as one:
        session = Session(f"http://{server.address}/u", 500)
        with pytest.raises(RegistryError):
            upload(one, BLOB, Bytes, resume=session, progress=Progress(on_session=kept.append))
        asked = [number for number, asked in enumerate(server.asked, 1) if asked.method in ("GET", "POST")]
        assert kept[-1] is not None
        assert kept[-1].location.endswith(f"/u?asked={asked[-1]}")
        assert Session(f"http://{server.address}/u?asked=1", 500) in kept


def test_wrong_twice_is_an_error() -> None:
    registry = Chunky(have=bytearray(b"y" * 500))
    with RawServer(registry) as server, repository(server) as one:
        session = Session(f"http://{server.address}/u", 500)
        with pytest.raises(IntegrityError) as caught:
            upload(one, BLOB, lambda: Bytes(b"z" * 1000), resume=session)
    assert caught.value.code == "blob-refused"
    assert registry.starts == 1
