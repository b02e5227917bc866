"""Serial numbers stay out of profiles, notes and messages: a profile is for sharing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sage_infer.sdk.diagnosis.redaction import redacted

__all__ = ["board_names", "redacted"]


def board_names(serials: Sequence[str | None]) -> list[str | None]:
    """Names of boards in place of their serial numbers, by order; None for a device that has a board of its own."""
    counts = Counter(serial for serial in serials if serial)
    shared = [serial for serial, count in counts.items() if count > 1]
    return [f"board {shared.index(serial)}" if serial in shared else None for serial in serials]
