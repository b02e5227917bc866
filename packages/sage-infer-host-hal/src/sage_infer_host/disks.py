"""File systems that can hold KV, and their devices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attrs import frozen
from sage_infer.schemas import MemoryTierSpec
from sage_infer.system.files import number_in, text_in
from sage_infer.system.mounts import Mount, parse_mountinfo

__all__ = ["Disks", "read_disks"]

LOCAL = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "xfs", "zfs"})
REMOTE = frozenset(
    {
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse.glusterfs",
        "fuse.juicefs",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
    }
)
_SMALLEST = 1 << 30  # anything smaller is a boot or settings partition


@frozen(kw_only=True)
class Disks:
    """One tier per file system, and notes about them."""

    tiers: tuple[MemoryTierSpec, ...] = ()
    notes: tuple[str, ...] = ()


def read_disks(root: Path, capacity: Callable[[str], int | None]) -> Disks:
    """Writable file systems below ``root``, one entry per file system even if it is mounted several times.

    ``capacity(mount_point)`` returns its size in bytes, None if it must not be queried.
    """
    tiers, notes, seen = [], [], set()
    mounts = parse_mountinfo(text_in(root / "proc/self/mountinfo") or "")
    hidden = {mount.point: index for index, mount in enumerate(mounts)}  # a later mount hides an earlier one
    candidates = [
        mount for index, mount in enumerate(mounts) if hidden[mount.point] == index and _wanted(mount, root)
    ]
    for mount in sorted(candidates, key=lambda mount: (mount.point.count("/"), mount.point)):
        key = mount.device if not _remote(mount) else mount.source
        if key in seen:
            continue
        seen.add(key)
        # An unresponsive server would block the query for minutes.
        size = None if _remote(mount) else capacity(mount.point)
        if not _remote(mount) and (size is None or size < _SMALLEST):
            continue
        device = None if mount.filesystem == "overlay" else _device(root, mount)
        tiers.append(
            MemoryTierSpec(
                tier="remote" if _remote(mount) else "ssd",
                name=mount.point,
                capacity_bytes=size,
                device=device,
                filesystem=mount.filesystem,
            )
        )
        disk = _disk(root, mount)
        if disk is not None and number_in(disk / "queue/rotational") == 1:
            notes.append(
                f"{mount.point}: the kernel reports rotating disks for {disk.name}; virtual disks are often misreported"
            )
    return Disks(tiers=tuple(tiers), notes=tuple(notes))


def _remote(mount: Mount) -> bool:
    return mount.filesystem in REMOTE


def _wanted(mount: Mount, root: Path) -> bool:
    if mount.read_only or _remote(mount):
        return not mount.read_only
    # Container engines mount single files of the host, such as /etc/hosts.
    return mount.filesystem in LOCAL and not (root / mount.point.removeprefix("/")).is_file()


def _device(root: Path, mount: Mount) -> str | None:
    if _remote(mount):
        return mount.source
    place = root / "sys/dev/block" / mount.device
    if place.exists():
        return place.resolve().name
    return mount.source.removeprefix("/dev/") if mount.source.startswith("/dev/") else None


def _disk(root: Path, mount: Mount) -> Path | None:
    """The folder in /sys of the whole disk that holds a file system; for a partition, its parent disk."""
    place = root / "sys/dev/block" / mount.device
    if not place.exists():
        return None
    place = place.resolve()
    return place.parent if (place / "partition").exists() else place
