"""What this process and its children hold of main memory."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["resident_bytes"]


def resident_bytes(root: Path = Path("/proc"), pid: int | None = None) -> int | None:
    """Resident bytes of a process and all that descend from it, as /proc says it; None where there is no /proc.

    Pages that processes share count in each of them: engines that fork look a little larger than they are.
    """
    pid = os.getpid() if pid is None else pid
    parents: dict[int, int] = {}
    for stat in root.glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        parents[int(stat.parent.name)] = int(after_name[1])
    if pid not in parents:
        return None
    total = 0
    for other in parents:
        above = other
        while above not in (0, pid):
            above = parents.get(above, 0)
        if above == pid:
            total += _resident(root / str(other))
    return total


def _resident(process: Path) -> int:
    try:
        return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0
