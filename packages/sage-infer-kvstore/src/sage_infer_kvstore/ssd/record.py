"""One block on disk: a header of 4 KiB, then the payload, padded to 4 KiB.

The header is written after the payload, so that a header which is there means a payload that was written. What the
disk does to either afterwards, the checksums find.
"""

from __future__ import annotations

import struct

import xxhash

__all__ = ["HEADER_BYTES", "Header", "payload_checksum", "read_header", "record_bytes", "write_header"]

HEADER_BYTES = 4096
_FIELDS = struct.Struct("<8s16sQQ")
_SEAL = struct.Struct("<Q")
_MAGIC = b"SAGEKV01"

Header = tuple[bytes, int, int]
"""Key, payload bytes, payload checksum."""


def record_bytes(block_bytes: int) -> int:
    """Bytes of the record of a block."""
    return HEADER_BYTES + -(-block_bytes // HEADER_BYTES) * HEADER_BYTES


def payload_checksum(payload: memoryview) -> int:
    return xxhash.xxh3_64_intdigest(payload)


def write_header(key: bytes, nbytes: int, checksum: int) -> bytes:
    """The header's bytes."""
    fields = _FIELDS.pack(_MAGIC, key, nbytes, checksum)
    return (fields + _SEAL.pack(xxhash.xxh3_64_intdigest(fields))).ljust(HEADER_BYTES, b"\0")


def read_header(data: bytes | memoryview) -> Header | None:
    """The fields of a header; None where there is none, or it is damaged."""
    if len(data) < _FIELDS.size + _SEAL.size:
        return None
    fields = bytes(data[: _FIELDS.size])
    magic, key, nbytes, checksum = _FIELDS.unpack(fields)
    (seal,) = _SEAL.unpack(data[_FIELDS.size : _FIELDS.size + _SEAL.size])
    if magic != _MAGIC or seal != xxhash.xxh3_64_intdigest(fields):
        return None
    return key, nbytes, checksum
