"""Control plane of sage-infer: places requests on many instances, and continues them when an instance is lost."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = [
    "ControlPlaneManager", "ControlPlaneSettings", "Drained", "LocalExecutor", "NotMigratable", "PoisonRequest",
    "ServedModel",
]  # fmt: skip

if TYPE_CHECKING:
    from sage_llm.manager.manager import ControlPlaneManager
    from sage_llm.manager.migration import NotMigratable, PoisonRequest
    from sage_llm.manager.models import ServedModel
    from sage_llm.manager.replica import Drained
    from sage_llm.manager.settings import ControlPlaneSettings
    from sage_llm.replicas.local import LocalExecutor

__getattr__ = lazy_exports(__name__, {
    "ControlPlaneManager": "manager.manager", "ControlPlaneSettings": "manager.settings", "Drained": "manager.replica",
    "LocalExecutor": "replicas.local", "NotMigratable": "manager.migration", "PoisonRequest": "manager.migration",
    "ServedModel": "manager.models",
})  # fmt: skip
