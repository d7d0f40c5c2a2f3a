"""The test certificate authority and its server certificates; created once per run."""

from __future__ import annotations

import functools
import ssl
import tempfile
from pathlib import Path

import trustme

_NAMES = ("127.0.0.1", "localhost", "::1")


@functools.cache
def authority() -> trustme.CA:
    return trustme.CA()


@functools.cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="detlayer-ca-")


@functools.cache
def ca_path() -> Path:
    """The path of the authority's certificate."""
    path = Path(_directory().name) / "ca.crt"
    authority().cert_pem.write_to_path(str(path))
    return path


@functools.cache
def other_ca_path() -> Path:
    """The path of an authority that has signed no server certificate."""
    path = Path(_directory().name) / "other-ca.crt"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


@functools.cache
def server_files() -> tuple[Path, Path]:
    """The paths of the servers' key and certificates, for programs."""
    key, chain = Path(_directory().name) / "server.key", Path(_directory().name) / "server.crt"
    leaf = authority().issue_cert(*_NAMES)
    leaf.private_key_pem.write_to_path(str(key))
    chain.write_bytes(b"".join(pem.bytes() for pem in leaf.cert_chain_pems))
    return key, chain


@functools.cache
def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    key, chain = server_files()
    context.load_cert_chain(chain, key)
    return context
