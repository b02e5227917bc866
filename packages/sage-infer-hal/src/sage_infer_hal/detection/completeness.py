"""Checks whether a recording shows all devices. A truncated or edited output often looks complete."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sage_infer_hal.detection.text import ToolText

__all__ = ["NO_PROCESSES", "UNCOUNTED", "gap_notes", "need_rows"]

NO_PROCESSES = "the table of processes is missing: devices at the end may be, too"
"""The note for tables that a tool prints another one below, where that one is missing."""

UNCOUNTED = "this output does not count its devices: rows that it lost at its end would not show"
"""The note for outputs that end with their last device."""


def gap_notes(numbers: Iterable[int], what: str, *, first: int = 0) -> list[str]:
    """Return a note if numbers counted from ``first`` have gaps: hidden devices, or lost rows."""
    shown = set(numbers)
    missing = sorted(set(range(first, max(shown, default=first - 1) + 1)) - shown)
    if not missing:
        return []
    return [
        f"{what} {', '.join(map(str, missing))} not shown: hidden from this user, or lost from the recording"
    ]


def need_rows(text: ToolText, rows: Collection[object], what: str) -> None:
    """Reject a table without rows below its heading.

    Raises:
        ToolOutputError: there are no rows.
    """
    if not rows:
        raise text.error(text.lines[-1] if text.lines else None, f"a row of {what} below the table's heading")
