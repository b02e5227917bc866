"""Merge several profiles of one machine. A pure function: no device is queried."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

from attrs import evolve, fields
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import (
    UNKNOWN_MODEL,
    AcceleratorDescriptor,
    CpuDescriptor,
    Figure,
    HardwareProfile,
    LinkProfile,
    MemoryTierSpec,
    NumaNode,
)

__all__ = ["merge_profiles"]

Part = TypeVar("Part", AcceleratorDescriptor, CpuDescriptor, LinkProfile, MemoryTierSpec, NumaNode)

_IDENTITY = ("uuid", "pci_address")  # different values mean different devices
_CLOSE = 0.02  # tools round a device's memory differently


def merge_profiles(profiles: Iterable[HardwareProfile]) -> HardwareProfile:
    """One profile that combines several, such as those of all detectors, or of recordings of several tools.

    Devices are the same if backend and index are equal, links if their ends and kind are equal. A value that one
    profile lacks is taken from another. On a contradiction the first value is kept and a note says so. A link that
    ends at ``pci:ADDRESS`` leads to the accelerator at that address.

    Raises:
        InvalidRequest: one device has two unique ids or two addresses, so the profiles are of different machines.
    """
    profiles = list(profiles)
    notes: list[str] = [note for profile in profiles for note in profile.notes]
    accelerators = _union((p.accelerators for p in profiles), lambda a: (a.hardware_backend, a.index), notes)
    links = _union(
        ([_resolved(link, accelerators) for link in p.links] for p in profiles),
        lambda link: (link.source, link.target, link.kind),
        notes,
    )
    tiers = _union((p.memory_tiers for p in profiles), lambda tier: (tier.tier, tier.name), notes)
    cpus = _union(
        (p.cpus for p in profiles), lambda cpu: (cpu.vendor, cpu.model, cpu.architecture, cpu.isa), notes
    )
    nodes = _union((p.numa_nodes for p in profiles), lambda node: node.index, notes)
    return HardwareProfile(
        accelerators=sorted(accelerators, key=lambda a: (a.hardware_backend, a.index)),
        links=links,
        memory_tiers=tiers,
        sources=list(dict.fromkeys(source for profile in profiles for source in profile.sources)),
        notes=list(dict.fromkeys(notes)),
        cpus=cpus,
        numa_nodes=sorted(nodes, key=lambda node: node.index),
    )


def _union(groups: Iterable[Iterable[Part]], key: Any, notes: list[str]) -> list[Part]:
    """Group parts by key, in the order in which keys first appear; parts with the same key complete each other."""
    found: dict[Hashable, Part] = {}
    for group in groups:
        for part in group:
            same = found.get(key(part))
            found[key(part)] = part if same is None else _filled(same, part, notes)
    return list(found.values())


def _filled(known: Part, other: Part, notes: list[str]) -> Part:
    changes: dict[str, Any] = {}
    for attribute in fields(type(known)):
        name = attribute.name
        mine, theirs = getattr(known, name), getattr(other, name)
        if _is_unknown(theirs) or mine == theirs:
            continue
        if _is_unknown(mine):
            changes[name] = theirs
        elif isinstance(mine, Mapping):
            changes[name] = {**theirs, **mine}
        elif name in _IDENTITY:
            raise InvalidRequest(
                f"{_name(known)} has the {name} {mine} and {theirs}: these profiles are of different machines; "
                "describe each machine separately"
            )
        elif not _close(mine, theirs):
            notes.append(f"{_name(known)}: {name} is {_shown(mine)} and {_shown(theirs)}; the first is kept")
    return evolve(known, **changes)


def _is_unknown(value: object) -> bool:
    return value is None or value == UNKNOWN_MODEL or value == () or value == {}


def _close(mine: object, theirs: object) -> bool:
    if isinstance(mine, Figure) and isinstance(theirs, Figure):
        mine, theirs = mine.value, theirs.value
    if isinstance(mine, int | float) and isinstance(theirs, int | float):
        return abs(mine - theirs) <= _CLOSE * max(abs(mine), abs(theirs))
    return False


def _shown(value: object) -> str:
    if isinstance(value, Figure):
        return f"{value.value:g} ({value.source})"
    return f"{len(value)} entries" if isinstance(value, tuple) else str(value)


def _name(part: object) -> str:
    match part:
        case AcceleratorDescriptor():
            return f"{part.hardware_backend}:{part.index}"
        case LinkProfile():
            return f"{part.source} → {part.target}"
        case NumaNode():
            return f"numa:{part.index}"
        case MemoryTierSpec():
            return part.name
        case _:
            return getattr(part, "model", "the processor")


def _resolved(link: LinkProfile, accelerators: Iterable[AcceleratorDescriptor]) -> LinkProfile:
    """The link with address ends replaced by the accelerators at these addresses, where they are unique."""
    changes: dict[str, Any] = {}
    for side in ("source", "target"):
        end: str = getattr(link, side)
        if end.startswith("pci:"):
            there = [a for a in accelerators if a.pci_address == end.removeprefix("pci:")]
            if len(there) == 1:
                changes[side] = f"{there[0].hardware_backend}:{there[0].index}"
    return evolve(link, **changes) if changes else link
