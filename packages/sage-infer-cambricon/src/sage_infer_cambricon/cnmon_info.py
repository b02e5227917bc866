"""``cnmon info``: ``key : value`` lines below a line ``Card N``, in sections that are indented."""

from __future__ import annotations

import re

from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import (
    UNCOUNTED,
    Line,
    ToolText,
    build_profile,
    bus_address,
    gap_notes,
    is_masked,
    mebibytes,
)
from sage_infer_hal.detection.sections import entries
from sage_infer_hal.detection.text import UNKNOWN_TEXTS

from sage_infer_cambricon.mlu import board_notes, mlu, sources

__all__ = ["is_info", "read_info"]

_CARD = re.compile(r"Card\s+(\d+)\s*")
_PCI = ("PCI/Domain ID", "PCI/Bus num", "PCI/Device", "PCI/Function")
_MEMORY = "Physical Memory Usage/Total"
_KEYS = {"Product Name", "UUID", "Driver", _MEMORY, *_PCI}
_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}|[0-9A-Fa-f]{32}")

Block = dict[str, tuple[Line, str]]


def is_info(text: ToolText) -> bool:
    return any(_CARD.fullmatch(line.text) for line in text.lines)


def read_info(text: ToolText) -> HardwareProfile:
    """The cards that are described.

    Raises:
        ToolOutputError: a key is repeated for a card, or a value does not match its key.
    """
    cards = _cards(text)
    devices, notes = [], []
    for index, block in cards.items():
        device, missing = _device(text, index, block)
        devices.append(device)
        if missing:
            notes.append(f"card {index}: the recording does not show {', '.join(missing)}")
    notes += [UNCOUNTED, *gap_notes(cards, "cards")]
    drivers = {block["Driver"][1] for block in cards.values() if "Driver" in block}
    driver = drivers.pop() if len(drivers) == 1 else None
    return build_profile(devices, sources=sources(text.source, driver), notes=[*notes, *board_notes(devices)])


def _cards(text: ToolText) -> dict[int, Block]:
    lines: dict[int, list[Line]] = {}
    current: list[Line] = []  # lines before the first card
    for line in text.lines:
        card = _CARD.fullmatch(line.text)
        if card is None:
            current.append(line)
        elif int(card[1]) in lines:
            raise text.error(line, f"card {card[1]} once")
        else:
            current = lines[int(card[1])] = []
    for index, of_card in lines.items():
        if not of_card:
            raise text.error(text.lines[-1], f"lines of card {index} below its number")
    return {index: _block(text, of_card) for index, of_card in lines.items()}


def _block(text: ToolText, lines: list[Line]) -> Block:
    block: Block = {}
    for entry in entries(lines):
        # Each section starts with its total; otherwise the head of another section is missing.
        if entry.path in _KEYS and (entry.path != _MEMORY or entry.first):
            if entry.path in block:
                raise text.error(entry.line, f"{entry.path} once for a card")
            block[entry.path] = (entry.line, entry.value)
    return block


def _device(text: ToolText, index: int, block: Block) -> tuple[AcceleratorDescriptor, list[str]]:
    missing = []
    name = _known(block, "Product Name")
    uuid = _known(block, "UUID")
    if uuid is not None and _UUID.fullmatch(uuid) is None and not is_masked(uuid):
        raise text.error(block["UUID"][0], "a UUID")
    memory = None
    if (total := _known(block, _MEMORY)) is not None:
        match = re.fullmatch(r"(\d+)\s*MiB", total)
        if match is None and not is_masked(total):
            raise text.error(block[_MEMORY][0], "a total in MiB")
        memory = mebibytes(int(match[1])) if match else None
    bus = None
    parts = [_known(block, key) for key in _PCI]
    if all(part is not None for part in parts):
        domain, number, device, function = (str(part) for part in parts)
        bus = bus_address(f"{domain}:{number:0>2}:{device:0>2}.{function}")
        if bus is None and not any(is_masked(str(part)) for part in parts):
            raise text.error(block[_PCI[1]][0], "the parts of a bus id in hex")
    for what, value in (("its name", name), ("its memory", memory), ("its bus id", bus), ("its UUID", uuid)):
        if value is None:
            missing.append(what)
    return mlu(index, name, uuid=uuid, bus=bus, memory_bytes=memory), missing


def _known(block: Block, key: str) -> str | None:
    value = block[key][1] if key in block else ""
    return None if value.lower() in UNKNOWN_TEXTS else value
