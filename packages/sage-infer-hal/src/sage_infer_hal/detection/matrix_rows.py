"""One row of a link table: its codes, and which of the columns behind them its last cells belong to."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

from attrs import frozen

from sage_infer_hal.detection.fused import split_cells
from sage_infer_hal.detection.text import Line, ToolText

__all__ = ["Heading", "Row", "read_row"]

# Columns whose cells may be left empty at the end of a row; a missing cell of any other would shift the rest.
_MAY_BE_EMPTY = re.compile(r"(cpu|numa)_affinity|\w+_numa_id")
_TAB = 8


@frozen
class Heading:
    """Endpoints, the columns behind them with the places where they begin, and whether tabs part them all."""

    labels: tuple[str, ...]
    ends: tuple[str, ...]
    starts: tuple[int, ...]
    has_tabs: bool


@frozen
class Row:
    """Codes under the labels, and cells by the name of their column; None where those are not to be told."""

    codes: tuple[str, ...]
    ends: Mapping[str, str] | None
    width: int


def read_row(text: ToolText, line: Line, heading: Heading, fused: str) -> Row:
    """The cells of a row below a heading; ``fused`` is the pattern of codes that may have run into each other.

    Raises:
        ToolOutputError: there are more or fewer cells than the heading has columns for.
    """
    count = len(heading.labels)
    needed = [place for place, name in enumerate(heading.ends) if not _MAY_BE_EMPTY.fullmatch(name)]
    least, most = count + (needed[-1] + 1 if needed else 0), count + len(heading.ends)
    columns = [*heading.labels, *heading.ends]
    wrong = text.error(line, f"{most} cells under {' '.join(columns)}")
    found = [(match[0], match.start()) for match in re.finditer(r"\S+", line.text.expandtabs())][1:]
    if heading.has_tabs and "\t" in line.text.strip():
        cells = [cell.strip() for cell in line.text.lstrip().split("\t")][1:]
        if fused and len(found) < most:
            cells = split_cells(cells, fused) or cells
        codes, tail = cells[:count], cells[count:]
        if len(codes) == count and all(codes):
            ends = _by_tabs(heading, tail)
            if ends is None or (least > count and len(tail) < least - count):
                raise wrong
            return Row(tuple(codes), ends, count + sum(map(bool, tail)))
    words = [word for word, _ in found]
    if fused and len(words) < most:
        # Cells after the codes are not codes and stay unchanged.
        words = split_cells(words, fused) or words
    if not least <= len(words) <= most:
        raise wrong
    codes, tail = words[:count], words[count:]
    if len(tail) == len(heading.ends) or not tail:
        ends = dict(zip(heading.ends, tail, strict=False))
    else:
        ends = _by_place(heading, found[len(found) - len(tail) :])
    return Row(tuple(codes), ends, len(words))


def _by_tabs(heading: Heading, tail: Sequence[str]) -> Mapping[str, str] | None:
    """Cells of a row that is parted by tabs, of which the empty ones count; None where there are too many."""
    cells = list(tail)
    while len(cells) > len(heading.ends) and not cells[-1]:
        cells.pop()
    # nvidia-smi puts two tabs between NUMA Affinity and GPU NUMA ID.
    if len(cells) == len(heading.ends) + 1 and len(cells) > 2 and not cells[-2]:
        del cells[-2]
    if len(cells) > len(heading.ends):
        return None
    return {name: cell for name, cell in zip(heading.ends, cells, strict=False) if cell}


def _by_place(heading: Heading, found: Sequence[tuple[str, int]]) -> Mapping[str, str] | None:
    """Fewer cells than columns: by where they stand in the line; None where that fits several columns, or none."""
    names = {start: name for name, start in zip(heading.ends, heading.starts, strict=True)}
    if all(start in names for _, start in found):
        return {names[start]: word for word, start in found}
    fitting = []
    for chosen in itertools.combinations(range(len(heading.ends)), len(found)):
        cells = {place: word for place, (word, _) in zip(chosen, found, strict=True)}
        if _printed(heading, cells) == [start for _, start in found]:
            fitting.append({heading.ends[place]: word for place, word in cells.items()})
    return fitting[0] if len(fitting) == 1 else None


def _printed(heading: Heading, cells: Mapping[int, str]) -> list[int]:
    """Where the cells of columns stand if each column ends with a tab, and the last begins with one more."""
    position = heading.starts[0]
    starts = []
    for place in range(len(heading.ends)):
        if place == len(heading.ends) - 1 and place > 1:
            position = position // _TAB * _TAB + _TAB
        if place in cells:
            starts.append(position)
        position = (position + len(cells.get(place, ""))) // _TAB * _TAB + _TAB
    return starts
