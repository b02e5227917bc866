"""``xpu-smi`` since driver 5: a table with three lines a device, between rules."""

from __future__ import annotations

import re

from attrs import frozen
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import (
    NO_PROCESSES,
    Line,
    ToolText,
    build_profile,
    gap_notes,
    need_rows,
)

from sage_infer_kunlunxin.xpu import read_bus, read_total, sources, xpu

__all__ = ["is_table", "read_table"]

_STATES = {"N/A", "On", "Off", "Enabled", "Disabled"}

Group = list[tuple[Line, list[str]]]


@frozen
class _Heading:
    """How many cells each line has, and line and place of each fact."""

    cells: tuple[int, ...]
    name: int
    has_state: bool
    bus: tuple[int, int]
    memory: tuple[int, int]


def is_table(text: ToolText) -> bool:
    return any(any(_is_name_heading(cell) for cell in cells) for _, cells in text.rows())


def read_table(text: ToolText) -> HardwareProfile:
    """The devices of the table.

    Raises:
        ToolOutputError: the lines between two rules do not fit the heading.
    """
    heading: _Heading | None = None
    devices: list[AcceleratorDescriptor] = []
    notes = [NO_PROCESSES]
    for group in _groups(text):
        line, cells = group[0]
        if any(cell.startswith("Processes") for cell in cells):
            notes = []
            break
        if any(map(_is_name_heading, cells)):
            heading = _heading(text, group)
        elif heading is not None:
            devices.append(_device(text, heading, group))
        elif not re.search(r"Version", " ".join(cells)):
            raise text.error(line, "the heading with XPU and Name above the devices")
    if heading is None:
        raise text.error(None, "the table's heading is missing")
    need_rows(text, devices, "a device")
    notes += gap_notes([device.index for device in devices], "XPUs")
    return build_profile(devices, sources=sources(text), notes=notes)


def _groups(text: ToolText) -> list[Group]:
    """Lines with cells, cut at the rules between them.

    Raises:
        ToolOutputError: the text ends within a table.
    """
    groups: list[Group] = [[]]
    for line in text.lines:
        cells = text.cells(line)
        if cells is not None:
            groups[-1].append((line, cells))
        elif groups[-1]:
            groups.append([])
    if groups[-1]:
        raise text.error(groups[-1][-1][0], "a rule below this row: the table is cut")
    return [group for group in groups if group]


def _is_name_heading(cell: str) -> bool:
    return re.match(r"XPU\s+Name\b", cell) is not None


def _heading(text: ToolText, group: Group) -> _Heading:
    places = {cell: (row, place) for row, (_, cells) in enumerate(group) for place, cell in enumerate(cells)}
    bus = next((where for cell, where in places.items() if cell.startswith("Bus-Id")), None)
    memory = places.get("Memory-Usage")
    name = next(place for place, cell in enumerate(group[0][1]) if _is_name_heading(cell))
    if bus is None or memory is None or bus[0] != 0:
        raise text.error(group[-1][0], "a heading with Bus-Id, and below it Memory-Usage")
    return _Heading(
        tuple(len(cells) for _, cells in group), name, "Persistence" in group[0][1][name], bus, memory
    )


def _device(text: ToolText, heading: _Heading, group: Group) -> AcceleratorDescriptor:
    if tuple(len(cells) for _, cells in group) != heading.cells:
        raise text.error(group[0][0], f"{len(heading.cells)} lines of {heading.cells[0]} cells for a device")
    line, cells = group[0]
    words = cells[heading.name].split()
    if heading.has_state and len(words) > 1 and words[-1] in _STATES:
        words.pop()
    elif heading.has_state:
        raise text.error(line, "the device's number, its name, and a persistence mode")
    if len(words) < 2 or not words[0].isdecimal() or not re.search("[A-Za-z]", words[1]):
        raise text.error(line, "the device's number and its name")
    bus = cells[heading.bus[1]].split()
    row, place = heading.memory
    where, below = group[row]
    return xpu(
        int(words[0]),
        " ".join(words[1:]),
        bus=read_bus(text, line, bus[0] if bus else "?"),
        memory_bytes=read_total(text, where, below[place]),
    )
