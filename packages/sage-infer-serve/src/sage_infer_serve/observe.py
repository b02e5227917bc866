"""What is measured while requests run: counted where it happens, read by ``/metrics`` and the dashboard.

A token costs one clock reading, one search and two additions, so that counting never is what streams wait for. Counts go
into the current interval; intervals are added up when they end, and the last ones are kept for charts.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sage_infer.schemas import Usage

__all__ = ["BOUNDS", "INTERVAL_S", "POINTS", "Counts", "Observation", "Recorder", "quantile"]

INTERVAL_S = 5.0
POINTS = 60
BOUNDS: tuple[float, ...] = tuple(round(0.0005 * 1.35**i, 6) for i in range(46))
"""Upper bounds of the histograms' buckets in seconds, 0.5 ms to six minutes; each 35 % above the one before."""


class Histogram:
    """How many durations fell below each of ``BOUNDS``, and their sum."""

    __slots__ = ("buckets", "total_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.total_s = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        self.buckets[bisect_left(BOUNDS, seconds)] += times
        self.total_s += seconds * times

    def merge(self, other: Histogram) -> None:
        self.buckets = [a + b for a, b in zip(self.buckets, other.buckets, strict=True)]
        self.total_s += other.total_s

    @property
    def count(self) -> int:
        return sum(self.buckets)


class Counts:
    """What one model did in some time."""

    __slots__ = ("cached_tokens", "e2e", "embedded_tokens", "errors", "itl", "output_tokens", "prompt_tokens", "requests",
                 "ttft")  # fmt: skip

    def __init__(self) -> None:
        self.ttft, self.itl, self.e2e = Histogram(), Histogram(), Histogram()
        self.requests = self.errors = 0
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.embedded_tokens = 0

    def merge(self, other: Counts) -> None:
        for name in ("ttft", "itl", "e2e"):
            getattr(self, name).merge(getattr(other, name))
        for name in ("requests", "errors", "prompt_tokens", "cached_tokens", "output_tokens", "embedded_tokens"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Recorder:
    """Everything counted since the gateway was made."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.answers: dict[tuple[str, str, int], int] = {}  # endpoint, model, status
        self._totals: dict[str, Counts] = {}
        self._current: dict[str, Counts] = {}
        self._begin = self._interval(clock())
        self._until = self._begin + INTERVAL_S
        self._past: deque[tuple[float, Counts]] = deque(maxlen=POINTS - 1)

    def counts(self, model: str) -> Counts:
        """The current interval's counts of a model."""
        if self.clock() >= self._until:
            self._roll()
        found = self._current.get(model)
        if found is None:
            found = self._current[model] = Counts()
        return found

    def answered(self, endpoint: str, model: str, status: int) -> None:
        key = endpoint, model, status
        self.answers[key] = self.answers.get(key, 0) + 1

    def totals(self) -> dict[str, Counts]:
        """Since the start, by model."""
        self._roll()
        return self._totals

    def series(self) -> list[tuple[float, Counts]]:
        """The last five minutes in intervals, all models together, oldest first, without gaps; the last one is open."""
        if self.clock() >= self._until:
            self._roll()
        known = {begin: counts for begin, counts in self._past}
        first = self._begin - (POINTS - 1) * INTERVAL_S
        points = [(first + i * INTERVAL_S, known.get(first + i * INTERVAL_S, Counts())) for i in range(POINTS - 1)]
        now = Counts()
        if known.get(self._begin) is not None:
            now.merge(known[self._begin])
        for counts in self._current.values():
            now.merge(counts)
        return [*points, (self._begin, now)]

    def _interval(self, now: float) -> float:
        return now - now % INTERVAL_S

    def _roll(self) -> None:
        """Add the current counts to the totals, and to the interval in which they fell."""
        merged = Counts()
        for model, counts in self._current.items():
            self._totals.setdefault(model, Counts()).merge(counts)
            merged.merge(counts)
        if self._past and self._past[-1][0] == self._begin:
            self._past[-1][1].merge(merged)
        elif self._current:
            self._past.append((self._begin, merged))
        self._current = {}
        self._begin = self._interval(self.clock())
        self._until = self._begin + INTERVAL_S


class Observation:
    """One request's clock: ``tokens`` for each piece of a stream, ``end`` once."""

    __slots__ = ("_last", "_model", "_recorder", "_started")

    def __init__(self, recorder: Recorder, model: str, started: float) -> None:
        self._recorder, self._model, self._started = recorder, model, started
        self._last = 0.0

    def tokens(self, count: int) -> None:
        """``count`` tokens arrived together, the first ones or later ones."""
        now = time.perf_counter()
        counts = self._recorder.counts(self._model)
        if self._last == 0.0:
            counts.ttft.add(now - self._started)
        elif count:
            counts.itl.add((now - self._last) / count, count)
        else:
            return  # text held back came free: no token took that long
        self._last = now

    def end(self, usage: Usage | None, *, failed: bool = False, embedded: bool = False) -> None:
        counts = self._recorder.counts(self._model)
        counts.requests += 1
        counts.errors += failed
        counts.e2e.add(time.perf_counter() - self._started)
        if usage is not None and embedded:
            counts.embedded_tokens += usage.prompt_tokens
        elif usage is not None:
            counts.prompt_tokens += usage.prompt_tokens
            counts.cached_tokens += usage.cached_tokens
            counts.output_tokens += usage.completion_tokens


def quantile(buckets: Sequence[int], share: float) -> float | None:
    """The duration that ``share`` of all fell below, by linear interpolation inside its bucket; None without any."""
    rank = share * sum(buckets)
    if not rank:
        return None
    seen = 0
    for index, count in enumerate(buckets):
        if count and seen + count >= rank:
            if index == len(BOUNDS):
                return BOUNDS[-1]
            low = BOUNDS[index - 1] if index else 0.0
            return low + (BOUNDS[index] - low) * (rank - seen) / count
        seen += count
    return BOUNDS[-1]


def as_points(series: Iterable[tuple[float, Counts]]) -> list[dict[str, Any]]:
    """A series as plain data, durations in seconds."""
    return [
        {
            "t": begin,
            "requests": c.requests,
            "errors": c.errors,
            "output_tokens": c.output_tokens,
            "prompt_tokens": c.prompt_tokens,
            "embedded_tokens": c.embedded_tokens,
            "ttft": _summary(c.ttft),
            "itl": _summary(c.itl),
        }
        for begin, c in series
    ]


def _summary(histogram: Histogram) -> dict[str, float | int | None]:
    return {
        "count": histogram.count,
        "p50": quantile(histogram.buckets, 0.5),
        "p99": quantile(histogram.buckets, 0.99),
    }
