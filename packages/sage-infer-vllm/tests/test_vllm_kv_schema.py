"""Schemas of a worker's KV cache: one layout, groups, states, and caches without a schema."""

from __future__ import annotations

import re
from typing import Any

import pytest
from sage_infer.schemas import KVCacheSchema, KVGroup
from sage_infer_vllm.models.kv_schema import describe_kv

# As vLLM 0.32 reports the cache of SmolLM2-135M on a CPU.
LAYER: dict[str, Any] = {
    "kind": "FullAttentionSpec", "block_size": 128, "num_heads": 3, "head_dim": 64, "value_dim": 64, "window": None,
    "chunk": None, "tokens_per_entry": 1.0, "dtype": "bfloat16", "page_bytes": 2 * 128 * 3 * 64 * 2, "state_bytes": 0,
    "replicated": False, "backend": "CPU_ATTN", "isa": "vec", "shape": [364, 3, 128, 128],
    "stride": [49152, 16384, 128, 1],
}  # fmt: skip
SLIDING = {**LAYER, "kind": "SlidingWindowSpec", "window": 64}
CHUNKED = {**LAYER, "kind": "ChunkedLocalAttentionSpec", "chunk": 256}
MLA = {
    **LAYER, "kind": "MLAAttentionSpec", "num_heads": 1, "head_dim": 576, "value_dim": 0, "page_bytes": 128 * 576 * 2,
    "backend": "CPU_MLA", "isa": "", "shape": [10, 1, 128, 576],
}  # fmt: skip
STATE = {
    **LAYER, "kind": "MambaSpec", "num_heads": 0, "head_dim": 0, "value_dim": 0, "dtype": "", "page_bytes": 98304,
    "state_bytes": 5000, "backend": "GDN_ATTN", "isa": "", "shape": [], "stride": [],
}  # fmt: skip


def described(
    *layers: dict[str, Any],
    cache_dtype: str = "auto",
    ranks: int = 1,
    total_heads: int = 3,
    halves: tuple[bool, ...] = (True,),
    dims: tuple[int, ...] = (64,),
) -> tuple[KVCacheSchema | None, str]:
    facts = {"layers": list(layers), "bytes": 0, "rope_halves": list(halves), "rope_dims": list(dims)}
    return describe_kv(facts, cache_dtype=cache_dtype, version="0.32.0", ranks=ranks, total_heads=total_heads)


def schema_of(*layers: dict[str, Any], **more: Any) -> KVCacheSchema:
    schema, reason = described(*layers, **more)
    assert schema is not None, reason
    assert reason == ""
    return schema


def test_the_schema_is_exact_to_the_byte() -> None:
    schema = schema_of(*[LAYER] * 30)
    assert (schema.dtype, schema.page_size, schema.num_layers, schema.num_heads, schema.head_dim) == (
        "bf16", 128, 30, 3, 64,
    )  # fmt: skip
    assert schema.bytes_per_page == 30 * LAYER["page_bytes"]
    assert (schema.groups, schema.shards, schema.value_dim) == ((), 1, None)
    assert (schema.rope, schema.rope_dim) == ("half", None)


def test_a_cpu_keeps_keys_by_dimension_and_values_by_token() -> None:
    schema = schema_of(LAYER)
    assert schema.axis_order == ("layer", "head", "kv", "token", "dim")
    assert schema.key_axis_order == ("layer", "head", "kv", "dim", "token")
    assert schema.format_id == "vllm-0.32.0-cpu_attn-vec"
    amx = schema_of({**LAYER, "isa": "amx"})  # a layout that nobody has probed
    assert (amx.key_axis_order, amx.format_id) == (None, "vllm-0.32.0-cpu_attn-amx")
    assert "format_id" in schema.compatible_with(amx).conversions


def test_layers_of_different_kinds_are_groups() -> None:
    schema = schema_of(SLIDING, SLIDING, LAYER, CHUNKED)
    assert schema.groups == (
        KVGroup(layers=(0, 1), kind="sliding", window=64),
        KVGroup(layers=(2,)),
        KVGroup(layers=(3,), kind="chunked", window=256),
    )
    assert schema.bytes_per_page == 4 * LAYER["page_bytes"]
    only = schema_of(SLIDING, SLIDING)
    assert [group.kind for group in only.groups] == ["sliding"]


def test_a_window_is_the_models_also_where_vllm_keeps_all_tokens() -> None:
    """Without its hybrid manager vLLM keeps sliding and chunked layers as full ones that remember their window."""
    schema = schema_of(LAYER, {**LAYER, "window": 64}, {**LAYER, "chunk": 128})
    assert [(group.kind, group.window) for group in schema.groups] == [
        ("full", None), ("sliding", 64), ("chunked", 128),
    ]  # fmt: skip


def test_layers_of_different_numbers_are_groups() -> None:
    wide = {
        **LAYER, "num_heads": 1, "head_dim": 128, "value_dim": 32, "page_bytes": 128 * 160 * 2,
        "shape": [9, 1, 128, 160],
    }  # fmt: skip
    schema = schema_of(LAYER, wide, {**LAYER, "dtype": "float32", "page_bytes": 2 * LAYER["page_bytes"]})
    assert schema.groups == (
        KVGroup(layers=(0,)),
        KVGroup(layers=(1,), num_heads=1, head_dim=128, value_dim=32),
        KVGroup(layers=(2,), dtype="fp32"),
    )
    assert schema.bytes_per_page == 3 * LAYER["page_bytes"] + wide["page_bytes"]
    plain_after_narrow = schema_of(wide, LAYER)
    assert plain_after_narrow.value_dim == 32
    assert plain_after_narrow.groups[1].value_dim == 64


def test_mla_is_one_head_without_values() -> None:
    schema = schema_of(MLA, MLA, ranks=4, halves=(False,))
    assert (schema.num_heads, schema.head_dim, schema.value_dim, schema.shards) == (1, 576, 0, 1)
    assert (schema.rope, schema.rope_dim, schema.key_axis_order) == ("interleaved", 64, None)
    assert schema.bytes_per_page == 2 * 128 * 576 * 2


def test_states_count_per_sequence() -> None:
    schema = schema_of(STATE, STATE, STATE, LAYER, ranks=2, total_heads=6)
    assert schema.groups == (
        KVGroup(layers=(0, 1, 2), kind="state", state_bytes=10_000), KVGroup(layers=(3,)),
    )  # fmt: skip
    assert (schema.num_heads, schema.shards, schema.state_bytes) == (6, 2, 30_000)
    assert schema.bytes_per_page == 2 * LAYER["page_bytes"]
    assert schema.format_id == "vllm-0.32.0-gdn_attn+cpu_attn-vec"


def test_heads_are_split_over_ranks_and_replicated_ones_count_once() -> None:
    split = schema_of({**LAYER, "num_heads": 3}, ranks=2, total_heads=6)
    assert (split.num_heads, split.shards) == (6, 2)
    one = {**LAYER, "num_heads": 1, "page_bytes": LAYER["page_bytes"] // 3, "shape": [9, 1, 128, 128]}
    replicated = schema_of(one, ranks=4, total_heads=2)
    assert (replicated.num_heads, replicated.shards) == (2, 2)


def test_quantized_caches_have_scales() -> None:
    layer = {**LAYER, "dtype": "uint8", "page_bytes": LAYER["page_bytes"] // 2}
    fp8 = schema_of(layer, layer, cache_dtype="fp8")
    assert (fp8.dtype, fp8.scale_dtype, fp8.scale_granularity) == ("fp8_e4m3", "fp32", "tensor")
    assert schema_of(layer, cache_dtype="fp8_e5m2").dtype == "fp8_e5m2"
    left_out = schema_of(layer, LAYER, cache_dtype="fp8")
    assert [group.dtype for group in left_out.groups] == [None, "bf16"]


def test_models_without_rotary_embeddings() -> None:
    assert schema_of(LAYER, halves=(), dims=()).rope == "none"
    assert schema_of(LAYER, dims=(32,)).rope_dim == 32


def test_a_model_without_kv_has_neither_schema_nor_reason() -> None:
    assert described() == (None, "")
    assert described({**LAYER, "kind": "EncoderOnlyAttentionSpec"}) == (None, "")


@pytest.mark.parametrize(
    ("layers", "more", "reason"),
    [
        (
            [{**LAYER, "page_bytes": 7}],
            {},
            "a page of 128 tokens in 7 bytes per layer, but bf16 requires 98304",
        ),
        ([{**LAYER, "dtype": "complex64"}], {}, r"no schema describes KV of vLLM's type complex64 \(auto\)"),
        ([{**LAYER, "kind": "CrossAttentionSpec"}], {}, "stores layers as CrossAttentionSpec"),
        ([{**MLA, "tokens_per_entry": 4.0}], {}, "one entry per 4 tokens"),
        ([STATE], {}, "a state per sequence, not KV per token"),
        ([LAYER, MLA], {"ranks": 3, "total_heads": 9}, "split the KV heads of some layers and replicate"),
        ([LAYER, {**LAYER, "isa": "amx"}], {}, "axes of a page have different orders"),
        ([LAYER], {"halves": (False, True)}, "rotary embeddings differ"),
        ([{**LAYER, "dtype": "int8"}], {"cache_dtype": "int8_per_token_head"}, "bytes per layer, but int8"),
    ],
)
def test_caches_without_a_schema_have_a_reason(layers: Any, more: dict[str, Any], reason: str) -> None:
    schema, text = described(*layers, **more)
    assert schema is None
    assert re.search(reason, text), text


@pytest.mark.parametrize(
    ("shape", "stride", "order"),
    [
        # FlashAttention until 0.30: [2, blocks, tokens, heads, dim]
        ([2, 9, 16, 8, 128], [147456, 16384, 1024, 128, 1], ("kv", "token", "head", "dim")),
        # FlashInfer in HND: the same shape as NHD, seen through other strides
        ([9, 2, 16, 8, 128], [32768, 16384, 128, 2048, 1], ("kv", "head", "token", "dim")),
        # 0.32: [blocks, heads, tokens, key and value], by heads or by tokens in memory
        ([9, 8, 16, 256], [32768, 4096, 256, 1], ("head", "token", "kv", "dim")),
        ([9, 8, 16, 256], [32768, 256, 2048, 1], ("token", "head", "kv", "dim")),
        ([9, 7, 5], [35, 5, 1], ("kv", "token", "head", "dim")),  # of no known kind: format_id keeps it apart
    ],
)
def test_axes_come_from_shape_and_strides(
    shape: list[int], stride: list[int], order: tuple[str, ...]
) -> None:
    layer = {
        **LAYER, "num_heads": 8, "block_size": 16, "head_dim": 128, "value_dim": 128, "backend": "FLASH_ATTN",
        "isa": "", "page_bytes": 2 * 8 * 16 * 128 * 2, "shape": shape, "stride": stride,
    }  # fmt: skip
    schema = schema_of(layer, total_heads=8)
    assert schema.axis_order == ("layer", *order)
    assert schema.key_axis_order is None
