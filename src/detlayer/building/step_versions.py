"""The version of each kind of step. A new version changes the key, so the step runs again."""

from __future__ import annotations

from collections.abc import Mapping

VERSIONS: Mapping[str, str] = {
    "resolve": "1",
    "fetch": "1",
    "pack": "1",
    "configure": "1",
    "assemble": "1",
    "index": "1",
    "download": "1",
    "publish": "1",
    "write": "2",
}
