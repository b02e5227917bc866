"""A segment on disk: a table of 64 bytes per block, then the payloads, padded to 4 KiB each.

The first entry of the table describes the segment. The entry of a block is written after its payload, so that an entry
which is there means a payload that was written. What the disk does to either afterwards, the checksums find.
"""

from __future__ import annotations

import struct

import xxhash
from attrs import frozen

__all__ = ["ENTRY_BYTES", "PAGE_BYTES", "Entry", "Layout", "checksum_of", "read_entry", "write_entry"]

PAGE_BYTES = 4096
ENTRY_BYTES = 64
_ENTRY = struct.Struct("<8s16sQQQ16x")
_SEALED = 40  # bytes of an entry that its own checksum covers
_BLOCK, _SEGMENT = b"SAGEKVB2", b"SAGEKVS2"

Entry = tuple[bytes, int, int]
"""Key, payload bytes, payload checksum."""


@frozen
class Layout:
    """Where things are in a segment of so many records."""

    block_bytes: int
    records: int

    @property
    def table_bytes(self) -> int:
        return -(-(self.records + 1) * ENTRY_BYTES // PAGE_BYTES) * PAGE_BYTES

    @property
    def payload_bytes(self) -> int:
        """Bytes of a padded payload."""
        return -(-self.block_bytes // PAGE_BYTES) * PAGE_BYTES

    def payload_at(self, record: int) -> int:
        return self.table_bytes + record * self.payload_bytes

    def entry_at(self, record: int) -> int:
        return (record + 1) * ENTRY_BYTES

    def size(self, records: int) -> int:
        """Bytes of the file with this many payloads."""
        return self.payload_at(records)

    def head(self) -> bytes:
        """The first entry."""
        return _sealed(_SEGMENT, bytes(16), self.block_bytes, self.records)

    @staticmethod
    def read(data: bytes | memoryview) -> Layout | None:
        """The layout of a segment that begins with ``data``; None where it is damaged or of another format."""
        found = _unsealed(_SEGMENT, data)
        return None if found is None else Layout(found[1], found[2])


def checksum_of(payload: memoryview) -> int:
    return xxhash.xxh3_64_intdigest(payload)


def write_entry(key: bytes, nbytes: int, checksum: int) -> bytes:
    """The 64 bytes of a block's entry."""
    return _sealed(_BLOCK, key, nbytes, checksum)


def read_entry(data: bytes | memoryview) -> Entry | None:
    """The fields of an entry; None where there is none, or it is damaged."""
    return _unsealed(_BLOCK, data)


def _sealed(magic: bytes, key: bytes, first: int, second: int) -> bytes:
    unsealed = _ENTRY.pack(magic, key, first, second, 0)[:_SEALED]
    return _ENTRY.pack(magic, key, first, second, xxhash.xxh3_64_intdigest(unsealed))


def _unsealed(magic: bytes, data: bytes | memoryview) -> Entry | None:
    if len(data) < ENTRY_BYTES:
        return None
    found, key, first, second, seal = _ENTRY.unpack_from(data)
    if found != magic or seal != xxhash.xxh3_64_intdigest(bytes(data[:_SEALED])):
        return None
    return key, first, second
