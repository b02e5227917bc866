"""Link tables: a matrix with a code for each pair of endpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import field, frozen
from sage_infer.schemas import LinkProfile

from sage_infer_hal.detection.text import UNKNOWN_TEXTS, Line, ToolText

__all__ = ["LinkMatrix", "asymmetry_notes", "read_matrix"]

# Headings of more than one word; each is one column.
_PHRASES = re.compile(r"\b(CPU|NUMA) (Affinity)\b|\b(?:GPU|XPU|NPU|MLU|DCU|HCU) NUMA ID\b", re.IGNORECASE)
# Columns whose cells may be missing at the end of a row; any other missing cell would shift the rest.
_MAY_BE_EMPTY = re.compile(r"(CPU|NUMA)_Affinity|\w+_NUMA_ID", re.IGNORECASE)
_CPU_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


@frozen
class LinkMatrix:
    """A link table as printed.

    Attributes:
        labels: endpoints of the heading, in order.
        codes: (row label, column label) → code, without the diagonal.
        rows: labels that have a row of their own; fewer than the columns if the table is truncated.
        cpu_affinity: row label → logical CPUs.
        numa_node: row label → NUMA node.
    """

    labels: tuple[str, ...]
    codes: Mapping[tuple[str, str], str]
    rows: tuple[str, ...]
    cpu_affinity: Mapping[str, str] = field(factory=dict)
    numa_node: Mapping[str, int] = field(factory=dict)

    def links(
        self, endpoint: Callable[[str], str], describe: Callable[[str], Mapping[str, Any] | None]
    ) -> list[LinkProfile]:
        """Directed links. ``endpoint`` names a label; ``describe`` returns a code's fields, or None for "unknown"."""
        found = []
        for (row, column), code in self.codes.items():
            fields = describe(code)
            if fields is not None:
                found.append(
                    LinkProfile(source=endpoint(row), target=endpoint(column), vendor_code=code, **fields)
                )
        return found


def read_matrix(
    text: ToolText, lines: Iterable[Line], label: str, *, diagonal: str = "X", even: bool = False
) -> LinkMatrix | None:
    """Read the first matrix in ``lines``; None without a heading of labels.

    ``label`` is the pattern of an endpoint's name (``NPU\\d+``). Columns are matched by order, not by position in the
    line; the ``diagonal`` marker proves that they are not shifted. ``even`` rejects rows of one kind that differ in
    length: readers that accept unknown codes need it, as they would not notice a missing cell.

    Raises:
        ToolOutputError: a row does not fit the heading.
    """
    columns: list[str] | None = None
    codes: dict[tuple[str, str], str] = {}
    rows: list[str] = []
    affinity: dict[str, str] = {}
    numa: dict[str, int] = {}
    widths: dict[str, int] = {}
    for line in lines:
        words = _PHRASES.sub(lambda match: match[0].replace(" ", "_"), line.text).split()
        if columns is None:
            if _is_heading(words, label):
                columns = words
            continue
        if not words or not re.fullmatch(label, words[0]):
            if rows or "legend" in line.text.lower():
                break
            continue
        row, cells = words[0], words[1:]
        if row in rows:
            raise text.error(line, f"one row for {row}")
        labels = [column for column in columns if re.fullmatch(label, column)]
        needed = max(i for i, column in enumerate(columns) if not _MAY_BE_EMPTY.fullmatch(column)) + 1
        if not needed <= len(cells) <= len(columns):
            raise text.error(line, f"{len(columns)} cells under {' '.join(columns)}")
        width = widths.setdefault(row.rstrip("0123456789"), len(cells))
        if even and len(cells) != width:
            raise text.error(line, f"{width} cells, as in the rows above")
        rows.append(row)
        for column, cell in zip(columns, cells, strict=False):
            heading_word = column.lower()
            if column == row:
                if cell != diagonal:
                    raise text.error(line, f"{diagonal} where {row} meets itself")
            elif column in labels:
                if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_/+*]*", cell) is None:
                    raise text.error(line, f"a link code under {column}")
                codes[row, column] = cell
            elif heading_word == "cpu_affinity" and cell.lower() not in UNKNOWN_TEXTS:
                if _CPU_LIST.fullmatch(cell) is None:
                    raise text.error(line, "a list of CPU numbers under CPU Affinity")
                affinity[row] = cell
            elif heading_word == "numa_affinity" and cell.lower() not in UNKNOWN_TEXTS:
                if cell.isdecimal():
                    numa[row] = int(cell)
                elif _CPU_LIST.fullmatch(cell) is None:  # a device between several nodes has no nearest one
                    raise text.error(line, "a NUMA node under NUMA Affinity")
    if columns is None:
        return None
    labels = [column for column in columns if re.fullmatch(label, column)]
    if len(set(labels)) != len(labels):
        raise text.error(None, f"the heading of the link table repeats an endpoint: {' '.join(columns)}")
    strangers = [row for row in rows if row not in labels]
    if strangers:
        raise text.error(None, f"the link table has a row {strangers[0]} but no such column")
    return LinkMatrix(tuple(labels), codes, tuple(rows), affinity, numa)


def _is_heading(words: list[str], label: str) -> bool:
    """Whether the line is the heading; a row starts with a label too, but its second word is a code."""
    if not words or not re.fullmatch(label, words[0]):
        return False
    return (
        len(words) == 1
        or re.fullmatch(rf"{label}|\w+_(Affinity|NUMA_ID)", words[1], re.IGNORECASE) is not None
    )


def asymmetry_notes(links: Iterable[LinkProfile]) -> list[str]:
    """A note on pairs whose two directions have different codes: both are kept, although one may be wrong."""
    codes = {(link.source, link.target): link.vendor_code for link in links if link.vendor_code is not None}
    pairs = [
        f"{a} → {b} {code}, {b} → {a} {codes[b, a]}"
        for (a, b), code in codes.items()
        if a < b and codes.get((b, a), code) != code
    ]
    return [f"the link table is not symmetric, both directions are kept: {'; '.join(pairs)}"] if pairs else []
