"""Capability of an opened backend with one model, for ``sage infer backend show --model``."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from sage_infer.cli.output import loading

__all__ = ["open_and_describe", "summary"]

_KV_FEATURES = (
    "prefix_caching",
    "cache_salt",
    "prefill_decode",
    "kv_export",
    "kv_import",
    "kv_events",
    "resume",
)


def open_and_describe(name: str, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Open the backend with the model, and return its JSON-ready capability.

    ``kv_schema_reason`` says why the capability has no KV schema; it is null if it has one.
    """
    return asyncio.run(_describe(name, model, options))


async def _describe(name: str, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from contextlib import AsyncExitStack

    from sage_infer.backends import open_backend
    from sage_infer.errors import UnsupportedFeature
    from sage_infer.schemas.codec import to_dict

    async with AsyncExitStack() as stack:
        with loading(model, name) as progress:
            engine = await stack.enter_async_context(
                open_backend(name, model=model, on_progress=progress, **options)
            )
        capability, reason = engine.get_capability(), None
        if capability.kv_schema is None and hasattr(engine, "get_kv_schema"):
            try:
                engine.get_kv_schema()
            except UnsupportedFeature as error:
                reason = str(error)
        return {"capability": to_dict(capability), "kv_schema_reason": reason}


def summary(opened: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield pairs of label and text for the command's output."""
    capability = opened["capability"]
    features = capability["features"]
    yield "features", ", ".join(feature for feature in features if feature not in _KV_FEATURES) or "none"
    yield "KV", ", ".join(feature for feature in features if feature in _KV_FEATURES) or "no features"
    if capability["kv_cache_capacity_gb"] is not None:
        yield "KV size", f"{capability['kv_cache_capacity_gb']:.3g} GiB"
    schema = capability["kv_schema"]
    if schema is not None:
        width = f"{schema['num_heads']} heads of {schema['head_dim']}"
        if schema["value_dim"] == 0:
            width = f"one latent of {schema['head_dim']} per token (MLA)"
        form = schema["format_id"] or "plain"
        yield (
            "KV form",
            f"{schema['dtype']}, pages of {schema['page_size']} tokens, {schema['num_layers']} layers, {width}; {form}",
        )
        for group in schema["groups"]:
            yield "KV group", _group(group)
    elif opened["kv_schema_reason"]:
        yield "KV form", opened["kv_schema_reason"]


def _group(group: Mapping[str, Any]) -> str:
    count = len(group["layers"])
    text = f"{count} layer{'s' if count > 1 else ''}: {group['kind']}"
    if group["window"] is not None:
        text += f", window of {group['window']} tokens"
    if group["state_bytes"]:
        text += f", {group['state_bytes']} bytes per sequence and layer"
    return text
