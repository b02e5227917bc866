"""Share of the CPUs that a process gets while others of this machine want them, too."""

from __future__ import annotations

import asyncio
from pathlib import Path

__all__ = ["set_niceness"]

_PAUSE_S, _TRIES = 0.1, 50  # Linux accepts one change per 0.1 s and machine


async def set_niceness(pid: int, nice: int) -> bool:
    """Set the niceness of a process's session against other sessions, from 0 (default) to 19.

    In contrast to the niceness of a process, it can be lowered again without privileges. Returns whether it was set;
    it cannot be where Linux does not divide the CPUs among sessions.
    """
    for _ in range(_TRIES):
        try:
            return _write(Path(f"/proc/{pid}/autogroup"), nice)
        except BlockingIOError:
            await asyncio.sleep(_PAUSE_S)
        except OSError:
            return False
    return False


def _write(file: Path, nice: int) -> bool:
    if not file.exists():
        return False
    file.write_text(str(nice))
    return True
