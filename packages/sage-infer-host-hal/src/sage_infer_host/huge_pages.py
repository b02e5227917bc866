"""Memory in huge pages for measurements, so that the page size does not affect them."""

from __future__ import annotations

import contextlib
import mmap

__all__ = ["huge_pages"]


def huge_pages(nbytes: int) -> mmap.mmap:
    """Private page-aligned memory, in huge pages if the system has them.

    A disk block in scattered small pages has more segments than one request may have: it is split and reads at half
    the speed. Memory copies wait for address translation.
    """
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
