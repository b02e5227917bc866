"""Whether an engine supports separate prefill and decode: before it is configured, and when it runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_infer.schemas import KVCacheSchema

from sage_infer_vllm.kv.plan import FIRST_TOKEN_CLASS, connector_config

__all__ = ["DEVICES", "EXCLUDED", "connector_arguments", "handover_features"]

EXCLUDED = (
    "kv_transfer_config", "kv_offloading_size", "logits_processors", "speculative_config", "pipeline_parallel_size",
    "data_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size",
)  # fmt: skip
"""Engine arguments of vLLM that exclude holding KV: other connectors, and kinds of parallelism that are not tested."""

DEVICES = ("cpu", "cuda")
"""Hardware whose KV cache the connector copies; other accelerators that vLLM calls ``cuda`` are not among it."""

_PREFILL = ("prefill_decode",)
_TRANSFER = ("kv_export", "kv_import")


def connector_arguments(arguments: Mapping[str, Any], *, device: str, runner: str) -> dict[str, Any]:
    """Engine arguments for holding KV between prefill and decode; empty if that is not supported.

    ``device`` is the contract's name of the hardware.
    """
    if device not in DEVICES or runner != "generate" or arguments.get("tensor_parallel_size", 1) > 1:
        return {}
    if any(name in arguments for name in EXCLUDED):
        return {}
    return {"kv_transfer_config": connector_config(), "logits_processors": [FIRST_TOKEN_CLASS]}


def handover_features(
    schema: KVCacheSchema | None, facts: Mapping[str, Any], page_bytes: int
) -> tuple[tuple[str, ...], str]:
    """Features that a running engine may claim, and the reason if not all of them.

    Args:
        schema: schema of its KV cache; None if no schema describes it.
        facts: ``kv_facts`` of its worker.
        page_bytes: bytes of a page that the worker copies; 0 if it copies none.
    """
    if schema is None:
        return (), "no schema describes the model's KV cache"
    if schema.groups:
        return (), "the model's layers keep KV in several forms"
    if schema.value_width != schema.head_dim:
        return (), "keys and values differ in width (MLA), which is not tested"
    if not page_bytes:
        return (), (
            "vLLM holds KV between prefill and decode on one CPU device only (on one CUDA device with the option "
            "cuda_kv), and not with the engine arguments " + ", ".join(EXCLUDED)
        )
    if schema.bytes_per_page != page_bytes:
        return (), f"a page has {page_bytes} bytes in the engine and {schema.bytes_per_page} in its schema"
    if not _is_plain(schema, facts):
        return (
            _PREFILL,
            "the order of axes in a page is not known for this kernel, so no KV leaves the engine",
        )
    return (*_PREFILL, *_TRANSFER), ""


def _is_plain(schema: KVCacheSchema, facts: Mapping[str, Any]) -> bool:
    """Whether the place of each token in a page is known, so that the unused end of a page can be cleared.

    Scales of the whole cache come from the weights, and so every engine with these weights has the same ones; other
    scales are in the pages.
    """
    kernels = {layer["backend"] for layer in facts["layers"]}
    if kernels == {"CPU_ATTN"} and schema.key_axis_order is not None:
        return schema.scale_dtype is None or schema.scale_granularity == "tensor"
    return kernels == {"FLASH_ATTN"} and schema.scale_dtype is None
