"""What all stores do with keys and buffers: check them, copy them, and derive a capacity from bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sage_infer.errors import ConfigError, InvalidRequest
from sage_infer.schemas import KVCacheSchema

__all__ = ["KEY_BYTES", "as_bytes", "blocks_of", "check_keys", "checked_buffers"]

KEY_BYTES = 16


def check_keys(keys: Sequence[bytes]) -> None:
    """Refuse keys that no ``block_keys`` makes.

    Raises:
        InvalidRequest: a key does not have 16 bytes.
    """
    for key in keys:
        if len(key) != KEY_BYTES:
            raise InvalidRequest(f"a key has {len(key)} bytes; keys of block_keys have {KEY_BYTES}")


def checked_buffers(
    schema: KVCacheSchema, keys: Sequence[bytes], buffers: Sequence[memoryview]
) -> list[npt.NDArray[np.uint8]]:
    """The buffers as arrays of bytes, one for each key.

    Raises:
        InvalidRequest: they do not pair up, or one has another size than a block.
    """
    size = schema.bytes_per_page
    if len(keys) != len(buffers):
        raise InvalidRequest(f"{len(keys)} keys and {len(buffers)} buffers; expected one buffer for each key")
    for buffer in buffers:
        if buffer.nbytes != size:
            raise InvalidRequest(f"a buffer has {buffer.nbytes} bytes; a block of this schema has {size}")
    check_keys(keys)
    return [as_bytes(buffer) for buffer in buffers]


def as_bytes(buffer: memoryview) -> npt.NDArray[np.uint8]:
    """A buffer as a flat array of bytes that shares its memory.

    Raises:
        InvalidRequest: it is not contiguous.
    """
    if not buffer.c_contiguous:
        raise InvalidRequest("a buffer is not contiguous; copy it first")
    return np.frombuffer(buffer, np.uint8)


def blocks_of(
    schema: KVCacheSchema, *, capacity_gb: object, capacity_blocks: object, default_gb: float
) -> int:
    """How many blocks a store holds that was configured in GiB or in blocks.

    Raises:
        ConfigError: both are given, or no block fits.
    """
    if capacity_gb is not None and capacity_blocks is not None:
        raise ConfigError("capacity_gb and capacity_blocks are both given; set one of them")
    if capacity_blocks is None:
        gb = default_gb if capacity_gb is None else capacity_gb
        if isinstance(gb, bool) or not isinstance(gb, int | float) or not gb > 0:
            raise ConfigError(f"capacity_gb must be a number above 0, got {gb!r}")
        capacity_blocks = int(gb * 2**30 // schema.bytes_per_page)
        if capacity_blocks < 1:
            raise ConfigError(
                f"capacity_gb is {gb:g}, and one block of this model has {schema.bytes_per_page / 2**30:.3f} GiB; "
                "raise capacity_gb"
            )
    if isinstance(capacity_blocks, bool) or not isinstance(capacity_blocks, int) or capacity_blocks < 1:
        raise ConfigError(f"capacity_blocks must be a whole number above 0, got {capacity_blocks!r}")
    return capacity_blocks
