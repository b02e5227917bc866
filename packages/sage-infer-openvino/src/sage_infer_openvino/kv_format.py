"""Conversion of OpenVINO's 8-bit KV pages to and from floats, and of floats to other floats.

A layer's keys are ``[head, token + 8, dim]`` bytes: 8 rows with a float32 scale per channel and a float32 zero point
per channel, then one row per token. Its values are ``[head, token, dim + 8]`` bytes: per token a scale, a zero point,
and the row. A value is ``(byte - zero point) * scale``; zero points are not rounded. This is the format of OpenVINO
2026.4 on CPUs. No API guarantees it; a test compares it with the pages of a running model.
"""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from sage_infer.errors import InvalidRequest
from sage_infer.schemas import KVCacheSchema

from sage_infer_openvino.kv_kernels import compiled, warm_up

__all__ = ["OpenVINOInt8Codec", "cast_floats"]

_FORMAT = "openvino-2026."  # the versions that this wheel runs
_SCALES = 8  # bytes of a float32 scale and a float32 zero point
_SMALLEST_RANGE = 1e-8
_EXACT_ZERO = 2.0**14  # up to this zero point, rounding errors of float32 keep numbers within 0 to 255
_PART = 2**18  # bytes of floats that are computed with together, so that they stay in a core's cache
_quiet = np.errstate(
    over="ignore", invalid="ignore", divide="ignore"
)  # unused parts of a page may hold any bytes
_NUMPY: dict[str, type[np.generic]] = {"fp32": np.float32, "fp16": np.float16, "bf16": np.uint16}
_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]


class OpenVINOInt8Codec:
    """A ``LayerwiseKVFormatCodec``.

    Like OpenVINO, ``pack`` computes scales over all tokens of a page, also unused ones. Where Numba is installed it
    compiles the loops, otherwise NumPy computes; both write the same bytes.

    Attributes:
        max_error: half a step of 255 per channel or token, and the rounding of float32.
    """

    max_error = 1 / 509

    def __init__(self) -> None:
        warm_up()

    def matches(self, schema: KVCacheSchema) -> bool:
        return schema.format_id.startswith(_FORMAT) and schema == attrs.evolve(
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

    def unpack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        self.unpack_tokens(page, schema, slice(0, schema.page_size), out, self.plain(schema), 0)

    @_quiet
    def unpack_tokens(
        self,
        page: memoryview,
        schema: KVCacheSchema,
        tokens: slice,
        out: memoryview,
        out_schema: KVCacheSchema,
        at: int,
    ) -> None:
        keys, values = self._private(page, schema)
        whole = self._floats(out, out_schema)
        if (kernels := compiled()) is not None and whole.flags.aligned:
            own, to = np.frombuffer(page, np.uint8), whole.reshape(-1)
            kernels.unpack(own, to, *_shape(schema), tokens.start, tokens.stop, out_schema.page_size, at)
            return
        floats = whole[..., at : at + tokens.stop - tokens.start, :]
        rows = slice(_SCALES + tokens.start, _SCALES + tokens.stop)
        for layers in self._parts(schema):
            part = keys[layers]
            shape = (*part.shape[:2], 2, 1, schema.head_dim)
            scales = np.ascontiguousarray(part[:, :, :_SCALES]).view(np.float32).reshape(shape)
            _to_floats(part[:, :, rows], scales[:, :, 0], scales[:, :, 1], floats[layers, 0])
            part = values[layers, :, tokens]
            scales = np.ascontiguousarray(part[..., :_SCALES]).view(np.float32)
            _to_floats(part[..., _SCALES:], scales[..., :1], scales[..., 1:], floats[layers, 1])

    @_quiet
    def pack(self, page: memoryview, schema: KVCacheSchema, out: memoryview) -> None:
        floats = self._floats(page, schema)
        keys, values = self._private(out, schema)
        if (kernels := compiled()) is not None and floats.flags.aligned:
            kernels.pack(floats.reshape(-1), np.frombuffer(out, np.uint8), *_shape(schema))
            return
        parts = self._parts(schema)
        numbers = np.empty_like(floats[parts[0], 0])  # one for all parts: new memory is slow
        for layers in parts:
            part, count = keys[layers], len(keys[layers])
            both = _rounded(floats[layers, 0], 2, part[:, :, _SCALES:], numbers[:count])
            scales = np.concatenate(both, axis=2)
            part[:, :, :_SCALES] = scales.view(np.uint8).reshape(part[:, :, :_SCALES].shape)
            part = values[layers]
            both = _rounded(floats[layers, 1], 3, part[..., _SCALES:], numbers[:count])
            part[..., :_SCALES] = np.concatenate(both, axis=3).view(np.uint8)

    def _parts(self, schema: KVCacheSchema) -> list[slice]:
        """Ranges of layers whose floats fit into a core's cache."""
        layer = 4 * schema.num_heads * schema.page_size * schema.head_dim
        step = max(_PART // layer, 1)
        return [slice(first, first + step) for first in range(0, schema.num_layers, step)]

    def _private(self, page: memoryview, schema: KVCacheSchema) -> tuple[_Bytes, _Bytes]:
        data = np.frombuffer(_sized(page, schema.bytes_per_page), np.uint8).reshape(schema.num_layers, -1)
        heads, tokens, dim = schema.num_heads, schema.page_size, schema.head_dim
        cut = heads * (tokens + _SCALES) * dim
        return (
            data[:, :cut].reshape(-1, heads, tokens + _SCALES, dim),
            data[:, cut:].reshape(-1, heads, tokens, dim + _SCALES),
        )

    def _floats(self, page: memoryview, schema: KVCacheSchema) -> _Floats:
        nbytes = 8 * schema.num_layers * schema.num_heads * schema.page_size * schema.head_dim
        data = np.frombuffer(_sized(page, nbytes), np.float32)
        return data.reshape(schema.num_layers, 2, schema.num_heads, schema.page_size, schema.head_dim)


def _shape(schema: KVCacheSchema) -> tuple[int, int, int, int]:
    return schema.num_layers, schema.num_heads, schema.page_size, schema.head_dim


def _to_floats(rows: _Bytes, scales: _Floats, zeros: _Floats, out: _Floats) -> None:
    np.copyto(out, rows)  # NumPy converts many times faster by itself than within an arithmetic operation
    out -= zeros
    out *= scales


def _rounded(floats: _Floats, axis: int, rows: _Bytes, numbers: _Floats) -> tuple[_Floats, _Floats]:
    """Write the quantized bytes; returns scales and zero points. ``numbers`` is memory to compute in."""
    low, high = _extremes(floats, axis)
    scale = np.maximum(high - low, np.float32(_SMALLEST_RANGE))
    scale /= np.float32(255)
    zero = np.float32(0) - low / scale
    np.divide(floats, scale, out=numbers)
    numbers += zero
    np.rint(numbers, out=numbers)
    if not (zero.min() >= -_EXACT_ZERO and zero.max() <= _EXACT_ZERO):
        np.clip(numbers, 0, 255, out=numbers)
    np.copyto(rows, numbers, casting="unsafe")
    return scale, zero


def _extremes(floats: _Floats, axis: int) -> tuple[_Floats, _Floats]:
    """Smallest and largest numbers along axis 2 or 3. NumPy finds them several times faster among integers."""
    high, low = (_largest(floats.view(kind), axis).view(np.int32) for kind in (np.int32, np.uint32))
    if high.min() >= 0 > low.max():  # there are numbers of both signs everywhere
        return low.view(np.float32), high.view(np.float32)
    return floats.min(axis, keepdims=True), floats.max(axis, keepdims=True)


def _largest(bits: npt.NDArray[Any], axis: int) -> npt.NDArray[Any]:
    if axis == 2:
        return bits.max(axis, keepdims=True)  # type: ignore[no-any-return]
    flat = bits.reshape(len(bits), -1)  # a view: what comes after the layers is contiguous
    starts = np.arange(0, flat.shape[1], bits.shape[3])
    # Twice as fast as ``max`` of short rows.
    found: npt.NDArray[Any] = np.maximum.reduceat(flat, starts, axis=1)
    return found.reshape(*bits.shape[:3], 1)


def _sized(buffer: memoryview, nbytes: int) -> memoryview:
    data = memoryview(buffer).cast("B")
    if data.nbytes != nbytes:
        raise InvalidRequest(f"a KV page of {data.nbytes} bytes, expected {nbytes} by its schema")
    return data


@_quiet
def cast_floats(data: memoryview, dtype: str, out: memoryview, out_dtype: str) -> None:
    """Convert floats to another of the types fp32, fp16 and bf16, rounded to the nearest (``KVPageConverter``)."""
    source = np.frombuffer(data, _NUMPY[dtype])
    target = np.frombuffer(out, _NUMPY[out_dtype])
    step = _PART // 4
    for first in range(0, source.size, step):
        part = source[first : first + step]
        floats = _from_bf16(part) if dtype == "bf16" else part.astype(np.float32, copy=False)
        if out_dtype == "bf16":
            _to_bf16(floats, target[first : first + step])
        else:
            target[first : first + step] = floats


def _from_bf16(halves: npt.NDArray[Any]) -> _Floats:
    bits = halves.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _to_bf16(floats: _Floats, out: npt.NDArray[Any]) -> None:
    """Round to even at the upper half of each float; not-a-numbers stay such."""
    bits = floats.view(np.uint32)
    rounded = bits >> 16
    rounded &= 1
    rounded += bits
    rounded += 0x7FFF
    np.right_shift(rounded, 16, out=rounded)
    np.copyto(out, rounded, casting="unsafe")
    odd = np.isnan(floats)
    if odd.any():
        out[odd] = 0x7FC0
