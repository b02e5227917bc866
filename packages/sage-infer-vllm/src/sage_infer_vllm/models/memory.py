"""vLLM's memory requirements for a model (``BackendSpec.memory``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import EngineMemory

__all__ = ["engine_memory"]

_KV_BITS = {"fp8": 8.0, "int8": 9.0, "int4": 5.0}
_CPU_BYTES = 1536 * 2**20  # torch and vLLM in two processes
# Tokens and sequences per step: vllm serve's defaults on a CPU, and its maxima on accelerators with less than 160 GiB.
_CPU_BATCH, _DEVICE_BATCH = (2048, 128), (8192, 1024)
_DEVICE_BYTES = 1536 * 2**20  # the device's context, its graphs, workspaces of attention and collectives


def engine_memory(*, model: ModelDescriptor, options: Mapping[str, Any], hardware: str) -> EngineMemory:
    """Memory requirements of a generating model, an encoder or a reranker on any platform of vLLM."""
    bits = {"float32": 32.0}.get(options.get("dtype", "auto"))
    on_cpu = hardware == "cpu"
    step_tokens, sequences = _CPU_BATCH if on_cpu else _DEVICE_BATCH
    preset = (options.get("kv_schema") or {}).get("preset", "")
    return EngineMemory(
        least_weight_bits=bits,
        kv_bits=_KV_BITS.get(preset, bits or 16.0),
        step_tokens=(options.get("engine_options") or {}).get("max_num_batched_tokens", step_tokens),
        max_batch_size=sequences,
        overhead_bytes=_CPU_BYTES if on_cpu else _DEVICE_BYTES,
    )
