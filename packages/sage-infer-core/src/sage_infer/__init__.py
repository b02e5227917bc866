"""One contract for LLM inference on any engine and any accelerator. See ``sage_infer.contracts`` and ``.schemas``."""

from typing import TYPE_CHECKING

from sage_infer.lazy import lazy_exports

__all__ = [
    "CONTRACT_VERSION", "BackendSpec", "CommandSpec", "ConfigSpec", "DetectorSpec", "ExecutorSpec",
    "KVFormatSpec", "KVStoreSpec", "ModelSpec", "Need", "RequestOptions", "SageInferError", "SamplingParams",
    "TransportSpec", "hookimpl", "list_backends", "open_backend", "resolve_model",
]  # fmt: skip

if TYPE_CHECKING:
    from sage_infer.backends import list_backends, open_backend
    from sage_infer.errors import SageInferError
    from sage_infer.hookspecs import hookimpl
    from sage_infer.models import resolve_model
    from sage_infer.schemas import RequestOptions, SamplingParams
    from sage_infer.specs import BackendSpec, CommandSpec, ConfigSpec, DetectorSpec, ExecutorSpec
    from sage_infer.specs import KVFormatSpec, KVStoreSpec, ModelSpec, Need, TransportSpec  # isort: skip
    from sage_infer.version import CONTRACT_VERSION

_HOMES = {"CONTRACT_VERSION": "version", "SageInferError": "errors", "RequestOptions": "schemas",
          "SamplingParams": "schemas", "hookimpl": "hookspecs", "list_backends": "backends",
          "open_backend": "backends", "resolve_model": "models"}  # fmt: skip
_HOMES |= {name: "specs" for name in __all__ if name.endswith("Spec") or name == "Need"}
__getattr__ = lazy_exports(__name__, _HOMES)
