"""Admission by expected wait: a request is accepted only if its answer can begin within a target time.

The number of requests that an engine can have open says nothing about time: 512 of them are a second's work for one
engine and an hour's for another. So the work that waits is compared with the work that is done per second. Work is
counted in tokens, which are known from the first second on; how many requests an engine answers per second is not,
while it fills its batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable

__all__ = ["Admission"]

_WINDOW_S = 20.0  # over which work per second is measured
_SOON_S = 2.0  # after the queue has formed, in which little can be said of the rate
_ALWAYS = 8  # requests that may wait whatever the rate is
_UNKNOWN = 128.0  # tokens of an answer before any has ended
_WEIGHT = 0.05  # of an answer in the mean length of answers


class Admission:
    """Requests to one model that wait for the begin of their answers, and the work that the model does meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[Hashable, tuple[float, bool]] = {}
        self._since = 0.0  # when the first of those that wait began to, with nobody waiting before
        self._done: deque[tuple[float, float]] = deque()  # time and tokens
        self._mean: float | None = None  # tokens of an answer
        self._ended = 0

    def accepted(self, request: Hashable, tokens: float, *, at_most: bool = True) -> None:
        """A request waits. It needs ``tokens``, or with ``at_most`` perhaps fewer, as answers did lately."""
        if not self._waiting:
            self._since = self._clock()
            self._done.clear()
        self._waiting[request] = tokens, at_most
        if self._mean is None and at_most:
            self._mean = min(tokens, _UNKNOWN)

    def answered(self, request: Hashable) -> None:
        """The request's answer has begun; a second call for it has no effect."""
        self._waiting.pop(request, None)

    def worked(self, tokens: float) -> None:
        """So many tokens were generated or read."""
        if not self._waiting:
            return
        now = self._clock()
        if self._done and now - self._done[-1][0] < 0.1:
            self._done[-1] = self._done[-1][0], self._done[-1][1] + tokens
        else:
            self._done.append((now, tokens))

    def ended(self, tokens: float) -> None:
        """An answer of so many tokens has ended."""
        mean = _UNKNOWN if self._mean is None else self._mean
        self._ended += 1
        # The first that end are the shortest of those that began together, and count for less.
        self._mean = mean + max(_WEIGHT, 1 / (self._ended + 1)) * (tokens - mean)

    def left(self, request: Hashable) -> None:
        """The request has ended, whether its answer had begun or not."""
        self._waiting.pop(request, None)

    def wait_s(self) -> float:
        """Expected seconds until the answer of a new request begins; 0 while there is no rate to tell from."""
        if len(self._waiting) < _ALWAYS:
            return 0.0
        now = self._clock()
        while self._done and self._done[0][0] < now - _WINDOW_S:
            self._done.popleft()
        elapsed = min(now - self._since, _WINDOW_S)
        if elapsed < _SOON_S:
            return 0.0
        mean = _UNKNOWN if self._mean is None else self._mean
        ahead = sum(min(tokens, mean) if at_most else tokens for tokens, at_most in self._waiting.values())
        # Half an answer more than there was: the next one is on its way.
        done = sum(tokens for _, tokens in self._done) or mean / 2
        return ahead * elapsed / done
