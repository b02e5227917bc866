"""The Cambricon detector: ``cnmon`` and PCI vendor cabc."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import evolve
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import PciDevice, ToolDetector, ToolText, VendorTool, build_profile, run_tool
from sage_infer_hal.detection.pci import SYSFS

from sage_infer_cambricon.cnmon_json import read_json
from sage_infer_cambricon.cnmon_table import read_table
from sage_infer_cambricon.cnmon_topo import links, read_links
from sage_infer_cambricon.mlu import TOOL, VERSION, endpoint

__all__ = ["CambriconDetector"]


def _ask(tools: Sequence[str], devices: Sequence[PciDevice]) -> HardwareProfile:
    profile = _devices(tools[0])
    if len(profile.accelerators) < 2:
        return profile
    names = {endpoint(device.index) for device in profile.accelerators}
    try:
        matrix = read_links(ToolText.of(run_tool(tools[0], "topo", "-m"), tool="cnmon topo -m"))
        joined = [link for link in links(matrix) if {link.source, link.target} <= names]
    except ToolOutputError as error:
        return evolve(profile, notes=(*profile.notes, f"no links: {error}"))
    return build_profile(profile.accelerators, links=joined, sources=profile.sources, notes=profile.notes)


def _devices(tool: str) -> HardwareProfile:
    """Read the JSON that cnmon writes into its working directory; without it, the table."""
    try:
        answer = run_tool(tool, "info", "-j", output_file="cnmon_info.json")
        return read_json(ToolText.of(answer, tool=f"{TOOL} info -j"))
    except ToolOutputError as error:
        profile = read_table(ToolText.of(run_tool(tool), tool=TOOL, version=VERSION))
        return evolve(profile, notes=(*profile.notes, f"no UUIDs: {error}"))


CNMON = VendorTool(
    vendor="Cambricon",
    names=("cnmon",),
    folders=("/usr/bin", "/usr/local/neuware/bin"),
    pci_vendors={0xCABC},
    is_accelerator=lambda device: True,  # the vendor makes nothing else
    ask=_ask,
    install="install the Cambricon driver",
)


class CambriconDetector(ToolDetector):
    """This machine as reported by ``cnmon``; see ``ToolDetector``."""

    def __init__(self, sysfs: Path = SYSFS) -> None:
        super().__init__(CNMON, sysfs)
