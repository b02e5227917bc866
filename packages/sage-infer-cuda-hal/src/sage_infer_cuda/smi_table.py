"""``nvidia-smi``: the table with two or three lines per GPU, and the table of MIG devices below it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import evolve, frozen
from sage_infer.schemas import AcceleratorDescriptor, AcceleratorPartition, HardwareProfile
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

from sage_infer_cuda.capability import is_unified
from sage_infer_cuda.chips import described
from sage_infer_cuda.failures import LOST, failure_notes

__all__ = ["has_table", "read_table"]

_NAME = re.compile(r"GPU\s+(Fan\s+)?Name\b.*")
_MIG = re.compile(r"MIG devices:")
_PROCESSES = re.compile(r"Processes:")
_USAGE = re.compile(r"(\d+)\s*MiB\s*/\s*(\d+)\s*MiB")
_LAST_STATE = re.compile(r"\s+(On|Off|N/A|Enabled|Disabled|WDDM|TCC|MCDM|ERR!)$")

Group = list[tuple[Line, list[str]]]


@frozen
class _Heading:
    """Number of cells per line, and the positions of name, bus id and memory."""

    cells: tuple[int, ...]
    bus: int
    memory: tuple[int, int]


def has_table(text: ToolText) -> bool:
    """Whether the text has the heading of the table."""
    return any(any(_NAME.fullmatch(cell) for cell in cells) for _, cells in text.rows())


def read_table(text: ToolText) -> HardwareProfile:
    """The GPUs of the table, with their MIG devices.

    Raises:
        ToolOutputError: lines do not fit the heading, a GPU's lines are cut, or there is no GPU.
    """
    heading: _Heading | None = None
    rows: dict[int, AcceleratorDescriptor | None] = {}
    parts: dict[int, list[AcceleratorPartition]] = {}
    notes: list[str] = []
    buses: set[str] = set()
    part = "gpus"
    for group in _groups(text):
        line, cells = group[0]
        if _PROCESSES.match(cells[0]):
            part = "processes"
        elif _MIG.match(cells[0]):
            part = "mig"
        elif part == "processes" or cells[0].startswith("NVIDIA-SMI"):
            continue
        elif any(_NAME.fullmatch(cell) for cell in cells):
            heading = _heading(text, group)
        elif part == "mig":
            _mig_device(text, group, rows, parts)
        elif heading is None:
            raise text.error(line, "the heading with GPU and Name above the GPUs")
        else:
            index, device = _device(text, heading, group, notes)
            if index in rows:
                raise text.error(line, f"one row for GPU {index}")
            if device is not None and device.pci_address in buses:
                raise text.error(line, "a bus id that no other GPU has")
            rows[index] = device
            buses.update([device.pci_address] if device is not None and device.pci_address else ())
    need_rows(text, rows, "a GPU")
    devices = [evolve(d, partitions=parts.get(d.index, ())) for d in rows.values() if d is not None]
    notes += gap_notes(rows, "GPUs")
    notes += failure_notes(text)
    if part != "processes":
        notes.append(NO_PROCESSES)
    return build_profile(devices, sources=[text.source], notes=notes)


def _groups(text: ToolText) -> list[Group]:
    """Lines with cells, cut at the rules between them.

    Raises:
        ToolOutputError: the text ends within a table.
    """
    groups: list[Group] = []
    group: Group = []
    for line in text.lines:
        if not line.text.strip().startswith(("|", "+")):
            if group:
                raise text.error(line, "the rest of the table's row above")
            if line.text.strip().endswith("|"):
                text.cells(line)
            continue
        cells = text.cells(line)
        if cells is not None:
            group.append((line, cells))
        elif group and not _is_blank_row(line):
            groups.append(group)
            group = []
        elif group:
            group.append((line, [""] * (line.text.count("|") - 1)))
    if group:
        raise text.error(group[-1][0], "a rule below this row: the table is cut")
    return groups


def _is_blank_row(line: Line) -> bool:
    return re.fullmatch(r"\s*\|[| ]*\|\s*", line.text) is not None


def _heading(text: ToolText, group: Group) -> _Heading:
    first = group[0][1]
    bus = next((place for place, cell in enumerate(first) if cell.startswith("Bus-Id")), None)
    places = {cell: (row, place) for row, (_, cells) in enumerate(group) for place, cell in enumerate(cells)}
    memory = places.get("Memory-Usage")
    if bus is None or memory is None or memory[0] == 0 or not _NAME.fullmatch(first[0]):
        raise text.error(group[-1][0], "a heading with GPU, Name and Bus-Id, and Memory-Usage below")
    return _Heading(tuple(len(cells) for _, cells in group), bus, memory)


def _device(
    text: ToolText, heading: _Heading, group: Group, notes: list[str]
) -> tuple[int, AcceleratorDescriptor | None]:
    if tuple(len(cells) for _, cells in group) != heading.cells:
        raise text.error(group[0][0], f"{len(heading.cells)} lines of {heading.cells[0]} cells for a GPU")
    line, cells = group[0]
    match = re.fullmatch(r"(\d+)\s+(\S.*)", cells[0])
    if match is None or not _LAST_STATE.search(match[2]):
        raise text.error(line, "the GPU's number, its name, and a persistence mode")
    index, name = int(match[1]), _LAST_STATE.sub("", match[2]).strip()
    row, place = heading.memory
    where, below = group[row]
    usage = below[place]
    lost = next((cell for _, row_cells in group for cell in row_cells if LOST.fullmatch(cell)), None)
    if lost is not None or "ERR!" in name or "ERR!" in usage:
        notes.append(f"cuda:{index} is left out: nvidia-smi prints {lost or 'ERR!'!r} for it")
        return index, None
    if not re.search("[A-Za-z]", name):
        raise text.error(line, "the GPU's number and its name")
    shown = cells[heading.bus].split()
    bus = bus_address(shown[0]) if shown else None
    if bus is None and (not shown or (shown[0].lower() not in UNKNOWN_TEXTS and not is_masked(shown[0]))):
        raise text.error(line, "a bus id such as 00000000:3B:00.0")
    found = _USAGE.fullmatch(usage)
    if found is None and usage.lower() not in UNKNOWN_TEXTS - {""} and not _is_unknown_pair(usage):
        raise text.error(where, "memory as used MiB / total MiB")
    device = AcceleratorDescriptor(
        hardware_backend="cuda",
        vendor="NVIDIA",
        model=name,
        index=index,
        pci_address=bus,
        memory_bytes=mebibytes(int(found[2])) if found else None,
    )
    if name.endswith("..."):
        notes.append(f"the name of cuda:{index} is shortened; `nvidia-smi -L` shows it whole")
    if device.memory_bytes is None and is_unified(name):
        notes.append(
            f"cuda:{index} shares the host's memory (unified memory); it has none of its own to show"
        )
    return index, described(device, notes=notes)


def _is_unknown_pair(usage: str) -> bool:
    return all(part.strip().lower() in UNKNOWN_TEXTS - {""} or is_masked(part) for part in usage.split("/"))


def _mig_device(
    text: ToolText,
    group: Group,
    rows: dict[int, AcceleratorDescriptor | None],
    parts: dict[int, list[AcceleratorPartition]],
) -> None:
    """One MIG device: GPU, GI, CI and MIG numbers in the first cell, and the memory in the second."""
    line, cells = group[0]
    if cells[0].startswith(("GPU", "No MIG devices")):
        return
    numbers = cells[0].split()
    usage = _USAGE.fullmatch(cells[1]) if len(cells) > 1 else None
    if (
        len(numbers) != 4
        or not all(map(str.isdecimal, numbers))
        or usage is None
        or int(numbers[0]) not in rows
    ):
        raise text.error(line, "numbers of GPU, GI, CI and MIG device, and memory as used MiB / total MiB")
    found: Sequence[AcceleratorPartition] = parts.setdefault(int(numbers[0]), [])
    if int(numbers[3]) in [part.index for part in found]:
        raise text.error(line, f"one row for MIG device {numbers[3]} of GPU {numbers[0]}")
    parts[int(numbers[0])].append(
        AcceleratorPartition(index=int(numbers[3]), memory_bytes=mebibytes(int(usage[2])))
    )
