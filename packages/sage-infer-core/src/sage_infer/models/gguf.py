"""The start of a GGUF file: enough to recognize a model without reading all of it."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from pathlib import Path

from sage_infer.errors import ModelFileError
from sage_infer.models.files import open_model_file
from sage_infer.models.lfs import is_pointer
from sage_infer.names import ModelType

__all__ = ["first_shard", "model_type"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING = 8  # GGUF type id of a string value
_HEAD = 512  # bytes read: the header and the first key, which all known writers use for the architecture
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def model_type(path: Path) -> ModelType:
    """Kind of model according to the file.

    Raises:
        ModelFileError: it cannot be read, or is not a GGUF file.
    """
    try:
        with open_model_file(path) as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    if not head:
        raise ModelFileError(f"{path} is empty; copy or download the model again")
    if is_pointer(head):
        raise ModelFileError(
            f"{path} is a Git LFS pointer, not the model; run `git lfs pull` in its repository"
        )
    if not head.startswith(_MAGIC):
        looks = "looks like text" if _is_text(head) else f"starts with {head[:4]!r}"
        raise ModelFileError(f"{path} is not a GGUF model: it {looks}, but GGUF files start with b'GGUF'")
    if len(head) < 24:
        raise ModelFileError(f"{path} is truncated: {len(head)} bytes; copy or download the model again")
    (version,) = struct.unpack_from("<I", head, 4)
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise ModelFileError(
            f"{path} is GGUF version {version}; supported versions: {known}: convert it again"
        )
    return "embedding" if "bert" in _architecture(head) else "llm"


def first_shard(files: Sequence[Path]) -> Path | None:
    """The first of ``files`` if they are all parts of one split model, else None.

    Raises:
        ModelFileError: they are parts of one model, and some are missing.
    """
    parts = [_SHARD.fullmatch(file.name) for file in files]
    first = parts[0] if parts else None
    if first is None or any(
        p is None or p["stem"] != first["stem"] or p["count"] != first["count"] for p in parts
    ):
        return None
    numbers = {int(part["number"]): file for part, file in zip(parts, files, strict=True) if part is not None}
    missing = [n for n in range(1, int(first["count"]) + 1) if n not in numbers]
    if missing:
        names = ", ".join(f"{first['stem']}-{n:05}-of-{first['count']}.gguf" for n in missing[:3])
        more = ", …" if len(missing) > 3 else ""
        raise ModelFileError(f"{files[0].parent} lacks {len(missing)} part(s) of its model: {names}{more}")
    return numbers[1]


def _architecture(head: bytes) -> str:
    """Value of ``general.architecture`` if it is the first key, else an empty string."""
    try:
        key, at = _string(head, 24)
        (kind,) = struct.unpack_from("<I", head, at)
        return _string(head, at + 4)[0] if (key, kind) == ("general.architecture", _STRING) else ""
    except struct.error:  # the first key is longer than the head
        return ""


def _string(head: bytes, at: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", head, at)
    end = at + 8 + min(length, _HEAD)  # a longer one exceeds the head, and struct's offset range
    return head[at + 8 : end].decode("utf-8", "replace"), end


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return text.isprintable() or "\n" in text
