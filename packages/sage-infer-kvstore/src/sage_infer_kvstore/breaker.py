"""The breaker that leaves a store alone after failures."""

from __future__ import annotations

import time

__all__ = ["Breaker"]

_PAUSE_S = 30.0
_PATIENCE = 3


class Breaker:
    """Opens for 30 seconds after three failures in a row. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self.failures = 0
        self._in_row = 0
        self._open_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether the store is left alone now."""
        return self.left_s > 0

    @property
    def left_s(self) -> float:
        """Seconds until the store may be called again."""
        return self._open_until - time.monotonic()

    def succeeded(self) -> None:
        self._in_row = 0

    def failed(self) -> None:
        self.failures += 1
        self._in_row += 1
        if self._in_row >= _PATIENCE:
            self._in_row = 0
            self._open_until = time.monotonic() + _PAUSE_S
