"""Several models on shared devices behind one ``HybridInferenceBackend``."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = ["Device", "HybridBackend", "MemoryPlan", "ModelConfig", "Share", "devices_of", "plan_memory"]

if TYPE_CHECKING:
    from sage_infer_hybrid.backend import HybridBackend
    from sage_infer_hybrid.config import ModelConfig
    from sage_infer_hybrid.memory_planner import Device, MemoryPlan, Share, devices_of, plan_memory

_HOMES = {"HybridBackend": "backend", "ModelConfig": "config"}
__getattr__ = lazy_exports(__name__, {name: _HOMES.get(name, "memory_planner") for name in __all__})
