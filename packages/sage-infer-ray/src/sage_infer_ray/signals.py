"""Signal handlers that a C library replaces are put back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["kept"]

_ACTION_BYTES = 512  # more than ``struct sigaction`` has on any platform


@contextmanager
def kept(number: int) -> Iterator[None]:
    """Restore the handler of a signal, as it was before the block.

    Works in every thread, and with handlers that Python does not know, unlike ``signal.signal``.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    action = ctypes.create_string_buffer(_ACTION_BYTES)
    _checked(libc.sigaction(number, None, action))
    try:
        yield
    finally:
        _checked(libc.sigaction(number, action, None))


def _checked(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), "sigaction failed")
