"""Locates the tensors of a GGUF model in one or several files, and checks that the files are complete.

``sage_infer.sdk.gguf`` reads the header; the ``gguf`` package defines the tensor formats (``models.gguf.model``).
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs
import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from sage_infer.errors import ModelFileError
from sage_infer.sdk.gguf import GgufHeader, TensorInfo

__all__ = ["GgufFile", "GgufTensor", "part_paths"]


@attrs.frozen
class GgufTensor:
    """Location of a tensor. ``shape`` is in NumPy order (rows first), ``offset`` counts from the start of the file."""

    name: str
    type: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def part_paths(path: Path) -> list[Path]:
    """Paths of all parts of a model, existing or not; ``path`` is the only or the first one.

    llama.cpp's ``gguf-split`` names them ``NAME-00001-of-0000N.gguf``. Raises :class:`ModelFileError` for a later part.
    """
    found = _PART.search(path.name)
    if found is None:
        return [path]
    part, count = map(int, found.groups())
    if part != 1:
        first = path.name[: found.start()] + f"-00001-of-{count:05}.gguf"
        raise ModelFileError(f"{path}: is part {part} of {count} of a model; specify the first part, {first}")
    stem = path.name[: found.start()]
    return [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


class GgufFile:
    """A GGUF file: ``metadata`` (key → int, float, bool, str or list), and ``tensors`` by name.

    If ``path`` is the first of several parts, ``tensors`` are those of all parts, and ``metadata`` is that of the first
    one. Files stay memory-mapped while the object or an array of :meth:`raw` exists.

    Raises :class:`ModelFileError` if a file is not a complete, little-endian GGUF of version 2 or 3, or a part is
    missing.
    """

    def __init__(self, path: str | Path) -> None:
        header = GgufHeader(path)
        self.path, self.size, self._map = header.path, header.size, header.data
        self.metadata = header.metadata
        self.tensors: dict[str, GgufTensor] = {}
        self._place(header)
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
                f"{self.path}: is part 1 of {count}, and must be named NAME-00001-of-{count:05}.gguf; rename it"
            )
        for path in paths[1:]:
            if not path.is_file():
                raise ModelFileError(f"{path}: not found; the model has {count} parts, fetch this one too")
            part = GgufFile(path)
            if part.tensors.keys() & self.tensors.keys():
                raise ModelFileError(f"{path}: repeats tensors of an earlier part; fetch the parts again")
            self.tensors |= part.tensors
            self._part_of |= dict.fromkeys(part.tensors, part)
        expected = self.metadata.get("split.tensors.count", len(self.tensors))
        if len(self.tensors) != expected:
            raise ModelFileError(
                f"{self.path}: its {count} parts have {len(self.tensors)} tensors, expected {expected}; "
                "fetch the parts again"
            )

    def _place(self, header: GgufHeader) -> None:
        """Locate the tensors' bytes, and check that the file is complete."""
        for info in header.tensors:
            kind = self._type(info)
            block, block_bytes = GGML_QUANT_SIZES[kind]
            count = int(np.prod([1, *info.shape], dtype=object))
            if info.shape and info.shape[-1] % block:
                raise ModelFileError(
                    f"{self.path}: rows of tensor {info.name} have {info.shape[-1]} values, not a multiple of {block}"
                )
            if info.name in self.tensors:
                raise ModelFileError(f"{self.path}: tensor {info.name} is repeated")
            nbytes = count // block * block_bytes
            offset = header.data_start + info.offset
            self.tensors[info.name] = GgufTensor(info.name, kind, info.shape, offset, nbytes)
        expected = max((tensor.offset + tensor.nbytes for tensor in self.tensors.values()), default=0)
        if expected > self.size:
            raise ModelFileError(
                f"{self.path}: truncated: its tensors end at byte {expected:,}, but the file has "
                f"{self.size:,} bytes; fetch it again"
            )

    def _type(self, info: TensorInfo) -> GGMLQuantizationType:
        try:
            return GGMLQuantizationType(info.type)
        except ValueError as error:
            raise ModelFileError(
                f"{self.path}: tensor {info.name} has the unknown GGML type {info.type}; update the package `gguf`"
            ) from error
