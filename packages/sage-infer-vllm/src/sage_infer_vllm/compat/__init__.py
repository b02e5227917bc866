"""Imports vLLM for this wheel, besides ``kv``, and hides differences between versions; one module per subject.

Imported only when an engine starts. Differences are found by looking (imports, attributes, signatures), because
vendors' builds carry changes of other releases. The README has a table of the versions that the tests ran on.
"""

from __future__ import annotations

import os

# By default vLLM sends usage statistics to vllm.ai; users can enable this with the variable. Logs go to standard
# error, as standard output is reserved for results.
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# As ``vllm serve`` sets it. vLLM's own default forks, and threads of this process are gone in a forked engine, with the
# locks that they held. ``process.engine_start`` handles both, as users and vendors' platforms can choose ``fork``.
os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")

from sage_infer_vllm.compat.engines import (
    AsyncLLM,
    EngineDeadError,
    engine_pids,
    release_held,
    shut_down,
    stat_logger,
    warm_up,
)
from sage_infer_vllm.compat.facts import (
    connector_gap,
    engine_config,
    guided_needs_float32,
    max_model_len,
    torch_version,
    total_kv_heads,
    traces,
    version,
)
from sage_infer_vllm.compat.platforms import active_platform_plugins, cache_dtypes, current_platform
from sage_infer_vllm.compat.requests import (
    LoRARequest,
    PoolingParams,
    PoolingRequestOutput,
    RequestOutput,
    RequestOutputKind,
    SamplingParams,
    StructuredOutputsParams,
    VLLMClientError,
    abort_now,
    add_request,
    attach,
    tokenizer_of,
    tokens_input,
)
from sage_infer_vllm.compat.tools import tool_parser

__all__ = [
    "AsyncLLM", "EngineDeadError", "LoRARequest", "PoolingParams", "PoolingRequestOutput", "RequestOutput",
    "RequestOutputKind", "SamplingParams", "StructuredOutputsParams", "VLLMClientError", "abort_now",
    "active_platform_plugins", "add_request", "attach", "cache_dtypes", "connector_gap", "current_platform",
    "engine_config", "engine_pids", "guided_needs_float32", "max_model_len", "release_held", "shut_down",
    "stat_logger", "tokenizer_of", "tokens_input", "tool_parser", "torch_version", "total_kv_heads", "traces",
    "version", "warm_up",
]  # fmt: skip
