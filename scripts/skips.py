"""Say in one line what pytest skipped, from its JUnit file; exit 1 if something was and DETLAYER_NO_SKIPS is 1."""

from __future__ import annotations

import ast
import os
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree


def read_reasons(path: Path) -> Counter[str]:
    """Count skipped tests by reason; a test that failed as expected is not one."""
    reasons: Counter[str] = Counter()
    for skipped in ElementTree.parse(path).iter("skipped"):
        if skipped.get("type") != "pytest.skip":
            continue
        reason = skipped.get("message", "")
        if reason == "collection skipped":  # a whole module; the text is repr((file, line, "Skipped: REASON"))
            reason = str(ast.literal_eval(skipped.text or "('',)")[-1])
        reasons[reason.removeprefix("Skipped: ")] += 1
    return reasons


def main(path: Path) -> int:
    if not path.exists():
        return 0  # pytest did not get as far, and says why
    reasons = read_reasons(path)
    if not reasons:
        print("nothing was skipped")
        return 0
    listed = ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
    strict = os.environ.get("DETLAYER_NO_SKIPS") == "1"
    print(f"skipped because a program or right is missing: {listed}" + ("; with DETLAYER_NO_SKIPS=1 that is a failure" if strict else ""))
    return 1 if strict else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
