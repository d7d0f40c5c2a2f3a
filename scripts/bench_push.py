"""What `scripts/bench --only push` needs beside detlayer: a registry, a line with latency, an image of a given size."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_OCI = "application/vnd.oci.image."
_PIECE_BYTES = 1 << 20


class Registry:
    """A docker-registry on loopback, which forgets everything when asked."""

    def __init__(self, home: Path, port: int) -> None:
        self.address = f"127.0.0.1:{port}"
        self._storage = home / "storage"
        self._log = home / "access.log"

    def forget(self) -> None:
        shutil.rmtree(self._storage, ignore_errors=True)

    def requests(self) -> int:
        """Count the requests that it has answered so far, those for tokens not among them."""
        return self._log.read_bytes().count(b' HTTP/1.1" ')


@contextmanager
def running_registry(home: Path) -> Iterator[Registry]:
    """Start a docker-registry; it ends with the block."""
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    port = _free_port()
    registry = Registry(home, port)
    config = {
        "version": 0.1,
        "log": {"level": "error", "accesslog": {"disabled": False}},
        "storage": {"filesystem": {"rootdirectory": str(home / "storage")}},
        "http": {"addr": registry.address},
    }
    (home / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (home / "access.log").open("wb") as log:
        child = subprocess.Popen(["docker-registry", "serve", str(home / "config.yml")], stdout=log, stderr=log)
    try:
        for _ in range(100):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        yield registry
    finally:
        child.kill()
        child.wait()
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def slow_line(address: str, delay_s: float) -> Iterator[str]:
    """Give another address for a server, whose answers take `delay_s` longer: one round trip of a network."""
    command = [sys.executable, __file__, address, str(delay_s)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield child.stdout.readline().strip()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def make_image(layout: Path, layers: int, layer_bytes: int) -> None:
    """Write an OCI layout with an image of layers that don't compress, under the tag `bench`."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    described, diff_ids = [], []
    for number in range(layers):
        numbers, sha, written = random.Random(number), hashlib.sha256(), 0
        partial = blobs / "partial"
        with partial.open("wb") as file:
            # A tar of one file, uncompressed: what skopeo would compress first is compressed for nobody.
            for piece in _tar(numbers, layer_bytes):
                sha.update(piece)
                written += file.write(piece)
        digest = sha.hexdigest()
        partial.rename(blobs / digest)
        diff_ids.append(f"sha256:{digest}")
        described.append({"mediaType": f"{_OCI}layer.v1.tar", "digest": f"sha256:{digest}", "size": written})
    rootfs = {"type": "layers", "diff_ids": diff_ids}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_OCI}manifest.v1+json",
        "config": put(json.dumps(config).encode(), f"{_OCI}config.v1+json"),
        "layers": described,
    }
    named = put(json.dumps(manifest).encode(), f"{_OCI}manifest.v1+json")
    named["annotations"] = {"org.opencontainers.image.ref.name": "bench"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def _tar(numbers: random.Random, size_bytes: int) -> Iterator[bytes]:
    name, size = b"data".ljust(100, b"\0"), f"{size_bytes:011o}".encode()
    head = name + b"0000644\0" + b"0000000\0" * 2 + size + b"\0" + b"00000000000\0" + b" " * 8 + b"0"
    head = head.ljust(257, b"\0") + b"ustar\00000"
    head = head.ljust(512, b"\0")
    checksum = f"{sum(head):06o}\0 ".encode()
    yield head[:148] + checksum + head[156:]
    left = size_bytes
    while left:
        piece = numbers.randbytes(min(_PIECE_BYTES, left))
        left -= len(piece)
        yield piece
    yield bytes(-size_bytes % 512 + 1024)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _serve_slowly(address: str, delay_s: float) -> None:
    """Pass bytes on, what comes back `delay_s` later than it came."""
    host, _, port = address.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(f"127.0.0.1:{server.getsockname()[1]}", flush=True)
        while True:
            near, _ = server.accept()
            far = socket.create_connection((host, int(port)))
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pass_on, args=(near, far, 0.0), daemon=True).start()
            threading.Thread(target=_pass_on, args=(far, near, delay_s), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, delay_s: float) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 20):
            if delay_s:
                time.sleep(delay_s)
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    os.setpgid(0, 0)
    _serve_slowly(sys.argv[1], float(sys.argv[2]))
