"""Memory shared by this process and the engine's workers, without a name that a killed process leaves behind."""

from __future__ import annotations

import mmap
import os
import re
import sys
import weakref
from pathlib import Path

from sage_infer.errors import OutOfMemory, UnsupportedFeature

__all__ = ["HostPages"]

_MEMORY = Path("/proc/meminfo")


class HostPages:
    """Anonymous shared memory of ``nbytes``; workers open it at ``file`` until ``close``.

    All of it is allocated immediately: a worker that writes to memory that is not available would be killed.

    Attributes:
        view: the memory; it and its slices stay valid after ``close``.

    Raises:
        OutOfMemory: there is not enough memory.
        UnsupportedFeature: this platform has no such memory.
    """

    def __init__(self, nbytes: int) -> None:
        if not hasattr(os, "memfd_create"):
            raise UnsupportedFeature("KV moves between processes through memfd_create, which only Linux has")
        if nbytes > _available_bytes():  # else the kernel would end processes to make room
            raise OutOfMemory(
                f"{nbytes} bytes of shared memory for KV cannot be allocated: {_available_bytes()} bytes are available"
            )
        self._descriptor = os.memfd_create("sage-infer-kv", os.MFD_CLOEXEC)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        try:
            os.posix_fallocate(self._descriptor, 0, nbytes)
            self.view = memoryview(mmap.mmap(self._descriptor, nbytes))
        except OSError as error:
            self.close()
            raise OutOfMemory(
                f"{nbytes} bytes of shared memory for KV cannot be allocated: {error}"
            ) from error
        self.nbytes = nbytes

    @property
    def file(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def close(self) -> None:
        """Safe to call twice."""
        self._close()


def _available_bytes() -> int:
    """Memory that the kernel can give without swapping; unbounded where it does not say."""
    try:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", _MEMORY.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else sys.maxsize
