"""The machine's memory, divided between all replicas: no replica plans with the whole of it."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from sage_infer.backends import find_backend
from sage_infer.errors import BackendUnavailable, OutOfMemory
from sage_infer.factories import call_path
from sage_infer.names import GENERATING
from sage_infer.specs import BackendSpec, EngineMemory, ModelSizes
from sage_infer_planning.estimate import GIB, Demand
from sage_infer_planning.memory_planner import Device, MemoryPlan, Share, plan_memory
from sage_infer_planning.placement import FRACTION_OPTION, KV_OPTION, candidates, demand_of, kind_of

from sage_llm.manager.models import ServedModel

__all__ = ["machine_devices", "with_memory"]

_MANY = 1024  # replicas of which nobody wants to know whether they would fit
_WEIGHTS = {"llm": 2.0, "multimodal": 2.0}  # of left-over memory; other types: 1


def machine_devices() -> tuple[Device, ...]:
    """The devices of this machine with known memory; none if no detector is installed."""
    from sage_infer_hal.machine import detect_machine
    from sage_infer_planning.memory_planner import devices_of

    return devices_of(detect_machine())


def with_memory(models: Sequence[ServedModel], devices: Sequence[Device]) -> list[ServedModel]:
    """The models with the memory of each replica, where the user has not set it.

    An option ``kv_cache_gb`` gets the planned size of the KV cache. On accelerators, ``memory_fraction`` gets the
    replica's share, and each replica its own devices.

    Raises:
        OutOfMemory: the replicas do not fit together; the message names what is missing, and what would fit.
    """
    demands = {}
    for model in models:
        spec = find_backend(model.backend).spec
        if spec is not None and model.count and devices:
            demands[model.descriptor.model_id] = _demand(model, spec, devices)
    counts = {model.descriptor.model_id: model.count for model in models}
    try:
        plan = _plan(models, counts, demands, devices)
    except OutOfMemory:
        raise OutOfMemory(_refusal(models, counts, demands, devices)) from None
    return [_planned(model, devices, plan.shares) for model in models]


def _plan(
    models: Sequence[ServedModel],
    counts: Mapping[str, int],
    demands: Mapping[str, Demand],
    devices: Sequence[Device],
) -> MemoryPlan:
    every = []
    for model in models:
        name = model.descriptor.model_id
        if name in demands:
            every += [attrs.evolve(demands[name], model_id=f"{name}/{n}") for n in range(counts[name])]
    return plan_memory(devices, every, "mps")


def _refusal(
    models: Sequence[ServedModel],
    counts: Mapping[str, int],
    demands: Mapping[str, Demand],
    devices: Sequence[Device],
) -> str:
    """What each replica needs, what there is, and how many would fit."""

    def fits(count: int) -> bool:
        try:
            _plan(models, {**counts, most: count}, demands, devices)
        except OutOfMemory:
            return False
        return True

    needs = []
    for name, demand in demands.items():
        part = demand.part
        kv = part.kv_least / GIB
        needs.append(
            f"{counts[name]} of {name!r} need at least {part.least / GIB:.2f} GiB each (KV {kv:.2f} GiB)"
        )
    most = max(demands, key=lambda name: counts[name])
    fitting = bisect.bisect_left(
        range(1, min(counts[most], _MANY) + 1), True, key=lambda count: not fits(count)
    )
    there = ", ".join(f"{device.name} {device.usable / GIB:.2f} GiB" for device in devices)
    hint = f"at most {fitting} of {most!r} fit; start fewer, or " if fitting else ""
    return (
        f"{sum(counts[name] for name in demands)} replicas do not fit on this machine together: {', '.join(needs)}; "
        f"usable: {there}; {hint}lower max_sequence_length or kv_cache_gb"
    )


def _demand(model: ServedModel, spec: BackendSpec, devices: Sequence[Device]) -> Demand:
    info, options = find_backend(model.backend), dict(model.options)
    names = candidates(model.descriptor, spec, devices)
    memory, sizes = EngineMemory(), None
    if spec.memory is not None:
        try:
            memory = call_path(
                spec.memory,
                what=info.title,
                model=model.descriptor,
                options=options,
                hardware=kind_of(names[0]),
            )
        except BackendUnavailable as error:
            if not (options and isinstance(error.__cause__, AttributeError | TypeError)):
                raise  # else an option has the wrong type, which the backend will report
    if spec.sizes is not None:
        found = call_path(spec.sizes, what=info.title, model=model.descriptor)
        sizes = found if isinstance(found, ModelSizes) else None
    weight = _WEIGHTS.get(model.descriptor.model_type, 1.0)
    return demand_of(model.descriptor, memory, options, names, devices, weight=weight, sizes=sizes)


def _planned(model: ServedModel, devices: Sequence[Device], shares: Sequence[Share]) -> ServedModel:
    name = model.descriptor.model_id
    here = [spec.replica_id for spec in model.specs[: model.count]]
    own = {
        replica_id: [share for share in shares if share.model_id == f"{name}/{number}"]
        for number, replica_id in enumerate(here)
    }
    found = [share for several in own.values() for share in several]
    spec = find_backend(model.backend).spec
    if not found or spec is None:
        return model
    given: dict[str, Any] = {}
    kv = min(share.kv for share in found)
    if kv and KV_OPTION in spec.options and model.descriptor.model_type in GENERATING:
        given[KV_OPTION] = round(kv / GIB, 3)
    numbers: Mapping[str, tuple[int, ...]] = {}
    if kind_of(found[0].device) != "cpu":
        if FRACTION_OPTION in spec.options:
            totals = {device.name: device.total for device in devices}
            given[FRACTION_OPTION] = round(min(share.total / totals[share.device] for share in found), 3)
        numbers = {
            replica_id: tuple(int(share.device.partition(":")[2]) for share in several)
            for replica_id, several in own.items()
            if several
        }
    return attrs.evolve(model, options={**given, **model.options}, devices=numbers)
