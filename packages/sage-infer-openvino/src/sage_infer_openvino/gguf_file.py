"""Reads a GGUF file's metadata and finds its tensors, checking every length against the file's size.

The ``gguf`` package has a reader too. Ours exists for the files that are *not* well formed: a copy that
stopped half way must be refused with the sizes it should and does have, and a corrupt count must not be
looped over. It also reads a vocabulary of 150,000 strings in a tenth of a second instead of seconds. The
formats of the tensors themselves stay with that package (``gguf_model``). Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from sage_infer.errors import ModelFileError

__all__ = ["GgufFile", "GgufTensor"]

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_SMALLEST_TENSOR_INFO = 24
_SMALLEST_FIELD = 13


@attrs.frozen
class GgufTensor:
    """Where a tensor's bytes are. ``shape`` is in NumPy order (rows first), ``offset`` counts from the file's
    start.
    """

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GgufFile:
    """A GGUF file: ``metadata`` (key → int, float, bool, str or list), and ``tensors`` by name.

    The file stays memory-mapped as long as the object or an array of :meth:`raw` lives.
    Raises :class:`ModelFileError` when the file is not a whole, little-endian GGUF of version 2 or 3.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.size = self.path.stat().st_size
            if self.size == 0:
                raise ModelFileError(
                    f"{self.path}: the file is empty (0 bytes), expected a GGUF model; fetch it again"
                )
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise ModelFileError(f"{self.path}: cannot be read: {error.strerror or error}") from error
        self._at = 0
        self.metadata: dict[str, Any] = {}
        self.tensors: dict[str, GgufTensor] = {}
        self._read()

    def raw(self, tensor: GgufTensor) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as a read-only view ``[nbytes]`` of the memory map."""
        return np.frombuffer(self._map, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)

    def _read(self) -> None:
        if self._map[:4] != b"GGUF":
            begins = self._map[:8]
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
            key = self._string()
            self.metadata[key] = self._value(self._scalar("I"))
        infos = [self._tensor_info() for _ in range(tensor_count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
            raise ModelFileError(f"{self.path}: general.alignment is {alignment!r}, expected a power of two")
        start = -(-self._at // alignment) * alignment
        for name, kind, shape, offset in infos:
            block, block_bytes = GGML_QUANT_SIZES[kind]
            count = int(np.prod([1, *shape], dtype=object))
            if shape and shape[-1] % block:
                raise ModelFileError(
                    f"{self.path}: rows of tensor {name} have {shape[-1]} values, not whole blocks of {block}"
                )
            if name in self.tensors:
                raise ModelFileError(f"{self.path}: tensor {name} is listed twice")
            self.tensors[name] = GgufTensor(name, kind, shape, start + offset, count // block * block_bytes)
        expected = max((tensor.offset + tensor.nbytes for tensor in self.tensors.values()), default=self._at)
        if expected > self.size:
            raise ModelFileError(
                f"{self.path}: truncated: its tensors end at byte {expected:,}, but the file has "
                f"{self.size:,} bytes; "
                "fetch it again"
            )

    def _tensor_info(self) -> tuple[str, GGMLQuantizationType, tuple[int, ...], int]:
        name = self._string()
        rank = self._scalar("I")
        if rank > 8:
            raise ModelFileError(
                f"{self.path}: tensor {name!r} claims {rank} dimensions; the file is corrupt"
            )
        shape = tuple(reversed([self._scalar("Q") for _ in range(rank)]))
        kind = self._scalar("I")
        try:
            type_ = GGMLQuantizationType(kind)
        except ValueError as error:
            raise ModelFileError(
                f"{self.path}: tensor {name} has the unknown GGML type {kind}; a newer `gguf` package "
                "may know it"
            ) from error
        return name, type_, shape, self._scalar("Q")

    def _room(self, needed: int) -> None:
        if self._at + needed > self.size:
            raise ModelFileError(
                f"{self.path}: truncated or corrupt inside its metadata: at least {self._at + needed:,} "
                "bytes expected, "
                f"the file has {self.size:,}; fetch it again"
            )

    def _scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        self._room(size)
        (value,) = struct.unpack_from("<" + code, self._map, self._at)
        self._at += size
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        self._room(length)
        data = self._map[self._at : self._at + length]
        self._at += length
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFileError(
                f"{self.path}: text at byte {self._at - length:,} is not UTF-8; the file is corrupt"
            ) from error

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            raise ModelFileError(
                f"{self.path}: metadata has the unknown value type {kind}; the file is corrupt"
            )
        item, length = self._scalar("I"), self._scalar("Q")
        if item in _SCALARS:
            size = struct.calcsize("<" + _SCALARS[item]) * length
            self._room(size)
            values = list(struct.unpack_from(f"<{length}{_SCALARS[item]}", self._map, self._at))
            self._at += size
            return values
        self._room(8 * length)
        return [self._value(item) for _ in range(length)]
