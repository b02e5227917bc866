"""What a run showed: distributions, rates and errors, as a table for people and as data for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import asdict, field, frozen

from sage_infer_serve.bench.load import Outcome, Run

__all__ = ["Distribution", "Report", "percentile", "report_on"]

_BUSY = 0.8  # share of a core from which the load generator is suspected of what it measures
_LATE_S = 0.005


@frozen(kw_only=True)
class Distribution:
    """Samples in seconds, summed up. ``errors`` are never among them."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Distribution | None:
        """None without samples."""
        values = sorted(samples)
        if not values:
            return None
        p50, p90, p95, p99 = (percentile(values, share) for share in (0.5, 0.9, 0.95, 0.99))
        mean = sum(values) / len(values)
        return cls(count=len(values), mean=mean, p50=p50, p90=p90, p95=p95, p99=p99, max=values[-1])


@frozen(kw_only=True)
class Report:
    """A run in numbers; seconds, and rates a second over the whole run.

    Attributes:
        ttft_s: from when a request was due to its first text.
        itl_s: between chunks with text.
        tpot_s: per output token after the first, a figure a request: (last text - first text) / (tokens - 1).
        e2e_s: from when a request was due to its end.
        late_s: how much later than due requests were sent; an open loop's own imprecision.
        errors: how often each message came.
        tokens_counted: whether token counts are the server's own, for every answer.
        client_cpu: share of one core that the load generator took.
    """

    duration_s: float
    answered: int
    failed: int
    interrupted: bool
    requests_per_s: float
    output_tokens: int
    output_tokens_per_s: float
    prompt_tokens: int
    prompt_tokens_per_s: float
    texts: int
    texts_per_s: float
    tokens_counted: bool
    ttft_s: Distribution | None
    itl_s: Distribution | None
    tpot_s: Distribution | None
    e2e_s: Distribution | None
    late_s: Distribution | None
    client_cpu: float
    errors: dict[str, int] = field(factory=dict)

    def as_data(self) -> dict[str, Any]:
        return asdict(self)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows of the latencies, in milliseconds."""
        named = {
            "time to first token": self.ttft_s,
            "between chunks": self.itl_s,
            "per output token": self.tpot_s,
            "whole request": self.e2e_s,
        }
        columns = ["MILLISECONDS", "MEAN", "P50", "P90", "P95", "P99", "MAX", "SAMPLES"]
        rows = []
        for name, d in named.items():
            if d is not None:
                figures = [milliseconds(x) for x in (d.mean, d.p50, d.p90, d.p95, d.p99, d.max)]
                rows.append([name, *figures, f"{d.count:,}"])
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        aligned = [[row[0], *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))] for row in rows]
        return [columns[0], *(c.rjust(w) for c, w in zip(columns[1:], widths[1:], strict=True))], aligned

    def throughput(self) -> str:
        parts = [f"{self.requests_per_s:,.2f} requests/s"]
        if self.texts:
            parts.append(f"{self.texts_per_s:,.1f} texts/s")
        if self.output_tokens:
            unit = "tokens" if self.tokens_counted else "chunks (the server counts no tokens)"
            parts.append(f"{self.output_tokens_per_s:,.1f} output {unit}/s")
        if self.prompt_tokens:
            parts.append(f"{self.prompt_tokens_per_s:,.1f} prompt tokens/s")
        return ", ".join(parts)

    def lengths(self) -> str:
        """Tokens of an average request; empty where the server does not count them."""
        if not self.tokens_counted or not self.answered:
            return ""
        answer = f" and {self.output_tokens / self.answered:,.0f} of output" if self.output_tokens else ""
        return f"a request has {self.prompt_tokens / self.answered:,.0f} tokens of prompt{answer}"

    def warnings(self) -> list[str]:
        """What a reader of the figures has to know."""
        found = []
        if self.client_cpu > _BUSY and self.duration_s >= 1:  # a shorter run is all beginning
            found.append(
                f"the load generator took {self.client_cpu:.0%} of a core: latencies may be its own; "
                "lower the load, or run several of it on other cores"
            )
        if self.late_s is not None and self.late_s.p99 > _LATE_S:
            found.append(
                f"1 in 100 requests was sent more than {milliseconds(self.late_s.p99)} ms after it was due "
                "(latencies count from when it was due)"
            )
        return found


def report_on(run: Run) -> Report:
    """Sum a run up."""
    good = [o for o in run.outcomes if o.error is None]
    lasted = max(run.ended - run.began, 1e-9)
    output, prompt = sum(o.output_tokens for o in good), sum(o.prompt_tokens for o in good)
    texts = sum(o.texts for o in good)
    return Report(
        duration_s=lasted,
        answered=len(good),
        failed=len(run.outcomes) - len(good),
        interrupted=run.interrupted,
        requests_per_s=len(good) / lasted,
        output_tokens=output,
        output_tokens_per_s=output / lasted,
        prompt_tokens=prompt,
        prompt_tokens_per_s=prompt / lasted,
        texts=texts,
        texts_per_s=texts / lasted,
        tokens_counted=all(o.counted for o in good),
        ttft_s=Distribution.of(o.first - o.due for o in good if o.first is not None),
        itl_s=Distribution.of(gap for o in good for gap in o.gaps),
        tpot_s=Distribution.of(x for o in good if (x := _per_token(o)) is not None),
        e2e_s=Distribution.of(o.ended - o.due for o in good),
        late_s=Distribution.of(o.sent - o.due for o in run.outcomes),
        client_cpu=run.cpu_s / lasted,
        errors=dict(Counter(o.error for o in run.outcomes if o.error is not None).most_common()),
    )


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which ``share`` of the ordered samples lie, interpolated linearly between neighbours.

    Hyndman and Fan's definition 7, NumPy's default.
    """
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def milliseconds(seconds: float) -> str:
    ms = seconds * 1000
    return f"{ms:,.0f}" if ms >= 1000 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def _per_token(o: Outcome) -> float | None:
    if o.first is None or o.output_tokens < 2:
        return None
    return sum(o.gaps) / (o.output_tokens - 1)
