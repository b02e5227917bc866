"""NPUs as ``npu-smi`` counts them, and the number that addresses each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from attrs import frozen
from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor
from sage_infer_hal.detection import Line, ToolText, find_chip

from sage_infer_ascend.chips import CHIPS, DIE_OF_TWO

__all__ = ["TOOL", "VERSION", "NpuRow", "accelerators", "ascend", "sources"]

TOOL = "npu-smi"
VERSION = r"npu-smi\s+[vV]?(\d\S*)"
_DRIVER = r"(?:npu-smi.*\sVersion|Software Version\s*)\s*:\s*(\d\S*)"


@frozen(kw_only=True)
class NpuRow:
    """One chip in an output; None for what the output does not contain.

    Attributes:
        npu: the card ("NPU ID").
        chip: the chip on the card.
        number: the number that the output assigns to the chip.
        numbered_by: that number's heading; empty where it has none.
        physical: its physical id, which link tables of Atlas A3 use.
    """

    line: Line
    npu: int
    chip: int
    number: int | None = None
    numbered_by: str = ""
    physical: int | None = None
    name: str | None = None
    bus: str | None = None
    memory_bytes: int | None = None


def sources(text: ToolText) -> list[str]:
    """Return the tool and the driver with the versions in the output."""
    driver = text.search(_DRIVER)
    found = None if driver is None else re.search(_DRIVER, driver.text)
    return [text.source] if found is None else [text.source, f"Ascend driver {found[1]}"]


def ascend(index: int) -> str:
    """Return the endpoint name of a device in links."""
    return f"ascend:{index}"


def accelerators(text: ToolText, rows: Sequence[NpuRow]) -> tuple[list[AcceleratorDescriptor], list[str]]:
    """Devices of the rows, and notes on missing facts.

    Raises:
        ToolOutputError: a chip is listed twice, or its address number cannot be determined.
    """
    chips_of: dict[int, list[int]] = defaultdict(list)
    for row in rows:
        if row.chip in chips_of[row.npu]:
            raise text.error(row.line, f"one row for chip {row.chip} of NPU {row.npu}")
        chips_of[row.npu].append(row.chip)
    indexes, notes = _indexes(text, rows, chips_of)
    found = []
    for row, index in zip(rows, indexes, strict=True):
        pair = len(chips_of[row.npu]) > 1 or row.physical is not None
        chip = None if row.name is None else find_chip(CHIPS, _chip_name(row.name, pair), row.memory_bytes)
        found.append(
            AcceleratorDescriptor(
                hardware_backend="ascend",
                vendor="Huawei",
                model=row.name or UNKNOWN_MODEL,
                index=index,
                pci_address=row.bus,
                memory_bytes=row.memory_bytes,
                board=f"NPU {row.npu}" if pair else None,
                **(chip.fields() if chip else {}),
            )
        )
    for npu, chips in chips_of.items():
        if len(chips) > 1:
            devices = [ascend(index) for row, index in zip(rows, indexes, strict=True) if row.npu == npu]
            notes.append(f"NPU {npu} has {len(chips)} chips, each a device: {', '.join(devices)}")
    return found, notes


def _chip_name(name: str, pair: bool) -> str:
    """The chip table's name: every die of an Atlas A3 is printed as ``Ascend910``, as the first 910 was too."""
    plain = name.removeprefix("Ascend").strip()
    return DIE_OF_TWO if pair and plain == "910" else plain


def _indexes(
    text: ToolText, rows: Sequence[NpuRow], chips_of: dict[int, list[int]]
) -> tuple[list[int], list[str]]:
    numbers = [row.number for row in rows if row.number is not None]
    if rows and len(numbers) == len(rows):
        heading = rows[0].numbered_by
        if heading == "Phy-ID":
            return numbers, ["devices are numbered by physical id; `npu-smi info -m` shows logic ids"]
        if not heading:
            return numbers, ["the table's heading is missing, so columns are taken by their order"]
        return numbers, []
    if numbers:
        line = next(row.line for row in rows if row.number is None)
        raise text.error(line, "a device number, as in the other rows")
    whole = sorted(chips_of) == list(range(len(chips_of)))
    counts = {len(chips) for chips in chips_of.values()}
    if counts <= {1}:
        note = "this output shows no logic ids; devices are numbered by NPU id"
        return [row.npu for row in rows], [] if whole else [note]
    if whole and len(counts) == 1 and all(sorted(c) == list(range(len(c))) for c in chips_of.values()):
        count = counts.pop()
        note = "this output shows no logic ids; devices are counted by NPU and chip"
        return [row.npu * count + row.chip for row in rows], [note]
    raise text.error(
        rows[0].line, "a logic id for each chip, and this output has none: record `npu-smi info -m` too"
    )
