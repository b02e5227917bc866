"""Memory that measurements use, so that they do not measure the size of pages."""

from __future__ import annotations

import contextlib
import mmap

__all__ = ["huge_pages"]


def huge_pages(nbytes: int) -> mmap.mmap:
    """Memory of this process alone, aligned to pages, and in huge ones where the system has them.

    A block for a disk in scattered small pages has more segments than a request may have: it is split, and half as fast
    to read. Copies of memory wait for translations of addresses.
    """
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
