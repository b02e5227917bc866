"""The host's detector: facts from /proc and /sys, and measurements on request."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Collection
from pathlib import Path

from sage_infer.schemas import HardwareProfile, MemoryTierSpec
from sage_infer.system import granted
from sage_infer.system import usable_cpus as affinity
from sage_infer.system.files import cpus_in, text_in

from sage_infer_host.cpu import describe_cpus
from sage_infer_host.disks import read_disks
from sage_infer_host.numa import Numa, read_numa

__all__ = ["HostDetector"]


class HostDetector:
    """Reads the host's hardware on Linux; on other systems only the memory size.

    Args:
        root: folder with ``proc`` and ``sys``; tests pass recorded trees.
        usable_cpus: logical CPUs that this process may run on; by default as the system reports them.
        architecture: in the form of ``platform.machine()``.
        capacity: returns the bytes of the file system at a mount point, None if it must not be queried.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        *,
        usable_cpus: Callable[[], Collection[int]] | None = None,
        architecture: str | None = None,
        capacity: Callable[[str], int | None] | None = None,
    ) -> None:
        self._root = root
        self._usable_cpus = usable_cpus or affinity
        self._architecture = architecture or platform.machine() or "unknown"
        self._capacity = capacity or _file_system_size

    def detect(self) -> HardwareProfile:
        usable = self._usable_cpus()
        grant = granted(self._root)
        total = _memory_total(self._root)
        numa = read_numa(self._root, usable, total)
        disks = read_disks(self._root, self._capacity)
        notes = [*numa.notes, *disks.notes]
        allowed = _allowed_nodes(self._root, numa)
        if allowed is not None:
            notes.append(f"this process may use the memory of {allowed[0]} only (cpuset)")
        limits = [limit for limit in (total, grant.memory_bytes, allowed and allowed[1]) if limit]
        memory = MemoryTierSpec(
            tier="dram", name="host", capacity_bytes=total, usable_bytes=min(limits, default=None)
        )
        return HardwareProfile(
            cpus=describe_cpus(self._root, self._architecture, usable, grant.cpus),
            numa_nodes=numa.nodes,
            links=numa.links,
            memory_tiers=(memory, *disks.tiers),
            sources=(f"/proc and /sys, {_kernel(self._root)}",),
            notes=notes,
        )

    def measure(self, profile: HardwareProfile, progress: Callable[[str, float], None]) -> HardwareProfile:
        """Measure as ``HardwareMeter`` specifies: one to three seconds for memory, five per local file system.

        Writes up to 1 GiB to an unnamed file on each file system and leaves nothing behind.
        """
        from sage_infer_host.measuring import measure

        return measure(profile, progress, cpus=self._usable_cpus())


def _file_system_size(mount_point: str) -> int | None:
    try:
        stat = os.statvfs(mount_point)
    except OSError:
        return None
    return stat.f_blocks * stat.f_frsize or None


def _memory_total(root: Path) -> int | None:
    match = re.search(r"^MemTotal:\s+([1-9]\d*) kB", text_in(root / "proc/meminfo") or "", re.MULTILINE)
    if match:
        return int(match[1]) * 1024
    if root != Path("/"):
        return None
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") or None
    except (AttributeError, OSError, ValueError):  # not available on this system
        return None


def _kernel(root: Path) -> str:
    release = text_in(root / "proc/sys/kernel/osrelease")
    if release is not None:
        return f"Linux {release}"
    return platform.platform() if root == Path("/") else "of an unknown kernel"


def _allowed_nodes(root: Path, numa: Numa) -> tuple[str, int] | None:
    """The nodes whose memory a cpuset allows, and their memory in bytes; None if it allows all or is unknown."""
    match = re.search(r"^Mems_allowed_list:\s+(\S+)", text_in(root / "proc/self/status") or "", re.MULTILINE)
    allowed = cpus_in(match[1] if match else None)
    if not match or not allowed or allowed >= {node.index for node in numa.nodes}:
        return None
    sizes = [node.memory_bytes for node in numa.nodes if node.index in allowed]
    return (f"NUMA node {match[1]}", sum(filter(None, sizes))) if sizes and all(sizes) else None
