"""Imports vLLM for this wheel, besides ``kv``, and hides differences between versions.

Imported only when an engine starts. Tested with vLLM 0.28, 0.30 and 0.32.
"""

from __future__ import annotations

import importlib.metadata
import os

# By default vLLM sends usage statistics to vllm.ai; users can enable this with the variable. Logs go to standard
# error, as standard output is reserved for results.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# As ``vllm serve`` sets it. vLLM's own default forks, and a forked engine never runs ``sage_infer_vllm.engine.child``:
# it has no group of its own, so nothing ends its workers, and this process's threads are gone in it.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import vllm
from sage_infer.contracts import ChatAnswer, ToolCall
from sage_infer.errors import UnsupportedFeature
from vllm import PoolingParams, SamplingParams
from vllm.config import KVTransferConfig, StructuredOutputsConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMClientError
from vllm.inputs.engine import tokens_input
from vllm.lora.request import LoRARequest
from vllm.outputs import PoolingRequestOutput, RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.async_utils import cancel_task_threadsafe
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.metrics.loggers import StatLoggerBase

__all__ = [
    "AsyncLLM", "EngineDeadError", "LoRARequest", "PoolingParams", "PoolingRequestOutput",
    "RequestOutput", "RequestOutputKind", "SamplingParams", "StructuredOutputsParams", "VLLMClientError", "abort_now",
    "active_platform_plugins", "attach", "cache_dtypes", "current_platform", "engine_config", "engine_pids",
    "max_model_len", "release_held", "shut_down", "stat_logger", "tokens_input", "tool_parser", "torch_version",
    "total_kv_heads", "traces", "version", "warm_up",
]  # fmt: skip


_GRACE_S = 2.0


def engine_config(arguments: Mapping[str, Any]) -> Any:
    """vLLM's configuration for these engine arguments, after vLLM's checks of model, platform and arguments.

    Defaults are those of ``vllm serve``, because vLLM's limits of steps and batches depend on the usage context.
    """
    found = dict(arguments)
    guided = found.get("structured_outputs_config")
    if isinstance(guided, Mapping):
        found["structured_outputs_config"] = StructuredOutputsConfig(**guided)
    transfer = found.get("kv_transfer_config")
    if isinstance(transfer, Mapping):
        found["kv_transfer_config"] = KVTransferConfig(**transfer)
    return AsyncEngineArgs(**found).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)


def version() -> str:
    return str(vllm.__version__)


def torch_version() -> str:
    return importlib.metadata.version("torch")


def attach(collector: Any, put: Callable[[Any], None]) -> None:
    """Deliver a request's outputs to ``put`` on arrival, instead of to a waiting task.

    Saves a wake-up per token. Outputs that arrived before this call are delivered immediately.
    """
    collector.put = put
    arrived, collector.output = collector.output, None
    if arrived is not None:
        put(arrived)


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


def active_platform_plugins() -> list[str]:
    """Names of the platform plug-ins that provide vLLM's current platform class."""
    from importlib.metadata import entry_points

    active = type(current_platform)
    qualified = f"{active.__module__}.{active.__qualname__}"
    # A plug-in is a function that returns the qualified name of its platform, or None without its hardware.
    return [
        entry.name for entry in entry_points(group="vllm.platform_plugins") if entry.load()() == qualified
    ]


def engine_pids(llm: AsyncLLM) -> list[int]:
    """Process ids of the engine's core processes."""
    manager = llm.engine_core.resources.engine_manager
    return [process.pid for process in getattr(manager, "processes", ()) if process.pid is not None]


def shut_down(llm: AsyncLLM) -> None:
    """Terminate the engine's processes, and kill the remaining ones; blocks for a few seconds at most."""
    if llm.output_handler is not None:
        # Otherwise the monitor logs the engine's exit as a crash with a traceback; vLLM cancels it too late.
        cancel_task_threadsafe(llm.output_handler)
    llm.shutdown(timeout=_GRACE_S)


async def warm_up(llm: AsyncLLM) -> None:
    """Run one tiny request, so that lazy compilation and loading are part of the start."""
    params = SamplingParams(
        temperature=0.0, max_tokens=2, ignore_eos=True, output_kind=RequestOutputKind.FINAL_ONLY
    )
    async for _ in llm.generate(tokens_input([0]), params, "warm-up"):
        pass


def abort_now(llm: AsyncLLM, collector: Any) -> Any:
    """Abort the request behind a collector, as an awaitable."""
    return llm.abort(collector.request_id, internal=True)


def release_held(llm: AsyncLLM, params: Mapping[str, Any], name: str) -> Any:
    """Hand ``kv_transfer_params`` to the engine's connector, also in an idle engine, as an awaitable."""
    return llm.notify_kv_transfer_request_rejected(f"release-{name}", dict(params))


def total_kv_heads(llm: AsyncLLM) -> int:
    """KV heads of the model over all tensor-parallel ranks."""
    return int(llm.vllm_config.model_config.get_total_num_kv_heads())


def traces(llm: AsyncLLM) -> bool:
    """Whether the engine exports traces; otherwise it drops the trace context of requests."""
    return llm.observability_config.otlp_traces_endpoint is not None


def max_model_len(llm: AsyncLLM) -> int:
    """Maximum sequence length, which vLLM may have reduced to fit the KV cache."""
    return int(llm.vllm_config.model_config.max_model_len)


def tool_parser(name: str, tokenizer: Any) -> Callable[[str, Sequence[Mapping[str, Any]] | None], ChatAnswer]:
    """vLLM's parser with this name, as a function of an answer's text and the tools.

    Raises:
        UnsupportedFeature: this vLLM has no such parser, or the model's tokenizer lacks its tokens.
    """
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers import ToolParserManager

    try:
        parser = ToolParserManager.get_tool_parser(name)
        parser(tokenizer)
    except KeyError:
        known = ", ".join(sorted(ToolParserManager.list_registered()))
        raise UnsupportedFeature(f"vLLM has no tool parser {name!r}; available: {known}") from None
    except (RuntimeError, ValueError) as error:
        raise UnsupportedFeature(f"tool parser {name!r} does not support the model: {error}") from error

    def parse(text: str, tools: Sequence[Mapping[str, Any]] | None) -> ChatAnswer:
        # Parsers keep state between calls, so each answer needs its own.
        request = ChatCompletionRequest(
            messages=[], model="", tools=[dict(tool) for tool in tools or ()] or None
        )
        found = parser(tokenizer, request.tools).extract_tool_calls(text, request)
        calls = tuple(
            ToolCall(name=c.function.name, arguments=c.function.arguments) for c in found.tool_calls
        )
        return ChatAnswer(content=(found.content or "") if calls else text, tool_calls=calls)

    return parse


def cache_dtypes(device: str) -> Sequence[str]:
    """All ``kv_cache_dtype`` values that attention supports on this device, as reported by vLLM before the start."""
    from typing import get_args

    from vllm.config.cache import CacheDType

    if device == "cpu":
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        return tuple(CPUAttentionBackend.supported_kv_cache_dtypes)
    return get_args(CacheDType)
