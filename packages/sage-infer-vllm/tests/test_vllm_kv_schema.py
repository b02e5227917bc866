"""What a user may ask of the KV cache, and the schema of the cache that a worker reports."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.schemas import ModelDescriptor
from sage_infer_vllm.backend import VLLMBackend
from sage_infer_vllm.models.kv_schema import axis_order, cache_arguments, kv_schema_of
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

# As vLLM 0.32 reports the cache of SmolLM2-135M on a CPU.
LAYER = {
    "kind": "FullAttentionSpec", "block_size": 128, "num_heads": 3, "head_dim": 64, "dtype": "bfloat16",
    "page_bytes": 2 * 128 * 3 * 64 * 2,
}  # fmt: skip
FACTS: dict[str, Any] = {
    "layers": [LAYER] * 30, "backend": "CPU_ATTN", "shape": [364, 3, 128, 128], "stride": [49152, 16384, 128, 1],
    "tensor_dtype": "bfloat16",
}  # fmt: skip


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
def test_what_the_platform_cannot_do_is_refused_with_what_it_can(preset: str) -> None:
    with pytest.raises(CapabilityMismatch, match=f"keeps no KV in {preset}; it has fp8, and the model's own"):
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
    with pytest.raises(CapabilityMismatch, match="vendor keeps no KV in fp8; it has bf16, int8, and"):
        cache_arguments({"preset": "fp8"}, VENDOR, None)
    with pytest.raises(CapabilityMismatch, match="vendor has KV pages of 128 tokens, not 16"):
        cache_arguments({"page_size": 16}, VENDOR, None)

    class Backend(VLLMBackend):
        platform = VENDOR

    with pytest.raises(CapabilityMismatch, match="vendor keeps no KV in fp8"):
        Backend(MODEL, kv_schema={"preset": "fp8"})  # at once: nothing is loaded


def test_the_schema_is_exact_to_the_byte() -> None:
    schema = kv_schema_of(FACTS, cache_dtype="auto", version="0.32.0")
    assert schema is not None
    assert (schema.dtype, schema.page_size, schema.num_layers, schema.num_heads, schema.head_dim) == (
        "bf16", 128, 30, 3, 64,
    )  # fmt: skip
    assert schema.bytes_per_page == 30 * LAYER["page_bytes"]  # type: ignore[operator]  # an int of the mapping
    assert schema.axis_order == ("layer", "head", "kv", "token", "dim")
    assert schema.format_id == "vllm-0.32.0-cpu_attn"


def test_quantized_caches_have_scales() -> None:
    layer = {**LAYER, "dtype": "uint8", "page_bytes": LAYER["page_bytes"] // 2}  # type: ignore[operator]
    facts = {**FACTS, "layers": [layer] * 2}
    fp8 = kv_schema_of(facts, cache_dtype="fp8", version="1")
    assert fp8 is not None
    assert (fp8.dtype, fp8.scale_dtype, fp8.scale_granularity) == ("fp8_e4m3", "fp32", "tensor")
    e5m2 = kv_schema_of(facts, cache_dtype="fp8_e5m2", version="1")
    assert e5m2 is not None
    assert e5m2.dtype == "fp8_e5m2"


def test_what_no_schema_describes_is_refused() -> None:
    assert kv_schema_of({**FACTS, "layers": []}, cache_dtype="auto", version="1") is None
    other = {**LAYER, "num_heads": 1}
    with pytest.raises(CapabilityMismatch, match="2 layers keep KV in different forms"):
        kv_schema_of({**FACTS, "layers": [LAYER, other]}, cache_dtype="auto", version="1")
    with pytest.raises(CapabilityMismatch, match="keeps a KV page in 7 bytes a layer where bf16 means 98304"):
        kv_schema_of({**FACTS, "layers": [{**LAYER, "page_bytes": 7}]}, cache_dtype="auto", version="1")
    with pytest.raises(CapabilityMismatch, match="type complex64"):
        kv_schema_of({**FACTS, "layers": [{**LAYER, "dtype": "complex64"}]}, cache_dtype="auto", version="1")


@pytest.mark.parametrize(
    ("shape", "stride", "order"),
    [
        # FlashAttention: [2, blocks, tokens, heads, dim]
        ([2, 9, 16, 8, 128], [147456, 16384, 1024, 128, 1], ("kv", "token", "head", "dim")),
        # FlashInfer in HND: the same shape as NHD, seen through other strides
        ([9, 2, 16, 8, 128], [32768, 16384, 128, 2048, 1], ("kv", "head", "token", "dim")),
        ([9, 7, 5], [35, 5, 1], ("kv", "token", "head", "dim")),  # of no known kind: format_id keeps it apart
    ],
)
def test_axes_come_from_shape_and_strides(
    shape: list[int], stride: list[int], order: tuple[str, ...]
) -> None:
    layer = {"num_heads": 8, "block_size": 16, "head_dim": 128}
    assert axis_order(shape, stride, layer) == ("layer", *order)
