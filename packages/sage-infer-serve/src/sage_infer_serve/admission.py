"""Admission by expected wait: a request is accepted only if its answer can begin within a target time.

The number of requests that an engine can have open says nothing about time: 512 of them are a second's work for one
engine and an hour's for another. So the work that waits is compared with the work that is done per second. Work is
counted in tokens, which are known from the first second on; how many requests an engine answers per second is not,
while it fills its batch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Hashable

__all__ = ["Admission"]

_WINDOW_S = 20.0  # over which work per second is measured
_SOON_S = 2.0  # after the queue has formed, in which little can be said of the rate
_SETTLED_S = 5.0  # after the queue has formed, when its own rate is known
_UNSURE = 4.0  # times the last queue's rate may be that of a new one: other models may have been busy then
_ALWAYS = 8  # requests that may wait whatever the rate is
_UNKNOWN = 128.0  # tokens of an answer before any has ended
_WEIGHT = 0.05  # of an answer in the mean length of answers
_FRESH_S = 0.05  # in which an expected wait stays valid
_MOST_TENANTS = 1024  # whose expected waits are kept
_LATEST = 64  # answers from which the length of others is estimated
_FAULTS = 8  # failures in a row after which the queue says nothing of the model's speed


class Admission:
    """Requests to one model that wait for the begin of their answers, and the work that the model does meanwhile."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[Hashable, tuple[float, bool, str]] = {}  # tokens, whether at most so many, tenant
        self._since = 0.0  # when the first of those that wait began to, with nobody waiting before
        self._done: deque[tuple[float, float]] = deque()  # time and tokens
        self._limits: dict[Hashable, float] = {}  # of requests whose answers may be shorter
        self._rate: float | None = None  # tokens per second of the last queue
        self._mean: float | None = None  # tokens of an answer
        self._ended = 0
        self._latest: deque[tuple[float, float]] = deque(maxlen=_LATEST)  # limit and tokens
        self._longer = 1.0  # mean length of these over that of their estimates
        self._expected: dict[str, tuple[float, float]] = {}  # waits by tenant, and until when they are valid
        self._faults = 0  # requests that failed since the last answer

    def accepted(self, request: Hashable, tokens: float, *, at_most: bool = True, tenant: str = "") -> None:
        """A request waits. It needs ``tokens``, or with ``at_most`` perhaps fewer, as answers did lately."""
        self._expected.clear()
        if not self._waiting:
            self._since = self._clock()
            self._done.clear()
        self._waiting[request] = tokens, at_most, tenant
        if at_most:
            self._limits[request] = tokens
        if self._mean is None and at_most:
            self._mean = min(tokens, _UNKNOWN)

    def answered(self, request: Hashable) -> None:
        """The request's answer has begun; a second call for it has no effect."""
        self._expected.clear()
        self._waiting.pop(request, None)
        self._faults = 0

    def worked(self, tokens: float) -> None:
        """So many tokens were generated or read."""
        if not self._waiting:
            return
        now = self._clock()
        if self._done and now - self._done[-1][0] < 0.1:
            self._done[-1] = self._done[-1][0], self._done[-1][1] + tokens
        else:
            self._done.append((now, tokens))

    def ended(self, request: Hashable, tokens: float) -> None:
        """The request's answer has ended, with so many tokens."""
        self._expected.clear()
        mean = _UNKNOWN if self._mean is None else self._mean
        self._ended += 1
        # The first that end are the shortest of those that began together, and count for less.
        self._mean = mean + max(_WEIGHT, 1 / (self._ended + 1)) * (tokens - mean)
        # Estimates are the lower of limit and mean, which is too low on average if answers reach their limits.
        self._latest.append((self._limits.get(request, tokens), tokens))
        latest = sum([length for _, length in self._latest]) / len(self._latest)
        estimates = sum([limit if limit < latest else latest for limit, _ in self._latest]) / len(
            self._latest
        )
        self._longer = max(1.0, latest / estimates) if estimates else 1.0

    def left(self, request: Hashable) -> None:
        """The request has ended, whether its answer had begun or not."""
        self._expected.clear()
        self._waiting.pop(request, None)
        self._limits.pop(request, None)

    def failed(self, request: Hashable) -> None:
        """The model failed to answer the request, whose work need no longer be done."""
        waited = self._waiting.get(request)
        if waited is not None:
            self.worked(self._estimated(waited[0], at_most=waited[1]))
        self.left(request)
        self._faults += 1
        if self._faults >= _FAULTS:
            self.restart()

    def restart(self) -> None:
        """Measure anew: what has been done until now says nothing, as the model could not answer."""
        self._expected.clear()
        self._since = self._clock()
        self._done.clear()

    def wait_s(self, tenant: str = "") -> float:
        """Expected seconds until the answer of a tenant's new request begins; 0 while there is no rate to tell from.

        Tenants share the model equally, so that a tenant waits for its own requests and as much work of each other one.
        """
        if len(self._waiting) < _ALWAYS:
            return 0.0
        now = self._clock()
        wait, until = self._expected.get(tenant, (0.0, -math.inf))
        if now >= until:
            wait = self._estimate(now, tenant)
            if len(self._expected) >= _MOST_TENANTS:
                self._expected.clear()
            self._expected[tenant] = wait, now + _FRESH_S
        return wait

    def _estimate(self, now: float, tenant: str) -> float:
        while self._done and self._done[0][0] < now - _WINDOW_S:
            self._done.popleft()
        elapsed = min(now - self._since, _WINDOW_S)
        work: dict[str, float] = {}
        for tokens, at_most, other in self._waiting.values():
            work[other] = work.get(other, 0.0) + self._estimated(tokens, at_most=at_most)
        if elapsed < _SOON_S:
            if self._rate is None:
                return 0.0
            rate = self._rate * _UNSURE
        else:
            done = sum(tokens for _, tokens in self._done)
            # Before the first answers, as many are on their way as may always wait: engines answer several together.
            rate = (done or sum(work.values()) * _ALWAYS / len(self._waiting)) / elapsed
            if done and elapsed >= _SETTLED_S:
                self._rate = rate
            elif elapsed < _SETTLED_S and self._rate is not None:  # few answers say less than the last queue
                rate = max(rate, self._rate)
        own = work.get(tenant, 0.0)
        return sum(min(other, own) for other in work.values()) / rate

    def _estimated(self, tokens: float, *, at_most: bool) -> float:
        """Expected tokens of a request that waits."""
        mean = _UNKNOWN if self._mean is None else self._mean
        return min(tokens, mean) * self._longer if at_most else tokens
