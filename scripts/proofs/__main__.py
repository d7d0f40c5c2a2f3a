"""`scripts/prove`: list the proofs, or run one."""

from __future__ import annotations

import sys
from importlib import import_module

PROOFS = {
    "faults": "make the n-th read, stat, write, rename, fsync, … of each command fail, kill it there, or rot its cache",
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in PROOFS:
        print("usage: scripts/prove NAME [OPTIONS]\n")
        for name, what in PROOFS.items():
            print(f"  {name:10} {what}")
        return 2 if arguments and arguments[0] not in ("-h", "--help") else 0
    code = import_module(f"scripts.proofs.{arguments[0]}").main(arguments[1:])
    assert isinstance(code, int)
    return code


sys.exit(main(sys.argv[1:]))
