"""The checksum of KV on the move."""

from __future__ import annotations

from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas.kv_chunk import CHECKSUM

__all__ = ["checksum", "verify"]


def checksum(buffer: bytes | bytearray | memoryview) -> str:
    """``xxh3-64:`` and 16 hex digits over the bytes."""
    import xxhash

    return f"{CHECKSUM}:{xxhash.xxh3_64_hexdigest(buffer)}"


def verify(buffer: bytes | bytearray | memoryview, stated: str) -> bool:
    """Whether the bytes have the checksum that is stated for them.

    Raises:
        UnsupportedFeature: it was made by another algorithm than xxh3-64.
    """
    if stated.split(":", 1)[0] != CHECKSUM:
        raise UnsupportedFeature(f"checksum {stated!r} is not supported; expected {CHECKSUM}")
    return checksum(buffer) == stated
