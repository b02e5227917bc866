"""PCI devices as sysfs lists them; they identify a vendor even without its tool."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from attrs import frozen
from sage_infer.schemas import AcceleratorDescriptor, Figure, LinkProfile

__all__ = ["SYSFS", "PciDevice", "host_links", "pci_devices"]

SYSFS = Path("/sys")

# Bits of payload per bit on the wire: 8b/10b up to 5 GT/s, 128b/130b up to 32 GT/s, nearly all in flit mode.
_ENCODING = ((5.0, 0.8), (32.0, 128 / 130), (float("inf"), 1.0))


@frozen(kw_only=True)
class PciDevice:
    """One function on the PCI bus; fields are None if sysfs does not report them.

    Attributes:
        address: ``domain:bus:device.function`` in lower-case hex.
        vendor: vendor id, such as 0x19e5.
        device: device id.
        class_code: class, subclass and programming interface, such as 0x120000.
        numa_node: nearest NUMA node.
        link_gts: maximum transfer rate of its link, in GT/s.
        link_width: maximum number of lanes of its link.
    """

    address: str
    vendor: int
    device: int
    class_code: int
    numa_node: int | None = None
    link_gts: float | None = None
    link_width: int | None = None

    @property
    def link_gbs(self) -> float | None:
        """Payload of its link in GB/s, one direction, before packet headers."""
        if self.link_gts is None or self.link_width is None:
            return None
        share = next(share for limit, share in _ENCODING if self.link_gts <= limit)
        return round(self.link_gts * self.link_width * share / 8, 1)


def pci_devices(vendors: Collection[int], sysfs: Path = SYSFS) -> list[PciDevice]:
    """Devices of these vendors, by address. Empty without sysfs; never raises."""
    found = []
    for folder in sorted((sysfs / "bus/pci/devices").glob("*")):
        vendor, device, class_code = (_number(folder / name, 16) for name in ("vendor", "device", "class"))
        if vendor not in vendors or vendor is None or device is None:
            continue
        node = _number(folder / "numa_node", 10)
        found.append(
            PciDevice(
                address=folder.name.lower(),
                vendor=vendor,
                device=device,
                class_code=class_code or 0,
                numa_node=node if node is not None and node >= 0 else None,
                link_gts=_rate(folder / "max_link_speed"),
                link_width=_number(folder / "max_link_width", 10) or None,
            )
        )
    return found


def host_links(
    accelerators: Iterable[AcceleratorDescriptor], devices: Iterable[PciDevice]
) -> list[LinkProfile]:
    """The PCIe link of each accelerator to the host, both directions, if its address is in ``devices``."""
    by_address = {device.address: device for device in devices}
    links = []
    for accelerator in accelerators:
        device = by_address.get(accelerator.pci_address or "")
        if device is None or device.link_gbs is None:
            continue
        source = f"sysfs {device.address}: {device.link_gts:g} GT/s x{device.link_width}"
        end = f"{accelerator.hardware_backend}:{accelerator.index}"
        for one, other in (("host", end), (end, "host")):
            links.append(
                LinkProfile(
                    source=one,
                    target=other,
                    kind="pcie",
                    nominal_gbs=Figure(value=device.link_gbs, source=source),
                )
            )
    return links


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, base: int) -> int | None:
    try:
        return int(_text(path), base)
    except ValueError:
        return None


def _rate(path: Path) -> float | None:
    """``16.0 GT/s PCIe`` → 16.0; None for ``Unknown``."""
    try:
        return float(_text(path).split()[0])
    except (ValueError, IndexError):
        return None
