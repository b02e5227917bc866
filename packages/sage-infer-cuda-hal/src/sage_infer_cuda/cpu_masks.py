"""CPU masks as the lists used in profiles."""

from __future__ import annotations

import re

__all__ = ["cpu_list"]


def cpu_list(mask: int) -> str | None:
    """Bit *n* for CPU *n*, as a list such as ``0-23,48-71``; None for an empty mask."""
    runs = re.finditer("1+", bin(mask)[:1:-1])
    shown = [
        str(run.start()) if run.end() - run.start() == 1 else f"{run.start()}-{run.end() - 1}" for run in runs
    ]
    return ",".join(shown) or None
