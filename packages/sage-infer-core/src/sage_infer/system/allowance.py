"""Number of processors that this process may use."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from sage_infer.system.cgroup import granted

__all__ = ["usable_cpus", "usable_threads"]


def usable_cpus() -> Collection[int]:
    """Logical CPUs that this process may run on: its affinity mask, or all without one."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return range(os.cpu_count() or 0)


def usable_threads(root: Path = Path("/")) -> int:
    """Threads that this process can keep busy: one per usable CPU, limited by the CPU quota of its control groups.

    A quota of 1.5 CPUs means one thread: two would both be throttled for part of every period, and work that waits
    for both would wait for the throttled one. ``root`` is the folder with ``proc`` and ``sys``.
    """
    cpus = granted(root).cpus
    allowed = len(usable_cpus()) or 1
    return allowed if cpus is None else max(1, min(allowed, int(cpus)))
