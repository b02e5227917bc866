"""MLUs as descriptors, and common parts of every output of ``cnmon``."""

from __future__ import annotations

from collections.abc import Iterable

from sage_infer.schemas import UNKNOWN_MODEL, AcceleratorDescriptor
from sage_infer_hal.detection import find_chip, is_masked

from sage_infer_cambricon.chips import CHIPS

__all__ = ["TOOL", "VERSION", "board_notes", "endpoint", "mlu", "sources"]

TOOL = "cnmon"
VERSION = r"CNMON\s+v?(\d\S*?)(?:=|\s|$)"


def endpoint(index: int) -> str:
    """Return the endpoint name of a device in links."""
    return f"cambricon:{index}"


def mlu(
    index: int,
    name: str | None,
    *,
    uuid: str | None = None,
    bus: str | None = None,
    memory_bytes: int | None = None,
) -> AcceleratorDescriptor:
    """A device as ``cnmon`` counts devices, which is a chip: an MLU370-X8 card has two."""
    chip = None if name is None else find_chip(CHIPS, name, memory_bytes)
    return AcceleratorDescriptor(
        hardware_backend="cambricon",
        vendor="Cambricon",
        model=name or UNKNOWN_MODEL,
        index=index,
        uuid=None if uuid is None or is_masked(uuid) else uuid,
        pci_address=bus,
        memory_bytes=memory_bytes,
        **(chip.fields() if chip else {}),
    )


def board_notes(devices: Iterable[AcceleratorDescriptor]) -> list[str]:
    """A note if cards have two devices each."""
    if any(device.model == "MLU370-X8" for device in devices):
        return ["an MLU370-X8 card is two devices; `lspci -tv` shows which two share a card"]
    return []


def sources(source: str, driver: str | None) -> list[str]:
    """Return the tool and the driver with the versions in the output."""
    return [source] if driver is None else [source, f"Cambricon driver {driver.removeprefix('v')}"]
