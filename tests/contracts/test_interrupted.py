"""Ctrl-C and SIGTERM during any wait: the command ends at once with a message, and a second run completes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.contracts.assertions import assert_has, broken_tags, seed
from tests.contracts.faults import BLOB, MANIFEST, UPLOADS, Call, Fault, Reply, Silence
from tests.contracts.images import Layout, platforms
from tests.contracts.registry_behaviour import busy
from tests.contracts.strict import StrictRegistry

WAITS = {
    "tag": ("push", Fault(Silence(), "HEAD", times=0)),
    "upload-begun": ("push", Fault(Silence(), "POST", UPLOADS, times=0)),
    "upload": ("push", Fault(Silence(), "PUT", UPLOADS, times=0)),
    "manifest": ("push", Fault(Silence(), "PUT", MANIFEST, times=0)),
    "back-off": ("push", Fault(Reply(busy(429, "50")), times=0)),
    "back-off-in-lanes": ("push", Fault(Reply(busy(503, "50")), "POST", times=0)),
    "resolve": ("pull", Fault(Silence(), "GET", MANIFEST, times=0)),
    "download": ("pull", Fault(Silence(), "GET", BLOB, times=0)),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", WAITS)
def test_interrupted(
    name: str, number: signal.Signals, start_strict: Callable[..., StrictRegistry], layout: Layout, tmp_path: Path
) -> None:
    what, fault = WAITS[name]
    server = start_strict()
    index = layout.tag(platforms(layout), "image")
    if what == "pull":
        seed(server, "team/app", layout, index, "1")
    waits = threading.Event()
    server.arm(Fault(Call(lambda request: waits.set()), fault.method, fault.path, times=0), fault)
    reference = f"{server.address}/team/app:1"
    pull = [reference, "-o", f"oci:{tmp_path / 'pulled'}"]
    command = [sys.executable, "-m", "detlayer", what, *(pull if what == "pull" else [f"oci:{layout.path}", reference])]
    environment = {**os.environ, "DETLAYER_CACHE_DIR": str(tmp_path / "cache")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as running:
        assert waits.wait(60)
        running.send_signal(number)
        out, err = running.communicate(timeout=30)  # far less than the sum of all waits
    assert running.returncode == 128 + number
    assert out == b""
    assert b"interrupted" in err
    assert b"Traceback" not in err
    assert broken_tags(server) == {}
    assert not (tmp_path / "pulled" / "index.json").exists()
    server.revive()
    again = subprocess.run(command, capture_output=True, env=environment, check=True, timeout=60)
    assert again.stdout.decode().strip() == index["digest"]
    assert_has(server, "team/app", "1", layout, index)
