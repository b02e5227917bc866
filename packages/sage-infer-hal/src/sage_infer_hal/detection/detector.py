"""A detector defined by a vendor's tool and PCI vendor ids."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from attrs import evolve, field, frozen
from sage_infer.errors import ToolOutputError
from sage_infer.schemas import HardwareProfile
from sage_infer.sdk.diagnosis import Machine

from sage_infer_hal.detection.pci import SYSFS, PciDevice, host_links, pci_devices
from sage_infer_hal.detection.tools import find_tools

__all__ = ["ToolDetector", "VendorTool", "count_on_bus"]


@frozen(kw_only=True)
class VendorTool:
    """How to find one vendor's devices.

    Attributes:
        vendor: the vendor's name, for messages.
        names: names of the tool, preferred first.
        folders: installation folders of the tool, in addition to ``PATH``.
        pci_vendors: the vendor's PCI ids.
        is_accelerator: distinguishes accelerators from the vendor's other PCI devices.
        ask: ``ask(tools, devices)`` runs the tools found and returns the profile, or raises ``ToolOutputError``;
            ``devices`` are the accelerators on the PCI bus.
        install: package that installs the tool, for notes.
    """

    vendor: str
    names: tuple[str, ...]
    folders: tuple[str, ...] = ()
    pci_vendors: Collection[int]
    is_accelerator: Callable[[PciDevice], bool]
    ask: Callable[[Sequence[str], Sequence[PciDevice]], HardwareProfile]
    install: str


def count_on_bus(tool: VendorTool) -> Callable[[Machine], int]:
    """Return a function that counts the vendor's accelerators on a machine's PCI bus, for ``device_files``."""

    def count(machine: Machine) -> int:
        return len(_accelerators(tool, Path(f"{machine.root}{SYSFS}")))

    return count


def _accelerators(tool: VendorTool, sysfs: Path) -> list[PciDevice]:
    return [device for device in pci_devices(tool.pci_vendors, sysfs) if tool.is_accelerator(device)]


@frozen
class ToolDetector:
    """A ``HardwareDetector`` that combines the output of the vendor's tool with PCI facts from sysfs.

    Attributes:
        tool: how to find the devices.
        sysfs: root of the PCI devices in sysfs; another one in tests.
    """

    tool: VendorTool
    sysfs: Path = field(default=SYSFS)

    def detect(self) -> HardwareProfile:
        """The vendor's devices in this machine; an empty profile with notes if none can be used.

        Raises:
            ToolOutputError: devices are on the PCI bus, but the tool fails or its output cannot be parsed.
        """
        devices = _accelerators(self.tool, self.sysfs)
        tools = find_tools(*self.tool.names, folders=self.tool.folders)
        if not tools:
            return HardwareProfile(notes=[self._no_tool(devices)] if devices else [])
        try:
            profile = self.tool.ask(tools, devices)
        except ToolOutputError as error:
            if devices:
                raise
            return HardwareProfile(notes=[f"no {self.tool.vendor} device is on the PCI bus, and {error}"])
        return _with_pci(profile, devices)

    def _no_tool(self, devices: Sequence[PciDevice]) -> str:
        found = ", ".join(f"{device.address} ({device.vendor:04x}:{device.device:04x})" for device in devices)
        names = " or ".join(self.tool.names)
        return f"{self.tool.vendor} devices are on the PCI bus, but {names} is missing: {found}; {self.tool.install}"


def _with_pci(profile: HardwareProfile, devices: Iterable[PciDevice]) -> HardwareProfile:
    """Return the profile with NUMA nodes and host links of the PCI bus, and a note if the two disagree."""
    nodes = {device.address: device.numa_node for device in devices}
    accelerators = [
        evolve(a, numa_node=nodes.get(a.pci_address or "") if a.numa_node is None else a.numa_node)
        for a in profile.accelerators
    ]
    notes = list(profile.notes)
    listed = {a.pci_address for a in accelerators}
    hidden = sorted(nodes.keys() - listed)
    if hidden and None not in listed:
        notes.append(f"on the PCI bus, but not shown by the tool: {', '.join(hidden)}")
    return evolve(
        profile,
        accelerators=accelerators,
        links=(*profile.links, *host_links(accelerators, devices)),
        notes=notes,
    )
