"""The Kunlunxin detector: ``xpu-smi`` and PCI vendors 1d22 and 2057."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import evolve
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile, LinkProfile
from sage_infer_hal.detection import PciDevice, ToolDetector, ToolText, VendorTool, answers, build_profile
from sage_infer_hal.detection.pci import SYSFS

from sage_infer_kunlunxin.xpu import TOOL, VERSION, endpoint, refuse_intel
from sage_infer_kunlunxin.xpu_smi_devices import is_devices, read_devices
from sage_infer_kunlunxin.xpu_smi_list import list_devices
from sage_infer_kunlunxin.xpu_smi_table import read_table
from sage_infer_kunlunxin.xpu_smi_topo import affinities, links, read_links

__all__ = ["KunlunxinDetector"]


def _ask(tools: Sequence[str], devices: Sequence[PciDevice]) -> HardwareProfile:
    errors = []
    for tool in tools:
        try:
            return _ask_one(tool)
        except ToolOutputError as error:
            errors.append(error)
    if not devices and all(Path(tool).name == TOOL for tool in tools):
        return HardwareProfile()  # xpu-smi is also Intel's tool, and no Kunlunxin device is on the bus
    raise errors[0]


def _ask_one(tool: str) -> HardwareProfile:
    table, listed, topology = answers([[tool], [tool, "-L"], [tool, "topo", "-m"]])
    if isinstance(table, ToolOutputError):
        raise table
    text = ToolText.of(table, tool=Path(tool).name, version=VERSION)
    refuse_intel(text)
    profile = read_devices(text) if is_devices(text) else read_table(text)
    found, notes = list(profile.accelerators), list(profile.notes)
    try:
        if isinstance(listed, ToolOutputError):
            raise listed
        uuids = {d.index: d.uuid for d in list_devices(ToolText.of(listed, tool=f"{TOOL} -L"))}
        found = [evolve(device, uuid=uuids.get(device.index)) for device in found]
    except ToolOutputError as error:
        notes.append(f"no UUIDs: {error}")
    joined: list[LinkProfile] = []
    try:
        if isinstance(topology, ToolOutputError):
            raise topology
        output = ToolText.of(topology, tool=f"{TOOL} topo -m")
        matrix = read_links(output)
        found = affinities(found, matrix)
        names = {endpoint(device.index) for device in found}
        joined = [
            link
            for link in links(output, matrix)
            if all(end in names or end.startswith("nic:") for end in (link.source, link.target))
        ]
    except ToolOutputError as error:
        if len(found) > 1:
            notes.append(f"no links: {error}")
    return build_profile(found, links=joined, sources=profile.sources, notes=notes)


XPU_SMI = VendorTool(
    vendor="Kunlunxin",
    names=(TOOL, "xpu_smi"),
    folders=("/usr/local/bin", "/usr/local/xpu/bin", "/usr/local/xpu/tools"),
    pci_vendors={0x1D22, 0x2057},  # Baidu's, up to R300; Kunlunxin's own, from P800
    is_accelerator=lambda device: device.class_code >> 16 != 0x06,  # bridges of the cards
    ask=_ask,
    install="install the Kunlunxin driver (XRE)",
)


class KunlunxinDetector(ToolDetector):
    """This machine as reported by ``xpu-smi``; see ``ToolDetector``."""

    def __init__(self, sysfs: Path = SYSFS) -> None:
        super().__init__(XPU_SMI, sysfs)
