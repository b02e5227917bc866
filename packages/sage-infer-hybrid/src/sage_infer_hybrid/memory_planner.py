"""Puts models on devices so that none is asked for more memory than it has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from attrs import evolve, field, frozen
from sage_infer.errors import OutOfMemory
from sage_infer.schemas import HardwareProfile
from sage_infer.schemas.capability import SharingMode

from sage_infer_hybrid.estimate import GIB, Demand

__all__ = ["Device", "MemoryPlan", "Share", "devices_of", "plan_memory"]

RESERVE = 0.05  # of a device, for what nobody reckons: fragmentation, other processes' moments


@frozen(kw_only=True)
class Device:
    """A device's memory in bytes: all of it, and what may be given to models."""

    name: str
    total: int
    usable: int


@frozen(kw_only=True)
class Share:
    """What one model gets on one device, in bytes."""

    model_id: str
    device: str
    weights: int
    kv: int
    activations: int
    overhead: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations + self.overhead


@frozen(kw_only=True)
class MemoryPlan:
    """Who gets what. ``mode`` decides about activations: in turns, only the largest one's are there at a time."""

    mode: SharingMode
    devices: tuple[Device, ...]
    shares: tuple[Share, ...] = field(default=())

    def used(self, device: str) -> int:
        """Bytes of a device that the plan gives away."""
        here = [share for share in self.shares if share.device == device]
        together = max if self.mode == "time_slice" else sum
        return sum(s.total - s.activations for s in here) + together([s.activations for s in here] or [0])

    def free(self, device: Device) -> int:
        return device.usable - self.used(device.name)

    def share_of(self, model_id: str) -> Share | None:
        return next((share for share in self.shares if share.model_id == model_id), None)


def devices_of(profile: HardwareProfile, *, reserve: float = RESERVE) -> tuple[Device, ...]:
    """Accelerators of a machine as ``cuda:0``, and its main memory as ``cpu``; what has no known size is left out."""
    found = [
        Device(
            name=f"{a.hardware_backend}:{a.index}",
            total=a.memory_bytes,
            usable=int(a.memory_bytes * (1 - reserve)),
        )
        for a in profile.accelerators
        if a.memory_bytes is not None
    ]
    for tier in profile.memory_tiers:
        if tier.tier == "dram" and tier.capacity_bytes is not None:
            limit = tier.capacity_bytes if tier.usable_bytes is None else tier.usable_bytes
            found.append(Device(name="cpu", total=limit, usable=int(limit * (1 - reserve))))
    return tuple(found)


def plan_memory(devices: Sequence[Device], demands: Iterable[Demand], mode: SharingMode) -> MemoryPlan:
    """A plan with every model on one device, none over its usable memory.

    Models are placed largest first, each on the device with the most room left; then what is left over becomes KV, in
    proportion to the models' weights, as far as they want it. ``exclusive`` gives a device to one model alone.

    Raises:
        OutOfMemory: there is no such plan; the message says which model is over by how much, and what would fit.
    """
    wanted = sorted(demands, key=lambda demand: demand.least, reverse=True)
    placed: dict[str, list[Demand]] = {device.name: [] for device in devices}
    for demand in wanted:
        allowed = [d for d in devices if not demand.devices or d.name in demand.devices]
        if mode == "exclusive":
            allowed = [device for device in allowed if not placed[device.name]]
        best = max(allowed, key=lambda d: _room(d, placed[d.name], mode), default=None)
        if best is None or _cost([*placed[best.name], demand], mode) > best.usable:
            raise OutOfMemory(_refusal(demand, best, devices, placed, mode))
        placed[best.name].append(demand)
    shares = [share for device in devices for share in _divided(device, placed[device.name], mode)]
    return MemoryPlan(mode=mode, devices=tuple(devices), shares=tuple(shares))


def _cost(demands: Sequence[Demand], mode: SharingMode) -> int:
    """Bytes with which all of these run at least."""
    together = max if mode == "time_slice" else sum
    return sum(d.least - d.activations for d in demands) + together([d.activations for d in demands] or [0])


def _room(device: Device, demands: Sequence[Demand], mode: SharingMode) -> int:
    return device.usable - _cost(demands, mode)


def _divided(device: Device, demands: Sequence[Demand], mode: SharingMode) -> list[Share]:
    """The device's memory among the models on it."""
    kv = {demand.model_id: demand.kv_least for demand in demands}
    left = _room(device, demands, mode)
    hungry = [demand for demand in demands if demand.kv_wanted > demand.kv_least]
    while hungry and left > 0:
        whole = sum(demand.weight for demand in hungry)
        # Whoever wants less than its part is served first, so that the rest is divided among the others.
        demand = min(hungry, key=lambda d: (d.kv_wanted - d.kv_least) / d.weight)
        part = min(int(left * demand.weight / whole), demand.kv_wanted - demand.kv_least)
        kv[demand.model_id] += part
        left -= part
        hungry.remove(demand)
    return [
        Share(
            model_id=d.model_id,
            device=device.name,
            weights=d.weights,
            kv=kv[d.model_id],
            activations=d.activations,
            overhead=d.overhead,
        )
        for d in demands
    ]


def _refusal(
    demand: Demand,
    best: Device | None,
    devices: Sequence[Device],
    placed: Mapping[str, Sequence[Demand]],
    mode: SharingMode,
) -> str:
    needs = (
        f"model {demand.model_id!r} needs {_gib(demand.least)} (weights {_gib(demand.weights)}, KV of one sequence "
        f"{_gib(demand.kv_least)}, activations {_gib(demand.activations)}, engine {_gib(demand.overhead)})"
    )
    if best is None:
        names = ", ".join(device.name for device in devices) or "none"
        if mode == "exclusive" and devices:
            return (
                f"{needs}, and sharing mode exclusive wants a device for it alone; devices: {names}, all taken. "
                "Use time_slice or mps, or unload another model"
            )
        wanted = f" among {', '.join(demand.devices)}" if demand.devices else ""
        return f"{needs}, and there is no device with known memory{wanted}; devices: {names}"
    here = placed[best.name]
    short = _cost([*here, demand], mode) - best.usable
    fits = []
    smaller = next((bits for bits in (8, 4) if demand.weights * (16 - bits) / 16 >= short), None)
    if smaller is not None:
        fits.append(f"{smaller}-bit weights, were they 16-bit")
    if demand.kv_least > short:
        fits.append(f"a max_sequence_length of {1 - short / demand.kv_least:.0%} of this one")
    if here:
        largest = max(here, key=lambda other: other.least)
        if largest.least >= short:
            fits.append(f"{demand.model_id!r} without {largest.model_id!r}")
    hint = f"; what would fit: {'; '.join(fits)}" if fits else "; use a smaller model or a larger device"
    taken = f" beside {', '.join(d.model_id for d in here)}" if here else ""
    return (
        f"{needs}, and {best.name} has {_gib(best.usable - _cost(here, mode))} left{taken}: "
        f"{_gib(short)} too little{hint}"
    )


def corrected(demand: Demand, measured: int, planned: Share) -> Demand:
    """The demand with its engine's own part as it was measured, for the next plan.

    ``measured`` are the bytes that the model takes with its KV cache in use.
    """
    overhead = max(measured - planned.weights - planned.kv - planned.activations, 0)
    return evolve(demand, overhead=overhead)


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB"
