"""What a run measures: latencies of each request in seconds, work and queues over time."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, define, field, frozen
from sage_infer_serve.bench.report import Distribution, percentile

__all__ = ["Measured", "Result", "Series"]

_POINTS = 120  # of each series
_STATM = Path("/proc/self/statm")


@frozen(kw_only=True)
class Series:
    """Figures over time, one per interval.

    Attributes:
        interval_s: length of an interval.
        hit: share of prompt blocks found in device memory, of the requests that began in the interval.
        queued_mean: mean over the instances of the prompt tokens queued on them, at the end of the interval.
        queued_max: the largest of these queues.
        waiting: requests that wait in the gateways.
        rss_mib: memory of this process at the end of the interval in MiB; empty if the platform does not tell.
    """

    interval_s: float
    hit: tuple[float, ...]
    queued_mean: tuple[float, ...]
    queued_max: tuple[float, ...]
    waiting: tuple[int, ...]
    rss_mib: tuple[float, ...] = field(default=(), eq=False)


@frozen(kw_only=True)
class Result:
    """Result of one run.

    Attributes:
        policy: placement policy with its parameters.
        settings: what was simulated, by name.
        speed_up: factor by which the trace ran faster than it was recorded.
        requests: number of requests.
        finished: requests that ended with their whole output.
        refused: requests that no instance can ever hold.
        moved: times that a request lost its instance and continued on another one.
        ttft_s: time to first token.
        tpot_s: time per output token after the first, one figure per request.
        hit: share of the prompts' blocks found in device memory, partial blocks included.
        lower: share of the prompts' blocks found in lower tiers.
        saved: share of the prompt tokens that were not computed.
        balance: prompt tokens computed by the busiest instance, relative to the mean.
        slo: share of requests whose TTFT was at most 1 s more than that of their uncached prompt on an idle instance.
        slo_ready: the same, of the requests outside of starts: no instance was being started when they
            arrived, and no request that arrived during a start waited for its first token.
        instance_hours: time for which instances ran, started or were drained, summed over them.
        changes: decisions about the number of instances.
        prompt_tokens_per_s: prompt tokens of finished requests per second.
        output_tokens_per_s: output tokens per second.
        seconds: simulated time.
        cpu_s: CPU time of the simulation.
        decisions: placement decisions.
        series: figures over time.
        ttft_samples: a quantile of TTFT per percent, for charts.
        tpot_samples: a quantile of TPOT per percent.
    """

    policy: str
    settings: dict[str, Any]
    speed_up: float
    requests: int
    finished: int
    refused: int
    moved: int
    ttft_s: Distribution | None
    tpot_s: Distribution | None
    hit: float
    lower: float
    saved: float
    balance: float
    slo: float
    slo_ready: float
    instance_hours: float
    changes: tuple[Any, ...]
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    seconds: float
    cpu_s: float
    decisions: int
    series: Series
    ttft_samples: tuple[float, ...]
    tpot_samples: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@define
class Measured:
    """Counts of a run while it lasts.

    Attributes:
        interval_s: length of an interval of the series.
    """

    interval_s: float
    ttft: array[float] = field(factory=lambda: array("d"))
    tpot: array[float] = field(factory=lambda: array("d"))
    blocks: int = 0  # of requests that have arrived
    begun_blocks: int = 0  # of requests whose prefill has begun
    hit_blocks: int = 0
    lower_blocks: int = 0
    prompt_tokens: int = 0
    computed_tokens: int = 0
    output_tokens: int = 0
    finished: int = 0
    refused: int = 0
    moved: int = 0
    in_time: int = 0
    last_at: float = 0.0
    _hit: list[float] = field(factory=list)
    _mean: list[float] = field(factory=list)
    _max: list[float] = field(factory=list)
    _waiting: list[int] = field(factory=list)
    _rss: list[float] = field(factory=list)
    _since: tuple[int, int] = (0, 0)

    @property
    def next_at(self) -> float:
        """When the next interval ends."""
        return (len(self._hit) + 1) * self.interval_s

    def sample(self, queued: Sequence[int], waiting: int) -> None:
        """End an interval of the series. Beyond twice the expected length, two intervals become one."""
        hit, blocks = self.hit_blocks - self._since[0], self.begun_blocks - self._since[1]
        self._since = self.hit_blocks, self.begun_blocks
        self._hit.append(hit / blocks if blocks else 0.0)
        self._mean.append(sum(queued) / len(queued))
        self._max.append(float(max(queued)))
        self._waiting.append(waiting)
        self._rss.append(_rss_mib())
        if len(self._hit) >= 2 * _POINTS:
            self.interval_s *= 2
            self._hit = [(a + b) / 2 for a, b in zip(self._hit[::2], self._hit[1::2], strict=True)]
            self._mean, self._max = self._mean[1::2], self._max[1::2]
            self._waiting, self._rss = self._waiting[1::2], self._rss[1::2]

    def series(self) -> Series:
        return Series(
            interval_s=self.interval_s,
            hit=tuple(self._hit),
            queued_mean=tuple(self._mean),
            queued_max=tuple(self._max),
            waiting=tuple(self._waiting),
            rss_mib=tuple(self._rss) if any(self._rss) else (),
        )

    @staticmethod
    def quantiles(values: Sequence[float]) -> tuple[float, ...]:
        """One quantile per percent; empty without values."""
        if not values:
            return ()
        ordered = sorted(values)
        return tuple(percentile(ordered, share / 100) for share in range(101))


def _rss_mib() -> float:
    """Resident memory of this process; 0 where it is unknown."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
