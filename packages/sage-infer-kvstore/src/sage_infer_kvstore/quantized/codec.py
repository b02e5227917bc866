"""Pages of floats as pages of 8 or 4 bits with scales, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from attrs import evolve
from sage_infer.errors import ConfigError, UnsupportedFeature
from sage_infer.schemas import KVCacheSchema
from sage_infer.schemas.kv import KVAxis

from sage_infer_kvstore.quantized.numbers import (
    FP8_MAX,
    as_float32,
    extremes,
    fp8_from_float32,
    fp8_to_float32,
    from_float32,
    largest_absolute,
)

__all__ = ["DTYPES", "GRANULARITIES", "PageCodec"]

DTYPES = ("int8", "int4", "fp8_e4m3", "fp8_e5m2")
GRANULARITIES = {"token_head": (4,), "head": (3, 4), "channel": (3,)}
"""Axes of ``[layer, kv, head, token, dim]`` that share a scale."""

_PLAIN: tuple[KVAxis, ...] = ("layer", "kv", "head", "token", "dim")
_FORMAT = "sage-quantized-1"
_SLAB_BYTES = 256 * 1024  # of floats at a time, so that they stay in the cache
_LEAST = {"fp16": 2.0**-24, "fp32": 2.0**-126}

Bytes = npt.NDArray[np.uint8]


class PageCodec:
    """Between pages of ``source`` (fp32, fp16, bf16) and pages of ``schema``.

    A page is the numbers, then the scales, then the offsets. Errors of a number *x* whose group has the largest
    absolute value *a* and the range *r*, before it is rounded to the source's type:

    - int8: ``a / 254``
    - int4: ``r / 30 + a / 1024``
    - fp8_e4m3: ``max(|x| / 16, a / 2**18)``; fp8_e5m2: ``max(|x| / 8, a / 2**31)``

    each times 1.002, for the rounding of the scale.
    """

    def __init__(self, source: KVCacheSchema, *, dtype: object, granularity: object) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if granularity not in GRANULARITIES:
            raise ConfigError(f"granularity must be one of {', '.join(GRANULARITIES)}, got {granularity!r}")
        _check(source)
        self.source = source
        self._dtype = str(dtype)
        self._scale_dtype = "fp32" if self._dtype in FP8_MAX else "fp16"
        self._axes = GRANULARITIES[str(granularity)]
        self._has_offsets = dtype == "int4"
        kinds: dict[str, Any] = {
            "dtype": dtype, "scale_dtype": self._scale_dtype, "scale_granularity": granularity,
        }  # fmt: skip
        self.schema = evolve(source, **kinds, zero_points=self._has_offsets, format_id=_FORMAT)
        shape = (source.num_layers, 2, source.num_heads, source.page_size, source.head_dim)
        self._shape = shape
        self._scale_shape = tuple(1 if axis in self._axes else size for axis, size in enumerate(shape))
        self._numbers = int(np.prod(shape)) * (4 if dtype == "int4" else 8) // 8
        self._scales = int(np.prod(self._scale_shape)) * (4 if self._scale_dtype == "fp32" else 2)
        slab = 4 * int(np.prod(shape[1:]))
        self._step = max(1, _SLAB_BYTES // slab)

    def encode(self, page: Bytes, out: Bytes) -> bool:
        """Write a quantized page; False where a number is not finite."""
        width = len(page) // self.source.num_layers
        numbers, scales, offsets = self._parts(out)
        for layers in self._slabs():
            part = page[layers.start * width : layers.stop * width]
            values = as_float32(part, self.source.dtype).reshape(-1, *self._shape[1:])
            if not self._encode(values, numbers[layers], scales[layers], offsets[layers]):
                return False
        return True

    def decode(self, page: Bytes, out: Bytes) -> None:
        """Write a page of the source's type."""
        numbers, scales, offsets = self._parts(page)
        width = len(out) // self.source.num_layers
        for layers in self._slabs():
            target = out[layers.start * width : layers.stop * width]
            if self._dtype == "int8" and self.source.dtype == "fp32":
                floats = target.view(np.float32).reshape(-1, *self._shape[1:])
                # Faster than to convert while multiplying.
                np.copyto(floats, numbers[layers].view(np.int8).reshape(floats.shape))
                floats *= scales[layers].astype(np.float32)
                continue
            values = self._decode(numbers[layers], scales[layers], offsets[layers])
            from_float32(values.reshape(-1), target, self.source.dtype)

    def _slabs(self) -> list[slice]:
        count = self.source.num_layers
        return [slice(i, min(i + self._step, count)) for i in range(0, count, self._step)]

    def _parts(self, page: Bytes) -> tuple[Bytes, npt.NDArray[Any], npt.NDArray[Any]]:
        kind: Any = np.float32 if self._scale_dtype == "fp32" else np.float16
        layers = self.source.num_layers
        numbers = page[: self._numbers].reshape(layers, -1)
        at = self._numbers
        scales = page[at : at + self._scales].view(kind).reshape(self._scale_shape)
        offsets = scales
        if self._has_offsets:
            at += self._scales
            offsets = page[at : at + self._scales].view(kind).reshape(self._scale_shape)
        return numbers, scales, offsets

    def _encode(
        self,
        values: npt.NDArray[np.float32],
        numbers: Bytes,
        scales: npt.NDArray[Any],
        offsets: npt.NDArray[Any],
    ) -> bool:
        largest = 127.0 if self._dtype == "int8" else 15.0 if self._has_offsets else FP8_MAX[self._dtype]
        if self._has_offsets:
            low, high = extremes(values, self._axes)
            span = high - low
        else:
            low = span = largest_absolute(values, self._axes)
        if not np.isfinite(span).all():
            return False
        scales[:] = np.minimum(
            np.maximum(span / largest, _LEAST[self._scale_dtype]), np.finfo(scales.dtype).max
        )
        scale = scales.astype(np.float32)
        if self._has_offsets:
            offsets[:] = np.clip(low, np.finfo(offsets.dtype).min, np.finfo(offsets.dtype).max)
            values = values - offsets.astype(np.float32)
        scaled = values * (1.0 / scale)
        if self._dtype in FP8_MAX:
            numbers[:] = fp8_from_float32(scaled, self._dtype).reshape(numbers.shape)
            return True
        np.rint(scaled, out=scaled)
        bounds = np.finfo(scales.dtype)
        # The rounding of a scale leaves 127.1 at most, unless it has few digits or reached its bound.
        if self._has_offsets or scale.min() < bounds.smallest_normal or scale.max() >= bounds.max:
            np.clip(scaled, 0.0 if self._has_offsets else -largest, largest, out=scaled)
        if self._has_offsets:
            nibbles = scaled.astype(np.uint8).reshape(len(numbers), -1)
            numbers[:] = nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
        else:
            np.copyto(numbers.view(np.int8), scaled.reshape(numbers.shape), casting="unsafe")
        return True

    def _decode(
        self, numbers: Bytes, scales: npt.NDArray[Any], offsets: npt.NDArray[Any]
    ) -> npt.NDArray[np.float32]:
        shape = (len(numbers), *self._shape[1:])
        scale = scales.astype(np.float32)
        if self._dtype in FP8_MAX:
            return fp8_to_float32(numbers, self._dtype).reshape(shape) * scale
        if not self._has_offsets:
            return np.multiply(numbers.view(np.int8).reshape(shape), scale, dtype=np.float32)
        nibbles = np.empty((len(numbers), 2 * numbers.shape[1]), np.uint8)
        nibbles[:, 0::2], nibbles[:, 1::2] = numbers & 15, numbers >> 4
        return nibbles.reshape(shape) * scale + offsets.astype(np.float32)


def _check(source: KVCacheSchema) -> None:
    """
    Raises:
        UnsupportedFeature: pages of another form than plain floats.
    """
    other = [
        name
        for name, is_plain in (
            ("dtype", source.dtype in ("fp32", "fp16", "bf16")),
            ("value_dtype", source.value_dtype in (None, source.dtype)),
            ("value_dim", source.value_width == source.head_dim),
            ("axis_order", source.axis_order == _PLAIN and source.key_order == _PLAIN),
            ("format_id", not source.format_id),
            ("groups", not source.groups),
            ("shards", source.shards == 1),
        )
        if not is_plain
    ]
    if other:
        raise UnsupportedFeature(
            f"the store 'quantized' takes pages of fp32, fp16 or bf16 in the order {', '.join(_PLAIN)}; this model's "
            f"differ in {', '.join(other)}"
        )
