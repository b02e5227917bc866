"""What a model will want, on which devices, from its files, its backend and what the user set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve
from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import BackendSpec

from sage_infer_hybrid.estimate import GIB, Demand, Workload, estimate
from sage_infer_hybrid.memory_planner import Device
from sage_infer_hybrid.model_shape import read_shape

__all__ = ["KV_OPTION", "demand_of"]

KV_OPTION = "kv_cache_gb"
_KV_ON_CPU = GIB  # what a model gets of main memory unless more is asked for: a machine has other uses for it
_OVERHEAD = {"cpu": 200 * 2**20}
_OVERHEAD_OF_ACCELERATORS = GIB  # context, workspaces, graphs


def demand_of(
    model: ModelDescriptor,
    spec: BackendSpec,
    options: Mapping[str, Any],
    devices: Sequence[Device],
    *,
    weight: float,
) -> Demand:
    """The model's demand; ``memory_gb`` of its descriptor counts instead of what its files tell about its weights."""
    names = _candidates(model, spec, devices)
    on_cpu = names == ("cpu",)
    asked = options.get(KV_OPTION)
    run = Workload(
        kv_bits=32 if on_cpu else 16,
        max_sequence_length=options.get("max_sequence_length") or model.max_sequence_length,
        max_batch_size=options.get("max_batch_size") or model.max_batch_size or 32,
        step_tokens=options.get("step_tokens") or options.get("token_budget") or 512,
        kv_bytes=int(asked * GIB) if isinstance(asked, int | float) else None,
        overhead_bytes=_OVERHEAD["cpu"] if on_cpu else _OVERHEAD_OF_ACCELERATORS,
    )
    if model.memory_gb is not None:
        demand = Demand(
            model_id=model.model_id, weights=int(model.memory_gb * GIB), kv_least=run.kv_bytes or 0
        )
    else:
        demand = estimate(model.model_id, read_shape(Path(model.model_path)), run)
    if on_cpu and run.kv_bytes is None:
        demand = evolve(demand, kv_wanted=max(demand.kv_least, min(demand.kv_wanted, _KV_ON_CPU)))
    return evolve(demand, weight=weight, devices=names)


def _candidates(model: ModelDescriptor, spec: BackendSpec, devices: Sequence[Device]) -> tuple[str, ...]:
    """Devices that the backend can use: accelerators of its kinds where there are any, else main memory."""
    fast = [d.name for d in devices if d.name.partition(":")[0] in spec.hardware - {"cpu"}]
    if model.device_ids:
        fast = [name for name in fast if int(name.partition(":")[2]) in model.device_ids]
    return tuple(fast) or ("cpu",)
