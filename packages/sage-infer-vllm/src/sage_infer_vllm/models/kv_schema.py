"""Schema of the running engine's KV cache, or the reason why no schema describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sage_infer.errors import SchemaError
from sage_infer.schemas import KVCacheSchema, KVGroup

__all__ = ["KV_DTYPES", "describe_kv"]

KV_DTYPES = {
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "fp8_e4m3", "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2", "int8": "int8",
}  # fmt: skip
"""Names of torch's types → dtypes of the schemas."""

_FLOATS = {"fp32", "fp16", "bf16"}
_SCALES: Mapping[str, dict[str, Any]] = {
    "tensor": {"scale_dtype": "fp32", "scale_granularity": "tensor"},
    "token_head": {"scale_dtype": "fp32", "scale_granularity": "token_head"},
}
_PAGED = {
    "FullAttentionSpec", "MLAAttentionSpec", "SlidingWindowSpec", "SlidingWindowMLASpec", "ChunkedLocalAttentionSpec",
}  # fmt: skip
_STATE = "MambaSpec"
_NO_KV = "EncoderOnlyAttentionSpec"
# Kernels of vLLM's CPU attention that store a head's keys of a page as [dim, token], determined by experiment.
_TRANSPOSED_KEYS = {"vec", "vec16"}


class _Undescribed(Exception):
    """No schema describes this cache; the text is the reason."""


def describe_kv(
    facts: Mapping[str, Any], *, cache_dtype: str, version: str, ranks: int, total_heads: int
) -> tuple[KVCacheSchema | None, str]:
    """Convert a worker's report of its KV cache (``kv_facts``) to a schema, exact to the byte.

    Args:
        cache_dtype: vLLM's effective ``kv_cache_dtype``.
        version: vLLM's version.
        ranks: tensor-parallel ranks.
        total_heads: the model's KV heads over all ranks.

    Returns:
        The schema and an empty string, or None and the reason. For a model without KV: None and an empty string.
    """
    layers = [layer for layer in facts["layers"] if layer["kind"] != _NO_KV]
    if not layers:
        return None, ""
    try:
        return _schema(layers, facts, cache_dtype, version, ranks, total_heads), ""
    except _Undescribed as reason:
        return None, str(reason)
    except SchemaError as error:
        return None, f"vLLM's KV cache has no valid schema: {error.problems[0]}"


def _schema(
    layers: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    cache_dtype: str,
    version: str,
    ranks: int,
    total_heads: int,
) -> KVCacheSchema:
    for layer in layers:
        if layer["kind"] not in {*_PAGED, _STATE}:
            raise _Undescribed(f"vLLM stores layers as {layer['kind']}, which no schema describes")
        if layer["tokens_per_entry"] != 1:
            raise _Undescribed(
                f"vLLM stores one entry per {layer['tokens_per_entry']:g} tokens, but a schema has one per token"
            )
    paged = [layer for layer in layers if layer["kind"] != _STATE]
    if not paged:
        raise _Undescribed("the model has a state per sequence, not KV per token")
    first = next((layer for layer in paged if _attention(layer) == ("full", None)), paged[0])
    shards = {_shards(layer, ranks, total_heads) for layer in paged}
    if len(shards) > 1:
        raise _Undescribed("tensor-parallel ranks split the KV heads of some layers and replicate others'")
    (split,) = shards
    numbers = _numbers(first, cache_dtype, split)
    dtype, scales = _dtype_of(first, cache_dtype)
    orders = {_orders(layer) for layer in paged}
    if len(orders) > 1:
        raise _Undescribed("the axes of a page have different orders in different layers")
    ((axis_order, key_axis_order),) = orders
    schema = KVCacheSchema(
        **{**numbers, "dtype": dtype},
        num_layers=len(layers),
        axis_order=axis_order,
        key_axis_order=key_axis_order,
        format_id=_format_id(layers, version),
        shards=split,
        groups=_groups(layers, numbers, cache_dtype, split, ranks),
        **_rope(facts, first["head_dim"]),
        **scales,
    )
    _check_bytes(schema, layers, split)
    return schema


def _numbers(layer: Mapping[str, Any], cache_dtype: str, shards: int) -> dict[str, Any]:
    """A layer's numbers, by the field names common to ``KVGroup`` and ``KVCacheSchema``."""
    dim, value_dim = layer["head_dim"], layer["value_dim"]
    return {
        "page_size": layer["block_size"],
        "num_heads": layer["num_heads"] * shards,
        "head_dim": dim,
        "value_dim": None if value_dim == dim else value_dim,
        "dtype": _dtype_of(layer, cache_dtype)[0],
    }


def _attention(layer: Mapping[str, Any]) -> tuple[str, int | None]:
    """Kind and window of a layer, according to the model: vLLM may cache all tokens of a layer with a window."""
    if layer["window"] is not None:
        return "sliding", layer["window"]
    if layer["chunk"] is not None:
        return "chunked", layer["chunk"]
    return ("state", None) if layer["kind"] == _STATE else ("full", None)


def _shards(layer: Mapping[str, Any], ranks: int, total_heads: int) -> int:
    """Number of ranks that the layer's heads are split over; MLA's single head is replicated."""
    if layer["num_heads"] == 1 and layer["value_dim"] == 0:
        return 1
    per_rank: int = layer["num_heads"]
    return min(ranks, max(total_heads // per_rank, 1))


def _groups(
    layers: Sequence[Mapping[str, Any]],
    numbers: Mapping[str, Any],
    cache_dtype: str,
    shards: int,
    ranks: int,
) -> tuple[KVGroup, ...]:
    """Groups of layers with equal layout; empty if all layers have full attention and the schema's numbers."""
    members: dict[tuple[Any, ...], list[int]] = {}
    for index, layer in enumerate(layers):
        kind, window = _attention(layer)
        if kind == "state":
            own: dict[str, Any] = {
                "kind": kind, "state_bytes": layer["state_bytes"] * (1 if layer["replicated"] else ranks),
            }  # fmt: skip
        else:
            given = _numbers(layer, cache_dtype, shards)
            if given["value_dim"] is None and numbers["value_dim"] is not None:
                given["value_dim"] = given["head_dim"]
            own = {"kind": kind, "window": window}
            own |= {name: value for name, value in given.items() if value != numbers[name]}
        members.setdefault(tuple(sorted(own.items())), []).append(index)
    if list(members) == [(("kind", "full"), ("window", None))]:
        return ()
    return tuple(KVGroup(layers=tuple(indices), **dict(own)) for own, indices in members.items())


def _check_bytes(schema: KVCacheSchema, layers: Sequence[Mapping[str, Any]], shards: int) -> None:
    """Check that the schema's bytes match those of the engine, layer by layer."""
    groups = schema.groups or (KVGroup(layers=tuple(range(len(layers)))),)
    for group in groups:
        layer = layers[group.layers[0]]
        if group.kind == "state":
            continue
        expected = schema.of_group(group).bytes_per_page // len(group.layers)
        found = layer["page_bytes"] * shards
        if expected != found:
            raise _Undescribed(
                f"vLLM stores a page of {layer['block_size']} tokens in {found} bytes per layer, but "
                f"{schema.of_group(group).dtype} requires {expected}"
            )


def _dtype_of(layer: Mapping[str, Any], cache_dtype: str) -> tuple[str, dict[str, Any]]:
    """Dtype of the schema, and its scale fields."""
    torch_dtype = layer["dtype"]
    dtype = KV_DTYPES.get(torch_dtype)
    if dtype in _FLOATS:  # including layers excluded from a quantized cache
        return dtype, {}
    if "int4" in cache_dtype:
        return "int4", _SCALES["token_head"]
    if cache_dtype == "fp8_e5m2":
        return "fp8_e5m2", _SCALES["tensor"]
    if dtype is None:
        raise _Undescribed(f"no schema describes KV of vLLM's type {torch_dtype} ({cache_dtype})")
    return dtype, _SCALES["token_head" if "per_token_head" in cache_dtype else "tensor"]


def _format_id(layers: Sequence[Mapping[str, Any]], version: str) -> str:
    """Identifies the byte layout beyond the schema's numbers: vLLM's version, its kernels and their ISA."""
    kernels = dict.fromkeys(
        "-".join(filter(None, (layer["backend"] or "unknown", layer["isa"]))) for layer in layers
    )
    return f"vllm-{version}-{'+'.join(kernels)}".lower()


def _rope(facts: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    halves, dims = facts["rope_halves"], facts["rope_dims"]
    if not halves:
        return {"rope": "none"}
    if len(halves) > 1 or len(dims) > 1:
        raise _Undescribed("the model's rotary embeddings differ between layers")
    rotated = {"rope_dim": dims[0]} if 0 < dims[0] < head_dim else {}
    return {"rope": "half" if halves[0] else "interleaved", **rotated}


def _orders(layer: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Order of the axes in a page, slowest first, and that of the keys if different.

    Every layer has its own tensor, so ``layer`` is first. Unknown shapes are assumed to have vLLM's most common order;
    ``format_id`` distinguishes them.
    """
    shape, stride = layer["shape"], layer["stride"]
    heads, tokens, dim, value_dim = (
        layer["num_heads"],
        layer["block_size"],
        layer["head_dim"],
        layer["value_dim"],
    )
    if value_dim == 0 and heads == 1:
        return ("layer", "kv", "head", "token", "dim"), None
    if list(shape[1:]) == [heads, tokens, dim + value_dim]:
        if layer["backend"] == "CPU_ATTN":  # a head's keys of the page, then its values
            transposed = ("layer", "head", "kv", "dim", "token") if layer["isa"] in _TRANSPOSED_KEYS else None
            return ("layer", "head", "kv", "token", "dim"), transposed
        outer = ("head", "token") if stride[1] >= stride[2] else ("token", "head")
        return ("layer", *outer, "kv", "dim"), None
    names = {"kv": 2, "token": tokens, "head": heads, "dim": dim}
    found: dict[str, int] = {}
    for size, step in zip(shape, stride, strict=True):
        name = next((n for n, wanted in names.items() if wanted == size and n not in found), None)
        if name is not None:
            found[name] = step
    if set(found) != set(names):
        return ("layer", "kv", "token", "head", "dim"), None
    return ("layer", *sorted(found, key=lambda name: -found[name])), None
