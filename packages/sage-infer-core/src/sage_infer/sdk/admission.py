"""When to try again, for an engine that has no room for a request."""

from __future__ import annotations

import time

__all__ = ["RetryEstimate"]

_WEIGHT = 0.1  # of the newest interval in the average


class RetryEstimate:
    """Seconds until a request is likely to end: a moving average of the intervals between ends.

    ``ended`` is called by one thread; ``retry_after`` may be read by any.
    """

    def __init__(self, *, shortest_s: float = 0.05, longest_s: float = 30.0) -> None:
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._last_end, self._interval = time.perf_counter(), 1.0

    def ended(self) -> None:
        """Take note that one or more requests have just ended."""
        now = time.perf_counter()
        self._interval += _WEIGHT * (now - self._last_end - self._interval)
        self._last_end = now

    @property
    def retry_after(self) -> float:
        """The value for ``Overloaded.retry_after``."""
        return min(max(self._interval, self._shortest_s), self._longest_s)
