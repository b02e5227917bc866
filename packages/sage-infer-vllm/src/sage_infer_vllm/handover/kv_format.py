"""Conversion of the KV pages of vLLM's CPU kernels to and from plain form, and of floats to other floats.

A page holds for each layer and head the keys of all its tokens, then their values: keys by channel, ``[dim, token]``,
values by token, ``[token, dim]``. This is the layout of the kernels ``vec`` and ``vec16``; a test compares it with what
the kernels of each supported version of vLLM write. No API guarantees it, so ``format_id`` names the version and the
kernel, and others are refused.
"""

from __future__ import annotations

import re
from typing import Any

import attrs
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

__all__ = ["VLLMCPUCodec", "cast_floats"]

_FORMATS = re.compile(r"vllm-0\.(28|29|30|31|32)\b[^-]*-cpu_attn-vec(16)?")
_AXES = ("layer", "head", "kv", "token", "dim")
_KEY_AXES = ("layer", "head", "kv", "dim", "token")
_INTEGERS = {"fp32": "u4", "fp16": "u2", "bf16": "u2"}


class VLLMCPUCodec:
    """A ``LayerwiseKVFormatCodec`` that moves elements and does not compute with them."""

    max_error = 0.0

    def matches(self, schema: KVCacheSchema) -> bool:
        return (
            _FORMATS.fullmatch(schema.format_id) is not None
            and schema.dtype in _INTEGERS
            and schema
            == attrs.evolve(
                self.plain(schema), format_id=schema.format_id, axis_order=_AXES, key_axis_order=_KEY_AXES
            )
        )

    def plain(self, schema: KVCacheSchema) -> KVCacheSchema:
        return KVCacheSchema(
            dtype=schema.dtype,
            page_size=schema.page_size,
            num_layers=schema.num_layers,
            num_heads=schema.num_heads,
            head_dim=schema.head_dim,
            rope=schema.rope,
            rope_dim=schema.rope_dim,
        )

    def unpack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        self.unpack_tokens(page, schema, slice(0, schema.page_size), out, schema, 0)

    def unpack_tokens(
        self,
        page: memoryview,
        schema: KVCacheSchema,
        tokens: slice,
        out: memoryview,
        out_schema: KVCacheSchema,
        at: int,
    ) -> None:
        keys, values = _private(page, schema)
        plain = _plain(out, out_schema)[..., at : at + tokens.stop - tokens.start, :]
        plain[:, 0] = keys[:, :, tokens]
        plain[:, 1] = values[:, :, tokens]

    def pack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        keys, values = _private(out, schema)
        plain = _plain(page, schema)
        keys[...] = plain[:, 0]
        values[...] = plain[:, 1]


def _private(page: memoryview, schema: KVCacheSchema) -> tuple[Any, Any]:
    """Keys and values of a private page as ``[layer, head, token, dim]``."""
    tokens, dim = schema.page_size, schema.head_dim
    halves = _elements(page, schema).reshape(schema.num_layers, schema.num_heads, 2, tokens * dim)
    shape = (schema.num_layers, schema.num_heads)
    return (
        halves[:, :, 0].reshape(*shape, dim, tokens).transpose(0, 1, 3, 2),
        halves[:, :, 1].reshape(*shape, tokens, dim),
    )


def _plain(page: memoryview, schema: KVCacheSchema) -> Any:
    shape = (schema.num_layers, 2, schema.num_heads, schema.page_size, schema.head_dim)
    return _elements(page, schema).reshape(shape)


def _elements(page: memoryview, schema: KVCacheSchema) -> Any:
    import numpy as np

    data = memoryview(page).cast("B")
    if data.nbytes != schema.bytes_per_page:
        raise InvalidRequest(
            f"a KV page of {data.nbytes} bytes, expected {schema.bytes_per_page} by its schema"
        )
    return np.frombuffer(data, _INTEGERS[schema.dtype])


def cast_floats(data: memoryview, dtype: str, out: memoryview, out_dtype: str) -> None:
    """Convert floats to another of the types fp32, fp16 and bf16, rounded to the nearest (``KVPageConverter``)."""
    import torch

    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    given = (
        memoryview(bytearray(data)) if data.readonly else data
    )  # torch warns of memory that it cannot write
    torch.frombuffer(out, dtype=types[out_dtype]).copy_(torch.frombuffer(given, dtype=types[dtype]))
