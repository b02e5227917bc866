"""Build a profile that satisfies the schema's invariants from devices and links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from sage_infer.errors import ToolOutputError
from sage_infer.schemas import AcceleratorDescriptor, HardwareProfile, LinkProfile, MemoryTierSpec

from sage_infer_hal.detection.matrix import asymmetry_notes

__all__ = ["build_profile"]


def build_profile(
    accelerators: Iterable[AcceleratorDescriptor],
    *,
    sources: Iterable[str],
    links: Iterable[LinkProfile] = (),
    notes: Iterable[str] = (),
) -> HardwareProfile:
    """Devices in order, one memory tier per device with known memory, and notes on contradictions.

    Raises:
        ToolOutputError: two devices have the same index. They may share a PCI address: a board may hold two chips.
    """
    devices = sorted(accelerators, key=lambda device: (device.hardware_backend, device.index))
    sources, links = tuple(sources), tuple(links)
    names = [f"{device.hardware_backend}:{device.index}" for device in devices]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ToolOutputError(
            f"{', '.join(sources)} lists {twice[0]} more than once; record it again unedited"
        )
    return HardwareProfile(
        accelerators=devices,
        links=links,
        memory_tiers=[
            MemoryTierSpec(
                tier="hbm",
                name=name,
                capacity_bytes=device.memory_bytes,
                nominal_gbs=device.memory_bandwidth_gbs,
            )
            for name, device in zip(names, devices, strict=True)
            if device.memory_bytes is not None
        ],
        sources=sources,
        notes=[*notes, *asymmetry_notes(links)],
    )
