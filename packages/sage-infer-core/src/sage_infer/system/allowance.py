"""How many processors this process may keep busy."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from sage_infer.system.cgroup import granted

__all__ = ["usable_cpus", "usable_threads"]


def usable_cpus() -> Collection[int]:
    """Logical CPUs that this process may run on: its affinity mask, or all where the system has none."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 0)


def usable_threads(root: Path = Path("/")) -> int:
    """Threads that this process can keep busy: one a usable CPU, and no more than its control groups pay for.

    A quota of 1.5 CPUs is one thread: two would both be stopped for a part of every period, and whoever waits for the
    slower one waits for the stop. ``root`` is where ``proc`` and ``sys`` are.
    """
    cpus = granted(root).cpus
    allowed = len(usable_cpus()) or 1
    return allowed if cpus is None else max(1, min(allowed, int(cpus)))
