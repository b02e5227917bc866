"""``cnmon info -j``: the file ``cnmon_info.json`` that it writes.

There is no public recording of it. The keys are those used by two public readers (gpustack's detector, FlagPerf's
checks): ``CnmonInfo`` with ``CardNum``, ``ProductName``, ``UUID``, ``PhysicalMemUsage.Total`` in MiB, and ``PCI`` with
``DomainID``, ``Bus``, ``Device`` and ``Function`` in hex.
"""

from __future__ import annotations

from typing import Any

from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import ToolText, build_profile, bus_address, json_text, mebibytes, need_rows
from sage_infer_hal.detection.json_text import integer, items, load
from sage_infer_hal.detection.text import UNKNOWN_TEXTS

from sage_infer_cambricon.mlu import board_notes, mlu

__all__ = ["is_json", "read_json"]


def is_json(text: ToolText) -> bool:
    return json_text.is_json(text) and text.search('"CnmonInfo"') is not None


def read_json(text: ToolText) -> HardwareProfile:
    """The cards of the document.

    Raises:
        ToolOutputError: a member is malformed.
    """
    data = load(text)
    cards = items(text, data.get("CnmonInfo") if isinstance(data, dict) else None, "CnmonInfo")
    need_rows(text, cards, "CnmonInfo")
    devices = [_device(text, card) for card in cards]
    return build_profile(devices, sources=["cnmon info -j"], notes=board_notes(devices))


def _device(text: ToolText, card: Any) -> AcceleratorDescriptor:
    if not isinstance(card, dict):
        raise text.error(None, "each member of CnmonInfo must be an object")
    index = integer(text, card.get("CardNum"), "CardNum")
    name, uuid = (_known(card.get(key)) for key in ("ProductName", "UUID"))
    memory = _part(card, "PhysicalMemUsage").get("Total")
    return mlu(
        index,
        name,
        uuid=uuid,
        bus=_bus(text, _part(card, "PCI")),
        memory_bytes=None
        if _known(memory) is None
        else mebibytes(integer(text, memory, "PhysicalMemUsage.Total")),
    )


def _bus(text: ToolText, pci: dict[str, Any]) -> str | None:
    parts = [pci.get(key) for key in ("DomainID", "Bus", "Device", "Function")]
    if any(_known(part) is None for part in parts):
        return None
    domain, number, device, function = (f"{part:x}" if isinstance(part, int) else str(part) for part in parts)
    found = bus_address(f"{domain}:{number:0>2}:{device:0>2}.{function}")
    if found is None:
        raise text.error(None, f"PCI of a card must be the parts of a bus id in hex, and is {str(pci)[:60]}")
    return found


def _part(card: dict[str, Any], key: str) -> dict[str, Any]:
    value = card.get(key)
    return value if isinstance(value, dict) else {}


def _known(value: Any) -> str | None:
    return None if value is None or str(value).strip().lower() in UNKNOWN_TEXTS else str(value).strip()
