"""Small files of /proc and /sys, below a root that tests can choose."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

__all__ = ["cpu_list", "cpus_in", "number_in", "text_in"]


def text_in(path: Path) -> str | None:
    """The stripped text of a file; None if it cannot be read or is empty."""
    try:
        return path.read_text("utf-8", errors="replace").strip() or None
    except OSError:
        return None


def number_in(path: Path) -> int | None:
    """The integer in a file; None if there is none."""
    text = text_in(path)
    return int(text) if text is not None and text.removeprefix("-").isdecimal() else None


def cpus_in(text: str | None) -> frozenset[int]:
    """The numbers in a kernel list such as ``0-3,8``; empty for any other text."""
    numbers: set[int] = set()
    for part in (text or "").split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            return frozenset()
        numbers.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(numbers)


def cpu_list(cpus: Iterable[int]) -> str | None:
    """Numbers as a list such as ``0-3,8``; None for no numbers."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or None
