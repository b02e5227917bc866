"""``cnmon``: a table with two lines per device. Before cnmon 5 it has no bus ids, as its heading shows."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
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

from sage_infer_cambricon.mlu import board_notes, mlu, sources

__all__ = ["is_table", "read_table"]

_MEMORY = re.compile(r"(\S+)\s*MiB\s*/\s*(\S+)\s*MiB")
_END = re.compile(r"processes:|no running processes", re.IGNORECASE)
_DRIVER = r"CNMON\b.*\bDriver\s+v?(\d\S*)"


@frozen
class _Heading:
    """The words of the first cell, how many cells a line has, and the places of bus id and memory."""

    words: tuple[str, ...]
    cells: int
    card: int
    bus: int | None
    memory: int


def is_table(text: ToolText) -> bool:
    return any(any(_is_card_heading(cell) for cell in cells) for _, cells in text.rows())


def read_table(text: ToolText) -> HardwareProfile:
    """The devices of the table.

    Raises:
        ToolOutputError: a line does not match the heading, or one of a device's two lines is missing.
    """
    devices: list[AcceleratorDescriptor] = []
    notes: list[str] = []
    heading: _Heading | None = None
    first: tuple[Line, list[str]] | None = None
    numbers: list[int] = []
    closed, has_rules, ended = True, False, False
    for line in text.lines:
        cells = text.cells(line)
        if cells is None:
            if first is not None:
                raise text.error(line, "a second line for the device above")
            closed = has_rules = True
            continue
        if ended:
            match = re.match(r"(\d+)\s", cells[0])
            if match and int(match[1]) not in numbers:
                raise text.error(line, f"card {match[1]} in the table above, which the process is of")
            continue
        if any(_END.search(cell) for cell in cells):
            ended = True
            continue
        if re.match("CNMON", cells[0]) or (first is None and heading is None and not _has_card(cells)):
            continue
        if first is None:
            first = (line, cells)
            continue
        if _has_card(first[1]):
            heading = _heading(text, line, first[1], cells)
        elif heading is None:
            raise text.error(line, "the heading with Card and Name above the devices")
        else:
            number, device, more = _device(text, heading, first, (line, cells))
            numbers.append(number)
            closed = not has_rules
            devices += [device] if device else []
            notes += more
        first = None
    if first is not None:
        raise text.error(first[0], "a second line for this device")
    if heading is None:
        raise text.error(None, "the table's heading is missing")
    if not closed:
        raise text.error(text.lines[-1], "a rule below the last device: the table is cut")
    need_rows(text, numbers, "a device")
    notes += gap_notes(numbers, "cards")
    notes += [] if ended else [NO_PROCESSES]
    driver = text.search(_DRIVER)
    found = re.search(_DRIVER, driver.text) if driver else None
    return build_profile(
        devices,
        sources=sources(text.source, found[1] if found else None),
        notes=[*notes, *_masked_notes(devices), *board_notes(devices)],
    )


def _masked_notes(devices: Sequence[AcceleratorDescriptor]) -> list[str]:
    named = ", ".join(str(device.index) for device in devices if is_masked(device.model))
    sized = ", ".join(str(device.index) for device in devices if device.memory_bytes is None)
    return [
        f"{what} of card {cards} {ending}"
        for what, cards, ending in (
            ("the name", named, "is masked"),
            ("the memory", sized, "is not a number"),
        )
        if cards
    ]


def _is_card_heading(cell: str) -> bool:
    return re.match(r"Card\b.*\bName\b", cell) is not None


def _has_card(cells: Sequence[str]) -> bool:
    return any(map(_is_card_heading, cells))


def _heading(text: ToolText, line: Line, first: list[str], second: list[str]) -> _Heading:
    if len(first) != len(second) or "Memory-Usage" not in second:
        raise text.error(line, "a heading with Memory-Usage")
    card = next(place for place, cell in enumerate(first) if _is_card_heading(cell))
    return _Heading(
        tuple(first[card].split()),
        len(first),
        card,
        first.index("Bus-Id") if "Bus-Id" in first else None,
        second.index("Memory-Usage"),
    )


def _device(
    text: ToolText, heading: _Heading, one: tuple[Line, list[str]], two: tuple[Line, list[str]]
) -> tuple[int, AcceleratorDescriptor | None, list[str]]:
    (first_line, first), (line, second) = one, two
    for place, cells in one, two:
        if len(cells) != heading.cells:
            raise text.error(place, f"{heading.cells} cells")
    index, part, name = _card(text, first_line, heading, first[heading.card])
    bus = None
    if heading.bus is not None:
        printed = first[heading.bus]
        bus = bus_address(printed)
        if bus is None and printed.lower() not in UNKNOWN_TEXTS and not is_masked(printed):
            raise text.error(first_line, "a bus id such as 0000:39:00.0")
    match = _MEMORY.fullmatch(second[heading.memory])
    total = match[2] if match else ""
    if not total.isdecimal() and total.lower() not in UNKNOWN_TEXTS - {""} and not is_masked(total):
        raise text.error(line, "memory as used MiB/ total MiB")
    if part is not None:
        return index, None, [f"card {index} is divided; its part {part} ({name}) is left out"]
    memory = mebibytes(int(total)) if total.isdecimal() else None
    return index, mlu(index, name, bus=bus, memory_bytes=memory), []


def _card(text: ToolText, line: Line, heading: _Heading, cell: str) -> tuple[int, str | None, str]:
    """Number, number of the virtual function or instance (None for a whole card), and name."""
    values = cell.split()
    before = 2 if "VF" in heading.words or "MI" in heading.words else 1
    after = 1 if heading.words[-1] == "Firmware" else 0
    name = " ".join(values[before : len(values) - after])
    firmware = values[-1] if after and values else "v0"
    if not name or not values[0].isdecimal() or re.fullmatch(r"v?\d[\w.]*|N/A|-+|[xX*.v]+", firmware) is None:
        raise text.error(line, f"{', '.join(heading.words)}")
    if re.search(r"[A-Za-z]", name) is None:
        raise text.error(line, "a product name such as MLU370-X8")
    part = values[1] if before == 2 else "/"
    return int(values[0]), None if part in ("/", "-", "N/A") else part, name
