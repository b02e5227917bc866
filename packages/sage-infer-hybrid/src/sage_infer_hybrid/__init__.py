"""Several models on shared devices behind one ``HybridInferenceBackend``."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = ["HybridBackend", "ModelConfig"]

if TYPE_CHECKING:
    from sage_infer_hybrid.backend import HybridBackend
    from sage_infer_hybrid.config import ModelConfig

__getattr__ = lazy_exports(__name__, {"HybridBackend": "backend", "ModelConfig": "config"})
