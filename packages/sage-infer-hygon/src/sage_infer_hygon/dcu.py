"""DCUs: facts of a card by key, as ``hy-smi`` prints them in text, JSON or CSV."""

from __future__ import annotations

import re
from collections.abc import Mapping

from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor
from sage_infer_hal.detection import Line, ToolText, bus_address, find_chip, is_masked
from sage_infer_hal.detection.text import UNKNOWN_TEXTS

from sage_infer_hygon.chips import CHIPS

__all__ = ["LABEL", "TOOL", "VERSION", "Facts", "dcu", "describe", "endpoint", "refuse_amd", "sources"]

TOOL = "hy-smi"
VERSION = r"(?:ROCM|HY|DCU)-SMI version:?\s*v?(\d\S*)"
LABEL = r"(?:HCU|DCU)"
"""Words for a device in Hygon's tools; in AMD's ``rocm-smi``, their origin, it is GPU."""

_DRIVER = r"(?i)Driver Version:\s*(\d\S*)"
_HYGON = re.compile(r"C-3000|Haiguang|Hygon|Higon", re.IGNORECASE)
_MEMORY = re.compile(r"vram total memory \((b|mib)\)")
_NUMA = "(topology) numa node"
_MIB = 1024 * 1024

Facts = Mapping[str, tuple[Line | None, str]]
"""Key in lower case → where it stands, and its value as printed."""


def endpoint(index: int) -> str:
    """Return the endpoint name of a device in links."""
    return f"hygon:{index}"


def dcu(index: int) -> AcceleratorDescriptor:
    """A device of which only the number is known."""
    return AcceleratorDescriptor(hardware_backend="hygon", vendor="Hygon", model=UNKNOWN_MODEL, index=index)


def refuse_amd(text: ToolText, *, labels: bool) -> None:
    """Reject output of AMD's tool with the same name; ``labels`` means that devices are labelled GPU.

    Raises:
        ToolOutputError: the output names AMD, or labels devices GPU without naming Hygon.
    """
    vendor = text.search(r"(?i)card vendor")
    if vendor is not None and _HYGON.search(vendor.text):
        return
    line = text.search(r"\bAMD\b|Advanced Micro Devices")
    if line is None and labels:
        line = text.search(r"\bGPU\b|\bGPU\[?\d")
    if line is not None:
        raise text.error(
            line, "DCU or HCU: this is the output of AMD's rocm-smi, and no Hygon device is in it"
        )


def sources(text: ToolText) -> list[str]:
    """Return the tool and the driver with the versions in the output."""
    line = text.search(_DRIVER)
    found = re.search(_DRIVER, line.text) if line else None
    return [text.source] if found is None else [text.source, f"Hygon driver {found[1]}"]


def describe(text: ToolText, cards: Mapping[int, Facts]) -> tuple[list[AcceleratorDescriptor], list[str]]:
    """Devices of the cards, and notes on missing facts.

    Raises:
        ToolOutputError: a value does not match its key, or the card is another vendor's.
    """
    devices = [_describe(text, index, facts) for index, facts in sorted(cards.items())]
    notes = []
    missing = {
        "names": all(device.model == UNKNOWN_MODEL for device in devices),
        "memory": all(device.memory_bytes is None for device in devices),
        "bus ids": all(device.pci_address is None for device in devices),
    }
    absent = [what for what, is_missing in missing.items() if is_missing]
    if devices and absent:
        notes.append(f"this output does not show: {', '.join(absent)}")
    if any(device.model == "BW" for device in devices):
        notes.append(
            "the tool names the series BW only, so the chip (BW1000, BW1100, BW150) and its rates are open"
        )
    if any("available memory size (mib)" in facts for facts in cards.values()):
        notes.append("available memory is the free memory, not the device's total")
    return devices, notes


def _describe(text: ToolText, index: int, facts: Facts) -> AcceleratorDescriptor:
    vendor = _known(facts, "card vendor")
    if vendor is not None and _HYGON.search(vendor) is None and not is_masked(vendor):
        raise text.error(facts["card vendor"][0], f"a card that Hygon made, not {vendor[:40]!r}")
    name = _known(facts, "card series") or _known(facts, "product name")
    unique = _known(facts, "unique id")
    memory = _memory(text, facts)
    chip = None if name is None else find_chip(CHIPS, name, memory)
    fields = chip.fields() if chip else {}
    if (architecture := _known(facts, "gfx version")) is not None:
        fields["compute_capability"] = architecture
    return AcceleratorDescriptor(
        hardware_backend="hygon",
        vendor="Hygon",
        model=name or UNKNOWN_MODEL,
        index=index,
        uuid=None if unique is None or is_masked(unique) else unique,
        pci_address=_bus(text, facts),
        numa_node=_node(text, facts),
        memory_bytes=memory,
        **fields,
    )


def _memory(text: ToolText, facts: Facts) -> int | None:
    for key, (line, value) in facts.items():
        match = _MEMORY.fullmatch(key)
        if match is not None and value.lower() not in UNKNOWN_TEXTS and not is_masked(value):
            if not value.isdecimal():
                raise text.error(line, f"a whole number for {key!r}")
            return int(value) * (_MIB if match[1] == "mib" else 1) or None
    return None


def _bus(text: ToolText, facts: Facts) -> str | None:
    """BW cards append serial number and slot: ``0000:09:00.0 --> SN: … --> OAM ID: 1``."""
    value = _known(facts, "pci bus")
    if value is None or is_masked(value.partition("-->")[0]):
        return None
    address = bus_address(value.partition("-->")[0])
    if address is None:
        raise text.error(facts["pci bus"][0], "a bus id such as 0000:09:00.0")
    return address


def _node(text: ToolText, facts: Facts) -> int | None:
    value = _known(facts, _NUMA)
    if value is None or value == "-1":
        return None
    if not value.isdecimal():
        raise text.error(facts[_NUMA][0], "the number of a NUMA node")
    return int(value)


def _known(facts: Facts, key: str) -> str | None:
    value = facts[key][1] if key in facts else ""
    return None if value.lower() in UNKNOWN_TEXTS else value
