"""Estimate of ``Overloaded.retry_after`` for engines."""

from __future__ import annotations

import time

__all__ = ["RetryEstimate"]

_WEIGHT = 0.1  # of the newest interval in the average


class RetryEstimate:
    """Estimated seconds until a request ends: a moving average of the intervals between ends.

    ``ended`` must be called from one thread; ``retry_after`` can be read from any thread.
    """

    def __init__(self, *, shortest_s: float = 0.05, longest_s: float = 30.0) -> None:
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._last_end, self._interval = time.perf_counter(), 1.0

    def ended(self) -> None:
        """Record that one or more requests have just ended."""
        now = time.perf_counter()
        self._interval += _WEIGHT * (now - self._last_end - self._interval)
        self._last_end = now

    @property
    def retry_after(self) -> float:
        """The value for ``Overloaded.retry_after``."""
        return min(max(self._interval, self._shortest_s), self._longest_s)
