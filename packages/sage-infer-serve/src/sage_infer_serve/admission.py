"""Admission by expected wait: a request is accepted only if its response is expected to begin within a target time.

A limit on the number of open requests does not bound the wait: 512 requests are a second of work for one engine and an
hour for another. The estimate uses the measured rate at which responses begin while others wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

__all__ = ["Admission"]

_WINDOW_S = 20.0  # over which the rate is measured
_SOON_S = 2.0  # shortest period for a rate
_ALWAYS = 8  # requests that may wait at any rate


class Admission:
    """Requests whose responses have not begun, and the rate at which responses begin."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: set[Hashable] = set()
        self._since = 0.0  # start of the current period in which some request always waits
        self._begun: deque[float] = deque()

    def accepted(self, request: Hashable) -> None:
        if not self._waiting:
            self._since = self._clock()
            self._begun.clear()
        self._waiting.add(request)

    def answered(self, request: Hashable) -> None:
        """The request's response has begun; further calls have no effect."""
        if request in self._waiting:
            self._waiting.discard(request)
            self._begun.append(self._clock())

    def left(self, request: Hashable) -> None:
        """The request has ended, with or without a response."""
        self._waiting.discard(request)

    def wait_s(self) -> float:
        """Expected seconds until the response to a new request begins; 0 while the rate is unknown."""
        waiting = len(self._waiting)
        if waiting < _ALWAYS:
            return 0.0
        now = self._clock()
        while self._begun and self._begun[0] < now - _WINDOW_S:
            self._begun.popleft()
        elapsed = min(now - self._since, _WINDOW_S)
        if elapsed < _SOON_S:
            return 0.0
        # Half a response is added for the one in progress; it also avoids a division by zero.
        return (waiting + 1) * elapsed / (len(self._begun) + 0.5)
