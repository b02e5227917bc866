"""Adds measured figures to a host's profile, with notes on what could not be measured."""

from __future__ import annotations

from collections.abc import Callable, Collection

from attrs import evolve
from sage_infer.schemas import Figure, HardwareProfile, MemoryTierSpec

from sage_infer_host.disk_speed import measure_disk
from sage_infer_host.memory_speed import measure_memory

__all__ = ["measure"]


def measure(
    profile: HardwareProfile, progress: Callable[[str, float], None], *, cpus: Collection[int]
) -> HardwareProfile:
    """The host's own profile with figures for its memory and its local file systems."""
    tiers, notes = [], list(profile.notes)
    for tier in profile.memory_tiers:
        what = "memory" if tier.tier == "dram" else tier.name
        measured = tier
        try:
            if tier.tier == "dram":
                measured = _memory(tier, cpus, lambda share: progress("measuring memory", share))
            elif tier.tier == "ssd":
                stage = f"measuring {tier.name}"
                measured = measure_disk(tier, lambda share, stage=stage: progress(stage, share))  # type: ignore[misc]
            else:
                notes.append(f"{what}: not measured, as it is not on this machine")
        except OSError as error:
            notes.append(f"{what}: not measured: {error.strerror or error}")
        tiers.append(measured)
    return evolve(profile, memory_tiers=tiers, notes=notes)


def _memory(tier: MemoryTierSpec, cpus: Collection[int], progress: Callable[[float], None]) -> MemoryTierSpec:
    speed = measure_memory(cpus, tier.usable_bytes or tier.capacity_bytes, progress)
    how = f"on {speed.threads} CPUs simultaneously, best pass"
    return evolve(
        tier,
        measured_read_gbs=Figure(value=speed.read_gbs, source=f"measured: memchr {how}"),
        measured_write_gbs=Figure(value=speed.write_gbs, source=f"measured: memset {how}"),
        measured_copy_gbs=Figure(
            value=speed.copy_gbs, source=f"measured: memcpy {how}, bytes read and written"
        ),
    )
