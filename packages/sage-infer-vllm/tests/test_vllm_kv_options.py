"""Options of the KV cache."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.schemas import ModelDescriptor
from sage_infer_vllm.backend import VLLMBackend
from sage_infer_vllm.models.kv_options import cache_arguments
from sage_infer_vllm.platform import UPSTREAM, Platform

CPU = (
    "auto",
    "fp8",
    "fp8_e4m3",
    "fp8_e5m2",
)  # CPUAttentionBackend.supported_kv_cache_dtypes of vLLM 0.28 to 0.32
VENDOR = Platform(
    backend_name="vendor",
    engine={"vllm": ""},
    kv_dtypes={"int8": "int8", "bf16": "bfloat16"},
    block_sizes=(128,),
)
MODEL = ModelDescriptor(model_id="m", model_type="llm", model_path="/m")


@pytest.mark.parametrize(
    ("wanted", "arguments"),
    [
        (None, {}),
        ({}, {}),
        ({"preset": "fp8"}, {"kv_cache_dtype": "fp8"}),
        (
            {"preset": "bf16"},
            {"kv_cache_dtype": "auto"},
        ),  # the CPU keeps the model's precision; start() compares
        ({"page_size": 64}, {"block_size": 64}),
        ({"preset": "fp8", "page_size": 32}, {"kv_cache_dtype": "fp8", "block_size": 32}),
    ],
)
def test_presets_become_vllms_arguments(wanted: Any, arguments: dict[str, Any]) -> None:
    assert cache_arguments(wanted, UPSTREAM, CPU) == arguments


@pytest.mark.parametrize("preset", ["int8", "int4"])
def test_unsupported_presets_are_rejected_with_the_supported_ones(preset: str) -> None:
    with pytest.raises(
        CapabilityMismatch, match=f"does not support {preset} KV; available: fp8, and the model's own"
    ):
        cache_arguments({"preset": preset}, UPSTREAM, CPU)


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        (
            {"preset": "fp3"},
            CapabilityMismatch,
            "no KV preset 'fp3'; choose one of fp16, bf16, fp8, int8, int4",
        ),
        ({"pages": 4}, InvalidRequest, "kv_schema has no key 'pages'"),
        ({"page_size": 0}, InvalidRequest, "page_size must be a number of tokens ≥ 1, got 0"),
        ({"page_size": True}, InvalidRequest, "got True"),
    ],
)
def test_mistakes(wanted: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cache_arguments(wanted, UPSTREAM, CPU)


def test_a_vendors_table_decides_without_vllm() -> None:
    assert cache_arguments({"preset": "int8"}, VENDOR, None) == {"kv_cache_dtype": "int8"}
    with pytest.raises(
        CapabilityMismatch, match="vendor does not support fp8 KV; available: bf16, int8, and"
    ):
        cache_arguments({"preset": "fp8"}, VENDOR, None)
    with pytest.raises(CapabilityMismatch, match="vendor has KV pages of 128 tokens, not 16"):
        cache_arguments({"page_size": 16}, VENDOR, None)

    class Backend(VLLMBackend):
        platform = VENDOR

    with pytest.raises(CapabilityMismatch, match="vendor does not support fp8 KV"):
        Backend(MODEL, kv_schema={"preset": "fp8"})  # at once: nothing is loaded
