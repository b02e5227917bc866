"""Locks that end with the process which holds them: byte ranges of an open file (Linux OFD locks)."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time

from sage_infer.errors import Overloaded

__all__ = ["FileLock", "OwnerNumbers"]

_FLOCK = struct.Struct("hhqqi4x")
_MUTEX = 0
_OWNERS = range(1, 256)
_SPINS = 64


class FileLock:
    """Excludes threads of this process and other processes that have the file open.

    A process that dies lets go of it. One that is stopped while it holds the lock makes ``__enter__`` give up.
    """

    def __init__(self, descriptor: int, path: str, *, timeout_s: float) -> None:
        self._descriptor = descriptor
        self._path = path
        self._timeout_s = timeout_s
        self._threads = threading.Lock()

    def __enter__(self) -> None:
        """
        Raises:
            Overloaded: another process has held it for ``timeout_s``.
        """
        if not self._threads.acquire(timeout=self._timeout_s):
            raise self._late()
        try:
            if not _lock(self._descriptor, _MUTEX):
                self._wait()
        except BaseException:
            self._threads.release()
            raise

    def __exit__(self, *_: object) -> None:
        _unlock(self._descriptor, _MUTEX)
        self._threads.release()

    def _wait(self) -> None:
        end = time.monotonic() + self._timeout_s
        tries = 0
        while not _lock(self._descriptor, _MUTEX):
            if time.monotonic() > end:
                raise self._late()
            tries += 1
            time.sleep(0 if tries < _SPINS else 0.0005)

    def _late(self) -> Overloaded:
        return Overloaded(
            f"the lock of {self._path} was not free for {self._timeout_s:g} s: a process that shares it is stopped; "
            "continue or end it",
            retry_after=1.0,
        )


class OwnerNumbers:
    """A number for each process that has the file open, held until the process closes the file or dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.mine = next((number for number in _OWNERS if _lock(descriptor, number)), 0)

    @staticmethod
    def count(descriptor: int) -> int:
        """Processes that have the file open."""
        return sum(not _is_free(descriptor, number) for number in _OWNERS)

    def is_alive(self, number: int) -> bool:
        return number == self.mine or not _is_free(self._descriptor, number)

    def others(self) -> bool:
        """Whether another process has the file open."""
        return any(number != self.mine and not _is_free(self._descriptor, number) for number in _OWNERS)


def _lock(descriptor: int, byte: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(descriptor: int, byte: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))


def _is_free(descriptor: int, byte: int) -> bool:
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return bool(_FLOCK.unpack(found)[0] == fcntl.F_UNLCK)
