"""Measure a file system: sequential and random direct I/O on an unnamed file."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from attrs import evolve
from sage_infer.schemas import Figure, MemoryTierSpec

from sage_infer_host.kernel_aio import AsyncFile

__all__ = ["measure_disk"]

BLOCK, BLOCKS_UNDER_WAY = 1 << 20, 4
PAGE, PAGES_UNDER_WAY = 4096, 32
MOST = 1 << 30  # maximum bytes written
_SHARE = 0.1  # maximum share of the free space
_LEAST = 64 << 20
_SECONDS = 1.2


def measure_disk(tier: MemoryTierSpec, progress: Callable[[float], None]) -> MemoryTierSpec:
    """The tier with its four figures. Takes about five seconds; leaves nothing behind, even when killed.

    Raises:
        OSError: it cannot be measured; the message has the reason.
    """
    folder = _writable_folder(tier.name)
    stat = os.statvfs(folder)
    size = min(MOST, int(stat.f_bavail * stat.f_frsize * _SHARE)) // BLOCK * BLOCK
    if size < _LEAST:
        raise OSError(f"less than {_LEAST / _SHARE / 2**20:.0f} MiB are free")
    with _nameless_file(folder) as descriptor:
        os.ftruncate(descriptor, size)  # writes that extend a file would wait for each other
        figures: dict[str, Any] = {}
        with AsyncFile(descriptor, nbytes=BLOCK, depth=BLOCKS_UNDER_WAY) as file:
            how = f"measured: blocks of 1 MiB, {BLOCKS_UNDER_WAY} under way, direct I/O"
            written, seconds = file.run(iter(range(0, size, BLOCK)), write=True, seconds=_SECONDS)
            figures["measured_write_gbs"] = Figure(value=written * BLOCK / seconds / 1e9, source=how)
            progress(0.25)
            again = itertools.cycle(range(0, written * BLOCK, BLOCK))
            count, seconds = file.run(again, write=False, seconds=_SECONDS)
            figures["measured_read_gbs"] = Figure(value=count * BLOCK / seconds / 1e9, source=how)
            progress(0.5)
        with AsyncFile(descriptor, nbytes=PAGE, depth=PAGES_UNDER_WAY) as file:
            how = f"measured: 4 KiB at random places, {PAGES_UNDER_WAY} under way, direct I/O"
            for name, write, share in (("read", False, 0.75), ("write", True, 1.0)):
                count, seconds = file.run(_places(written * BLOCK), write=write, seconds=_SECONDS)
                figures[f"measured_random_{name}_iops"] = Figure(value=count / seconds, source=how)
                progress(share)
    return evolve(tier, **figures)


def _places(size: int) -> Iterator[int]:
    """Random offsets, drawn in advance so that drawing does not count as disk time."""
    draw = random.Random(0)
    drawn = [draw.randrange(size // PAGE) * PAGE for _ in range(1 << 16)]
    return itertools.cycle(drawn)


def _writable_folder(mount_point: str) -> str:
    """A folder on the file system that this process may write to."""
    device = os.stat(mount_point).st_dev
    for folder in (mount_point, os.getcwd(), os.path.expanduser("~"), "/var/tmp", tempfile.gettempdir()):
        with contextlib.suppress(OSError):
            if os.stat(folder).st_dev == device and os.access(folder, os.W_OK | os.X_OK):
                return folder
    raise OSError("this user cannot write to any folder on it")


@contextlib.contextmanager
def _nameless_file(folder: str) -> Iterator[int]:
    """A descriptor, for direct I/O, of a file that the system removes when the process ends for any reason."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
            raise
        descriptor = _unlinked_file(folder)
    try:
        _go_direct(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _go_direct(descriptor: int) -> None:
    """Switch to direct I/O. Not while opening: with ``O_CREAT`` a failure would leave the file behind."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT)
    except OSError as error:
        raise OSError("its file system does not support direct I/O") from error


def _unlinked_file(folder: str) -> int:
    """The same for file systems without ``O_TMPFILE``: the name exists briefly, while the file is empty."""
    descriptor, name = tempfile.mkstemp(prefix=".sage-infer-", dir=folder)
    os.unlink(name)
    return descriptor
