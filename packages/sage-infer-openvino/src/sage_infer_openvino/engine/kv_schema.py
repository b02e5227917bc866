"""The KV cache's format: user options, and the compiled model's layout as a schema."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sage_infer.errors import CapabilityMismatch, InvalidRequest
from sage_infer.schemas import KVCacheSchema

from sage_infer_openvino.engine.paged_runner import KVLayout

__all__ = ["check_page_size", "kv_schema_of", "wanted_precision"]

_DTYPES = {"f32": "fp32", "bf16": "bf16", "f16": "fp16", "u8": "int8"}
_SCALES = 8  # bytes: a float32 scale and a float32 zero point
_PRESETS = {"fp16": "f16", "bf16": "bf16", "int8": "u8"}


def wanted_precision(kv_schema: Mapping[str, Any] | None, kv_precision: str | None) -> str | None:
    """The KV precision requested by the option ``kv_schema`` (``preset``, ``page_size``), by OpenVINO's name.

    Raises:
        CapabilityMismatch: OpenVINO does not support the precision.
        InvalidRequest: ``kv_precision`` differs, or the option has an unknown key.
    """
    wanted = dict(kv_schema or {})
    preset = wanted.pop("preset", None)
    wanted.pop("page_size", None)
    if wanted:
        raise InvalidRequest(f"kv_schema has no key {next(iter(wanted))!r}; it has preset and page_size")
    if preset is None:
        return kv_precision
    if preset not in _PRESETS:
        raise CapabilityMismatch(
            f"OpenVINO does not support {preset} KV; use the preset {', '.join(_PRESETS)}, or none for full precision"
        )
    if kv_precision not in (None, _PRESETS[preset]):
        raise InvalidRequest(
            f"kv_schema ({preset}) and kv_precision ({kv_precision}) contradict each other; set one of them"
        )
    return _PRESETS[preset]


def check_page_size(kv_schema: Mapping[str, Any] | None, page_size: int) -> None:
    """Reject a page size that differs from the compiled model's.

    Raises:
        CapabilityMismatch: OpenVINO uses another size, which cannot be changed.
    """
    wanted = (kv_schema or {}).get("page_size")
    if wanted not in (None, page_size):
        raise CapabilityMismatch(
            f"OpenVINO's KV pages have {page_size} tokens on this device, not {wanted}; remove page_size"
        )


def kv_schema_of(layout: KVLayout, num_layers: int, block_nbytes: int) -> KVCacheSchema:
    """The schema of a layout, verified to the byte.

    Pages of floats are plain: per layer the keys, then the values, ``[head, token, dim]``. The location of scales is
    not part of a schema; ``format_id`` identifies it.

    Raises:
        CapabilityMismatch: a schema cannot describe OpenVINO's layout.
    """
    heads, page_size, width = layout.value_shape
    dtype = _DTYPES.get(layout.value_type)
    if dtype is None or layout.key_type != layout.value_type:
        raise CapabilityMismatch(
            f"KV of type {layout.key_type}/{layout.value_type} has no schema; use kv_precision f32, bf16, f16 or u8"
        )
    scales: dict[str, Any] = {}
    head_dim = width
    key_shapes: dict[str, tuple[int, ...]] = {"": (heads, page_size, width)}
    if dtype == "int8":
        # Values have scales per token and head in their row; keys have the same, or scales per channel in extra rows.
        head_dim = width - _SCALES
        key_shapes = {"channel": (heads, page_size + _SCALES, head_dim), "token_head": layout.value_shape}
        scales = {"scale_dtype": "fp32", "value_scale_granularity": "token_head", "zero_points": True}
    granularity = next((name for name, shape in key_shapes.items() if shape == layout.key_shape), None)
    if granularity is None:
        raise CapabilityMismatch(
            f"OpenVINO {layout.openvino_version} stores keys as {layout.key_shape} and values as "
            f"{layout.value_shape}, which no schema describes; use kv_precision f32 or bf16"
        )
    if granularity:
        scales["scale_granularity"] = granularity
    schema = KVCacheSchema(
        dtype=dtype,  # type: ignore[arg-type]  # the mapping's values are KVDtypes
        page_size=page_size,
        num_layers=num_layers,
        num_heads=heads,
        head_dim=head_dim,
        format_id=f"openvino-{layout.openvino_version}" if scales else "",
        **scales,
    )
    if schema.bytes_per_page != block_nbytes:
        raise CapabilityMismatch(
            f"OpenVINO {layout.openvino_version} stores a KV block in {block_nbytes} bytes, but its shapes require "
            f"{schema.bytes_per_page}; use kv_precision f32 or bf16"
        )
    return schema
