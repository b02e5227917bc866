"""Report of a run: distributions, rates and errors, as a table for people and as data for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from attrs import asdict, field, frozen

from sage_infer_serve.bench.load import Outcome, Run

__all__ = ["Distribution", "Report", "percentile", "report_on"]

_BUSY = 0.8  # CPU share above which the load generator may distort the figures
_LATE_S = 0.005


@frozen(kw_only=True)
class Distribution:
    """Summary of samples in seconds. Errors are excluded."""

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
    """Figures of a run: seconds, and rates per second over the whole run.

    Attributes:
        ttft_s: from a request's scheduled time to its first text.
        itl_s: between chunks with text.
        tpot_s: per output token after the first, one figure per request: (last text - first text) / (tokens - 1).
        e2e_s: from a request's scheduled time to its end.
        late_s: delay between scheduled and actual send time; the imprecision of an open loop.
        errors: count per message.
        tokens_counted: whether token counts are the server's own, for every answer.
        client_cpu: share of one core used by the load generator.
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
        """Tokens of an average request; empty if the server does not count them."""
        if not self.tokens_counted or not self.answered:
            return ""
        answer = f", {self.output_tokens / self.answered:,.0f} output tokens" if self.output_tokens else ""
        return f"per request: {self.prompt_tokens / self.answered:,.0f} prompt tokens{answer}"

    def warnings(self) -> list[str]:
        """Caveats about the figures."""
        found = []
        if self.client_cpu > _BUSY and self.duration_s >= 1:  # a shorter run is dominated by startup
            found.append(
                f"the load generator used {self.client_cpu:.0%} of a core and may affect latencies; "
                "lower the load, or run several on other cores"
            )
        if self.late_s is not None and self.late_s.p99 > _LATE_S:
            found.append(
                f"1 in 100 requests was sent more than {milliseconds(self.late_s.p99)} ms late "
                "(latencies count from the scheduled time)"
            )
        return found


def report_on(run: Run) -> Report:
    """Summarize a run."""
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
