"""Cells of link tables that ran into each other, taken apart where that can be done in one way only."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["split_cells", "splits"]


def splits(cell: str, pattern: str) -> list[list[str]]:
    """Every way to write the cell as words that match ``pattern``."""
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
    """The cells with those that hold several codes taken apart; None where that can be done in several ways."""
    found: list[str] = []
    for cell in cells:
        ways = splits(cell, pattern) if 0 < len(cell) <= 64 else []
        if len(ways) > 1:
            return None
        found += ways[0] if ways else [cell]
    return found
