"""Memory and CPU limits of this process by control groups, version 1, version 2 or both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from attrs import frozen

from sage_infer.system.files import text_in
from sage_infer.system.mounts import Mount, parse_mountinfo

__all__ = ["Grant", "granted"]


@frozen(kw_only=True)
class Grant:
    """Limits of this process; None without a limit."""

    memory_bytes: int | None = None
    cpus: float | None = None


def granted(root: Path) -> Grant:
    """The tightest limits from this process's control groups up to the visible root."""
    mounts = parse_mountinfo(text_in(root / "proc/self/mountinfo") or "")
    memory: list[int] = []
    cpus: list[float] = []
    for controllers, path in _memberships(text_in(root / "proc/self/cgroup") or ""):
        for mount in mounts:
            if mount.filesystem == "cgroup2" and not controllers:
                for folder in _folders(root, mount, path):
                    memory += _integers(text_in(folder / "memory.max"))[:1]
                    cpus += _share(_integers(text_in(folder / "cpu.max")))
            elif mount.filesystem == "cgroup" and controllers & mount.super_options:
                for folder in _folders(root, mount, path):
                    if "memory" in controllers:
                        memory += _integers(text_in(folder / "memory.limit_in_bytes"))
                    if "cpu" in controllers:
                        quota = _integers(text_in(folder / "cpu.cfs_quota_us"))
                        cpus += _share(quota + _integers(text_in(folder / "cpu.cfs_period_us")))
    return Grant(memory_bytes=min(memory, default=None), cpus=min(cpus, default=None))


def _memberships(text: str) -> Iterator[tuple[frozenset[str], PurePosixPath]]:
    """Controllers (none for version 2) and path per line of /proc/self/cgroup."""
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and path.startswith("/"):
            yield frozenset(filter(None, controllers.split(","))), PurePosixPath(path)


def _folders(root: Path, mount: Mount, path: PurePosixPath) -> Iterator[Path]:
    """The group's folder below its mount point, and its parents.

    In a container the path may be outside of the mounted tree; then the mount point itself is the group.
    """
    base = root / mount.point.removeprefix("/")
    try:
        inside = path.relative_to(mount.root)
    except ValueError:
        inside = PurePosixPath()
    if ".." in inside.parts or not (base / inside).is_dir():
        inside = PurePosixPath()
    yield base / inside
    for above in inside.parents:
        if above != inside:
            yield base / above


def _integers(text: str | None) -> list[int]:
    """The integers of a limit; None for ``max``."""
    words = (text or "").split()
    return [int(word) for word in words] if words and all(word.isdecimal() for word in words) else []


def _share(quota_and_period: list[int]) -> list[float]:
    """CPUs granted by a quota and its period in microseconds."""
    if len(quota_and_period) != 2 or not all(quota_and_period):
        return []
    quota, period = quota_and_period
    return [quota / period]
