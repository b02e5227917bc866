"""Reads a GGUF file's metadata and finds its tensors, checking every length against the file's size.

The ``gguf`` package has a reader too. Ours exists for the files that are *not* well formed: a copy that
stopped half way must be refused with the sizes it should and does have, and a corrupt count must not be
looped over. It also reads a vocabulary of 150,000 strings in a tenth of a second instead of seconds. The
formats of the tensors themselves stay with that package (``gguf_model``). Layout:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import re
import struct
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from sage_infer.errors import ModelFileError

__all__ = ["GgufFile", "GgufTensor", "part_paths"]

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


_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def part_paths(path: Path) -> list[Path]:
    """All files of the model that ``path`` is (the first part of), whether they exist or not.

    llama.cpp's ``gguf-split`` calls them ``NAME-00001-of-0000N.gguf``. Raises :class:`ModelFileError` for a
    later part.
    """
    found = _PART.search(path.name)
    if found is None:
        return [path]
    part, count = map(int, found.groups())
    if part != 1:
        first = path.name[: found.start()] + f"-00001-of-{count:05}.gguf"
        raise ModelFileError(f"{path}: is part {part} of {count} of a model; name the first, {first}")
    stem = path.name[: found.start()]
    return [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


class GgufFile:
    """A GGUF file: ``metadata`` (key → int, float, bool, str or list), and ``tensors`` by name.

    Given the first of several parts, it has the tensors of all, and its own metadata. Files stay
    memory-mapped as long as the object or an array of :meth:`raw` lives.
    Raises :class:`ModelFileError` when a file is not a whole, little-endian GGUF of version 2 or 3, or a
    part is missing.
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
        self._part_of: dict[str, GgufFile] = {}
        self._join_parts()

    def raw(self, tensor: GgufTensor) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as a read-only view ``[nbytes]`` of the memory map."""
        if tensor.name in self._part_of:
            return self._part_of[tensor.name].raw(tensor)
        return np.frombuffer(self._map, dtype=np.uint8, count=tensor.nbytes, offset=tensor.offset)

    def _join_parts(self) -> None:
        count = self.metadata.get("split.count", 1)
        if not isinstance(count, int) or count <= 1 or self.metadata.get("split.no", 0) != 0:
            return
        paths = part_paths(self.path)
        if len(paths) != count:
            raise ModelFileError(
                f"{self.path}: is part 1 of {count}, and parts are called NAME-00001-of-{count:05}.gguf; "
                "give it back its name"
            )
        for path in paths[1:]:
            if not path.is_file():
                raise ModelFileError(f"{path}: not found; the model is in {count} parts, fetch this one too")
            part = GgufFile(path)
            if part.tensors.keys() & self.tensors.keys():
                raise ModelFileError(f"{path}: has tensors that an earlier part has; fetch the parts again")
            self.tensors |= part.tensors
            self._part_of |= dict.fromkeys(part.tensors, part)
        expected = self.metadata.get("split.tensors.count", len(self.tensors))
        if len(self.tensors) != expected:
            raise ModelFileError(
                f"{self.path}: its {count} parts have {len(self.tensors)} tensors, expected {expected}; "
                "fetch the parts again"
            )

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
