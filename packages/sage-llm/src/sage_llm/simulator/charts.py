"""Line charts as SVG, drawn for a page with light and dark colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from attrs import frozen

__all__ = ["COLOURS", "Line", "chart"]

COLOURS = 8  # different colours of the page; further lines repeat them, dashed

_WIDTH, _HEIGHT = 560, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 40


@frozen(kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        name: its name, shown on hover.
        number: its place among the results, which selects its colour.
        points: coordinates.
        is_faint: whether it is drawn thinner, beside another one of the same colour.
    """

    name: str
    number: int
    points: Sequence[tuple[float, float]]
    is_faint: bool = False


def chart(
    title: str, lines: Sequence[Line], *, x: str, y: str, log: bool = False, percent: bool = False
) -> str:
    """Return a figure with a chart.

    Args:
        x: label of the horizontal axis.
        y: label of the vertical axis.
        log: whether the horizontal axis is logarithmic; points at 0 are moved to its smallest value.
        percent: whether the vertical axis is a share, from 0 to 1.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    positive = [a for a, _ in points if a > 0]
    low = min(positive, default=1.0) if log else min(a for a, _ in points)
    high = max(max(a for a, _ in points), low * 1.001 if log else low + 1e-9)
    top = 1.0 if percent and "CDF" in title else max(max(b for _, b in points), 1e-9) * 1.05

    def place_x(a: float) -> float:
        share = math.log(max(a, low) / low) / math.log(high / low) if log else (a - low) / (high - low)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def place_y(b: float) -> float:
        return _HEIGHT - _BOTTOM - b / top * (_HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">']
    for value in _ticks(0.0, top):
        at = place_y(value)
        label = f"{value:.0%}" if percent else _number(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text class="tick" x="{_LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{label}</text>'
        )
    for value in _log_ticks(low, high) if log else _ticks(low, high):
        at = place_x(value)
        parts.append(
            f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
            f'<text class="tick" x="{at:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_number(value)}</text>'
        )
    for line in lines:
        path = " ".join(f"{place_x(a):.1f},{place_y(b):.1f}" for a, b in line.points)
        kind = f"line c{line.number % COLOURS}" + (" faint" if line.is_faint else "")
        kind += " dashed" if line.number >= COLOURS else ""
        parts.append(
            f'<polyline class="{kind}" points="{path}"><title>{escape(line.name)}</title></polyline>'
        )
    parts.append(
        f'<text class="axis" x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">{escape(x)}'
        "</text></svg>"
    )
    caption = f"<figcaption><b>{escape(title)}</b> · {escape(y)}</figcaption>"
    return f"<figure>{caption}{''.join(parts)}</figure>"


def _ticks(low: float, high: float) -> list[float]:
    """About five round values of a range."""
    rough = (high - low) / 5
    if rough <= 0:
        return [low]
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * place for place in range(first, int(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten of a range, and with few of them also 2 and 5 times these."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in found if low * 0.999 <= value <= high * 1.001]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
