"""The NVIDIA detector. Where no device node is there, no library of NVIDIA's is touched."""

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

__all__ = ["NvidiaDetector"]

_NVIDIA = 0x10DE
_DISPLAY = 0x03  # PCI class of graphics cards and of accelerators without a screen; not of audio or NVSwitch


class NvidiaDetector:
    """Asks NVML what there is, and sysfs where it is plugged in.

    Args:
        root: where ``dev`` and WSL's ``usr/lib/wsl`` are; tests give a folder.
        sysfs: where the PCI bus is listed.
        load: gives the module ``pynvml``; tests give one that answers with recorded values.
    """

    def __init__(
        self, root: Path = Path("/"), *, sysfs: Path = SYSFS, load: Callable[[], Any] | None = None
    ) -> None:
        self._root, self._sysfs = root, sysfs
        self._load = load or (lambda: importlib.import_module("pynvml"))

    def detect(self) -> HardwareProfile:
        """What this machine has of NVIDIA's; an empty profile, with notes, where its driver is not there.

        Raises:
            ToolOutputError: the driver is there, and fails.
        """
        pci = [d for d in pci_devices({_NVIDIA}, self._sysfs) if d.class_code >> 16 == _DISPLAY]
        if not self._has_driver():
            return HardwareProfile(notes=[_no_driver(pci)] if pci else [])
        nvml = self._load()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise ToolOutputError(
                f"NVML does not start: {error}; run nvidia-smi, and see that driver and library are of one version"
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
    return (
        f"NVIDIA devices are on the PCI bus, and there is no /dev/nvidia0: {found}; install NVIDIA's driver"
    )
