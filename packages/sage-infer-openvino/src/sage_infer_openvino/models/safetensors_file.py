"""Reads the tensors of safetensors files, one file or the shards of an index, as views of a memory map.

Implemented here because the ``safetensors`` package requires torch for bf16. The format is a length, a JSON header, and
the bytes: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from sage_infer.errors import ModelFileError, UnsupportedFeature
from sage_infer.models import open_model_file, read_model_text

from sage_infer_openvino.models.decoder_weights import DenseWeight, FloatType

__all__ = ["SafetensorsFolder"]

_FLOATS: dict[str, tuple[FloatType, type[np.generic]]] = {
    "F32": ("f32", np.float32),
    "F16": ("f16", np.float16),
    "BF16": ("bf16", np.uint16),
}
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_LONGEST_HEADER = 100_000_000


@attrs.frozen
class _Entry:
    """Location of one tensor: the map of its file, its dtype in the file's spelling, shape, and byte range."""

    path: Path
    map: mmap.mmap
    dtype: str
    shape: tuple[int, ...]
    offset: int
    end: int


def _are_sizes(value: object, count: int | None = None) -> bool:
    """Whether ``value`` is a list of non-negative integers."""
    return (
        isinstance(value, list)
        and (count is None or len(value) == count)
        and all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in value)
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it has a duplicate name")
    return found


class SafetensorsFolder:
    """All tensors of a model's folder, by name.

    Raises :class:`ModelFileError`, naming the file, if a file or a shard of the index is missing or truncated.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._entries: dict[str, _Entry] = {}
        index = self.folder / "model.safetensors.index.json"
        single = self.folder / "model.safetensors"
        if single.is_file() or not index.is_file():
            self._open(single)
            return
        try:
            weight_map: dict[str, Any] = json.loads(read_model_text(index))["weight_map"]
            shards = sorted(set(weight_map.values()), key=str)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelFileError(
                f"{index}: not an index of shards (an object with a weight_map): {error!r}"
            ) from error
        for shard in shards:
            if not isinstance(shard, str) or "\0" in shard:
                raise ModelFileError(f"{index}: {shard!r} is not the name of a shard; the file is damaged")
            if Path(shard).name != shard:
                raise ModelFileError(f"{index}: the shard {shard!r} is outside of the folder")
            self._open(self.folder / shard)
        for name, shard in weight_map.items():
            if name not in self._entries:
                raise ModelFileError(
                    f"{self.folder / shard}: tensor {name} is missing, but listed in the index"
                )

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def names(self) -> list[str]:
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def weight(self, name: str) -> DenseWeight:
        """One tensor as a view. Raises :class:`UnsupportedFeature` if it is not F32, F16 or BF16."""
        entry = self._entry(name)
        if entry.dtype not in _FLOATS:
            raise UnsupportedFeature(
                f"{entry.path}: tensor {name} has the unsupported type {entry.dtype}; supported: F32, F16, BF16"
            )
        kind, dtype = _FLOATS[entry.dtype]
        count = int(np.prod(entry.shape, dtype=np.int64))
        values: npt.NDArray[Any] = np.frombuffer(entry.map, dtype, count, entry.offset).reshape(entry.shape)
        return DenseWeight(values, kind)

    def _entry(self, name: str) -> _Entry:
        try:
            return self._entries[name]
        except KeyError:
            raise ModelFileError(
                f"{self.folder}: tensor {name} is missing; the model is incomplete or has another architecture"
            ) from None

    def _open(self, path: Path) -> None:
        try:
            with open_model_file(path) as file:
                size = os.fstat(file.fileno()).st_size
                if size < 8:
                    raise ModelFileError(f"{path}: {size} bytes, expected a safetensors file; fetch it again")
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelFileError(f"{path}: cannot be read: {error.strerror or error}") from error
        (length,) = struct.unpack_from("<Q", data)
        if length > _LONGEST_HEADER or 8 + length > size:
            raise ModelFileError(
                f"{path}: the header length is {length:,} bytes, but the file has {size:,}; it is truncated, or "
                "not a safetensors file"
            )
        try:
            header = json.loads(data[8 : 8 + length], object_pairs_hook=_without_repeats)
            header.pop("__metadata__", None)
            entries = {}
            for name, info in header.items():
                dtype, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
                if not isinstance(dtype, str) or not _are_sizes(shape) or not _are_sizes(offsets, 2):
                    raise ValueError(
                        f"tensor {name!r} has dtype {dtype!r}, shape {shape!r}, offsets {offsets!r}"
                    )
                begin, end = (8 + length + offset for offset in offsets)
                entries[name] = _Entry(path, data, dtype, tuple(shape), begin, end)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error)[:200]
            raise ModelFileError(
                f"{path}: invalid safetensors header: {type(error).__name__} {reason}"
            ) from error
        expected = max((entry.end for entry in entries.values()), default=8 + length)
        if expected > size:
            raise ModelFileError(
                f"{path}: truncated: its tensors end at byte {expected:,}, but the file has {size:,} "
                "bytes; fetch it again"
            )
        for name, entry in entries.items():
            nbytes = math.prod(entry.shape) * _SIZES.get(entry.dtype, 0)
            if entry.dtype in _SIZES and entry.end - entry.offset != nbytes:
                raise ModelFileError(
                    f"{path}: tensor {name} has {entry.end - entry.offset} bytes, expected {nbytes} "
                    "for its shape"
                )
        self._entries.update(entries)
