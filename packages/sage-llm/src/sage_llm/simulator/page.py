"""Results of a comparison as one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sage_llm.simulator.bounds import Bounds
from sage_llm.simulator.charts import COLOURS, Line, chart
from sage_llm.simulator.metrics import Result
from sage_llm.simulator.report import bound_lines, columns_and_rows
from sage_llm.simulator.traces import Trace

__all__ = ["page"]

_LIGHT = ("#2563b8", "#c2410c", "#15803d", "#9d174d", "#6d28d9", "#a16207", "#0e7490", "#57534e")
_DARK = ("#7ab0ff", "#ff9a5c", "#5fd38a", "#ff85b8", "#b79cff", "#e8c14d", "#5ccbe0", "#b8b2ac")

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1b1a; --quiet: #5f5c58; --rule: #dedad4; @LIGHT@ }
@media (prefers-color-scheme: dark) {
  :root { --back: #171615; --text: #ece9e4; --quiet: #a39e97; --rule: #383531; @DARK@ }
}
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 1180px; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0; }
p { color: var(--quiet); margin: .3rem 0 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { border-bottom: 1px solid var(--rule); padding: .35rem .6rem; text-align: right; white-space: nowrap; }
th { color: var(--quiet); font-weight: 500; }
th:first-child, td:first-child { text-align: left; }
.charts { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr));
  margin-top: 1.8rem; }
figure { margin: 0; }
figcaption { color: var(--quiet); margin-bottom: .3rem; }
figcaption b { color: var(--text); font-weight: 600; }
svg { display: block; height: auto; width: 100%; }
.grid { stroke: var(--rule); stroke-width: 1; }
.tick, .axis { fill: var(--quiet); font-size: 12px; }
.line { fill: none; stroke-linejoin: round; stroke-width: 2; }
.faint { opacity: .55; stroke-width: 1; }
.dashed { stroke-dasharray: 5 3; }
.mark { border-radius: 2px; display: inline-block; height: 3px; margin-right: .5rem; vertical-align: middle;
  width: 18px; }
@CLASSES@
"""


def page(trace: Trace, results: Sequence[Result], bounds: Bounds | None, title: str) -> str:
    """Return the HTML of a comparison: the table, distributions of latencies, hit rate and queues over time."""
    columns, rows = columns_and_rows(results)
    names = [row[0] for row in rows]
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    body = "".join(
        f'<tr><td><span class="mark b{number % COLOURS}"></span>{escape(row[0])}</td>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for number, row in enumerate(rows)
    )
    figures = [
        chart("TTFT, CDF", _cdf(names, [r.ttft_samples for r in results], 1.0), x="seconds, logarithmic",
              y="share of requests with at most this time to first token", log=True, percent=True),
        chart("TPOT, CDF", _cdf(names, [r.tpot_samples for r in results], 1000.0), x="milliseconds",
              y="share of requests with at most this time per output token", percent=True),
        chart("Hit rate", _over_time(names, results, "hit"), x="seconds", percent=True,
              y="share of prompt blocks found in device memory, over time") if trace.summary.has_keys else "",
        chart("Queue per instance", _queues(names, results), x="seconds",
              y="prompt tokens queued: mean of the instances, and thin: the longest"),
        chart("Waiting requests", _over_time(names, results, "waiting"), x="seconds",
              y="requests that wait in the gateways"),
    ]  # fmt: skip
    notes = "".join(f"<p>{escape(line)}</p>" for line in bound_lines(bounds))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head><body>"
        f"<h1>sage llm simulate</h1><p>{escape(title)}</p>"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f"<p>TTFT in seconds, TPOT in milliseconds.</p>{notes}"
        f'<div class="charts">{"".join(figures)}</div></body></html>\n'
    )


def _style() -> str:
    def variables(colours: Sequence[str]) -> str:
        return " ".join(f"--c{number}: {colour};" for number, colour in enumerate(colours))

    classes = "\n".join(
        f".c{n} {{ stroke: var(--c{n}); }} .b{n} {{ background: var(--c{n}); }}" for n in range(COLOURS)
    )
    return (
        _STYLE.replace("@LIGHT@", variables(_LIGHT))
        .replace("@DARK@", variables(_DARK))
        .replace("@CLASSES@", classes)
    )


def _cdf(names: Sequence[str], samples: Sequence[Sequence[float]], unit: float) -> list[Line]:
    return [
        Line(
            name=name,
            number=number,
            points=[(value * unit, place / 100) for place, value in enumerate(values)],
        )
        for number, (name, values) in enumerate(zip(names, samples, strict=True))
        if values
    ]


def _over_time(names: Sequence[str], results: Sequence[Result], field: str) -> list[Line]:
    return [
        _series(name, number, result, field)
        for number, (name, result) in enumerate(zip(names, results, strict=True))
    ]


def _queues(names: Sequence[str], results: Sequence[Result]) -> list[Line]:
    lines = []
    for number, (name, result) in enumerate(zip(names, results, strict=True)):
        lines.append(_series(f"{name}, longest", number, result, "queued_max", is_faint=True))
        lines.append(_series(f"{name}, mean", number, result, "queued_mean"))
    return lines


def _series(name: str, number: int, result: Result, field: str, *, is_faint: bool = False) -> Line:
    interval = result.series.interval_s
    values = getattr(result.series, field)
    points = [((place + 1) * interval, float(value)) for place, value in enumerate(values)]
    return Line(name=name, number=number, points=points, is_faint=is_faint)
