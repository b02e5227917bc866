"""Memory demand and candidate devices of a model, from its files, its engine and user settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import BackendSpec, EngineMemory, ModelSizes

from sage_infer_planning.estimate import GIB, Demand, Workload, demand_of_sizes, estimate_demand
from sage_infer_planning.memory_planner import Device
from sage_infer_planning.model_shape import read_shape

__all__ = ["FRACTION_OPTION", "KV_OPTION", "SPREAD_OPTION", "candidates", "demand_of", "kind_of"]

KV_OPTION, FRACTION_OPTION = "kv_cache_gb", "memory_fraction"
SPREAD_OPTION = "tensor_parallel"
_KV_ON_CPU = GIB  # default KV in main memory, which has other uses


def demand_of(
    model: ModelDescriptor,
    engine: EngineMemory,
    options: Mapping[str, Any],
    names: tuple[str, ...],
    devices: Sequence[Device],
    *,
    weight: float,
    sizes: ModelSizes | None = None,
) -> Demand:
    """Return the demand of a model that can be placed on the devices ``names``.

    ``memory_gb`` of its descriptor replaces the size of its weights. ``sizes`` are given for a file format that only
    its backend reads. A model that names several devices is divided over them.
    """
    on_cpu = names == ("cpu",)
    # Main memory always counts as one device.
    spread = 1 if on_cpu else _whole(options, SPREAD_OPTION) or len(model.device_ids) or 1
    asked = _number(options, KV_OPTION)
    length = _whole(options, "max_sequence_length") or model.max_sequence_length
    run = Workload(
        least_weight_bits=engine.least_weight_bits,
        most_weight_bits=engine.most_weight_bits,
        has_tied_table_twice=engine.has_tied_table_twice,
        kv_bits=engine.kv_bits,
        max_sequence_length=length,
        max_batch_size=_whole(options, "max_batch_size") or model.max_batch_size or engine.max_batch_size,
        step_tokens=engine.step_tokens,
        kv_bytes=None if asked is None else int(asked * GIB) * spread,
        overhead_bytes=engine.overhead_bytes,
    )
    if model.memory_gb is not None:
        demand = Demand(
            model_id=model.model_id,
            weights=int(model.memory_gb * GIB),
            kv_least=run.kv_bytes or 0,
            kv_wanted=run.kv_bytes or 0,
        )
    elif sizes is not None:
        demand = demand_of_sizes(model.model_id, sizes, run)
    else:
        demand = estimate_demand(model.model_id, read_shape(Path(model.model_path)), run)
    demand = evolve(demand, weight=weight, devices=names, spread=spread)
    if run.kv_bytes is not None:
        return demand
    if engine.kv_bytes is not None and length is None:
        demand = evolve(demand, kv_least=min(demand.kv_least, engine.kv_bytes))
    fraction = _number(options, FRACTION_OPTION)
    smallest = min((device.total for device in devices if device.name in names), default=None)
    if fraction is not None and smallest is not None:
        part = evolve(demand, kv_least=0, kv_wanted=0).part
        kv = max(int(fraction * smallest) - part.least, demand.part.kv_least) * spread
        return evolve(demand, kv_least=kv, kv_wanted=kv, max_sequence_length=None)
    if on_cpu:
        demand = evolve(demand, kv_wanted=max(demand.kv_least, min(demand.kv_wanted, _KV_ON_CPU)))
    return demand


def _number(options: Mapping[str, Any], name: str) -> float | None:
    """Return an option if it is a number above 0, else None: the backend reports invalid values."""
    value = options.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if value > 0 else None


def _whole(options: Mapping[str, Any], name: str) -> int | None:
    value = _number(options, name)
    return None if value is None else int(value)


def candidates(model: ModelDescriptor, spec: BackendSpec, devices: Sequence[Device]) -> tuple[str, ...]:
    """Return the devices that the backend can use: accelerators of its kinds if there are any, else main memory.

    Main memory is device 0 of a backend that runs there.

    Raises:
        InvalidRequest: the model names devices that do not exist for this backend.
    """
    fast = [d.name for d in devices if kind_of(d.name) in spec.hardware - {"cpu"}]
    if not model.device_ids:
        return tuple(fast) or ("cpu",)
    chosen = tuple(name for name in fast if _number_of(name) in model.device_ids)
    known = {_number_of(name) for name in fast} or {0}
    if unknown := [number for number in model.device_ids if number not in known]:
        there = ", ".join(fast) or "0, which is main memory"
        raise InvalidRequest(
            f"model {model.model_id!r} names device {', '.join(map(str, unknown))}, but backend {spec.name!r} can use: "
            f"{there}; name one of these, or leave device_ids out"
        )
    return chosen or ("cpu",)


def _number_of(device: str) -> int:
    """0 of ``cuda:0``."""
    return int(device.partition(":")[2])


def kind_of(device: str) -> str:
    """``cuda`` of ``cuda:0``."""
    return device.partition(":")[0]
