"""Mounted file systems, from /proc/self/mountinfo (its format: proc_pid_mountinfo(5))."""

from __future__ import annotations

import re

from attrs import frozen

__all__ = ["Mount", "parse_mountinfo"]


@frozen(kw_only=True)
class Mount:
    """One line: device as ``major:minor``, mounted part of the file system, mount point, and options."""

    device: str
    root: str
    point: str
    read_only: bool
    filesystem: str
    source: str
    super_options: frozenset[str]


def parse_mountinfo(text: str) -> list[Mount]:
    """The mounts in the order of the file; malformed lines are skipped."""
    mounts = []
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        left, right = before.split(" "), after.split(" ")
        if not dash or len(left) < 6 or len(right) < 3:
            continue
        options = frozenset(right[2].split(","))
        mounts.append(
            Mount(
                device=left[2],
                root=_unescaped(left[3]),
                point=_unescaped(left[4]),
                read_only="ro" in left[5].split(",") or "ro" in options,
                filesystem=right[0],
                source=_unescaped(right[1]),
                super_options=options,
            )
        )
    return mounts


def _unescaped(text: str) -> str:
    """Decode white space and backslashes, which the kernel writes as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
