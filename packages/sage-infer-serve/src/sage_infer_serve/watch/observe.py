"""Request metrics, for ``/metrics`` and the dashboard.

Each token costs one clock reading, one binary search and two additions, so measuring does not slow streams down. Counts
go into the current interval. At its end, an interval is added to the totals; recent intervals are kept for charts.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sage_infer.schemas import Usage

__all__ = ["BOUNDS", "INTERVAL_S", "POINTS", "Counts", "Observation", "Recorder", "quantile"]

INTERVAL_S = 5.0
POINTS = 60
BOUNDS: tuple[float, ...] = tuple(round(0.0005 * 1.35**i, 6) for i in range(46))
"""Upper bounds of histogram buckets in seconds, from 0.5 ms to six minutes, each 35 % above the previous one."""


class Histogram:
    """Counts of durations per bucket of ``BOUNDS``, and their sum."""

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
    """Metrics of one model over a period."""

    __slots__ = (
        "cached_tokens", "e2e", "embedded_tokens", "errors", "itl", "output_tokens", "prompt_tokens", "requests",
        "ttft",
    )  # fmt: skip

    def __init__(self) -> None:
        self.ttft, self.itl, self.e2e = Histogram(), Histogram(), Histogram()
        self.requests = self.errors = 0
        self.prompt_tokens = self.cached_tokens = self.output_tokens = self.embedded_tokens = 0

    def merge(self, other: Counts) -> None:
        for name in ("ttft", "itl", "e2e"):
            getattr(self, name).merge(getattr(other, name))
        for name in (
            "requests",
            "errors",
            "prompt_tokens",
            "cached_tokens",
            "output_tokens",
            "embedded_tokens",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Recorder:
    """All metrics since the gateway was created. ``clock`` is monotonic, in seconds.

    Attributes:
        until: end of the current interval, in the time of ``clock``.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, wall: Callable[[], float] = time.time
    ) -> None:
        self.clock = clock
        now = wall()
        self._to_wall = now - clock()
        self.answers: dict[tuple[str, str, int], int] = {}  # endpoint, model, status
        self._totals: dict[str, Counts] = {}
        self._current: dict[str, Counts] = {}
        self._number = int(now // INTERVAL_S)  # current interval, numbered from the epoch
        self.until = (self._number + 1) * INTERVAL_S - self._to_wall
        self._past: dict[int, Counts] = {}

    def counts(self, model: str, now: float) -> Counts:
        """A model's counts in the current interval; valid before ``until``."""
        if now >= self.until:
            self._roll(now)
        found = self._current.get(model)
        if found is None:
            found = self._current[model] = Counts()
        return found

    def answered(self, endpoint: str, model: str, status: int) -> None:
        key = endpoint, model, status
        self.answers[key] = self.answers.get(key, 0) + 1

    def totals(self) -> dict[str, Counts]:
        """Counts since the start, per model."""
        return _added(self._totals, self._current)

    def series(self) -> list[tuple[float, Counts]]:
        """The last five minutes as (start, counts) per interval, oldest first, summed over models, without gaps.

        The last interval is still open.
        """
        now = self.clock()
        if now >= self.until:
            self._roll(now)
        numbers = range(self._number - POINTS + 1, self._number)
        points = [(number * INTERVAL_S, self._past.get(number, Counts())) for number in numbers]
        return [*points, (self._number * INTERVAL_S, _sum(self._current.values()))]

    def _roll(self, now: float) -> None:
        """Close the current interval: add its counts to the totals and to the series."""
        if self._current:
            self._past[self._number] = _sum(self._current.values())
            self._totals = _added(self._totals, self._current)
        self._current = {}
        self._number = int((now + self._to_wall) // INTERVAL_S)
        self.until = (self._number + 1) * INTERVAL_S - self._to_wall
        for number in [n for n in self._past if n <= self._number - POINTS]:
            del self._past[number]


def _sum(several: Iterable[Counts]) -> Counts:
    whole = Counts()
    for counts in several:
        whole.merge(counts)
    return whole


def _added(one: Mapping[str, Counts], other: Mapping[str, Counts]) -> dict[str, Counts]:
    return {name: _sum(c[name] for c in (one, other) if name in c) for name in {**one, **other}}


class Observation:
    """Metrics of one request. Call ``tokens`` for each delta of a stream, and ``end`` once."""

    __slots__ = ("_itl", "_last", "_model", "_recorder", "_started", "_until")

    def __init__(self, recorder: Recorder, model: str, started: float) -> None:
        self._recorder, self._model, self._started = recorder, model, started
        self._last = 0.0
        self._until = 0.0  # end of the interval that ``_itl`` belongs to
        self._itl = Histogram()

    def tokens(self, count: int) -> None:
        """Record ``count`` tokens that arrived together."""
        now = self._recorder.clock()
        if now >= self._until:
            counts = self._recorder.counts(self._model, now)
            self._itl, self._until = counts.itl, self._recorder.until
        last = self._last
        if last == 0.0:
            self._recorder.counts(self._model, now).ttft.add(now - self._started)
        elif count == 1:  # inlined, because it runs for every token
            self._itl.buckets[bisect_left(BOUNDS, now - last)] += 1
            self._itl.total_s += now - last
        elif count:
            self._itl.add((now - last) / count, count)
        else:
            return  # text that had been held back: not the latency of a token
        self._last = now

    def end(self, usage: Usage | None, *, failed: bool = False, embedded: bool = False) -> None:
        now = self._recorder.clock()
        counts = self._recorder.counts(self._model, now)
        counts.requests += 1
        counts.errors += failed
        counts.e2e.add(now - self._started)
        if usage is not None and embedded:
            counts.embedded_tokens += usage.prompt_tokens
        elif usage is not None:
            counts.prompt_tokens += usage.prompt_tokens
            counts.cached_tokens += usage.cached_tokens
            counts.output_tokens += usage.completion_tokens


def quantile(buckets: Sequence[int], share: float) -> float | None:
    """The ``share`` quantile, interpolated linearly inside its bucket; None without samples."""
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
    """A series as JSON data, with durations in seconds."""
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
