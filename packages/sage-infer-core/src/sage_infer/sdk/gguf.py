"""Reader of GGUF headers (metadata and list of tensors) without numpy.

Every length is checked against the size of the file. A truncated file is therefore rejected with its expected and
actual sizes, and a corrupt count does not cause a long loop.
Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any

from attrs import frozen

from sage_infer.errors import ModelFileError
from sage_infer.models.files import open_model_file

__all__ = ["TENSOR_TYPES", "GgufHeader", "TensorInfo", "read_metadata"]

TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
"""GGML types by number: name, elements per block, and bytes per block."""

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SMALLEST_TENSOR_INFO = 24
_SMALLEST_FIELD = 13
_MAX_RANK = 8
_MAX_DEPTH = 8  # of lists in lists


@frozen
class TensorInfo:
    """A tensor in the header.

    Attributes:
        name: name of the tensor.
        shape: shape in NumPy order, rows first.
        type: number of the tensor's GGML type.
        offset: offset of the data in bytes from ``GgufHeader.data_start``.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    offset: int


class GgufHeader:
    """The header of one file.

    Attributes:
        path: the file.
        size: its size in bytes.
        data: the whole file as a read-only memory map, which stays open while it is referenced.
        metadata: int, float, bool, str or list by key; without ``lists``, a list is stored as ``KEY#`` with its length.
        tensors: tensors in the order of the file.
        data_start: offset of the tensor data in bytes.

    Raises:
        ModelFileError: the file cannot be read, is truncated, or is not little-endian GGUF of version 2 or 3.
    """

    def __init__(self, path: str | Path, *, lists: bool = True) -> None:
        self.path = Path(path)
        self._lists = lists
        try:
            with open_model_file(self.path) as file:
                self.size = os.fstat(file.fileno()).st_size
                if self.size == 0:
                    raise ModelFileError(
                        f"{self.path}: the file is empty (0 bytes), expected a GGUF model; fetch it again"
                    )
                self.data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelFileError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: list[TensorInfo] = []
        self.data_start = 0
        self._read()

    def _read(self) -> None:
        if self.data[:4] != b"GGUF":
            begins = self.data[:8]
            raise ModelFileError(f"{self.path}: not a GGUF file (begins with {begins!r}, expected b'GGUF')")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise ModelFileError(
                f"{self.path}: GGUF version {version} is not supported (2 and 3, little-endian, are); "
                "convert it again"
            )
        tensor_count, field_count = self._scalar("Q"), self._scalar("Q")
        self._room(tensor_count * _SMALLEST_TENSOR_INFO + field_count * _SMALLEST_FIELD)
        for _ in range(field_count):
            key, kind = self._string(), self._scalar("I")
            if kind == _ARRAY and not self._lists:
                self.metadata[f"{key}#"] = self._skip_list()
            else:
                self.metadata[key] = self._value(kind)
        self.tensors = [self._tensor_info() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise ModelFileError(f"{self.path}: general.alignment is {alignment!r}, expected a power of two")
        self.data_start = -(-self._at // alignment) * alignment

    def _tensor_info(self) -> TensorInfo:
        name = self._string()
        rank = self._scalar("I")
        if rank > _MAX_RANK:
            raise ModelFileError(
                f"{self.path}: tensor {name!r} claims {rank} dimensions; the file is corrupt"
            )
        shape = tuple(reversed([self._scalar("Q") for _ in range(rank)]))
        return TensorInfo(name, shape, self._scalar("I"), self._scalar("Q"))

    def _room(self, needed: int) -> None:
        if self._at + needed > self.size:
            raise ModelFileError(
                f"{self.path}: truncated or corrupt inside its metadata: at least {self._at + needed:,} "
                f"bytes expected, the file has {self.size:,}; fetch it again"
            )

    def _scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        self._room(size)
        (value,) = struct.unpack_from("<" + code, self.data, self._at)
        self._at += size
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        self._room(length)
        data = self.data[self._at : self._at + length]
        self._at += length
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{self.path}: text at byte {self._at - length:,} is not UTF-8; the file is corrupt"
            ) from error

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        item, length = self._list_head(kind, depth)
        if item in _SCALARS:
            self._room(struct.calcsize("<" + _SCALARS[item]) * length)
            values = list(struct.unpack_from(f"<{length}{_SCALARS[item]}", self.data, self._at))
            self._at += struct.calcsize("<" + _SCALARS[item]) * length
            return values
        self._room(8 * length)
        return [self._value(item, depth + 1) for _ in range(length)]

    def _skip_list(self, depth: int = 0) -> int:
        item, length = self._list_head(_ARRAY, depth)
        if item in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[item]) * length
            self._room(size)
            self._at += size
            return length
        self._room(8 * length)
        for _ in range(length):
            if item == _STRING:
                size = self._scalar("Q")
                self._room(size)
                self._at += size
            else:
                self._skip_list(depth + 1)
        return length

    def _list_head(self, kind: int, depth: int) -> tuple[int, int]:
        if kind != _ARRAY or depth > _MAX_DEPTH:
            what = f"the unknown value type {kind}" if kind != _ARRAY else "lists that are nested too deeply"
            raise ModelFileError(f"{self.path}: metadata has {what}; the file is corrupt")
        item, length = self._scalar("I"), self._scalar("Q")
        if item not in _SCALARS and item not in (_STRING, _ARRAY):
            raise ModelFileError(
                f"{self.path}: metadata has the unknown value type {item}; the file is corrupt"
            )
        return item, length


def read_metadata(path: str | Path) -> dict[str, int | float | bool | str]:
    """Return scalars and texts by key; for a list only its length, as ``KEY#``.

    Raises:
        ModelFileError: the file cannot be read, or is not a GGUF file.
    """
    return GgufHeader(path, lists=False).metadata
