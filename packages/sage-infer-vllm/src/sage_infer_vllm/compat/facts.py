"""vLLM's configuration, and what this version of it can do."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import vllm
from vllm.config import KVTransferConfig, StructuredOutputsConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM

__all__ = [
    "connector_gap", "engine_config", "guided_needs_float32", "max_model_len", "torch_version", "total_kv_heads",
    "traces", "version",
]  # fmt: skip


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
    config = AsyncEngineArgs(**found).create_engine_config(usage_context=UsageContext.OPENAI_API_SERVER)
    kv_bytes = found.get("kv_cache_memory_bytes")
    if kv_bytes is not None and hasattr(config.cache_config, "cpu_kvcache_space_bytes"):
        # Up to 0.18, the worker on a CPU reads only this field, which vLLM itself fills in whole GiB.
        config.cache_config.cpu_kvcache_space_bytes = kv_bytes
    return config


def guided_needs_float32() -> bool:
    """Whether guided decoding in other types than float32 would end the engine: on a CPU before 0.15.

    The xgrammar that 0.13 pins accepts float32 logits only. Newer versions convert the logits, or pin an xgrammar that
    does.
    """
    if not current_platform.is_cpu():
        return False
    from packaging.version import Version

    return Version(version()).release < (0, 15)


def connector_gap() -> str:
    """What this version lacks for holding KV between prefill and decode, and for KV stores; empty if nothing."""
    hooks = {"bind_gpu_block_pool", "on_new_request"}
    if hooks <= vars(KVConnectorBase_V1).keys() and hasattr(AsyncLLM, "notify_kv_transfer_request_rejected"):
        return ""
    return f"vLLM {version()} has no hooks for held KV (0.23 has them)"


def version() -> str:
    return str(vllm.__version__)


def torch_version() -> str:
    return importlib.metadata.version("torch")


def total_kv_heads(llm: AsyncLLM) -> int:
    """KV heads of the model over all tensor-parallel ranks."""
    return int(llm.vllm_config.model_config.get_total_num_kv_heads())


def traces(llm: AsyncLLM) -> bool:
    """Whether the engine exports traces; otherwise it drops the trace context of requests."""
    return llm.observability_config.otlp_traces_endpoint is not None


def max_model_len(llm: AsyncLLM) -> int:
    """Maximum sequence length, which vLLM may have reduced to fit the KV cache."""
    return int(llm.vllm_config.model_config.max_model_len)
