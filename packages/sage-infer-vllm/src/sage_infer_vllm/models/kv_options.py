"""KV cache options as engine arguments of vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sage_infer.errors import CapabilityMismatch, InvalidRequest

from sage_infer_vllm.platform import Platform

__all__ = ["cache_arguments"]

_PRESETS = {
    "fp16": ("fp16", ("float16",)),
    "bf16": ("bf16", ("bfloat16",)),
    "fp8": ("fp8_e4m3", ("fp8", "fp8_e4m3")),
    "int8": ("int8", ("int8_per_token_head",)),
    "int4": ("int4", ("int4_per_token_head",)),
}
"""Preset → dtype of the schemas, and vLLM's names for it, most common first."""

_FULL = {"fp32", "fp16", "bf16"}


def cache_arguments(
    kv_schema: Mapping[str, Any] | None, platform: Platform, supported: Sequence[str] | None
) -> dict[str, Any]:
    """The option ``kv_schema`` (``preset``, ``page_size``) as vLLM's ``kv_cache_dtype`` and ``block_size``.

    ``supported`` are the platform's cache dtypes by vLLM's names; None if not known yet: then only the platform's table
    is checked.

    Raises:
        CapabilityMismatch: the platform has no such KV cache; the message lists those available.
        InvalidRequest: the option has an unknown key or an invalid page size.
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
                f"{platform.backend_name} has KV pages of {sizes} tokens, not {page_size}; remove page_size"
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
        # The platform keeps KV in the model's precision ("auto"); start() verifies it afterwards.
        return "auto"
    has = [name for name, (_, choices) in _PRESETS.items() if set(choices) & set(supported)]
    raise CapabilityMismatch(_refusal("vLLM's attention on this platform", preset, has))


def _refusal(who: str, preset: str, has: Sequence[str]) -> str:
    able = ", ".join(has) if has else "none"
    return f"{who} does not support {preset} KV; available: {able}, and the model's own precision by default"
