"""Main memory of this process and its children."""

from __future__ import annotations

import os
import re
from pathlib import Path

__all__ = ["held_bytes"]

_HELD = re.compile(r"^Rss(?:Anon|Shmem):\s*(\d+) kB$", re.MULTILINE)


def held_bytes(root: Path = Path("/proc"), pid: int | None = None) -> int | None:
    """Resident bytes of a process and its descendants, without file pages; None without /proc.

    File pages are mapped weights, which the system can evict, and libraries, which engines include in their
    requirements. So memory beyond the plan is detected only if it exceeds these. Shared pages count in each process, so
    engines that fork appear slightly larger.
    """
    pid = os.getpid() if pid is None else pid
    parents: dict[int, int] = {}
    for stat in root.glob("[0-9]*/stat"):
        try:
            after_name = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process has exited
        parents[int(stat.parent.name)] = int(after_name[1])
    if pid not in parents:
        return None
    total = 0
    for other in parents:
        above = other
        while above not in (0, pid):
            above = parents.get(above, 0)
        if above == pid:
            total += _held(root / str(other))
    return total


def _held(process: Path) -> int:
    try:
        status = (process / "status").read_text()
    except OSError:
        return 0  # the process has exited
    return 1024 * sum(map(int, _HELD.findall(status)))
