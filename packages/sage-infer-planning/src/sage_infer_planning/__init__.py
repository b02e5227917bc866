"""Memory planning for models on devices, and look-up of models by name. Loads no model and uses no device."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = [
    "Demand", "Device", "MemoryPlan", "ModelEntry", "ModelRegistry", "ModelRouter", "ModelShape", "Share", "Workload",
    "candidates", "demand_met", "demand_of", "demand_of_sizes", "devices_of", "estimate_demand", "less", "plan_memory",
    "read_shape", "shape_of_config",
]  # fmt: skip

if TYPE_CHECKING:
    from sage_infer_planning.estimate import Demand, Workload, demand_of_sizes, estimate_demand
    from sage_infer_planning.memory_planner import (
        Device,
        MemoryPlan,
        Share,
        demand_met,
        devices_of,
        less,
        plan_memory,
    )
    from sage_infer_planning.model_shape import ModelShape, read_shape, shape_of_config
    from sage_infer_planning.placement import candidates, demand_of
    from sage_infer_planning.registry import ModelEntry, ModelRegistry
    from sage_infer_planning.router import ModelRouter

_NAMES = {
    "estimate": ("Demand", "Workload", "demand_of_sizes", "estimate_demand"),
    "memory_planner": ("Device", "MemoryPlan", "Share", "demand_met", "devices_of", "less", "plan_memory"),
    "model_shape": ("ModelShape", "read_shape", "shape_of_config"),
    "placement": ("candidates", "demand_of"),
    "registry": ("ModelEntry", "ModelRegistry"),
    "router": ("ModelRouter",),
}
__getattr__ = lazy_exports(__name__, {name: home for home, names in _NAMES.items() for name in names})
