"""Results of a comparison as a table and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import asdict
from sage_infer_serve.bench.report import Distribution

from sage_llm.simulator.bounds import Bounds
from sage_llm.simulator.calibrate import Calibration
from sage_llm.simulator.metrics import Result
from sage_llm.simulator.traces import Trace

__all__ = ["as_json", "bound_lines", "columns_and_rows"]

_COLUMNS = (
    "POLICY", "TTFT mean", "p50", "p90", "p99", "TPOT mean", "p99", "HIT", "SAVED", "SLO", "MAX/MEAN", "TOKENS/s",
)  # fmt: skip

_OF_SCALING = ("SLO ready", "HOURS", "CHANGES")


def columns_and_rows(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the table: TTFT in seconds, TPOT in milliseconds, shares in percent."""
    has_lower = any(result.lower for result in results)
    has_scaling = any(result.settings["autoscale"] != "off" for result in results)
    columns, rows = [*_COLUMNS, *(_OF_SCALING if has_scaling else ())], []
    if has_lower:
        columns.insert(8, "LOWER")
    for result in results:
        row = [
            _label(result, results),
            *_figures(result.ttft_s, ("mean", "p50", "p90", "p99"), 1.0),
            *_figures(result.tpot_s, ("mean", "p99"), 1000.0),
            f"{result.hit:.1%}",
            f"{result.saved:.1%}",
            f"{result.slo:.1%}",
            f"{result.balance:.3f}",
            f"{result.output_tokens_per_s:,.0f}",
        ]
        if has_scaling:
            row += [f"{result.slo_ready:.1%}", f"{result.instance_hours:.2f}", str(len(result.changes))]
        if has_lower:
            row.insert(8, f"{result.lower:.1%}")
        rows.append(row)
    return columns, rows


def _figures(distribution: Distribution | None, names: Sequence[str], unit: float) -> list[str]:
    if distribution is None:
        return ["-"] * len(names)
    return [_short(getattr(distribution, name) * unit) for name in names]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _label(result: Result, results: Sequence[Result]) -> str:
    """The policy, and the settings that are not the same in all runs."""
    differing = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in result.settings.items()
        if any(other.settings[name] != value for other in results)
    ]
    return ", ".join([result.policy, *differing])


def bound_lines(bounds: Bounds | None) -> list[str]:
    """What no policy can exceed."""
    if bounds is None:
        return []
    return [
        f"bounds of the hit rate: {bounds.unlimited:.1%} with unlimited memory; {bounds.belady:.1%} with one shared "
        f"cache of {bounds.blocks:,} blocks that knows the future (Belady)"
    ]


def as_json(
    trace: Trace, results: Sequence[Result], bounds: Bounds | None, calibration: Calibration | None
) -> dict[str, Any]:
    """The whole comparison as data."""
    return {
        "trace": {"name": trace.name, "block": trace.block, **trace.summary._asdict()},
        "calibration": None if calibration is None else asdict(calibration),
        "bounds": None if bounds is None else bounds.to_json(),
        "results": [result.to_json() for result in results],
    }
