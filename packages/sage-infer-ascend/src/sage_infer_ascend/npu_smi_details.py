"""``npu-smi info -t board | common | memory | usages``: ``key : value`` lines about one card or chip."""

from __future__ import annotations

import re

from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import Line, ToolText, build_profile, bus_address, find_chip, mebibytes
from sage_infer_hal.detection.text import UNKNOWN_TEXTS

from sage_infer_ascend.chips import CHIPS
from sage_infer_ascend.npu_rows import sources

__all__ = ["NO_NUMBER", "is_details", "read_details"]

_LINE = re.compile(r"\s*([A-Z][^:|]*?)\s*:\s*(.*?)\s*")
_MARKS = (
    r"^\s*(HBM Capacity\(MB\)|DDR Capacity\(MB\)|PCIe Bus Info|PCI Device ID"
    r"|Aicore Count|Aicore Usage Rate\(%\)|NPU Name)\s*:"
)
_FAMILIES = {"d100": "310", "d500": "310P", "d801": "910", "d802": "910B", "d803": "910C"}
NO_NUMBER = "the output does not say which NPU it describes; it is shown as number 0"

Block = dict[str, tuple[Line, str]]


def is_details(text: ToolText) -> bool:
    return text.search(_MARKS) is not None


def read_details(text: ToolText) -> HardwareProfile:
    """The described chips; the board's controller is left out.

    Raises:
        ToolOutputError: no chip is described, or a value does not match its key.
    """
    card: Block = {}
    devices: list[AcceleratorDescriptor] = []
    notes: list[str] = []
    for block in _blocks(text):
        for key in ("NPU ID", "Chip Count"):
            if key in block:
                card[key] = block[key]
        if block.get("Chip Name", (None, ""))[1].lower() != "mcu" and any(
            re.match(_MARKS, f"{key} :") for key in block
        ):
            device, more = _device(text, card, block)
            devices.append(device)
            notes += [note for note in more if note not in notes]
    if not devices:
        raise text.error(None, "no chip is described")
    return build_profile(devices, sources=sources(text), notes=notes)


def _blocks(text: ToolText) -> list[Block]:
    """Key and value lines, cut where a line is blank and where a key comes again."""
    blocks: list[Block] = []
    previous = -1
    for line in text.lines:
        match = _LINE.fullmatch(line.text)
        if match is None:
            raise text.error(line, "a key and its value")
        if not blocks or line.number > previous + 1 or match[1] in blocks[-1]:
            blocks.append({})
        blocks[-1][match[1]] = (line, match[2])
        previous = line.number
    return blocks


def _device(text: ToolText, card: Block, block: Block) -> tuple[AcceleratorDescriptor, list[str]]:
    notes: list[str] = []
    index = _index(text, card, block, notes)
    # A product name is the board's, such as A310-50-C00MM304A1. Newer drivers print the chip's too.
    is_newer = not {"NPU Name", "Chip Version", "Main Board ID"}.isdisjoint(block)
    name = _known(block, "Chip Name") or (None if is_newer else _known(block, "Product Name"))
    bus = None
    if "PCIe Bus Info" in block and _known(block, "PCIe Bus Info"):
        line, printed = block["PCIe Bus Info"]
        bus = bus_address(printed)
        if bus is None:
            raise text.error(line, "a bus id such as 0000:C1:00.0")
    family = _FAMILIES.get((_known(block, "PCI Device ID") or "").lower().removeprefix("0x"))
    if family:
        notes.append(f"Ascend {family} family, by the PCI device id")
    if _is_a3(block):
        notes.append(f"a die of an Atlas A3, by its NPU Name {block['NPU Name'][1]}: each card has two")
    memory, note = _memory(text, block)
    chip = find_chip(CHIPS, f"910_{block['NPU Name'][1]}", memory) if _is_a3(block) else None
    notes += [note] if note else []
    return (
        AcceleratorDescriptor(
            hardware_backend="ascend",
            vendor="Huawei",
            model=name or UNKNOWN_MODEL,
            index=index,
            pci_address=bus,
            memory_bytes=memory,
            board=f"NPU {_number(text, card, 'NPU ID')}" if _is_a3(block) else None,
            **(chip.fields() if chip else {}),
        ),
        notes,
    )


def _is_a3(block: Block) -> bool:
    """Whether it is a die of an Atlas A3, which are called Ascend910 and told by a number such as 9392."""
    return (
        _known(block, "Chip Name") == "Ascend910"
        and re.fullmatch(r"93\d\d", _known(block, "NPU Name") or "") is not None
    )


def _memory(text: ToolText, block: Block) -> tuple[int | None, str]:
    """Return HBM, or DDR on a chip without HBM, which the lines after the position of HBM distinguish."""
    hbm, ddr = _number(text, block, "HBM Capacity(MB)"), _number(text, block, "DDR Capacity(MB)")
    memory = None
    if hbm is not None:
        memory = mebibytes(hbm) or mebibytes(ddr or 0)
    elif ddr and not any(key.startswith("HBM") for key in block):
        if not {"DDR Bandwidth Usage Rate(%)", "Chip ID"} & block.keys():
            return None, f"DDR of {ddr} MB is shown, but not whether the chip also has HBM"
        memory = mebibytes(ddr)
    return memory, "" if memory else "no memory size is shown"


def _index(text: ToolText, card: Block, block: Block, notes: list[str]) -> int:
    npu, chip = _number(text, card, "NPU ID"), _number(text, block, "Chip ID")
    count = _number(text, card, "Chip Count") or (2 if _is_a3(block) else 1)
    if npu is None:
        notes.append(NO_NUMBER)
        return 0
    if count == 1:
        return npu
    if chip is None:
        raise text.error(None, f"it describes a card of {count} chips, but not which of them")
    notes.append("this output shows no logic ids; devices are counted by NPU and chip")
    return npu * count + chip


def _known(block: Block, key: str) -> str | None:
    value = block[key][1] if key in block else ""
    return None if value.lower() in UNKNOWN_TEXTS else value


def _number(text: ToolText, block: Block, key: str) -> int | None:
    value = _known(block, key)
    if value is None:
        return None
    if not value.isdecimal():
        raise text.error(block[key][0], "a whole number")
    return int(value)
