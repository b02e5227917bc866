"""Measurements as bars: on the terminal and in SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from sage_infer_transport.probe import Measurement

__all__ = ["bar", "draw", "size"]

_ROW, _LEFT, _BAR, _RIGHT, _HEAD = 30, 190, 420, 230, 66
_INK, _QUIET, _PAPER, _PLAIN, _CHOSEN = "#1b2631", "#5d6d7e", "#ffffff", "#aeb6bf", "#2471a3"


def bar(share: float, width: int = 20) -> str:
    """A bar of up to ``width`` characters, in eighths of one."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    return "█" * (eighths // 8) + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[eighths % 8]


def size(nbytes: int) -> str:
    return f"{nbytes >> 20} MiB" if nbytes >= 1 << 20 else f"{nbytes >> 10} KiB"


def draw(measured: Sequence[Measurement], chosen: Mapping[str, str]) -> str:
    """An SVG document: one bar per link and preset, the recommended ones in colour."""
    best = max(max(m.gbs) for m in measured)
    rows, y, link = [], _HEAD, ""
    for m in measured:
        if m.link != link:
            link, y = m.link, y + 14
            rows.append(_text(24, y + 15, link if len(link) < 16 else "remote host", bold=True))
        colour = _CHOSEN if chosen[m.link] == m.preset else _PLAIN
        width = m.median_gbs / best * _BAR
        low, high = (value / best * _BAR for value in (min(m.gbs), max(m.gbs)))
        rows += [
            _text(_LEFT - 10, y + 15, m.preset, anchor="end"),
            f'<rect x="{_LEFT}" y="{y + 3}" width="{width:.1f}" height="16" fill="{colour}"/>',
            f'<path d="M{_LEFT + low:.1f} {y + 11}H{_LEFT + high:.1f}" stroke="{_INK}"/>',
            _text(
                _LEFT + _BAR + 16, y + 15, f"{m.median_gbs:.2f} GB/s, first {1e3 * m.median_first_s:.1f} ms"
            ),
        ]
        y += _ROW
    width, height = _LEFT + _BAR + _RIGHT + 40, y + 20
    head = [
        _text(24, 30, "Bandwidth of links by transport preset", bold=True, points=16),
        _text(24, 50, "Bars: median. Lines: range. Blue: recommended.", colour=_QUIET),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, Segoe UI, Helvetica, Arial, sans-serif">\n<title>Bandwidth of links</title>\n'
        f'<rect width="100%" height="100%" fill="{_PAPER}"/>\n' + "\n".join([*head, *rows]) + "\n</svg>\n"
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    bold: bool = False,
    points: int = 13,
    colour: str = _INK,
    anchor: str = "start",
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{points}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{escape(text)}</text>"
    )
