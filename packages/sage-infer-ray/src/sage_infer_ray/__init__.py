"""Executor of sage-infer on Ray: replicas as named actors in placement groups of a cluster."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = ["RayExecutor"]

if TYPE_CHECKING:
    from sage_infer_ray.executor import RayExecutor

__getattr__ = lazy_exports(__name__, {"RayExecutor": "executor"})
