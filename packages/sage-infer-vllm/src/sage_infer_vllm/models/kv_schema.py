"""The KV cache's form: what a user may ask for in vLLM's words, and the running engine's cache as a schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.schemas import KVCacheSchema

from sage_infer_vllm.platform import Platform

__all__ = ["cache_arguments", "known_cache_dtypes", "kv_schema_of"]

_PRESETS = {
    "fp16": ("fp16", ("float16",)),
    "bf16": ("bf16", ("bfloat16",)),
    "fp8": ("fp8_e4m3", ("fp8", "fp8_e4m3")),
    "int8": ("int8", ("int8_per_token_head",)),
    "int4": ("int4", ("int4_per_token_head",)),
}
"""Preset → dtype of the schemas, and vLLM's names for it, the most usual first."""

_DTYPES = {
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "uint8": "fp8_e4m3", "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2", "int8": "int8",
}  # fmt: skip
_FULL = {"fp32", "fp16", "bf16"}
_SCALES: Mapping[str, dict[str, Any]] = {
    "tensor": {"scale_dtype": "fp32", "scale_granularity": "tensor"},
    "token_head": {"scale_dtype": "fp32", "scale_granularity": "token_head"},
}


def cache_arguments(
    kv_schema: Mapping[str, Any] | None, platform: Platform, supported: Sequence[str] | None
) -> dict[str, Any]:
    """The option ``kv_schema`` (``preset``, ``page_size``) as vLLM's ``kv_cache_dtype`` and ``block_size``.

    ``supported`` are the cache dtypes of the platform as vLLM names them; None where they are not known yet, so
    that only the table of the platform can refuse.

    Raises:
        CapabilityMismatch: the platform has no such KV cache; the message names those that it has.
        InvalidRequest: the option has an unknown key or a value that is no page size.
    """
    wanted = dict(kv_schema or {})
    preset, page_size = wanted.pop("preset", None), wanted.pop("page_size", None)
    if wanted:
        raise InvalidRequest(f"kv_schema has no key {next(iter(wanted))!r}; it has preset and page_size")
    arguments: dict[str, Any] = {}
    if preset is not None:
        arguments["kv_cache_dtype"] = _cache_dtype(preset, platform, supported)
    if page_size is not None:
        if isinstance(page_size, bool) or not isinstance(page_size, int) or page_size < 1:
            raise InvalidRequest(f"kv_schema.page_size must be a number of tokens ≥ 1, got {page_size!r}")
        if platform.block_sizes and page_size not in platform.block_sizes:
            sizes = ", ".join(map(str, platform.block_sizes))
            raise CapabilityMismatch(
                f"{platform.backend_name} has KV pages of {sizes} tokens, not {page_size}; leave page_size out"
            )
        arguments["block_size"] = page_size
    return arguments


def _cache_dtype(preset: str, platform: Platform, supported: Sequence[str] | None) -> str:
    if preset not in _PRESETS:
        raise CapabilityMismatch(f"no KV preset {preset!r}; choose one of {', '.join(_PRESETS)}")
    dtype, names = _PRESETS[preset]
    if platform.kv_dtypes is not None:
        if dtype in platform.kv_dtypes:
            return platform.kv_dtypes[dtype]
        has = [name for name, (known, _) in _PRESETS.items() if known in platform.kv_dtypes]
        raise CapabilityMismatch(_refusal(platform.backend_name, preset, has))
    if supported is None:
        return names[0]
    for name in names:
        if name in supported:
            return name
    if dtype in _FULL:
        # The platform keeps KV in the model's own precision, and "auto" says so; start() compares afterwards.
        return "auto"
    has = [name for name, (_, choices) in _PRESETS.items() if set(choices) & set(supported)]
    raise CapabilityMismatch(_refusal("vLLM's attention on this platform", preset, has))


def _refusal(who: str, preset: str, has: Sequence[str]) -> str:
    able = ", ".join(has) if has else "none"
    return (
        f"{who} keeps no KV in {preset}; it has {able}, and the model's own precision where none is asked for"
    )


def known_cache_dtypes(attention: Any) -> list[str]:
    """Cache dtypes of an attention backend's class."""
    return [str(name) for name in getattr(attention, "supported_kv_cache_dtypes", ())]


def kv_schema_of(facts: Mapping[str, Any], *, cache_dtype: str, version: str) -> KVCacheSchema | None:
    """The KV cache that a worker has told of (``worker.kv_facts``), checked to the byte; None where there is none.

    Raises:
        CapabilityMismatch: layers differ, or a layer's bytes are not those of its numbers.
    """
    layers = [layer for layer in facts["layers"] if layer["num_heads"] and layer["head_dim"]]
    if not layers:
        return None
    first = layers[0]
    if any(layer != first for layer in layers):
        raise CapabilityMismatch(
            f"the model's {len(layers)} layers keep KV in different forms, which a KVCacheSchema cannot describe"
        )
    dtype, scales = _dtype_of(first["dtype"], cache_dtype)
    schema = KVCacheSchema(
        dtype=dtype,  # type: ignore[arg-type]  # the mapping's values are KVDtypes
        page_size=first["block_size"],
        num_layers=len(layers),
        num_heads=first["num_heads"],
        head_dim=first["head_dim"],
        axis_order=axis_order(facts["shape"], facts["stride"], first),
        format_id=f"vllm-{version}-{facts['backend'] or 'unknown'}".lower(),
        **scales,
    )
    if schema.bytes_per_page != first["page_bytes"] * len(layers):
        raise CapabilityMismatch(
            f"vLLM keeps a KV page in {first['page_bytes']} bytes a layer where {dtype} means "
            f"{schema.bytes_per_page // len(layers)}"
        )
    return schema


def _dtype_of(torch_dtype: str, cache_dtype: str) -> tuple[str, dict[str, Any]]:
    """Dtype of the schemas and the scales that go with it."""
    if "int4" in cache_dtype:
        return "int4", _SCALES["token_head"]
    if cache_dtype == "fp8_e5m2":
        return "fp8_e5m2", _SCALES["tensor"]
    dtype = _DTYPES.get(torch_dtype)
    if dtype is None:
        raise CapabilityMismatch(f"KV of vLLM's type {torch_dtype} ({cache_dtype}) has no schema")
    if dtype in _FULL:
        return dtype, {}
    return dtype, _SCALES["token_head" if "per_token_head" in cache_dtype else "tensor"]


def axis_order(shape: Sequence[int], stride: Sequence[int], layer: Mapping[str, Any]) -> tuple[str, ...]:
    """Order of the axes inside one page, slowest first, from the shape and strides of a layer's tensor.

    Every layer has a tensor of its own, so ``layer`` comes first. A last axis of twice the head size, as on the CPU,
    is a page's keys and values of one head one after the other.
    """
    heads, tokens, dim = layer["num_heads"], layer["block_size"], layer["head_dim"]
    if list(shape[1:]) == [heads, tokens, 2 * dim]:
        return ("layer", "head", "kv", "token", "dim")
    names = {"kv": 2, "token": tokens, "head": heads, "dim": dim}
    found: dict[str, int] = {}
    for size, step in zip(shape, stride, strict=True):
        name = next((n for n, wanted in names.items() if wanted == size and n not in found), None)
        if name is not None:
            found[name] = step
    if set(found) != set(names):
        return ("layer", "kv", "token", "head", "dim")
    return ("layer", *sorted(found, key=lambda name: -found[name]))
