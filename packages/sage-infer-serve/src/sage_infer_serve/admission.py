"""Admission by expected wait: a request is accepted only if its answer can begin within a target time.

The number of requests that an engine can have open says nothing about time: 512 of them are a second's work for one
engine and an hour's for another. What is measured is how many answers begin per second while others wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

__all__ = ["Admission"]

_WINDOW_S = 20.0  # over which the rate is measured
_SOON_S = 2.0  # in which nothing can be said of a rate
_ALWAYS = 8  # requests that may wait whatever the rate is


class Admission:
    """Requests that wait for the begin of their answers, and the rate at which answers begin."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: set[Hashable] = set()
        self._since = 0.0  # when the first of those that wait began to, with nobody waiting before
        self._begun: deque[float] = deque()

    def accepted(self, request: Hashable) -> None:
        if not self._waiting:
            self._since = self._clock()
            self._begun.clear()
        self._waiting.add(request)

    def answered(self, request: Hashable) -> None:
        """The request's answer has begun; a second call for it has no effect."""
        if request in self._waiting:
            self._waiting.discard(request)
            self._begun.append(self._clock())

    def left(self, request: Hashable) -> None:
        """The request has ended, whether its answer had begun or not."""
        self._waiting.discard(request)

    def wait_s(self) -> float:
        """Expected seconds until the answer of a new request begins; 0 while there is no rate to tell from."""
        waiting = len(self._waiting)
        if waiting < _ALWAYS:
            return 0.0
        now = self._clock()
        while self._begun and self._begun[0] < now - _WINDOW_S:
            self._begun.popleft()
        elapsed = min(now - self._since, _WINDOW_S)
        if elapsed < _SOON_S:
            return 0.0
        # Half an answer more than there were: the next one is on its way.
        return (waiting + 1) * elapsed / (len(self._begun) + 0.5)
