"""vLLM's engine: its processes, its statistics, its end."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from vllm.utils.async_utils import cancel_task_threadsafe
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

from sage_infer_vllm.compat.requests import RequestOutputKind, SamplingParams, tokens_input

__all__ = [
    "AsyncLLM", "EngineDeadError", "engine_pids", "release_held", "shut_down", "stat_logger", "warm_up",
]  # fmt: skip

_GRACE_S = 2.0


def stat_logger(record: Callable[[Any, Any], None]) -> Callable[[Any, int], StatLoggerBase]:
    """A stat logger for ``AsyncLLM`` that passes each step's statistics to ``record(scheduler, iteration)``."""

    class Recorder(StatLoggerBase):  # type: ignore[misc]  # vLLM is not installed for type checks
        def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
            self.engine_index = engine_index

        def record(self, scheduler_stats: Any, iteration_stats: Any, *rest: Any, **more: Any) -> None:
            record(scheduler_stats, iteration_stats)

        def log_engine_initialized(self) -> None:
            """Log nothing."""

    return Recorder


def engine_pids(llm: AsyncLLM) -> list[int]:
    """Process ids of the engine's core processes."""
    manager = llm.engine_core.resources.engine_manager
    return [process.pid for process in getattr(manager, "processes", ()) if process.pid is not None]


def shut_down(llm: AsyncLLM) -> None:
    """Terminate the engine's processes, and kill the remaining ones; blocks for a few seconds at most."""
    if llm.output_handler is not None:
        # Otherwise the monitor logs the engine's exit as a crash with a traceback; vLLM cancels it too late.
        cancel_task_threadsafe(llm.output_handler)
    if "timeout" in inspect.signature(llm.shutdown).parameters:
        llm.shutdown(timeout=_GRACE_S)
    else:  # up to 0.15
        llm.shutdown()


async def warm_up(llm: AsyncLLM) -> None:
    """Run one tiny request, so that lazy compilation and loading are part of the start.

    It asks for log probabilities, unless the engine runs without compiled graphs to start faster: vLLM compiles their
    kernel for the first request with them, for which all others would wait.
    """
    config = llm.vllm_config.model_config
    params = SamplingParams(
        temperature=0.0,
        max_tokens=2,
        ignore_eos=True,
        logprobs=None if config.enforce_eager or not config.max_logprobs else 1,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    async for _ in llm.generate(tokens_input([0]), params, "warm-up"):
        pass


def release_held(llm: AsyncLLM, params: Mapping[str, Any], name: str) -> Any:
    """Hand ``kv_transfer_params`` to the engine's connector, also in an idle engine, as an awaitable."""
    return llm.notify_kv_transfer_request_rejected(f"release-{name}", dict(params))
