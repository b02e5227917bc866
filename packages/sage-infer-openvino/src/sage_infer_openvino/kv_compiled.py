"""The loops of ``kv_format`` for Numba, which compiles them when this module is imported.

They compute what the NumPy code there computes, in the same order, so that the bytes are equal. Arrays are contiguous;
what is read can be read-only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numba import float32, int64, njit, types, uint8, void

__all__ = ["pack", "unpack"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_compiled: Callable[..., Callable[[_Function], _Function]] = njit
_ReadBytes = types.Array(uint8, 1, "C", readonly=True)
_ReadFloats = types.Array(float32, 1, "C", readonly=True)
_ONE_BYTE = np.float32(255)
_SMALLEST_RANGE = np.float32(1e-8)


# The fast mathematics lets LLVM compare several numbers at a time.
@_compiled(nogil=True, cache=True, error_model="numpy", fastmath={"nnan", "nsz"})
def _extremes(row: Any) -> Any:
    low = high = row[0]
    for number in row:
        low = min(low, number)
        high = max(high, number)
    return low, high


@_compiled(nogil=True, cache=True, error_model="numpy")
def _write(numbers: Any, scale: Any, zero: Any, out: Any) -> None:
    for at in range(len(numbers)):
        number = np.rint(numbers[at] / scale + zero)
        out[at] = np.uint8(np.int32(min(max(number, np.float32(0)), _ONE_BYTE)))


@_compiled(nogil=True, cache=True, error_model="numpy")
def _pack_keys(floats: Any, tokens: int, dim: int, low: Any, scales: Any, out: Any) -> None:
    """One head: a scale and a zero point for each channel."""
    high, zero = scales[:dim], scales[dim:]
    low[:] = floats[:dim]
    high[:] = floats[:dim]
    for token in range(1, tokens):
        row = floats[token * dim : (token + 1) * dim]
        for at in range(dim):
            low[at] = row[at] if row[at] < low[at] else low[at]
            high[at] = row[at] if row[at] > high[at] else high[at]
    for at in range(dim):
        scale = max(high[at] - low[at], _SMALLEST_RANGE) / _ONE_BYTE
        high[at] = scale
        zero[at] = np.float32(0) - low[at] / scale
    out[: 8 * dim] = scales.view(np.uint8)
    for token in range(tokens):
        row = floats[token * dim : (token + 1) * dim]
        numbers = out[(token + 8) * dim : (token + 9) * dim]
        for at in range(dim):
            number = np.rint(row[at] / high[at] + zero[at])
            numbers[at] = np.uint8(np.int32(min(max(number, np.float32(0)), _ONE_BYTE)))


@_compiled(
    void(_ReadFloats, uint8[::1], int64, int64, int64, int64), nogil=True, cache=True, error_model="numpy"
)
def pack(floats: Any, out: Any, layers: int, heads: int, tokens: int, dim: int) -> None:
    """A page of 8 bits from one of floats."""
    of_keys, of_values, size = heads * (tokens + 8) * dim, heads * tokens * (dim + 8), heads * tokens * dim
    low, scales, pair = np.empty(dim, np.float32), np.empty(2 * dim, np.float32), np.empty(2, np.float32)
    for layer in range(layers):
        begin, to = 2 * layer * size, layer * (of_keys + of_values)
        for head in range(heads):
            part = floats[begin + head * tokens * dim : begin + (head + 1) * tokens * dim]
            place = to + head * (tokens + 8) * dim
            _pack_keys(part, tokens, dim, low, scales, out[place : place + (tokens + 8) * dim])
        begin, to = begin + size, to + of_keys
        for row in range(heads * tokens):
            part = floats[begin + row * dim : begin + (row + 1) * dim]
            least, most = _extremes(part)
            pair[0] = max(most - least, _SMALLEST_RANGE) / _ONE_BYTE
            pair[1] = np.float32(0) - least / pair[0]
            place = to + row * (dim + 8)
            out[place : place + 8] = pair.view(np.uint8)
            _write(part, pair[0], pair[1], out[place + 8 : place + 8 + dim])


@_compiled(
    void(_ReadBytes, float32[::1], int64, int64, int64, int64, int64, int64, int64, int64),
    nogil=True, cache=True, error_model="numpy",
)  # fmt: skip
def unpack(
    page: Any,
    out: Any,
    layers: int,
    heads: int,
    tokens: int,
    dim: int,
    begin: int,
    end: int,
    room: int,
    at: int,
) -> None:
    """Tokens ``begin`` to ``end`` of a page of 8 bits, from token ``at`` on of a page of floats of ``room`` tokens."""
    of_keys, of_values = heads * (tokens + 8) * dim, heads * tokens * (dim + 8)
    scales, pair = np.empty(2 * dim, np.float32), np.empty(2, np.float32)
    scale_bytes, pair_bytes = scales.view(np.uint8), pair.view(np.uint8)
    for layer in range(layers):
        source = layer * (of_keys + of_values)
        for head in range(heads):
            place = source + head * (tokens + 8) * dim
            scale_bytes[:] = page[place : place + 8 * dim]
            to = ((2 * layer * heads + head) * room + at) * dim
            for token in range(begin, end):
                row = page[place + (token + 8) * dim : place + (token + 9) * dim]
                floats = out[to : to + dim]
                for channel in range(dim):
                    floats[channel] = (np.float32(row[channel]) - scales[dim + channel]) * scales[channel]
                to += dim
            place = source + of_keys + (head * tokens + begin) * (dim + 8)
            to = (((2 * layer + 1) * heads + head) * room + at) * dim
            for _ in range(begin, end):
                pair_bytes[:] = page[place : place + 8]
                scale, zero = pair[0], pair[1]
                row = page[place + 8 : place + 8 + dim]
                floats = out[to : to + dim]
                for channel in range(dim):
                    floats[channel] = (np.float32(row[channel]) - zero) * scale
                place, to = place + dim + 8, to + dim
