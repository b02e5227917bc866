"""Metadata of a GGUF file, read without numpy (format: ggml's docs/gguf.md)."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from sage_infer.errors import ModelFileError

__all__ = ["read_metadata"]

_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _ARRAY = 8, 9
_HEADER = struct.Struct("<4sIQQ")

Value = int | float | bool | str


def read_metadata(path: Path) -> dict[str, Value]:
    """Scalars and texts by key. For a list only its length is returned, as ``KEY#``.

    Raises:
        ModelFileError: it cannot be read, or is not a GGUF file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data).all()
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelFileError(f"{path} cannot be read as a GGUF file: {error}") from None


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self._data, self._at = data, _HEADER.size

    def all(self) -> dict[str, Value]:
        magic, version, _, count = _HEADER.unpack_from(self._data, 0)
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it starts with {magic!r}, version {version}")
        found: dict[str, Value] = {}
        for _ in range(count):
            key = self._string()
            kind = int(self._scalar("<I"))
            if kind == _ARRAY:
                found[f"{key}#"] = self._skip_array()
            else:
                found[key] = self._string() if kind == _STRING else self._scalar(_SCALARS[kind])
        return found

    def _scalar(self, code: str) -> Value:
        (value,) = struct.unpack_from(code, self._data, self._at)
        self._at += struct.calcsize(code)
        scalar: Value = value
        return scalar

    def _string(self) -> str:
        start, end = self._text()
        return self._data[start:end].decode("utf-8")

    def _text(self) -> tuple[int, int]:
        """Start and end of a text; the reader is positioned after it."""
        length = int(self._scalar("<Q"))
        start, self._at = self._at, self._at + length
        if self._at > len(self._data):
            raise ValueError("it ends inside its metadata")
        return start, self._at

    def _skip_array(self) -> int:
        kind, count = int(self._scalar("<I")), int(self._scalar("<Q"))
        if kind == _ARRAY:
            for _ in range(count):
                self._skip_array()
        elif kind == _STRING:
            for _ in range(count):
                self._text()
        else:
            self._at += struct.calcsize(_SCALARS[kind]) * count
        return count
