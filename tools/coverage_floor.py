"""Fail if any package's branch coverage is below the floor; print the table."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import coverage

FLOOR = 90.0


def main() -> int:
    data = coverage.Coverage()
    data.load()
    low = []
    for package in sorted(Path("packages").iterdir()):
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
    sys.exit(main())
