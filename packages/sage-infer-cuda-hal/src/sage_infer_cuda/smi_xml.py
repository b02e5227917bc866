"""``nvidia-smi -q -x``: devices with memory, PCI address, PCIe link and MIG instances."""

from __future__ import annotations

import re

from sage_infer.schemas import (
    UNKNOWN_MODEL,
    AcceleratorDescriptor,
    AcceleratorPartition,
    HardwareProfile,
    LinkProfile,
)
from sage_infer_hal.detection import ToolText, bus_address, is_masked, mebibytes
from sage_infer_hal.detection.profiles import build_profile
from sage_infer_hal.detection.text import UNKNOWN_TEXTS

from sage_infer_cuda.capability import is_unified
from sage_infer_cuda.chips import described
from sage_infer_cuda.failures import LOST, failure_notes
from sage_infer_cuda.pcie import pcie_links
from sage_infer_cuda.xml_tree import Element, line_error, read_xml

__all__ = ["read_smi_xml"]


def read_smi_xml(text: ToolText) -> HardwareProfile:
    """Devices in the order of the listing, which is the order of indices if all are listed.

    Raises:
        ToolOutputError: the XML is malformed or contains impossible values.
    """
    root = read_xml(text, "nvidia_smi_log")
    devices: list[AcceleratorDescriptor] = []
    links: list[LinkProfile] = []
    notes: list[str] = []
    gpus = root.all("gpu")
    for index, gpu in enumerate(gpus):
        lost = _lost(gpu)
        if lost is not None:
            notes.append(f"cuda:{index} is left out: nvidia-smi prints {lost.text!r} for its {lost.tag}")
            continue
        device = _device(text, gpu, index, notes)
        devices.append(device)
        link = _find(text, gpu, "pci/pci_gpu_link_info")
        if link is not None:
            links += pcie_links(
                f"cuda:{index}",
                generation=_number(text, _find(text, link, "pcie_gen/max_link_gen"), r"(\d+)"),
                width=_number(text, _find(text, link, "link_widths/max_link_width"), r"(\d+)x"),
                source=text.source,
            )
        if device.model == UNKNOWN_MODEL:
            notes.append(f"cuda:{index} has no product name in the recording")
        elif device.memory_bytes is None and is_unified(device.model):
            notes.append(
                f"cuda:{index} shares the host's memory (unified memory); it has none of its own to show"
            )
    attached = _number(text, _find(text, root, "attached_gpus"), r"(\d+)", zero=True)
    if not gpus and attached != 0:
        raise text.error(None, "at least one element gpu")
    if attached is not None and attached != len(gpus):
        notes.append(
            f"the recording reports {attached} attached GPUs but lists {len(gpus)}; "
            "indices count the listed ones"
        )
    notes += failure_notes(text)
    return build_profile(devices, sources=[text.source], links=links, notes=notes)


def _lost(gpu: Element) -> Element | None:
    """Return the first element of a GPU that fell off the bus or must be reset."""
    return next((element for element in gpu.walk() if LOST.fullmatch(element.text)), None)


def _device(text: ToolText, gpu: Element, index: int, notes: list[str]) -> AcceleratorDescriptor:
    pci = _find(text, gpu, "pci/pci_bus_id")
    address = _address(text, gpu, gpu.attributes.get("id"))
    if pci is not None and _known(pci) is not None:
        again = _address(text, pci, pci.text)
        if address is not None and again is not None and again != address:
            raise line_error(text, pci, f"the address {address}, as in the enclosing gpu element")
        address = again or address
    device_id = _find(text, gpu, "pci/pci_device_id")
    # Device and vendor id in one number, such as 233010DE; redacted recordings have zeros for the device.
    digits = re.fullmatch(r"(?:0x)?([0-9A-Fa-f]{4})10DE", _known(device_id) or "")
    return described(
        AcceleratorDescriptor(
            hardware_backend="cuda",
            vendor="NVIDIA",
            model=_known(_find(text, gpu, "product_name")) or UNKNOWN_MODEL,
            index=index,
            uuid=_known(_find(text, gpu, "uuid")),
            pci_address=address,
            memory_bytes=mebibytes(
                _number(text, _find(text, gpu, "fb_memory_usage/total"), r"(\d+) MiB") or 0
            ),
            partitions=_partitions(text, gpu),
        ),
        device_id=int(digits[1], 16) if digits else None,
        architecture=_known(_find(text, gpu, "product_architecture")),
        notes=notes,
    )


def _partitions(text: ToolText, gpu: Element) -> list[AcceleratorPartition]:
    devices = _find(text, gpu, "mig_devices")
    found = []
    for mig in devices.all("mig_device") if devices is not None else []:
        index = _number(text, _find(text, mig, "index"), r"(\d+)", zero=True)
        if index is None:
            raise line_error(text, mig, "an index in the MIG device")
        units = _find(text, mig, "device_attributes/shared/multiprocessor_count")
        found.append(
            AcceleratorPartition(
                index=index,
                uuid=_known(_find(text, mig, "uuid")),
                memory_bytes=mebibytes(
                    _number(text, _find(text, mig, "fb_memory_usage/total"), r"(\d+) MiB") or 0
                ),
                compute_units=_number(text, units, r"(\d+)"),
            )
        )
    indices = [partition.index for partition in found]
    if devices is not None and len(set(indices)) != len(indices):
        raise line_error(text, devices, "MIG devices with an index each")
    return found


def _find(text: ToolText, element: Element, path: str) -> Element | None:
    """The element at a path; None if absent. Two of them mean that lines in between are missing."""
    found: Element | None = element
    for tag in path.split("/"):
        several = found.all(tag) if found is not None else []
        if len(several) > 1:
            raise line_error(text, several[1], f"one element {tag} here")
        found = several[0] if several else None
    return found


def _known(element: Element | None) -> str | None:
    """The element's text; None if it is missing, unknown or redacted."""
    text = " ".join(element.text.split()) if element is not None else ""
    return None if text.lower() in UNKNOWN_TEXTS or is_masked(text) else text


def _number(text: ToolText, element: Element | None, pattern: str, *, zero: bool = False) -> int | None:
    """The number in an element of this form; None if unknown, and for 0 unless ``zero`` is meaningful."""
    known = _known(element)
    if element is None or known is None:
        return None
    match = re.fullmatch(pattern, known)
    if match is None:
        raise line_error(
            text, element, f"{element.tag} as {pattern.replace('(', '').replace(')', '')}, or N/A"
        )
    number = int(match[1])
    return number if number or zero else None


def _address(text: ToolText, element: Element, shown: str | None) -> str | None:
    if shown is None or shown.lower() in UNKNOWN_TEXTS or is_masked(shown):
        return None
    address = bus_address(shown)
    if address is None:
        raise line_error(text, element, "a PCI address such as 00000000:3B:00.0")
    return address
