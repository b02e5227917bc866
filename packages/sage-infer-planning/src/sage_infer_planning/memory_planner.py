"""Placement of models on devices within the memory of each device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import evolve, field, frozen
from sage_infer.errors import OutOfMemory
from sage_infer.schemas import HardwareProfile
from sage_infer.schemas.capability import SharingMode

from sage_infer_planning.estimate import GIB, Demand

__all__ = ["Device", "MemoryPlan", "Share", "demand_met", "devices_of", "less", "plan_memory"]

RESERVE = 0.05  # share of a device for fragmentation and peaks of other processes, which are not estimated


@frozen(kw_only=True)
class Device:
    """A device's memory in bytes: total, and usable by models."""

    name: str
    total: int
    usable: int


@frozen(kw_only=True)
class Share:
    """Memory of one model on one device, in bytes."""

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
    """A memory plan. In mode ``time_slice``, models run in turns, so only the largest activations count."""

    mode: SharingMode
    devices: tuple[Device, ...]
    shares: tuple[Share, ...] = field(default=())

    def used(self, device: str) -> int:
        """Return the bytes of a device that the plan allocates."""
        here = [share for share in self.shares if share.device == device]
        together = max if self.mode == "time_slice" else sum
        return sum(s.total - s.activations for s in here) + together([s.activations for s in here] or [0])

    def free(self, device: Device) -> int:
        return device.usable - self.used(device.name)

    def shares_of(self, model_id: str) -> tuple[Share, ...]:
        """Return the model's share on each of its devices."""
        return tuple(share for share in self.shares if share.model_id == model_id)


def devices_of(profile: HardwareProfile, *, reserve: float = RESERVE) -> tuple[Device, ...]:
    """Return the accelerators of a machine (``cuda:0``) and its main memory (``cpu``), except those of unknown size."""
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
    """Plan every model on one device, or on ``spread`` devices, within the usable memory of each device.

    Models without a choice of device are placed first, then the largest ones, each on the devices with the most free
    memory. Left-over memory is then divided between the models' KV in proportion to ``weight``, up to their demand. A
    ``fraction`` limits a model's share of each of its devices. ``exclusive`` reserves each device for one model.

    Raises:
        OutOfMemory: a model does not fit; the message names the model, the missing memory, and options that would fit.
    """
    placed: dict[str, list[Demand]] = {device.name: [] for device in devices}
    for demand in sorted(demands, key=lambda demand: (demand.has_choice, -demand.part.least)):
        allowed = [d for d in devices if not demand.devices or d.name in demand.devices]
        if mode == "exclusive":
            allowed = [device for device in allowed if not placed[device.name]]
        part = demand.part
        if part.fraction is not None:
            fitting = [d for d in allowed if part.fraction <= _fraction_left(placed[d.name])]
            if len(fitting) < demand.spread <= len(allowed):
                raise OutOfMemory(_no_fraction(demand, allowed, placed))
            allowed = fitting
        best = sorted(allowed, key=lambda d: _room(d, placed[d.name], mode), reverse=True)[: demand.spread]
        if len(best) < demand.spread:
            raise OutOfMemory(_no_device(demand, devices, mode))
        for device in best:
            here = _within_fraction(part, device)
            if _cost([*placed[device.name], here], mode) > device.usable:
                raise OutOfMemory(_refusal(demand, device, placed[device.name], mode))
            placed[device.name].append(here)
    shares = [share for device in devices for share in _divided(device, placed[device.name], mode)]
    # Each device of a model holds the KV of the same tokens.
    kv = {share.model_id: min(s.kv for s in shares if s.model_id == share.model_id) for share in shares}
    even = tuple(evolve(share, kv=kv[share.model_id]) for share in shares)
    return MemoryPlan(mode=mode, devices=tuple(devices), shares=even)


def _cost(demands: Sequence[Demand], mode: SharingMode) -> int:
    """Return the minimum bytes for all of these demands."""
    together = max if mode == "time_slice" else sum
    return sum(d.least - d.activations for d in demands) + together([d.activations for d in demands] or [0])


def _room(device: Device, demands: Sequence[Demand], mode: SharingMode) -> int:
    return device.usable - _cost(demands, mode)


def _fraction_left(demands: Sequence[Demand]) -> float:
    return 1 + 1e-9 - sum(d.fraction or 0.0 for d in demands)


def _within_fraction(part: Demand, device: Device) -> Demand:
    """Return the demand of a model limited to its fraction of the device's memory.

    Raises:
        OutOfMemory: the fraction is less than the minimum.
    """
    if part.fraction is None:
        return part
    budget = int(part.fraction * device.total * (1 - RESERVE))
    if part.least > budget:
        hints = [*_lighter(part, part.least - budget), *_shorter(part, part.least - budget)]
        hint = (
            f"; what would fit: {'; '.join(hints)}"
            if hints
            else "; raise the fraction, or use a smaller model"
        )
        raise OutOfMemory(
            f"{_needs(part)}, and memory_fraction {part.fraction:g} of {device.name} is {_gib(budget)}: "
            f"{_gib(part.least - budget)} too little{hint}"
        )
    rest = part.least - part.kv_least
    return evolve(part, kv_wanted=max(part.kv_least, min(part.kv_wanted, budget - rest)))


def _divided(device: Device, demands: Sequence[Demand], mode: SharingMode) -> list[Share]:
    """Divide the device's memory between the models on it."""
    kv = {demand.model_id: demand.kv_least for demand in demands}
    left = _room(device, demands, mode)
    hungry = [demand for demand in demands if demand.kv_wanted > demand.kv_least]
    while hungry and left > 0:
        whole = sum(demand.weight for demand in hungry)
        # Smallest request relative to weight first, so that its surplus goes to the others.
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


def _needs(demand: Demand) -> str:
    part = demand.part
    where = f" on each of {demand.spread} devices" if demand.spread > 1 else ""
    return (
        f"model {demand.model_id!r} needs {_gib(part.least)}{where} (weights {_gib(part.weights)}, KV of one sequence "
        f"{_gib(part.kv_least)}, activations {_gib(part.activations)}, engine {_gib(part.overhead)})"
    )


def _no_fraction(demand: Demand, devices: Sequence[Device], placed: Mapping[str, Sequence[Demand]]) -> str:
    taken = []
    for device in devices:
        others = ", ".join(
            f"{d.model_id!r} {d.fraction:g}" for d in placed[device.name] if d.fraction is not None
        )
        taken.append(f"{device.name} ({others})" if others else device.name)
    return (
        f"model {demand.model_id!r} has memory_fraction {demand.fraction:g}, too much with the others on "
        f"{'; '.join(taken)}: the fractions of one device must not add up to more than 1"
    )


def _no_device(demand: Demand, devices: Sequence[Device], mode: SharingMode) -> str:
    names = ", ".join(device.name for device in devices) or "none"
    if mode == "exclusive" and devices:
        return (
            f"{_needs(demand)}, and sharing mode exclusive requires {_for_it_alone(demand)}; devices: {names}, too few "
            "are free. Use time_slice or mps, or unload another model"
        )
    wanted = f" among {', '.join(demand.devices)}" if demand.devices else ""
    enough = "no device" if demand.spread == 1 else f"fewer than {demand.spread} devices"
    return f"{_needs(demand)}, and there is {enough} with known memory{wanted}; devices: {names}"


def _for_it_alone(demand: Demand) -> str:
    return "a device of its own" if demand.spread == 1 else f"{demand.spread} devices of its own"


def _refusal(demand: Demand, device: Device, here: Sequence[Demand], mode: SharingMode) -> str:
    part = demand.part
    short = _cost([*here, part], mode) - device.usable
    fits = [*_lighter(demand, short), *_shorter(part, short)]
    if here and max(other.least for other in here) >= short:
        largest = max(here, key=lambda other: other.least)
        fits.append(f"{demand.model_id!r} without {largest.model_id!r}")
    hint = f"; what would fit: {'; '.join(fits)}" if fits else "; use a smaller model or a larger device"
    taken = f" beside {', '.join(d.model_id for d in here)}" if here else ""
    return (
        f"{_needs(demand)}, and {device.name} has {_gib(device.usable - _cost(here, mode))} left{taken}: "
        f"{_gib(short)} too little{hint}"
    )


def _lighter(demand: Demand, short: int) -> Iterator[str]:
    """Yield suggestions of narrower weights that would fit."""
    now = demand.weight_bits
    for bits in (8, 4):
        if now is not None and bits < now and demand.part.weights * (1 - bits / now) >= short:
            yield f"{bits}-bit weights instead of {now:.3g}-bit ones"
            return


def _shorter(part: Demand, short: int) -> Iterator[str]:
    """Yield suggestions of a smaller KV cache that would fit."""
    if part.kv_least > short and part.max_sequence_length is not None:
        yield f"max_sequence_length {int(part.max_sequence_length * (1 - short / part.kv_least))}"
    elif part.kv_least > short:
        yield f"a KV cache of {_gib(part.kv_least - short)}"


def demand_met(shares: Sequence[Share], weight: float, fraction: float | None = None) -> Demand:
    """Return the demand of a loaded model for exactly its current devices and memory."""
    first, spread = shares[0], len(shares)
    return Demand(
        model_id=first.model_id,
        weights=first.weights * spread,
        kv_least=first.kv * spread,
        kv_wanted=first.kv * spread,
        activations=first.activations,
        overhead=first.overhead,
        weight=weight,
        devices=tuple(share.device for share in shares),
        spread=spread,
        fraction=fraction,
    )


def less(device: Device, nbytes: int) -> Device:
    """Return the device with ``nbytes`` less usable memory; a negative number changes nothing."""
    return evolve(device, usable=max(device.usable - max(nbytes, 0), 0))


def _gib(nbytes: int) -> str:
    return f"{nbytes / GIB:.2f} GiB"
