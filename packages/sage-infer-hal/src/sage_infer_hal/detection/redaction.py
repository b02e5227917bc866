"""Serial numbers stay out of profiles, notes and messages: a profile is for sharing."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["board_names", "redacted"]

_LABELLED = re.compile(
    r"((?:\bS/?N|serial(?:[ _-]?(?:number|no\.?|num))?)\s*[\"']?\s*[:=>]+\s*[\"']?)[\w[][^\s\"'<,|]*",
    re.IGNORECASE,
)
# Letters and digits in one piece, many of them digits: no name of a product, bus id or version looks so.
_BARE = re.compile(r"(?<![0-9A-Za-z.-])(?!0[xX])(?=(?:[A-Za-z]*\d){5})[0-9A-Za-z]{10,}(?![0-9A-Za-z.-])")
_INSTEAD = "[redacted]"


def redacted(text: str) -> str:
    """Return the text with serial numbers, and text that resembles them, replaced."""
    return _BARE.sub(_INSTEAD, _LABELLED.sub(lambda match: match[1] + _INSTEAD, text))


def board_names(serials: Sequence[str | None]) -> list[str | None]:
    """Names of boards in place of their serial numbers, by order; None for a device that has a board of its own."""
    counts = Counter(serial for serial in serials if serial)
    shared = [serial for serial, count in counts.items() if count > 1]
    return [f"board {shared.index(serial)}" if serial in shared else None for serial in serials]
