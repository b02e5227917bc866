"""A detector that reads what ``quokka-smi`` wrote into a file."""

from __future__ import annotations

import re
from pathlib import Path

from sage_infer.config import load_config
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile
from sage_infer_hal.detection import ToolText

from quokka_sage.settings import QuokkaSettings

DEVICE = re.compile(r"device (\d{1,3}): (Q\d) memory=(\d{1,8})MiB numa=(\d{1,3}|-);")


class QuokkaDetector:
    def detect(self) -> HardwareProfile:
        path = Path(load_config().section(QuokkaSettings).smi_output)
        if not path.exists():
            return HardwareProfile()
        return read_recording(path.read_text("utf-8", "replace"), name=path.name)


def read_recording(text: str, *, name: str) -> HardwareProfile:
    """A version, the number of devices, and a line for each; anything else is an error."""
    output = ToolText.of(text, tool=f"quokka-smi ({name})", version=r"\Aquokka-smi (\d+\.\d+)\n")
    count = re.fullmatch(r"devices: (\d{1,3});", output.lines[1].text) if len(output.lines) > 1 else None
    if output.version is None or count is None:
        raise ToolOutputError(f"{name}: expected the version of quokka-smi, then the number of devices")
    devices = {}
    for line in output.lines[2:]:
        match = DEVICE.fullmatch(line.text)
        if match is None or int(match[1]) in devices:
            raise output.error(line, "a device that is not listed yet")
        devices[int(match[1])] = AcceleratorDescriptor(
            hardware_backend="quokka", vendor="Quokka", model=match[2], index=int(match[1]),
            memory_bytes=int(match[3]) * 2**20 or None, numa_node=None if match[4] == "-" else int(match[4]),
        )  # fmt: skip
    if len(devices) != int(count[1]):
        raise ToolOutputError(f"{name}: expected {count[1]} devices, got {len(devices)}; record it again")
    return HardwareProfile(
        accelerators=[devices[index] for index in sorted(devices)], sources=[f"quokka-smi {output.version}"]
    )
