"""Joining of lines that a terminal wrapped at its width."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["joined_lines"]

_NARROWEST = 72  # below this length, two lines of equal length do not indicate a terminal's width
_ENTRY = re.compile(r"\s*[A-Z][^:|]*?\s+: ")  # a key and its value: a line of its own
_FRAME = ("|", "+")


def joined_lines(lines: Sequence[str]) -> tuple[list[str], int] | None:
    """Join lines of the maximum width to the next line; return the lines and that width.

    A line that starts with a table's frame and does not end with it was also wrapped there, without its trailing
    blanks. Returns None if the lines were not wrapped: the longest are too short, or all have the same length.
    """
    width = max(map(len, lines), default=0)
    full = [len(line) == width or _is_open(line) for line in lines]
    if width < _NARROWEST or sum(full) < 2 or all(full):
        return None
    followers = [
        line
        for line, before, is_full in zip(lines[1:], full, full[1:], strict=False)
        if before and not is_full
    ]
    if full[-1] or not all(line.strip() and not _ENTRY.match(line) for line in followers):
        return None  # a line that fills the width by chance has no rest below it
    rules = [_is_rule(line) for line in lines]
    if any(cut and rule and not below for cut, rule, below in zip(full, rules, rules[1:], strict=False)):
        return None  # the rest of a rule is a rule
    joined: list[str] = []
    begun = ""
    for line, is_full in zip(lines, full, strict=True):
        if is_full:
            begun += line.ljust(width)
        else:
            joined.append(begun + line)
            begun = ""
    return joined, width


def _is_rule(line: str) -> bool:
    """A line of rules only, or a title between rules, which no terminal cuts so that both ends are kept."""
    return re.fullmatch(r"[-=+| ]*[-=]{2}[-=+| ]*|[-=+|]+|=+[^=].*=", line) is not None


def _is_open(line: str) -> bool:
    return line.startswith(_FRAME) and not line.rstrip().endswith(_FRAME)
