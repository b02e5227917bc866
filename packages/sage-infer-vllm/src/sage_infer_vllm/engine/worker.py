"""Runs in vLLM's worker processes: the platform's worker, extended with progress reports and KV facts.

vLLM names its worker class by a string (``worker_cls``), so a subclass needs no change in vLLM. The base
class and the address for reports are passed in the environment that the engine's processes inherit.
"""

from __future__ import annotations

import os
from typing import Any

from sage_infer_vllm.engine.kv_facts import kv_facts
from sage_infer_vllm.engine.news import tell, tell_failure

__all__ = ["BASE", "CLASS", "STAGES"]

BASE = "SAGE_INFER_VLLM_WORKER"
CLASS = "sage_infer_vllm.engine.worker.Worker"

STAGES = {
    "init_device": ("preparing the device", 0.05),
    "load_model": ("loading weights", 0.1),
    "determine_available_memory": ("measuring memory", 0.6),
    "initialize_from_config": ("allocating the KV cache", 0.7),
    "compile_or_warm_up_model": ("warming up", 0.75),
}
"""What vLLM calls while it starts, in this order: what people read, and the share of the start that lies before it."""


def _reporting(base: type[Any]) -> type[Any]:
    """``base`` with methods that report that they begin, and what they raise."""

    def wrap(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if name in STAGES:
                tell(stage=name)
            try:
                return getattr(super(reporting, self), name)(*args, **kwargs)
            except Exception as error:
                tell_failure(error)
                raise

        method.__name__ = name
        return method

    # A failure of a step is the cause of a start that fails with its first request; later nobody listens.
    methods: dict[str, Any] = {name: wrap(name) for name in (*STAGES, "execute_model")}
    reporting = type("Worker", (base,), {**methods, "sage_kv_facts": kv_facts, "__module__": __name__})
    return reporting


def __getattr__(name: str) -> Any:
    if name != "Worker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = os.environ[BASE].rpartition(".")
    globals()["Worker"] = _reporting(getattr(import_module(module), attribute))
    return globals()["Worker"]
