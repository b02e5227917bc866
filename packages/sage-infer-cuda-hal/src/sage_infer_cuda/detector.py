"""The NVIDIA detector. Without a device node it loads no NVIDIA library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer_hal.detection import PciDevice, pci_devices
from sage_infer_hal.detection.pci import SYSFS

from sage_infer_cuda.nvml import read_nvml

__all__ = ["NvidiaDetector", "gpus_on_bus"]

_NVIDIA = 0x10DE
_DISPLAY = 0x03  # PCI class of graphics cards and of accelerators without a screen; not of audio or NVSwitch


def gpus_on_bus(sysfs: Path = SYSFS) -> list[PciDevice]:
    """NVIDIA's GPUs on the PCI bus."""
    return [device for device in pci_devices({_NVIDIA}, sysfs) if device.class_code >> 16 == _DISPLAY]


class NvidiaDetector:
    """Reads devices from NVML and their PCI position from sysfs.

    Args:
        root: folder with ``dev`` and WSL's ``usr/lib/wsl``; tests pass a temporary one.
        sysfs: folder that lists the PCI bus.
        load: returns the module ``pynvml``; tests return a stand-in with recorded values.
    """

    def __init__(
        self, root: Path = Path("/"), *, sysfs: Path = SYSFS, load: Callable[[], Any] | None = None
    ) -> None:
        self._root, self._sysfs = root, sysfs
        self._load = load or (lambda: importlib.import_module("pynvml"))

    def detect(self) -> HardwareProfile:
        """The NVIDIA devices of this machine; an empty profile with notes if the driver is missing.

        Raises:
            ToolOutputError: the driver is installed but fails.
        """
        pci = gpus_on_bus(self._sysfs)
        if not self._has_driver():
            return HardwareProfile(notes=[_no_driver(pci)] if pci else [])
        nvml = self._load()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise ToolOutputError(
                f"NVML does not start: {error}; run nvidia-smi, and check that driver and library have the same version"
            ) from error
        try:
            return read_nvml(nvml, pci)
        finally:
            nvml.nvmlShutdown()

    def _has_driver(self) -> bool:
        nodes = any(self._root.glob("dev/nvidia[0-9]*"))
        return nodes or (self._root / "usr/lib/wsl/lib/libnvidia-ml.so.1").exists()


def _no_driver(pci: list[PciDevice]) -> str:
    found = ", ".join(f"{device.address} ({device.vendor:04x}:{device.device:04x})" for device in pci)
    return f"NVIDIA devices are on the PCI bus, but /dev/nvidia0 is missing: {found}; install NVIDIA's driver"
