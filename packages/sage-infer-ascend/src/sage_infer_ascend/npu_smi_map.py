"""``npu-smi info -m`` and ``npu-smi info -l``: the chips and their logic ids."""

from __future__ import annotations

import re

from attrs import evolve
from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import UNCOUNTED, Line, ToolText, build_profile, gap_notes, need_rows
from sage_infer_hal.detection.text import UNKNOWN_TEXTS

from sage_infer_ascend.npu_rows import NpuRow, accelerators

__all__ = ["is_list", "is_map", "read_list", "read_map", "read_map_rows", "with_logic_ids"]

_HEADINGS = re.compile(r"NPU ID|Slot ID|Chip ID|Chip Logic ID|Chip Phy-ID|Chip Name")
_LEFT_OUT = "this output shows neither memory nor bus ids"


def is_map(text: ToolText) -> bool:
    return _map_heading(text) is not None


def read_map(text: ToolText) -> HardwareProfile:
    """Devices with their names."""
    devices, notes = accelerators(text, read_map_rows(text))
    gaps = gap_notes([device.index for device in devices], "NPUs")
    return build_profile(devices, sources=[text.source], notes=[_LEFT_OUT, UNCOUNTED, *notes, *gaps])


def read_map_rows(text: ToolText) -> list[NpuRow]:
    """The chips that compute; management controllers and camera chips are left out.

    Raises:
        ToolOutputError: a row does not fit the heading.
    """
    heading = _map_heading(text)
    if heading is None:
        raise text.error(None, "the heading of `npu-smi info -m` is missing")
    names = _HEADINGS.findall(heading.text)
    numbers = names[:-1]
    more = heading.text.rpartition(names[-1])[2].split()
    pattern = re.compile(r"\s*" + r"\s+".join([r"(\d+|-+|N/?A)"] * len(numbers)) + r"\s+(\S.*)")
    # Controllers (Mcu, 3559) have no logic id; chips of the Ascend 950 have none in this output at all.
    by = "Chip Logic ID" if "Chip Logic ID" in numbers else "Chip Phy-ID"
    rows = []
    for line in text.lines:
        if line.number <= heading.number:
            continue
        match = pattern.fullmatch(line.text)
        name, *others = re.split(r"\s{2,}", match[len(names)].strip()) if match else [""]
        if match is None or len(others) != len(more):
            raise text.error(line, f"one cell each for {', '.join([*names, *more])}")
        values = dict(zip(numbers, match.groups(), strict=False))
        if name.lower() == "mcu" or values[by].lower() in UNKNOWN_TEXTS:
            continue
        if name.isdecimal() or not (values["NPU ID"].isdecimal() and values["Chip ID"].isdecimal()):
            raise text.error(line, f"{', '.join(names)}")
        physical = values.get("Chip Phy-ID", "")
        rows.append(
            NpuRow(
                line=line,
                npu=int(values["NPU ID"]),
                chip=int(values["Chip ID"]),
                number=int(values[by]),
                numbered_by="Phy-ID" if by == "Chip Phy-ID" else "Logic ID",
                physical=int(physical) if physical.isdecimal() else None,
                name=name,
            )
        )
    need_rows(text, rows, "a chip")
    return rows


def with_logic_ids(rows: list[NpuRow], mapping: list[NpuRow]) -> list[NpuRow]:
    """Rows of ``npu-smi info`` with the numbers of ``npu-smi info -m`` where that has them."""
    logic = {(row.npu, row.chip): row for row in mapping if row.numbered_by == "Logic ID"}
    if not all((row.npu, row.chip) in logic for row in rows):
        return rows
    return [evolve(row, number=logic[row.npu, row.chip].number, numbered_by="Logic ID") for row in rows]


def _map_heading(text: ToolText) -> Line | None:
    return text.search(r"^\s*NPU ID\s.*Chip ID\s.*(Chip Logic ID|Chip Phy-ID)\s.*Chip Name")


def is_list(text: ToolText) -> bool:
    return text.search(r"^\s*Total Count\s*:\s*\d+") is not None


def read_list(text: ToolText) -> HardwareProfile:
    """Cards with their number of chips.

    Raises:
        ToolOutputError: a line is not one of a card, or a card has several chips and no numbers for them.
    """
    total: int | None = None
    cards: list[tuple[Line, int, int | None]] = []
    for line in text.lines:
        match = re.fullmatch(r"\s*(Total Count|Card Count|NPU ID|Chip Count)\s*:\s*(\d+)\s*", line.text)
        if match is None:
            continue  # product names and serial numbers, on some boards
        value = int(match[2])
        if match[1] in ("Total Count", "Card Count"):
            total = value
        elif match[1] == "NPU ID":
            cards.append((line, value, None))
        elif not cards or cards[-1][2] is not None:
            raise text.error(line, "an NPU ID before this chip count")
        else:
            cards[-1] = (*cards[-1][:2], value)
    if total != len(cards):
        raise text.error(
            text.lines[-1], f"the {total} cards that the output counts, and it lists {len(cards)}"
        )
    lost = next((line for line, _, count in cards if count is None), None)
    if lost is not None:
        raise text.error(lost, "a chip count below this NPU ID")
    rows = [NpuRow(line=line, npu=npu, chip=chip) for line, npu, count in cards for chip in range(count or 1)]
    devices, notes = accelerators(text, rows)
    return build_profile(devices, sources=[text.source], notes=[f"{_LEFT_OUT}, nor names", *notes])
