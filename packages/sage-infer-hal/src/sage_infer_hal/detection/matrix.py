"""Link tables: a matrix with a code for each pair of endpoints."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import field, frozen
from sage_infer.schemas import LinkProfile

from sage_infer_hal.detection.fused import splits
from sage_infer_hal.detection.matrix_rows import Heading, read_row
from sage_infer_hal.detection.text import UNKNOWN_TEXTS, Line, ToolText

__all__ = ["LinkMatrix", "asymmetry_notes", "read_matrix"]

# Headings of more than one word; each is one column.
_PHRASES = re.compile(r"\b(CPU|NUMA) (Affinity)\b|\b(?:GPU|XPU|NPU|MLU|DCU|HCU) NUMA ID\b", re.IGNORECASE)
_LIST = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")
_CELL = re.compile(r"[A-Z][A-Z0-9_]*|\d[\d,-]*|N/A")
_CODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_/+*]*")


@frozen
class LinkMatrix:
    """A link table as printed.

    Attributes:
        labels: endpoints of the heading, in order.
        codes: (row label, column label) → code, without the diagonal.
        rows: labels that have a row of their own; fewer than the columns if the table is truncated.
        cpu_affinity: row label → logical CPUs.
        numa_node: row label → NUMA node, where the table names one.
        numa_nodes: row label → NUMA nodes as a list, where the table names several.
        memory_node: row label → NUMA node that the device's own memory is.
        notes: remarks for the user about the table.
    """

    labels: tuple[str, ...]
    codes: Mapping[tuple[str, str], str]
    rows: tuple[str, ...]
    cpu_affinity: Mapping[str, str] = field(factory=dict)
    numa_node: Mapping[str, int] = field(factory=dict)
    numa_nodes: Mapping[str, str] = field(factory=dict)
    memory_node: Mapping[str, int] = field(factory=dict)
    notes: tuple[str, ...] = ()

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
    text: ToolText,
    lines: Iterable[Line],
    label: str,
    *,
    diagonal: str = "X",
    even: bool = False,
    fused: str = "",
) -> LinkMatrix | None:
    """Read the first matrix in ``lines``; None without a heading of labels.

    ``label`` is the pattern of an endpoint's name (``NPU\\d+``). Columns are separated by tabs if the table has
    them, and matched by order otherwise; the ``diagonal`` marker proves that they are not shifted. ``even`` rejects
    rows of one kind that differ in length: readers that accept unknown codes need it, as they would not notice a
    missing cell. ``fused`` is the pattern of all known codes, by which adjacent cells that ran together are split.

    Raises:
        ToolOutputError: a row does not fit the heading.
    """
    heading: Heading | None = None
    codes: dict[tuple[str, str], str] = {}
    rows: list[str] = []
    ends: dict[str, Mapping[str, str]] = {}
    ambiguous: list[str] = []
    widths: dict[str, int] = {}
    last = -1
    for line in lines:
        if heading is None:
            heading = _heading(line, label)
            continue
        words = line.text.split()
        if not re.fullmatch(label, words[0]):
            if last == line.number - 1 and all(_CELL.fullmatch(word) for word in words):
                raise text.error(line, "a row that begins with its name: this one is cut or wrapped")
            if rows or "legend" in line.text.lower():
                break
            continue
        name, last = words[0], line.number
        if name in rows:
            raise text.error(line, f"one row for {name}")
        row = read_row(text, line, heading, fused)
        width = widths.setdefault(name.rstrip("0123456789"), row.width)
        if even and row.width != width:
            raise text.error(line, f"{width} cells, as in the rows above")
        rows.append(name)
        for column, cell in zip(heading.labels, row.codes, strict=True):
            if column == name:
                if cell != diagonal:
                    raise text.error(line, f"{diagonal} where {name} meets itself")
            elif _CODE.fullmatch(cell) is None:
                raise text.error(line, f"a link code under {column}")
            else:
                codes[name, column] = cell
        if row.ends is None:
            ambiguous.append(name)
        else:
            ends[name] = _known_ends(text, line, row.ends)
    if heading is None:
        return None
    if not rows:
        raise text.error(text.lines[-1], f"a row for {heading.labels[0]} below the heading")
    labels = heading.labels
    if len(set(labels)) != len(labels):
        raise text.error(None, f"the heading of the link table repeats an endpoint: {' '.join(labels)}")
    strangers = [row for row in rows if row not in labels]
    if strangers:
        raise text.error(None, f"the link table has a row {strangers[0]} but no such column")
    nodes = {row: cells["numa_affinity"] for row, cells in ends.items() if "numa_affinity" in cells}
    own = {
        row: value
        for row, cells in ends.items()
        for name, value in cells.items()
        if name.endswith("_numa_id")
    }
    lists = {row: value for row, value in nodes.items() if not value.isdecimal()}
    notes = [
        f"{row} is near the NUMA nodes {value}; none is taken as the nearest" for row, value in lists.items()
    ]
    notes += [f"the memory of {row} is NUMA node {value}" for row, value in own.items() if value.isdecimal()]
    if ambiguous:
        notes.append(
            f"cells are missing at the end of the rows of {', '.join(ambiguous)}, and it is unclear which: "
            "affinities are left out"
        )
    return LinkMatrix(
        labels,
        codes,
        tuple(rows),
        {row: cells["cpu_affinity"] for row, cells in ends.items() if "cpu_affinity" in cells},
        {row: int(value) for row, value in nodes.items() if value.isdecimal()},
        lists,
        {row: int(value) for row, value in own.items() if value.isdecimal()},
        tuple(notes),
    )


def _heading(line: Line, label: str) -> Heading | None:
    """The columns; a row starts with a label too, but its second word is a code."""
    joined = _PHRASES.sub(lambda match: match[0].replace(" ", "_"), line.text.expandtabs())
    found = [(match[0], match.start()) for match in re.finditer(r"\S+", joined)]
    labels: list[str] = []
    while found:
        word = found[0][0]
        ways = [[word]] if re.fullmatch(label, word) else splits(word, label)
        if len(ways) != 1:
            break
        labels += ways[0]
        del found[0]
    names = [word.lower() for word, _ in found]
    if not labels or (len(labels) == 1 and found and not re.fullmatch(r"\w+_(affinity|numa_id)", names[0])):
        return None
    return Heading(
        tuple(labels), tuple(names), tuple(start for _, start in found), "\t" in line.text.strip("\t ")
    )


def _known_ends(text: ToolText, line: Line, cells: Mapping[str, str]) -> Mapping[str, str]:
    known = {name: cell for name, cell in cells.items() if cell.lower() not in UNKNOWN_TEXTS}
    for name, what in {
        "cpu_affinity": "a list of CPU numbers under CPU Affinity",
        "numa_affinity": "a NUMA node under NUMA Affinity",
    }.items():
        if name in known and _LIST.fullmatch(known[name]) is None:
            raise text.error(line, what)
    return known


def asymmetry_notes(links: Iterable[LinkProfile]) -> list[str]:
    """A note on pairs whose two directions have different codes: both are kept, although one may be wrong."""
    codes = {(link.source, link.target): link.vendor_code for link in links if link.vendor_code is not None}
    pairs = [
        f"{a} → {b} {code}, {b} → {a} {codes[b, a]}"
        for (a, b), code in codes.items()
        if a < b and codes.get((b, a), code) != code
    ]
    return [f"the link table is not symmetric, both directions are kept: {'; '.join(pairs)}"] if pairs else []
