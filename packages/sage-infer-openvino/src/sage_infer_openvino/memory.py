"""Memory requirements of this package's engines (``BackendSpec.memory``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_infer.schemas import ModelDescriptor
from sage_infer.specs import EngineMemory

__all__ = ["decoder_memory", "encoder_memory"]

# Bits per weight, including one scale, and for 4 bits one minimum, per group of 32 or more; see weight_format.
_WEIGHT_BITS = {
    "int8": (None, 8.5),
    "int4": (None, 6.0),
    "exact": (None, None),
    "bf16": (16, 16),
    "f32": (32, 32),
}
_KV_BITS = {"f32": 32.0, "bf16": 16.0, "f16": 16.0, "fp16": 16.0, "u8": 9.5, "int8": 9.5}
# Memory besides weights, KV and activations, measured with OpenVINO 2026.4 on a CPU: compiled kernels, the graph, a
# tokenizer, and 60 MiB of library pages, which models in one process share. Pages of the mapped weight file are not
# included: most computation uses packed copies, so the system can reclaim the pages.
_DECODER_BYTES = 200 * 2**20
_ENCODER_BYTES = 140 * 2**20


def decoder_memory(*, model: ModelDescriptor, options: Mapping[str, Any], hardware: str) -> EngineMemory:
    least, most = _WEIGHT_BITS.get(options.get("weight_format", "int8"), (None, None))
    preset = (options.get("kv_schema") or {}).get("preset")
    kv = preset or options.get("kv_precision") or options.get("precision") or "f32"
    return EngineMemory(
        least_weight_bits=least,
        most_weight_bits=most,
        kv_bits=_KV_BITS.get(kv, 32.0),
        kv_bytes=2**30,
        has_tied_table_twice=True,
        step_tokens=options.get("step_tokens", 512),
        overhead_bytes=_DECODER_BYTES,
    )


def encoder_memory(*, model: ModelDescriptor, options: Mapping[str, Any], hardware: str) -> EngineMemory:
    return EngineMemory(step_tokens=options.get("token_budget", 1024), overhead_bytes=_ENCODER_BYTES)
