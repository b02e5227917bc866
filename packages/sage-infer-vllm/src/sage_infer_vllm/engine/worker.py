"""Runs in vLLM's worker processes: the platform's worker, extended with progress reports and KV facts.

vLLM names its worker class by a string (``worker_cls``), so a subclass needs no change in vLLM. The base
class and the address for reports are passed in the environment that the engine's processes inherit.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from sage_infer_vllm.engine.start_reports import report, report_failure
from sage_infer_vllm.kv.facts import kv_facts

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
"""Methods that vLLM calls during the start, in order: the stage's name, and the progress before it, 0 to 1."""


def _reporting(base: type[Any]) -> type[Any]:
    """A subclass of ``base`` that reports the start and exceptions of these methods."""

    def wrap(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            if name in STAGES:
                report(stage=name)
            try:
                return getattr(super(reporting, self), name)(*args, **kwargs)
            except Exception as error:
                report_failure(error)
                raise

        method.__name__ = name
        return method

    # A failed step is the cause of what vLLM reports as a dead engine.
    methods: dict[str, Any] = {name: wrap(name) for name in (*STAGES, "execute_model")}
    calls = {"sage_kv_facts": kv_facts, "sage_page_bytes": _page_bytes, "sage_read_pages": _read_pages}
    reporting = type("Worker", (base,), {**methods, **calls, "__module__": __name__})
    return reporting


def _page_bytes(self: Any) -> int:
    from sage_infer_vllm.kv.access import page_bytes  # it imports vLLM

    return page_bytes()


def _read_pages(self: Any, file: str, first: int, blocks: Sequence[int]) -> None:
    from sage_infer_vllm.kv.access import read_pages

    read_pages(file, first, blocks)


def __getattr__(name: str) -> Any:
    if name != "Worker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module, _, attribute = os.environ[BASE].rpartition(".")
    globals()["Worker"] = _reporting(getattr(import_module(module), attribute))
    return globals()["Worker"]
