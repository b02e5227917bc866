"""Layout of keys and values in a page of vLLM's CPU kernel, compared with the schema's axis orders."""

from __future__ import annotations

from typing import Any

import pytest
from sage_infer_vllm.models.kv_schema import describe_kv
from vllm_toys import have_vllm

pytestmark = pytest.mark.skipif(
    not have_vllm("0.23"),
    reason="vLLM 0.23 or newer is not installed in this environment; `hatch run vllm:test` has it",
)


def test_a_page_of_fp8_lies_like_one_of_floats() -> None:
    """Up to how vLLM rounds: keys by dimension, values by token."""
    import torch
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    if not torch.cpu._is_avx512_supported():
        pytest.skip("vLLM's fp8 KV on a CPU needs AVX-512")
    heads, tokens, dim = 2, 32, 64
    keys, values = torch.randn(2, tokens, heads, dim).abs() + 1
    cache = torch.zeros(1, heads, tokens, 2 * dim, dtype=torch.uint8)
    key_cache, value_cache = cache.view(1, heads, 2 * tokens, dim).chunk(2, dim=2)
    isa = _get_attn_isa(torch.float32, tokens, dim, "fp8")
    ops.cpu_attn_reshape_and_cache(
        keys, values, key_cache, value_cache, torch.arange(tokens), isa, 1.0, 1.0, "fp8"
    )
    page = cache[0].reshape(heads, 2, tokens * dim).view(torch.float8_e4m3fn).float()
    expected = keys.permute(1, 2, 0), values.permute(1, 0, 2)
    for side, numbers in enumerate(expected):
        torch.testing.assert_close(page[:, side].reshape(numbers.shape), numbers, rtol=0.13, atol=0)


@pytest.mark.parametrize(("tokens", "dim"), [(32, 64), (128, 64), (64, 80), (96, 32)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_page_lies_as_the_schema_says(dtype: str, tokens: int, dim: int) -> None:
    import torch
    from vllm import _custom_ops as ops
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    kind, heads = getattr(torch, dtype), 2
    isa = _get_attn_isa(kind, tokens, dim)
    schema = _schema(dtype, tokens, heads, dim, isa)
    if schema.key_axis_order is None:
        pytest.skip(f"the schema leaves the order of keys of the kernel {isa!r} to format_id")
    keys = torch.randn(tokens, heads, dim).to(kind)
    values = torch.randn(tokens, heads, dim).to(kind)
    cache = torch.zeros(2, heads, tokens, 2 * dim, dtype=kind)
    key_cache, value_cache = cache.view(2, heads, 2 * tokens, dim).chunk(2, dim=2)
    slots = torch.arange(tokens, 2 * tokens)  # the second page
    ops.cpu_attn_reshape_and_cache(keys, values, key_cache, value_cache, slots, isa)
    page = cache[1].reshape(heads, 2, tokens * dim)
    written = {"token": tokens, "head": heads, "dim": dim}
    for side, tensor, order in ((0, keys, schema.key_order), (1, values, schema.axis_order)):
        axes = [axis for axis in order if axis in written]
        expected = tensor.permute([("token", "head", "dim").index(axis) for axis in axes])
        assert torch.equal(page[:, side].reshape(expected.shape), expected)


def _schema(dtype: str, tokens: int, heads: int, dim: int, isa: str) -> Any:
    bytes_per_element = 4 if dtype == "float32" else 2
    layer = {
        "kind": "FullAttentionSpec", "block_size": tokens, "num_heads": heads, "head_dim": dim, "value_dim": dim,
        "window": None, "chunk": None, "tokens_per_entry": 1.0, "dtype": dtype,
        "page_bytes": 2 * tokens * heads * dim * bytes_per_element, "state_bytes": 0, "replicated": False,
        "backend": "CPU_ATTN", "isa": isa, "shape": [2, heads, tokens, 2 * dim],
        "stride": [heads * tokens * 2 * dim, tokens * 2 * dim, 2 * dim, 1],
    }  # fmt: skip
    facts = {"layers": [layer], "rope_halves": [True], "rope_dims": [dim]}
    schema, reason = describe_kv(facts, cache_dtype="auto", version="0", ranks=1, total_heads=heads)
    assert schema is not None, reason
    return schema
