"""A detector that sees a machine with one memory, and one that measures it."""

from __future__ import annotations

from collections.abc import Callable

from attrs import evolve
from sage_infer.schemas import Figure, HardwareProfile, MemoryTierSpec


class ReferenceDetector:
    """Sees a machine with one memory."""

    def detect(self) -> HardwareProfile:
        return HardwareProfile(memory_tiers=self.memory(), sources=("reference 1.0",))

    def memory(self) -> tuple[MemoryTierSpec, ...]:
        speed = Figure(value=20.0, source="data sheet", confidence="low")
        return (MemoryTierSpec(tier="dram", name="numa:0", capacity_bytes=2**30, nominal_gbs=speed),)


class ReferenceMeter(ReferenceDetector):
    """Measures it, too."""

    def measure(self, profile: HardwareProfile, progress: Callable[[str, float], None]) -> HardwareProfile:
        progress("measuring", 1.0)
        figure = Figure(value=18.0, source="measured by the reference")
        tiers = [evolve(tier, measured_read_gbs=figure) for tier in profile.memory_tiers]
        return evolve(profile, memory_tiers=tiers, notes=(*profile.notes, "a quiet machine"))
