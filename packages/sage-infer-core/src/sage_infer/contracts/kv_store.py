"""Contracts of KV stores: blocks by content, in one tier, in shared memory, or in several tiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol, runtime_checkable

from attrs import field, frozen

from sage_infer.schemas import KVCacheSchema
from sage_infer.schemas.kv_chunk import MemoryTier

__all__ = [
    "KVPlace",
    "KVStore",
    "KVStoreEvent",
    "KVStoreStats",
    "MappedKVStore",
    "ObservableKVStore",
    "TieredKVStore",
]


@frozen(kw_only=True)
class KVStoreStats:
    """Blocks and bytes held, and the results of look-ups since the store was opened.

    Attributes:
        blocks: blocks held.
        capacity_blocks: blocks that fit; 0 where the store does not know.
        bytes_used: bytes held.
        dropped: blocks of ``put`` that were not kept, because a queue was full or nothing could be evicted.
        tiers: blocks by tier, for a store with several.
    """

    blocks: int
    capacity_blocks: int
    bytes_used: int
    pinned_blocks: int = 0
    hits: int = 0
    misses: int = 0
    evictions: int = 0
    corrupt: int = 0
    dropped: int = 0
    tiers: Mapping[str, int] = field(factory=dict)


@runtime_checkable
class KVStore(Protocol):
    """Blocks of KV, found by content.

    A block is ``schema.bytes_per_page`` bytes; a key is one of ``block_keys``. Bytes move through buffers
    that the caller owns. A store may be used from several threads.
    """

    @property
    def schema(self) -> KVCacheSchema: ...

    def match(self, tokens: Sequence[int]) -> int:
        """Tokens of the longest prefix held, a multiple of the page size, for requests without salt and
        extras.

        A look-up counts as one hit, or as one miss where nothing is held.
        """
        ...

    def match_keys(self, keys: Sequence[bytes]) -> int:
        """How many of these keys, from the first on, are held. Counts as ``match`` does.

        Requests with a salt, an adapter or media look up this way: ``match`` does not know of them.
        """
        ...

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Which blocks are held; neither a use nor a look-up."""
        ...

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        """Copy blocks into ``out``; False where a block is not held (then its buffer is untouched).

        Raises:
            InvalidRequest: keys and buffers do not pair up, or a buffer has the wrong size.
        """
        ...

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        """Store blocks; returns how many of them are held afterwards.

        Unpinned blocks make room, in the order of the store's policy; ``get`` and ``put`` are uses.

        Raises:
            InvalidRequest: keys and blocks do not pair up, or a block has the wrong size.
        """
        ...

    def pin(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[bool]:
        """Keep these blocks from eviction; pins are counted. False where a block is not held.

        A pin with a lease ends by itself after ``lease_s`` seconds, so that a client that dies blocks
        nothing.
        """
        ...

    def unpin(self, keys: Sequence[bytes]) -> None:
        """Take back one pin of each block; blocks that are not held or not pinned are ignored."""
        ...

    def evict(self, count: int) -> int:
        """Drop up to ``count`` unpinned blocks in the order of the store's policy; returns how many were
        dropped.
        """
        ...

    def stats(self) -> KVStoreStats: ...
    def close(self) -> None:
        """Finish writing and free everything. Safe to call twice."""
        ...


@runtime_checkable
class MappedKVStore(KVStore, Protocol):
    """A store whose blocks lie in one region of memory that other processes can map.

    Writing has two phases, so that a block is never visible before it is whole: ``reserve`` slots, fill
    them, ``commit``.
    """

    def region(self) -> memoryview:
        """The arena; slot ``i`` is the ``schema.bytes_per_page`` bytes from ``i * schema.bytes_per_page``
        on.
        """
        ...

    def region_uri(self) -> str:
        """Where other processes map the arena (``shm://name``); empty for private memory."""
        ...

    def reserve(self, keys: Sequence[bytes]) -> list[int | None]:
        """A slot to fill for each key; None where the block is held or reserved already, or there is no
        room.
        """
        ...

    def commit(self, keys: Sequence[bytes]) -> None:
        """The reserved blocks are whole: they can be found from now on.

        Raises:
            InvalidRequest: a key is not reserved; nothing was committed.
        """
        ...

    def discard(self, keys: Sequence[bytes]) -> None:
        """Give up reserved blocks; other keys are ignored."""
        ...

    def acquire(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[int | None]:
        """Slot of each block, pinned until ``release`` or the end of the lease; None where it is not held."""
        ...

    def release(self, keys: Sequence[bytes]) -> None:
        """Take back one ``acquire`` of each block; others are ignored."""
        ...


@frozen(kw_only=True)
class KVPlace:
    """Where a tiered store holds a block, and the estimated seconds until it can be read there."""

    tier: MemoryTier
    seconds: float


@runtime_checkable
class TieredKVStore(KVStore, Protocol):
    """A store with several tiers: whether to load a block or to recompute it is the caller's decision."""

    def locate(self, keys: Sequence[bytes]) -> list[KVPlace | None]:
        """The fastest tier that holds each block; None where none does. Neither a use nor a look-up."""
        ...

    def prefetch(self, keys: Sequence[bytes], *, deadline_s: float | None = None) -> int:
        """Begin to move blocks to the fastest tier; returns how many are moving or there.

        What cannot arrive within ``deadline_s`` seconds is not moved.
        """
        ...


@frozen(kw_only=True)
class KVStoreEvent:
    """Blocks that a store took in or let go. ``cleared`` says that everything before it no longer counts."""

    kind: Literal["stored", "removed", "cleared"]
    keys: tuple[bytes, ...] = ()
    tier: MemoryTier = "dram"


@runtime_checkable
class ObservableKVStore(KVStore, Protocol):
    """A store that reports its changes."""

    def subscribe(self, callback: Callable[[KVStoreEvent], None]) -> Callable[[], None]:
        """Call ``callback`` for each change, from any thread, until the returned function is called.

        A subscriber that is too slow gets one ``cleared`` event in place of those that it missed.
        """
        ...
