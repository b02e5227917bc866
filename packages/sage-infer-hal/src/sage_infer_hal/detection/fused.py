"""Splitting of joined cells in link tables, if there is only one way to split them."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["split_cells", "splits"]


def splits(cell: str, pattern: str) -> list[list[str]]:
    """Return every way to split the cell into words that match ``pattern``."""
    ways: list[list[list[str]]] = [[[]]]  # by how many characters are read
    for end in range(1, len(cell) + 1):
        ways.append(
            [
                [*way, cell[start:end]]
                for start in range(end)
                if re.fullmatch(pattern, cell[start:end])
                for way in ways[start]
            ]
        )
    return ways[-1]


def split_cells(cells: Sequence[str], pattern: str) -> list[str] | None:
    """Return the cells with joined codes split; None if there are several ways to split them."""
    found: list[str] = []
    for cell in cells:
        ways = splits(cell, pattern) if 0 < len(cell) <= 64 else []
        if len(ways) > 1:
            return None
        found += ways[0] if ways else [cell]
    return found
