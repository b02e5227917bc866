"""A run as SVG: latency distributions, and throughput over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from xml.sax.saxutils import escape

from attrs import frozen

from sage_infer_serve.bench.load import Run
from sage_infer_serve.bench.report import Distribution, Report, milliseconds, percentile

__all__ = ["draw", "log_ticks", "nice_ticks"]

_MARGIN, _GAP, _HEAD = 28, 56, 76
_WIDTH, _HEIGHT = 400, 200  # size of a panel's plot area
_LEFT = 44  # space for a panel's labels
_POINTS = 200  # points of a distribution curve
_BINS = 60  # of throughput
_INK, _QUIET, _PAPER, _GRID = "#1b2631", "#5d6d7e", "#ffffff", "#e5e8e8"
_CURVE, _BAD = "#2471a3", "#c0392b"


def draw(title: str, run: Run, report: Report) -> str:
    """The run as an SVG document of plain text, lines and rectangles, which any viewer shows."""
    good = [o for o in run.outcomes if o.error is None]
    latencies: list[tuple[str, Distribution | None, list[float]]] = [
        ("Time to first token", report.ttft_s, [o.first - o.due for o in good if o.first is not None]),
        ("Between chunks", report.itl_s, [gap for o in good for gap in o.gaps]),
        ("Whole request", report.e2e_s, [o.ended - o.due for o in good]),
    ]
    panels = [_distribution(name, d, sorted(samples)) for name, d, samples in latencies if d is not None]
    if run.outcomes:
        panels.append(_over_time(run, report))
    rows = -(-len(panels) // 2)
    width = 2 * (_MARGIN + _LEFT + _WIDTH) + _GAP
    height = _HEAD + rows * (_HEIGHT + _GAP + 24)
    shapes = [
        _text(_MARGIN, 32, title, size=17, bold=True),
        _text(_MARGIN, 54, _subtitle(report), colour=_QUIET),
    ]
    for index, panel in enumerate(panels):
        x = _MARGIN + _LEFT + index % 2 * (_LEFT + _WIDTH + _GAP)
        y = _HEAD + 24 + index // 2 * (_HEIGHT + _GAP + 24)
        shapes.append(f'<g transform="translate({x} {y})">{panel}</g>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">\n'
        f'<title>{escape(title)}</title>\n<rect width="100%" height="100%" fill="{_PAPER}"/>\n'
        + "\n".join(shapes)
        + "\n</svg>\n"
    )


def log_ticks(low: float, high: float) -> list[float]:
    """Round values from ``low`` to ``high``: powers of ten, or 1, 2 and 5 of them, or 1 to 9 of them where these
    are fewer than three.
    """
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1,), (1, 2, 5), range(1, 10)):
        found = [t for e in exponents for d in digits if low <= (t := d * 10.0**e) <= high]
        if len(found) >= 3:
            break
    return found


def nice_ticks(high: float, most: int = 5) -> list[float]:
    """From 0 to at least ``high``, in steps of 1, 2 or 5 times a power of ten."""
    if high <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(high / most))
    step = next(s * power for s in (1, 2, 5, 10) if s * power * most >= high * (1 - 1e-9))
    return [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]


@frozen
class _Axis:
    """Maps values to places; ``log`` for a logarithmic one."""

    low: float
    high: float
    length: int
    log: bool = False

    def at(self, value: float) -> float:
        scale: Callable[[float], float] = math.log if self.log else float
        low, high = scale(self.low), scale(self.high)
        return (scale(min(max(value, self.low), self.high)) - low) / (high - low) * self.length


def _distribution(name: str, summary: Distribution, ordered: Sequence[float]) -> str:
    """Cumulative distribution of the samples over a logarithmic axis."""
    # Chunks that arrive together are microseconds apart, and would use most of the axis.
    low = max(percentile(ordered, 0.01), 1e-6) / 1.2
    x = _Axis(low, max(ordered[-1], low) * 1.2, _WIDTH, log=True)
    parts = [_text(0, -12, name, size=13, bold=True)]
    for share in (0, 25, 50, 75, 100):
        y = _HEIGHT * (1 - share / 100)
        parts += [_line(0, y, _WIDTH, y, _GRID), _text(-8, y + 4, f"{share}%", colour=_QUIET, anchor="end")]
    for tick in log_ticks(x.low, x.high):
        at = x.at(tick)
        parts += [_line(at, 0, at, _HEIGHT, _GRID)]
        parts += [_text(at, _HEIGHT + 16, _unit(tick), colour=_QUIET, anchor="middle")]
    shares = [i / _POINTS for i in range(_POINTS + 1)]
    points = [(x.at(percentile(ordered, share)), _HEIGHT * (1 - share)) for share in shares]
    parts.append(_path(points, _CURVE))
    for place, (label, value, colour) in enumerate((("p50", summary.p50, _INK), ("p99", summary.p99, _BAD))):
        at = x.at(value)
        parts.append(_line(at, 0, at, _HEIGHT, colour, dashed=True))
        parts.append(_text(8, 18 + 16 * place, f"{label} {milliseconds(value)} ms", colour=colour))
    return "".join(parts)


def _over_time(run: Run, report: Report) -> str:
    """Tokens per second by the end time of their request; requests per second if there are no tokens."""
    lasted = max(run.ended - run.began, 1e-9)
    bins = max(1, min(_BINS, int(lasted)))  # at least one second: shorter ones would show noise
    width = lasted / bins
    tokens = report.output_tokens > 0
    amounts, failures = [0.0] * bins, [0] * bins
    for o in run.outcomes:
        place = min(bins - 1, int((o.ended - run.began) / width))
        if o.error is not None:
            failures[place] += 1
        else:
            amounts[place] += (o.output_tokens if tokens else 1) / width
    ticks = nice_ticks(max(amounts))
    x, y = _Axis(0, lasted, _WIDTH), _Axis(0, ticks[-1], _HEIGHT)
    what = "Output tokens per second" if tokens else "Requests per second"
    parts = [_text(0, -12, what, size=13, bold=True)]
    for tick in ticks:
        at = _HEIGHT - y.at(tick)
        parts += [
            _line(0, at, _WIDTH, at, _GRID),
            _text(-8, at + 4, f"{tick:,g}", colour=_QUIET, anchor="end"),
        ]
    for second in nice_ticks(lasted):
        if second <= lasted:
            parts.append(_text(x.at(second), _HEIGHT + 16, f"{second:g} s", colour=_QUIET, anchor="middle"))
    for place, amount in enumerate(amounts):
        left, wide, high = x.at(place * width), _WIDTH / bins, y.at(amount)
        parts.append(_box(left, _HEIGHT - high, max(wide - 1, 0.5), high, _CURVE))
        if failures[place]:
            title = f"<title>{failures[place]} failed</title>"
            parts.append(f'<circle cx="{left + wide / 2:.1f}" cy="6" r="4" fill="{_BAD}">{title}</circle>')
    if report.failed:
        parts.append(_text(_WIDTH, -12, f"● {report.failed:,} failed", colour=_BAD, anchor="end"))
    return "".join(parts)


def _subtitle(report: Report) -> str:
    failed = f", {report.failed:,} failed" if report.failed else ""
    return report.throughput() + failed


def _unit(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:g} s"
    return f"{seconds * 1000:g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:g} µs"


# --- shapes


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 11,
    colour: str = _INK,
    bold: bool = False,
    anchor: str = "start",
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, *, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="3 3"' if dashed else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _path(points: Sequence[tuple[float, float]], colour: str) -> str:
    path = " ".join(f"{'L' if n else 'M'}{x:.1f} {y:.1f}" for n, (x, y) in enumerate(points))
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
