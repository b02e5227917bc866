"""``xpu-smi -q``: ``key : value`` lines below a line ``XPU ADDRESS``, in sections that are indented."""

from __future__ import annotations

import re

from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import (
    UNCOUNTED,
    Line,
    ToolText,
    build_profile,
    bus_address,
    is_masked,
    mebibytes,
)
from sage_infer_hal.detection.sections import entries
from sage_infer_hal.detection.text import UNKNOWN_TEXTS

from sage_infer_kunlunxin.xpu import known_serial, on_boards, sources, xpu

__all__ = ["is_query", "read_query"]

_DEVICE = re.compile(r"XPU\s+([0-9a-fA-FxX*]{4,8}:[0-9a-fA-FxX*]{2}:[0-9a-fA-FxX*]{2}\.[0-9xX*])\s*")
_ATTACHED = r"Attached XPUs\s*:\s*(\d+)"
_BUS, _MEMORY = "PCI/Bus Id", "Memory Usage/Total"
_KEYS = {"Product Name", "Serial Number", "XPU UUID", "Minor Number", _BUS, _MEMORY}

Block = dict[str, tuple[Line, str]]


def is_query(text: ToolText) -> bool:
    return any(_DEVICE.fullmatch(line.text) for line in text.lines)


def read_query(text: ToolText) -> HardwareProfile:
    """The devices that are described.

    Raises:
        ToolOutputError: a key is repeated for a device, a value does not match its key, or the number is missing.
    """
    blocks: list[tuple[Line, list[Line]]] = []
    for line in text.lines:
        if _DEVICE.fullmatch(line.text):
            blocks.append((line, []))
        elif blocks:
            blocks[-1][1].append(line)
    attached = text.search(_ATTACHED)
    counted = re.search(_ATTACHED, attached.text) if attached else None
    total = int(counted[1]) if counted else None
    described = [(line, _block(text, lines)) for line, lines in blocks]
    devices = on_boards(
        [
            _device(text, line, block, position if total == len(blocks) else None)
            for position, (line, block) in enumerate(described)
        ],
        [known_serial(_known(block, "Serial Number")) for _, block in described],
    )
    notes = [] if total is not None else [UNCOUNTED]
    if total is not None and total != len(devices):
        notes.append(f"{total} XPUs are attached, and this output describes {len(devices)}")
    return build_profile(devices, sources=sources(text), notes=notes)


def _block(text: ToolText, lines: list[Line]) -> Block:
    block: Block = {}
    for entry in entries(lines):
        # A section's total comes first; where it does not, the head of another section was lost.
        if entry.path in _KEYS and (entry.path != _MEMORY or entry.first):
            if entry.path in block:
                raise text.error(entry.line, f"{entry.path} once for a device")
            block[entry.path] = (entry.line, entry.value)
    return block


def _device(text: ToolText, line: Line, block: Block, position: int | None) -> AcceleratorDescriptor:
    heading = _DEVICE.fullmatch(line.text)
    bus = bus_address(heading[1]) if heading else None
    if (
        (printed := _known(block, _BUS)) is not None
        and not is_masked(printed)
        and bus_address(printed) != bus
    ):
        raise text.error(block[_BUS][0], f"the bus id of the heading, {heading[1] if heading else '?'}")
    minor = _known(block, "Minor Number")
    if minor is not None and not minor.isdecimal():
        raise text.error(block["Minor Number"][0], "a number")
    index = int(minor) if minor is not None else position
    if index is None:
        raise text.error(line, "a Minor Number below, as not all XPUs are described")
    memory = None
    if (total := _known(block, _MEMORY)) is not None and not is_masked(total):
        match = re.fullmatch(r"(\d+)\s*MiB", total)
        if match is None:
            raise text.error(block[_MEMORY][0], "a total in MiB")
        memory = mebibytes(int(match[1]))
    return xpu(
        index,
        _known(block, "Product Name"),
        uuid=_known(block, "XPU UUID"),
        bus=bus,
        memory_bytes=memory,
    )


def _known(block: Block, key: str) -> str | None:
    value = block[key][1] if key in block else ""
    return None if value.lower() in UNKNOWN_TEXTS else value
