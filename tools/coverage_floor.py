"""Fail if any package's branch coverage is below the floor; print the table.

    python tools/coverage_floor.py [PACKAGE …]

Without names, all packages whose tests run completely in the default environment are checked.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import coverage

FLOOR = 90.0
ELSEWHERE = {
    "sage-infer-nixl": "hatch run nixl:floor",
    "sage-infer-ray": "hatch run ray:floor",
    "sage-infer-vllm": "hatch run vllm.0.32:floor",
}
"""Packages whose tests need what is missing from the default environment, and the task that checks them."""


def main(names: list[str]) -> int:
    data = coverage.Coverage()
    data.load()
    low = []
    for package in sorted(Path("packages").iterdir()):
        if package.name not in (names or [package.name]):
            continue
        if not names and package.name in ELSEWHERE:
            print(f"{package.name:<24}  checked by `{ELSEWHERE[package.name]}`")
            continue
        sources = f"{package}/src/*"
        percent = data.report(include=[sources], file=io.StringIO(), show_missing=False)
        print(f"{package.name:<24}{percent:6.1f} %  branch coverage")
        if percent < FLOOR:
            low.append(package.name)
            data.report(include=[sources], skip_covered=True, show_missing=True)
    if low:
        print(f"below {FLOOR:g} %: {', '.join(low)}", file=sys.stderr)
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
