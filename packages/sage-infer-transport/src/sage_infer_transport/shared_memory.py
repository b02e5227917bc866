"""An endpoint in named shared memory, which other processes of the host read and write without a copy in between."""

from __future__ import annotations

import contextlib
import os
import re
import secrets

from sage_infer.errors import InvalidRequest

from sage_infer_transport.addresses import SHARED_MEMORY
from sage_infer_transport.endpoint import BaseEndpoint
from sage_infer_transport.rooms import Region, Room

__all__ = ["SharedMemoryEndpoint"]

_NAME = re.compile(r"sage-room-(\d+)-(\d+)-[0-9a-f]{8}")


class SharedMemoryEndpoint(BaseEndpoint):
    """KV under ``shm://NAME#OFFSET``.

    The segment is removed by ``close``. If its process dies first, the next endpoint on the host removes it.

    Args:
        capacity_bytes: maximum total bytes of payload. Memory is used as rooms are written.

    Raises:
        InvalidRequest: the host has no POSIX shared memory under ``/dev/shm`` (Linux has).
    """

    def __init__(self, *, capacity_bytes: int = 1 << 30) -> None:
        if not SHARED_MEMORY.is_dir():
            raise InvalidRequest(f"{SHARED_MEMORY} does not exist; shared memory endpoints require Linux")
        remove_orphans()
        self.name = f"sage-room-{os.getpid()}-{_started(os.getpid())}-{secrets.token_hex(4)}"
        self._path = SHARED_MEMORY / self.name
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            super().__init__(Region.on(fd, capacity_bytes))
        except BaseException:
            os.close(fd)
            self._path.unlink(missing_ok=True)
            raise

    def _uri(self, room: Room) -> str:
        return f"shm://{self.name}#{room.offset}"

    def close(self) -> None:
        super().close()
        self._path.unlink(missing_ok=True)


def remove_orphans() -> list[str]:
    """Remove segments whose process has ended; returns their names."""
    removed = []
    for path in SHARED_MEMORY.glob("sage-room-*"):
        found = _NAME.fullmatch(path.name)
        if found and _started(int(found[1])) != int(found[2]):
            with contextlib.suppress(OSError):
                path.unlink()
                removed.append(path.name)
    return removed


def _started(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot, so that a reused id is not mistaken; None if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])
