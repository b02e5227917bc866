"""XPUs as descriptors, and common parts of every output of ``xpu-smi``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import evolve
from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor
from sage_infer_hal.detection import Line, ToolText, board_names, bus_address, find_chip, is_masked, mebibytes
from sage_infer_hal.detection.text import UNKNOWN_TEXTS

from sage_infer_kunlunxin.chips import CHIPS

__all__ = [
    "TOOL",
    "VERSION",
    "endpoint",
    "known_serial",
    "on_boards",
    "read_bus",
    "read_total",
    "refuse_intel",
    "sources",
    "xpu",
]

TOOL = "xpu-smi"
VERSION = r"(?:XPU-RT Version|Runtime Version)\s*:\s*(\d\S*)"
_DRIVER = r"Driver Version\s*:\s*(\d\S*)"
_PAIR = re.compile(r"(\S+?)\s*(?:MiB|MB)?\s*/\s*(\S+?)\s*(?:MiB|MB)")


def endpoint(index: int) -> str:
    """Return the endpoint name of a device in links."""
    return f"kunlunxin:{index}"


def xpu(
    index: int,
    name: str | None,
    *,
    uuid: str | None = None,
    bus: str | None = None,
    memory_bytes: int | None = None,
) -> AcceleratorDescriptor:
    """A device as ``xpu-smi`` counts devices."""
    chip = None if name is None else find_chip(CHIPS, name, memory_bytes)
    return AcceleratorDescriptor(
        hardware_backend="kunlunxin",
        vendor="Kunlunxin",
        model=name or UNKNOWN_MODEL,
        index=index,
        uuid=None if uuid is None or is_masked(uuid) else uuid,
        pci_address=bus,
        memory_bytes=memory_bytes,
        **(chip.fields() if chip else {}),
    )


def known_serial(printed: str | None) -> str | None:
    """Return a card's serial number; None if unknown or masked."""
    return None if printed is None or is_masked(printed) or printed.lower() in UNKNOWN_TEXTS else printed


def on_boards(
    devices: Sequence[AcceleratorDescriptor], serials: Sequence[str | None]
) -> list[AcceleratorDescriptor]:
    """The devices with a name for the boards that several of them share: a K200 is two devices of one serial number."""
    return [evolve(d, board=board) for d, board in zip(devices, board_names(serials), strict=True)]


def read_bus(text: ToolText, line: Line, printed: str) -> str | None:
    """The PCI address; None if unknown or masked.

    Raises:
        ToolOutputError: it is malformed.
    """
    bus = bus_address(printed)
    if bus is None and printed.lower() not in UNKNOWN_TEXTS and not is_masked(printed):
        raise text.error(line, "a bus id such as 0000:52:00.0")
    return bus


def read_total(text: ToolText, line: Line, printed: str) -> int | None:
    """Bytes of ``used / total``; None if the total is unknown or masked.

    Raises:
        ToolOutputError: the value has another form.
    """
    match = _PAIR.fullmatch(printed)
    total = match[2] if match else printed
    if total.isdecimal():
        return mebibytes(int(total))
    if total.lower() not in UNKNOWN_TEXTS - {""} and not is_masked(total):
        raise text.error(line, "memory as used / total")
    return None


def refuse_intel(text: ToolText) -> None:
    """Reject output of Intel's tool with the same name.

    Raises:
        ToolOutputError: the output is from Intel's tool.
    """
    line = text.search(r"Intel|Device Information|SOC UUID|DRM Device|\"device_list\"")
    if line is not None:
        raise text.error(line, "an output of Kunlunxin's xpu-smi; this one is of Intel's tool of that name")


def sources(text: ToolText) -> list[str]:
    """The runtime, whose version the tool prints as its own, and the driver."""
    line = text.search(_DRIVER)
    found = re.search(_DRIVER, line.text) if line else None
    return [text.source] if found is None else [text.source, f"Kunlunxin driver {found[1]}"]
