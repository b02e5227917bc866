"""One block as a value on the server: a header of 40 bytes, then the payload."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = ["HEADER_BYTES", "sealed", "unsealed"]

_HEADER = struct.Struct("<8s16sQQ")
HEADER_BYTES = _HEADER.size
_MAGIC = b"SAGEKV01"


def sealed(key: bytes, block: npt.NDArray[np.uint8]) -> bytes:
    """The value of a block. The header names the key, so that another block's value is recognized."""
    header = _HEADER.pack(_MAGIC, key, block.nbytes, xxhash.xxh3_64_intdigest(block.data))
    return b"".join((header, block.data))


def unsealed(key: bytes, value: object, block_bytes: int) -> npt.NDArray[np.uint8] | None:
    """The payload of a value; None where the value is not that of this block, or is damaged."""
    if not isinstance(value, bytes) or len(value) != HEADER_BYTES + block_bytes:
        return None
    payload = memoryview(value)[HEADER_BYTES:]
    expected = (_MAGIC, key, block_bytes, xxhash.xxh3_64_intdigest(payload))
    return np.frombuffer(payload, np.uint8) if _HEADER.unpack_from(value) == expected else None
