"""Conversion of OpenVINO's 8-bit KV pages to and from floats, and of floats to other floats.

A layer's keys are ``[head, token + 8, dim]`` bytes: 8 rows with a float32 scale per channel and a float32 zero point
per channel, then one row per token. Its values are ``[head, token, dim + 8]`` bytes: per token a scale, a zero point,
and the row. A value is ``(byte - zero point) * scale``; zero points are not rounded. This is the format of OpenVINO
2026.4 on CPUs. No API guarantees it; a test compares it with the pages of a running model.
"""

from __future__ import annotations

import attrs
import numpy as np
import numpy.typing as npt
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

__all__ = ["OpenVINOInt8Codec", "cast_floats"]

_SCALES = 8  # bytes of a float32 scale and a float32 zero point
_SMALLEST_RANGE = 1e-8
_quiet = np.errstate(
    over="ignore", invalid="ignore", divide="ignore"
)  # unused parts of a page may hold any bytes
_NUMPY: dict[str, type[np.floating]] = {"fp32": np.float32, "fp16": np.float16}
_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]


class OpenVINOInt8Codec:
    """A ``KVFormatCodec``. Like OpenVINO, ``pack`` computes scales over all tokens of a page, including unused ones.

    Attributes:
        max_error: half a step of 255 per channel or token, and the rounding of float32.
    """

    max_error = 1 / 509

    def matches(self, schema: KVCacheSchema) -> bool:
        return schema.format_id.startswith("openvino-") and schema == attrs.evolve(
            self.plain(schema),
            dtype="int8",
            scale_dtype="fp32",
            scale_granularity="channel",
            value_scale_granularity="token_head",
            zero_points=True,
            format_id=schema.format_id,
        )

    def plain(self, schema: KVCacheSchema) -> KVCacheSchema:
        return KVCacheSchema(
            dtype="fp32",
            page_size=schema.page_size,
            num_layers=schema.num_layers,
            num_heads=schema.num_heads,
            head_dim=schema.head_dim,
            rope=schema.rope,
            rope_dim=schema.rope_dim,
        )

    @_quiet
    def unpack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        keys, values = self._private(page, schema)
        floats = self._floats(out, schema)
        shape = (*keys.shape[:2], 2, 1, schema.head_dim)
        scales = np.ascontiguousarray(keys[:, :, :_SCALES]).view(np.float32).reshape(shape)
        floats[:, 0] = (keys[:, :, _SCALES:] - scales[:, :, 1]) * scales[:, :, 0]
        scales = np.ascontiguousarray(values[..., :_SCALES]).view(np.float32)
        floats[:, 1] = (values[..., _SCALES:] - scales[..., 1:]) * scales[..., :1]

    @_quiet
    def pack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        floats = self._floats(page, schema)
        keys, values = self._private(out, schema)
        rows, scales = _rounded(floats[:, 0], axis=2)
        keys[:, :, _SCALES:] = rows
        keys[:, :, :_SCALES] = scales.view(np.uint8).reshape(keys[:, :, :_SCALES].shape)
        rows, scales = _rounded(floats[:, 1], axis=3)
        values[..., _SCALES:] = rows
        values[..., :_SCALES] = scales.reshape(*values.shape[:3], 2).view(np.uint8)

    def _private(self, page: memoryview, schema: KVCacheSchema) -> tuple[_Bytes, _Bytes]:
        data = np.frombuffer(_sized(page, schema.bytes_per_page), np.uint8).reshape(schema.num_layers, -1)
        heads, tokens, dim = schema.num_heads, schema.page_size, schema.head_dim
        cut = heads * (tokens + _SCALES) * dim
        return (
            data[:, :cut].reshape(-1, heads, tokens + _SCALES, dim),
            data[:, cut:].reshape(-1, heads, tokens, dim + _SCALES),
        )

    def _floats(self, page: memoryview, schema: KVCacheSchema) -> _Floats:
        data = np.frombuffer(_sized(page, self.plain(schema).bytes_per_page), np.float32)
        return data.reshape(schema.num_layers, 2, schema.num_heads, schema.page_size, schema.head_dim)


def _rounded(floats: _Floats, axis: int) -> tuple[_Bytes, _Floats]:
    """Quantized bytes, and scales and zero points along ``axis``, in storage order."""
    low, high = floats.min(axis, keepdims=True), floats.max(axis, keepdims=True)
    scale = np.maximum(high - low, np.float32(_SMALLEST_RANGE)) / np.float32(255)
    zero = -low / scale
    rows = np.clip(np.rint(floats / scale + zero), 0, 255).astype(np.uint8)
    return rows, np.ascontiguousarray(np.stack([scale, zero], axis=2 if axis == 2 else -1), np.float32)


def _sized(buffer: memoryview, nbytes: int) -> memoryview:
    data = memoryview(buffer).cast("B")
    if data.nbytes != nbytes:
        raise InvalidRequest(f"a KV page of {data.nbytes} bytes, expected {nbytes} by its schema")
    return data


def cast_floats(data: memoryview, dtype: str, out: memoryview, out_dtype: str) -> None:
    """Convert floats to another of the types fp32, fp16 and bf16, rounded to the nearest (``KVPageConverter``)."""
    floats: _Floats
    if dtype == "bf16":
        floats = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        floats = np.frombuffer(data, _NUMPY[dtype]).astype(np.float32, copy=False)
    if out_dtype == "bf16":
        _to_bf16(floats, np.frombuffer(out, np.uint16))
    else:
        with _quiet:
            np.frombuffer(out, _NUMPY[out_dtype])[:] = floats


def _to_bf16(floats: _Floats, out: npt.NDArray[np.uint16]) -> None:
    """Round to even at the upper half of each float; not-a-numbers stay such."""
    bits = floats.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    np.copyto(out, np.where(np.isnan(floats), np.uint16(0x7FC0), rounded))
