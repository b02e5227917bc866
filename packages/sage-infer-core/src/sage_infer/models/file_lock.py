"""An operating-system file lock: it is released when its holder dies, so no manual cleanup is needed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

__all__ = ["file_lock"]

_POLL_S = 0.1


@contextmanager
def file_lock(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file ``path``; the file is created and stays.

    ``waiting`` is called repeatedly while another process holds the lock.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("ab") as lock:
        while not _try_lock(lock):
            waiting()
            time.sleep(_POLL_S)
        yield


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
