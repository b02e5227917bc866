"""PCIe links of devices to the host, from a generation and a width."""

from __future__ import annotations

from collections.abc import Mapping

from sage_infer.schemas import Figure, LinkProfile
from sage_infer_hal.detection import PciDevice

__all__ = ["pcie_links"]

_GTS: Mapping[int, float] = {1: 2.5, 2: 5.0, 3: 8.0, 4: 16.0, 5: 32.0, 6: 64.0}
_NVIDIA = 0x10DE


def pcie_links(
    end: str,
    *,
    generation: int | None,
    width: int | None,
    source: str,
    host: str = "host",
    gts: float | None = None,
) -> list[LinkProfile]:
    """Both directions between a device and the host; none if rate or width is unknown."""
    rate = gts if gts is not None else _GTS.get(generation or 0)
    if rate is None or not width:
        return []
    link = PciDevice(address="", vendor=_NVIDIA, device=0, class_code=0, link_gts=rate, link_width=width)
    figure = Figure(value=link.link_gbs or 0.0, source=f"{source}: {rate:g} GT/s x{width}")
    return [
        LinkProfile(source=one, target=other, kind="pcie", nominal_gbs=figure)
        for one, other in ((host, end), (end, host))
    ]
