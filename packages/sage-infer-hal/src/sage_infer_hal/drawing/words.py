"""Format quantities for people."""

from __future__ import annotations

from sage_infer.schemas import Figure

__all__ = ["gigabytes", "rate", "size"]


def size(nbytes: int | None) -> str:
    """``79.6 GiB``; ``-`` if unknown."""
    if nbytes is None:
        return "-"
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2)):
        if nbytes >= 1024**power or unit == "MiB":
            return f"{nbytes / 1024**power:.1f} {unit}"
    raise AssertionError  # the last unit accepts every value


def gigabytes(figure: Figure | None) -> str:
    """``63.0 GB/s``; ``-`` if unknown."""
    return "-" if figure is None else f"{figure.value:.1f} GB/s"


def rate(figure: Figure | None) -> str:
    """``62k/s``; ``-`` if unknown."""
    if figure is None:
        return "-"
    return f"{figure.value / 1000:.0f}k/s" if figure.value >= 10_000 else f"{figure.value:.0f}/s"
