"""The detector ``tarn``: what ``tarn-smi`` prints, and the PCI bus."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from sage_infer.errors import ToolOutputError
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import PciDevice, ToolDetector, ToolText, VendorTool, build_profile, run_tool
from sage_infer_hal.detection.pci import SYSFS

__all__ = ["TarnDetector", "read"]

DEVICE = re.compile(
    r"(\d{1,3})  (T\d)  memory (\d{1,8}) MiB  bus ([0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]);"
)


def read(text: str, *, name: str) -> HardwareProfile:
    """A version, the number of devices, and a line for each; anything else is an error."""
    output = ToolText.of(text, tool=f"tarn-smi ({name})", version=r"\Atarn-smi (\d+\.\d+)\n")
    count = re.fullmatch(r"devices: (\d{1,3});", output.lines[1].text) if len(output.lines) > 1 else None
    if output.version is None or count is None:
        raise ToolOutputError(f"{name}: expected the version of tarn-smi, then the number of devices")
    devices = {}
    for line in output.lines[2:]:
        match = DEVICE.fullmatch(line.text)
        if match is None or int(match[1]) in devices:
            raise output.error(line, "a device that is not listed yet")
        devices[int(match[1])] = AcceleratorDescriptor(
            hardware_backend="tarn",
            vendor="Tarn",
            model=match[2],
            index=int(match[1]),
            memory_bytes=int(match[3]) * 2**20 or None,
            pci_address=match[4],
        )
    if len(devices) != int(count[1]):
        raise ToolOutputError(f"{name}: expected {count[1]} devices, got {len(devices)}; record it again")
    return build_profile(devices.values(), sources=[f"tarn-smi {output.version}"])


def _ask(tools: Sequence[str], devices: Sequence[PciDevice]) -> HardwareProfile:
    return read(run_tool(tools[0]), name="tarn-smi")


TOOL = VendorTool(
    vendor="Tarn",
    names=("tarn-smi",),
    pci_vendors={0xFFFF},
    is_accelerator=lambda device: True,
    ask=_ask,
    install="install the driver of Tarn",
)


class TarnDetector(ToolDetector):
    """This machine as reported by ``tarn-smi``; see ``ToolDetector``."""

    def __init__(self, sysfs: Path = SYSFS) -> None:
        super().__init__(TOOL, sysfs)
