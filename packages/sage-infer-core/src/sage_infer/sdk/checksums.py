"""Checksums of KV chunks."""

from __future__ import annotations

from sage_infer.errors import UnsupportedFeature
from sage_infer.schemas.kv_chunk import CHECKSUM

__all__ = ["checksum", "verify"]


def checksum(buffer: bytes | bytearray | memoryview) -> str:
    """Return the checksum of the bytes: ``xxh3-64:`` and 16 hex digits."""
    import xxhash

    return f"{CHECKSUM}:{xxhash.xxh3_64_hexdigest(buffer)}"


def verify(buffer: bytes | bytearray | memoryview, stated: str) -> bool:
    """Return whether the bytes match a checksum.

    Raises:
        UnsupportedFeature: the algorithm of the checksum is not xxh3-64.
    """
    if stated.split(":", 1)[0] != CHECKSUM:
        raise UnsupportedFeature(f"checksum {stated!r} is not supported; expected {CHECKSUM}")
    return checksum(buffer) == stated
