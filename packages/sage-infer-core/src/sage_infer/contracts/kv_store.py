"""Contracts of content-addressed KV stores: in one tier, in shared memory, or in several tiers."""

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
    """Contents of a store, and counters since it was opened.

    Attributes:
        blocks: number of stored blocks.
        capacity_blocks: capacity in blocks; 0 if unknown.
        bytes_used: size of the stored blocks in bytes.
        pinned_blocks: number of pinned blocks.
        hits: look-ups that found at least one block.
        misses: look-ups that found no block.
        evictions: number of evicted blocks.
        corrupt: number of blocks dropped because of a failed check.
        dropped: blocks passed to ``put`` that were not stored, because a queue was full or no block could be
            evicted.
        tiers: number of blocks by tier, for a store with several tiers.
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
    """A store of KV blocks, addressed by content.

    A block has ``schema.bytes_per_page`` bytes; keys come from ``block_keys``. Data is copied to and from buffers
    that the caller owns. All methods are thread-safe.
    """

    @property
    def schema(self) -> KVCacheSchema: ...

    def match(self, tokens: Sequence[int]) -> int:
        """Return the number of tokens in the longest stored prefix, a multiple of the page size.

        This looks up keys without salt and extras. A look-up counts as one hit, or as one miss if no block is
        stored.
        """
        ...

    def match_keys(self, keys: Sequence[bytes]) -> int:
        """Return how many keys at the start of ``keys`` are stored. Hits and misses count as for ``match``.

        Use this for requests with a salt, an adapter or media, which ``match`` does not take into account.
        """
        ...

    def contains(self, keys: Sequence[bytes]) -> list[bool]:
        """Return for each key whether its block is stored. Does not count as a use or a look-up."""
        ...

    def get(self, keys: Sequence[bytes], out: Sequence[memoryview]) -> list[bool]:
        """Copy blocks into ``out``; False for each block that is not stored (its buffer is unchanged).

        Raises:
            InvalidRequest: the numbers of keys and buffers differ, or a buffer has the wrong size.
        """
        ...

    def put(self, keys: Sequence[bytes], blocks: Sequence[memoryview]) -> int:
        """Store blocks and return how many of them are stored afterwards.

        If there is no room, unpinned blocks are evicted in the order of the store's policy. ``get`` and ``put``
        count as uses.

        Raises:
            InvalidRequest: the numbers of keys and blocks differ, or a block has the wrong size.
        """
        ...

    def pin(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[bool]:
        """Protect blocks from eviction; pins are counted. False for each block that is not stored.

        A pin with a lease expires after ``lease_s`` seconds, so that a crashed client does not hold blocks
        forever.
        """
        ...

    def unpin(self, keys: Sequence[bytes]) -> None:
        """Remove one pin from each block; blocks that are not stored or not pinned are ignored."""
        ...

    def evict(self, count: int) -> int:
        """Evict up to ``count`` unpinned blocks in the order of the store's policy; return the number evicted."""
        ...

    def stats(self) -> KVStoreStats: ...
    def close(self) -> None:
        """Finish pending writes and free all resources. Safe to call twice."""
        ...


@runtime_checkable
class MappedKVStore(KVStore, Protocol):
    """A store whose blocks are in one memory region (arena) that other processes can map.

    Writes have two phases, so that an incomplete block is never visible: ``reserve`` slots, fill them, then
    ``commit``.
    """

    def region(self) -> memoryview:
        """Return the arena. Slot ``i`` starts at byte ``i * schema.bytes_per_page``."""
        ...

    def region_uri(self) -> str:
        """Return the URI that other processes map the arena by (``shm://name``); empty for private memory."""
        ...

    def reserve(self, keys: Sequence[bytes]) -> list[int | None]:
        """Reserve a slot per key; None for each block that is already stored or reserved, or if there is no room."""
        ...

    def commit(self, keys: Sequence[bytes]) -> None:
        """Make reserved blocks visible after they have been filled.

        Raises:
            InvalidRequest: a key is not reserved; nothing was committed.
        """
        ...

    def discard(self, keys: Sequence[bytes]) -> None:
        """Cancel reservations; other keys are ignored."""
        ...

    def acquire(self, keys: Sequence[bytes], *, lease_s: float | None = None) -> list[int | None]:
        """Pin blocks until ``release`` or the end of the lease and return their slots; None if not stored."""
        ...

    def release(self, keys: Sequence[bytes]) -> None:
        """Undo one ``acquire`` of each block; other keys are ignored."""
        ...


@frozen(kw_only=True)
class KVPlace:
    """Location of a block in a tiered store.

    Attributes:
        tier: the fastest tier that has the block.
        seconds: estimated seconds until the block can be read.
    """

    tier: MemoryTier
    seconds: float


@runtime_checkable
class TieredKVStore(KVStore, Protocol):
    """A store with several tiers. The caller decides whether to load a block or to recompute it."""

    def locate(self, keys: Sequence[bytes]) -> list[KVPlace | None]:
        """Return the fastest tier that has each block, or None. Does not count as a use or a look-up."""
        ...

    def prefetch(self, keys: Sequence[bytes], *, deadline_s: float | None = None) -> int:
        """Start to promote blocks to the fastest tier; return how many are being promoted or already there.

        Blocks that cannot arrive within ``deadline_s`` seconds are not promoted.
        """
        ...


@frozen(kw_only=True)
class KVStoreEvent:
    """A change of a store's contents.

    Attributes:
        kind: stored, removed, or cleared, which invalidates all earlier events.
        keys: keys of the blocks; empty for cleared.
        tier: the tier that changed.
    """

    kind: Literal["stored", "removed", "cleared"]
    keys: tuple[bytes, ...] = ()
    tier: MemoryTier = "dram"


@runtime_checkable
class ObservableKVStore(KVStore, Protocol):
    """A store that reports its changes."""

    def subscribe(self, callback: Callable[[KVStoreEvent], None]) -> Callable[[], None]:
        """Call ``callback`` for each change, from any thread, until the returned function is called.

        A subscriber that is too slow receives one ``cleared`` event in place of the missed events.
        """
        ...
