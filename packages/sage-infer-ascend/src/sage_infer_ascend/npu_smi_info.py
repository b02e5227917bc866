"""``npu-smi info``: a table with two lines per chip. Layouts differ by driver; the heading identifies them.

| driver | first line | second line |
|---|---|---|
| to 22 | NPU, Name | Chip, Device (logic id); HBM only on chips that have it |
| 23 and later | NPU, Name | Chip |
| the same, Atlas A3 | NPU, Name | Chip, Phy-ID |
| the same, Ascend 950 | NPU ID; Name in a cell of its own | empty |
"""

from __future__ import annotations

import re

from attrs import frozen
from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import (
    NO_PROCESSES,
    Line,
    ToolText,
    build_profile,
    bus_address,
    gap_notes,
    is_masked,
    mebibytes,
    need_rows,
)
from sage_infer_hal.detection.text import UNKNOWN_TEXTS

from sage_infer_ascend.npu_rows import VERSION, NpuRow, accelerators, sources

__all__ = ["is_info", "read_info", "read_rows"]

_USAGE = re.compile(r"(\S+)-Usage\(MB\)")
_PAIR = re.compile(r"([\d.]+|NA|N/A|-+|[xX*]+)\s*/\s*(\d+|NA|N/A|-+|[xX*]+)")
_NO_PROCESSES = re.compile(r"no running processes|process id", re.IGNORECASE)


@frozen
class _Heading:
    """The layout in the two heading lines: how many cells a line has, and the position of each.

    ``name`` is the place of the name where it has a cell of its own; ``usages`` are the memories in order.
    """

    cells: int
    npu: int
    name: int | None
    bus: int
    memory: int
    numbered_by: str | None
    usages: tuple[str, ...]


# A table whose heading was cut off: the layouts with Chip and a number all have these three cells.
_NO_HEADING = _Heading(3, 0, None, 1, 2, "", ())


def is_info(text: ToolText) -> bool:
    rows = [cells for _, cells in text.rows()]
    return any("Health" in cells and any("Name" in cell for cell in cells) for cells in rows) or any(
        len(cells) == 3 and bus_address(cells[1]) is not None and re.fullmatch(r"\d+(\s+\d+)?", cells[0])
        for cells in rows
    )


def read_info(text: ToolText) -> HardwareProfile:
    """The table alone: without logic ids where the layout has none, without links."""
    rows, notes = read_rows(text)
    devices, more = accelerators(text, rows)
    if not any(_NO_PROCESSES.search(line.text) for line in text.lines):
        more.append(NO_PROCESSES)
    return build_profile(devices, sources=sources(text), notes=[*notes, *more])


def read_rows(text: ToolText) -> tuple[list[NpuRow], list[str]]:
    """The chips of the table, and notes on unreadable parts.

    Raises:
        ToolOutputError: a line does not match the heading, or one of a chip's two lines is missing.
    """
    rows: list[NpuRow] = []
    notes: list[str] = []
    heading: _Heading | None = None
    first: tuple[Line, list[str]] | None = None
    closed, has_rules = True, False
    for line in text.lines:
        cells = text.cells(line)
        if cells is None:
            if first is not None:
                raise text.error(line, "a second line for the chip above")
            closed = has_rules = True
            continue
        if any(_NO_PROCESSES.search(cell) for cell in cells):
            break
        if heading is None and not rows and re.match(VERSION, cells[0]):
            continue
        if first is None:
            first = (line, cells)
            continue
        if "Health" in first[1]:
            heading = _heading(text, line, first[1], cells)
        else:
            row, note = _row(text, heading or _NO_HEADING, first, (line, cells))
            rows.append(row)
            closed = not has_rules or heading is None
            notes += [note] if note else []
        first = None
    if first is not None:
        raise text.error(first[0], "a second line for this chip")
    if not closed:
        raise text.error(text.lines[-1], "a rule below the last chip: the table is cut")
    need_rows(text, rows, "a chip")
    _check_processes(text, rows)
    return rows, [*notes, *gap_notes([row.npu for row in rows], "NPUs")]


def _check_processes(text: ToolText, rows: list[NpuRow]) -> None:
    """Refuse a table without a chip whose processes are listed below it."""
    known = {row.npu for row in rows}
    below = False
    for line in text.lines:
        below = below or re.search("process id", line.text, re.IGNORECASE) is not None
        match = re.search(r"in NPU (\d+)", line.text) or (
            re.match(r"\s*\|\s*(\d+)\s", line.text) if below else None
        )
        if match is not None and int(match[1]) not in known:
            raise text.error(line, f"NPU {match[1]} in the table above, which its processes are of")


def _heading(text: ToolText, line: Line, first: list[str], second: list[str]) -> _Heading:
    if len(first) != len(second) or "Bus-Id" not in second or first.index("Health") != second.index("Bus-Id"):
        raise text.error(line, "Bus-Id below Health")
    bus = second.index("Bus-Id")
    memory = next((place for place, cell in enumerate(second) if _USAGE.search(cell)), None)
    if memory is None:
        raise text.error(line, "a heading with Memory-Usage(MB)")
    usages = tuple(_USAGE.findall(second[memory]))
    for place, cell in enumerate(first):
        if re.fullmatch(r"NPU\s+Name", cell):
            match = re.fullmatch(r"Chip(?:\s+(Device|Phy-ID))?", second[place])
            if match is None:
                raise text.error(line, "Chip, or Chip and Device or Phy-ID, below NPU and Name")
            return _Heading(len(first), place, None, bus, memory, match[1], usages)
        if re.fullmatch(r"NPU(\s+ID)?", cell) and "Name" in first:
            return _Heading(len(first), place, first.index("Name"), bus, memory, None, usages)
    raise text.error(line, "NPU and Name in the heading above")


def _row(
    text: ToolText, heading: _Heading, one: tuple[Line, list[str]], two: tuple[Line, list[str]]
) -> tuple[NpuRow, str]:
    (first_line, first), (line, second) = one, two
    for place, cells in one, two:
        if len(cells) != heading.cells:
            raise text.error(place, f"{heading.cells} cells")
    npu, name = _npu(text, first_line, heading, first)
    health = first[heading.bus]
    if re.fullmatch(r"[A-Za-z]\w*", health) is None or health.lower() in UNKNOWN_TEXTS - {"unknown"}:
        raise text.error(first_line, "a health state such as OK")
    chip, number = _chip(text, line, heading, second)
    printed = second[heading.bus]
    bus = bus_address(printed)
    if bus is None and printed.lower() not in UNKNOWN_TEXTS and not is_masked(printed):
        raise text.error(line, "a bus id such as 0000:C1:00.0")
    memory, note = _memory(text, line, heading, second[heading.memory])
    row = NpuRow(
        line=line,
        npu=npu,
        chip=chip,
        number=number,
        numbered_by=heading.numbered_by or "",
        physical=number if heading.numbered_by == "Phy-ID" else None,
        name=name,
        bus=bus,
        memory_bytes=memory,
    )
    return row, note and f"NPU {npu}, chip {chip}: {note}"


def _npu(text: ToolText, line: Line, heading: _Heading, cells: list[str]) -> tuple[int, str]:
    """The card's number and the chip's name, from a chip's first line."""
    if heading.name is None:
        match = re.fullmatch(r"(\d+)\s+(\S.*)", cells[heading.npu])
        npu, name = match.groups() if match else ("", "")
    else:
        npu, name = cells[heading.npu], cells[heading.name]
    if not npu.isdecimal() or not name:
        raise text.error(line, "an NPU's number and its name")
    return int(npu), name


def _chip(text: ToolText, line: Line, heading: _Heading, cells: list[str]) -> tuple[int, int | None]:
    """The chip's number on the card and its number in the layout, from a chip's second line."""
    if heading.name is not None:
        if cells[heading.npu] or cells[heading.name]:
            raise text.error(line, "nothing below the NPU's number and name")
        return 0, None
    match = re.fullmatch(r"(\d+)(?:\s+(\d+))?", cells[heading.npu])
    needs_number = heading.numbered_by is not None
    if match is None or (match[2] is not None) != needs_number:
        number = f" and {heading.numbered_by or 'its device number'}" if needs_number else ""
        raise text.error(line, f"the chip's number{number} in the first cell")
    return int(match[1]), None if match[2] is None else int(match[2])


def _memory(text: ToolText, line: Line, heading: _Heading, cell: str) -> tuple[int | None, str]:
    """The device's own memory: HBM if present, else the tool's memory column."""
    pairs = _PAIR.findall(cell)
    usages = heading.usages or ("Memory", "HBM")[: len(pairs)]
    if not pairs or len(pairs) != len(usages):
        raise text.error(line, f"used / total for {', '.join(usages) or 'memory'}")
    totals = dict(zip(usages, (total for _, total in pairs), strict=True))
    for name in ("HBM", "Memory"):
        total = totals.get(name)
        if total is None or (total.isdecimal() and int(total) == 0):
            continue
        return (mebibytes(int(total)), "") if total.isdecimal() else (None, f"{name} is printed as {total}")
    return None, "no memory size is shown"
