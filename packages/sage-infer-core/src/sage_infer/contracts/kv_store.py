"""The contract of a KV store, and the one rule by which blocks are named."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Protocol, runtime_checkable

from attrs import frozen

from sage_infer.schemas import KVCacheSchema

__all__ = ["KVStore", "KVStoreStats", "block_keys"]

_KEY_BYTES = 16


@frozen(kw_only=True)
class KVStoreStats:
    """Blocks and bytes held, and what became of look-ups since the store was opened."""

    blocks: int
    capacity_blocks: int
    bytes_used: int
    pinned_blocks: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    corrupt: int = 0


@runtime_checkable
class KVStore(Protocol):
    """Blocks of KV, found by content.

    A block is ``schema.bytes_per_page`` bytes; a key is one of ``block_keys``. Bytes move through buffers that the
    caller owns. A store may be used from several threads.
    """

    @property
    def schema(self) -> KVCacheSchema: ...

    def match(self, tokens: Sequence[int]) -> int:
        """Tokens of the longest prefix held, a multiple of the page size.

        A look-up counts as one hit, or as one miss where nothing is held.
        """
        ...

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        """Copy blocks into ``out``; False where a block is not held (then its buffer is untouched).

        Raises:
            InvalidRequest: keys and buffers do not pair up, or a buffer has the wrong size.
        """
        ...

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        """Store blocks; returns how many of them are held afterwards.

        Unpinned blocks make room, least recently used first; ``get`` and ``put`` are uses.

        Raises:
            InvalidRequest: keys and blocks do not pair up, or a block has the wrong size.
        """
        ...

    def pin(self, keys: Sequence[bytes]) -> list[bool]:
        """Keep these blocks from eviction; pins are counted. False where a block is not held."""
        ...

    def unpin(self, keys: Sequence[bytes]) -> None:
        """Take back one pin of each block; blocks that are not held or not pinned are ignored."""
        ...

    def evict(self, count: int) -> int:
        """Drop up to ``count`` unpinned blocks, least recently used first; returns how many went."""
        ...

    def stats(self) -> KVStoreStats: ...
    def close(self) -> None:
        """Finish writing and free everything. Safe to call twice."""
        ...


def block_keys(model_id: str, schema: KVCacheSchema, tokens: Sequence[int]) -> Iterator[bytes]:
    """Keys of the full blocks of a token sequence, 16 bytes each.

    Each key hashes (model, KV schema, parent key, the block's tokens) with BLAKE2b, so equal keys mean an equal
    prefix, and two processes that computed the same prefix name it alike. A last partial block has no key.
    """
    parent = _root_key(model_id, schema)
    size = schema.page_size
    pack = struct.Struct(f"<{size}q").pack
    for start in range(0, len(tokens) - size + 1, size):
        parent = hashlib.blake2b(
            parent + pack(*tokens[start : start + size]), digest_size=_KEY_BYTES
        ).digest()
        yield parent


@lru_cache(maxsize=64)
def _root_key(model_id: str, schema: KVCacheSchema) -> bytes:
    from sage_infer.schemas.codec import to_json

    return hashlib.blake2b(f"{model_id}\n{to_json(schema)}".encode(), digest_size=_KEY_BYTES).digest()
